//! The `alembic` runner: live Alembic in warm processes, under a guard on a connection of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::{
    Description, Direction, Launch, Migrated, Migration, Project, ToolErrorKind, WarmError, WarmPool,
};
use crate::{
    config::{AlembicConfig, LimitsConfig},
    domain::{
        revision::{self, History, Ledger, LedgerForm, Revision},
        tenant::Isolation,
    },
    runner::{LedgerTable, MigrationRunner, Offer, RunnerError, Work},
    session::TenantSession,
};

/// Runs a project's own `env.py`, one tenant at a time in each of a few processes.
pub struct AlembicRunner {
    pool: WarmPool,
    project: Project,
    scheme: Option<String>,
    version_table: String,
    known: Mutex<Option<Known>>,
}

/// A history, and the files that it was read from, as they were then.
struct Known {
    history: Arc<History>,
    files: Vec<(PathBuf, Option<(SystemTime, u64)>)>,
}

impl AlembicRunner {
    /// A runner with at most `processes` warm processes. None is started yet.
    pub fn new(config: &AlembicConfig, processes: usize) -> Self {
        let launch = Launch {
            python: PathBuf::from(&config.python),
            env_remove: Vec::new(),
        };
        Self {
            pool: WarmPool::new(launch, processes.max(1)),
            project: Project {
                ini: config.config.clone(),
                section: config.name.clone(),
            },
            scheme: config.url_scheme.clone(),
            version_table: config.version_table.clone(),
            known: Mutex::new(None),
        }
    }

    async fn describe(&self) -> Result<Description, RunnerError> {
        let mut process = self.pool.checkout().await.map_err(to_error)?;
        process.describe(&self.project).await.map_err(to_error)
    }

    /// What the tool did, seen with suspicion: success without effect is what a lost commit, a lost URL and another
    /// ledger all look like.
    async fn check(
        &self,
        session: &mut TenantSession,
        work: &Work<'_>,
        done: &Migrated,
    ) -> Result<(), RunnerError> {
        let doubt = if done.connections.tenant == 0 {
            Some(
                "env.py connected elsewhere: it must take its URL from `-x url=…` or `sqlalchemy.url`"
                    .to_owned(),
            )
        } else if done.outer_transaction && !done.steps.is_empty() {
            Some(
                "env.py never commits: a statement before context.configure() (SET search_path, most likely) opens a \
                 transaction that Alembic joins; call connection.commit() after it"
                    .to_owned(),
            )
        } else if let Some(ledger) = done.ledger.as_ref().filter(|l| {
            l.table != self.version_table
                || l.schema
                    .as_deref()
                    .is_some_and(|s| session.schema().is_some_and(|own| own != s))
        }) {
            let schema = ledger
                .schema
                .as_ref()
                .map(|s| format!("{s}."))
                .unwrap_or_default();
            Some(format!(
                "env.py keeps its ledger in {schema}{}: use version_table_schema=<the tenant's schema>, and name the \
                 table in [runner] version_table",
                ledger.table
            ))
        } else if done.steps.is_empty() {
            Some("Alembic found nothing to do: does env.py look at the tenant's schema (version_table_schema)?".to_owned())
        } else {
            None
        };
        let Some(hint) = doubt else { return Ok(()) };
        let ledger = self.read_ledger(session, work.subject()).await?;
        match work
            .history
            .pending(work.claim.direction, work.to, &ledger)?
            .is_empty()
        {
            true => Ok(()),
            false => Err(RunnerError::LedgerMismatch {
                wanted: work.to.unwrap_or("base").to_owned(),
                found: work.history.describe(&ledger).unwrap_or_else(|| "base".into()),
                hint: Some(hint),
            }),
        }
    }
}

#[async_trait]
impl MigrationRunner for AlembicRunner {
    async fn history(&self) -> Result<Arc<History>, RunnerError> {
        let mut known = self.known.lock().await;
        if let Some(known) = known
            .as_ref()
            .filter(|k| k.files.iter().all(|(path, stamp)| stamp_of(path) == *stamp))
        {
            return Ok(Arc::clone(&known.history));
        }
        let description = self.describe().await?;
        let files = files_of(&self.project.ini, &description);
        let history = Arc::new(History::new(
            description.revisions.into_iter().map(to_revision).collect(),
            LedgerForm::Heads,
        )?);
        *known = Some(Known {
            history: Arc::clone(&history),
            files,
        });
        Ok(history)
    }

