//! The `alembic` runner: live Alembic in warm processes, under a guard on a connection of its own.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;

use super::{
    Description, Launch, Migrated, Migration, Project, Refusal, Rendered, Rendering, ToolErrorKind,
    WarmError, WarmGuard, WarmPool, fit, offline,
    shadow::{self, Shadow},
    unfit,
};
use crate::{
    config::{AlembicConfig, LimitsConfig, PlanConfig},
    domain::{
        plan::{Plan, PlanStep, SCHEMA, Session},
        revision::{Direction, History, Ledger, LedgerForm, Revision},
        tenant::Isolation,
    },
    runner::{Ground, MigrationRunner, Offer, PlanProver, Verdict, Work},
    session::{CLIENT_CHECK, LedgerTable, TenantSession},
    tenant_error::TenantError,
};

/// How far apart two renderings are that prove a plan free of the time.
const CLOCK_TICK: Duration = Duration::from_millis(1100);

/// Goes up with every change to what a proof looks at: an older proof says nothing then.
const PROOF_VERSION: &str = "9";

/// How often a proof is tried that something is in the way of.
const PROOF_TRIES: u32 = 3;

/// Runs a project's own `env.py`, one tenant at a time in each of a few processes.
pub struct AlembicRunner {
    pool: WarmPool,
    project: Project,
    scheme: Option<String>,
    version_table: String,
    plan: PlanConfig,
    known: Mutex<Option<Known>>,
}

