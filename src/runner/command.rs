//! `kind = "command"`: any program, once per tenant. It is told about its tenant by arguments, environment and
//! standard input, and judged by the ledger that `current_command` reads; its exit code alone is believed only where
//! it says "failed".

mod checks;
mod environment;
mod history;
mod output;
mod process;
mod program;
mod template;
mod watchman;

use std::{
    collections::BTreeMap, env, ffi::OsString, os::unix::process::ExitStatusExt as _, path::PathBuf,
    sync::Arc, time::Duration,
};

use async_trait::async_trait;
use rustix::process::Signal;

use self::{
    checks::{UNKNOWN_TO_CURRENT, command, placeholder_error, program, secrets, setup},
    environment::{BASE, Environment, Errand, Session, WITHOUT},
    history::HistorySource,
    output::{last_words, lost_connection, sqlstate},
    process::{Finished, Invocation},
    template::{Template, Values},
};
use super::{MigrationRunner, Offer, Subject, Work};
use crate::{
    config::CommandConfig,
    domain::{
        revision::{Direction, History, Ledger},
        tenant::Isolation,
    },
    scrub::Scrubber,
    session::{EXIT_GRACE, LedgerTable, TenantSession},
    tenant_error::TenantError,
};

/// How long a command that only looks may take.
const LOOK_LIMIT: Duration = Duration::from_secs(60);

/// The most characters of a revision. All tools keep theirs in columns that hold less.
const LONGEST_REVISION: usize = 255;

/// How often the session with the tenant's lock says that it lives. The server ends it after 20 s of silence.
const PING: Duration = Duration::from_secs(1);

/// Migrates by a program of the user's.
pub(super) struct CommandRunner {
    upgrade: Vec<Template>,
    downgrade: Vec<Template>,
    current: Vec<Template>,
    history: HistorySource,
    env: BTreeMap<String, Template>,
    stdin: Option<Template>,
    directory: PathBuf,
    /// Variables that the program does not inherit.
    without: Vec<String>,
    /// Values of the config that look like secrets by their names.
    secrets: Vec<String>,
}

impl CommandRunner {
    /// A runner for these commands.
    ///
    /// # Errors
    /// What makes no sense in them.
    pub(super) fn new(config: &CommandConfig) -> Result<Self, TenantError> {
        let upgrade = command("command", &config.command, &[])?;
        let downgrade = match config.downgrade_command.is_empty() {
            true => upgrade.clone(),
            false => command("downgrade_command", &config.downgrade_command, &[])?,
        };
        if config.current_command.is_empty() {
            return Err(setup(
                "`current_command` is missing".into(),
                "Herder believes a tenant's own ledger only: give a command that prints the tenant's revision, e.g. \
                 [\"psql\", \"-Atc\", \"select version from schema_version\"]",
            ));
        }
        let env = config.env.iter().map(|(name, text)| {
            let template = Template::parse(text).map_err(|e| placeholder_error(&format!("env.{name}"), e))?;
            Ok((name.clone(), template))
        });
        let stdin = config.stdin.as_deref().map(Template::parse).transpose();
        Ok(Self {
            upgrade,
            downgrade,
            current: command("current_command", &config.current_command, &UNKNOWN_TO_CURRENT)?,
            history: HistorySource::new(config)?,
            env: env.collect::<Result<_, TenantError>>()?,
            stdin: stdin.map_err(|e| placeholder_error("stdin", e))?,
            directory: config.directory.clone().unwrap_or_else(|| ".".into()),
            without: (WITHOUT.iter().map(|name| (*name).to_owned()))
                .chain(config.private_variables.iter().cloned())
                .collect(),
            secrets: secrets(config),
        })
    }

    fn invocation(&self, command: Vec<String>, tenant: Option<&Environment>, limit: Duration) -> Invocation {
        let none = Values::new();
        let values = tenant.map_or(&none, |t| &t.values);
        let mut env = tenant.map(|t| t.env.clone()).unwrap_or_default();
        let own = self.env.iter();
        env.extend(own.filter_map(|(name, template)| Some((name.clone(), template.fill(values)?.into()))));
        let mut words = command.into_iter();
        Invocation {
            program: program(&words.next().unwrap_or_default(), &self.directory),
            arguments: words.collect(),
            directory: self.directory.clone(),
            env,
            without: self.without.clone(),
            stdin: tenant.and_then(|_| self.stdin.as_ref()?.fill(values)),
            asked: false,
            limit,
            stillness: None,
        }
    }

