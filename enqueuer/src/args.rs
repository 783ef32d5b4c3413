//! The command line. Help texts are doc comments; `tests/help.rs` holds them all.

mod values;

use std::{path::PathBuf, time::Duration};

use clap::{
    Arg, ArgAction, ArgGroup, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum,
    builder::Resettable,
};
use clap_complete::Shell;
use herder::{
    domain::{revision::Target, wave::Amount},
    flow::resolve::{Label, Wanted},
};

pub(crate) use self::values::SetBudget;
use self::values::{age, limit, patience, set_budget, wave};
use crate::exit::Exit;

/// Brings a fleet of Postgres tenants to a schema revision.
#[derive(Debug, Parser)]
#[command(
    name = "herder",
    version,
    max_term_width = 100,
    after_help = Exit::help(),
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Reads the command line.
pub(crate) fn parse() -> Cli {
    let matches = Cli::command().mut_args(unless_empty).get_matches();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// A variable that is set to nothing counts as not set: a compose file's `${X:-}` makes such.
fn unless_empty(arg: Arg) -> Arg {
    match arg.get_env().and_then(std::env::var_os) {
        Some(value) if value.is_empty() => arg.env(Resettable::Reset),
        _ => arg,
    }
}

/// What every command takes.
#[derive(Args, Debug)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The config file [default: herder.toml]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "HERDER_CONFIG",
        hide_env_values = true
    )]
    pub(crate) config: Option<PathBuf>,
    /// Format of the log on stderr
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: Format,
    /// Log more: -v actions, -vv details, -vvv everything (or set RUST_LOG)
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
}

/// How something is written: for people, or for programs. (No docs on the variants: they would blow up every help.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Text,
    Json,
}

/// How a report is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReportFormat {
    Text,
    Json,
    Junit,
    Markdown,
    Csv,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a commented config
    Init(Init),
    /// Create or update Herder's tables in the control database
    ///
    /// Safe to repeat, also concurrently. The role must be allowed to create schemas and extensions. Workers and other
    /// commands may connect as a less privileged role, once --grant has given it access to the tables.
    Setup(Setup),
    /// Check that config, databases, migrations and tenants are ready for a run
    ///
    /// Prints one line per check, and changes nothing. Exits with 7 if a check found a problem, and with 3 if the config
    /// or the control database cannot be used at all.
    Check(Output),
    /// Show the connections of each server, or change a budget during a run
    ///
    /// Shows how many connections Herder may hold, how many it holds, how many jobs wait for one, and how many sessions
    /// belong to others. A budget set here applies to all runs until `--set config` restores the configured one.
    /// Lowering it ends no session: connections above the new budget finish normally and are not reused.
    Budget(Budget),
    /// List the tenants, with --revisions also the revision of each
    Tenants(Tenants),
    /// Show what a run would do
    ///
    /// Tenants at the same revision are shown as one group, with their pending revisions and whether these are applied by
    /// a plan (SQL that is rendered once for all of them) or live (by the migration tool), and why. Changes no tenant:
    /// Alembic's plans are proven in scratch schemas or databases, which are removed again.
    Plan(Plan),
    /// Apply the plan of a run in some tenants, and roll it back
    ///
    /// Shows which tenants would fail and why, and how long locks were held. Only what a rollback cannot undo remains:
    /// advanced sequences, and dead rows. Steps outside a transaction and live migrations are not rehearsed. Each tenant
    /// is really locked during its rehearsal, one per server at a time. Exits with 7 if any would fail or cannot be planned for.
    Rehearse(Rehearse),
    /// Start a run that brings tenants up to a revision
    ///
    /// Prints the run's id. Workers do the work: `herder-worker` processes, or this process with --local.
    Upgrade(Upgrade),
    /// Start a run that takes tenants down to a revision
    ///
    /// Undoing a migration loses the data that it added, so this must be confirmed: at a prompt on a terminal, with --yes
    /// elsewhere. Prints the run's id.
    Downgrade(Downgrade),
    /// List the runs, latest first
    Runs(Runs),
    /// Show a run and the state of each of its tenants
    Status(Status),
    /// Follow a run to its end
    ///
    /// Exits with the code of the run's outcome. Ctrl-C stops watching, not the run.
    Watch(Watch),
    /// Summarize a run: totals, and why tenants failed
    Report(Report),
    /// Pause a run: no new tenants start, running ones finish
    Pause(RunArg),
    /// Resume a paused, halted or interrupted run
    ///
    /// A halted run continues despite its failures so far: from here on, its failure limit counts only new ones.
    Resume(GoOn),
    /// End a run for good
    ///
    /// Waiting tenants are cancelled, and running ones are stopped. Finished tenants stay as they are.
    Cancel(Cancel),
    /// Retry the failed tenants of a run
    ///
    /// Uses the migrations as they are now, so that a corrected migration takes effect. A tenant that is half applied counts as mended
    /// by hand: all that its ledger lacks is done.
    Retry(GoOn),
    /// Delete old runs from the control database
    ///
    /// Also deletes their jobs, attempts and queue entries, and plans and workers that are no longer used. Only runs that
    /// have ended are deleted, and no tenant is touched. Safe to interrupt, and to run on a schedule.
    Prune(Prune),
    /// Watch a fleet of demo tenants being migrated, with a failure and a killed worker
    ///
    /// Starts a temporary PostgreSQL server, creates tenants with data, starts two workers, kills one of them, repairs a
    /// tenant that failed, and cleans up after itself. Needs PostgreSQL on this machine, or --database-url.
    Demo(Demo),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Output {
    /// Format of the result on stdout
    #[arg(long = "output-format", value_name = "FORMAT", default_value = "text")]
    pub(crate) format: Format,
}

