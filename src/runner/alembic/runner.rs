//! The `alembic` runner: live Alembic in warm processes, under a guard on a connection of its own.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use async_trait::async_trait;

use super::{
    Launch, Migrated, Migration, Project, ToolErrorKind, WarmError, WarmGuard, WarmPool, known::KnownHistory,
    unfit,
};
use crate::{
    config::{AlembicConfig, LimitsConfig, PlanConfig},
    domain::{
        plan::{Plan, Session},
        revision::{Direction, History, Ledger},
        tenant::Isolation,
    },
    runner::{MigrationRunner, Offer, PlanProver, Work},
    session::{CLIENT_CHECK, LedgerTable, TenantSession},
    tenant_error::TenantError,
};

/// Runs a project's own `env.py`, one tenant at a time in each of a few processes.
pub struct AlembicRunner {
    pool: WarmPool,
    project: Project,
    scheme: Option<String>,
    version_table: String,
    plan: PlanConfig,
    known: KnownHistory,
}

impl AlembicRunner {
    /// A runner with at most `processes` warm processes. None is started yet.
    pub fn new(config: &AlembicConfig, processes: usize) -> Self {
        let launch = Launch {
            python: PathBuf::from(&config.python),
            env_remove: config.private_variables.clone(),
        };
        Self {
            pool: WarmPool::new(launch, processes.max(1)),
            project: Project {
                ini: config.config.clone(),
                section: config.name.clone(),
                x: config.x.clone(),
            },
            scheme: config.url_scheme.clone(),
            version_table: config.version_table.clone(),
            plan: config.plan,
            known: KnownHistory::default(),
        }
    }

    pub(super) fn project(&self) -> &Project {
        &self.project
    }

    pub(super) fn scheme(&self) -> Option<&str> {
        self.scheme.as_deref()
    }

    pub(super) fn version_table(&self) -> &str {
        &self.version_table
    }

    pub(super) fn plan_config(&self) -> PlanConfig {
        self.plan
    }

    pub(super) fn ledger(&self) -> LedgerTable {
        LedgerTable {
            half: None,
            table: self.version_table.clone(),
            revision: "version_num::text",
            condition: "true",
            checksum: None,
        }
    }

    pub(super) async fn checkout(&self) -> Result<WarmGuard, TenantError> {
        self.pool.checkout().await.map_err(to_error)
    }

    /// What became of revisions of which a part is committed. Another try would do that part again, unless the ledger says that
    /// the rest was committed as well, and only the answer to that was lost. An env.py may also have let go of the rest, and said
    /// nothing.
    async fn left(
        &self,
        session: &mut TenantSession,
        work: &Work<'_>,
        halves: &[String],
        migrated: Result<(), TenantError>,
    ) -> Result<(), TenantError> {
        let still = async {
            session.ping().await?;
            let ledger = self.read_ledger(session, work.subject()).await?;
            let pending = work.history.pending(work.claim.direction, work.to, &ledger)?;
            let is_pending = |half: &&String| pending.iter().any(|revision| revision.id == **half);
            let at = work.history.describe(&ledger);
            Ok::<_, TenantError>((halves.iter().filter(is_pending).cloned().collect(), at))
        };
        let (revisions, at): (Vec<_>, _) = still.await.unwrap_or_else(|_| (halves.to_vec(), None));
        if revisions.is_empty() {
            return migrated;
        }
        let unsaid = || TenantError::LedgerMismatch {
            wanted: work.to.unwrap_or("base").to_owned(),
            found: at.unwrap_or_else(|| "base".into()),
            hint: None,
        };
        Err(TenantError::Left {
            revisions,
            direction: work.claim.direction,
            cause: Box::new(migrated.err().unwrap_or_else(unsaid)),
        })
    }

    /// What the tool did, seen with suspicion: success without effect is what a lost commit, a lost URL and another
    /// ledger all look like.
    async fn check(
        &self,
        session: &mut TenantSession,
        work: &Work<'_>,
        done: &Migrated,
    ) -> Result<(), TenantError> {
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
            false => Err(TenantError::LedgerMismatch {
                wanted: work.to.unwrap_or("base").to_owned(),
                found: work.history.describe(&ledger).unwrap_or_else(|| "base".into()),
                hint: Some(hint),
            }),
        }
    }
}

#[async_trait]
impl MigrationRunner for AlembicRunner {
    async fn history(&self) -> Result<Arc<History>, TenantError> {
        self.known.get(&self.pool, &self.project).await
    }

    /// The guard's, and the one that env.py opens.
    fn connections(&self) -> i16 {
        2
    }

    fn ledger_table(&self) -> Option<LedgerTable> {
        Some(self.ledger())
    }

