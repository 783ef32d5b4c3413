//! One tenant on a real server, and an attempt at it without the flow around it.

use std::{path::Path, time::Duration};

use herder::{
    config::{LimitsConfig, RunnerConfig},
    database_url::DatabaseUrl,
    domain::{
        job::{AttemptId, Claim},
        revision::{Direction, Ledger, Position, Target},
        run::RunId,
        tenant::Place,
    },
    runner::{MigrationRunner, Subject, Work},
    session::TenantSession,
    tenant_error::TenantError,
};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio_util::sync::CancellationToken;

/// How long a test waits for what must happen. Far more than it takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A tenant in a database of its own test.
pub(crate) struct Tenant {
    pub(crate) url: DatabaseUrl,
    pub(crate) limits: LimitsConfig,
    pub(crate) cancel: CancellationToken,
    run: RunId,
    place: Place,
}

impl Tenant {
    /// A tenant in this schema of a new database, or in all of one.
    pub(crate) async fn new(schema: Option<&str>) -> Self {
        Self::with(schema, "").await
    }

    /// The same, with these options of CREATE DATABASE.
    pub(crate) async fn with(schema: Option<&str>, options: &str) -> Self {
        let server = crate::server::shared().await;
        let run = RunId::new_v4();
        let database = format!("t{}", run.simple());
        execute(
            &mut connect(&server.url("postgres")).await,
            &format!("create database {database} {options}"),
        )
        .await;
        let url = server.url(&database);
        if let Some(schema) = schema {
            let quoted = herder::session::quote(schema);
            execute(&mut connect(&url).await, &format!("create schema {quoted}")).await;
        }
        Self {
            url: DatabaseUrl::parse(&url).expect("a URL"),
            // A wait for a test's lock ends when the test says so.
            limits: LimitsConfig {
                lock_timeout: PATIENCE,
                ..LimitsConfig::default()
            },
            cancel: CancellationToken::new(),
            run,
            place: Place {
                server: "main".into(),
                database,
                schema: schema.map(str::to_owned),
            },
        }
    }

    /// A connection of the test's own.
    pub(crate) async fn admin(&self) -> PgConnection {
        connect(self.url.expose()).await
    }

    /// A connection that sees the tenant as its application does.
    pub(crate) async fn application(&self) -> PgConnection {
        let mut connection = self.admin().await;
        if let Some(schema) = &self.place.schema {
            let path = format!("set search_path = {}", herder::session::quote(schema));
            execute(&mut connection, &path).await;
        }
        connection
    }

    /// The one value that a query gives, as text.
    pub(crate) async fn value(&self, query: &str) -> String {
        value(&mut self.application().await, query).await
    }

    /// Runs statements as the application would.
    pub(crate) async fn execute(&self, sql: &str) {
        execute(&mut self.application().await, sql).await;
    }

    pub(crate) fn claim(&self, direction: Direction, target: &str) -> Claim {
        Claim {
            attempt: AttemptId { job: 1, epoch: 1 },
            run: self.run,
            tenant: "acme".into(),
            place: self.place.clone(),
            own_url: false,
            direction,
            target: target.parse().expect("a target"),
            from: None,
            to: Position::Unknown,
            checksum: String::new(),
            failures: 0,
            in_doubt: false,
            blocked: None,
            plan: None,
            looks: false,
            trace: None,
            slots: vec![1],
        }
    }

