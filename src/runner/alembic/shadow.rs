//! The proof of a plan. In two scratch schemas (or databases) that stand where the plan begins, one is brought on by
//! live Alembic, the other by the plan. Then both must be the same, and nothing around them another than before.
//!
//! Never more than one connection is open: ours is closed while Alembic has its own. The scratch names carry a mark of
//! the fleet, whose proofs come one after the other, and the time: so a proof that was killed is cleared away by the
//! next one, or by another fleet's an hour later.

use std::{
    collections::BTreeSet,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rand::Rng;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tracing::warn;

use super::{
    Migrated, Migration, WarmError, WarmProcess, Whereabouts,
    digest::{Difference, catalog, difference, rows},
    fit,
    runner::{AlembicRunner, settings, to_error},
    said,
};
use crate::{
    database_url::DatabaseUrl,
    domain::{
        failure::cut,
        plan::{Plan, SCHEMA, StepForm},
        revision::Direction,
        tenant::Place,
    },
    runner::{
        RunnerError,
        apply::{Applied, NoJournal, Order, apply},
        proof::{Ground, Verdict},
    },
    secret::Secret,
    session::{TenantSession, connect_error, literal, quote},
};

/// How every scratch schema and database begins. No tenant may.
pub const SHADOW_PREFIX: &str = "herder_shadow_";

/// What `pg_stat_activity` calls a proof's connections, before its owner's mark.
const APPLICATION_NAME: &str = "herder/shadow/";

/// After how long a scratch schema is one that nobody removed.
const STALE: Duration = Duration::from_secs(60 * 60);

/// How long opening a connection may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How long the removal of the scratch schemas may take, when everything else was told to stop.
const CLEAR_LIMIT: Duration = Duration::from_secs(20);

/// How long a whole proof may take. Old revisions that need longer on empty tables wait for something.
const LIMIT: Duration = Duration::from_secs(10 * 60);

/// Why a proof ended early.
enum Stop {
    Refuted(String),
    Unproven(String),
    Error(RunnerError),
}

impl From<RunnerError> for Stop {
    fn from(error: RunnerError) -> Self {
        Self::Error(error)
    }
}

impl From<sqlx::Error> for Stop {
    fn from(error: sqlx::Error) -> Self {
        Self::Error(error.into())
    }
}

fn unproven<T>(why: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Unproven(why.into()))
}

/// It lies in the project, and not in the server that the proof is made on.
fn refuted<T>(why: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Refuted(why.into()))
}

/// A scratch tenant.
struct Scratch {
    name: String,
    url: DatabaseUrl,
    schema: Option<String>,
}

/// A proof in progress.
pub(super) struct Shadow<'a> {
    runner: &'a AlembicRunner,
    ground: Ground<'a>,
    plan: &'a Plan,
    /// Where the plan leads, as Alembic takes it.
    target: &'a str,
    live: Scratch,
    planned: Scratch,
    /// What its connections call themselves.
    name: String,
}

