//! The harness: a fleet of tenants on a real Postgres, driven from outside, by the binaries that are shipped.
//!
//! A [`Fleet`] has a control database, a database for its tenants, a folder with `herder.toml` and migrations, and
//! starts `herder` and `herder-worker` as an operator does. Nothing sleeps to wait: [`Fleet::wait_until`] asks again
//! until a condition holds, and says what it saw last if it never does. A migration can wait for the test: see [`Gate`].

mod cluster;
mod door;
mod gate;
mod process;
mod project;
mod setup;
mod wire;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool, Postgres, Transaction};

pub(crate) use self::cluster::Cluster;
pub(crate) use self::door::{Door, Way};
pub(crate) use self::gate::Gate;
pub(crate) use self::process::{Herder, Output, Worker};
pub(crate) use self::project::{Project, Step, Tool, steps};
pub(crate) use self::setup::{Setup, Tenant};
pub(crate) use self::wire::Wire;

/// How long a condition may take to come true. Far more than any needs, so that a busy machine fails no test.
const LIMIT: Duration = Duration::from_secs(120);

/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// A fleet: tenants, a config, and the two databases around them. See [`Setup`] for how one comes about.
pub(crate) struct Fleet {
    pub(crate) tenants: Vec<Tenant>,
    /// The control database.
    pub(crate) control: PgPool,
    /// The database that the schemas are in.
    pub(crate) home: PgPool,
    pub(crate) cluster: Arc<Cluster>,
    /// What all names of this fleet begin with.
    prefix: String,
    dir: tempfile::TempDir,
    project: Project,
    logs: Mutex<Vec<PathBuf>>,
}

impl Fleet {
    /// The folder of `herder.toml`.
    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Changes `herder.toml`.
    pub(crate) fn configure(&self, change: impl FnOnce(&mut toml::Table)) {
        let path = self.dir().join("herder.toml");
        let text = std::fs::read_to_string(&path).expect("herder.toml");
        let mut config = text.parse().expect("TOML");
        change(&mut config);
        std::fs::write(path, toml::to_string(&config).expect("TOML")).expect("herder.toml");
    }

    /// The migrations, as they were written.
    pub(crate) fn project(&self) -> &Project {
        &self.project
    }

    /// Runs `herder` to its end.
    pub(crate) async fn herder(&self, args: &[&str]) -> Output {
        self.start_herder(args).end().await
    }

    /// Starts `herder`.
    pub(crate) fn start_herder(&self, args: &[&str]) -> Herder {
        Herder::start(self.dir(), args)
    }

    /// Starts `herder` with these variables in its environment.
    pub(crate) fn start_herder_with(&self, args: &[&str], env: &[(&str, &str)]) -> Herder {
        Herder::start_with(self.dir(), args, env)
    }

    /// Runs `herder` to its end, with these variables in its environment.
    pub(crate) async fn herder_with(&self, args: &[&str], env: &[(&str, &str)]) -> Output {
        Herder::start_with(self.dir(), args, env).end().await
    }

    /// Runs a script, which finds the programs on its PATH.
    pub(crate) async fn shell(&self, script: &str, env: &[(&str, &str)]) -> Output {
        Herder::shell(self.dir(), script, env).end().await
    }

    /// Starts a worker. Its log is shown when a condition does not come true.
    pub(crate) fn worker(&self, args: &[&str]) -> Worker {
        self.worker_with(args, &[])
    }

    /// A wire to the server of the control database, and one to the tenants'.
    pub(crate) async fn wires(&self) -> (Wire, Wire) {
        let control = self.control.connect_options().get_port();
        let home = self.home.connect_options().get_port();
        (Wire::to(control).await, Wire::to(home).await)
    }

    /// Starts a worker that reaches its servers over these wires only.
    pub(crate) fn worker_over(&self, control: &Wire, tenants: &Wire, args: &[&str]) -> Worker {
        let config = self.config_over(control, tenants);
        self.worker(&[&["--config", &config], args].concat())
    }

