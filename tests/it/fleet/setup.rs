//! How a fleet comes about.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use toml::{Table, Value};

use super::{Cluster, Fleet, Project, Step, Tool, tell};

/// A tenant, as it stands in the catalog.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tenant {
    pub(crate) id: String,
    pub(crate) schema: Option<String>,
    /// On the tenants' server, and made with the fleet. For a tenant with a schema: the fleet's own.
    pub(crate) database: Option<String>,
    pub(crate) url: Option<String>,
    pub(crate) isolation: Option<&'static str>,
}

impl Tenant {
    /// A tenant with a schema of its own.
    pub(crate) fn schema(id: &str, schema: &str) -> Self {
        Self {
            id: id.to_owned(),
            schema: Some(schema.to_owned()),
            ..Self::default()
        }
    }

    /// Its schema, as SQL writes it.
    pub(crate) fn schema_name(&self) -> String {
        herder::session::quote(self.schema.as_deref().unwrap_or("public"))
    }
}

/// What a fleet is to be.
pub(crate) struct Setup {
    tenants: Vec<Tenant>,
    /// None: the shared one.
    cluster: Option<Arc<Cluster>>,
    /// None: the shared one.
    control: Option<Arc<Cluster>>,
    tool: Tool,
    steps: Vec<Step>,
    runner: Option<Table>,
    settings: Vec<(&'static str, Value)>,
}

/// `t001`, `t002`, …
fn ids(count: usize) -> impl Iterator<Item = String> {
    (1..=count).map(|n| format!("t{n:03}"))
}

impl Setup {
    /// A fleet of these tenants, with one migration in SQL.
    pub(crate) fn new(tenants: Vec<Tenant>) -> Self {
        Self {
            tenants,
            cluster: None,
            control: None,
            tool: Tool::Sql,
            steps: super::steps(1),
            runner: None,
            settings: Vec::new(),
        }
    }

    /// A schema per tenant: `t001`, `t002`, …
    pub(crate) fn schemas(count: usize) -> Self {
        Self::new(ids(count).map(|id| Tenant::schema(&id, &id)).collect())
    }

    /// A database per tenant.
    pub(crate) fn databases(count: usize) -> Self {
        let tenant = |id: String| Tenant {
            database: Some(id.clone()),
            id,
            ..Tenant::default()
        };
        Self::new(ids(count).map(tenant).collect())
    }

    /// One schema, `everybody`, for all tenants.
    pub(crate) fn shared(count: usize) -> Self {
        let tenant = |id: String| Tenant {
            isolation: Some("shared"),
            ..Tenant::schema(&id, "everybody")
        };
        Self::new(ids(count).map(tenant).collect())
    }

    /// The server where the tenants live.
    pub(crate) fn on(mut self, cluster: &Arc<Cluster>) -> Self {
        self.cluster = Some(Arc::clone(cluster));
        self
    }

    /// The server of the control database.
    pub(crate) fn control_on(mut self, cluster: &Arc<Cluster>) -> Self {
        self.control = Some(Arc::clone(cluster));
        self
    }

    /// These migrations, for this runner.
    pub(crate) fn migrations(mut self, tool: Tool, steps: Vec<Step>) -> Self {
        (self.tool, self.steps) = (tool, steps);
        self
    }

    /// These migrations, for Alembic by plan. The first one works in any schema, as a proof wants it.
    pub(crate) fn plans(self, mut steps: Vec<Step>) -> Self {
        let first = steps.remove(0).with_its_table();
        steps.insert(0, first);
        self.migrations(Tool::Alembic, steps).set("runner.plan", "auto")
    }

    /// Another `[runner]`.
    pub(crate) fn runner(mut self, toml: &str) -> Self {
        self.runner = Some(toml.parse().expect("TOML"));
        self
    }

    /// A project of `examples/alembic-saas`.
    pub(crate) fn alembic_saas(self, ini: &str) -> Self {
        let python = crate::venv::python();
        let root = env!("CARGO_MANIFEST_DIR");
        self.runner(&format!(
            "kind = 'alembic'\nconfig = '{root}/examples/alembic-saas/{ini}'\npython = '{}'",
            python.display()
        ))
    }

    /// The project of `examples/sql-saas`.
    pub(crate) fn sql_saas(self) -> Self {
        let root = env!("CARGO_MANIFEST_DIR");
        self.runner(&format!(
            "kind = 'sql'\ndirectory = '{root}/examples/sql-saas/migrations'"
        ))
    }

    /// A value in the config, by its path: `limits.lock_timeout`.
    pub(crate) fn set(mut self, path: &'static str, value: impl Into<Value>) -> Self {
        self.settings.push((path, value.into()));
        self
    }

