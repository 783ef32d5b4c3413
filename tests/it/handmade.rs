//! What the tests of warm Alembic processes stand on: a database, a tenant, and a project that each writes for itself.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use herder::domain::revision::Direction;
use herder::runner::alembic::{Launch, Migration, Project, ToolError, WarmError, WarmProcess};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, Executor as _};
use tempfile::TempDir;

/// The server's URL, without a database.
pub(crate) async fn server() -> String {
    crate::server::shared()
        .await
        .url("")
        .trim_end_matches('/')
        .to_owned()
}

/// The realistic project.
pub(crate) fn saas(ini: &str) -> Project {
    Project::new(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("examples/alembic-saas")
            .join(ini),
    )
}

pub(crate) fn launch() -> Launch {
    Launch {
        python: crate::venv::python(),
        env_remove: vec!["CARGO_PKG_NAME".to_owned()],
    }
}

pub(crate) async fn warm() -> WarmProcess {
    WarmProcess::spawn(&launch())
        .await
        .expect("a Python with Alembic")
}

/// A database of its own for each test.
pub(crate) struct Database {
    pub(crate) url: String,
    pub(crate) pool: PgPool,
}

impl Database {
    pub(crate) async fn new() -> Self {
        let name = format!("t_{}", uuid::Uuid::new_v4().simple());
        let admin = PgPool::connect(&format!("{}/postgres", server().await))
            .await
            .expect("a server");
        admin
            .execute(AssertSqlSafe(format!("create database {name}")))
            .await
            .expect("a database");
        let url = format!("{}/{name}", server().await);
        let options: PgConnectOptions = url.parse().expect("a URL");
        let pool = PgPoolOptions::new()
            .max_connections(3)
            .connect_with(options.application_name("test"))
            .await
            .expect("a connection");
        Self { url, pool }
    }

    pub(crate) async fn run(&self, sql: &str) {
        self.pool.execute(AssertSqlSafe(sql.to_owned())).await.expect(sql);
    }

    pub(crate) async fn text(&self, sql: &str) -> Option<String> {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_one(&self.pool)
            .await
            .expect(sql)
    }

    pub(crate) async fn count(&self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
            .fetch_one(&self.pool)
            .await
            .expect(sql)
    }

    /// The connections of migrations in this database.
    pub(crate) async fn sessions(&self) -> i64 {
        self.count(
            "select count(*) from pg_stat_activity where datname = current_database() and application_name <> 'test'",
        )
        .await
    }
}

/// Waits for a condition; says what the last look at it saw when it takes too long.
pub(crate) async fn until<T: PartialEq + std::fmt::Debug>(what: &str, wanted: T, look: impl AsyncFn() -> T) {
    let start = Instant::now();
    loop {
        let seen = look().await;
        if seen == wanted {
            return;
        }
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{what}: still {seen:?}"
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One tenant's migration with sensible values.
pub(crate) struct Tenant<'a> {
    pub(crate) url: &'a str,
    pub(crate) schema: Option<&'a str>,
    pub(crate) scheme: Option<&'a str>,
    pub(crate) settings: BTreeMap<String, String>,
}

impl<'a> Tenant<'a> {
    pub(crate) fn new(url: &'a str) -> Self {
        let settings = [("lock_timeout", "3s"), ("statement_timeout", "15min")];
        let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self {
            url,
            schema: None,
            scheme: None,
            settings: settings.into(),
        }
    }

    pub(crate) fn schema(self, schema: &'a str) -> Self {
        Self {
            schema: Some(schema),
            ..self
        }
    }

    pub(crate) fn scheme(self, scheme: &'a str) -> Self {
        Self {
            scheme: Some(scheme),
            ..self
        }
    }

    pub(crate) fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.insert(name.to_owned(), value.to_owned());
        self
    }

    pub(crate) fn to<'b>(&'b self, direction: Direction, target: &'b str) -> Migration<'b> {
        Migration {
            direction,
            target,
            url: self.url,
            scheme: self.scheme,
            schema: self.schema,
            application_name: "herder/run/job/1",
            settings: &self.settings,
        }
    }

    pub(crate) fn up(&self) -> Migration<'_> {
        self.to(Direction::Upgrade, "head")
    }
}

/// A small project, written by the test.
pub(crate) struct Handmade {
    pub(crate) folder: TempDir,
}

pub(crate) const SYNC_ENV: &str = r#"
from alembic import context
from sqlalchemy import create_engine, pool
engine = create_engine(context.config.get_main_option("sqlalchemy.url"), poolclass=pool.NullPool)
with engine.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"#;

pub(crate) const ASYNC_ENV: &str = r#"
import asyncio
from alembic import context
from sqlalchemy import pool
from sqlalchemy.ext.asyncio import create_async_engine

def work(connection):
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()

async def main():
    engine = create_async_engine(context.get_x_argument(as_dictionary=True)["url"], poolclass=pool.NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(work)
    await engine.dispose()

asyncio.run(main())
"#;

pub(crate) const DRIVERS: [(&str, &str); 4] = [
    ("postgresql+psycopg2", SYNC_ENV),
    ("postgresql+psycopg", SYNC_ENV),
    ("postgresql+psycopg", ASYNC_ENV),
    ("postgresql+asyncpg", ASYNC_ENV),
];

impl Handmade {
    pub(crate) fn new(env: &str) -> Self {
        let folder = TempDir::new().expect("a folder");
        std::fs::create_dir_all(folder.path().join("migrations/versions")).expect("folders");
        let handmade = Self { folder };
        handmade.write(
            "alembic.ini",
            "[alembic]\nscript_location = migrations\nprepend_sys_path = .\npath_separator = os\n",
        );
        handmade.write("migrations/env.py", env);
        handmade
    }

    pub(crate) fn write(&self, file: &str, text: &str) {
        std::fs::write(self.folder.path().join(file), text).expect("a file");
    }

    /// A revision whose `upgrade` is `body`, indented by four.
    pub(crate) fn revision(self, id: &str, down: Option<&str>, body: &str) -> Self {
        let down = down.map_or_else(|| "None".to_owned(), |down| format!("{down:?}"));
        let text = format!(
            "\"\"\"revision {id}\"\"\"\nfrom alembic import op\nimport sqlalchemy as sa\n\
             revision = {id:?}\ndown_revision = {down}\n\ndef upgrade():\n    {body}\n\ndef downgrade():\n    pass\n"
        );
        self.write(&format!("migrations/versions/{id}.py"), &text);
        self
    }

    pub(crate) fn project(&self) -> Project {
        Project::new(self.folder.path().join("alembic.ini"))
    }
}

pub(crate) fn tool<T: std::fmt::Debug>(result: Result<T, WarmError>) -> ToolError {
    match result {
        Err(WarmError::Tool(error)) => error,
        other => panic!("expected Alembic to fail, got {other:?}"),
    }
}