    /// A config with which the servers are reached over these wires only.
    pub(crate) fn config_over(&self, control: &Wire, tenants: &Wire) -> String {
        let path = self.dir().join("herder.toml");
        let text = std::fs::read_to_string(&path).expect("herder.toml");
        let mut config: toml::Table = text.parse().expect("TOML");
        let mut over = |table: &[&str], wire: &Wire| {
            let table = table.iter().fold(&mut config, |table, name| {
                table[*name].as_table_mut().expect("a table")
            });
            let mut url: url::Url = table["url"].as_str().and_then(|u| u.parse().ok()).expect("a URL");
            url.set_port(Some(wire.port())).expect("a port");
            table["url"] = toml::Value::String(url.into());
        };
        over(&["control"], control);
        over(&["tenants"], control);
        over(&["servers", "main"], tenants);
        let name = format!("wired-{}.toml", control.port());
        std::fs::write(self.dir().join(&name), toml::to_string(&config).expect("TOML")).expect("a config");
        name
    }

    /// Starts a worker with these variables in its environment.
    pub(crate) fn worker_with(&self, args: &[&str], env: &[(&str, &str)]) -> Worker {
        let mut logs = self.logs();
        let log = self.dir().join(format!("worker-{}.log", logs.len() + 1));
        logs.push(log.clone());
        Worker::start(self.dir(), log, args, env)
    }

    /// The logs of all workers so far.
    pub(crate) fn logs(&self) -> std::sync::MutexGuard<'_, Vec<PathBuf>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `herder status --output-format json`.
    pub(crate) async fn status(&self) -> Value {
        let output = self.herder(&["status", "--output-format", "json"]).await;
        output.expect(0).json()
    }

    /// The job of a tenant in the latest run.
    pub(crate) async fn job(&self, tenant: &str) -> Value {
        let status = self.status().await;
        let jobs = status["jobs"].as_array().expect("jobs");
        let job = jobs.iter().find(|job| job["tenant"] == tenant);
        job.unwrap_or_else(|| panic!("no job of {tenant} in {status:#}"))
            .clone()
    }

    /// How many jobs of the latest run are in a state. From the table itself: it is asked often.
    pub(crate) async fn count(&self, state: &str) -> i64 {
        self.ask(&format!(
            "select count(*) from herder.job where state = '{state}'
             and run_id = (select id from herder.run order by created_at desc limit 1)"
        ))
        .await
    }

    /// The latest run's state.
    pub(crate) async fn state(&self) -> String {
        self.ask("select coalesce((select state from herder.run order by created_at desc limit 1), 'none')")
            .await
    }

    /// Waits until the latest run is over, and says how it ended.
    pub(crate) async fn over(&self) -> String {
        self.wait_until("the run is over", async || {
            !["running", "paused"].contains(&self.state().await.as_str())
        })
        .await;
        self.state().await
    }

    /// Every job of the latest run that had something to do was given a plan.
    pub(crate) async fn assert_by_plan(&self) {
        let live: i64 = self
            .ask(
                "select count(*) from herder.job where plan_id is null and outcome is distinct from 'already_current'
                 and run_id = (select id from herder.run order by created_at desc limit 1)",
            )
            .await;
        let plan = self.herder(&["plan"]).await;
        assert_eq!(live, 0, "{}", plan.all());
    }

