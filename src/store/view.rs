//! What people and programs are shown of runs and jobs. Field names are those of the JSON contract.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgPool, types::Json};
use std::collections::BTreeMap;

use super::StoreError;
use crate::domain::{
    failure::JobError,
    job::{AttemptId, Epoch, JobId, JobState},
    run::{RunId, RunState},
};

/// A run, as `runs` and `status` show it.
#[derive(Clone, Debug, Serialize)]
pub struct RunView {
    /// Its id.
    pub id: RunId,
    /// upgrade or downgrade.
    pub direction: String,
    /// The target as it was named.
    pub target: String,
    /// The kind of runner.
    pub runner: String,
    /// Where it stands.
    pub state: RunState,
    /// How many tenants, i.e. jobs.
    pub tenants: i32,
    /// The open wave, from 0 on.
    pub wave: i32,
    /// How many waves.
    pub waves: i32,
    /// How many tenants may fail.
    pub failure_limit: Option<i32>,
    /// Why it halted.
    pub reason: Option<String>,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was over.
    pub settled_at: Option<DateTime<Utc>>,
    /// Jobs by state.
    pub counts: BTreeMap<JobState, i64>,
    /// How many of the failed tenants are half applied, so that somebody has to look at them before they are tried again.
    #[serde(skip)]
    pub half_applied: i64,
}

impl RunView {
    /// How many of its jobs are in a state.
    pub fn count(&self, state: JobState) -> i64 {
        self.counts.get(&state).copied().unwrap_or_default()
    }

    /// How many of its jobs are still to be settled.
    pub fn open(&self) -> i64 {
        let open = [JobState::Waiting, JobState::Ready, JobState::Running];
        open.map(|state| self.count(state)).iter().sum()
    }

    /// How many of its jobs are settled, however they ended.
    pub fn settled(&self) -> i64 {
        i64::from(self.tenants) - self.open()
    }
}

/// A job, as `status` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct JobView {
    /// The tenant's id.
    pub tenant: String,
    /// Other tenants of the same place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<String>,
    /// Its server.
    pub server: String,
    /// Its database.
    pub database: String,
    /// Its schema.
    pub schema: Option<String>,
    /// Where the job stands.
    pub state: JobState,
    /// Its wave.
    pub wave: i32,
    /// Ended attempts that count: those that drains, rescues and full servers ended do not.
    pub attempts: i32,
    /// The number of the last attempt.
    pub epoch: Epoch,
    /// Where the tenant stood before. None: at the base, or not known.
    pub from: Option<String>,
    /// Whether that is known: its ledger was read.
    pub from_known: bool,
    /// Where it goes, or stands at the end. None: the base, or not known.
    pub to: Option<String>,
    /// Whether that is known: a relative target is not, before the ledger was read.
    pub to_known: bool,
    /// migrated, already_current or found_applied.
    pub outcome: Option<String>,
    /// What went wrong last.
    pub error: Option<JobError>,
    /// The step that a running attempt is in.
    pub step: Option<String>,
    /// Who runs it.
    pub worker: Option<String>,
    /// Since when it runs.
    pub claimed_at: Option<DateTime<Utc>>,
    /// When it is due, while it is ready.
    pub ready_at: Option<DateTime<Utc>>,
    /// When it was over.
    pub settled_at: Option<DateTime<Utc>>,
    /// Seconds that its last attempt took.
    pub seconds: Option<f64>,
    /// The job's id.
    pub job: JobId,
}

/// Runs, the latest first.
///
/// # Errors
/// The control database fails.
pub async fn runs(pool: &PgPool, only: Option<RunId>, limit: i64) -> Result<Vec<RunView>, StoreError> {
    let rows = sqlx::query!(
        r#"select run.id, direction, target, runner, run.state as "state: RunState", tenants, run.wave, waves,
                  failure_limit, reason, created_at, settled_at,
                  coalesce(counts.of, '{}') as "counts!: Json<BTreeMap<JobState, i64>>",
                  (select count(*) from herder.job
                   where run_id = run.id and job.state = 'failed' and error ->> 'reason' = 'half_applied') as "half_applied!"
           from herder.run
           left join lateral (
             select jsonb_object_agg(state, n) as of
             from (select state, count(*) as n from herder.job where run_id = run.id group by state) by_state
           ) counts on true
           where $1::uuid is null or run.id = $1
           order by created_at desc, run.id limit $2"#,
        only,
        limit,
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|r| RunView {
            id: r.id,
            direction: r.direction,
            target: r.target,
            runner: r.runner,
            state: r.state,
            tenants: r.tenants,
            wave: r.wave,
            waves: r.waves,
            failure_limit: r.failure_limit,
            reason: r.reason,
            created_at: r.created_at,
            settled_at: r.settled_at,
            counts: r.counts.0,
            half_applied: r.half_applied,
        })
        .collect())
}

