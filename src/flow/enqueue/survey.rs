//! What a run would do: who its tenants are, where they stand, and how each would go.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    EnqueueError,
    ways::{DistinctWay, Planner, Ways, offers},
};
use crate::{
    domain::{
        failure::chain,
        half::Piece,
        plan,
        revision::{Direction, History, HistoryError, Ledger, Position, Target},
        tenant::{Isolation, Place, Tenant},
        worker::Errand,
    },
    flow::{
        budget,
        context::Context,
        inspect::{Read, by_server, in_order, inspect_server},
        own_urls::OwnUrls,
        resolve::{Resolved, Wanted, resolve_selected},
        service::{Opening, Service, on_each_server},
    },
    runner::{
        Offer,
        apply::{fits, goes_on},
    },
    store::{
        self, StoreError,
        server::{self, ServerRow},
    },
    tenant_error::TenantError,
    tenant_source::{Listed, TenantSourceError},
};

/// A tenant, and what a run would do in it.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The tenant.
    pub tenant: Tenant,
    /// Where it stands.
    pub from: Position,
    /// Where it would go. A relative target of one that could not be read is not known yet.
    pub to: Position,
    /// Whether nothing is left to do.
    pub current: bool,
    /// What would be applied or undone, by id, in order. Empty also where the revisions are not known one by one.
    pub pending: Vec<String>,
    /// The number of its way among the plan's. None: it is there, or its ledger could not be read.
    pub way: Option<usize>,
    /// How far a plan got that left a revision half applied there, where the tenant's own one goes on with that.
    pub piece: Option<Piece>,
    /// Whether something was half applied there, and its ledger tells that it is not any more.
    pub is_mended: bool,
    /// Why its ledger could not be read, makes no sense, or does not tell all. It is tried all the same, and fails with this reason
    /// unless that passes.
    pub unknown: Option<TenantError>,
}

impl Planned {
    /// Leaves it to an operator: these revisions are half applied.
    pub(super) fn leave(&mut self, half: Vec<String>, direction: Direction) {
        (self.way, self.piece, self.current) = (None, None, false);
        self.unknown = Some(TenantError::left_before(half, direction));
    }
}

/// How all tenants whose ledger says the same go to their target.
#[derive(Clone, Debug)]
pub struct Way {
    /// What their ledger says.
    pub before: Ledger,
    /// Where they go. None: the base.
    pub to: Option<String>,
    /// How they are isolated.
    pub isolation: Isolation,
    /// By a plan, or live.
    pub offer: Offer,
}

impl Way {
    /// The plan for a tenant on this way.
    ///
    /// # Errors
    /// Why there is none for it: it is migrated live.
    pub fn plan_for(&self, place: &Place) -> Result<&plan::Plan, &str> {
        match &self.offer {
            Offer::Plan(plan) if place.schema.as_deref().is_none_or(|s| fits(plan, s)) => Ok(plan),
            Offer::Plan(_) => Err("its SQL cannot hold the schema's name"),
            Offer::Live { why } => Err(why),
        }
    }
}

/// What a run would do.
pub struct RunPlan {
    /// The history that it was made with.
    pub history: Arc<History>,
    /// The absolute target, where it is the same for all. None inside: the base.
    pub target: Option<Option<String>>,
    /// One line a tenant, in the source's order.
    pub tenants: Vec<Planned>,
    /// The ways that they go. Empty in a [`survey`].
    pub ways: Vec<Way>,
    /// The servers with their budgets.
    pub servers: Vec<ServerRow>,
    /// What a person should know.
    pub warnings: Vec<String>,
    /// The URLs of tenants that came with one.
    pub(in crate::flow) own_urls: OwnUrls,
}

/// Finds out what a run would do, and how. Changes no tenant; what a proof needs is made beside them, and removed.
///
/// # Errors
/// See [`EnqueueError`].
pub async fn plan(
    cx: &Context,
    direction: Direction,
    target: &Target,
    wanted: &Wanted,
) -> Result<RunPlan, EnqueueError> {
    let (mut plan, ways) = read(cx, direction, Some(target), wanted).await?;
    if cx.runner.is_rendered() && !ways.is_empty() {
        // Two who prove at once would take each other's scratch schemas for left over.
        for row in &plan.servers {
            server::introduce(&cx.pool, row).await?;
        }
    }
    plan.ways = offers(cx, direction, ways, &mut plan.tenants, &plan.own_urls).await?;
    go_on(cx, direction, &mut plan).await?;
    Ok(plan)
}

