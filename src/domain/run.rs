//! A run: one rollout of a target revision over a set of tenants.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The id of a run. A prefix that only one run has is enough wherever a person names one.
pub type RunId = Uuid;

/// The first eight digits of a run's id: what talk shows and `herder status` takes.
pub fn short(id: &RunId) -> String {
    id.simple().to_string()[..8].to_owned()
}

/// Where a run stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum RunState {
    /// Workers take its jobs. The last job to settle ends it.
    Running,
    /// Every job succeeded or was skipped. Final, until a retry finds something to do.
    Succeeded,
    /// Every job settled, and some failed. `retry` takes those up again.
    Failed,
    /// A person stopped it: nothing new is taken, what runs finishes. `resume` goes on.
    Paused,
    /// The failure limit stopped it, in the same way. `resume` or `retry` goes on.
    Halted,
    /// A person ended it: what waited is cancelled, what runs is told to stop. Final.
    Cancelled,
}

impl RunState {
    /// The word as it stands in tables and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Paused => "paused",
            Self::Halted => "halted",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether it may still change by itself or be resumed: what metrics call open.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Running | Self::Paused | Self::Halted)
    }
}

impl fmt::Display for RunState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