    /// Asks the control database for one value.
    pub(crate) async fn ask<T>(&self, sql: &str) -> T
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        ask(&self.control, sql).await
    }

    /// Runs statements in the control database.
    pub(crate) async fn tell(&self, sql: &str) {
        tell(&self.control, sql).await;
    }

    /// Waits until so many runs have succeeded.
    pub(crate) async fn succeeded(&self, runs: i64) {
        self.wait_until("the runs have succeeded", async || {
            let succeeded = "select count(*) from herder.run where state = 'succeeded'";
            self.ask::<i64>(succeeded).await == runs
        })
        .await;
    }

    /// Locks a table of the control database, for as long as the transaction lives.
    pub(crate) async fn lock(&self, table: &str, mode: &str) -> Transaction<'static, Postgres> {
        let mut tx = self.control.begin().await.expect("a transaction");
        sqlx::raw_sql(AssertSqlSafe(format!("lock table {table} in {mode} mode")))
            .execute(&mut *tx)
            .await
            .expect("a lock");
        tx
    }

    /// Waits until somebody waits for a lock on a table of the control database.
    pub(crate) async fn wait_at_lock(&self, table: &str) {
        let waits = format!(
            "select count(*) from pg_locks where relation = '{table}'::regclass and not granted
             and database = (select oid from pg_database where datname = current_database())"
        );
        self.wait_until(&format!("somebody waits for {table}"), async || {
            self.ask::<i64>(&waits).await == 1
        })
        .await;
    }

    /// Waits until a condition holds.
    pub(crate) async fn wait_until(&self, what: &str, condition: impl AsyncFn() -> bool) {
        self.wait_for(LIMIT, what, condition).await;
    }

    /// Waits for what a thousand tenants take.
    pub(crate) async fn wait_long(&self, what: &str, condition: impl AsyncFn() -> bool) {
        self.wait_for(10 * LIMIT, what, condition).await;
    }

    async fn wait_for(&self, limit: Duration, what: &str, condition: impl AsyncFn() -> bool) {
        let deadline = Instant::now() + limit;
        while !condition().await {
            if Instant::now() > deadline {
                panic!("waited in vain until {what}\n{}", self.last_seen().await);
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// What there is to see when something did not come true.
    pub(crate) async fn last_seen(&self) -> String {
        let status = self.herder(&["status"]).await;
        let mut text = format!("{}{}", status.stdout, status.stderr);
        for log in self.logs().iter() {
            let lines = std::fs::read_to_string(log).unwrap_or_default();
            let tail: Vec<&str> = lines.lines().rev().take(40).collect();
            text += &format!("\n--- {}\n", log.display());
            text.extend(tail.into_iter().rev().flat_map(|line| [line, "\n"]));
        }
        text
    }

    /// What was done in a tenant, in order: each migration writes a line whenever it runs, up or down.
    pub(crate) async fn effects(&self, tenant: &Tenant) -> Vec<String> {
        let sql = format!("select step from {}.effects order by n", tenant.schema_name());
        match &tenant.database {
            None => list(&self.home, &sql).await,
            Some(database) => {
                let pool = self.pool(database);
                let effects = list(&pool, &sql).await;
                pool.close().await;
                effects
            }
        }
    }

    /// Every tenant saw exactly these effects, each once and in this order.
    pub(crate) async fn assert_effects(&self, expected: &[&str]) {
        for tenant in &self.tenants {
            let effects = self.effects(tenant).await;
            assert_eq!(effects, expected, "{}\n{}", tenant.id, self.last_seen().await);
        }
    }

    /// Nothing of anybody's is in `public` of the database where the schemas are.
    pub(crate) async fn assert_public_untouched(&self) {
        let found = list(
            &self.home,
            "select relname::text from pg_class where relnamespace = 'public'::regnamespace
             union all select proname::text from pg_proc where pronamespace = 'public'::regnamespace
             union all select typname::text from pg_type where typnamespace = 'public'::regnamespace",
        )
        .await;
        assert_eq!(found, Vec::<String>::new());
    }

    /// How many slots are taken for tenants.
    pub(crate) async fn slots(&self) -> i64 {
        self.ask("select count(*) from herder.slot where purpose <> 'control'")
            .await
    }

    /// How many sessions Herder's attempts have open in the database where the schemas are.
    pub(crate) async fn sessions(&self) -> i64 {
        ask(
            &self.home,
            "select count(*) from pg_stat_activity
             where application_name like 'herder/%' and datname = current_database()",
        )
        .await
    }

    /// How many sessions commands have open in the control database.
    pub(crate) async fn enqueuers(&self) -> i64 {
        self.ask(
            "select count(*) from pg_stat_activity
             where application_name = 'herder' and datname = current_database()",
        )
        .await
    }

    /// A database of this fleet, by the end of its name.
    pub(crate) fn database(&self, name: &str) -> String {
        format!("{}_{name}", self.prefix)
    }

    /// A few connections to a database on the tenants' server.
    pub(crate) fn pool(&self, database: &str) -> PgPool {
        setup::pool(&self.cluster, database)
    }
}

/// Asks for one value.
pub(crate) async fn ask<T>(pool: &PgPool, sql: &str) -> T
where
    T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
{
    let query = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
    query.fetch_one(pool).await.expect(sql)
}

/// Asks for one text a row.
pub(crate) async fn list(pool: &PgPool, sql: &str) -> Vec<String> {
    let query = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
    query.fetch_all(pool).await.expect(sql)
}

/// Runs statements.
pub(crate) async fn tell(pool: &PgPool, sql: &str) {
    let statements = sqlx::raw_sql(AssertSqlSafe(sql.to_owned()));
    statements.execute(pool).await.expect(sql);
}
