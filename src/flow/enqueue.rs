//! Making a run: resolve, inspect, settle what is done, and write all the rest in one transaction.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use tracing::info;
use uuid::Uuid;

use crate::{
    config::RunnerConfig,
    domain::{
        plan,
        revision::{Direction, History, HistoryError, Ledger, Standing, Target},
        run::RunId,
        tenant::{Isolation, Place, Tenant},
        trace::TraceContext,
        wave::Rollout,
    },
    flow::{
        budget,
        context::{Context, chain},
        inspect::{OwnUrls, Read, inspect},
        prove::{Refuted, prove},
        resolve::{ResolveError, Resolved, resolve_selected},
        service::{Service, on_each_server},
    },
    runner::{Offer, RunnerError, apply::fits},
    store::{
        self, StoreError,
        job::{self, NewJob},
        run::{self, NewRun},
        server::{self, ServerRow},
    },
    tenant_source::TenantSourceError,
};

/// What a person asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which way.
    pub direction: Direction,
    /// Where to.
    pub target: Target,
    /// Only these tenants. Empty: all.
    pub only: Vec<String>,
    /// Not these.
    pub exclude: Vec<String>,
    /// How the jobs are released.
    pub rollout: Rollout,
    /// The trace that the attempts join, in whatever process they are made. None: none.
    pub trace: Option<TraceContext>,
}

/// A tenant, and what a run would do in it.
#[derive(Clone, Debug)]
pub struct Planned {
    /// The tenant.
    pub tenant: Tenant,
    /// Where it stands: None where it was never migrated.
    pub from: Option<String>,
    /// Where it would go. None: the base.
    pub to: Option<String>,
    /// Whether nothing is left to do.
    pub current: bool,
    /// What would be applied or undone, by id, in order. Empty also where the revisions are not known one by one.
    pub pending: Vec<String>,
    /// The number of its way among the plan's. None: it is there, or its ledger could not be read.
    pub way: Option<usize>,
    /// Why its ledger could not be read, or makes no sense. It is tried all the same, and fails with this reason
    /// unless that passes.
    pub unknown: Option<RunnerError>,
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
pub struct Plan {
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
    pub(super) own_urls: OwnUrls,
}

/// A run that was made.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Enqueued {
    /// Its id.
    pub run: RunId,
    /// How many tenants it covers.
    pub tenants: usize,
    /// How many of them had nothing left to do.
    pub current: usize,
    /// In how many waves the others are released.
    pub waves: i32,
    /// The absolute target, where it is the same for all; else the target as it was named.
    pub target: String,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// Why no run was made. Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    /// The target makes no sense, or the project is broken.
    #[error(transparent)]
    Runner(#[from] RunnerError),
    /// The tenants cannot be listed.
    #[error(transparent)]
    Source(#[from] TenantSourceError),
    /// The list makes no sense.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// The control database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Another run is at work on some of these tenants.
    #[error(
        "run {} is still open over {places} of these tenants",
        crate::domain::run::short(run)
    )]
    Overlap {
        /// The other run.
        run: RunId,
        /// How many tenants they share.
        places: i64,
    },
    /// Nothing that hangs on a session would hold there.
    #[error("server `{server}` cannot be used by its url")]
    Pooled {
        /// The server.
        server: String,
        /// What shows it.
        source: RunnerError,
    },
    /// It was told to stop.
    #[error("it was stopped")]
    Stopped,
    /// An attempt needs more connections than a server's budget has.
    #[error("the budget of server `{server}` is {budget}, and one attempt needs {needed} connections")]
    Budget {
        /// The server.
        server: String,
        /// Its budget.
        budget: i32,
        /// What an attempt holds.
        needed: i16,
    },
}

/// The word for a runner's kind in the run's row.
pub fn runner_kind(config: &RunnerConfig) -> &'static str {
    match config {
        RunnerConfig::Alembic(_) => "alembic",
        RunnerConfig::Sql(_) => "sql",
        RunnerConfig::Command(_) => "command",
    }
}

