//! A job: one tenant's work in one run.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    revision::{Direction, Position, Target},
    run::RunId,
    tenant::Place,
    trace::TraceContext,
};

/// The id of a job: unique in the control database.
pub type JobId = i64;

/// The number of an attempt at a job, from 1 on. Every write about a job names it, so that a late one matches nothing.
pub type Epoch = i32;

/// One attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct AttemptId {
    /// The job.
    pub job: JobId,
    /// Its number.
    pub epoch: Epoch,
}

/// What the sessions of an attempt call themselves, so that anybody can tell on the server whose they are: its
/// `application_name`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttemptLabel {
    /// The run.
    pub run: RunId,
    /// The attempt.
    pub attempt: AttemptId,
}

impl fmt::Display for AttemptLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AttemptId { job, epoch } = self.attempt;
        write!(f, "herder/{}/{job}/{epoch}", self.run)
    }
}

impl AttemptLabel {
    /// Reads an `application_name`. None: it is none of ours.
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix("herder/")?.split('/');
        let (run, job, epoch) = (parts.next()?, parts.next()?, parts.next()?);
        let attempt = AttemptId {
            job: job.parse().ok()?,
            epoch: epoch.parse().ok()?,
        };
        let run = run.parse().ok()?;
        parts.next().is_none().then_some(Self { run, attempt })
    }
}

/// Where a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum JobState {
    /// Its wave is not open. The settling of the wave before it sends it to `Ready`.
    Waiting,
    /// It has a delivery, and a worker takes it once `ready_at` has come and a slot is free.
    Ready,
    /// A worker holds it while that worker's lease lasts, and settles it or sends it back to `Ready`. If the lease
    /// runs out first, another worker's keeper sends it back.
    Running,
    /// The tenant's own ledger was read at the target. Final.
    Succeeded,
    /// It cannot go on by itself: a permanent failure, or no attempt left. `retry` sends it back to `Ready`.
    Failed,
    /// Its tenant is gone from the source: nothing to do, nothing wrong. Final.
    Skipped,
    /// A person cancelled the run. Final.
    Cancelled,
}

impl JobState {
    /// All states, in the order of a job's life.
    pub const ALL: [Self; 7] = [
        Self::Waiting,
        Self::Ready,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Skipped,
        Self::Cancelled,
    ];

    /// The word as it stands in tables, metrics and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The step that an attempt is in: what `herder watch` shows, what the log says, and where a test stops an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Step {
    /// Claimed, together with its slot.
    Claimed,
    /// Opening the connection to the tenant.
    Connecting,
    /// Asking for the tenant's lock.
    Guarding,
    /// Reading the tenant's ledger.
    Inspecting,
    /// The runner is at work.
    Migrating,
    /// Reading the ledger back.
    Verifying,
    /// Writing down how it went.
    Settling,
}

impl Step {
    /// The word as it stands in tables, logs and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Claimed => "claimed",
            Self::Connecting => "connecting",
            Self::Guarding => "guarding",
            Self::Inspecting => "inspecting",
            Self::Migrating => "migrating",
            Self::Verifying => "verifying",
            Self::Settling => "settling",
        }
    }
}

/// A job that this worker claimed: all that an attempt needs to know.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Which attempt it is.
    pub attempt: AttemptId,
    /// The run it belongs to.
    pub run: RunId,
    /// The tenant's id in its source.
    pub tenant: String,
    /// Where it lives.
    pub place: Place,
    /// Whether its connection URL must be asked of the tenant source.
    pub own_url: bool,
    /// Which way.
    pub direction: Direction,
    /// The target as the run names it.
    pub target: Target,
    /// Where the tenant stood when the run was made. None: never migrated, or not known.
    pub from: Option<String>,
    /// The absolute target. Unknown where it was not resolved at enqueue, since the ledger could not be read then.
    pub to: Position,
    /// The checksum of the migrations that the run was made with.
    pub checksum: String,
    /// How many attempts have failed before this one and count.
    pub failures: i32,
    /// Whether an earlier attempt may have committed something that is recorded nowhere.
    pub in_doubt: bool,
    /// For how long nothing but the infrastructure had been in the way when it was claimed, by the control database's
    /// clock. None: it was not, or it got out of it.
    pub blocked: Option<Duration>,
    /// The plan to apply. None: the tool itself migrates.
    pub plan: Option<String>,
    /// Whether more may be half applied in its tenant than was known when it got the plan.
    pub looks: bool,
    /// The trace of whoever made the run.
    pub trace: Option<TraceContext>,
    /// The numbers of the slots that it holds on its server.
    pub slots: Vec<i32>,
}

impl Claim {
    /// What the sessions of this attempt call themselves.
    pub fn label(&self) -> AttemptLabel {
        AttemptLabel {
            run: self.run,
            attempt: self.attempt,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_is_read_back_and_fits() {
        let label = AttemptLabel {
            run: RunId::from_u128(u128::MAX),
            attempt: AttemptId {
                job: 9_999_999_999,
                epoch: 99_999,
            },
        };
        let name = label.to_string();
        assert_eq!(AttemptLabel::parse(&name), Some(label));
        // Postgres cuts the name at 63 bytes, and a cut epoch would be another one.
        assert!(name.len() <= 63, "{} bytes", name.len());
        assert_eq!(AttemptLabel::parse("herder/x/1/2"), None);
        assert_eq!(AttemptLabel::parse(&format!("{name}/3")), None);
        assert_eq!(AttemptLabel::parse("psql"), None);
    }
}
