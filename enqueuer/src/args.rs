//! The command line. Help texts are doc comments; `tests/help.rs` holds them all.

use std::{path::PathBuf, time::Duration};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use herder::{
    config::{NO_TIMEOUT, TIMEOUTS},
    domain::{revision::Target, wave::Amount},
};

use crate::exit::Exit;

/// Brings a fleet of Postgres tenants to a schema revision.
#[derive(Debug, Parser)]
#[command(
    name = "herder",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = Exit::help(),
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Args, Debug)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The config [default: herder.toml]
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "HERDER_CONFIG",
        hide_env_values = true
    )]
    pub(crate) config: Option<PathBuf>,
    /// How logs are written to stderr
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: Format,
    /// Log more: -v what is done, -vv how, -vvv everything (or set RUST_LOG)
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
    /// Write a commented config to start from
    Init(Init),
    /// Make Herder's tables in the control database, or bring them up to date
    ///
    /// Safe to run again, and by two at once. The role needs the right to create schemas and extensions. Workers and
    /// commands may connect as a lesser one, once --grant has let it use the tables.
    Setup(Setup),
    /// Look whether config, databases, migrations and tenants are fit for a run
    ///
    /// One line per thing looked at. Changes nothing. Ends with 7 where something must be mended, with 3 where the
    /// config or the control database keep it from looking at all.
    Check(Output),
    /// Show the connections of each server, or change a budget while runs are on
    ///
    /// How many connections Herder may hold, how many it holds, what waits for one, and how many sessions others have.
    /// A budget that is set here goes for all runs until `--set config` takes it back. With a smaller one nothing is
    /// ended: what is above it is not taken again.
    Budget(Budget),
    /// List the tenants, and with --revisions where each of them stands
    Tenants(Tenants),
    /// Show what a run would do
    ///
    /// Tenants that stand at the same revision have the same way to go: they are shown together, with the revisions
    /// that are pending for them, and whether they are migrated by a plan or live, and why. Changes no tenant: a plan
    /// of Alembic's is proven in scratch schemas beside them, which are removed again.
    Plan(Plan),
    /// Apply the plan of a run in some tenants, and roll it back
    ///
    /// Says who would fail and why, and for how long the locks were held. Nothing remains but what a rollback leaves:
    /// sequences that went on, and dead rows. Steps outside a transaction, and what a run does live, are not rehearsed.
    /// The tenants are really locked meanwhile, one at a time. Ends with 7 if any would fail.
    Rehearse(Rehearse),
    /// Start a run that brings tenants up to a revision
    ///
    /// Prints the run's id. Workers do the work: `herder-worker` processes, or this one with --local.
    Upgrade(Upgrade),
    /// Start a run that takes tenants down to a revision
    ///
    /// Undoing a migration loses what it added, so it must be confirmed: on a terminal it asks, elsewhere it wants
    /// --yes. Prints the run's id.
    Downgrade(Downgrade),
    /// List the runs, the latest first
    Runs(Runs),
    /// Show a run, and where each of its tenants stands
    Status(Status),
    /// Follow a run to its end
    ///
    /// Ends with the code of the run's outcome. Ctrl-C ends the watching, not the run.
    Watch(Watch),
    /// Sum up a run: how many tenants did what, and why some failed
    Report(Report),
    /// Stop a run for now: nothing new is taken, what runs finishes
    Pause(RunArg),
    /// Let a paused, halted or interrupted run go on
    ///
    /// A halted run goes on past the failures it has: its failure limit counts from here.
    Resume(GoOn),
    /// End a run for good
    ///
    /// What waits is cancelled, what runs is told to stop. Tenants that are done stay as they are.
    Cancel(Cancel),
    /// Take up the failed tenants of a run again
    ///
    /// The migrations count as they are now: what was wrong may have been mended there.
    Retry(GoOn),
    /// Forget old runs: delete them from the control database
    ///
    /// With their jobs, attempts and deliveries, and with plans and workers that nothing points to any more. Only
    /// runs that are over go, and no tenant is touched. Safe to interrupt, and to run by a schedule.
    Prune(Prune),
    /// Watch a fleet of demo tenants being migrated, with a failure and a killed worker
    ///
    /// Starts a throw-away PostgreSQL, makes tenants with data, starts two workers, kills one of them, mends a
    /// tenant that failed, and cleans up after itself. Needs PostgreSQL on this machine, or --database-url.
    Demo(Demo),
    /// Print a completion script for a shell
    Completions {
        /// For which shell
        shell: Shell,
    },
}

