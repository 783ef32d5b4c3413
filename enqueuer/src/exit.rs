//! Exit codes: what a script may rely on.

use std::process::ExitCode;

use herder::domain::run::RunState;

/// How a command ended. `herder --help` lists them from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Exit {
    /// It did what it was asked to do. A run that was waited for succeeded in every tenant.
    Done = 0,
    /// Something that nobody thought of went wrong.
    Unexpected = 1,
    /// It was asked for what cannot be done, or not now: another run is at these tenants. The same code that the argument parser
    /// ends with.
    Usage = 2,
    /// The config, a database or the migration tool is not fit for it. Nothing was changed.
    SetUp = 3,
    /// The run that was waited for finished, and some of its tenants failed.
    Failed = 4,
    /// The run that was waited for was halted, by its failure limit or its canary.
    Halted = 5,
    /// The run that was waited for was cancelled.
    Cancelled = 6,
    /// `plan --check`, `check` or `rehearse` found something to do or to mend.
    Found = 7,
    /// Nothing moved for `--stall-timeout`. The run goes on.
    Stalled = 8,
    /// Ctrl-C ended the wait, not the run; or a person did not confirm the command. 128 + SIGINT, as shells have it.
    Interrupted = 130,
}

impl Exit {
    /// All of them, in the order of their codes.
    const ALL: [Self; 10] = [
        Self::Done,
        Self::Unexpected,
        Self::Usage,
        Self::SetUp,
        Self::Failed,
        Self::Halted,
        Self::Cancelled,
        Self::Found,
        Self::Stalled,
        Self::Interrupted,
    ];

    /// What it means, in the few words of the help.
    fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Unexpected => "unexpected error",
            Self::Usage => "usage error: bad argument, unknown name, or another open run covers the tenants",
            Self::SetUp => "set-up error: the config, a database or the migration tool cannot be used",
            Self::Failed => "the run finished with failed tenants",
            Self::Halted => "the run was halted by its failure limit or its canary",
            Self::Cancelled => "the run was cancelled",
            Self::Found => "`check`, `plan --check` or `rehearse` found a problem, or pending revisions",
            Self::Stalled => "no tenant was settled for --stall-timeout; the run continues",
            Self::Interrupted => "Ctrl-C ended the wait, not the run; or the command was not confirmed",
        }
    }

    /// The code after waiting for a run that is in this state now.
    pub(crate) fn of_run(state: RunState) -> Self {
        match state {
            RunState::Succeeded => Self::Done,
            RunState::Failed => Self::Failed,
            RunState::Halted => Self::Halted,
            RunState::Cancelled => Self::Cancelled,
            // Nobody stops waiting for such a run, except by a signal.
            RunState::Running | RunState::Paused => Self::Interrupted,
        }
    }

    /// The list for the end of `herder --help`.
    pub(crate) fn help() -> String {
        Self::ALL
            .iter()
            .map(|exit| format!("\n  {:>3}  {}", *exit as u8, exit.meaning()))
            .fold("Exit codes:".to_owned(), |list, line| list + &line)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
