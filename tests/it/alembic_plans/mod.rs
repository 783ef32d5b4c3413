//! Plans of Alembic migrations: what becomes one, what is proven, and every known way to be fooled by offline mode.

use std::path::Path;

use herder::{
    config::{AlembicConfig, LimitsConfig},
    database_url::DatabaseUrl,
    domain::{
        plan::{Plan, StepForm},
        revision::{Direction, Ledger},
        tenant::{Isolation, Place},
    },
    runner::{Ground, MigrationRunner as _, Offer, PlanProver as _, Verdict, alembic::AlembicRunner},
    tenant_error::TenantError,
};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

mod around;
mod besides;
mod elsewhere;
mod only_live;
mod outside;
mod shared;
mod traps;
mod values;

// ---------------------------------------------------------------- what the tests stand on

/// An env.py with both modes, for a synchronous driver.
const ENV: &str = r#"
from alembic import context
from sqlalchemy import create_engine, pool, text

schema = context.get_x_argument(as_dictionary=True)["schema"]
url = context.config.get_main_option("sqlalchemy.url")
OPTIONS = {}


def offline():
    context.configure(url=url, version_table_schema=schema, **OPTIONS)
    with context.begin_transaction():
        context.execute(f'SET LOCAL search_path TO "{schema}"')
        context.run_migrations()


def online():
    with create_engine(url, poolclass=pool.NullPool).connect() as connection:
        connection.execute(text(f'SET search_path TO "{schema}"'))
        connection.commit()
        context.configure(connection=connection, version_table_schema=schema, **OPTIONS)
        with context.begin_transaction():
            context.run_migrations()


offline() if context.is_offline_mode() else online()
"#;

/// A project, and a database with tenants of it.
struct Fleet {
    runner: AlembicRunner,
    url: DatabaseUrl,
    isolation: Isolation,
    /// The schema of a tenant.
    tenant: &'static str,
    /// Whose proofs they are. Those of one owner come one after the other, so each test is another.
    owner: String,
    _folder: Option<TempDir>,
}