impl<'a> Shadow<'a> {
    pub(super) fn new(
        runner: &'a AlembicRunner,
        ground: Ground<'a>,
        plan: &'a Plan,
        target: &'a str,
    ) -> Result<Self, RunnerError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!(
            "{SHADOW_PREFIX}{}_{}_{:08x}",
            ground.owner,
            now.as_secs(),
            rand::rng().random::<u32>()
        );
        let scratch = |side: &str| {
            let name = format!("{name}_{side}");
            let database = ground.place.schema.is_none().then_some(name.as_str());
            let url = match database {
                None => ground.url.clone(),
                Some(_) => DatabaseUrl::for_database(&Secret::new(ground.url.expose()), database)
                    .map_err(|e| RunnerError::Connection(e.to_string()))?,
            };
            let schema = ground.place.schema.is_some().then(|| name.clone());
            Ok::<_, RunnerError>(Scratch { name, url, schema })
        };
        Ok(Self {
            live: scratch("a")?,
            planned: scratch("b")?,
            name: application_name(&ground),
            runner,
            ground,
            plan,
            target,
        })
    }

    /// Proves the plan. Whatever happens, the scratch schemas are gone afterwards, if that can be had at all.
    pub(super) async fn prove(self) -> Result<Verdict, RunnerError> {
        let cancel = self.ground.cancel;
        let proven = tokio::select! {
            proven = tokio::time::timeout(LIMIT, self.run()) => proven
                .unwrap_or_else(|_| unproven(format!("its proof was not done in {} min", LIMIT.as_secs() / 60))),
            () = cancel.cancelled() => Err(Stop::Error(RunnerError::Cancelled)),
        };
        // What is left is cleared away by a later proof, and proves nothing against the plan.
        let cleared = tokio::time::timeout(CLEAR_LIMIT, self.clear()).await;
        if let Err(error) = cleared.unwrap_or(Err(RunnerError::Silent(CLEAR_LIMIT))) {
            let (a, b) = (&self.live.name, &self.planned.name);
            warn!(%error, "Cannot remove the scratch schemas `{a}` and `{b}`; a later proof will");
        }
        match proven {
            Err(Stop::Error(error)) => Err(error),
            Err(Stop::Refuted(why)) => Ok(Verdict::Refuted { why }),
            Err(Stop::Unproven(why)) => Ok(Verdict::Unproven { why }),
            Ok(()) => Ok(Verdict::Proven),
        }
    }

    async fn run(&self) -> Result<(), Stop> {
        let mut on = open(self.ground.url, &self.ground).await?;
        sweep(&mut on, &self.ground).await;
        let before = self.outside(&mut on).await?;
        let since: String = sqlx::query_scalar("select clock_timestamp()::text")
            .fetch_one(&mut on)
            .await?;
        for scratch in [&self.live, &self.planned] {
            self.make(&mut on, scratch).await?;
        }
        close(on).await;

        // Before a process is taken: this asks for one of its own, and there may be no second.
        self.rehearse_beginning().await?;
        let mut process = self.runner.checkout().await?;
        self.look(&mut process).await?;
        self.bring_to_beginning(&mut process, &self.planned).await?;
        self.apply().await?;
        self.bring_to_beginning(&mut process, &self.live).await?;
        let done = self
            .migrate(&mut process, &self.live, self.plan.direction, self.target)
            .await?;
        drop(process);
        self.compare(&since).await?;
        let schema = self.live.schema.as_deref();
        let ledger = self.runner.version_table();
        if let Some(why) = said::difference(&done.said, &done.besides, self.plan, schema, ledger) {
            return refuted(why);
        }
        let mut on = open(self.ground.url, &self.ground).await?;
        let after = self.outside(&mut on).await?;
        close(on).await;
        match difference(&before, &after) {
            None => Ok(()),
            Some(Difference { gone, new }) => unproven(format!(
                "something outside the scratch schemas changed meanwhile: from [{gone}] to [{new}]"
            )),
        }
    }

    /// What must not change: `public` and what belongs to the whole database, unless that is the tenant.
    async fn outside(&self, on: &mut PgConnection) -> Result<Vec<String>, Stop> {
        match self.ground.place.schema.is_some() {
            true => Ok(catalog(on, Some("public")).await?),
            false => Ok(Vec::new()),
        }
    }

    async fn make(&self, on: &mut PgConnection, scratch: &Scratch) -> Result<(), Stop> {
        let what = if self.ground.place.schema.is_some() {
            "schema"
        } else {
            "database"
        };
        let made = on
            .execute(AssertSqlSafe(format!("create {what} {}", quote(&scratch.name))))
            .await;
        match made.map_err(RunnerError::from) {
            Ok(_) => Ok(()),
            Err(RunnerError::Database {
                sqlstate, message, ..
            }) => unproven(format!(
                "its proof needs a scratch {what} in {}: {message} ({sqlstate})",
                self.ground.url
            )),
            Err(e) => Err(e.into()),
        }
    }

    /// Asks env.py where it would go. One that ignores what it is told would migrate somebody's tenant.
    async fn look(&self, process: &mut WarmProcess) -> Result<(), Stop> {
        let settings = settings(self.ground.limits);
        let migration = self.migration(&self.live, Direction::Upgrade, "heads", &settings);
        let Whereabouts {
            database,
            schema,
            path,
            ledger,
            session,
            listens,
            besides,
        } = self.asked(
            process
                .look(self.runner.project(), &migration, &nothing_outside(&self.live))
                .await,
        )?;
        if database != self.live.url.database() {
            return refuted(format!(
                "env.py connects to database `{database}`, not to the one that it is given"
            ));
        }
        let own = self.live.schema.as_ref();
        if own.is_some_and(|own| schema.as_ref() != Some(own) || ledger.as_ref().is_some_and(|l| l != own)) {
            return refuted(format!(
                "env.py works in schema `{}` with its ledger in `{}`, not in the one that it is given",
                schema.as_deref().unwrap_or("none"),
                ledger.as_deref().unwrap_or("the same"),
            ));
        }
        self.has_all(&besides, &self.live)?;
        self.searches(&path).await?;
        if let Some(event) = listens {
            return unproven(format!(
                "env.py listens to `{event}` of its engine, and a plan is sent by another client"
            ));
        }
        match fit::deviation(self.plan, &session) {
            Some(why) => unproven(why),
            None => Ok(()),
        }
    }

    /// Whether a plan looks for names in the same schemas as env.py's connection: an operator that is not found makes another
    /// comparison, and `IF EXISTS` nothing at all.
    async fn searches(&self, live: &[String]) -> Result<(), Stop> {
        let mut on = open(&self.live.url, &self.ground).await?;
        let path = fit::search_path(self.plan)
            .map(|path| path.replace(SCHEMA, self.live.schema.as_deref().unwrap_or(SCHEMA)))
            .or_else(|| self.live.schema.as_deref().map(quote));
        if let Some(path) = path {
            on.execute(AssertSqlSafe(format!("set search_path to {path}")))
                .await?;
        }
        let planned: Vec<String> = sqlx::query_scalar("select current_schemas(false)::text[]")
            .fetch_one(&mut on)
            .await?;
        close(on).await;
        match planned == live {
            true => Ok(()),
            false => unproven(format!(
                "env.py's connection searches the schemas [{}], its script [{}]: let both set the same search_path",
                live.join(", "),
                planned.join(", ")
            )),
        }
    }

    /// What env.py says outside all revisions (a setting that triggers read, a refresh behind them), a plan must say, too.
    fn has_all(&self, besides: &[String], scratch: &Scratch) -> Result<(), Stop> {
        let bare = |sql: &str| {
            let words = sql
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" ")
                .to_lowercase();
            let words = words
                .replace("set local ", "set ")
                .replace("set session ", "set ");
            words.trim_end_matches(';').to_owned()
        };
        let own = scratch.schema.as_deref().unwrap_or(SCHEMA).to_lowercase();
        let placeholder = SCHEMA.to_lowercase();
        let planned = |said: &str| {
            let statements = self.plan.steps.iter().flat_map(|step| step.form.statements());
            statements.map(&bare).any(|sql| sql.contains(said))
        };
        let missing = besides
            .iter()
            .find(|said| !planned(&bare(said).replace(&own, &placeholder)));
        match missing {
            None => Ok(()),
            Some(said) => refuted(format!(
                "env.py says `{}` only where it is connected",
                cut(said, 120)
            )),
        }
    }

    /// The old revisions may reach out of their schema, too. Where they can be rendered, that shows in a transaction
    /// that is rolled back, before Alembic runs them.
    async fn rehearse_beginning(&self) -> Result<(), Stop> {
        let (Some(schema), 1, Some(target)) = (
            &self.planned.schema,
            self.plan.before.len(),
            self.plan.before.first(),
        ) else {
            return Ok(());
        };
        let empty = BTreeSet::new();
        let rendered = self
            .runner
            .rendered(Direction::Upgrade, &empty, target, true)
            .await?;
        let Ok(steps) = rendered else { return Ok(()) };
        let mut own = String::new();
        for step in &steps {
            let StepForm::Transaction { sql } = &step.form else {
                break;
            };
            own.push_str(&sql.replace(SCHEMA, schema));
        }
        let sql = format!(
            "begin; set local search_path = {};\n{}",
            quote(schema),
            kept_inside(&self.planned, &own)
        );
        let mut on = open(&self.planned.url, &self.ground).await?;
        let rehearsed = on.execute(sqlx::raw_sql(AssertSqlSafe(sql + "rollback"))).await;
        close(on).await;
        match rehearsed.map_err(RunnerError::from) {
            Err(error) if about_outside(&error).is_some() => refuted(format!(
                "its proof would run old revisions; one {}",
                about_outside(&error).unwrap_or_default()
            )),
            // What cannot be rehearsed may still run.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Brings a scratch tenant from the base to where the plan begins, by live Alembic.
    async fn bring_to_beginning(&self, process: &mut WarmProcess, scratch: &Scratch) -> Result<(), Stop> {
        if self.plan.before.is_empty() {
            return Ok(());
        }
        for head in &self.plan.before {
            self.migrate(process, scratch, Direction::Upgrade, head).await?;
        }
        let mut on = open(&scratch.url, &self.ground).await?;
        let ledger = self.ledger(&mut on, scratch).await;
        close(on).await;
        if ledger? != self.plan.before {
            return unproven("live Alembic does not get to where the plan begins");
        }
        Ok(())
    }

    async fn migrate(
        &self,
        process: &mut WarmProcess,
        scratch: &Scratch,
        direction: Direction,
        target: &str,
    ) -> Result<Migrated, Stop> {
        let settings = settings(self.ground.limits);
        let migration = self.migration(scratch, direction, target, &settings);
        let within = nothing_outside(scratch);
        let done = self.asked(
            process
                .migrate_within(self.runner.project(), &migration, &within)
                .await,
        )?;
        self.has_all(&done.besides, scratch)?;
        Ok(done)
    }

    fn migration<'b>(
        &'b self,
        scratch: &'b Scratch,
        direction: Direction,
        target: &'b str,
        settings: &'b std::collections::BTreeMap<String, String>,
    ) -> Migration<'b> {
        Migration {
            direction,
            target,
            url: scratch.url.expose(),
            scheme: self.runner.scheme(),
            schema: scratch.schema.as_deref(),
            application_name: &self.name,
            settings,
        }
    }

    fn asked<T>(&self, answer: Result<T, WarmError>) -> Result<T, Stop> {
        match answer {
            Ok(done) => Ok(done),
            Err(WarmError::Tool(error)) if error.message.starts_with(OUTSIDE) => refuted(format!(
                "{}live Alembic {}, outside the tenant's schema",
                at(error.revision.as_deref()),
                error.message[OUTSIDE.len()..].trim(),
            )),
            Err(WarmError::Tool(error)) => unproven(format!(
                "live Alembic fails in a scratch {}: {error}",
                if self.ground.place.schema.is_some() {
                    "schema"
                } else {
                    "database"
                }
            )),
            Err(other) => Err(to_error(other).into()),
        }
    }

    /// Brings the other scratch tenant on by the plan, as a worker does it. Before each commit, it is made sure that
    /// nothing outside the schema changes: afterwards it would be too late.
    async fn apply(&self) -> Result<(), Stop> {
        let mut plan = self.plan.clone();
        for step in &mut plan.steps {
            if let (StepForm::Transaction { sql }, Some(_)) = (&mut step.form, &self.planned.schema) {
                *sql = kept_inside(&self.planned, sql);
            }
        }
        let place = Place {
            database: self.planned.url.database(),
            schema: self.planned.schema.clone(),
            ..self.ground.place.clone()
        };
        let (url, limits) = (&self.planned.url, self.ground.limits);
        let mut session = TenantSession::open(url, &place, &self.name, limits, &[]).await?;
        // Steps outside a transaction want the tenant's lock to be held. Nobody else knows this one.
        let locked = plan.is_transactional() || session.try_lock().await?;
        let ledger = self.runner.ledger();
        let order = Order {
            plan: &plan,
            ledger: &ledger,
            name: &self.name,
            forget: false,
            journal: &NoJournal,
        };
        let applied = match locked {
            true => apply(&mut session, &order).await,
            false => Ok(Applied::Locked),
        };
        session.close().await;
        match applied {
            Ok(Applied::Done(ledger)) if ledger.revisions == self.plan.after => Ok(()),
            Ok(_) => unproven("the plan does not get to its own end"),
            Err(error @ (RunnerError::Connection(_) | RunnerError::Cancelled)) => Err(error.into()),
            Err(error) => unproven(match (about_outside(&error), &error) {
                (Some(what), RunnerError::Database { revision, .. }) => {
                    format!("{}{what}", at(revision.as_deref()))
                }
                (
                    _,
                    RunnerError::Database {
                        sqlstate,
                        message,
                        revision,
                        ..
                    },
                ) => {
                    format!(
                        "{}the plan fails: {message} ({sqlstate})",
                        at(revision.as_deref())
                    )
                }
                (_, other) => format!("the plan fails: {other}"),
            }),
        }
    }

    /// The rows of a scratch tenant's ledger.
    async fn ledger(&self, on: &mut PgConnection, scratch: &Scratch) -> Result<BTreeSet<String>, Stop> {
        let table = quote(self.runner.version_table());
        let table = match &scratch.schema {
            Some(schema) => format!("{}.{table}", quote(schema)),
            None => table,
        };
        let exists: bool = sqlx::query_scalar("select to_regclass($1) is not null")
            .bind(&table)
            .persistent(false)
            .fetch_one(&mut *on)
            .await?;
        if !exists {
            return Ok(BTreeSet::new());
        }
        let rows: Vec<String> =
            sqlx::query_scalar(AssertSqlSafe(format!("select version_num::text from {table}")))
                .persistent(false)
                .fetch_all(on)
                .await?;
        Ok(rows.into_iter().collect())
    }

    /// Whether both scratch tenants are the same now.
    async fn compare(&self, since: &str) -> Result<(), Stop> {
        let live = self.digest(&self.live, since).await?;
        let planned = self.digest(&self.planned, since).await?;
        match difference(&live, &planned) {
            None => Ok(()),
            Some(Difference { gone, new }) => refuted(format!(
                "the plan does not do what live Alembic does: live gives [{gone}], the plan gives [{new}]"
            )),
        }
    }

    async fn digest(&self, scratch: &Scratch, since: &str) -> Result<Vec<String>, Stop> {
        let mut on = open(&scratch.url, &self.ground).await?;
        let schema = scratch.schema.as_deref();
        let lines = async {
            let mut lines = catalog(&mut on, schema).await?;
            lines.extend(rows(&mut on, schema, since).await?);
            Ok::<_, RunnerError>(lines)
        }
        .await;
        close(on).await;
        Ok(lines?)
    }

    /// Removes the scratch schemas, whether they were made or not.
    async fn clear(&self) -> Result<(), RunnerError> {
        let mut on = open(self.ground.url, &self.ground).await?;
        let mut cleared = Ok(());
        for scratch in [&self.live, &self.planned] {
            cleared = remove(&mut on, &scratch.name, self.ground.place.schema.is_some())
                .await
                .and(cleared);
        }
        close(on).await;
        cleared
    }
}

