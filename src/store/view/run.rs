//! Runs: as a whole, in sums, and as gauges.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgPool, types::Json};

use crate::{
    domain::{
        job::JobState,
        revision::Direction,
        run::{RunId, RunState},
    },
    store::StoreError,
};

/// A run, as `runs` and `status` show it.
#[derive(Clone, Debug, Serialize)]
pub struct RunView {
    /// Its id.
    pub id: RunId,
    /// upgrade or downgrade.
    pub direction: Direction,
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

/// Runs, the latest first.
///
/// # Errors
/// The control database fails.
pub async fn runs(pool: &PgPool, only: Option<RunId>, limit: i64) -> Result<Vec<RunView>, StoreError> {
    let rows = sqlx::query!(
        r#"select run.id, direction as "direction: Direction", target, runner, run.state as "state: RunState", tenants, run.wave, waves,
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