/// Finds out what a run would do, and how. Changes no tenant; what a proof needs is made beside them, and removed.
///
/// # Errors
/// See [`EnqueueError`].
pub async fn plan(
    cx: &Context,
    direction: Direction,
    target: &Target,
    only: &[String],
    exclude: &[String],
) -> Result<Plan, EnqueueError> {
    let (mut plan, ways) = read(cx, direction, target, only, exclude).await?;
    plan.ways = offers(cx, direction, ways, &mut plan.tenants, &plan.own_urls).await?;
    Ok(plan)
}

/// Finds out where the tenants stand, and what is pending, but not how it would be done. Changes nothing.
///
/// # Errors
/// See [`EnqueueError`].
pub async fn survey(
    cx: &Context,
    direction: Direction,
    target: &Target,
    only: &[String],
    exclude: &[String],
) -> Result<Plan, EnqueueError> {
    let (plan, _) = read(cx, direction, target, only, exclude).await?;
    Ok(plan)
}

/// What there is to plan with, the distinct ways among it.
async fn read(
    cx: &Context,
    direction: Direction,
    target: &Target,
    only: &[String],
    exclude: &[String],
) -> Result<(Plan, Vec<DistinctWay>), EnqueueError> {
    // At the same time: it takes a migration tool as long to start as it takes to read a thousand ledgers.
    let (known, found) = tokio::join!(migrations(cx, direction, target), stand(cx, only, exclude));
    let (history, absolute) = known?;
    let Found {
        resolved,
        own_urls,
        servers,
        ledgers,
    } = found?;
    let mut planner = Planner {
        history: &history,
        direction,
        target,
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
    let plan = Plan {
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

/// The history, and the target in it, if that is the same one for all tenants.
async fn migrations(
    cx: &Context,
    direction: Direction,
    target: &Target,
) -> Result<(Arc<History>, Option<Option<String>>), EnqueueError> {
    let history = cx.runner.history().await?;
    let absolute = match target {
        Target::Relative(_) => None,
        _ => {
            let absolute = history.resolve(target, &Ledger::default());
            let absolute = absolute.map_err(RunnerError::from)?;
            if let (Direction::Upgrade, Target::Revision(name), None) = (direction, target, &absolute) {
                // It stands for the base: an upgrade to that would find everybody there, and do nothing.
                return Err(RunnerError::from(HistoryError::UnknownTarget(name.clone())).into());
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

async fn stand(cx: &Context, only: &[String], exclude: &[String]) -> Result<Found, EnqueueError> {
    let listed = cx.source.list().await?;
    let own_urls: OwnUrls = listed
        .iter()
        .filter_map(|t| Some((t.id.clone(), t.url.clone()?)))
        .collect();
    let mut resolved = resolve_selected(listed, &cx.servers, only, exclude)?;
    let servers = servers(cx, &resolved.tenants, &own_urls, &mut resolved.warnings).await?;
    let ledgers = inspect(cx, &resolved.tenants, &own_urls).await?;
    Ok(Found {
        resolved,
        own_urls,
        servers,
        ledgers,
    })
}

/// A ledger, an isolation, and where that goes.
type DistinctWay = (Ledger, Isolation, Option<String>);

/// Asks the runner for plans, and has those proven that need it, each beside the first tenant that it is for.
async fn offers(
    cx: &Context,
    direction: Direction,
    ways: Vec<DistinctWay>,
    tenants: &mut [Planned],
    own_urls: &OwnUrls,
) -> Result<Vec<Way>, EnqueueError> {
    let mut offered: Vec<Way> = Vec::with_capacity(ways.len());
    let mut rendered: HashMap<DistinctWay, Offer> = HashMap::new();
    let mut refuted = Refuted::default();
    for (number, way) in ways.into_iter().enumerate() {
        let (before, isolation, to) = way.clone();
        let asked = match rendered.get(&way) {
            Some(offer) => Ok(offer.clone()),
            None => cx.runner.plan(direction, &before, to.as_deref(), isolation).await,
        };
        let mut offer = match asked {
            Ok(offer) => offer,
            Err(e @ RunnerError::Setup { .. }) => return Err(e.into()),
            // Whose plans are written by a person has no other way to try.
            Err(e) if !cx.runner.is_rendered() => {
                for planned in tenants.iter_mut().filter(|p| p.way == Some(number)) {
                    (planned.way, planned.unknown) = (None, Some(e.clone()));
                }
                Offer::Live { why: e.to_string() }
            }
            // What keeps a plan from being made may fail the tenants, too: then one by one, and with their own reasons.
            Err(e) => Offer::Live { why: e.to_string() },
        };
        rendered.entry(way).or_insert_with(|| offer.clone());
        let first = tenants.iter().find(|t| t.way == Some(number));
        if let (Offer::Plan(plan), Some(first)) = (&offer, first)
            && cx.runner.is_rendered()
        {
            let first = &first.tenant;
            let own = own_urls.get(&first.id).filter(|_| first.own_url);
            let place = (&first.place, own);
            offer = prove(cx, plan.clone(), to.as_deref(), place, &mut refuted).await?;
            if cx.stop.is_cancelled() {
                return Err(EnqueueError::Stopped);
            }
        }
        offered.push(Way {
            before,
            to,
            isolation,
            offer,
        });
    }
    Ok(offered)
}

/// The distinct ways, in the order in which they first appear.
#[derive(Default)]
struct Ways {
    known: Vec<DistinctWay>,
    index: HashMap<(Ledger, Isolation, Option<String>), usize>,
}

impl Ways {
    fn number(
        &mut self,
        ledger: Ledger,
        isolation: Isolation,
        server: Option<String>,
        to: &Option<String>,
    ) -> usize {
        let known = &mut self.known;
        *self
            .index
            .entry((ledger, isolation, server))
            .or_insert_with_key(|(ledger, isolation, _)| {
                known.push((ledger.clone(), *isolation, to.clone()));
                known.len() - 1
            })
    }
}

/// Where a ledger goes, whether it is there, and over which revisions.
type Thought = (Option<String>, bool, Vec<String>);

/// Thousands of tenants stand at the same few revisions: each is thought through once.
struct Planner<'a> {
    history: &'a History,
    direction: Direction,
    target: &'a Target,
    absolute: Option<&'a Option<String>>,
    known: HashMap<Ledger, Result<Thought, HistoryError>>,
    /// A plan that is rendered is fitted to what sessions begin with, and each server has its own mind about that.
    by_server: bool,
    ways: Ways,
}

impl Planner<'_> {
    fn plan(&mut self, tenant: Tenant, read: Read) -> Planned {
        let unknown = |from, error| Planned {
            tenant: tenant.clone(),
            from,
            to: self.absolute.cloned().flatten(),
            current: false,
            pending: Vec::new(),
            way: None,
            unknown: Some(error),
        };
        let ledger = match read {
            Ok(ledger) => ledger,
            Err(e) => return unknown(None, e),
        };
        let from = self.history.describe(&ledger);
        let (history, direction, target) = (self.history, self.direction, self.target);
        let thought = self.known.entry(ledger.clone()).or_insert_with(|| {
            let to = history.resolve(target, &ledger)?;
            let pending = history.pending(direction, to.as_deref(), &ledger)?;
            let current = history.standing(direction, to.as_deref(), &ledger)? == Standing::AtTarget;
            Ok((to, current, pending.into_iter().map(|r| r.id.clone()).collect()))
        });
        match thought.clone() {
            Ok((to, current, pending)) => Planned {
                way: (!current).then(|| {
                    let server = self.by_server.then(|| tenant.place.server.clone());
                    self.ways.number(ledger, tenant.isolation, server, &to)
                }),
                tenant,
                from,
                to,
                current,
                pending,
                unknown: None,
            },
            Err(e) => unknown(from, e.into()),
        }
    }
}

/// The servers of these tenants, each with its budget.
///
/// Asked side by side: one that does not answer takes its time. A pooler that shares sessions is refused.
async fn servers(
    cx: &Context,
    tenants: &[Tenant],
    own_urls: &OwnUrls,
    warnings: &mut Vec<String>,
) -> Result<Vec<ServerRow>, EnqueueError> {
    let first: BTreeMap<&str, &Tenant> = tenants
        .iter()
        .rev()
        .map(|t| (t.place.server.as_str(), t))
        .collect();
    let asked = first.into_iter().map(|(name, tenant)| async move {
        let own = own_urls.get(&tenant.id).filter(|_| tenant.own_url);
        // A URL that makes no sense fails its tenants, one by one and with its reason.
        let url = cx.servers.url_for(&tenant.place, own).ok()?;
        // The connection that it takes is counted.
        let service = Service::acquire(&cx.pool, name).await;
        let asked = budget::server_row(name, &url, cx.servers.budget(name)).await;
        if let Ok(service) = service {
            service.release().await;
        }
        Some(asked)
    });
    let mut rows = Vec::new();
    for (row, error) in on_each_server(asked).await.into_iter().flatten() {
        match error {
            Some(pooled @ RunnerError::Pooled(_)) => {
                return Err(EnqueueError::Pooled {
                    server: row.name,
                    source: pooled,
                });
            }
            Some(error) => warnings.push(format!(
                "the budget of `{}` is {} until it can be asked: {}",
                row.name,
                row.budget,
                chain(&error)
            )),
            None => {}
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Makes a run: all of it, or nothing.
///
/// # Errors
/// See [`EnqueueError`].
pub async fn enqueue(cx: &Context, request: &Request) -> Result<Enqueued, EnqueueError> {
    loop {
        if let Some(enqueued) = enqueue_once(cx, request).await? {
            return Ok(enqueued);
        }
        info!("Another run was at work on some of these tenants meanwhile: their ledgers are read again");
    }
}

/// None: what was read of the tenants may not be so any more.
async fn enqueue_once(cx: &Context, request: &Request) -> Result<Option<Enqueued>, EnqueueError> {
    let since = store::now(&cx.pool).await?;
    let mut plan = plan(
        cx,
        request.direction,
        &request.target,
        &request.only,
        &request.exclude,
    )
    .await?;
    let live = cx.runner.connections();
    let mut plans: Vec<Option<String>> = Vec::with_capacity(plan.ways.len());
    for way in &plan.ways {
        plans.push(match &way.offer {
            Offer::Plan(plan) => Some(plan.id()),
            Offer::Live { .. } => None,
        });
    }
    let total = plan.tenants.iter().filter(|p| !p.current).count();
    let mut waves = request.rollout.waves(total);
    let mut jobs: Vec<NewJob> = plan
        .tenants
        .iter()
        .map(|planned| (planned, plan_of(&plan, &plans, planned)))
        .map(|(planned, plan_id)| NewJob {
            connections: if plan_id.is_some() { 1 } else { live },
            plan: plan_id,
            tenant: planned.tenant.clone(),
            wave: if planned.current {
                0
            } else {
                waves.next().unwrap_or_default()
            },
            from: planned.from.clone(),
            from_known: planned.unknown.is_none(),
            to: if planned.current {
                planned.from.clone()
            } else {
                planned.to.clone()
            },
            // A relative target of a tenant that could not be read is not known yet.
            resolved: planned.unknown.is_none() || plan.target.is_some(),
            current: planned.current,
        })
        .collect();
    if let Some(error) = over_budget(&jobs, &in_force(cx, &plan.servers).await?) {
        return Err(error);
    }
    let id = Uuid::new_v4();
    let last_wave = jobs.iter().map(|j| j.wave).max().unwrap_or_default();
    let checksum_target =
        fingerprint_target(request.direction, &request.target, plan.target.clone().flatten());
    let new = NewRun {
        id,
        direction: request.direction,
        target: request.target.to_string(),
        runner: runner_kind(&cx.config.runner).into(),
        checksum: plan.history.fingerprint(checksum_target.as_deref()),
        connections: live,
        tenants: i32::try_from(jobs.len()).unwrap_or(i32::MAX),
        waves: last_wave + 1,
        canary: request.rollout.canary.is_some(),
        failure_limit: request
            .rollout
            .failure_limit
            .map(|l| i32::try_from(l.within(jobs.len())).unwrap_or(i32::MAX)),
        trace: request.trace,
    };
    // Those that are current as well: another run may be about to take them elsewhere.
    let places: Vec<&Place> = plan.tenants.iter().map(|p| &p.tenant.place).collect();
    let unreachable = |server: &str| ServerRow {
        name: server.into(),
        address: server.into(),
        budget: i32::from(live),
    };
    let _whole = cx.busy();
    if cx.stop.is_cancelled() {
        return Err(EnqueueError::Stopped);
    }
    for job in &jobs {
        let name = &job.tenant.place.server;
        if !plan.servers.iter().any(|s| s.name == *name) {
            plan.servers.push(unreachable(name));
        }
    }
    for row in &mut plan.servers {
        // Not with the run: its jobs may take long to write, and every worker would wait for the server's row meanwhile.
        let mut tx = cx.pool.begin().await.map_err(StoreError::from)?;
        server::ensure(&mut tx, row).await?;
        // `herder budget --set` counts for more than the config.
        row.budget = server::job_slots(&mut *tx, &row.name)
            .await?
            .unwrap_or(row.budget);
        tx.commit().await.map_err(StoreError::from)?;
    }
    let mut tx = cx.pool.begin().await.map_err(StoreError::from)?;
    run::lock_enqueue(&mut tx).await?;
    if let Some((run, places)) = run::overlapping(&mut tx, &places).await? {
        return Err(EnqueueError::Overlap { run, places });
    }
    // After that look, not before: what settles in between was still open for it.
    let settled: HashSet<Place> = job::settled_since(&mut tx, since).await?;
    if places.iter().any(|place| settled.contains(place)) {
        return Ok(None);
    }
    // Who is where the run goes, and may not be for long: a cancelled run undoes what it began.
    let at_work = job::at_work(&mut tx).await?;
    for (job, planned) in jobs.iter_mut().zip(&plan.tenants) {
        if job.current && at_work.contains(&job.tenant.place) {
            (job.current, job.to, job.wave) = (false, planned.to.clone(), last_wave);
        }
    }
    if let Some(error) = over_budget(&jobs, &plan.servers) {
        return Err(error);
    }
    let current = jobs.iter().filter(|job| job.current).count();
    run::insert(&mut tx, &new).await?;
    for way in &plan.ways {
        if let Offer::Plan(plan) = &way.offer {
            store::plan::insert(&mut tx, plan).await?;
        }
    }
    job::insert_all(&mut tx, id, 0, &jobs).await?;
    job::push_deliveries(&mut tx, id, None).await?;
    tx.commit().await.map_err(StoreError::from)?;
    // A run with nothing to do is over at once. If we die here, a worker's keeper or `resume` does it.
    let mut connection = cx.pool.acquire().await.map_err(StoreError::from)?;
    run::advance(&mut connection, id).await?;
    Ok(Some(Enqueued {
        run: id,
        tenants: jobs.len(),
        current,
        waves: new.waves,
        target: match plan.target {
            Some(absolute) => absolute.unwrap_or_else(|| "base".into()),
            None => request.target.to_string(),
        },
        warnings: plan.warnings,
    }))
}

/// Servers with the budgets that count: what `herder budget --set` says counts for more than the config.
async fn in_force(cx: &Context, servers: &[ServerRow]) -> Result<Vec<ServerRow>, StoreError> {
    let overrides = server::overrides(&cx.pool).await?;
    let servers = servers.iter().cloned().map(|row| ServerRow {
        budget: overrides.get(&row.name).copied().unwrap_or(row.budget),
        ..row
    });
    Ok(servers.collect())
}

/// Nobody would ever claim a job that needs more connections than there are.
fn over_budget(jobs: &[NewJob], servers: &[ServerRow]) -> Option<EnqueueError> {
    servers.iter().find_map(|server| {
        let there = jobs
            .iter()
            .filter(|j| !j.current && j.tenant.place.server == server.name);
        let needed = there.map(|j| j.connections).max().unwrap_or(1);
        (server.budget < i32::from(needed)).then(|| EnqueueError::Budget {
            server: server.name.clone(),
            budget: server.budget,
            needed,
        })
    })
}

/// The id of the plan that a tenant gets.
fn plan_of(plan: &Plan, ids: &[Option<String>], planned: &Planned) -> Option<String> {
    let way = planned.way?;
    plan.ways.get(way)?.plan_for(&planned.tenant.place).ok()?;
    ids.get(way)?.clone()
}

/// What a run's checksum covers: an upgrade to a revision that all share needs nothing above it; everything else may
/// touch all.
pub fn fingerprint_target(direction: Direction, target: &Target, absolute: Option<String>) -> Option<String> {
    match (direction, target) {
        (Direction::Upgrade, Target::Head | Target::Revision(_)) => absolute,
        _ => None,
    }
}