/// The major version of the server: another one may take the same SQL for something else.
pub(super) async fn postgres_major(ground: Ground<'_>) -> Result<i32, RunnerError> {
    let mut on = open(ground.url, &ground).await?;
    let version = sqlx::query_scalar("select current_setting('server_version_num')::int / 10000")
        .fetch_one(&mut on)
        .await;
    close(on).await;
    Ok(version?)
}

fn at(revision: Option<&str>) -> String {
    revision.map(|r| format!("revision {r}: ")).unwrap_or_default()
}

pub(super) fn application_name(ground: &Ground<'_>) -> String {
    format!("{APPLICATION_NAME}{}", ground.owner)
}

/// The one connection of a proof.
async fn open(url: &DatabaseUrl, ground: &Ground<'_>) -> Result<PgConnection, RunnerError> {
    let options = url
        .options()
        .map_err(|e| RunnerError::Connection(e.to_string()))?
        .application_name(&application_name(ground))
        .options(settings(ground.limits))
        // What a schema is, is asked in one long statement: compiled, it takes ten times as long.
        .options([("jit", "off")]);
    tokio::time::timeout(CONNECT_LIMIT, PgConnection::connect_with(&options))
        .await
        .map_err(|_| {
            RunnerError::Connection(format!("{} did not answer in {CONNECT_LIMIT:?}", url.address()))
        })?
        .map_err(|e| connect_error(e, url))
}