/// How exact a file system's times are at least.
const TICK: Duration = Duration::from_millis(10);

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
            known: Mutex::new(None),
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

    /// What is rendered under a made-up name.
    fn rendering<'a>(
        &'a self,
        direction: Direction,
        before: &'a BTreeSet<String>,
        target: &'a str,
        by_schema: bool,
    ) -> Rendering<'a> {
        Rendering {
            direction,
            heads: before,
            target,
            scheme: self.scheme(),
            database: offline::DATABASE,
            schema: by_schema.then_some(SCHEMA),
        }
    }

    /// Renders under two made-up names, and makes steps of it where both say the same.
    pub(super) async fn rendered(
        &self,
        direction: Direction,
        before: &BTreeSet<String>,
        target: &str,
        by_schema: bool,
    ) -> Result<Result<Vec<PlanStep>, String>, TenantError> {
        let mut process = self.checkout().await?;
        let mut rendering = self.rendering(direction, before, target, by_schema);
        let first = process
            .render(&self.project, &rendering)
            .await
            .map_err(to_error)?;
        let (events, ledger) = match first {
            Rendered::Script { events, ledger, .. } => (events, ledger),
            Rendered::Refused { refused } => return Ok(Err(why(&refused))),
        };
        rendering.database = offline::OTHER_DATABASE;
        rendering.schema = by_schema.then_some(offline::OTHER_SCHEMA);
        let other = process
            .render(&self.project, &rendering)
            .await
            .map_err(to_error)?;
        let other = match other {
            Rendered::Script { events, .. } => offline::with_schema(events),
            Rendered::Refused { refused } => return Ok(Err(why(&refused))),
        };
        if let Some(revision) = offline::first_difference(&events, &other) {
            let place = revision.map_or_else(|| "env.py".into(), |r| format!("revision {r}"));
            return Ok(Err(format!(
                "{place} renders other SQL each time, or for each tenant"
            )));
        }
        if ledger.table != self.version_table
            || ledger.schema.as_deref().is_some_and(|s| by_schema && s != SCHEMA)
        {
            return Ok(Err(format!(
                "env.py keeps its ledger in {}{}, not in the tenant's {}",
                ledger.schema.map(|s| format!("{s}.")).unwrap_or_default(),
                ledger.table,
                self.version_table
            )));
        }
        Ok(offline::steps(&events, before, &self.version_table))
    }

    async fn describe(&self) -> Result<Description, TenantError> {
        let mut process = self.pool.checkout().await.map_err(to_error)?;
        process.describe(&self.project).await.map_err(to_error)
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
        let mut known = self.known.lock().await;
        if let Some(known) = known
            .as_ref()
            .filter(|k| k.files.iter().all(|(path, stamp)| stamp_of(path) == *stamp))
        {
            return Ok(Arc::clone(&known.history));
        }
        let began = SystemTime::now();
        let description = self.describe().await?;
        let files = files_of(&self.project.ini, &description);
        let history = Arc::new(History::new(
            description.revisions.into_iter().map(to_revision).collect(),
            LedgerForm::Heads,
        )?);
        // What was written while it was read may have been read before. A clock that is behind must not make each look a new one.
        let meanwhile = began.checked_sub(TICK).unwrap_or(began)..=SystemTime::now();
        let is_meanwhile =
            |stamp: &Option<(SystemTime, u64)>| stamp.is_some_and(|(at, _)| meanwhile.contains(&at));
        *known = (!files.iter().any(|(_, stamp)| is_meanwhile(stamp))).then(|| Known {
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

#[async_trait]
impl PlanProver for AlembicRunner {
    async fn fit(&self, plan: Plan, to: Option<&str>, ground: Ground<'_>) -> Result<Offer, TenantError> {
        fit::fit(self, plan, to.unwrap_or("base"), ground).await
    }

    fn needs_proof(&self) -> bool {
        self.plan != PlanConfig::Always
    }

    async fn proof_key(
        &self,
        plan: &Plan,
        to: Option<&str>,
        ground: Ground<'_>,
    ) -> Result<Option<String>, TenantError> {
        let by_schema = ground.place.schema.is_some();
        let target = to.unwrap_or("base");
        let mut process = self.checkout().await?;
        let rendering = self.rendering(plan.direction, &plan.before, target, by_schema);
        let again = process
            .render(&self.project, &rendering)
            .await
            .map_err(to_error)?;
        // The rendering that comes last counts: a plan that changes by itself is not proven by an old one.
        let env = match again {
            Rendered::Script { events, env, .. }
                if offline::steps(&events, &plan.before, &self.version_table).as_ref() == Ok(&plan.steps) =>
            {
                env
            }
            _ => return Ok(None),
        };
        let versions = process.versions();
        let versions = format!(
            "{} {} {} {env}",
            versions.python, versions.alembic, versions.sqlalchemy
        );
        drop(process);
        let history = self.history().await?;
        let postgres = shadow::postgres_major(ground).await?;
        let mut hash = Sha256::new();
        // All revisions that a proof runs: up to where the plan begins, and up to where it ends.
        for revision in plan.before.iter().map(String::as_str).chain(to) {
            hash.update(history.fingerprint(Some(revision)));
            hash.update([0]);
        }
        for part in [
            PROOF_VERSION,
            &plan.id(),
            &versions,
            if by_schema { "schema" } else { "database" },
            &self.version_table,
            self.scheme().unwrap_or_default(),
            &format!("{:?}", self.project.x),
            &postgres.to_string(),
        ] {
            hash.update(part);
            hash.update([0]);
        }
        Ok(Some(format!("{:x}", hash.finalize())))
    }

    async fn prove(&self, plan: &Plan, to: Option<&str>, ground: Ground<'_>) -> Result<Verdict, TenantError> {
        let began = Instant::now();
        let target = to.unwrap_or("base");
        let mut tries = 1;
        let verdict = loop {
            match Shadow::new(self, ground, plan, target)?.prove().await? {
                shadow::End::Found(verdict) => break verdict,
                shadow::End::Hindered(_) if tries < PROOF_TRIES => tries += 1,
                shadow::End::Hindered(why) => break Verdict::Unproven { why },
            }
        };
        if verdict != Verdict::Proven {
            return Ok(verdict);
        }
        // Two renderings within one second have the same time in seconds.
        tokio::time::sleep(CLOCK_TICK.saturating_sub(began.elapsed())).await;
        let again = self
            .rendered(
                plan.direction,
                &plan.before,
                target,
                ground.place.schema.is_some(),
            )
            .await?;
        match again {
            Ok(steps) if steps == plan.steps => Ok(Verdict::Proven),
            _ => Ok(Verdict::Refuted {
                why: "it renders different SQL each time".into(),
            }),
        }
    }
}

/// Why a plan cannot be rendered, for a person.
pub(super) fn why(refusal: &Refusal) -> String {
    match &refusal.revision {
        Some(revision) => format!("revision {revision}: {}", refusal.message),
        None => refusal.message.clone(),
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

fn to_revision(file: super::RevisionFile) -> Revision {
    Revision {
        id: file.revision,
        down: file.down,
        depends_on: file.depends_on,
        label: file.label,
        file: Some(file.file),
        down_file: None,
        checksum: Some(file.sha256),
        resumes: Vec::new(),
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
