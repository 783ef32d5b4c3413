//! How an attempt ended.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::failure::JobError;

/// How an attempt brought its tenant to the target. Each was read in the tenant's own ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Outcome {
    /// Applied, or undid, one or more revisions.
    Migrated,
    /// The tenant was at the target before the run did anything.
    AlreadyCurrent,
    /// A former attempt had committed, but its outcome was never recorded.
    FoundApplied,
}

impl Outcome {
    /// The word as it stands in tables, metrics and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Migrated => "migrated",
            Self::AlreadyCurrent => "already_current",
            Self::FoundApplied => "found_applied",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How an attempt ended, whatever came of its job. A newer Herder may know more of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(into = "&'static str")]
pub enum AttemptResult {
    /// The tenant is at the target.
    Succeeded(Outcome),
    /// It failed, and the job with it.
    Failed,
    /// It failed, counts, and is tried again.
    Retried,
    /// Something was in the way that costs no try, and it is tried again.
    Snoozed,
    /// Its plan did not fit; the tool itself is next.
    Replanned,
    /// Its worker drained.
    Returned,
    /// Its worker was lost.
    Rescued,
    /// The tenant is gone from its source.
    Skipped,
    /// Its run was cancelled.
    Cancelled,
}

impl AttemptResult {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Succeeded(Outcome::Migrated),
        Self::Succeeded(Outcome::AlreadyCurrent),
        Self::Succeeded(Outcome::FoundApplied),
        Self::Failed,
        Self::Retried,
        Self::Snoozed,
        Self::Replanned,
        Self::Returned,
        Self::Rescued,
        Self::Skipped,
        Self::Cancelled,
    ];

    /// The word as it stands in the attempt row, in JSON and in `herder_job_attempts_total{outcome}`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded(outcome) => outcome.as_str(),
            Self::Failed => "failed",
            Self::Retried => "retried",
            Self::Snoozed => "snoozed",
            Self::Replanned => "replanned",
            Self::Returned => "returned",
            Self::Rescued => "rescued",
            Self::Skipped => "skipped",
            Self::Cancelled => "cancelled",
        }
    }

    /// The one with this word.
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|result| result.as_str() == word)
    }

    /// Whether the job is settled by it.
    pub fn settles(self) -> bool {
        match self {
            Self::Succeeded(_) | Self::Failed | Self::Skipped | Self::Cancelled => true,
            Self::Retried | Self::Snoozed | Self::Replanned | Self::Returned | Self::Rescued => false,
        }
    }
}

impl From<AttemptResult> for &'static str {
    fn from(result: AttemptResult) -> Self {
        result.as_str()
    }
}

/// How far an attempt came that did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The migration had not begun.
    Prepared,
    /// It had. What came of it is known: a plan that the server refuses is rolled back.
    Begun,
    /// It had, and may have committed something: the connection broke, or only the tool knows.
    InDoubt,
}

/// What one attempt found, before it is written down.
#[derive(Clone, Debug)]
pub enum Settlement {
    /// The ledger was read back at the target.
    Succeeded {
        /// How.
        outcome: Outcome,
        /// What the ledger said before. None: nothing.
        from: Option<String>,
        /// What it says now.
        to: Option<String>,
    },
    /// Trying again cannot help, or no attempt is left.
    Failed(JobError),
    /// It goes back to ready and is due after `delay`. Whether the attempt counts is the error's to say.
    Retry {
        /// Why.
        error: JobError,
        /// How long from now.
        delay: Duration,
        /// Whether it counts as one of the job's attempts.
        counts: bool,
    },
    /// Its plan does not fit where the tenant stands now: it goes back to ready, at once and at no cost, for the tool
    /// itself.
    Live {
        /// Where it stands.
        at: String,
        /// What the plan failed with, where it was tried and the tool may do without that.
        error: Option<JobError>,
    },
    /// This worker drains: it goes back to ready, at once and at no cost.
    Returned,
    /// The tenant is gone from its source.
    Skipped(JobError),
    /// The run was cancelled while it ran.
    Cancelled,
}

impl Settlement {
    /// For the tool itself, without a plan having been tried.
    pub fn live(at: impl Into<String>) -> Self {
        Self::Live {
            at: at.into(),
            error: None,
        }
    }

    /// Whether the infrastructure was in the way, other than by being busy: a job for which nothing else happens for some
    /// minutes fails.
    pub fn is_blocked(&self) -> bool {
        matches!(self, Self::Retry { error, counts: false, .. } if !error.is_backpressure())
    }

    /// What is written of the attempt.
    pub fn result(&self) -> AttemptResult {
        match self {
            Self::Succeeded { outcome, .. } => AttemptResult::Succeeded(*outcome),
            Self::Failed(_) => AttemptResult::Failed,
            Self::Retry { counts: true, .. } => AttemptResult::Retried,
            Self::Retry { counts: false, .. } => AttemptResult::Snoozed,
            Self::Live { .. } => AttemptResult::Replanned,
            Self::Returned => AttemptResult::Returned,
            Self::Skipped(_) => AttemptResult::Skipped,
            Self::Cancelled => AttemptResult::Cancelled,
        }
    }
}