async fn close(on: PgConnection) {
    // A connection that is broken already is closed, too.
    let _ = on.close().await;
}

/// Begins the message of [`nothing_outside`].
const OUTSIDE: &str = "outside the tenant's schema: ";

/// A statement that fails where the open transaction has changed anything outside a scratch schema, or in another
/// database than a scratch one. Reading elsewhere, and referring to it, is no change.
fn nothing_outside(scratch: &Scratch) -> String {
    let database = match scratch.schema {
        Some(_) => "",
        None => scratch.name.as_str(),
    };
    include_str!("nothing_outside.sql")
        .replace("{schema}", &literal(&scratch.name))
        .replace("{database}", &literal(database))
        .replace("{outside}", &literal(OUTSIDE))
}

/// A transaction's statements, with all around them that makes it fail where they change or drop anything outside a
/// scratch schema.
fn kept_inside(scratch: &Scratch, sql: &str) -> String {
    let before = include_str!("dropped_outside.sql").replace("{schema}", &literal(&scratch.name));
    let dropped = format!(
        "do $herder$ declare seen refcursor := 'herder_outside'; what text; begin
         fetch seen into what;
         if what is not null then raise exception using message = {} || what; end if;
         end $herder$;",
        literal(OUTSIDE)
    );
    format!("{before}\n{sql}\n{dropped}\n{}", nothing_outside(scratch))
}