/// Leaves those in the middle of a plan that theirs does not go on with to an operator.
async fn go_on(cx: &Context, direction: Direction, plan: &mut RunPlan) -> Result<(), EnqueueError> {
    let mut begun: HashMap<String, plan::Plan> = HashMap::new();
    for planned in &mut plan.tenants {
        let (Some(piece), Some(way)) = (&planned.piece, planned.way.and_then(|way| plan.ways.get(way)))
        else {
            continue;
        };
        let of = match begun.entry(piece.plan.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                let mut connection = cx.pool.acquire().await.map_err(StoreError::from)?;
                unknown.insert(store::plan::load(&mut connection, &piece.plan).await?)
            }
        };
        let own = way.plan_for(&planned.tenant.place).ok();
        if !piece.is_about(of, &way.before) {
            planned.piece = None;
        } else if own.is_none_or(|own| !goes_on(piece, of, own)) {
            let half = piece.note.revision.iter().cloned().collect();
            planned.leave(half, direction);
        }
    }
    Ok(())
}

/// Finds out where the tenants stand, and what is pending, but not how it would be done. Changes nothing. `target`: None
/// is the head where there is one; where there is not, the tenants that have a revision are unknown, with that reason.
///
/// # Errors
/// See [`EnqueueError`].
pub async fn survey(
    cx: &Context,
    direction: Direction,
    target: Option<&Target>,
    wanted: &Wanted,
) -> Result<RunPlan, EnqueueError> {
    let (plan, _) = read(cx, direction, target, wanted).await?;
    Ok(plan)
}

/// What there is to plan with, the distinct ways among it.
async fn read(
    cx: &Context,
    direction: Direction,
    target: Option<&Target>,
    wanted: &Wanted,
) -> Result<(RunPlan, Vec<DistinctWay>), EnqueueError> {
    // At the same time: it takes a migration tool as long to start as it takes to read a thousand ledgers.
    let (known, found) = tokio::join!(migrations(cx, direction, target), stand(cx, wanted));
    let (history, absolute) = known?;
    let Found {
        resolved,
        own_urls,
        servers,
        ledgers,
    } = found?;
    let halves = store::half::all(&cx.pool).await?;
    let mut planner = Planner {
        history: &history,
        halves: &halves,
        direction,
        target: target.unwrap_or(&Target::Head),
        absolute: absolute.as_ref(),
        known: HashMap::new(),
        by_server: cx.runner.is_rendered(),
        ways: Ways::default(),
    };
    let tenants: Vec<Planned> = resolved
        .tenants
        .into_iter()
        .zip(ledgers)
        .map(|(tenant, read)| planner.plan(tenant, read))
        .collect();
    let ways = planner.ways.known;
    if let Some(error) = ambiguous_for_all(&tenants) {
        return Err(error.into());
    }
    let plan = RunPlan {
        target: absolute,
        tenants,
        ways: Vec::new(),
        servers,
        warnings: resolved.warnings,
        history,
        own_urls,
    };
    Ok((plan, ways))
}

/// Why a step leads nowhere, where it does so for each tenant: then it is the target that is wrong, and not a tenant.
fn ambiguous_for_all(tenants: &[Planned]) -> Option<TenantError> {
    let ambiguous = |planned: &Planned| {
        matches!(
            planned.unknown,
            Some(TenantError::History(HistoryError::AmbiguousStep(..)))
        )
    };
    let first = tenants.first()?;
    tenants.iter().all(ambiguous).then(|| first.unknown.clone())?
}

/// The history, and the target in it, if that is the same one for all tenants.
async fn migrations(
    cx: &Context,
    direction: Direction,
    target: Option<&Target>,
) -> Result<(Arc<History>, Option<Option<String>>), EnqueueError> {
    let history = cx.runner.history().await?;
    let absolute = match target {
        None => history.resolve(&Target::Head, &Ledger::default()).ok(),
        Some(Target::Relative(_)) if !history.is_opaque() => None,
        Some(target) => {
            let absolute = history.resolve(target, &Ledger::default());
            let absolute = absolute.map_err(TenantError::from)?;
            if let (Direction::Upgrade, Target::Revision(name), None) = (direction, target, &absolute) {
                // An upgrade to that would find everybody there, and do nothing.
                return Err(TenantError::from(HistoryError::IsBase(name.clone())).into());
            }
            Some(absolute)
        }
    };
    Ok((history, absolute))
}

/// The tenants, and where they stand.
struct Found {
    resolved: Resolved,
    own_urls: OwnUrls,
    servers: Vec<ServerRow>,
    ledgers: Vec<Read>,
}

/// How long a server that is full is waited for where its tenants are to be listed: a session that was just closed may count a moment
/// longer, and jobs of other runs come to their end. Without a list nothing can be put off.
const FULL_LIMIT: Duration = Duration::from_secs(60);

/// How often it is asked meanwhile.
const FULL_PAUSE: Duration = Duration::from_millis(500);

