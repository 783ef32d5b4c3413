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

/// How a running run stands behind a job that settled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Standing {
    /// The wave that is open. The first is 0.
    pub wave: i32,
    /// The next one with jobs that wait for it.
    pub next: Option<i32>,
    /// Whether wave 0 must succeed before the next one opens.
    pub canary: bool,
    /// How many tenants may fail.
    pub failure_limit: Option<i32>,
    /// Failed jobs.
    pub failed: i64,
    /// How many of those do not count any more: somebody resumed the run in spite of them.
    pub forgiven: i32,
    /// Jobs that are ready or running.
    pub open: i64,
    /// Jobs of later waves.
    pub waiting: i64,
}

/// What becomes of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    /// It goes on as it is.
    Stay,
    /// Nothing new is started, for this reason.
    Halt(String),
    /// This wave opens.
    Open(i32),
    /// It is over.
    Settle(RunState),
}

impl Standing {
    /// What is to be done. With nothing left to hold back there is nothing to halt: the run is over, and says how it went.
    pub fn next_move(&self) -> Move {
        let failed = self.failed - i64::from(self.forgiven);
        let tenants = if failed == 1 { "tenant" } else { "tenants" };
        if self.canary && self.wave == 0 && failed > 0 && self.open == 0 && self.waiting > 0 {
            return Move::Halt(format!("{failed} canary {tenants} failed"));
        }
        match (self.failure_limit, self.next) {
            (Some(limit), _) if failed > i64::from(limit) && self.open + self.waiting > 0 => {
                Move::Halt(format!("{failed} {tenants} failed; the failure limit is {limit}"))
            }
            _ if self.open > 0 => Move::Stay,
            (_, Some(wave)) => Move::Open(wave),
            _ if self.failed > 0 => Move::Settle(RunState::Failed),
            _ => Move::Settle(RunState::Succeeded),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn halt(why: &str) -> Move {
        Move::Halt(why.into())
    }

    #[test]
    fn the_last_job_of_a_wave_opens_the_next_and_the_last_of_all_ends_the_run() {
        let first = Standing {
            next: Some(1),
            open: 1,
            waiting: 5,
            ..Standing::default()
        };
        assert_eq!(first.next_move(), Move::Stay);
        let through = Standing { open: 0, ..first };
        assert_eq!(through.next_move(), Move::Open(1));
        let last = Standing {
            wave: 1,
            ..Standing::default()
        };
        assert_eq!(last.next_move(), Move::Settle(RunState::Succeeded));
        let failed = Standing { failed: 1, ..last };
        assert_eq!(failed.next_move(), Move::Settle(RunState::Failed));
    }

    #[test]
    fn more_failures_than_may_be_halt_it_while_something_is_left_to_hold_back() {
        let run = Standing {
            next: Some(2),
            wave: 1,
            failure_limit: Some(2),
            failed: 2,
            open: 3,
            waiting: 4,
            ..Standing::default()
        };
        assert_eq!(run.next_move(), Move::Stay);
        let over = Standing { failed: 3, ..run };
        assert_eq!(over.next_move(), halt("3 tenants failed; the failure limit is 2"));
        let forgiven = Standing { forgiven: 1, ..over };
        assert_eq!(forgiven.next_move(), Move::Stay);
        let last = Standing {
            next: None,
            open: 0,
            waiting: 0,
            ..over
        };
        assert_eq!(last.next_move(), Move::Settle(RunState::Failed));
        let strict = Standing {
            failure_limit: Some(0),
            failed: 1,
            ..run
        };
        assert_eq!(
            strict.next_move(),
            halt("1 tenant failed; the failure limit is 0")
        );
    }

    #[test]
    fn a_canary_that_failed_halts_it_once_all_canaries_are_through() {
        let canary = Standing {
            next: Some(1),
            canary: true,
            failed: 1,
            open: 1,
            waiting: 9,
            ..Standing::default()
        };
        assert_eq!(canary.next_move(), Move::Stay);
        let through = Standing { open: 0, ..canary };
        assert_eq!(through.next_move(), halt("1 canary tenant failed"));
        let resumed = Standing {
            forgiven: 1,
            ..through
        };
        assert_eq!(resumed.next_move(), Move::Open(1));
        let later = Standing {
            wave: 1,
            next: Some(2),
            ..through
        };
        assert_eq!(later.next_move(), Move::Open(2));
        let alone = Standing {
            next: None,
            waiting: 0,
            ..through
        };
        assert_eq!(alone.next_move(), Move::Settle(RunState::Failed));
    }
}