/// What a transaction would have changed outside its schema.
fn about_outside(error: &RunnerError) -> Option<String> {
    match error {
        RunnerError::Database { message, .. } => {
            let what = message.strip_prefix(OUTSIDE)?;
            Some(format!("{what}, outside the tenant's schema"))
        }
        _ => None,
    }
}

/// Removes what earlier proofs left behind, as far as we may: their sessions first, which may be in the middle of
/// something there, and count against the budget.
async fn sweep(on: &mut PgConnection, ground: &Ground<'_>) {
    let _ = sqlx::query(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity
         where application_name = $1 and pid <> pg_backend_pid() and usename = current_user
           and (datname = current_database() or starts_with(datname, $2))",
    )
    .bind(application_name(ground))
    .bind(format!("{SHADOW_PREFIX}{}_", ground.owner))
    .persistent(false)
    .execute(&mut *on)
    .await;
    let list = match ground.place.schema.is_some() {
        true => "select nspname::text from pg_namespace where nspname like 'herder\\_shadow\\_%'",
        false => "select datname::text from pg_database where datname like 'herder\\_shadow\\_%'",
    };
    let names: Vec<String> = sqlx::query_scalar(list)
        .fetch_all(&mut *on)
        .await
        .unwrap_or_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    for name in names
        .iter()
        .filter(|name| is_left_behind(name, ground.owner, now))
    {
        // Somebody else's, perhaps.
        let _ = remove(on, name, ground.place.schema.is_some()).await;
    }
}

