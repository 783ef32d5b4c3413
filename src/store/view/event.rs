//! What happened to the jobs of a run, attempt by attempt.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgPool, types::Json};

use crate::{
    domain::{
        failure::JobError,
        job::{AttemptId, JobState},
        outcome::AttemptResult,
        run::RunId,
    },
    store::StoreError,
};

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
    /// How it ended, in the word of whichever Herder wrote it.
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

impl Event {
    /// How it ended. None: a newer Herder knows more words.
    pub fn result(&self) -> Option<AttemptResult> {
        AttemptResult::of(&self.result)
    }
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