    /// Makes it all: databases, schemas, catalog, migrations and config.
    pub(crate) async fn start(mut self) -> Fleet {
        let prefix = format!("f{:08x}", rand::random::<u32>());
        let dir = tempfile::Builder::new()
            .prefix("herder-test-")
            .tempdir()
            .expect("a folder");
        let (control, home) = (format!("{prefix}_control"), format!("{prefix}_home"));
        let shared = Cluster::shared().await;
        let control_cluster = self.control.clone().unwrap_or_else(|| Arc::clone(&shared));
        let cluster = self.cluster.clone().unwrap_or(shared);
        control_cluster.control(&control).await;
        cluster.create(&home).await;
        for tenant in &mut self.tenants {
            if let (Some(database), None) = (&mut tenant.database, &tenant.schema) {
                *database = format!("{prefix}_{database}");
                cluster.create(database).await;
            }
        }
        let project = Project::write(self.tool, dir.path(), &cluster, &self.steps);
        let fleet = Fleet {
            control: pool(&control_cluster, &control),
            home: pool(&cluster, &home),
            tenants: self.tenants.clone(),
            prefix,
            dir,
            cluster,
            project,
            logs: Mutex::default(),
        };
        let catalog = "create table tenants (n int generated always as identity, id text, schema text,
                       database text, url text, isolation text)";
        fleet.tell(catalog).await;
        fleet.populate().await;
        let config = self.config(&fleet, &control_cluster.url(&control), &fleet.cluster.url(&home));
        let text = toml::to_string(&config).expect("TOML");
        std::fs::write(fleet.dir().join("herder.toml"), text).expect("herder.toml");
        fleet
    }

    /// Short leases and delays, so that tests are quick; long limits, so that a gate may stay closed.
    fn config(&self, fleet: &Fleet, control: &str, home: &str) -> Table {
        let mut config: Table = format!(
            "control.url = '{control}'
             [tenants]
             source = 'sql'
             url = '{control}'
             query = 'select id, schema, database, url, isolation from tenants order by n'
             [servers.main]
             url = '{home}'
             [limits]
             lock_timeout = '5min'
             backoff = '50ms'
             max_backoff = '500ms'
             [worker]
             heartbeat = '200ms'
             lease = '2s'
             poll = '50ms'"
        )
        .parse()
        .expect("TOML");
        let runner = self.runner.clone().unwrap_or_else(|| fleet.project().runner());
        config.insert("runner".into(), Value::Table(runner));
        for (path, value) in &self.settings {
            let (table, key) = path.rsplit_once('.').expect("a path");
            let table = table.split('.').fold(&mut config, |table, name| {
                let entry = table.entry(name).or_insert_with(|| Value::Table(Table::new()));
                entry.as_table_mut().expect("a table")
            });
            table.insert(key.to_owned(), value.clone());
        }
        config
    }
}

impl Fleet {
    /// Makes what the tenants live in, and lists them. Their databases are there.
    pub(crate) async fn populate(&self) {
        self.make_tenants().await;
        self.list_tenants().await;
    }

    /// Makes the schemas, and in each tenant the table that shows what was done there.
    async fn make_tenants(&self) {
        let mut statements: Vec<String> = Vec::new();
        for tenant in &self.tenants {
            let make = format!(
                "create schema if not exists {schema};
                 create table if not exists {schema}.effects (n int generated always as identity, step text);",
                schema = tenant.schema_name()
            );
            match &tenant.database {
                None => statements.push(make),
                Some(database) => {
                    let pool = self.pool(database);
                    tell(&pool, &make).await;
                    pool.close().await;
                }
            }
        }
        // Not all in one transaction: that runs out of lock memory.
        for some in statements.chunks(100) {
            tell(&self.home, &some.concat()).await;
        }
    }

    /// Writes the tenants into the catalog.
    pub(crate) async fn list_tenants(&self) {
        let column = |f: &dyn Fn(&Tenant) -> Option<String>| self.tenants.iter().map(f).collect::<Vec<_>>();
        sqlx::query(
            "insert into tenants (id, schema, database, url, isolation)
             select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[])",
        )
        .bind(column(&|t| Some(t.id.clone())))
        .bind(column(&|t| t.schema.clone()))
        .bind(column(&|t| t.database.clone()))
        .bind(column(&|t| t.url.clone()))
        .bind(column(&|t| t.isolation.map(str::to_owned)))
        .execute(&self.control)
        .await
        .expect("a catalog");
    }
}

/// A few connections to a database, whatever its name. None of them is opened before it is needed.
pub(super) fn pool(cluster: &Cluster, database: &str) -> PgPool {
    let options: PgConnectOptions = cluster.url("").parse().expect("a URL");
    PgPoolOptions::new()
        .max_connections(3)
        .acquire_timeout(Duration::from_secs(60))
        .connect_lazy_with(options.database(database))
}