#[derive(Args, Debug)]
pub(crate) struct Output {
    /// How the result is written to stdout
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
    /// The run's id, or the beginning of it [default: the latest run]
    #[arg(value_name = "RUN")]
    pub(crate) run: Option<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Init {
    /// Where to write it [default: the file that --config names]
    pub(crate) path: Option<PathBuf>,
    /// Replace the file if it is there
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Budget {
    /// The server [default: all; with --set, the only one]
    #[arg(value_name = "SERVER")]
    pub(crate) server: Option<String>,
    /// The budget from now on: a number of connections, or `config` for what the config says
    #[arg(long, value_name = "N|config", value_parser = set_budget)]
    pub(crate) set: Option<SetBudget>,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// What a budget is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SetBudget {
    /// So many connections.
    To(i32),
    /// What the config says.
    Config,
}

fn set_budget(text: &str) -> Result<SetBudget, String> {
    match text.parse() {
        _ if text == "config" => Ok(SetBudget::Config),
        Ok(n) if n > 0 => Ok(SetBudget::To(n)),
        Ok(_) => Err("it must be at least 1; `herder pause` stops a run".into()),
        Err(_) => Err("write a number, or `config`".into()),
    }
}

#[derive(Args, Debug)]
pub(crate) struct Setup {
    /// Let this role use the tables, for workers and commands that connect as another one; may be given several times
    #[arg(long, value_name = "ROLE", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) grant: Vec<String>,
}

/// Which tenants.
#[derive(Args, Debug)]
pub(crate) struct Selection {
    /// Only this tenant; may be given several times
    #[arg(long = "tenant", value_name = "ID")]
    pub(crate) only: Vec<String>,
    /// All but this tenant; may be given several times
    #[arg(long, value_name = "ID")]
    pub(crate) exclude: Vec<String>,
}

#[derive(Args, Debug)]
pub(crate) struct Tenants {
    /// Read each tenant's ledger: is it current, behind, never migrated, or unknown, and why
    #[arg(long)]
    pub(crate) revisions: bool,
    /// The target that --revisions compares with
    #[arg(
        long,
        value_name = "TARGET",
        default_value = "head",
        allow_hyphen_values = true
    )]
    pub(crate) to: Target,
    #[command(flatten)]
    pub(crate) selection: Selection,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Args, Debug)]
pub(crate) struct Plan {
    /// The target: head, base, a revision, the beginning of one, +N or -N
    #[arg(
        long,
        value_name = "TARGET",
        default_value = "head",
        allow_hyphen_values = true
    )]
    pub(crate) to: Target,
    /// Plan the way down (understood by itself for `base` and -N)
    #[arg(long)]
    pub(crate) downgrade: bool,
    /// Show the SQL of each plan, in the form of a script
    #[arg(long)]
    pub(crate) sql: bool,
    /// End with 7 if anything is pending, or not known, for any tenant
    #[arg(long)]
    pub(crate) check: bool,
    #[command(flatten)]
    pub(crate) selection: Selection,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Args, Debug)]
