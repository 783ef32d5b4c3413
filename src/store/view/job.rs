//! The jobs of a run.

use chrono::{DateTime, Utc};
use serde::{Serialize, Serializer};
use sqlx::{PgPool, types::Json};

use crate::{
    domain::{
        failure::JobError,
        job::{Epoch, JobId, JobState},
        outcome::Outcome,
        revision::Position,
        run::RunId,
    },
    store::StoreError,
};

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
    /// Where the tenant stood before: `from` and `from_known`.
    #[serde(flatten, serialize_with = "as_from")]
    pub from: Position,
    /// Where it goes, or stands at the end: `to` and `to_known`. Not known before the ledger was read, if the target is relative.
    #[serde(flatten, serialize_with = "as_to")]
    pub to: Position,
    /// How its tenant came to the target.
    pub outcome: Option<Outcome>,
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

fn as_from<S: Serializer>(position: &Position, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct From<'a> {
        from: Option<&'a str>,
        from_known: bool,
    }
    let (from, from_known) = (position.revision(), position.is_known());
    From { from, from_known }.serialize(serializer)
}

fn as_to<S: Serializer>(position: &Position, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct To<'a> {
        to: Option<&'a str>,
        to_known: bool,
    }
    let (to, to_known) = (position.revision(), position.is_known());
    To { to, to_known }.serialize(serializer)
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
                  job.from_revision, from_known, job.to_revision, resolved, outcome as "outcome: Outcome", job.error as "error: Json<JobError>", step, job.worker,
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
            from: Position::stored(r.from_revision, r.from_known),
            to: Position::stored(r.to_revision, r.resolved),
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
