//! A notice: what a webhook is told of a run, at its start, when it halts, and at its end.

use std::{collections::BTreeMap, fmt};

use chrono::{DateTime, Utc};
use serde::Deserialize;

use super::{
    job::JobState,
    run::{RunId, RunState},
};

/// What a notice is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, sqlx::Type)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Occasion {
    /// A run was made.
    Start,
    /// The failure limit or the canary stopped it.
    Halt,
    /// It is over: succeeded, failed or cancelled. A retry may bring it to another end.
    Finish,
}

impl Occasion {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Start, Self::Halt, Self::Finish];

    /// The word as it stands in the config, the table and the message.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Halt => "halt",
            Self::Finish => "finish",
        }
    }

    /// The occasion of a run's coming into a state. None: nobody is told.
    pub fn of(state: RunState) -> Option<Self> {
        match state {
            RunState::Running => Some(Self::Start),
            RunState::Halted => Some(Self::Halt),
            RunState::Succeeded | RunState::Failed | RunState::Cancelled => Some(Self::Finish),
            RunState::Paused => None,
        }
    }
}

impl fmt::Display for Occasion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something to tell. One process has it at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Its id. A receiver that sees one twice may drop the second.
    pub id: i64,
    /// The run.
    pub run: RunId,
    /// What it is about.
    pub occasion: Occasion,
    /// The run's state at that moment.
    pub state: RunState,
    /// Why it halted.
    pub reason: Option<String>,
    /// Its tenants by state, at that moment.
    pub counts: BTreeMap<JobState, i64>,
    /// The first few that had failed.
    pub failed: Vec<String>,
    /// When it came about.
    pub made_at: DateTime<Utc>,
    /// How many times it was tried to tell it, this time included.
    pub tries: i32,
}