    async fn plan(
        &self,
        direction: Direction,
        before: &Ledger,
        to: Option<&str>,
        isolation: Isolation,
    ) -> Result<Offer, TenantError> {
        if self.plan == PlanConfig::Never {
            return Ok(Offer::Live {
                why: "[runner] plan = \"never\"".into(),
            });
        }
        let target = to.unwrap_or("base");
        let before = &before.revisions;
        let by_schema = isolation != Isolation::Database;
        let rendered = match self.rendered(direction, before, target, by_schema).await {
            // What is wrong with offline mode alone is no obstacle to a live Alembic.
            Err(e @ TenantError::Setup { .. }) if self.plan == PlanConfig::Auto => Err(e.to_string()),
            // Whatever was in the way, nobody is to be migrated live.
            Err(e @ (TenantError::Tool { .. } | TenantError::ToolDied(_)))
                if self.plan == PlanConfig::Always =>
            {
                Err(e.to_string())
            }
            rendered => rendered?,
        };
        let asked = |steps| unfit::Asked {
            steps,
            before,
            table: &self.version_table,
            by_schema,
        };
        match rendered {
            Ok(steps) => Ok(Offer::Plan(Plan {
                direction,
                before: before.clone(),
                check: Some(asked(&steps).check()),
                quick: asked(&steps).quick(),
                after: steps.last().map_or_else(|| before.clone(), |s| s.after.clone()),
                session: Session::default(),
                steps,
            })),
            Err(why) if self.plan == PlanConfig::Always => Err(TenantError::Setup {
                message: format!("no plan can be made: {why}"),
                hint: "[runner] plan = \"auto\" migrates such tenants by live Alembic".into(),
            }),
            Err(why) => Ok(Offer::Live { why }),
        }
    }

    fn prover(&self) -> Option<&dyn PlanProver> {
        Some(self)
    }

    async fn migrate(&self, session: &mut TenantSession, work: &Work<'_>) -> Result<(), TenantError> {
        // A process that starts on a busy machine may take longer than the guard may be silent.
        let mut process = session
            .guarded(work.cancel, self.pool.checkout())
            .await?
            .map_err(to_error)?;
        let settings = settings(work.limits);
        let schema = session.schema().map(str::to_owned);
        let application_name = work.claim.label().to_string();
        let migration = Migration {
            direction: work.claim.direction,
            target: work.to.unwrap_or("base"),
            url: work.url.expose(),
            scheme: self.scheme.as_deref(),
            schema: schema.as_deref(),
            application_name: &application_name,
            settings: &settings,
        };
        // Dropping the migration ends its process with all that it started.
        let migrated = session
            .guarded(
                work.cancel,
                process.migrate_noting(&self.project, &migration, work.halves),
            )
            .await
            .and_then(|done| done.map_err(to_error));
        let migrated = match migrated {
            Ok(done) => self.check(session, work, &done).await,
            Err(error) => Err(error),
        };
        match process.halves() {
            [] => migrated,
            halves => self.left(session, work, halves, migrated).await,
        }
    }
}

/// What every connection of env.py starts with.
pub(super) fn settings(limits: &LimitsConfig) -> BTreeMap<String, String> {
    let ms = |d: Duration| d.as_millis().to_string();
    BTreeMap::from([
        ("lock_timeout".to_owned(), ms(limits.lock_timeout)),
        ("statement_timeout".to_owned(), ms(limits.statement_timeout)),
        ("client_connection_check_interval".to_owned(), ms(CLIENT_CHECK)),
    ])
}

pub(super) fn to_error(error: WarmError) -> TenantError {
    let hint = error.hint().map(str::to_owned);
    match error {
        WarmError::PythonMissing { .. } | WarmError::AlembicMissing { .. } => TenantError::Setup {
            message: crate::domain::failure::chain(&error),
            hint: hint.unwrap_or_else(|| "set [runner] python to the interpreter that has Alembic".into()),
        },
        WarmError::Died { .. } | WarmError::Protocol { .. } => TenantError::ToolDied(error.to_string()),
        WarmError::Unnoted(error) => *error,
        WarmError::Tool(tool) => match tool.kind {
            ToolErrorKind::Connect if tool.sqlstate.is_none() => TenantError::Connection(tool.message),
            ToolErrorKind::Config | ToolErrorKind::Script => TenantError::Setup {
                message: tool.message,
                hint: hint
                    .or(tool.hint)
                    .unwrap_or_else(|| "`alembic history` in the project's folder says the same".into()),
            },
            _ => TenantError::Tool {
                message: tool.message,
                sqlstate: tool.sqlstate,
                revision: tool.revision,
                statement: tool.statement,
                hint: tool.hint.or(hint),
            },
        },
    }
}
