//! What the demo stands on: a server, two databases, a folder. All of it goes at the end.

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use herder::{
    config::Config,
    database_url::DatabaseUrl,
    domain::{
        revision::{Direction, Target},
        run::RunState,
        wave::Rollout,
    },
    flow::{
        context::Context,
        enqueue::{Request, enqueue},
        resolve::Wanted,
        worker::{Options, Worker},
    },
    metrics::Metrics,
    secret::Secret,
    session::quote,
    store,
    throwaway::ThrowawayPostgres,
};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tempfile::TempDir;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{
    CONCURRENCY, POLL,
    project::{Project, SEED},
    python,
    troupe::Player,
};
use crate::{control, problem::Problem};

/// How many connections make the tenants' data.
const HANDS: u32 = 4;

/// How long a database may take to go.
const DROP_LIMIT: Duration = Duration::from_secs(20);

/// The name of a tenant's schema.
pub(super) fn tenant(number: u32) -> String {
    format!("tenant_{number:03}")
}

/// All that the demo makes.
#[derive(Default)]
pub(super) struct Stage {
    folder: Option<TempDir>,
    server: Option<Server>,
}

/// Where the databases are.
struct Server {
    /// Any database of it, with its secret.
    url: Secret,
    control: String,
    tenants: String,
    /// Ours, where it is not somebody else's.
    throwaway: Option<ThrowawayPostgres>,
}

impl Server {
    fn url_of(&self, database: &str) -> anyhow::Result<DatabaseUrl> {
        Ok(DatabaseUrl::for_database(&self.url, Some(database))?)
    }
}

impl Stage {
    /// The demo's folder, made when it is first needed.
    fn folder(&mut self) -> anyhow::Result<&TempDir> {
        if self.folder.is_none() {
            let made = tempfile::Builder::new().prefix("herder-demo-").tempdir();
            self.folder = Some(made.context("cannot create a temporary folder")?);
        }
        self.folder.as_ref().context("the demo has no folder")
    }

    /// The demo's config.
    pub(super) fn config(&self) -> PathBuf {
        let folder = self.folder.as_ref().map(|folder| folder.path().to_owned());
        folder.unwrap_or_default().join("herder.toml")
    }

    /// A Python that has Alembic.
    pub(super) async fn python(&mut self) -> anyhow::Result<PathBuf> {
        let folder = self.folder()?.path().to_owned();
        python::with_alembic(&folder).await
    }

    /// Starts a throw-away server, or takes the one that was named, and makes two databases. Returns what it did.
    pub(super) async fn open(&mut self, url: Option<&str>) -> anyhow::Result<String> {
        let (throwaway, url, told) = match url {
            Some(url) => {
                let parsed = DatabaseUrl::parse(url)
                    .map_err(|error| Problem::usage("--database-url cannot be used").caused_by(error))?;
                let told = format!("Using the PostgreSQL at {}", parsed.address());
                (None, Secret::new(url), told)
            }
            None => {
                let server = tokio::task::spawn_blocking(ThrowawayPostgres::start).await??;
                let url = Secret::new(server.url("postgres"));
                let told = format!("Started a temporary PostgreSQL on port {}", server.port());
                (Some(server), url, told)
            }
        };
        let random = &Uuid::new_v4().simple().to_string()[..8];
        let address = DatabaseUrl::parse(url.expose())?;
        let mut connection = PgConnection::connect_with(&address.options()?)
            .await
            .map_err(|error| {
                Problem::set_up(format!("cannot use the server at {}", address.address()))
                    .caused_by(control::cause(error))
            })?;
        // From here on there is something to clean up.
        let server = self.server.insert(Server {
            url,
            control: format!("herder_demo_{random}_control"),
            tenants: format!("herder_demo_{random}_tenants"),
            throwaway,
        });
        for database in [&server.control, &server.tenants] {
            sqlx::query(AssertSqlSafe(format!("create database {}", quote(database))))
                .execute(&mut connection)
                .await
                .map_err(|error| {
                    Problem::set_up("cannot create a database for the demo")
                        .caused_by(control::cause(error))
                        .hint("--database-url must name a role with CREATEDB")
                })?;
        }
        connection.close().await?;
        Ok(told)
    }

    fn server(&self) -> anyhow::Result<&Server> {
        self.server.as_ref().context("the demo has no server")
    }

    /// Writes the project and its config into the folder.
    pub(super) fn furnish(&mut self, project: &Project) -> anyhow::Result<()> {
        let path = self.folder()?.path().to_owned();
        project.write(&path).context("cannot write the demo's project")?;
        let server = self.server()?;
        let text = format!(
            "[control]\nurl = {:?}\n\n\
             [tenants]\nsource = \"schemas\"\nserver = \"main\"\npattern = \"tenant_*\"\n\n\
             [servers.main]\nurl = {:?}\n\n\
             [runner]\n{}\n\n\
             [worker]\nconcurrency = {CONCURRENCY}\nheartbeat = \"500ms\"\nlease = \"2s\"\n",
            server.url_of(&server.control)?.expose(),
            server.url_of(&server.tenants)?.expose(),
            project.runner,
        );
        std::fs::write(self.config(), text).context("cannot write the demo's config")
    }