pub(crate) struct Rehearse {
    /// The target: head, base, a revision, the beginning of one, +N or -N
    #[arg(
        long,
        value_name = "TARGET",
        default_value = "head",
        allow_hyphen_values = true
    )]
    pub(crate) to: Target,
    /// Rehearse the way down (understood by itself for `base` and -N)
    #[arg(long)]
    pub(crate) downgrade: bool,
    /// In so many tenants, and at least one of those that stand at the same revision
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) sample: u32,
    /// In all tenants
    #[arg(long, conflicts_with = "sample")]
    pub(crate) all: bool,
    /// How long to wait for a lock; the application queues up behind who waits
    #[arg(long, value_name = "DURATION", default_value = "500ms", value_parser = limit)]
    pub(crate) lock_timeout: Duration,
    /// How long one statement may take; it keeps its locks for as long
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = limit)]
    pub(crate) statement_timeout: Duration,
    #[command(flatten)]
    pub(crate) selection: Selection,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// A duration that is a limit to the server, too.
fn limit(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(limit) if TIMEOUTS.contains(&limit) => Ok(limit),
        Ok(_) => Err(NO_TIMEOUT.into()),
        Err(error) => Err(error.to_string()),
    }
}

/// The size of a wave. In waves of nobody, nothing would ever be done.
fn wave(text: &str) -> Result<Amount, String> {
    match text.parse::<Amount>()? {
        none if none.is_zero() => Err("at least 1; without it, all the rest is one wave".into()),
        size => Ok(size),
    }
}

/// How a run is released. What is not given here is taken from [rollout].
#[derive(Args, Debug)]
pub(crate) struct Rollout {
    /// Release so many tenants first; the rest waits until they have succeeded; 0: no canary
    #[arg(long, value_name = "N|%")]
    pub(crate) canary: Option<Amount>,
    /// Release the others in waves of this size, at least 1
    #[arg(long, value_name = "N|%", value_parser = wave)]
    pub(crate) wave: Option<Amount>,
    /// Let so many tenants fail; one more halts the run
    #[arg(long, value_name = "N|%")]
    pub(crate) failure_limit: Option<Amount>,
}

/// Who does the work, and who waits for it.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Follow {
    /// Follow the run to its end, and end with the code of its outcome
    #[arg(long)]
    pub(crate) wait: bool,
    /// Do the work in this very process, N jobs at a time; implies --wait
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) local: Option<u16>,
    /// Stop waiting, with 8, when no tenant was settled for so long, e.g. 20m; the run goes on
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) stall_timeout: Option<Duration>,
}

#[derive(Args, Debug)]
pub(crate) struct Upgrade {
    /// The target: head, a revision, the beginning of one, or +N
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
    /// The target: base, a revision, the beginning of one, or -N
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
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
    /// Where another run is open over some of these tenants, wait until it has ended, instead of being refused
    ///
    /// What --stall-timeout or Ctrl-C end before that has started nothing.
    #[arg(long)]
    pub(crate) queue: bool,
    #[command(flatten)]
    pub(crate) rollout: Rollout,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Args, Debug)]
pub(crate) struct Runs {
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) limit: u32,
    #[command(flatten)]
    pub(crate) output: Output,
}

#[derive(Args, Debug)]
pub(crate) struct Status {
    #[command(flatten)]
    pub(crate) run: RunArg,
    /// Only the tenants that failed, with all that is known about why
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
    /// How the result is written to stdout
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
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Prune {
    /// Forget the runs that ended longer ago than this, e.g. 90d
    #[arg(long, value_name = "DURATION", default_value = "90d", value_parser = humantime::parse_duration)]
    pub(crate) older_than: Duration,
    /// Do not ask
    #[arg(long)]
    pub(crate) yes: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Demo {
    /// How many tenants
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(10..))]
    pub(crate) tenants: u32,
    /// Migrate with Alembic (needs Python) instead of plain SQL files
    #[arg(long)]
    pub(crate) alembic: bool,
    /// Use this running server instead of a throw-away one; databases of its own are made there, and dropped
    #[arg(long, value_name = "URL")]
    pub(crate) database_url: Option<String>,
    /// Leave everything in place at the end until Ctrl-C, to look around
    #[arg(long)]
    pub(crate) keep: bool,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

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