impl Output {
    pub(crate) fn is_json(&self) -> bool {
        self.format == Format::Json
    }
}

#[derive(Args, Debug)]
pub(crate) struct RunArg {
    /// The run's id, or a prefix of it [default: the latest run]
    #[arg(value_name = "RUN")]
    pub(crate) run: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Init {
    /// Where to write the config [default: the path that --config gives]
    pub(crate) path: Option<PathBuf>,
    /// Replace the file if it exists
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Budget {
    /// The server [default: all servers; with --set, the only one]
    #[arg(value_name = "SERVER")]
    pub(crate) server: Option<String>,
    /// The new budget: a number of connections, or `config` to restore the configured one
    #[arg(long, value_name = "N|config", value_parser = set_budget)]
    pub(crate) set: Option<SetBudget>,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Args, Debug)]
pub(crate) struct Setup {
    /// Give this role access to the tables, for workers and commands that connect as it; may be repeated
    #[arg(long, value_name = "ROLE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) grant: Vec<String>,
}

/// Which tenants.
#[derive(Args, Debug)]
pub(crate) struct Selection {
    /// Only this tenant; may be repeated
    #[arg(long = "tenant", value_name = "ID")]
    pub(crate) only: Vec<String>,
    /// All but this tenant; may be repeated
    #[arg(long, value_name = "ID")]
    pub(crate) exclude: Vec<String>,
    /// Only tenants that the source lists with this label; may be repeated, and all of them must be there
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub(crate) labels: Vec<Label>,
}

impl Selection {
    pub(crate) fn wanted(&self) -> Wanted {
        Wanted {
            only: self.only.clone(),
            exclude: self.exclude.clone(),
            labels: self.labels.clone(),
        }
    }
}

#[derive(Args, Debug)]
pub(crate) struct Tenants {
    /// Read each tenant's ledger, and show whether it is current, behind, never migrated, or unknown and why
    #[arg(long)]
    pub(crate) revisions: bool,
    /// The target that --revisions compares with: head, a revision, a prefix of one, or +N [default: head]
    #[arg(
        long,
        value_name = "TARGET",
        allow_hyphen_values = true,
        requires = "revisions"
    )]
    pub(crate) to: Option<Target>,
    #[command(flatten)]
    pub(crate) selection: Selection,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Args, Debug)]
pub(crate) struct Plan {
    /// The target: head, base, a revision, a prefix of one, +N or -N
    #[arg(
        long,
        value_name = "TARGET",
        default_value = "head",
        allow_hyphen_values = true
    )]
    pub(crate) to: Target,
    /// Plan a downgrade (implied by `base` and -N)
    #[arg(long)]
    pub(crate) downgrade: bool,
    /// Show the SQL of each plan as a script
    #[arg(long)]
    pub(crate) sql: bool,
    /// Exit with 7 if anything is pending or unknown for any tenant
    #[arg(long)]
    pub(crate) check: bool,
    #[command(flatten)]
    pub(crate) selection: Selection,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Args, Debug)]
pub(crate) struct Rehearse {
    /// The target: head, base, a revision, a prefix of one, +N or -N
    #[arg(
        long,
        value_name = "TARGET",
        default_value = "head",
        allow_hyphen_values = true
    )]
    pub(crate) to: Target,
    /// Rehearse a downgrade (implied by `base` and -N)
    #[arg(long)]
    pub(crate) downgrade: bool,
    /// Number of tenants to rehearse; at least one per group of tenants at the same revision
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) sample: u32,
    /// Rehearse all tenants
    #[arg(long, conflicts_with = "sample")]
    pub(crate) all: bool,
    /// How long to wait for a lock; the application's queries queue up behind the waiting statement
    #[arg(long, value_name = "DURATION", default_value = "500ms", value_parser = limit)]
    pub(crate) lock_timeout: Duration,
    /// How long one statement may take; its locks are held for as long
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = limit)]
    pub(crate) statement_timeout: Duration,
    #[command(flatten)]
    pub(crate) selection: Selection,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// How a run is released. What is not given here is taken from [rollout].
