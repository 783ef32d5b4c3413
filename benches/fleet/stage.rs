//! The throw-away cluster with its fleets: brought to where a task begins, and looked at when it is over.

use std::{collections::HashMap, path::PathBuf, process::Command};

use anyhow::{Context, bail, ensure};
use herder::throwaway::{Settings, ThrowawayPostgres};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use crate::{
    args::{Common, Task},
    feed::feed,
    project::{Ledger, Project},
    tenants::{Fleet, HOME, Tenant},
};

/// The control database.
pub(crate) const CONTROL: &str = "control";

/// How many connections bring tenants to where a task begins. Nobody times that.
const HANDS: usize = 8;

/// How many schemas one statement makes, or looks at: more in one transaction run out of lock memory.
const BATCH: usize = 200;

/// Where everything happens.
pub(crate) struct Stage {
    pub(crate) server: ThrowawayPostgres,
    pub(crate) project: Project,
    pub(crate) dir: tempfile::TempDir,
    programs: PathBuf,
}

impl Stage {
    /// Starts a server, makes the control database and renders the migrations.
    pub(crate) async fn set(common: &Common) -> anyhow::Result<Self> {
        let mut settings = Settings::default()
            .parameter("max_connections", 200)
            .parameter("max_locks_per_transaction", 256)
            .parameter("shared_buffers", "512MB")
            .parameter("max_wal_size", "4GB");
        if common.durable {
            settings = settings
                .parameter("fsync", "on")
                .parameter("full_page_writes", "on");
        }
        let server = tokio::task::spawn_blocking(move || ThrowawayPostgres::start_with(&settings)).await??;
        let dir = tempfile::Builder::new().prefix("herder-bench-").tempdir()?;
        let own = std::env::current_exe()?;
        let built = own.ancestors().nth(2).context("this program's folder")?;
        let migrations = dir.path().join("migrations");
        let stage = Self {
            project: tokio::task::spawn_blocking(|| Project::render(migrations)).await??,
            programs: common.programs.clone().unwrap_or_else(|| built.to_owned()),
            server,
            dir,
        };
        stage.fresh_control().await?;
        Ok(stage)
    }

    /// A control database as new, with a catalog of tenants in it.
    pub(crate) async fn fresh_control(&self) -> anyhow::Result<()> {
        self.fresh(CONTROL).await?;
        let config = format!(
            "control.url = '{0}'\ntenants.source = 'file'\ntenants.path = 'none.csv'\nservers.main.url = '{0}'
             runner.kind = 'sql'",
            self.server.url(CONTROL)
        );
        std::fs::write(self.dir.path().join("herder.toml"), config)?;
        let output = self.program("herder")?.arg("setup").output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let catalog =
            "create table tenants (n int generated always as identity, id text, database text, schema text)";
        self.tell(CONTROL, catalog).await
    }

