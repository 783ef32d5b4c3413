//! Where the revisions of a command come from: the config lists them, or a program prints them, or nobody knows any.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Mutex;

use super::{
    CommandRunner, LOOK_LIMIT,
    checks::{command, setup},
    fill, hides,
    template::Values,
};
use crate::{
    config::CommandConfig,
    domain::revision::{History, LedgerForm, Revision},
    tenant_error::TenantError,
};

/// How long a printed history is believed. Each attempt asks for it, and a program's start is not free.
const HISTORY_AGE: Duration = Duration::from_secs(5);

/// Where the revisions come from.
pub(super) enum HistorySource {
    Listed(Arc<History>),
    Printed {
        command: Vec<String>,
        known: Mutex<Option<(Instant, Arc<History>)>>,
    },
}

impl HistorySource {
    /// Reads from a config where the revisions come from.
    ///
    /// # Errors
    /// The config names two sources, or asks for a tenant where there is none.
    pub(super) fn new(config: &CommandConfig) -> Result<Self, TenantError> {
        if config.history_command.is_empty() {
            return Ok(Self::Listed(match config.revisions.is_empty() {
                true => Arc::new(History::opaque()),
                false => history(config.revisions.iter().map(String::as_str))?,
            }));
        }
        if !config.revisions.is_empty() {
            return Err(setup(
                "`revisions` and `history_command` are both given".into(),
                "keep one of them",
            ));
        }
        let templates = command("history_command", &config.history_command, &[])?;
        if let Some(p) = templates.iter().find_map(|t| t.placeholders().next()) {
            return Err(setup(
                format!("`history_command` has {p} in it"),
                "it runs once, without a tenant",
            ));
        }
        Ok(Self::Printed {
            command: fill(&templates, &Values::new()),
            known: Mutex::new(None),
        })
    }
}

impl CommandRunner {
    /// The revisions, as the config lists them or as its command prints them.
    pub(super) async fn revisions(&self) -> Result<Arc<History>, TenantError> {
        match &self.history {
            HistorySource::Listed(history) => Ok(Arc::clone(history)),
            HistorySource::Printed { command, known } => {
                let mut known = known.lock().await;
                if let Some((at, history)) = &*known
                    && at.elapsed() < HISTORY_AGE
                {
                    return Ok(Arc::clone(history));
                }
                let history = self.printed(command).await?;
                *known = Some((Instant::now(), Arc::clone(&history)));
                Ok(history)
            }
        }
    }

    async fn printed(&self, command: &[String]) -> Result<Arc<History>, TenantError> {
        let invocation = self.invocation(command.to_vec(), None, LOOK_LIMIT);
        let text = self.ask(invocation, &[], std::future::pending()).await?;
        let lines: Vec<&str> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        if lines.iter().any(|line| hides(self.secrets.clone(), line)) {
            return Err(setup(
                "`history_command` printed a text with a password in it".into(),
                "it prints all revisions, one a line, and nothing else on its standard output",
            ));
        }
        if lines.is_empty() {
            return Err(setup(
                "`history_command` printed no revision".into(),
                "it prints all revisions, one a line, oldest first",
            ));
        }
        history(lines)
    }
}

/// A line of revisions. The tool's ledger names the newest.
fn history<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Arc<History>, TenantError> {
    let mut below: Option<String> = None;
    let revisions = lines.into_iter().map(|id| Revision {
        id: id.to_owned(),
        down: below.replace(id.to_owned()).into_iter().collect(),
        depends_on: Vec::new(),
        label: String::new(),
        file: None,
        down_file: None,
        checksum: None,
        resumes: Vec::new(),
    });
    Ok(Arc::new(History::new(revisions.collect(), LedgerForm::Heads)?))
}