#[derive(Args, Debug)]
pub(crate) struct Rollout {
    /// Size of a first wave; the rest waits until all of it has succeeded; 0: no canary
    #[arg(long, value_name = "N|%")]
    pub(crate) canary: Option<Amount>,
    /// Size of each further wave, at least 1
    #[arg(long, value_name = "N|%", value_parser = wave)]
    pub(crate) wave: Option<Amount>,
    /// Number of tenants that may fail; one more halts the run
    #[arg(long, value_name = "N|%")]
    pub(crate) failure_limit: Option<Amount>,
}

/// Who does the work, and who waits for it.
#[derive(Args, Clone, Copy, Debug)]
#[command(group = ArgGroup::new("waits").multiple(true))]
pub(crate) struct Follow {
    /// Wait for the run to end, and exit with the code of its outcome
    #[arg(long, group = "waits")]
    pub(crate) wait: bool,
    /// Do the work in this process, N jobs at a time; implies --wait
    #[arg(long, group = "waits", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) local: Option<u16>,
    /// Stop waiting, with exit code 8, if no tenant is settled for this long, e.g. 20m; the run continues
    #[arg(long, requires = "waits", value_name = "DURATION", value_parser = patience)]
    pub(crate) stall_timeout: Option<Duration>,
}

impl Follow {
    /// Whether the command lasts as long as the run.
    pub(crate) fn waits(self) -> bool {
        self.wait || self.local.is_some()
    }
}

#[derive(Args, Debug)]
pub(crate) struct Upgrade {
    /// The target: head, a revision, a prefix of one, or +N
    #[arg(
        long,
        value_name = "TARGET",
        default_value = "head",
        allow_hyphen_values = true
    )]
    pub(crate) to: Target,
    #[command(flatten)]
    pub(crate) start: Start,
}

#[derive(Args, Debug)]
pub(crate) struct Downgrade {
    /// The target: base, a revision, a prefix of one, or -N
    #[arg(long, value_name = "TARGET", allow_hyphen_values = true)]
    pub(crate) to: Target,
    #[command(flatten)]
    pub(crate) start: Start,
}

/// What both directions take.
#[derive(Args, Debug)]
pub(crate) struct Start {
    #[command(flatten)]
    pub(crate) selection: Selection,
    #[command(flatten)]
    pub(crate) follow: Follow,
    /// Do not ask for confirmation
    #[arg(long)]
    pub(crate) yes: bool,
    /// If another open run covers some of these tenants, wait until it has ended instead of being refused
    ///
    /// If the wait is interrupted by Ctrl-C or --stall-timeout, no run is started.
    #[arg(long, group = "waits")]
    pub(crate) queue: bool,
    #[command(flatten)]
    pub(crate) rollout: Rollout,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Args, Debug)]
pub(crate) struct Runs {
    /// Show at most this many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Args, Debug)]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) run: RunArg,
    /// Show only the tenants that failed, with all error details
    #[arg(long)]
    pub(crate) failed: bool,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Args, Debug)]
pub(crate) struct Watch {
    #[command(flatten)]
    pub(crate) run: RunArg,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Args, Debug)]
pub(crate) struct Report {
    #[command(flatten)]
    pub(crate) run: RunArg,
    /// Format of the result on stdout
    #[arg(
        long = "output-format",
        visible_alias = "format",
        value_name = "FORMAT",
        default_value = "text"
    )]
    pub(crate) format: ReportFormat,
}

#[derive(Args, Debug)]
pub(crate) struct GoOn {
    #[command(flatten)]
    pub(crate) run: RunArg,
    #[command(flatten)]
    pub(crate) follow: Follow,
}

#[derive(Args, Debug)]
pub(crate) struct Cancel {
    #[command(flatten)]
    pub(crate) run: RunArg,
    /// Do not ask for confirmation
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Prune {
    /// Delete the runs that ended longer ago than this, e.g. 90d
    #[arg(long, value_name = "DURATION", default_value = "90d", value_parser = age)]
    pub(crate) older_than: Duration,
    /// Do not ask for confirmation
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Demo {
    /// Number of tenants
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(10..))]
    pub(crate) tenants: u32,
    /// Migrate with Alembic (needs Python) instead of plain SQL files
    #[arg(long)]
    pub(crate) alembic: bool,
    /// Use this running server instead of a temporary one; the demo creates databases of its own there, and drops them
    #[arg(long, value_name = "URL")]
    pub(crate) database_url: Option<String>,
    /// At the end, keep everything in place until Ctrl-C, for inspection
    #[arg(long)]
    pub(crate) keep: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_hold_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_target_may_begin_with_a_minus() {
        let cli = Cli::parse_from(["herder", "downgrade", "--to", "-1", "--yes"]);
        let Command::Downgrade(downgrade) = cli.command else {
            panic!("{:?}", cli.command);
        };
        assert_eq!(downgrade.to, Target::Relative(-1));
        assert!(downgrade.start.yes);
    }
}