    /// One of our programs, in the folder of `herder.toml`.
    pub(crate) fn program(&self, name: &str) -> anyhow::Result<Command> {
        let path = self.programs.join(name);
        if !path.exists() {
            bail!("{} is missing: `just bench` builds it", path.display());
        }
        let mut command = Command::new(path);
        command
            .current_dir(self.dir.path())
            .stdin(std::process::Stdio::null());
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if ["HERDER_", "PG", "RUST_LOG"].iter().any(|p| text.starts_with(p)) {
                command.env_remove(&name);
            }
        }
        Ok(command)
    }

    /// Writes the tenants into the catalog.
    pub(crate) async fn list(&self, tenants: &[Tenant]) -> anyhow::Result<()> {
        let mut control = self.connect(CONTROL).await?;
        sqlx::raw_sql("truncate tenants").execute(&mut control).await?;
        let column = |f: &dyn Fn(&Tenant) -> Option<String>| tenants.iter().map(f).collect::<Vec<_>>();
        sqlx::query("insert into tenants (id, database, schema) select * from unnest($1::text[], $2::text[], $3::text[])")
            .bind(column(&|t| Some(t.id.clone())))
            .bind(column(&|t| Some(t.database.clone())))
            .bind(column(&|t| t.schema.clone()))
            .execute(&mut control)
            .await?;
        Ok(control.close().await?)
    }

    /// Brings every tenant to where a task begins.
    pub(crate) async fn bring(&self, fleet: Fleet, task: Task) -> anyhow::Result<()> {
        let tenants = fleet.tenants();
        if task == Task::Twelve {
            return self.empty(fleet).await;
        }
        self.bring_back(fleet, task, tenants).await?;
        if matches!(fleet, Fleet::Schemas(_)) {
            self.vacuum(HOME).await?;
        }
        Ok(())
    }

    /// Removes the dead rows of a database's catalogs, and counts the others, as autovacuum does sooner or later. What one contender
    /// leaves there, and what was brought back, would slow down all that come after it; and Alembic's questions take twice as long where
    /// nobody has counted.
    async fn vacuum(&self, database: &str) -> anyhow::Result<()> {
        let catalogs = "select string_agg(oid::regclass::text, ', ') from pg_class
                        where relnamespace = 'pg_catalog'::regnamespace and relkind = 'r' and not relisshared";
        let catalogs: String = self.ask(database, catalogs).await?;
        self.tell(database, &format!("vacuum (analyze) {catalogs}")).await
    }

    /// Those that are not there are brought there, by the same statements that contenders apply.
    async fn bring_back(&self, fleet: Fleet, task: Task, tenants: Vec<Tenant>) -> anyhow::Result<()> {
        let mut seen = self.look(&tenants, Ledger::Alembic).await?;
        // A ledger alone is no good: a run from nothing leaves one of the two, and another fleet none.
        let files = self.look(&tenants, Ledger::Sqlx).await?;
        let astray = |(a, b): (&Seen, &Seen)| a.revision.is_none() || b.revision.is_none();
        if seen.iter().zip(&files).any(astray) {
            self.empty(fleet).await?;
            feed(self, &tenants, HANDS, &self.project.to_before()).await?;
            seen = self.look(&tenants, Ledger::Alembic).await?;
        }
        let at_head = task == Task::Nothing;
        let moved: Vec<Tenant> = tenants
            .into_iter()
            .zip(seen)
            .filter_map(|(tenant, seen)| (seen.migrated != at_head).then_some(tenant))
            .collect();
        let message = match at_head {
            true => self.project.to_head(),
            false => self.project.back(),
        };
        feed(self, &moved, HANDS, &message).await
    }

    /// Where each tenant stands, and whether what the last revision makes is there.
    pub(crate) async fn look(&self, tenants: &[Tenant], ledger: Ledger) -> anyhow::Result<Vec<Seen>> {
        let mut found = HashMap::with_capacity(tenants.len());
        let mut databases: HashMap<&str, Vec<&Tenant>> = HashMap::new();
        for tenant in tenants {
            databases.entry(&tenant.database).or_default().push(tenant);
        }
        for (database, members) in databases {
            // Databases of a fleet that was never made.
            let Ok(mut connection) = self.connect(database).await else {
                continue;
            };
            for some in members.chunks(BATCH) {
                found.extend(look_at(&mut connection, some, ledger).await?);
            }
            connection.close().await?;
        }
        Ok(tenants
            .iter()
            .map(|t| found.remove(&t.id).unwrap_or_default())
            .collect())
    }

    /// Makes the fleet's databases and schemas anew, with nothing in them.
    pub(crate) async fn empty(&self, fleet: Fleet) -> anyhow::Result<()> {
        match fleet {
            Fleet::Databases(_) => {
                for tenant in fleet.tenants() {
                    self.fresh(&tenant.database).await?;
                }
            }
            Fleet::Schemas(_) => {
                self.fresh(HOME).await?;
                self.make_schemas(&fleet.tenants()).await?;
            }
        }
        Ok(())
    }

    /// Makes schemas, with nothing in them.
    pub(crate) async fn make_schemas(&self, tenants: &[Tenant]) -> anyhow::Result<()> {
        let mut home = self.connect(HOME).await?;
        for some in tenants.chunks(BATCH) {
            let schemas = some.iter().filter_map(|t| t.schema.as_deref());
            let sql: String = schemas.map(|s| format!("create schema {s};")).collect();
            sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut home).await?;
        }
        Ok(home.close().await?)
    }

    /// Whether anything is in `public` of the database where the schemas are: it belongs to nobody.
    pub(crate) async fn public_is_empty(&self) -> anyhow::Result<bool> {
        let sql = "select count(*) from pg_class where relnamespace = 'public'::regnamespace";
        Ok(self.ask::<i64>(HOME, sql).await? == 0)
    }

    pub(crate) async fn fresh(&self, database: &str) -> anyhow::Result<()> {
        self.tell(
            "postgres",
            &format!("drop database if exists {database} with (force)"),
        )
        .await?;
        self.tell(
            "postgres",
            &format!("create database {database} strategy file_copy"),
        )
        .await
    }

    pub(crate) async fn connect(&self, database: &str) -> anyhow::Result<PgConnection> {
        Ok(PgConnection::connect(&self.server.url(database)).await?)
    }

    pub(crate) async fn tell(&self, database: &str, sql: &str) -> anyhow::Result<()> {
        let mut connection = self.connect(database).await?;
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(&mut connection)
            .await?;
        Ok(connection.close().await?)
    }

    pub(crate) async fn ask<T>(&self, database: &str, sql: &str) -> anyhow::Result<T>
    where
        T: for<'r> sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres> + Send + Unpin,
    {
        let mut connection = self.connect(database).await?;
        let query = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
        let answer = query.fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok(answer)
    }
}