    /// The guard's, and the one that env.py opens.
    fn connections(&self) -> i16 {
        2
    }

    fn ledger_table(&self) -> Option<LedgerTable> {
        Some(LedgerTable {
            table: self.version_table.clone(),
            revision: "version_num::text",
            condition: "true",
        })
    }

    async fn plan(
        &self,
        _: revision::Direction,
        _: &Ledger,
        _: Option<&str>,
        _: Isolation,
    ) -> Result<Offer, RunnerError> {
        Ok(Offer::Live {
            why: "plans of Alembic migrations are not proven yet".into(),
        })
    }

    async fn migrate(&self, session: &mut TenantSession, work: &Work<'_>) -> Result<(), RunnerError> {
        let mut process = tokio::select! {
            process = self.pool.checkout() => process.map_err(to_error)?,
            () = work.cancel.cancelled() => return Err(RunnerError::Cancelled),
        };
        let settings = settings(work.limits);
        let schema = session.schema().map(str::to_owned);
        let application_name = work.claim.application_name();
        let migration = Migration {
            direction: match work.claim.direction {
                revision::Direction::Upgrade => Direction::Upgrade,
                revision::Direction::Downgrade => Direction::Downgrade,
            },
            target: work.to.unwrap_or("base"),
            url: work.url.expose(),
            scheme: self.scheme.as_deref(),
            schema: schema.as_deref(),
            application_name: &application_name,
            settings: &settings,
        };
        // Dropping the migration ends its process with all that it started.
        let done = session
            .guarded(work.cancel, process.migrate(&self.project, &migration))
            .await?
            .map_err(to_error)?;
        self.check(session, work, &done).await
    }
}

/// What every connection of env.py starts with.
fn settings(limits: &LimitsConfig) -> BTreeMap<String, String> {
    let ms = |d: Duration| d.as_millis().to_string();
    BTreeMap::from([
        ("lock_timeout".to_owned(), ms(limits.lock_timeout)),
        ("statement_timeout".to_owned(), ms(limits.statement_timeout)),
        ("client_connection_check_interval".to_owned(), "1000".to_owned()),
    ])
}

fn to_revision(file: super::RevisionFile) -> Revision {
    let down: BTreeSet<String> = file.down.into_iter().chain(file.depends_on).collect();
    Revision {
        id: file.revision,
        down: down.into_iter().collect(),
        label: file.label,
        file: Some(file.file),
        checksum: Some(file.sha256),
    }
}

/// The files of a project and the folders that they are in: a new file changes its folder.
fn files_of(ini: &Path, description: &Description) -> Vec<(PathBuf, Option<(SystemTime, u64)>)> {
    let directory = ini.parent().unwrap_or(Path::new("/"));
    let revisions: Vec<PathBuf> = description
        .revisions
        .iter()
        .map(|r| directory.join(&r.file))
        .collect();
    let folders: BTreeSet<PathBuf> = revisions
        .iter()
        .filter_map(|f| f.parent())
        .map(Path::to_owned)
        .collect();
    let all = revisions.into_iter().chain(folders).chain([ini.to_owned()]);
    all.map(|path| (path.clone(), stamp_of(&path))).collect()
}

fn stamp_of(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

fn to_error(error: WarmError) -> RunnerError {
    let hint = error.hint().map(str::to_owned);
    match error {
        WarmError::PythonMissing { .. } | WarmError::AlembicMissing { .. } => RunnerError::Setup {
            message: crate::flow::context::chain(&error),
            hint: hint.unwrap_or_else(|| "set [runner] python to the interpreter that has Alembic".into()),
        },
        WarmError::Died { .. } | WarmError::Protocol { .. } => RunnerError::ToolDied(error.to_string()),
        WarmError::Tool(tool) => match tool.kind {
            ToolErrorKind::Connect if tool.sqlstate.is_none() => RunnerError::Connection(tool.message),
            ToolErrorKind::Config | ToolErrorKind::Script => RunnerError::Setup {
                message: tool.message,
                hint: hint
                    .or(tool.hint)
                    .unwrap_or_else(|| "`alembic history` in the project's folder says the same".into()),
            },
            _ => RunnerError::Tool {
                message: tool.message,
                sqlstate: tool.sqlstate,
                revision: tool.revision,
                statement: tool.statement,
                hint: tool.hint.or(hint),
            },
        },
    }
}