    /// Makes sure that all programs are there that a run starts, before it has begun: one that is missing would fail
    /// every tenant.
    fn find_programs(&self) -> Result<(), TenantError> {
        let none = Values::new();
        let path = match self.env.get("PATH") {
            Some(own) => own.fill(&none).map(OsString::from),
            None => env::var_os("PATH"),
        };
        // Without PATH, or with a tenant's own, only the system knows where it would look.
        let Some(path) = path else { return Ok(()) };
        let mut words: Vec<String> = [&self.current, &self.upgrade, &self.downgrade]
            .into_iter()
            // One that has a placeholder in its name is another one for each tenant.
            .filter_map(|command| command.first()?.fill(&none))
            .collect();
        if let HistorySource::Printed { command, .. } = &self.history {
            words.extend(command.first().cloned());
        }
        words
            .iter()
            .try_for_each(|word| program::find(&program(word, &self.directory), &self.directory, &path))
    }

    /// The error of a program that did not end well.
    fn judge(
        &self,
        invocation: &Invocation,
        finished: &Finished,
        secrets: &[String],
    ) -> Result<(), TenantError> {
        if finished.status.success() {
            return Ok(());
        }
        let talk = format!("{}\n{}", finished.answer.text(), finished.talk.text());
        let secrets = [secrets, self.secrets.as_slice()].concat();
        let words = last_words(&talk, &secrets);
        let name = invocation
            .program
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        // "exit status: 3", "signal: 9 (SIGKILL)".
        let ended = finished.status.to_string().replace("exit status:", "exit code");
        let message = match words.is_empty() {
            true => format!("`{name}` ended with {ended} and said nothing"),
            false => format!("`{name}` ended with {ended}: {words}"),
        };
        if finished.status.signal() == Some(Signal::KILL.as_raw()) {
            // Out of memory, most likely: nothing that it could have said, and nothing of the tenant's.
            return Err(TenantError::ToolDied(message));
        }
        let sqlstate = sqlstate(&talk);
        if sqlstate.is_none() && lost_connection(&talk) {
            return Err(TenantError::Connection(message));
        }
        Err(TenantError::Tool {
            message,
            sqlstate,
            revision: None,
            statement: None,
            hint: None,
        })
    }

    /// Asks a program, and gives what it printed.
    async fn ask(
        &self,
        mut invocation: Invocation,
        secrets: &[String],
        stop: impl Future<Output = TenantError>,
    ) -> Result<String, TenantError> {
        invocation.asked = true;
        let finished = process::run(&invocation, stop).await?;
        self.judge(&invocation, &finished, secrets)?;
        if finished.answer.is_cut() {
            let name = invocation.program.display();
            return Err(setup(
                format!("`{name}` printed more than a list of revisions can be"),
                "it prints revisions on its standard output; let it talk on standard error",
            ));
        }
        Ok(finished.answer.text())
    }

    /// The ledger, as `current_command` reads it.
    async fn current(
        &self,
        tenant: &Environment,
        stop: impl Future<Output = TenantError>,
    ) -> Result<Ledger, TenantError> {
        let invocation = self.invocation(fill(&self.current, &tenant.values), Some(tenant), LOOK_LIMIT);
        let text = self.ask(invocation, &tenant.secrets, stop).await?;
        let revision = text.lines().map(str::trim).rfind(|line| !line.is_empty());
        let revision = revision.filter(|r| *r != BASE);
        if let Some(revision) = revision {
            self.check_revision(revision, tenant).await?;
        }
        Ok(Ledger {
            revisions: revision.into_iter().map(str::to_owned).collect(),
            half: None,
        })
    }

    /// Refuses an answer that can be no revision. A forgotten `echo` must not bring a password into our tables.
    async fn check_revision(&self, revision: &str, tenant: &Environment) -> Result<(), TenantError> {
        let length = revision.chars().count();
        if length > LONGEST_REVISION {
            return Err(no_revision(&format!("{length} characters")));
        }
        let secrets = [tenant.secrets.as_slice(), self.secrets.as_slice()].concat();
        // A weak password may be a part of a revision's name.
        if hides(secrets, revision) && self.history().await?.get(revision).is_none() {
            return Err(no_revision("a text with a password in it"));
        }
        Ok(())
    }
}

