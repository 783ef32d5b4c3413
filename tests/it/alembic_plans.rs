//! Plans of Alembic migrations: what becomes one, what is proven, and every known way to be fooled by offline mode.

use std::path::Path;

use herder::{
    config::{AlembicConfig, LimitsConfig, RunnerConfig},
    database_url::DatabaseUrl,
    domain::{
        plan::{Plan, StepForm},
        revision::{Direction, Ledger},
        tenant::{Isolation, Place},
    },
    runner::{Ground, MigrationRunner as _, Offer, RunnerError, Verdict, alembic::AlembicRunner},
};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

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
            "kind = \"alembic\"\nconfig = {:?}\npython = {:?}\n{mode}\n{config}",
            ini,
            crate::venv::python()
        );
        let config: AlembicConfig = match toml::from_str(&config).expect("a config") {
            RunnerConfig::Alembic(config) => config,
            _ => unreachable!("it is alembic"),
        };
        Self {
            runner: AlembicRunner::new(&config, 1),
            url: DatabaseUrl::parse(&server.url(&database)).expect("a URL"),
            isolation,
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
            schema: (self.isolation != Isolation::Database).then(|| "acme".into()),
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
    ) -> Result<Offer, RunnerError> {
        let before = Ledger {
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

    async fn prove(&self, url: &DatabaseUrl, plan: &Plan, to: Option<&str>) -> Result<Verdict, RunnerError> {
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

// ---------------------------------------------------------------- the known traps

#[tokio::test]
async fn whoever_reads_data_stays_live() {
    let reads = "revision b: it reads what a statement found";
    let query = "op.get_bind().execute(sa.text('select id from t'))";
    for body in [
        format!("for row in {query}:\n    op.execute('select 1')"),
        format!("ids = {query}.fetchall()"),
        format!("if {query}.scalar():\n    op.execute('select 1')"),
        // The error of a query that has no answer is swallowed: without notice, the script would just be shorter.
        format!("try:\n    ids = {query}.all()\nexcept Exception:\n    ids = []\n{TABLE}"),
        format!("try:\n    ids = list({query})\nexcept BaseException:\n    pass"),
    ] {
        assert_eq!(refused(&body).await, reads, "{body}");
    }
    let session = "from sqlalchemy.orm import Session\nwith Session(bind=op.get_bind()) as session:\n    \
                   session.execute(sa.text('select 1'))";
    assert!(
        refused(session).await.starts_with("revision b: "),
        "an ORM session"
    );
    assert_eq!(
        refused("if 'y' not in sa.inspect(op.get_bind()).get_columns('t'):\n    pass").await,
        "revision b: it inspects the database"
    );
    assert_eq!(
        refused("sa.create_engine('postgresql+psycopg2://nobody@127.0.0.1:1/x').connect()").await,
        "revision b: it loads a database driver"
    );
    // libpq asks nobody.
    for connect in [
        "psycopg2.connect('port=1')",
        "psycopg.Connection.connect('port=1')",
    ] {
        let module = connect.split('.').next().unwrap_or_default();
        let body = format!("import {module}\n{connect}");
        assert_eq!(refused(&body).await, "revision b: it loads a database driver");
        let env = format!("import {module}\n{ENV}");
        let loaded = Fleet::new(&env, &[("a", TABLE), ("b", &body)]).await;
        let why = loaded.up(&["a"], "b").await.expect_err(connect);
        assert_eq!(why, "revision b: it connects to a database");
    }
    assert_eq!(
        refused("import subprocess\nsubprocess.run(['true'])").await,
        "revision b: it reaches out of the process (subprocess.Popen)"
    );
}

/// As a literal, each of these means something else to some statement than as the parameter of one driver or another. In a scratch
/// tenant there is no row to show it.
#[tokio::test]
async fn a_value_that_is_the_drivers_business_stays_live() {
    let update = |value: &str| {
        format!(
            "import datetime as dt\nt = sa.table('t', sa.column('x'), sa.column('j', sa.JSON))\n\
             op.execute(t.update().values({value}))"
        )
    };
    let aware = "dt.datetime(2024, 1, 1, tzinfo=dt.timezone.utc)";
    for (value, kind) in [
        ("x=t.c.x * 0.5".to_owned(), "float"),
        ("x=sa.func.length(sa.literal(b'a'))".to_owned(), "bytes"),
        (
            "x=sa.extract('day', sa.func.now() - sa.literal(dt.timedelta(days=30)))".to_owned(),
            "timedelta",
        ),
        (format!("x=sa.extract('day', sa.literal({aware}))"), "datetime"),
        ("j=None".to_owned(), "JSON"),
    ] {
        assert_eq!(
            refused(&update(&value)).await,
            format!(
                "revision b: it gives a statement a value ({kind}) that each driver sends in its own way"
            ),
            "{value}"
        );
    }
    let subquery = "t = sa.table('t', sa.column('x'))\n\
                    op.execute(sa.insert(t).values(x=sa.select(sa.func.sum(t.c.x) * 0.5).scalar_subquery()))";
    assert!(refused(subquery).await.contains("a value (float)"));
    let plain = update("x=sa.case((t.c.x == 'p', sa.literal('q')), else_=t.c.x)");
    assert!(sql(&judge(&plain).await.expect("a proof")).contains("t.x = 'p'"));
    // What it leaves behind is seen where it is compared.
    let rows = format!(
        "import datetime as dt\nk = op.create_table('k', sa.Column('at', sa.DateTime(timezone=True)), sa.Column('f', sa.Float))\n\
         op.bulk_insert(k, [{{'at': {aware}, 'f': 0.5}}])"
    );
    assert!(sql(&judge(&rows).await.expect("a proof")).contains("0.5"));
}

/// psycopg says of each text that it is one. A literal would be compared as whatever stands on the other side, citext say.
#[tokio::test]
async fn a_text_has_the_type_that_the_driver_sends_with_it() {
    let body = "t = sa.table('t', sa.column('x', sa.String))\n\
                op.execute(t.update().where(t.c.x.in_(['p', 'q'])).values(x='r'))\n\
                op.execute(sa.text('update t set x = :y where x = :x').bindparams(x='s', y=None))\n\
                op.execute(t.insert().values(x='u'))";
    let table = "op.execute('create table t (x text default $$d$$)')";
    for (driver, cast) in [("postgresql+psycopg", "::VARCHAR"), ("postgresql+psycopg2", "")] {
        let config = format!("plan = \"auto\"\nurl_scheme = \"{driver}\"");
        let fleet = Fleet::with(ENV, &[("a", table), ("b", body)], &config).await;
        let sql = sql(&fleet.up(&["a"], "b").await.expect("a proof"));
        for said in [
            format!("SET x='r'{cast} WHERE t.x IN ('p'{cast}, 'q'{cast})"),
            format!("set x = NULL where x = 's'{cast}"),
            "VALUES ('u')".to_owned(),
        ] {
            assert!(sql.contains(&said), "{driver}: {said} in {sql}");
        }
        assert!(!sql.contains("version_num='b'::"), "{sql}");
    }
}

#[tokio::test]
async fn a_bind_that_only_takes_statements_is_no_obstacle() {
    let body = "bind = op.get_bind()\nbind.execute(sa.text('insert into t values (1, :x)'), {'x': '5% of :x'})\n\
                kind = pg.ENUM('p', 'q', name='kind')\nkind.create(bind, checkfirst=True)\n\
                op.add_column('t', sa.Column('k', pg.ENUM('p', 'q', name='kind', create_type=False)))\n\
                assert bind.dialect.name == 'postgresql'";
    let plan = judge(body).await.expect("a proof");
    assert!(
        sql(&plan).contains("insert into t values (1, '5% of :x')"),
        "{}",
        sql(&plan)
    );
}

#[tokio::test]
async fn whoever_asks_for_the_mode_stays_live() {
    let asks = "revision b: it asks whether it runs offline";
    for question in [
        "context.is_offline_mode()",
        "op.get_context().as_sql",
        "op.get_context().impl.as_sql",
        "not isinstance(op.get_bind(), sa.engine.Connection)",
    ] {
        let body = format!("if not {question}:\n    op.execute('update t set x = 1')");
        assert_eq!(refused(&body).await, asks, "{question}");
    }
    // Nobody notices this question, but the outcome differs.
    let why =
        refused("if not context.config.cmd_opts.sql:\n    op.add_column('t', sa.Column('y', sa.Text))").await;
    assert!(
        why.starts_with(
            "the plan does not do what live Alembic does: live gives [column {schema}.t 3 y text"
        ),
        "{why}"
    );
    let why = refused("op.execute(\"insert into t values (1, '%s')\" % context.config.cmd_opts.sql)").await;
    assert!(why.contains("live gives [rows {schema}.t 1 "), "{why}");
}

/// A scratch schema has no rows of a tenant's, so that an UPDATE changes nothing there: only its text can tell.
#[tokio::test]
async fn what_only_a_connected_migration_says_stays_live() {
    let update = "op.execute('update t set x = 1')";
    for question in [
        "(op.get_bind().dialect.server_version_info or (0,)) >= (9,)",
        "op.get_context().opts.get('as_sql') is not True",
        "not context.config.cmd_opts.sql",
        "type(op.get_bind()).__name__ == 'Connection'",
    ] {
        let why = refused(&format!("if {question}:\n    {update}")).await;
        assert!(
            why.contains("`update t set x = 1` runs only where Alembic is connected")
                || why.contains("asks whether it runs offline"),
            "{question}: {why}"
        );
    }
    let why = refused("op.execute('update t set x = %d' % (2 if context.config.cmd_opts.sql else 1))").await;
    assert!(why.contains("`update t set x = 1` runs only where"), "{why}");
    let why = refused(&format!("if context.config.cmd_opts.sql:\n    {update}")).await;
    assert_eq!(why, "`update t set x = 1` is only in its script");
    // Called by Alembic itself, once a revision is done.
    let env = ENV.replace(
        "context.configure(connection=connection,",
        "context.configure(connection=connection, on_version_apply=lambda ctx, **_: ctx.connection.execute(text('update t set x = 2')),",
    );
    let fleet = Fleet::new(&env, &[("a", TABLE), ("b", "pass")]).await;
    let why = fleet.up(&["a"], "b").await.expect_err("a callback");
    assert!(why.contains("`update t set x = 2` runs only where"), "{why}");
}

#[tokio::test]
async fn what_a_connection_brings_along_is_seen() {
    let engine = "create_engine(url, poolclass";
    for (options, why) in [
        (
            "'-c app.actor=migrator'",
            "env.py works with app.actor migrator, and a plan would not",
        ),
        (
            "'-c default_text_search_config=pg_catalog.german'",
            "env.py works with default_text_search_config pg_catalog.german, and a plan would not",
        ),
    ] {
        let connected = format!("create_engine(url, connect_args={{'options': {options}}}, poolclass");
        let fleet = Fleet::new(&ENV.replace(engine, &connected), &[("a", TABLE)]).await;
        assert_eq!(fleet.up(&[], "a").await.expect_err(options), why);
    }
    let listening = ENV.replace(
        "def online():",
        "from sqlalchemy import event\nfrom sqlalchemy.engine import Engine\n@event.listens_for(Engine, 'connect')\n\
         def actor(connection, _):\n    cursor = connection.cursor()\n    cursor.execute(\"set app.actor = 'migrator'\")\n    \
         connection.commit()\n\ndef online():",
    );
    let fleet = Fleet::new(&listening, &[("a", TABLE)]).await;
    assert_eq!(
        fleet.up(&[], "a").await.expect_err("a listener"),
        "env.py listens to `connect` of its engine, and a plan is sent by another client"
    );
    // An operator of an extension's is found in `public`, or it is not.
    let further = ENV.replace(
        "SET search_path TO \"{schema}\"'))",
        "SET search_path TO \"{schema}\", public'))",
    );
    let fleet = Fleet::new(&further, &[("a", TABLE)]).await;
    let why = fleet.up(&[], "a").await.expect_err("another path");
    assert!(
        why.starts_with("env.py's connection searches the schemas [herder_shadow_"),
        "{why}"
    );
    let both = further.replace(
        "SET LOCAL search_path TO \"{schema}\"'",
        "SET LOCAL search_path TO \"{schema}\", public'",
    );
    Fleet::new(&both, &[("a", TABLE)])
        .await
        .up(&[], "a")
        .await
        .expect("a proof");
    let end =
        "        with context.begin_transaction():\n            context.run_migrations()\n\n\noffline()";
    let without = ENV
        .replace(
            end,
            "        context.run_migrations()\n        connection.commit()\n\n\noffline()",
        )
        .replace(
            "    with context.begin_transaction():\n        context.execute",
            "    if True:\n        context.execute",
        );
    let fleet = Fleet::new(&without, &[("a", TABLE)]).await;
    let why = fleet.up(&[], "a").await.expect_err("no transaction");
    assert!(
        why.contains("in a transaction where Alembic is connected, and outside one"),
        "{why}"
    );
}

/// As a literal it is NULL.
#[tokio::test]
async fn a_default_that_python_computes_stays_live() {
    for body in [
        "t = sa.table('t', sa.Column('id', sa.Integer), sa.Column('x', sa.Text, onupdate='new'))\nop.execute(t.update().values(id=1))",
        "t = sa.table('t', sa.Column('id', sa.Integer), sa.Column('x', sa.Text, default=lambda: 'new'))\nop.execute(t.insert().from_select(['id'], sa.select(t.c.id)))",
    ] {
        assert_eq!(
            refused(body).await,
            "revision b: it gives a statement a value that a column's own default computes"
        );
    }
}

/// Something of nearly every kind.
const EVERYTHING: &[&str] = &[
    "create table t (id serial primary key, x text, a int, b int)",
    "create table child (id int constraint fk references t)",
    "create type comp as (f int)",
    "create table typed of comp",
    "create index i on t ((x || 'a'))",
    "create function addto(int, int) returns int language sql immutable as 'select $1 + $2'",
    "create function totext(comp) returns text language sql immutable as 'select null'",
    "create function diff(int, int) returns float8 language sql immutable as 'select 1.0'",
    "create function trg() returns trigger language plpgsql as 'begin return new; end'",
    "create aggregate agg (int) (sfunc = addto, stype = int)",
    "create operator === (leftarg = int, rightarg = int, function = int4eq)",
    "create operator family fam using btree",
    "create operator class cls for type int using btree family fam as operator 1 <, function 1 btint4cmp(int, int)",
    "create collation coll from \"C\"",
    "create text search dictionary dict (template = simple)",
    "create text search configuration cfg (copy = simple)",
    "create type rng as range (subtype = int)",
    "create type kind as enum ('a', 'b')",
    "create domain dom as int constraint pos check (value > 0)",
    "create cast (comp as text) with function totext(comp)",
    "create statistics st on a, b from t",
    "create view v as select id from t",
    "create rule r as on insert to v do instead nothing",
    "create policy p on t using (id > 0)",
    "create trigger tr before insert on t for each row execute function trg()",
    "create sequence s",
    "create materialized view mv as select 1 as one",
    "create conversion conv for 'LATIN1' to 'UTF8' from iso8859_1_to_utf8",
    "create foreign table ft (a int) server shared_server options (o 'x')",
    "alter publication shared_publication add table t",
];

/// What may be done to it.
const CHANGES: &[&str] = &[
    "create or replace aggregate agg (int) (sfunc = addto, stype = int, initcond = '1')",
    "select setval('s', 5, false)",
    "alter table child disable trigger all",
    "comment on constraint pos on domain dom is 'x'",
    "comment on policy p on t is 'x'",
    "comment on rule r on v is 'x'",
    "comment on statistics st is 'x'",
    "comment on operator === (int, int) is 'x'",
    "comment on collation coll is 'x'",
    "comment on text search configuration cfg is 'x'",
    "comment on cast (comp as text) is 'x'",
    "comment on column t.x is 'x'",
    "comment on index i is 'x'",
    "comment on function diff(int, int) is 'x'",
    "alter table t set (toast.autovacuum_enabled = false)",
    "alter index i alter column 1 set statistics 50",
    "alter table typed not of",
    "refresh materialized view mv with no data",
    "drop collation coll; create collation coll (locale = 'POSIX')",
    "drop type rng; create type rng as range (subtype = int, subtype_diff = diff)",
    "drop cast (comp as text); create cast (comp as text) with function totext(comp) as implicit",
    "alter operator === (int, int) set (restrict = eqsel)",
    "alter operator family fam using btree add function 1 (int, int8) btint48cmp(int, int8)",
    "alter statistics st set statistics 50",
    "alter foreign table ft options (set o 'y')",
    "alter foreign table ft alter a options (c 'y')",
    "alter publication shared_publication drop table t",
    "alter text search configuration cfg alter mapping for word with english_stem",
    "alter text search dictionary dict (stopwords = english)",
    "alter default privileges in schema {} grant select on tables to public",
];

/// What stands around the schemas that hold everything.
const AROUND: &str = "create foreign data wrapper shared_wrapper; create server shared_server foreign data wrapper shared_wrapper;
                      create publication shared_publication";

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

/// Nobody notices this question, but the outcome differs.
const ONLY_LIVE: &str = "if not context.config.cmd_opts.sql:\n    ";

#[tokio::test]
async fn a_change_of_any_kind_that_only_live_alembic_makes_is_seen() {
    let fleet = Fleet::new(ENV, &[("a", &executes(EVERYTHING)), ("b", "pass")]).await;
    run(&mut fleet.admin().await, AROUND).await;
    let mut unseen = Vec::new();
    for change in CHANGES {
        fleet.rewrite(
            "b",
            "a",
            &format!("{ONLY_LIVE}{}\nop.execute('select 1')", executes(&[change])),
        );
        match fleet.up(&["a"], "b").await {
            Err(why) => assert!(
                why.starts_with("the plan does not do what live Alembic does"),
                "{change}: {why}"
            ),
            Ok(_) => unseen.push(change),
        }
    }
    assert!(unseen.is_empty(), "{unseen:#?}");
}

#[tokio::test]
async fn what_the_plan_does_as_well_is_proven_whatever_its_kind() {
    let both = [EVERYTHING, CHANGES].concat();
    let fleet = Fleet::new(ENV, &[("a", "pass"), ("b", &executes(&both))]).await;
    run(&mut fleet.admin().await, AROUND).await;
    fleet.up(&["a"], "b").await.expect("a proof");
}

#[tokio::test]
async fn what_is_made_of_a_name_stays_live() {
    let body = "schema = context.get_x_argument(as_dictionary=True)['schema']\n\
                op.execute(\"insert into t values (1, '%s')\" % schema.removeprefix('ac'))";
    assert_eq!(
        refused(body).await,
        "it renders other SQL for `acme` than for other names"
    );
}

#[tokio::test]
async fn what_is_drawn_when_a_revision_is_imported_stays_live() {
    let fleet = Fleet::new(
        ENV,
        &[
            ("a", TABLE),
            ("b", "op.execute(\"insert into t values (1, '%s')\" % TOKEN)"),
        ],
    )
    .await;
    let folder = fleet._folder.as_ref().expect("a folder").path();
    let file = folder.join("migrations/versions/b.py");
    let text = std::fs::read_to_string(&file).expect("a revision");
    std::fs::write(
        &file,
        format!("import secrets\nTOKEN = secrets.token_hex(8)\n{text}"),
    )
    .expect("a file");
    let why = fleet.up(&["a"], "b").await.expect_err("it is drawn");
    assert_eq!(why, "revision b renders other SQL each time, or for each tenant");
}

#[tokio::test]
async fn what_differs_each_time_stays_live() {
    let insert = |value: &str| format!("op.execute(\"insert into t values (1, '%s')\" % {value})");
    for value in [
        "uuid.uuid4()",
        "time.time()",
        "context.get_x_argument(as_dictionary=True)['schema'][:3]",
    ] {
        assert_eq!(
            refused(&insert(value)).await,
            "revision b renders other SQL each time, or for each tenant",
            "{value}"
        );
    }
    let why = refused(&insert("int(time.time())")).await;
    assert!(
        // The second rendering, a live migration or the third one: whichever sees the next second first.
        [
            "renders other SQL",
            "renders different SQL",
            "does not do what live",
            "a moment later"
        ]
        .iter()
        .any(|w| why.contains(w)),
        "{why}"
    );
    // What the server draws is drawn for each tenant, live or not.
    let body = "op.execute('alter table t add u uuid not null default gen_random_uuid(), add at timestamptz default now()')\n\
                op.execute(\"insert into t values (1, 'x')\")";
    judge(body).await.expect("a proof");
}

#[tokio::test]
async fn a_branch_on_another_tenants_name_is_not_seen() {
    // The docs say so: only the tenant itself could show it.
    let body = "if context.get_x_argument(as_dictionary=True)['schema'] == 'globex':\n    op.execute('drop table t')\n\
                op.execute('select 1')";
    judge(body).await.expect("a proof");
}

#[tokio::test]
async fn texts_arrive_as_they_are_written() {
    // For psycopg2, `%` is doubled in everything that it is given; Alembic turns tabs into spaces; and a dialect that
    // never met a server doubles backslashes.
    let body = "op.execute(\"insert into t values (1, '100% %s %% %(x)s')\")\n\
                t = sa.table('t', sa.column('id', sa.Integer), sa.column('x', sa.Text))\n\
                op.bulk_insert(t, [{'id': 2, 'x': 'back\\\\slash\\ttab \\'quote\\' 7%'}])\n\
                op.execute(t.update().where(t.c.id == 2).values(id=3))\n\
                op.execute('''create function f() returns text language sql as $$\\n\\tselect 'a\\tb'::text $$''')\n\
                op.execute('select 1 -- the end')\n\
                op.execute('select 2;')";
    let plan = judge(body).await.expect("a proof");
    let sql = sql(&plan);
    assert!(sql.contains("'100% %s %% %(x)s'"), "{sql}");
    assert!(sql.contains("'back\\slash\ttab ''quote'' 7%'"), "{sql}");
}

#[tokio::test]
async fn what_a_migration_prints_is_not_in_its_sql() {
    let plan = judge("print('drop table t;')\nop.execute('select 1')")
        .await
        .expect("a proof");
    assert!(!sql(&plan).contains("drop table"));
    assert_eq!(
        refused("context.static_output('drop table t;')").await,
        "revision b: the script was written to by hand: a live migration would not do that"
    );
}

#[tokio::test]
async fn what_runs_outside_a_transaction_is_a_step_of_its_own() {
    let concurrently = "with op.get_context().autocommit_block():\n    \
                        op.create_index('i', 't', ['x'], postgresql_concurrently=True)";
    let body = format!(
        "op.execute('alter table t add y int')\n{concurrently}\nop.execute('alter table t add z int')"
    );
    let fleet = Fleet::new(
        ENV,
        &[
            ("a", TABLE),
            ("b", "op.execute('select 1')"),
            ("c", &body),
            ("d", "op.execute('select 1')"),
        ],
    )
    .await;
    let plan = fleet.up(&["a"], "d").await.expect("a proof");
    assert_eq!(shape(&plan), ["T b", "T c", "O c", "T c d"]);
    assert!(plan.steps[0].after.iter().eq(["b"]));
    assert_eq!(plan.steps[2].before, plan.steps[2].after);
    let StepForm::Outside { statements, .. } = &plan.steps[2].form else {
        unreachable!("it is outside")
    };
    assert_eq!(
        *statements,
        [
            "SET search_path TO \"Herder:Tenant\"",
            "CREATE INDEX CONCURRENTLY i ON t (x)"
        ]
    );
    // In a transaction, neither Alembic nor the plan can do it.
    let why = refused("op.create_index('i', 't', ['x'], postgresql_concurrently=True)").await;
    assert!(
        why.contains("cannot run inside a transaction block (25001)"),
        "{why}"
    );
    assert_eq!(
        refused("op.execute('commit')").await,
        "revision b says COMMIT by itself"
    );
}

#[tokio::test]
async fn a_new_enum_value_is_used_only_where_live_alembic_can() {
    let kind = "op.execute(\"create type kind as enum ('p')\")\nop.execute('create table k (k kind)')";
    let add = "op.execute(\"alter type kind add value 'q'\")";
    let using = "op.execute(\"insert into k values ('q')\")";
    let body = format!("{add}\n{using}");
    let why = Fleet::new(ENV, &[("a", kind), ("b", &body)])
        .await
        .up(&["a"], "b")
        .await;
    assert!(
        why.as_ref()
            .is_err_and(|why| why.contains("unsafe use of new value")),
        "{why:?}"
    );
    let body = format!("with op.get_context().autocommit_block():\n    {add}\n{using}");
    let plan = Fleet::new(ENV, &[("a", kind), ("b", &body)])
        .await
        .up(&["a"], "b")
        .await;
    assert_eq!(shape(&plan.expect("a proof")), ["O b", "T b"]);
}

#[tokio::test]
async fn with_a_transaction_per_migration_each_step_knows_its_schema() {
    // The SET LOCAL stands before the first BEGIN, where it does nothing at all.
    let env = ENV.replace("OPTIONS = {}", "OPTIONS = dict(transaction_per_migration=True)");
    let fleet = Fleet::new(
        &env,
        &[
            ("a", TABLE),
            ("b", "op.create_table('u', sa.Column('id', sa.Integer))"),
        ],
    )
    .await;
    let plan = fleet.up(&[], "b").await.expect("a proof");
    assert_eq!(shape(&plan), ["T a", "T b"]);
    assert!(plan.steps[0].after.iter().eq(["a"]));
    for step in &plan.steps {
        let StepForm::Transaction { sql } = &step.form else {
            unreachable!("it is in a transaction")
        };
        assert!(
            sql.starts_with("SET LOCAL search_path TO \"Herder:Tenant\";\n"),
            "{sql}"
        );
    }
}

#[tokio::test]
async fn literals_are_right_or_refused() {
    let table = "op.execute('create table j (j jsonb, b bytea, d timestamptz, n numeric, a text[])')\n\
                 j = sa.table('j', sa.column('j', pg.JSONB), sa.column('b', pg.BYTEA), sa.column('n', sa.Numeric), \
                 sa.column('a', pg.ARRAY(sa.Text)), sa.column('o', sa.PickleType))\n";
    for (values, proven) in [
        ("{'n': 1.5, 'a': ['x', 'y%']}", true),
        ("{'j': {'a': [1, '%']}}", false),
        ("{'b': b'\\\\x00\\\\xff'}", false),
        ("{'o': {1, 2}}", false),
    ] {
        let judged = judge(&format!("{table}op.bulk_insert(j, [{values}])")).await;
        match judged {
            Ok(plan) => assert!(proven, "{values}: {}", sql(&plan)),
            Err(why) => assert!(!proven && why.starts_with("revision b: "), "{values}: {why}"),
        }
    }
}

#[tokio::test]
async fn what_reaches_out_of_its_schema_is_not_proven_and_not_done() {
    let fleet = Fleet::new(ENV, &[("a", TABLE), ("b", "pass")]).await;
    for (body, what) in [
        (
            "create table public.stray (id int)",
            "changes or writes public.stray",
        ),
        (
            "create function public.f() returns int language sql as $$ select 1 $$",
            "function public.f",
        ),
        ("create schema elsewhere", "schema elsewhere"),
        ("create extension hstore", "extension hstore"),
        ("create role nobody_special", "writes pg_authid"),
        ("create publication stray", "publication stray"),
        (
            "create function e() returns event_trigger language plpgsql as 'begin end';
             create event trigger stray on ddl_command_end execute function e()",
            "event trigger stray",
        ),
        ("create foreign data wrapper stray", "foreign-data wrapper stray"),
        (
            "create cast (point as money) with inout",
            "cast (pg_catalog.point AS ",
        ),
        (
            "alter default privileges grant select on tables to public",
            "default acl for role postgres on tables",
        ),
        ("select lo_create(0)", "large object "),
        ("select lo_from_bytea(0, 'x')", "writes pg_largeobject"),
        (
            "comment on function pg_catalog.now() is 'stray'",
            "function pg_catalog.now()",
        ),
        ("comment on role postgres is 'stray'", "writes pg_shdescription"),
    ] {
        fleet.rewrite("b", "a", &executes(&[&body.replace('\n', " ")]));
        let why = fleet.up(&["a"], "b").await.expect_err(body);
        assert!(
            why.starts_with("revision b: ") && why.contains(what) && why.contains("outside the tenant"),
            "{body}: {why}"
        );
    }
    // An old revision that does it is found as well, before it runs.
    let fleet = Fleet::new(
        ENV,
        &[
            ("a", "op.execute('create table public.stray (id int)')"),
            ("b", "op.execute('select 1')"),
        ],
    )
    .await;
    let why = fleet.up(&["a"], "b").await.expect_err("it reaches out");
    assert!(why.contains("changes or writes public.stray"), "{why}");
    // What shows in no row, locks nothing, or is done by env.py and only where it is online, is not done either.
    let shared =
        "create schema shared; create function shared.touch() returns int language sql as $$ select 1 $$;
                  create type shared.mood as enum ('p'); create table shared.n (n int)";
    let says = |sql: &str| format!("op.execute({sql:?})");
    for (body, what) in [
        (says("drop function shared.touch()"), "shared.touch"),
        (says("alter type shared.mood add value 'q'"), "type shared.mood"),
        (says("grant select on shared.n to public"), "table shared.n"),
        (
            "ids = op.get_bind().execute(sa.text('insert into shared.n values (1)'))\nfor i in []: pass"
                .to_owned(),
            "writes shared.n",
        ),
    ] {
        let fleet = Fleet::new(
            ENV,
            &[("a", TABLE), ("b", &body), ("c", "op.execute('select 1')")],
        )
        .await;
        run(&mut fleet.admin().await, shared).await;
        for (from, to) in [("a", "b"), ("b", "c")] {
            let why = fleet.up(&[from], to).await.expect_err(what);
            assert!(
                why.contains(what) && why.contains("outside the tenant"),
                "{body}: {why}"
            );
        }
    }
    let after = "        context.configure(connection=connection, version_table_schema=schema, **OPTIONS)\n";
    let env = ENV.replace(
        after,
        &format!("        connection.execute(text(\"insert into shared.n values (1)\"))\n        connection.commit()\n{after}"),
    );
    let fleet = Fleet::new(&env, &[("a", TABLE)]).await;
    run(&mut fleet.admin().await, shared).await;
    let why = fleet.up(&[], "a").await.expect_err("it writes to a shared table");
    assert!(
        why.contains("changes or writes shared.n, outside the tenant"),
        "{why}"
    );
    let rows = sqlx::query_scalar::<_, i64>("select count(*) from shared.n");
    assert_eq!(
        rows.fetch_one(&mut fleet.admin().await).await.expect("a count"),
        0
    );
    // To refer to a shared table is no change to it.
    let fleet = Fleet::new(
        ENV,
        &[
            ("a", TABLE),
            (
                "b",
                "op.execute('alter table t add c int references shared.countries')",
            ),
        ],
    )
    .await;
    run(
        &mut fleet.admin().await,
        "create schema shared; create table shared.countries (id int primary key)",
    )
    .await;
    fleet.up(&["a"], "b").await.expect("a proof");
}

/// An env.py that notes in a table for all tenants how far they are, in its online mode only.
async fn noting(driver: &str, note: &str) -> (Fleet, Result<Plan, String>) {
    let env = ENV
        .replace(
            "            context.run_migrations()\n\n\noffline",
            "            context.run_migrations()\n        NOTE\n\n\noffline",
        )
        .replace("NOTE", &note.replace('\n', "\n        "));
    assert_ne!(env, ENV);
    let fleet = Fleet::with(
        &env,
        &[("a", TABLE)],
        &format!("plan = \"auto\"\nurl_scheme = \"{driver}\""),
    )
    .await;
    run(
        &mut fleet.admin().await,
        "create schema shared; create table shared.fleet (version int); insert into shared.fleet values (0);
         create function shared.note() returns int language sql as 'update shared.fleet set version = 1 returning 1'",
    )
    .await;
    let judged = fleet.up(&[], "a").await;
    (fleet, judged)
}

#[tokio::test]
async fn rows_that_only_live_alembic_writes_elsewhere_are_seen_and_not_written() {
    let update = "update shared.fleet set version = 1";
    let alone = |statement: &str| {
        format!(
            "with create_engine(url, isolation_level='AUTOCOMMIT').connect() as alone:\n    alone.execute(text('{statement}'))"
        )
    };
    let commit = format!("connection.execute(text('{update}'))\nconnection.commit()");
    let other = "with create_engine(url.rsplit('/', 1)[0] + '/postgres').begin() as other:\n    \
                 other.execute(text('comment on database postgres is null'))";
    for (driver, note) in [
        ("postgresql+psycopg2", commit.clone()),
        ("postgresql+psycopg", commit.clone()),
        (
            "postgresql+psycopg2",
            format!("connection.execute(text('{update}'))\nconnection.execute(text('commit'))"),
        ),
        ("postgresql+psycopg2", alone(update)),
        ("postgresql+psycopg", alone("select shared.note()")),
        // Nobody hears of its failure.
        (
            "postgresql+psycopg2",
            format!(
                "try:\n    {}\nexcept Exception:\n    connection.rollback()",
                commit.replace('\n', "\n    ")
            ),
        ),
    ] {
        let (fleet, judged) = noting(driver, &note).await;
        let why = judged.expect_err(&note);
        assert_eq!(
            why, "live Alembic changes or writes shared.fleet, outside the tenant's schema",
            "{driver}: {note}"
        );
        let version: i32 = sqlx::query_scalar("select version from shared.fleet")
            .fetch_one(&mut fleet.admin().await)
            .await
            .expect("a row");
        assert_eq!(version, 0, "{driver}: {note}");
    }
    let (_, judged) = noting("postgresql+psycopg2", other).await;
    assert_eq!(
        judged.expect_err(other),
        "live Alembic writes pg_shdescription, outside the tenant's schema"
    );
    // To look there is no change.
    for note in [
        "connection.execute(text('select version from shared.fleet'))\nconnection.commit()".to_owned(),
        alone("select version from shared.fleet"),
    ] {
        noting("postgresql+psycopg2", &note).await.1.expect(&note);
    }
}

#[tokio::test]
async fn rows_that_only_live_alembic_writes_by_an_async_driver_are_seen_as_well() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/alembic-saas/env_schema/env.py");
    let env = std::fs::read_to_string(root).expect("env.py");
    let run_all = "context.run_migrations()";
    assert!(env.contains(run_all));
    let note = format!(
        "{run_all}; context.is_offline_mode() or context.execute('update shared.fleet set version = 1')"
    );
    let fleet = Fleet::with(
        &env.replace(run_all, &note),
        &[("a", TABLE)],
        "plan = \"auto\"\nurl_scheme = \"postgresql+asyncpg\"",
    )
    .await;
    run(
        &mut fleet.admin().await,
        "create schema shared; create table shared.fleet (version int)",
    )
    .await;
    let why = fleet.up(&[], "a").await.expect_err("it writes");
    assert_eq!(
        why,
        "live Alembic changes or writes shared.fleet, outside the tenant's schema"
    );
}

#[tokio::test]
async fn what_drops_things_outside_its_schema_is_not_proven_and_not_done() {
    let fleet = Fleet::new(ENV, &[("a", TABLE), ("b", "pass")]).await;
    let mut admin = fleet.admin().await;
    run(
        &mut admin,
        "create schema shared; create table shared.old (); create function shared.f() returns int language sql as 'select 1'",
    )
    .await;
    for (body, what) in [
        ("drop table if exists shared.old", "drops relation shared.old"),
        ("drop function if exists shared.f()", "drops function shared.f"),
        ("drop schema if exists shared cascade", "drops "),
    ] {
        fleet.rewrite("b", "a", &executes(&[body]));
        let why = fleet.up(&["a"], "b").await.expect_err(body);
        assert!(
            why.starts_with("revision b: ") && why.contains(what) && why.contains("outside the tenant"),
            "{body}: {why}"
        );
        run(&mut admin, "select shared.f() from shared.old").await;
    }
    let own = [
        "create temp table x ()",
        "drop table x",
        "create table y (a int)",
        "alter table y alter a type text",
        "drop table y",
        "drop table t",
    ];
    fleet.rewrite("b", "a", &executes(&own));
    fleet.up(&["a"], "b").await.expect("a proof");
}

/// `run_migrations_offline` is what `alembic init` writes, and nobody looks at it.
#[tokio::test]
async fn what_env_says_only_where_it_is_connected_makes_no_plan() {
    let path = "        connection.execute(text(f'SET search_path TO \"{schema}\"'))\n";
    let end = "            context.run_migrations()\n\n\noffline()";
    for (said, shown) in [
        (
            "SELECT set_config('app.actor', 'alembic', false)",
            "set_config('app.actor'",
        ),
        (
            "SET session_replication_role = replica",
            "SET session_replication_role",
        ),
        ("SET ROLE postgres", "SET ROLE"),
    ] {
        let env = ENV.replace(
            path,
            &format!("{path}        connection.execute(text(\"{said}\"))\n"),
        );
        let why = Fleet::new(&env, &[("a", TABLE)])
            .await
            .up(&[], "a")
            .await
            .expect_err(said);
        assert!(
            why.starts_with("env.py says `")
                && why.contains(shown)
                && why.ends_with("` only where it is connected"),
            "{why}"
        );
    }
    // Behind the revisions, and only where there is something to do.
    let after = "            context.run_migrations()\n        if connection.execute(text(f\"select to_regclass('{schema}.t')\")).scalar():\n            \
                 connection.execute(text(f'ANALYZE \"{schema}\".t'))\n            connection.commit()\n\n\noffline()";
    let env = ENV.replace(end, after);
    assert_ne!(env, ENV);
    let why = Fleet::new(&env, &[("a", TABLE)])
        .await
        .up(&[], "a")
        .await
        .expect_err("it analyzes");
    assert!(why.contains("env.py says `ANALYZE"), "{why}");
    // What it says in both, or what a plan has another word for, is no obstacle.
    let both = ENV
        .replace(path, &format!("{path}        connection.execute(text('SET session_replication_role = replica'))\n"))
        .replace("        context.run_migrations()\n\n\ndef online", "        context.execute('SET LOCAL session_replication_role = replica')\n        context.run_migrations()\n\n\ndef online")
        .replace(path, &format!("{path}        connection.execute(text('SET lock_timeout = 900'))\n"));
    Fleet::new(&both, &[("a", TABLE)])
        .await
        .up(&[], "a")
        .await
        .expect("a proof");
}

#[tokio::test]
async fn an_env_that_goes_elsewhere_is_found_before_it_does() {
    let env = ENV.replace(
        "connection.execute(text(f'SET search_path TO \"{schema}\"'))",
        "connection.execute(text('select 1'))",
    );
    let why = Fleet::new(&env, &[("a", TABLE)])
        .await
        .up(&[], "a")
        .await
        .expect_err("it goes to public");
    assert!(why.starts_with("env.py works in schema `public`"), "{why}");
    // A ledger that is there already is found before one is made.
    let env = ENV
        .replace("TO \"{schema}\"'", "TO \"{schema}\", shared'")
        .replace("version_table_schema=schema, ", "");
    let fleet = Fleet::new(&env, &[("a", TABLE)]).await;
    let there =
        "create schema shared; create table shared.alembic_version (version_num varchar(32) primary key)";
    run(&mut fleet.admin().await, there).await;
    let why = fleet.up(&[], "a").await.expect_err("its ledger is another's");
    assert!(
        why.ends_with("with its ledger in `shared`, not in the one that it is given"),
        "{why}"
    );
    let env = ENV.replace("version_table_schema=schema", "version_table_schema='public'");
    let why = Fleet::new(&env, &[("a", TABLE)])
        .await
        .up(&[], "a")
        .await
        .expect_err("it goes to public");
    assert_eq!(
        why,
        "env.py keeps its ledger in public.alembic_version, not in the tenant's alembic_version"
    );
}

// ---------------------------------------------------------------- around the proof

#[tokio::test]
async fn a_proof_clears_away_what_a_killed_one_left() {
    let fleet = Fleet::new(ENV, &[("a", TABLE)]).await;
    run(
        &mut fleet.admin().await,
        &format!(
            "create schema herder_shadow_0000abcd_1700000000_00000000_a;
             create table herder_shadow_0000abcd_1700000000_00000000_a.t ();
             create schema herder_shadow_{}_9900000000_00000000_b",
            fleet.owner
        ),
    )
    .await;
    fleet.up(&[], "a").await.expect("a proof");
}

#[tokio::test]
async fn a_role_that_may_make_no_schema_gets_live_migrations() {
    let fleet = Fleet::new(ENV, &[("a", TABLE)]).await;
    let role = format!("r{}", uuid::Uuid::new_v4().simple());
    run(&mut fleet.admin().await, &format!("create role {role} login")).await;
    let Offer::Plan(plan) = fleet
        .offer(Direction::Upgrade, &[], Some("a"))
        .await
        .expect("an offer")
    else {
        panic!("no plan")
    };
    let url = fleet.url.expose().replacen("postgres@", &format!("{role}@"), 1);
    let url = DatabaseUrl::parse(&url).expect("a URL");
    assert_eq!(url.user().as_deref(), Some(role.as_str()));
    match fleet.prove(&url, &plan, Some("a")).await.expect("a verdict") {
        Verdict::Unproven { why } => assert!(
            why.contains("needs a scratch schema in") && why.contains("(42501)"),
            "{why}"
        ),
        verdict => panic!("it may not: {verdict:?}"),
    }
}

#[tokio::test]
async fn a_proof_that_is_told_to_stop_leaves_nothing() {
    let fleet = Fleet::new(ENV, &[("a", "op.execute('select pg_sleep(20)')")]).await;
    let Offer::Plan(plan) = fleet
        .offer(Direction::Upgrade, &[], Some("a"))
        .await
        .expect("an offer")
    else {
        panic!("no plan")
    };
    let cancel = CancellationToken::new();
    let limits = LimitsConfig::default();
    let ground = Ground {
        url: &fleet.url,
        place: &fleet.place(),
        limits: &limits,
        cancel: &cancel,
        owner: &fleet.owner,
    };
    let mut admin = fleet.admin().await;
    let stop = async {
        let busy = "select count(*) from pg_stat_activity where application_name like 'herder/shadow/%' and query ~ 'pg_sleep'
                    and datname = current_database()";
        while sqlx::query_scalar::<_, i64>(busy)
            .fetch_one(&mut admin)
            .await
            .expect("a look")
            == 0
        {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        cancel.cancel();
    };
    let (proven, ()) = tokio::join!(fleet.runner.prove(&plan, Some("a"), ground), stop);
    assert!(matches!(proven, Err(RunnerError::Cancelled)), "{proven:?}");
    fleet.is_clean().await;
}

#[tokio::test]
async fn the_config_has_the_last_word() {
    let reads = [("a", "op.get_bind().execute(sa.text('select 1')).scalar()")];
    let never = Fleet::with(ENV, &[("a", TABLE)], "plan = \"never\"").await;
    let why = never.up(&[], "a").await.expect_err("never");
    assert_eq!(why, "[runner] plan = \"never\"");
    let always = Fleet::with(ENV, &reads, "plan = \"always\"").await;
    let error = always
        .offer(Direction::Upgrade, &[], Some("a"))
        .await
        .expect_err("it cannot");
    assert_eq!(
        error.to_string(),
        "no plan can be made: revision a: it reads what a statement found"
    );
}

#[tokio::test]
async fn a_proof_is_kept_under_all_that_it_hangs_on() {
    let fleet = Fleet::new(ENV, &[("a", TABLE), ("b", "op.execute('select 1')")]).await;
    let Offer::Plan(plan) = fleet
        .offer(Direction::Upgrade, &["a"], Some("b"))
        .await
        .expect("an offer")
    else {
        panic!("no plan")
    };
    let (limits, cancel) = (LimitsConfig::default(), CancellationToken::new());
    let ground = Ground {
        url: &fleet.url,
        place: &fleet.place(),
        limits: &limits,
        cancel: &cancel,
        owner: &fleet.owner,
    };
    let key = async || {
        let key = fleet.runner.proof_key(&plan, Some("b"), ground).await;
        key.expect("a key").expect("the same rendering")
    };
    let first = key().await;
    assert_eq!(first, key().await);
    let env = fleet
        ._folder
        .as_ref()
        .expect("a folder")
        .path()
        .join("migrations/env.py");
    std::fs::write(env, format!("{ENV}\n# touched\n")).expect("env.py");
    assert_ne!(first, key().await);
}
