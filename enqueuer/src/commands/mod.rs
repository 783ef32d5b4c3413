//! One file per command: what it looks at, what it does, and what it reports.

pub(crate) mod budget;
mod cancel;
pub(crate) mod check;
mod completions;
mod demo;
mod go_on;
mod init;
mod pause;
pub(crate) mod plan;
mod prune;
mod queue;
pub(crate) mod rehearse;
mod report;
mod runs;
mod setup;
mod start;
mod status;
pub(crate) mod tenants;
mod watch;

use std::{path::PathBuf, time::Duration};

use herder::{
    config::Config,
    domain::run::RunId,
    flow::{context::Context, enqueue::EnqueueError},
};
use sqlx::PgPool;

use crate::{
    args::{Command, Global, RunArg},
    control,
    exit::Exit,
    signals::Interrupts,
};

/// Connections to the control database: for what a command does, and for what it shows meanwhile.
const CONNECTIONS: u32 = 2;

/// How long a command that was stopped may take to clear away what it made.
const CLEAR_LIMIT: Duration = Duration::from_secs(30);

/// What every command is told.
#[derive(Debug)]
pub(crate) struct Setting {
    /// The config's path.
    path: PathBuf,
    /// Whether it stood on the command line, so that a command to type next needs it, too.
    given: bool,
}

impl Setting {
    pub(crate) fn new(global: &Global) -> Self {
        let from_env = std::env::var_os("HERDER_CONFIG").map(PathBuf::from);
        Self {
            given: global.config.is_some() && global.config != from_env,
            path: global.config.clone().unwrap_or_else(|| "herder.toml".into()),
        }
    }

    fn config(&self) -> anyhow::Result<Config> {
        control::config(&self.path)
    }

    /// The config and its control database, which is set up.
    async fn control(&self) -> anyhow::Result<(Config, PgPool)> {
        let config = self.config()?;
        let pool = control::connect(&config.control).await?;
        Ok((config, pool))
    }

    /// The same, and the run that a person means.
    async fn find_run(&self, run: &RunArg) -> anyhow::Result<(Config, PgPool, RunId)> {
        let (config, pool) = self.control().await?;
        let id = control::find_run(&pool, run.run.as_deref()).await?;
        Ok((config, pool, id))
    }

    /// The config and all that it names, with a control database that is set up. `local`: so many jobs at a time
    /// will run in this very process.
    async fn context(&self, local: Option<u16>) -> anyhow::Result<Context> {
        let mut config = self.config()?;
        control::connect(&config.control).await?.close().await;
        if let Some(concurrency) = local {
            config.worker.concurrency = usize::from(concurrency);
        }
        Ok(Context::new(config, "herder", CONNECTIONS)?)
    }

    /// The same without a look at the control database.
    fn context_unchecked(&self) -> anyhow::Result<Context> {
        Ok(Context::new(self.config()?, "herder", CONNECTIONS)?)
    }

    /// What a command to type next ends with.
    pub(crate) fn more(&self) -> String {
        match (self.given, self.path.to_string_lossy()) {
            (false, _) => String::new(),
            (true, path) if path.contains(char::is_whitespace) => format!(" --config '{path}'"),
            (true, path) => format!(" --config {path}"),
        }
    }
}

/// Waits for work that may be in the middle of a proof. Ctrl-C stops it, as soon as what the proof made is removed;
/// a second one stops it at once.
pub(crate) async fn unless_interrupted<T>(
    cx: &Context,
    interrupts: &mut Interrupts,
    work: impl Future<Output = Result<T, EnqueueError>>,
) -> Result<T, EnqueueError> {
    tokio::pin!(work);
    tokio::select! {
        done = &mut work => return done,
        () = interrupts.next() => cx.stop.cancel(),
    }
    if cx.is_busy() {
        tokio::select! {
            done = &mut work => return done,
            () = interrupts.next() => {}
            () = tokio::time::sleep(CLEAR_LIMIT) => {}
        }
    }
    Err(EnqueueError::Stopped)
}

/// Does what the command line says.
pub(crate) async fn run(setting: &Setting, command: Command) -> anyhow::Result<Exit> {
    match command {
        Command::Init(args) => init::run(setting, &args),
        Command::Setup(args) => setup::run(setting, &args).await,
        Command::Check(args) => check::run(setting, &args).await,
        Command::Budget(args) => budget::run(setting, &args).await,
        Command::Tenants(args) => tenants::run(setting, &args).await,
        Command::Plan(args) => plan::run(setting, &args).await,
        Command::Rehearse(args) => rehearse::run(setting, &args).await,
        Command::Upgrade(args) => start::upgrade(setting, args).await,
        Command::Downgrade(args) => start::downgrade(setting, args).await,
        Command::Runs(args) => runs::run(setting, &args).await,
        Command::Status(args) => status::run(setting, &args).await,
        Command::Watch(args) => watch::run(setting, &args).await,
        Command::Report(args) => report::run(setting, &args).await,
        Command::Pause(args) => pause::run(setting, &args).await,
        Command::Resume(args) => go_on::resume(setting, &args).await,
        Command::Retry(args) => go_on::retry(setting, &args).await,
        Command::Cancel(args) => cancel::run(setting, &args).await,
        Command::Prune(args) => prune::run(setting, &args).await,
        Command::Completions { shell } => completions::run(shell),
        Command::Demo(args) => demo::run(&args).await,
    }
}