/// Whether a secret stands in a text: one of these, or the password of some URL.
fn hides(secrets: Vec<String>, text: &str) -> bool {
    Scrubber::new(secrets).clean(text) != text
}

fn no_revision(what: &str) -> TenantError {
    TenantError::tool(
        format!("`current_command` printed {what}, where the last line is the tenant's revision"),
        Some(
            "let it print the revision on its standard output, and talk on standard error; a revision that holds a word \
             which is also a password is believed where `revisions` or `history_command` lists it",
        ),
    )
}

fn fill(templates: &[Template], values: &Values) -> Vec<String> {
    // Which placeholders may stand where was checked when the runner was made.
    templates
        .iter()
        .map(|t| t.fill(values).unwrap_or_default())
        .collect()
}

/// Keeps the tenant's lock: comes back only when the session is lost, and with it the right to go on.
async fn keep(session: &mut TenantSession) -> TenantError {
    loop {
        tokio::time::sleep(PING).await;
        if let Err(error) = session.ping().await {
            return error;
        }
    }
}

/// The session's own name and limits, for the program's.
async fn settings(session: &mut TenantSession) -> Result<Session, TenantError> {
    let (application_name, lock_timeout, statement_timeout) = sqlx::query_as(
        "select current_setting('application_name'), current_setting('lock_timeout'), \
         current_setting('statement_timeout')",
    )
    .persistent(false)
    .fetch_one(session.connection())
    .await?;
    Ok(Session {
        application_name,
        lock_timeout,
        statement_timeout,
    })
}

#[async_trait]
impl MigrationRunner for CommandRunner {
    async fn history(&self) -> Result<Arc<History>, TenantError> {
        self.find_programs()?;
        self.revisions().await
    }

    /// The session that holds the lock, and the program's own.
    fn connections(&self) -> i16 {
        2
    }

    fn ledger_table(&self) -> Option<LedgerTable> {
        None
    }

    async fn read_ledger(&self, session: &mut TenantSession, of: Subject<'_>) -> Result<Ledger, TenantError> {
        let settings = settings(session).await?;
        let tenant = Environment::new(of, session.schema(), &settings, None);
        self.current(&tenant, keep(session)).await
    }

    /// The session has shown that the place is there; the program has the connection to itself.
    async fn look(&self, mut session: TenantSession, of: Subject<'_>) -> Result<Ledger, TenantError> {
        let settings = settings(&mut session).await;
        let schema = session.schema().map(str::to_owned);
        session.close().await;
        tokio::time::sleep(EXIT_GRACE).await;
        let tenant = Environment::new(of, schema.as_deref(), &settings?, None);
        self.current(&tenant, std::future::pending()).await
    }

    async fn plan(
        &self,
        _: Direction,
        _: &Ledger,
        _: Option<&str>,
        _: Isolation,
    ) -> Result<Offer, TenantError> {
        Ok(Offer::Live {
            why: "what the command does is its own business".into(),
        })
    }

    async fn migrate(&self, session: &mut TenantSession, work: &Work<'_>) -> Result<(), TenantError> {
        let settings = settings(session).await?;
        let errand = Errand {
            claim: work.claim,
            from: work.from,
            to: work.to,
        };
        let tenant = Environment::new(work.subject(), session.schema(), &settings, Some(&errand));
        let command = match work.claim.direction {
            Direction::Upgrade => &self.upgrade,
            Direction::Downgrade => &self.downgrade,
        };
        let mut invocation = self.invocation(
            fill(command, &tenant.values),
            Some(&tenant),
            work.limits.statement_timeout,
        );
        invocation.stillness = Some(work.stillness);
        let stop = async {
            tokio::select! {
                biased;
                () = work.cancel.cancelled() => TenantError::Cancelled,
                lost = keep(session) => lost,
            }
        };
        let finished = process::run(&invocation, stop).await?;
        self.judge(&invocation, &finished, &tenant.secrets)
    }
}