/// What was seen in a tenant.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// What the ledger says. None: there is none.
    pub(crate) revision: Option<String>,
    /// Whether the last revision's column is there.
    pub(crate) migrated: bool,
}

/// Tenants of one database: which of them have a ledger and the column, and then what the ledgers say.
async fn look_at(
    connection: &mut PgConnection,
    tenants: &[&Tenant],
    ledger: Ledger,
) -> anyhow::Result<Vec<(String, Seen)>> {
    let (table, revision) = match ledger {
        Ledger::Alembic => ("alembic_version", "max(version_num)"),
        Ledger::Sqlx => ("_sqlx_migrations", "max(version)::text"),
    };
    let schema = |t: &Tenant| t.schema.clone().unwrap_or_else(|| "public".to_owned());
    let rows = sqlx::query(
        "select nspname::text,
                exists (select from pg_class where relnamespace = n.oid and relname = $2),
                exists (select from pg_class c join pg_attribute a on attrelid = c.oid
                        where relnamespace = n.oid and relname = 'tasks' and attname = 'priority' and not attisdropped)
         from pg_namespace n where nspname = any($1)",
    )
    .bind(tenants.iter().map(|t| schema(t)).collect::<Vec<_>>())
    .bind(table)
    .fetch_all(&mut *connection)
    .await?;
    let there = rows
        .iter()
        .map(|row| Ok((row.try_get(0)?, (row.try_get(1)?, row.try_get(2)?))))
        .collect::<Result<HashMap<String, (bool, bool)>, sqlx::Error>>()?;
    let mut seen: Vec<(String, Seen)> = Vec::with_capacity(tenants.len());
    let mut reads = Vec::new();
    for (i, tenant) in tenants.iter().enumerate() {
        let (ledger, migrated) = there.get(&schema(tenant)).copied().unwrap_or_default();
        if ledger {
            reads.push(format!("select {i}, {revision} from {}.{table}", schema(tenant)));
        }
        let revision = None;
        seen.push((tenant.id.clone(), Seen { revision, migrated }));
    }
    if !reads.is_empty() {
        let sql = AssertSqlSafe(reads.join(" union all "));
        for row in sqlx::raw_sql(sql).fetch_all(connection).await? {
            let at = usize::try_from(row.try_get::<i32, _>(0)?)?;
            seen[at].1.revision = row.try_get(1)?;
        }
    }
    Ok(seen)
}