impl Fleet {
    /// The realistic project.
    async fn saas(ini: &str, isolation: Isolation) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/alembic-saas");
        Self::of(&folder.join(ini), isolation, "", None).await
    }

    /// A project of these revisions, one after the other.
    async fn new(env: &str, revisions: &[(&str, &str)]) -> Self {
        Self::with(env, revisions, "").await
    }

    async fn with(env: &str, revisions: &[(&str, &str)], config: &str) -> Self {
        let folder = TempDir::new().expect("a folder");
        let write = |file: &str, text: &str| std::fs::write(folder.path().join(file), text).expect(file);
        std::fs::create_dir_all(folder.path().join("migrations/versions")).expect("folders");
        write(
            "alembic.ini",
            "[alembic]\nscript_location = migrations\npath_separator = os\nsqlalchemy.url = postgresql+psycopg2://x/y\n",
        );
        write("migrations/env.py", env);
        let mut down = "None".to_owned();
        for (id, body) in revisions {
            write_revision(folder.path(), id, &down, body);
            down = format!("{id:?}");
        }
        let ini = folder.path().join("alembic.ini");
        Self::of(&ini, Isolation::Schema, config, Some(folder)).await
    }

    async fn of(ini: &Path, isolation: Isolation, config: &str, folder: Option<TempDir>) -> Self {
        let server = crate::server::shared().await;
        let database = format!("p{}", uuid::Uuid::new_v4().simple());
        let mut admin = connect(&server.url("postgres")).await;
        run(&mut admin, &format!("create database {database}")).await;
        let mode = if config.contains("plan") {
            ""
        } else {
            "plan = \"auto\""
        };
        let config = format!(
            "config = {:?}\npython = {:?}\n{mode}\n{config}",
            ini,
            crate::venv::python()
        );
        let config: AlembicConfig = toml::from_str(&config).expect("a config");
        Self {
            runner: AlembicRunner::new(&config, 1),
            url: DatabaseUrl::parse(&server.url(&database)).expect("a URL"),
            isolation,
            tenant: "acme",
            owner: format!("{:08x}", rand::random::<u32>()),
            _folder: folder,
        }
    }

    /// Gives a revision another content.
    fn rewrite(&self, id: &str, down: &str, body: &str) {
        let folder = self._folder.as_ref().expect("a folder");
        write_revision(folder.path(), id, &format!("{down:?}"), body);
    }

    /// A tenant's place. A proof leaves it alone, so that it need not be there.
    fn place(&self) -> Place {
        Place {
            server: "main".into(),
            database: self.url.database(),
            schema: (self.isolation != Isolation::Database).then(|| self.tenant.into()),
        }
    }

    async fn admin(&self) -> PgConnection {
        connect(self.url.expose()).await
    }

    async fn offer(
        &self,
        direction: Direction,
        from: &[&str],
        to: Option<&str>,
    ) -> Result<Offer, TenantError> {
        let before = Ledger {
            half: None,
            revisions: from.iter().map(|r| (*r).to_owned()).collect(),
        };
        self.runner.plan(direction, &before, to, self.isolation).await
    }

    /// The plan from one revision to another if it is proven, else why it is not.
    async fn judge(&self, direction: Direction, from: &[&str], to: Option<&str>) -> Result<Plan, String> {
        let plan = match self.offer(direction, from, to).await.expect("an offer") {
            Offer::Plan(plan) => plan,
            Offer::Live { why } => return Err(why),
        };
        let fitted = self
            .beside(&self.url, async |ground| self.runner.fit(plan, to, ground).await)
            .await;
        let plan = match fitted.expect("an offer") {
            Offer::Plan(plan) => plan,
            Offer::Live { why } => return Err(why),
        };
        let verdict = self.prove(&self.url, &plan, to).await;
        self.is_clean().await;
        match verdict.expect("a verdict") {
            Verdict::Proven => Ok(plan),
            Verdict::Refuted { why } | Verdict::Unproven { why } => Err(why),
        }
    }

    async fn up(&self, from: &[&str], to: &str) -> Result<Plan, String> {
        self.judge(Direction::Upgrade, from, Some(to)).await
    }

    /// Whatever is done on the ground of a proof.
    async fn beside<T>(&self, url: &DatabaseUrl, work: impl AsyncFnOnce(Ground<'_>) -> T) -> T {
        work(Ground {
            url,
            place: &self.place(),
            limits: &LimitsConfig::default(),
            cancel: &CancellationToken::new(),
            owner: &self.owner,
        })
        .await
    }

    async fn prove(&self, url: &DatabaseUrl, plan: &Plan, to: Option<&str>) -> Result<Verdict, TenantError> {
        self.beside(url, async |ground| self.runner.prove(plan, to, ground).await)
            .await
    }

    /// No scratch schema, no table in `public`, and no session is left.
    async fn is_clean(&self) {
        let mut admin = self.admin().await;
        let left: Vec<String> = sqlx::query_scalar(
            "select 'schema ' || nspname from pg_namespace where nspname like 'herder\\_shadow%'
             union all select 'table ' || relname from pg_class where relnamespace = 'public'::regnamespace
             union all select 'function ' || proname from pg_proc where pronamespace = 'public'::regnamespace",
        )
        .fetch_all(&mut admin)
        .await
        .expect("a look");
        assert_eq!(left, [""; 0]);
    }
}

fn write_revision(folder: &Path, id: &str, down: &str, body: &str) {
    let body = body.replace('\n', "\n    ");
    let text = format!(
        "import time, uuid\nfrom alembic import context, op\nimport sqlalchemy as sa\n\
         from sqlalchemy.dialects import postgresql as pg\n\
         revision = {id:?}\ndown_revision = {down}\n\ndef upgrade():\n    {body}\n\n\
         def downgrade():\n    pass\n"
    );
    std::fs::write(folder.join(format!("migrations/versions/{id}.py")), text).expect(id);
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.expect("a connection")
}

async fn run(on: &mut PgConnection, sql: &str) {
    on.execute(AssertSqlSafe(sql.to_owned())).await.expect(sql);
}

const TABLE: &str =
    "op.create_table('t', sa.Column('id', sa.Integer, primary_key=True), sa.Column('x', sa.Text))";

/// What becomes of one revision after a table `t` was made.
async fn judge(body: &str) -> Result<Plan, String> {
    Fleet::new(ENV, &[("a", TABLE), ("b", body)])
        .await
        .up(&["a"], "b")
        .await
}

async fn refused(body: &str) -> String {
    match judge(body).await {
        Err(why) => why,
        Ok(plan) => panic!("{body} became {plan:#?}"),
    }
}

fn executes(statements: &[&str]) -> String {
    let each = statements.iter().map(|s| {
        let schema = "context.get_x_argument(as_dictionary=True)['schema']";
        let own = if s.contains("{}") {
            format!(".replace('{{}}', '\"' + {schema} + '\"')")
        } else {
            String::new()
        };
        format!("op.execute({s:?}{own})")
    });
    each.collect::<Vec<_>>().join("\n")
}