/// The jobs of a run in the manifest's order: all, those in one state, or those that settled after a moment.
///
/// # Errors
/// The control database fails.
pub async fn jobs(
    pool: &PgPool,
    run: RunId,
    state: Option<JobState>,
    limit: Option<i64>,
) -> Result<Vec<JobView>, StoreError> {
    let rows = sqlx::query!(
        r#"select job.id, tenant, members, server, database, schema, state as "state: JobState", wave, attempts, job.epoch,
                  job.from_revision, from_known, job.to_revision, resolved, outcome, job.error as "error: Json<JobError>", step, job.worker,
                  claimed_at, ready_at, settled_at,
                  extract(epoch from attempt.ended_at - attempt.started_at)::float8 as seconds
           from herder.job
           left join herder.attempt on attempt.job_id = job.id and attempt.epoch = job.epoch
           where run_id = $1 and ($2::text is null or state = $2)
           order by job.id limit $3"#,
        run,
        state.map(JobState::as_str),
        limit,
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|r| JobView {
            tenant: r.tenant,
            members: r.members,
            server: r.server,
            database: r.database,
            schema: r.schema,
            state: r.state,
            wave: r.wave,
            attempts: r.attempts,
            epoch: r.epoch,
            from: r.from_revision,
            from_known: r.from_known,
            to: r.to_revision,
            to_known: r.resolved,
            outcome: r.outcome,
            error: r.error.map(|e| e.0),
            step: r.step,
            worker: r.worker,
            claimed_at: (r.state == JobState::Running).then_some(r.claimed_at).flatten(),
            ready_at: (r.state == JobState::Ready).then_some(r.ready_at),
            settled_at: r.settled_at,
            seconds: r.seconds,
            job: r.id,
        })
        .collect())
}

/// Something that happened to a job: an attempt ended. What a watcher prints a line for.
#[derive(Clone, Debug, Serialize)]
pub struct Event {
    /// When it ended, on the server's clock.
    pub at: DateTime<Utc>,
    /// The tenant's id.
    pub tenant: String,
    /// The attempt. Events of one moment are in its order.
    #[serde(flatten)]
    pub attempt: AttemptId,
    /// The job's wave.
    pub wave: i32,
    /// An outcome, or failed, retried, snoozed, returned, rescued, skipped, cancelled.
    pub result: String,
    /// Seconds that it took.
    pub seconds: f64,
    /// Where the tenant stood before.
    pub from: Option<String>,
    /// Where it stands, or was to stand.
    pub to: Option<String>,
    /// What went wrong.
    pub error: Option<JobError>,
    /// How many attempts that count the job has had.
    pub attempts: i32,
    /// When the next try is due, if there is one.
    pub ready_at: Option<DateTime<Utc>>,
}

/// The attempts of a run that ended since a moment, oldest first. Ask again from a little earlier than the last one:
/// transactions do not commit in the order of their clocks.
///
/// # Errors
/// The control database fails.
pub async fn events(
    pool: &PgPool,
    run: RunId,
    since: Option<DateTime<Utc>>,
) -> Result<Vec<Event>, StoreError> {
    let rows = sqlx::query!(
        r#"select attempt.ended_at as "at!", tenant, job.id, wave, attempt.epoch, attempt.result as "result!",
                  extract(epoch from attempt.ended_at - attempt.started_at)::float8 as "seconds!",
                  attempt.from_revision, coalesce(attempt.to_revision, job.to_revision) as "to",
                  attempt.error as "error: Json<JobError>", attempts, state as "state: JobState", ready_at
           -- OFFSET 0: in this order, whatever the planner thinks. Beginning with the run's jobs, each look would go
           -- through all of them.
           from (select * from herder.attempt
                 where ended_at > coalesce($2::timestamptz, (select created_at from herder.run where id = $1)) offset 0) attempt
           cross join lateral (select * from herder.job where job.id = attempt.job_id offset 0) job
           where job.run_id = $1
           order by attempt.ended_at, job.id, attempt.epoch"#,
        run,
        since,
    )
    .fetch_all(pool)
    .await?;
    Ok(rows
        .into_iter()
        .map(|r| Event {
            at: r.at,
            tenant: r.tenant,
            attempt: AttemptId {
                job: r.id,
                epoch: r.epoch,
            },
            wave: r.wave,
            result: r.result,
            seconds: r.seconds,
            from: r.from_revision,
            to: r.to,
            error: r.error.map(|e| e.0),
            attempts: r.attempts,
            ready_at: (r.state == JobState::Ready).then_some(r.ready_at),
        })
        .collect())
}

/// How the jobs of a run succeeded, for its summary.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    /// Brought to the target.
    pub migrated: i64,
    /// Those of them that needed more than one attempt.
    pub retried: i64,
    /// At the target before an attempt did anything.
    pub already_current: i64,
    /// Those of them that were so when the run was made: no attempt, and no event, tells of them.
    pub settled_at_enqueue: i64,
    /// Brought to the target by an attempt that was lost before it could say so.
    pub found_applied: i64,
}