    pub(crate) fn subject(&self) -> Subject<'_> {
        Subject {
            tenant: "acme",
            place: &self.place,
            url: &self.url,
        }
    }

    pub(crate) async fn session(&self) -> TenantSession {
        let claim = self.claim(Direction::Upgrade, "head");
        let name = claim.label().to_string();
        let session = TenantSession::open(&self.url, &self.place, &name, &self.limits, &[]).await;
        session.expect("a session")
    }

    pub(crate) async fn ledger(&self, runner: &dyn MigrationRunner) -> Vec<String> {
        let mut session = self.session().await;
        let ledger = runner
            .read_ledger(&mut session, self.subject())
            .await
            .expect("a ledger");
        ledger.revisions.into_iter().collect()
    }

    /// An attempt, as the flow makes it, with a connection that is closed in the end.
    pub(crate) async fn attempt(
        &self,
        runner: &dyn MigrationRunner,
        direction: Direction,
        target: &str,
    ) -> Result<(), TenantError> {
        let mut session = self.session().await;
        let done = self.attempt_on(&mut session, runner, direction, target).await;
        session.close().await;
        done
    }

    pub(crate) async fn attempt_on(
        &self,
        session: &mut TenantSession,
        runner: &dyn MigrationRunner,
        direction: Direction,
        target: &str,
    ) -> Result<(), TenantError> {
        // A closed session lingers on the server for a moment, and its lock with it.
        let lock = async {
            while !session.try_lock().await.expect("an answer") {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let locked = tokio::time::timeout(PATIENCE, lock).await;
        assert!(locked.is_ok(), "somebody holds the tenant");
        self.work_on(session, runner, direction, target).await
    }

    /// An attempt that does not ask whether it may.
    pub(crate) async fn work_on(
        &self,
        session: &mut TenantSession,
        runner: &dyn MigrationRunner,
        direction: Direction,
        target: &str,
    ) -> Result<(), TenantError> {
        let history = runner.history().await?;
        let ledger: Ledger = runner.read_ledger(session, self.subject()).await?;
        let goal: Target = target.parse().expect("a target");
        let to = history.resolve(&goal, &ledger)?;
        let pending = history.pending(direction, to.as_deref(), &ledger)?;
        let pending: Vec<String> = pending.iter().map(|r| r.id.clone()).collect();
        let from = history.describe(&ledger);
        let work = Work {
            claim: &self.claim(direction, target),
            history: &history,
            from: from.as_deref(),
            to: to.as_deref(),
            pending: &pending,
            url: &self.url,
            limits: &self.limits,
            stillness: Duration::from_secs(60),
            cancel: &self.cancel,
            halves: &(),
        };
        runner.migrate(session, &work).await
    }

    pub(crate) async fn upgrade(&self, runner: &dyn MigrationRunner) -> Result<(), TenantError> {
        self.attempt(runner, Direction::Upgrade, "head").await
    }

    /// All that stands in the database outside the system's schemas, with the number of rows of each table.
    pub(crate) async fn content(&self) -> String {
        value(
            &mut self.admin().await,
            "select coalesce(string_agg(format('%s.%s %s %s', n.nspname, c.relname, c.relkind, \
               case when c.relkind = 'r' then (xpath('/row/c/text()', query_to_xml(format('select count(*) as c from %I.%I', \
                 n.nspname, c.relname), false, true, '')))[1]::text end), E'\\n' order by 1, c.relname), '') \
             from pg_class c join pg_namespace n on n.oid = c.relnamespace \
             where n.nspname !~ '^(pg_|information_schema)'",
        )
        .await
    }

    /// Waits until so many sessions of the database wait for a lock of the test's.
    pub(crate) async fn waits_for_a_lock(&self) {
        self.becomes(
            "a session waits for a lock",
            "select count(*) > 0 from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'",
        )
        .await;
    }

    /// Waits until no session of an attempt is left in the database.
    pub(crate) async fn is_left_alone(&self) {
        self.becomes(
            "all sessions of the attempt are gone",
            "select count(*) = 0 from pg_stat_activity where datname = current_database() and application_name like 'herder/%'",
        )
        .await;
    }

    pub(crate) async fn becomes(&self, what: &str, query: &str) {
        let mut admin = self.admin().await;
        let query = format!("select ({query})::text");
        let wait = async {
            while value(&mut admin, &query).await != "true" {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, wait).await;
        assert!(waited.is_ok(), "waited in vain until {what}");
    }
}

pub(crate) fn build(config: &RunnerConfig) -> std::sync::Arc<dyn MigrationRunner> {
    herder::runner::build(config, 1).expect("a runner")
}

pub(crate) fn write(folder: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        std::fs::write(folder.join(name), text).expect("a file");
    }
}

pub(crate) async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.expect("a connection")
}

pub(crate) async fn execute(on: &mut PgConnection, sql: &str) {
    let done = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(on).await;
    assert!(done.is_ok(), "{sql}: {done:?}");
}

pub(crate) async fn value(on: &mut PgConnection, query: &str) -> String {
    let row = sqlx::raw_sql(AssertSqlSafe(query.to_owned())).fetch_one(on).await;
    match row.and_then(|row| sqlx::Row::try_get::<Option<String>, _>(&row, 0)) {
        Ok(value) => value.unwrap_or_default(),
        Err(error) => panic!("{query}: {error}"),
    }
}