    /// A worker process.
    pub(super) fn player(&self, program: &std::path::Path, name: &'static str) -> anyhow::Result<Player> {
        Player::start(program, name, &self.config())
    }

    /// A pool to the control database.
    pub(super) fn control(&self) -> anyhow::Result<PgPool> {
        let server = self.server()?;
        let url = Secret::new(server.url_of(&server.control)?.expose());
        Ok(store::pool(&url, "herder demo", 2)?)
    }

    /// Makes tenants, brings them to the project's first revisions by a run of this very process, and fills them.
    pub(super) async fn make_tenants(&self, tenants: u32, project: &Project) -> anyhow::Result<()> {
        let names: Vec<String> = (1..=tenants).map(tenant).collect();
        let schemas: Vec<String> = names
            .iter()
            .map(|name| format!("create schema {}", quote(name)))
            .collect();
        let mut connection = self.connect().await?;
        // In batches: every schema locks a row or two until its transaction ends.
        for batch in schemas.chunks(500) {
            sqlx::raw_sql(AssertSqlSafe(batch.join(";")))
                .execute(&mut connection)
                .await?;
        }
        connection.close().await?;
        self.bring_to(project.start).await?;
        let mut hands = JoinSet::new();
        for share in names.chunks(names.len().div_ceil(HANDS as usize)) {
            hands.spawn(seed(self.connect().await?, share.to_vec()));
        }
        while let Some(done) = hands.join_next().await {
            done??;
        }
        Ok(())
    }

    async fn bring_to(&self, revision: &str) -> anyhow::Result<()> {
        let config = Config::load(&self.config())?;
        let options = Options {
            name: "demo".into(),
            concurrency: config.worker.concurrency,
            drain_timeout: config.worker.drain_timeout,
            only_run: None,
        };
        let cx = std::sync::Arc::new(Context::new(config, "herder demo", 4)?);
        let request = Request {
            direction: Direction::Upgrade,
            target: Target::Revision(revision.into()),
            wanted: Wanted::default(),
            rollout: Rollout::default(),
            trace: None,
        };
        let run = enqueue(&cx, &request).await?.run;
        let worker = Worker::new(std::sync::Arc::clone(&cx), options, Metrics::new()?);
        let over = async {
            while store::run::state(&cx.pool, run).await? == RunState::Running {
                tokio::time::sleep(POLL).await;
            }
            worker.drain();
            control::view_run(&cx.pool, run).await
        };
        let (worked, over) = tokio::join!(worker.run(), over);
        worked?;
        match over?.state {
            RunState::Succeeded => Ok(()),
            state => anyhow::bail!("the demo's tenants could not be created: their run is {state}"),
        }
    }

    /// Runs statements in one tenant, as a person would.
    pub(super) async fn tenant_sql(&self, tenant: &str, sql: &str) -> anyhow::Result<()> {
        let mut connection = self.connect().await?;
        in_tenant(&mut connection, tenant, sql).await?;
        Ok(connection.close().await?)
    }

    async fn connect(&self) -> anyhow::Result<PgConnection> {
        let server = self.server()?;
        let options = server.url_of(&server.tenants)?.options()?;
        Ok(PgConnection::connect_with(&options).await?)
    }

    /// Takes everything down. False: there was nothing yet.
    pub(super) async fn clean_up(&mut self) -> bool {
        let Some(server) = self.server.take() else {
            return false;
        };
        match server.throwaway {
            // Its folder goes with it.
            Some(server) => {
                let _ = tokio::task::spawn_blocking(move || drop(server)).await;
            }
            None => match tokio::time::timeout(DROP_LIMIT, drop_databases(&server)).await {
                Ok(Ok(())) => {}
                _ => crate::output::warning(&format!(
                    "the databases {} and {} could not be dropped",
                    server.control, server.tenants
                )),
            },
        }
        self.folder.take();
        true
    }
}

async fn seed(mut connection: PgConnection, tenants: Vec<String>) -> anyhow::Result<()> {
    for tenant in tenants {
        in_tenant(&mut connection, &tenant, SEED).await?;
    }
    Ok(connection.close().await?)
}

async fn in_tenant(connection: &mut PgConnection, tenant: &str, sql: &str) -> anyhow::Result<()> {
    let text = format!("set search_path = {};\n{sql}", quote(tenant));
    sqlx::raw_sql(AssertSqlSafe(text)).execute(connection).await?;
    Ok(())
}

async fn drop_databases(server: &Server) -> anyhow::Result<()> {
    let url = DatabaseUrl::parse(server.url.expose())?;
    let mut connection = PgConnection::connect_with(&url.options()?).await?;
    for database in [&server.control, &server.tenants] {
        // Workers and commands that were cut off may still be connected.
        let drop = format!("drop database if exists {} with (force)", quote(database));
        sqlx::query(AssertSqlSafe(drop)).execute(&mut connection).await?;
    }
    Ok(connection.close().await?)
}
