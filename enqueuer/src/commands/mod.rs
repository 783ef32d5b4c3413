//! One file per command: what it looks at, what it does, and what it reports.

pub(crate) mod budget;
mod cancel;
pub(crate) mod check;
mod completions;
mod demo;
mod init;
mod pause;
pub(crate) mod plan;
mod prune;
pub(crate) mod rehearse;
mod report;
mod resume;
mod retry;
mod runs;
mod setup;
mod start;
mod status;
mod target;
pub(crate) mod tenants;
mod watch;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

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

    /// The end of a command to type next: ` --config x.toml`, or nothing.
    pub(crate) fn config_args(&self) -> String {
        match self.given {
            true => config_args(&self.path),
            false => String::new(),
        }
    }
}

/// The end of a command that uses this config, as a shell reads it.
fn config_args(path: &Path) -> String {
    let path = path.to_string_lossy();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+:@%,=".contains(c);
    match path.chars().all(is_plain) {
        true => format!(" --config {path}"),
        false => format!(" --config '{}'", path.replace('\'', r"'\''")),
    }
}

/// Waits for work that may be in the middle of a proof. Ctrl-C stops it, as soon as what the proof made is removed;
/// a second one stops it at once.
pub(crate) async fn unless_interrupted<T>(
    cx: &Context,
    interrupts: &mut Interrupts,
    work: impl Future<Output = Result<T, EnqueueError>>,
) -> Result<T, EnqueueError> {
    let mut work = Box::pin(work);
    tokio::select! {
        done = &mut work => return done,
        () = interrupts.next() => cx.stop.cancel(),
    }
    if cx.is_busy() {
        tokio::select! {
            done = &mut work => {
                if !matches!(done, Err(EnqueueError::Stopped)) {
                    // It was too late to stop that. What follows is to hear of it.
                    interrupts.leave();
                }
                return done;
            }
            () = interrupts.next() => {}
            () = tokio::time::sleep(CLEAR_LIMIT) => {}
        }
        return Err(EnqueueError::Abandoned);
    }
    drop(work);
    cx.tidy_up().await;
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
        Command::Resume(args) => resume::resume(setting, &args).await,
        Command::Retry(args) => retry::retry(setting, &args).await,
        Command::Cancel(args) => cancel::run(setting, &args).await,
        Command::Prune(args) => prune::run(setting, &args).await,
        Command::Completions { shell } => completions::run(shell),
        Command::Demo(args) => demo::run(&args).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_to_type_next_is_read_by_a_shell_as_it_was_meant() {
        for path in [
            "x.toml",
            "/etc/herder.toml",
            "a b.toml",
            "it's.toml",
            "a;b.toml",
            "$(rm x)`y`\"z\".toml",
            "Ä.toml",
        ] {
            let read = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s{}", config_args(Path::new(path)))])
                .output()
                .expect("a shell");
            assert_eq!(String::from_utf8_lossy(&read.stdout), format!("--config{path}"));
        }
        assert_eq!(
            config_args(Path::new("eu/fleet-1.toml")),
            " --config eu/fleet-1.toml"
        );
    }
}