/// How the jobs of a run succeeded so far.
///
/// # Errors
/// The control database fails.
pub async fn tally(pool: &PgPool, run: RunId) -> Result<Tally, StoreError> {
    Ok(sqlx::query_as!(
        Tally,
        r#"select count(*) filter (where outcome = 'migrated') as "migrated!",
                  count(*) filter (where outcome = 'migrated' and attempts > 1) as "retried!",
                  count(*) filter (where outcome = 'already_current') as "already_current!",
                  count(*) filter (where outcome = 'already_current' and epoch = 0) as "settled_at_enqueue!",
                  count(*) filter (where outcome = 'found_applied') as "found_applied!"
           from herder.job where run_id = $1"#,
        run,
    )
    .fetch_one(pool)
    .await?)
}

/// An open run, for the gauges.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenRun {
    /// Its id.
    pub id: RunId,
    /// Where it stands.
    pub state: RunState,
    /// Jobs by state.
    pub counts: BTreeMap<JobState, i64>,
    /// Seconds since a tenant of it was last settled, or since it was made.
    pub idle: f64,
    /// For how many seconds the job that is due the longest has waited. 0: none waits.
    pub oldest_ready: f64,
}

/// Open runs, the latest first. One pass over their jobs gives all that the gauges say of them.
///
/// # Errors
/// The control database fails.
pub async fn open_runs(pool: &PgPool) -> Result<Vec<OpenRun>, StoreError> {
    let rows = sqlx::query!(
        r#"select run.id, run.state as "state: RunState", job.state as "job_state: JobState", count(*) as "count!",
                  extract(epoch from now() - greatest(run.created_at, max(job.settled_at)))::float8 as "idle!",
                  extract(epoch from now() - min(job.ready_at) filter (where job.state = 'ready'))::float8 as waited
           from herder.run join herder.job on job.run_id = run.id
           where run.state in ('running', 'paused', 'halted')
           group by run.id, job.state order by run.created_at desc, run.id"#
    )
    .fetch_all(pool)
    .await?;
    let mut runs: Vec<OpenRun> = Vec::new();
    for row in rows {
        if runs.last().is_none_or(|last| last.id != row.id) {
            runs.push(OpenRun {
                id: row.id,
                state: row.state,
                counts: BTreeMap::new(),
                idle: f64::INFINITY,
                oldest_ready: 0.0,
            });
        }
        if let Some(run) = runs.last_mut() {
            run.counts.insert(row.job_state, row.count);
            run.idle = run.idle.min(row.idle);
            // A job that waits for its backoff is due in the future.
            run.oldest_ready = run.oldest_ready.max(row.waited.unwrap_or_default());
        }
    }
    Ok(runs)
}

/// Workers that live, i.e. have a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workers {
    /// Those that take jobs.
    pub working: i64,
    /// Those that take nothing new.
    pub draining: i64,
}

/// How many workers live, by whether they take jobs.
///
/// # Errors
/// The control database fails.
pub async fn workers(pool: &PgPool) -> Result<Workers, StoreError> {
    Ok(sqlx::query_as!(
        Workers,
        r#"select count(*) filter (where not draining) as "working!", count(*) filter (where draining) as "draining!"
           from herder.worker where lease_until >= now()"#
    )
    .fetch_one(pool)
    .await?)
}

/// Why nobody takes what is due of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unserved {
    /// No worker lives.
    NoWorker,
    /// None of those that live has the run's kind of runner.
    Runner(String),
    /// None of those that have it has these servers in its config.
    Servers(Vec<String>),
}

/// Whether there is a worker for all that is due of a run.
///
/// # Errors
/// The control database fails.
pub async fn unserved(pool: &PgPool, run: RunId) -> Result<Option<Unserved>, StoreError> {
    let row = sqlx::query!(
        r#"with alive as (
             select servers, coalesce(worker.runner = run.runner, true) as fits
             from herder.worker join herder.run on run.id = $1
             where lease_until >= now() and coalesce(only_run = run.id, true)
           )
           select run.runner, exists (select from alive) as "alive!",
                  exists (select from alive where fits) as "fits!",
                  array(select distinct job.server from herder.job
                        where run_id = run.id and state = 'ready' and ready_at <= now() and not own_url
                          and not exists (select from alive where fits and coalesce(job.server = any(servers), true))
                        order by job.server) as "servers!"
           from herder.run where id = $1"#,
        run,
    );
    let row = row.fetch_one(pool).await?;
    Ok(match (row.alive, row.fits) {
        (false, _) => Some(Unserved::NoWorker),
        (true, false) => Some(Unserved::Runner(row.runner)),
        (true, true) if row.servers.is_empty() => None,
        (true, true) => Some(Unserved::Servers(row.servers)),
    })
}

/// How many workers live, i.e. have a lease.
///
/// # Errors
/// The control database fails.
pub async fn live_workers(pool: &PgPool) -> Result<i64, StoreError> {
    Ok(
        sqlx::query_scalar!(r#"select count(*) as "count!" from herder.worker where lease_until >= now()"#)
            .fetch_one(pool)
            .await?,
    )
}
