//! A rehearsal: the plans of a run, applied in some of its tenants and rolled back.
//!
//! It works over each server's service connection, one tenant at a time, and gives that away every now and then: so it
//! needs no slot, never pushes the sum over the budget, and holds up neither a run nor an inspection for long.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{
    context::Context,
    enqueue::{Planned, RunPlan},
    kept::OpenSession,
    service::{Opening, Service, on_each_server},
    worker::ROUND,
};
use crate::{
    config::LimitsConfig,
    domain::{
        failure::{FailureClass, JobError, chain},
        plan::{self, PlanStep},
        tenant::Place,
        worker::Errand,
    },
    runner::apply::{Afterwards, NoJournal, Order, Rehearsed, leaves_residue, rehearse as try_out},
    session::LedgerTable,
    store::StoreError,
    tenant_error::TenantError,
};

/// For how long one rehearsal keeps a server's service connection before others have a turn.
const TURN: Duration = Duration::from_secs(4);

/// How long it leaves it alone then: whoever waits, or comes by each second as a keeper does, asks at least once in that time.
const PAUSE: Duration = ROUND.saturating_add(Duration::from_millis(300));

/// How a rehearsal is done.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// In how many tenants. None: in all.
    pub sample: Option<usize>,
    /// How long it waits for a lock, and with it all that queue up behind it.
    pub lock_timeout: Duration,
    /// How long one statement may take, and keep the locks that it has.
    pub statement_timeout: Duration,
}

/// What would become of a tenant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Forecast {
    /// What was rehearsed went through.
    WouldSucceed,
    /// It did not.
    WouldFail,
    /// Nothing was rehearsed.
    NotRehearsed,
}

/// What came of the rehearsal in one tenant.
#[derive(Clone, Debug, Serialize)]
pub struct Tried {
    /// The tenant.
    pub tenant: String,
    /// Its server.
    pub server: String,
    /// Where it stands.
    pub from: Option<String>,
    /// Where it would go.
    pub to: Option<String>,
    /// What would become of it.
    pub forecast: Forecast,
    /// The revisions that were rehearsed to their end.
    pub rehearsed: Vec<String>,
    /// Those that were not.
    pub left_out: Vec<String>,
    /// Why not.
    pub why: Option<String>,
    /// For how long its transaction held locks, in milliseconds. Null: there was none.
    pub held_ms: Option<f64>,
    /// Why it would fail.
    pub error: Option<JobError>,
    /// Whether a run would try it again, since that may pass by itself.
    pub may_pass: bool,
}

/// Rehearses what a run would do by plan. What it would do live is left out.
///
/// # Errors
/// The control database fails.
pub async fn rehearse(cx: &Context, plan: &RunPlan, options: Options) -> Result<Vec<Tried>, StoreError> {
    let Some(ledger) = cx.runner.ledger_table() else {
        return Ok(Vec::new());
    };
    let chosen = chosen(plan, options.sample);
    let mut servers: Vec<(&str, Vec<usize>)> = Vec::new();
    for number in chosen {
        let server = plan.tenants[number].tenant.place.server.as_str();
        match servers.iter_mut().find(|(name, _)| *name == server) {
            Some((_, members)) => members.push(number),
            None => servers.push((server, vec![number])),
        }
    }
    let limits = LimitsConfig {
        // What a run stops, this must not let pass.
        lock_timeout: options.lock_timeout,
        statement_timeout: options.statement_timeout.min(cx.config.limits.statement_timeout),
        ..cx.config.limits.clone()
    };
    let stage = Stage {
        cx,
        plan,
        ledger: &ledger,
        limits: &limits,
    };
    let done = servers
        .into_iter()
        .map(|(server, members)| stage.on_server(server, members));
    let mut tried: Vec<(usize, Tried)> = Vec::new();
    for server in on_each_server(done).await {
        tried.extend(server?);
    }
    tried.sort_by_key(|(number, _)| *number);
    Ok(tried.into_iter().map(|(_, tried)| tried).collect())
}

/// The tenants to rehearse in: of each way some, and at least one.
fn chosen(plan: &RunPlan, sample: Option<usize>) -> Vec<usize> {
    let mut ways: Vec<Vec<usize>> = vec![Vec::new(); plan.ways.len()];
    for (number, planned) in plan.tenants.iter().enumerate() {
        if plan_of(plan, planned).is_some()
            && let Some(members) = planned.way.and_then(|way| ways.get_mut(way))
        {
            members.push(number);
        }
    }
    let sizes: Vec<usize> = ways.iter().map(Vec::len).collect();
    let shares = match sample {
        Some(sample) => shares(&sizes, sample),
        None => sizes,
    };
    let mut chosen: Vec<usize> = ways
        .iter()
        .zip(shares)
        .flat_map(|(members, share)| spread(members, share))
        .collect();
    chosen.sort_unstable();
    chosen
}

