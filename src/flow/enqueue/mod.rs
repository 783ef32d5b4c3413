//! Making a run: resolve, inspect, settle what is done, and write all the rest in one transaction.

use std::collections::HashSet;

use chrono::{DateTime, Utc};
use sqlx::PgExecutor;
use tracing::info;
use uuid::Uuid;

use crate::{
    domain::{
        revision::{Direction, Target},
        run::{RunId, RunState},
        tenant::Place,
        trace::TraceContext,
        wave::Rollout,
    },
    flow::{
        context::Context,
        resolve::{ResolveError, Wanted},
    },
    runner::Offer,
    store::{
        self, StoreError,
        commit::commit,
        half,
        job::{self, NewJob},
        notice,
        run::{self, NewRun, Others},
        server::{self, ServerRow},
    },
    tenant_error::TenantError,
    tenant_source::TenantSourceError,
};

mod survey;
mod ways;

pub use self::survey::{Planned, RunPlan, Way, plan, survey};

/// What a person asks for.
#[derive(Clone, Debug)]
pub struct Request {
    /// Which way.
    pub direction: Direction,
    /// Where to.
    pub target: Target,
    /// Which tenants.
    pub wanted: Wanted,
    /// How the jobs are released.
    pub rollout: Rollout,
    /// The trace that the attempts join, in whatever process they are made. None: none.
    pub trace: Option<TraceContext>,
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
    Runner(#[from] TenantError),
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
    /// It leads to a pooler, where nothing that hangs on a session would hold, or its password is wrong.
    #[error("server `{server}` cannot be used by its url")]
    Unusable {
        /// The server.
        server: String,
        /// What shows it.
        source: TenantError,
    },
    /// It was told to stop.
    #[error("it was stopped")]
    Stopped,
    /// It was told to stop, and not waited for: a run may have been made, or not.
    #[error("it was stopped while it was at work")]
    Abandoned,
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
    let looked = Looked::now(cx).await?;
    let plan = plan(cx, request.direction, &request.target, &request.wanted).await?;
    let jobs = jobs_of(&plan, request.rollout, cx.runner.connections());
    if let Some(error) = over_budget(&jobs, &in_force(&cx.pool, &plan.servers).await?) {
        return Err(error);
    }
    let new = run_of(cx, request, &plan, &jobs);
    let _whole = cx.busy();
    if cx.stop.is_cancelled() {
        return Err(EnqueueError::Stopped);
    }
    write_servers(cx, &plan.servers).await?;
    let Some(current) = write(cx, &new, &plan, jobs, looked).await? else {
        return Ok(None);
    };
    // A run with nothing to do is over at once. If that fails, a worker's keeper or `resume` does it: the run is made.
    if let Ok(mut connection) = cx.pool.acquire().await {
        let _ = run::advance(&mut connection, new.id, Others::Awaited).await;
    }
    Ok(Some(Enqueued {
        run: new.id,
        tenants: plan.tenants.len(),
        current,
        waves: new.waves,
        target: match plan.target {
            Some(absolute) => absolute.unwrap_or_else(|| "base".into()),
            None => new.target,
        },
        warnings: plan.warnings,
    }))
}

/// What was known of other attempts before the ledgers were read.
struct Looked {
    at: DateTime<Utc>,
    /// The places where one was at work, or may have been: what a lost one still commits is settled by nobody.
    at_work: HashSet<Place>,
}

impl Looked {
    async fn now(cx: &Context) -> Result<Self, StoreError> {
        let at = store::now(&cx.pool).await?;
        let at_work = job::at_work(&mut *cx.pool.acquire().await?).await?;
        Ok(Self { at, at_work })
    }
}

/// A job for each tenant, in its wave. `live` is what an attempt without a plan needs of connections.
fn jobs_of(plan: &RunPlan, rollout: Rollout, live: i16) -> Vec<NewJob> {
    let ids: Vec<Option<String>> = plan
        .ways
        .iter()
        .map(|way| match &way.offer {
            Offer::Plan(plan) => Some(plan.id()),
            Offer::Live { .. } => None,
        })
        .collect();
    let mut waves = rollout.waves(plan.tenants.iter().filter(|p| !p.current).count());
    let job = |planned: &Planned| {
        let plan_id = plan_of(plan, &ids, planned);
        NewJob {
            connections: if plan_id.is_some() { 1 } else { live },
            plan: plan_id,
            tenant: planned.tenant.clone(),
            wave: if planned.current {
                0
            } else {
                waves.next().unwrap_or_default()
            },
            from: planned.from.clone(),
            to: match planned.current {
                true => planned.from.clone(),
                false => planned.to.clone(),
            },
            current: planned.current,
            looks: false,
        }
    };
    plan.tenants.iter().map(job).collect()
}

/// The id of the plan that a tenant gets.
fn plan_of(plan: &RunPlan, ids: &[Option<String>], planned: &Planned) -> Option<String> {
    let way = planned.way?;
    plan.ways.get(way)?.plan_for(&planned.tenant.place).ok()?;
    ids.get(way)?.clone()
}

/// The run's own row.
fn run_of(cx: &Context, request: &Request, plan: &RunPlan, jobs: &[NewJob]) -> NewRun {
    let covered = request
        .target
        .covered(request.direction, plan.target.clone().flatten());
    let limit = request.rollout.failure_limit;
    NewRun {
        id: Uuid::new_v4(),
        direction: request.direction,
        target: request.target.to_string(),
        runner: cx.config.runner.kind().into(),
        checksum: plan.history.fingerprint(covered.as_deref()),
        connections: cx.runner.connections(),
        tenants: i32::try_from(jobs.len()).unwrap_or(i32::MAX),
        waves: last_wave(jobs) + 1,
        canary: request.rollout.has_canary(),
        failure_limit: limit.map(|l| i32::try_from(l.within(jobs.len())).unwrap_or(i32::MAX)),
        trace: request.trace,
    }
}

fn last_wave(jobs: &[NewJob]) -> i32 {
    jobs.iter().map(|j| j.wave).max().unwrap_or_default()
}

/// Makes the servers known to the workers, also those that could not be asked.
async fn write_servers(cx: &Context, servers: &[ServerRow]) -> Result<(), EnqueueError> {
    for row in servers {
        // Not with the run: its jobs may take long to write, and every worker would wait for the server's row meanwhile.
        let mut tx = cx.pool.begin().await.map_err(StoreError::from)?;
        server::ensure(&mut tx, row).await?;
        commit(tx, &cx.pool).await?;
    }
    Ok(())
}

/// Writes the run with its jobs and plans, in one transaction. How many tenants have nothing left to do; None, and nothing is
/// written, where another run has moved some of them since they were `looked` at.
async fn write(
    cx: &Context,
    new: &NewRun,
    plan: &RunPlan,
    mut jobs: Vec<NewJob>,
    looked: Looked,
) -> Result<Option<usize>, EnqueueError> {
    // Those that are current as well: another run may be about to take them elsewhere.
    let places: Vec<&Place> = plan.tenants.iter().map(|p| &p.tenant.place).collect();
    let mut tx = cx.pool.begin().await.map_err(StoreError::from)?;
    run::lock_enqueue(&mut tx).await?;
    if let Some((run, places)) = run::overlapping(&mut tx, &places).await? {
        return Err(EnqueueError::Overlap { run, places });
    }
    // Who is where the run goes, and may not be for long: a cancelled run undoes what it began, or leaves it half applied.
    let mut at_work = job::at_work(&mut tx).await?;
    // After those looks, not before: what ends in between was still open for the one, or at work for the other.
    let ended: HashSet<Place> = job::ended_since(&mut tx, looked.at).await?;
    if places.iter().any(|place| ended.contains(place)) {
        return Ok(None);
    }
    at_work.extend(looked.at_work);
    let last_wave = new.waves - 1;
    for (job, planned) in jobs.iter_mut().zip(&plan.tenants) {
        job.looks = at_work.contains(&job.tenant.place);
        if job.current && job.looks {
            (job.current, job.to, job.wave) = (false, planned.to.clone(), last_wave);
        }
    }
    if let Some(error) = over_budget(&jobs, &in_force(&mut *tx, &plan.servers).await?) {
        return Err(error);
    }
    run::insert(&mut tx, new).await?;
    for way in &plan.ways {
        if let Offer::Plan(plan) = &way.offer {
            store::plan::insert(&mut tx, plan).await?;
        }
    }
    job::insert_all(&mut tx, new.id, 0, &jobs).await?;
    for mended in plan.tenants.iter().filter(|planned| planned.is_mended) {
        let place = &mended.tenant.place;
        if !at_work.contains(place) {
            half::forget(&mut tx, place).await?;
        }
    }
    notice::write(&mut tx, new.id, RunState::Running, None).await?;
    job::push_deliveries(&mut tx, new.id, None).await?;
    commit(tx, &cx.pool).await?;
    Ok(Some(jobs.iter().filter(|job| job.current).count()))
}

/// Servers with the budgets that count: what `herder budget --set` says counts for more than the config.
async fn in_force(on: impl PgExecutor<'_>, servers: &[ServerRow]) -> Result<Vec<ServerRow>, StoreError> {
    let overrides = server::overrides(on).await?;
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
        (server.job_slots() < i32::from(needed)).then(|| EnqueueError::Budget {
            server: server.name.clone(),
            budget: server.budget,
            needed,
        })
    })
}