/// The tenant list. Where a server of tenants' is asked for it, that is done over the one connection of its budget that belongs to no
/// job, which its ledgers are read over next.
async fn list(cx: &Context) -> Result<(Vec<Listed>, Option<Service>), EnqueueError> {
    let Some(server) = cx.source.server() else {
        return Ok((cx.source.list().await?, None));
    };
    let service = Service::acquire(cx, server).await?;
    if let Ok(url) = cx.servers.url(server, None) {
        // What keeps it from connecting keeps the source as well, which says so.
        let _ = service
            .inherit(Opening::of_server(cx, &url, Errand::Inspect))
            .await;
    }
    let since = Instant::now();
    loop {
        let listed = cx.source.list().await;
        service.closed().await;
        match listed {
            Err(TenantSourceError::Unreadable { is_full: true, .. }) if since.elapsed() < FULL_LIMIT => {
                tokio::time::sleep(FULL_PAUSE).await;
            }
            Ok(listed) => return Ok((listed, Some(service))),
            Err(error) => {
                service.release().await;
                return Err(error.into());
            }
        }
    }
}

async fn stand(cx: &Context, wanted: &Wanted) -> Result<Found, EnqueueError> {
    let (listed, held) = list(cx).await?;
    let own_urls = OwnUrls::of(&listed);
    let mut resolved = match resolve_selected(listed, &cx.servers, wanted) {
        Ok(resolved) => resolved,
        Err(error) => {
            if let Some(held) = held {
                held.release().await;
            }
            return Err(error.into());
        }
    };
    let (servers, ledgers) = look(cx, &resolved.tenants, &own_urls, held, &mut resolved.warnings).await?;
    Ok(Found {
        resolved,
        own_urls,
        servers,
        ledgers,
    })
}

/// The servers of these tenants, each with its budget, and the tenants' ledgers.
///
/// Asked side by side: one that does not answer takes its time. A pooler that shares sessions is refused; and so is a config
/// with no server that takes its password.
async fn look(
    cx: &Context,
    tenants: &[Tenant],
    own_urls: &OwnUrls,
    mut held: Option<Service>,
    warnings: &mut Vec<String>,
) -> Result<(Vec<ServerRow>, Vec<Read>), EnqueueError> {
    let looks = by_server(tenants).into_iter().map(|(server, members)| {
        let own = held.take_if(|held| held.is_of(server));
        async move {
            // The connections that it takes, one after the other, are counted.
            let service = match own {
                Some(own) => own,
                None => Service::acquire(cx, server).await?,
            };
            let (row, refusal) = ask(cx, &service, server, tenants, &members, own_urls).await;
            let read = match refusal {
                Some(TenantError::Pooled(_)) => Vec::new(),
                _ => inspect_server(cx, &service, tenants, own_urls, &members).await,
            };
            service.release().await;
            Ok::<_, StoreError>((row, refusal, read))
        }
    });
    let looks = on_each_server(looks).await;
    let has_way = |look: &Result<(ServerRow, Option<TenantError>, _), _>| match look {
        Ok((row, Some(refusal), _)) => !(is_wrong_password(refusal) && cx.servers.contains(&row.name)),
        _ => true,
    };
    let any_has_way = looks.iter().any(has_way);
    let (mut rows, mut reads) = (Vec::new(), Vec::with_capacity(tenants.len()));
    for look in looks {
        let (row, refusal, read) = look?;
        match refusal {
            Some(source) if !any_has_way || matches!(source, TenantError::Pooled(_)) => {
                return Err(EnqueueError::Unusable {
                    server: row.name,
                    source,
                });
            }
            Some(error) => warnings.push(format!(
                "server `{}` cannot be asked now ({}): its budget is {} until a run or `herder budget --set` changes it",
                row.name,
                chain(&error),
                row.budget
            )),
            None => {}
        }
        rows.push(row);
        reads.extend(read);
    }
    Ok((rows, in_order(tenants.len(), reads)))
}

/// Of all refusals, the one that is about the URL alone: whoever else asks by it gets the same answer.
fn is_wrong_password(refusal: &TenantError) -> bool {
    matches!(refusal, TenantError::Database { sqlstate, .. } if sqlstate == "28P01")
}

/// A server with its budget, and why it could not be asked for that.
async fn ask(
    cx: &Context,
    service: &Service,
    server: &str,
    tenants: &[Tenant],
    members: &[usize],
    own_urls: &OwnUrls,
) -> (ServerRow, Option<TenantError>) {
    // No tenant is asked for what is the server's, unless its own way is shut.
    let own = [cx.servers.url(server, None)].into_iter();
    let theirs = members
        .iter()
        .map(|&i| own_urls.lead_to(&tenants[i], &cx.servers));
    let ways = own.chain(theirs);
    // A server that is not in the config has its address for a name.
    let address = cx.servers.address(server).unwrap_or(server);
    budget::server_row(cx, service, server, address, ways).await
}
