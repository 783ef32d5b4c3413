//! Writes how attempts ended.

use serde::Serialize;
use sqlx::{PgConnection, types::Json};

use crate::{
    domain::{
        failure::JobError,
        job::{AttemptId, JobState},
        outcome::{AttemptResult, Outcome, Progress, Settlement},
        run::RunId,
    },
    store::StoreError,
};

/// An attempt that ended, as it is written down.
#[derive(Debug, Serialize)]
pub struct Ended {
    /// Which one.
    #[serde(flatten)]
    pub attempt: AttemptId,
    state: JobState,
    outcome: Option<Outcome>,
    error: Option<JobError>,
    from_revision: Option<String>,
    to_revision: Option<String>,
    /// Seconds.
    delay: f64,
    counts: i32,
    blocked: bool,
    result: AttemptResult,
    live: bool,
    keep: bool,
    suspect: bool,
    begun: bool,
    in_doubt: bool,
}

impl Ended {
    /// Adds how far the attempt had come.
    #[must_use]
    pub fn after(self, progress: Progress) -> Self {
        Self {
            begun: progress != Progress::Prepared,
            in_doubt: progress == Progress::InDoubt,
            ..self
        }
    }

    /// Says whether its sessions may still be there: then its slots become suspect instead of free.
    #[must_use]
    pub fn suspect(self, suspect: bool) -> Self {
        Self { suspect, ..self }
    }

    /// What is written of an attempt. `keep`: its worker keeps the connection, and with it the slot.
    pub fn new(attempt: AttemptId, settlement: &Settlement, keep: bool) -> Self {
        let mut ended = Self {
            attempt,
            state: JobState::Ready,
            outcome: None,
            error: None,
            from_revision: None,
            to_revision: None,
            delay: 0.0,
            counts: 0,
            blocked: false,
            result: settlement.result(),
            live: false,
            keep,
            suspect: false,
            begun: false,
            in_doubt: false,
        };
        match settlement {
            Settlement::Succeeded { outcome, from, to } => {
                ended.state = JobState::Succeeded;
                ended.outcome = Some(*outcome);
                (ended.from_revision, ended.to_revision) = (from.clone(), to.clone());
            }
            Settlement::Failed(why) => {
                ended.state = JobState::Failed;
                (ended.error, ended.counts) = (Some(why.storable()), 1);
            }
            Settlement::Retry { error, delay, counts } => {
                (ended.error, ended.delay) = (Some(error.storable()), delay.as_secs_f64());
                (ended.counts, ended.blocked) = (i32::from(*counts), settlement.is_blocked());
            }
            Settlement::Live { error, .. } => {
                ended.live = true;
                ended.error = error.as_ref().map(JobError::storable);
            }
            Settlement::Returned => {}
            Settlement::Skipped(why) => {
                ended.state = JobState::Skipped;
                ended.error = Some(why.storable());
            }
            Settlement::Cancelled => ended.state = JobState::Cancelled,
        }
        ended
    }
}

/// An attempt whose end was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settled {
    /// Which one.
    pub attempt: AttemptId,
    /// Its run.
    pub run: RunId,
    /// Whether that may have to be moved on: too many may have failed now, or nothing more is ready.
    pub moves: bool,
}

/// Writes how attempts of a worker ended: for each its job, attempt, slots and delivery, all in one statement. Their
/// sessions must be gone, or kept. What is missing in the answer went on without that attempt, and nothing was written
/// of it. Writing again after a lost answer answers nothing, too.
///
/// # Errors
/// The control database fails: try again until it does not.
pub async fn settle(
    connection: &mut PgConnection,
    worker: &str,
    ended: &[&Ended],
) -> Result<Vec<Settled>, StoreError> {
    let rows = sqlx::query_file!(
        "src/store/sql/settle_jobs.sql",
        worker,
        Json(ended) as Json<&[&Ended]>
    )
    .fetch_all(connection)
    .await?;
    let settled = rows.into_iter().map(|row| Settled {
        attempt: AttemptId {
            job: row.job,
            epoch: row.epoch,
        },
        run: row.run,
        moves: row.moves,
    });
    Ok(settled.collect())
}