/// Whether nobody needs a scratch schema any more: it is ours, or another's and an hour old.
fn is_left_behind(name: &str, owner: &str, now: Duration) -> bool {
    let mut parts = name.strip_prefix(SHADOW_PREFIX).unwrap_or_default().split('_');
    let (whose, made) = (parts.next().unwrap_or_default(), parts.next());
    match made.and_then(|seconds| seconds.parse().ok()) {
        Some(made) => whose == owner || Duration::from_secs(made) + STALE < now,
        None => false,
    }
}

async fn remove(on: &mut PgConnection, name: &str, is_schema: bool) -> Result<(), RunnerError> {
    let name = quote(name);
    let sql = match is_schema {
        true => format!("drop schema if exists {name} cascade"),
        false => format!("drop database if exists {name} with (force)"),
    };
    on.execute(AssertSqlSafe(sql)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ours_or_old_is_left_behind() {
        let now = Duration::from_secs(10_000);
        let left = |name: &str| is_left_behind(name, "0a1b", now);
        assert!(left("herder_shadow_ffff_6399_ab_a"));
        assert!(!left("herder_shadow_ffff_6400_ab_a"));
        assert!(left("herder_shadow_0a1b_9999_ab_a"));
        assert!(!left("herder_shadow_0a1b_x_1"));
        assert!(!left("acme_0a1b_6399"));
    }
}