/// How many of each group: one of each at least, and of the rest in turns, so that no group is all of the sample.
fn shares(sizes: &[usize], sample: usize) -> Vec<usize> {
    let mut shares: Vec<usize> = sizes.iter().map(|size| (*size).min(1)).collect();
    let mut left = sample.saturating_sub(shares.iter().sum());
    while left > 0 {
        let before = left;
        for (share, size) in shares.iter_mut().zip(sizes) {
            if left > 0 && *share < *size {
                (*share, left) = (*share + 1, left - 1);
            }
        }
        if left == before {
            break;
        }
    }
    shares
}

/// So many of these, evenly spread: the same ones each time.
fn spread(members: &[usize], share: usize) -> impl Iterator<Item = usize> {
    (0..share).filter_map(move |n| members.get(n * members.len() / share.max(1)).copied())
}

fn plan_of<'a>(plan: &'a RunPlan, planned: &Planned) -> Option<&'a plan::Plan> {
    plan.ways.get(planned.way?)?.plan_for(&planned.tenant.place).ok()
}

struct Stage<'a> {
    cx: &'a Context,
    plan: &'a RunPlan,
    ledger: &'a LedgerTable,
    limits: &'a LimitsConfig,
}

impl Stage<'_> {
    async fn on_server(&self, server: &str, members: Vec<usize>) -> Result<Vec<(usize, Tried)>, StoreError> {
        let mut tried = Vec::with_capacity(members.len());
        let mut members = members.into_iter().peekable();
        while members.peek().is_some() {
            let service = Service::acquire(self.cx, server).await?;
            let since = Instant::now();
            let mut kept: Option<OpenSession> = None;
            while since.elapsed() < TURN
                && let Some(number) = members.next()
            {
                let planned = &self.plan.tenants[number];
                tried.push((number, self.one(&service, planned, &mut kept).await));
            }
            if let Some(kept) = kept {
                service.close(kept.session).await;
            }
            service.release().await;
            if members.peek().is_some() {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(tried)
    }

    async fn one(&self, service: &Service, planned: &Planned, kept: &mut Option<OpenSession>) -> Tried {
        let tenant = &planned.tenant;
        let mut tried = Tried {
            tenant: tenant.id.clone(),
            server: tenant.place.server.clone(),
            from: planned.from.to_revision(),
            to: planned.to.to_revision(),
            forecast: Forecast::NotRehearsed,
            rehearsed: Vec::new(),
            left_out: planned.pending.clone(),
            why: None,
            held_ms: None,
            error: None,
            may_pass: false,
        };
        let Some(plan) = plan_of(self.plan, planned) else {
            return tried;
        };
        if planned.piece.is_some() {
            tried.why =
                Some("it is in the middle of a revision: a run goes on behind what is done of that".into());
            return tried;
        }
        let (result, held) = self.in_tenant(service, planned, plan, kept).await;
        match result {
            Ok(Rehearsed::Fine { steps, left_out }) => {
                tried.left_out = revisions(&plan.steps[steps..]);
                tried.rehearsed = revisions(&plan.steps[..steps]);
                // Of one that is torn in pieces, some are not enough.
                tried.rehearsed.retain(|r| !tried.left_out.contains(r));
                tried.why = left_out.map(str::to_owned);
                if steps > 0 {
                    tried.forecast = Forecast::WouldSucceed;
                    tried.held_ms = Some(milliseconds(held));
                }
            }
            Ok(Rehearsed::Locked) => tried.why = Some("another session is migrating it".into()),
            Ok(Rehearsed::Elsewhere(found)) => tried.why = Some(format!("it is now at {}", found.in_words())),
            Ok(Rehearsed::Unfit(at)) => {
                tried.why = Some(format!(
                    "its plan does not fit there: it is at {at}, and the migration tool will see to it"
                ));
            }
            Err(error) if error.class() == FailureClass::Infrastructure => {
                tried.why = Some(chain(&error));
            }
            Err(error) if self.cx.runner.knows_better(plan, &error) => {
                tried.why = Some(format!(
                    "its plan does not fit there ({error}): the migration tool will see to it"
                ));
            }
            Err(error) => {
                tried.forecast = Forecast::WouldFail;
                tried.may_pass = error.class() == FailureClass::Transient;
                tried.held_ms = Some(milliseconds(held));
                tried.error = Some(self.explained(&error));
            }
        }
        tried
    }

    async fn in_tenant(
        &self,
        service: &Service,
        planned: &Planned,
        plan: &plan::Plan,
        kept: &mut Option<OpenSession>,
    ) -> (Result<Rehearsed, TenantError>, Duration) {
        let mut here = match self.connected(service, planned, kept.take()).await {
            Ok(here) => here,
            Err(error) => return (Err(error), Duration::ZERO),
        };
        let order = Order {
            plan,
            ledger: self.ledger,
            name: &Errand::Rehearsal.label(&self.cx.mark),
            afterwards: Afterwards::NextTenant,
            journal: &NoJournal,
        };
        let (result, held) = try_out(&mut here.session, &order).await;
        let tenant = &planned.tenant;
        let is_among_others = tenant.place.schema.is_some() && !tenant.own_url;
        let is_fit = here.served() && result.is_ok() && is_among_others && !leaves_residue(plan);
        if is_fit && matches!(here.session.mixes_types(self.ledger).await, Ok(false)) {
            *kept = Some(here);
        } else {
            service.close(here.session).await;
        }
        (result, held)
    }

    /// The connection that is there, turned to this tenant, or a new one.
    async fn connected(
        &self,
        service: &Service,
        planned: &Planned,
        kept: Option<OpenSession>,
    ) -> Result<OpenSession, TenantError> {
        let tenant = &planned.tenant;
        let place: &Place = &tenant.place;
        let extra = self.cx.config.runner.extra_search_path();
        if let Some(mut kept) = kept {
            if kept.database == place.database && place.schema.is_some() && !tenant.own_url {
                kept.session.turn_to(place, extra);
                return Ok(kept);
            }
            service.close(kept.session).await;
        }
        let url = self.plan.own_urls.lead_to(tenant, &self.cx.servers);
        let url = url.map_err(|e| TenantError::Connection(chain(&e)))?;
        let opening = Opening {
            url: &url,
            place: Some(place),
            errand: Errand::Rehearsal,
            limits: self.limits.into(),
            extra_search_path: extra,
        };
        let mut session = service.open(opening).await?;
        match session.backend().await {
            Ok(backend) => Ok(OpenSession::new(session, &place.database, backend)),
            Err(error) => {
                service.close(session).await;
                Err(error)
            }
        }
    }

    /// What is said of a failure. Those that hang on the rehearsal's own limits say so.
    fn explained(&self, error: &TenantError) -> JobError {
        let mut record = error.to_job_error();
        let hint = match record.reason.as_str() {
            "lock_timeout" => Some(format!(
                "it waited {:?} for a lock; a run waits {:?}, and retries",
                self.limits.lock_timeout, self.cx.config.limits.lock_timeout
            )),
            "statement_timeout"
                if self.limits.statement_timeout == self.cx.config.limits.statement_timeout =>
            {
                Some("[limits] `statement_timeout` is how long a statement may run, in a run as well".into())
            }
            "statement_timeout" => Some(format!(
                "it was stopped after {:?}: in a run it would hold its locks for longer; --statement-timeout raises the limit",
                self.limits.statement_timeout
            )),
            _ => None,
        };
        record.hint = record.hint.or(hint);
        record
    }
}

/// The revisions of steps. One that is torn in pieces is named once.
fn revisions(steps: &[PlanStep]) -> Vec<String> {
    let mut revisions: Vec<String> = steps.iter().flat_map(|s| s.revisions.clone()).collect();
    revisions.dedup();
    revisions
}

fn milliseconds(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_group_has_one_and_none_has_all() {
        assert_eq!(shares(&[100, 1, 0, 3], 10), [6, 1, 0, 3]);
        assert_eq!(shares(&[100, 100], 5), [3, 2]);
        assert_eq!(shares(&[5, 5, 5], 1), [1, 1, 1]);
        assert_eq!(shares(&[2, 1], 50), [2, 1]);
        assert_eq!(shares(&[], 5), [0; 0]);
    }

    #[test]
    fn a_sample_is_spread_over_its_group() {
        let members: Vec<usize> = (0..100).collect();
        assert_eq!(spread(&members, 4).collect::<Vec<_>>(), [0, 25, 50, 75]);
        assert_eq!(spread(&members[..3], 3).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(spread(&[], 0).count(), 0);
    }
}