fn sql(plan: &Plan) -> String {
    let texts = plan.steps.iter().map(|step| match &step.form {
        StepForm::Transaction { sql } => sql.clone(),
        StepForm::Outside { statements, .. } => statements.join(";\n"),
    });
    texts.collect::<Vec<_>>().join("\n")
}

/// `T` for a step in a transaction, `O` for one outside; its revisions.
fn shape(plan: &Plan) -> Vec<String> {
    let form = |form: &StepForm| match form {
        StepForm::Transaction { .. } => 'T',
        StepForm::Outside { .. } => 'O',
    };
    let steps = plan.steps.iter();
    steps
        .map(|step| format!("{} {}", form(&step.form), step.revisions.join(" ")))
        .collect()
}

// ---------------------------------------------------------------- what is proven

#[tokio::test]
async fn the_realistic_project_is_proven_up_by_steps_and_down() {
    let fleet = Fleet::saas("alembic_schema.ini", Isolation::Schema).await;
    let all = fleet.up(&[], "0012_task_priority").await.expect("a proof");
    assert_eq!(all.steps.len(), 1);
    assert_eq!(all.steps[0].revisions.len(), 12);
    assert!(all.before.is_empty());
    assert!(all.after.iter().eq(["0012_task_priority"]));
    assert!(sql(&all).contains("CREATE TABLE IF NOT EXISTS \"Herder:Tenant\".alembic_version"));
    assert!(sql(&all).contains("'Enterprise: 100% uptime'"));

    let seed = fleet.up(&["0005_comments"], "0007_account_plan").await;
    assert_eq!(shape(&seed.expect("a proof")), ["T 0006_plans 0007_account_plan"]);
    let down = fleet
        .judge(Direction::Downgrade, &["0012_task_priority"], None)
        .await
        .expect("a proof");
    assert_eq!(down.steps[0].revisions[0], "0012_task_priority");
    assert!(down.after.is_empty());
    let one = fleet.judge(
        Direction::Downgrade,
        &["0010_tags_settings"],
        Some("0009_touch_trigger"),
    );
    assert_eq!(shape(&one.await.expect("a proof")), ["T 0010_tags_settings"]);
}

#[tokio::test]
async fn a_tenant_that_is_a_database_is_proven_in_scratch_databases() {
    let fleet = Fleet::saas("alembic_database.ini", Isolation::Database).await;
    let plan = fleet
        .up(&["0005_comments"], "0012_task_priority")
        .await
        .expect("a proof");
    assert!(!sql(&plan).contains("Herder:"));
    let mut admin = fleet.admin().await;
    let sessions: i64 = sqlx::query_scalar(
        "select count(*) from pg_stat_activity where application_name like 'herder/shadow/%' and datname = current_database()",
    )
    .fetch_one(&mut admin)
    .await
    .expect("a count");
    assert_eq!(sessions, 0);
}

#[tokio::test]
async fn an_env_without_an_offline_mode_stays_live() {
    for ini in ["alembic_sync.ini", "alembic_docs.ini", "alembic_docs_commit.ini"] {
        let why = Fleet::saas(ini, Isolation::Schema)
            .await
            .up(&[], "0012_task_priority")
            .await
            .expect_err(ini);
        assert_eq!(
            why, "env.py has no offline mode: it connects to a database",
            "{ini}"
        );
    }
}

#[tokio::test]
async fn several_branches_are_proven_like_one() {
    let fleet = Fleet::new(
        ENV,
        &[("a", TABLE), ("b", "op.add_column('t', sa.Column('y', sa.Text))")],
    )
    .await;
    let folder = fleet
        ._folder
        .as_ref()
        .expect("a folder")
        .path()
        .join("migrations/versions");
    let write = |id: &str, down: &str, body: &str| {
        let text = format!(
            "from alembic import op\nimport sqlalchemy as sa\nrevision = {id:?}\ndown_revision = {down}\n\n\
             def upgrade():\n    {body}\n\ndef downgrade():\n    pass\n"
        );
        std::fs::write(folder.join(format!("{id}.py")), text).expect("a file");
    };
    write("c", "'a'", "op.add_column('t', sa.Column('z', sa.Text))");
    write(
        "d",
        "('b', 'c')",
        "op.execute('create view v as select y, z from t')",
    );
    let plan = fleet.up(&["b", "c"], "d").await.expect("a proof");
    assert_eq!(shape(&plan), ["T d"]);
    assert!(plan.after.iter().eq(["d"]));
}
