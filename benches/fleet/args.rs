//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Herder beside what people use today, over the same tenants, in one run.
#[derive(Debug, Parser)]
#[command(name = "fleet", args_conflicts_with_subcommands = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) compare: Compare,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// How enqueue and run grow with the fleet
    Growth(Growth),
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Compare {
    /// A small run, to see that it works: 40 schemas, 10 databases, one round
    #[arg(long)]
    pub(crate) quick: bool,
    /// How often each contender runs [default: 3]
    #[arg(long, value_name = "N")]
    pub(crate) rounds: Option<usize>,
    /// Fleets of so many schema tenants [default: 200,1000]
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub(crate) schemas: Option<Vec<usize>>,
    /// A fleet of so many databases; 0 for none [default: 100]
    #[arg(long, value_name = "N")]
    pub(crate) databases: Option<usize>,
    /// Only these tasks
    #[arg(long, value_name = "TASK", value_delimiter = ',')]
    pub(crate) task: Vec<Task>,
    /// Only contenders with one of these texts in their name
    #[arg(long, value_name = "TEXT")]
    pub(crate) only: Vec<String>,
    /// All contenders for all fleets, also where that takes long
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Growth {
    /// Fleets of so many schema tenants, smallest first
    #[arg(
        long,
        value_name = "N",
        value_delimiter = ',',
        default_value = "1000,10000,50000"
    )]
    pub(crate) tenants: Vec<usize>,
    /// How many tenants are enqueued without being migrated; 0 for none
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub(crate) enqueue: usize,
    /// Connections to the tenants' server
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) connections: usize,
    #[command(flatten)]
    pub(crate) common: Common,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct Common {
    /// Where the figures go as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// The folder of `herder` and `herder-worker` [default: that of this program's own build]
    #[arg(long, value_name = "DIR")]
    pub(crate) programs: Option<PathBuf>,
    /// Let the server write to disk before it says that it has (fsync, full_page_writes)
    #[arg(long)]
    pub(crate) durable: bool,
}

/// What there is to do in each tenant.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd, ValueEnum)]
pub(crate) enum Task {
    /// From the last revision but one to the last
    OneStep,
    /// From nothing to the last
    Twelve,
    /// Everybody is there already
    Nothing,
}

impl Task {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::OneStep => "one step",
            Self::Twelve => "twelve revisions",
            Self::Nothing => "nothing to do",
        }
    }
}

impl Cli {
    /// Reads the command line. Cargo adds a `--bench` of its own.
    pub(crate) fn read() -> Self {
        Self::parse_from(std::env::args_os().filter(|arg| arg != "--bench"))
    }
}

impl Compare {
    pub(crate) fn rounds(&self) -> usize {
        self.rounds.unwrap_or(if self.quick { 1 } else { 3 })
    }

    pub(crate) fn schemas(&self) -> Vec<usize> {
        let default = if self.quick { vec![40] } else { vec![200, 1000] };
        self.schemas.clone().unwrap_or(default)
    }

    pub(crate) fn databases(&self) -> usize {
        self.databases.unwrap_or(if self.quick { 10 } else { 100 })
    }

    pub(crate) fn tasks(&self) -> Vec<Task> {
        match self.task.as_slice() {
            [] => vec![Task::OneStep, Task::Twelve, Task::Nothing],
            some => some.to_vec(),
        }
    }
}
