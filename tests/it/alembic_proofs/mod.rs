//! Alembic's plans in whole fleets: what a run does by plan, and what live.

mod kept;
mod room;
mod there_already;

use std::path::Path;

use sqlx::AssertSqlSafe;
use tempfile::TempDir;

use crate::fleet::{Fleet, Gate, Herder, Setup, Step, ask, list, steps, tell};

/// Every scratch schema, and every session of a proof.
const LEFT: &str = "
    select nspname::text from pg_namespace where nspname like 'herder\\_shadow%'
    union all select application_name from pg_stat_activity
    where application_name like 'herder/shadow/%' and datname = current_database()";

/// A project with an `env.py` and revisions of its own, besides the fleet's.
struct Project(TempDir);

impl Project {
    fn new(env: &str) -> Self {
        let project = Self(tempfile::tempdir().expect("a folder"));
        std::fs::create_dir(project.0.path().join("versions")).expect("a folder");
        project.write(
            "alembic.ini",
            "[alembic]\nscript_location = %(here)s\nsqlalchemy.url = postgresql+asyncpg://nobody@localhost/nowhere\n",
        );
        project.write("env.py", env);
        project
    }

    /// The `env.py` of the realistic project.
    fn saas() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let env = std::fs::read_to_string(root.join("examples/alembic-saas/env_schema/env.py"));
        Self::new(&env.expect("env.py"))
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).expect(name);
    }

    /// A revision that runs a statement.
    fn revision(&self, id: &str, down: &str, up: &str) {
        self.write(
            &format!("versions/{id}.py"),
            &format!(
                "from alembic import context, op\nimport sqlalchemy as sa\nrevision = '{id}'\ndown_revision = {down}\n\n\
                 def upgrade():\n    {up}\n\ndef downgrade():\n    pass\n"
            ),
        );
    }

    /// `[runner]`, with the default for plans.
    fn runner(&self) -> String {
        format!(
            "kind = 'alembic'\nconfig = '{}/alembic.ini'\npython = '{}'",
            self.0.path().display(),
            crate::venv::python().display()
        )
    }
}

/// How many tenants of the latest run had a plan, and how many had none.
async fn by_plan_and_live(fleet: &Fleet) -> (i64, i64) {
    let of = async |what: &str| {
        fleet
            .ask::<i64>(&format!(
                "select count(*) from herder.job where plan_id {what} and outcome is distinct from 'already_current'
                 and run_id = (select id from herder.run order by created_at desc limit 1)"
            ))
            .await
    };
    (of("is not null").await, of("is null").await)
}

#[tokio::test]
async fn tenants_at_different_revisions_have_a_plan_each() {
    let fleet = Setup::schemas(6).plans(steps(3)).start().await;
    for (tenant, to) in [("t001", "+1"), ("t002", "+2")] {
        fleet
            .herder(&["upgrade", "--to", to, "--tenant", tenant, "--local", "1"])
            .await
            .expect(0);
    }
    let plan = fleet
        .herder(&["plan", "--sql", "--output-format", "json"])
        .await
        .expect(0)
        .json();
    let groups = plan["groups"].as_array().expect("groups");
    assert_eq!(groups.len(), 3, "{plan:#}");
    for group in groups {
        assert_eq!(group["by"], "plan", "{plan:#}");
        let sql = group["steps"][0]["sql"].as_str().expect("SQL");
        assert!(sql.contains("insert into effects"), "{sql}");
        // The newest revision is pending for all; the oldest only for those that have none.
        assert!(sql.contains("up 20250203"), "{sql}");
        assert_eq!(sql.contains("up 20250101"), group["from"].is_null(), "{sql}");
    }
    let worker = fleet.worker(&[]);
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    assert_eq!(by_plan_and_live(&fleet).await, (6, 0));
    fleet
        .assert_effects(&["up 20250101", "up 20250102", "up 20250203"])
        .await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_tenant_that_moved_since_goes_on_live_from_where_it_stands() {
    let fleet = Setup::schemas(3).plans(steps(3)).start().await;
    fleet.herder(&["upgrade"]).await.expect(0);
    tell(
        &fleet.home,
        "insert into t002.effects (step) values ('up 20250101');
         create table t002.alembic_version (version_num varchar(32) primary key);
         insert into t002.alembic_version values ('20250101')",
    )
    .await;
    let worker = fleet.worker(&[]);
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    fleet
        .assert_effects(&["up 20250101", "up 20250102", "up 20250203"])
        .await;
    assert_eq!(by_plan_and_live(&fleet).await, (2, 1));
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn two_heads_are_joined_by_plan() {
    let project = Project::saas();
    project.revision("a", "None", "op.execute('create table t (a int)')");
    project.revision("b", "'a'", "op.execute('alter table t add b int')");
    project.revision("c", "'a'", "op.execute('alter table t add c int')");
    let fleet = Setup::schemas(4).runner(&project.runner()).start().await;
    for to in ["b", "c"] {
        fleet
            .herder(&["upgrade", "--to", to, "--local", "2"])
            .await
            .expect(0);
        assert_eq!(by_plan_and_live(&fleet).await, (4, 0), "{to}");
    }
    let heads = list(
        &fleet.home,
        "select version_num from t003.alembic_version order by 1",
    )
    .await;
    assert_eq!(heads, ["b", "c"]);
    // There is no head, but a place where each stands.
    let listed = ["tenants", "--revisions", "--output-format", "json"];
    let listed = fleet.herder(&listed).await.expect(0).json();
    let at = listed["tenants"][2]["revision"].as_str();
    assert!(matches!(at, Some("b,c" | "c,b")), "{listed:#}");
    assert_eq!(listed["counts"]["unknown"], 4, "{listed:#}");
    project.revision(
        "d",
        "('b', 'c')",
        "op.execute('create view v as select b, c from t')",
    );
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    assert_eq!(by_plan_and_live(&fleet).await, (4, 0));
    for tenant in &fleet.tenants {
        let at = format!("select version_num from {}.alembic_version", tenant.schema_name());
        assert_eq!(list(&fleet.home, &at).await, ["d"]);
    }
    fleet.assert_public_untouched().await;
}

#[tokio::test]
async fn a_step_down_from_a_merge_is_refused_where_all_stand_on_it() {
    let project = Project::saas();
    project.revision("a", "None", "op.execute('create table t (a int)')");
    project.revision("b", "'a'", "pass");
    project.revision("c", "'a'", "pass");
    project.revision("d", "('b', 'c')", "pass");
    let fleet = Setup::schemas(2).runner(&project.runner()).start().await;
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    let step = ["downgrade", "--to", "-1", "--yes", "--local", "2"];
    let refused = fleet.herder(&step).await.expect(2);
    assert!(
        refused.stderr.contains("-1 from `d` is ambiguous")
            && refused.stderr.contains("hint: name the revision"),
        "{}",
        refused.stderr
    );
    assert_eq!(fleet.ask::<i64>("select count(*) from herder.run").await, 1);

    // What the hint says goes.
    let named = [
        "downgrade",
        "--to",
        "b",
        "--yes",
        "--tenant",
        "t001",
        "--local",
        "1",
    ];
    fleet.herder(&named).await.expect(0);
    fleet
        .herder(&[
            "downgrade",
            "--to",
            "a",
            "--yes",
            "--tenant",
            "t001",
            "--local",
            "1",
        ])
        .await
        .expect(0);

    // Where it is clear for some, the others fail with the hint.
    fleet.herder(&step).await.expect(4);
    let failed = fleet.job("t002").await;
    assert_eq!(failed["state"], "failed", "{failed:#}");
    assert!(
        failed["error"]["hint"]
            .as_str()
            .is_some_and(|hint| hint.contains("--to")),
        "{failed:#}"
    );
    assert_eq!(fleet.job("t001").await["state"], "succeeded");
}

/// A guide's `env.py` whose online mode never commits, with an offline mode that is right: the plan is fine, and live
/// Alembic migrates nothing. Nobody may succeed by what the project itself does not do.
#[tokio::test]
async fn an_env_that_never_commits_is_found_out_though_it_renders() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let guide = std::fs::read_to_string(root.join("examples/alembic-saas/env_docs/env.py")).expect("env.py");
    let online = "asyncio.run(run_migrations_online())";
    assert!(guide.contains(online));
    let offline = format!(
        "if context.is_offline_mode():\n\
         \x20   schema = context.get_x_argument(as_dictionary=True)['schema']\n\
         \x20   context.configure(url='postgresql://', version_table_schema=schema, literal_binds=True)\n\
         \x20   with context.begin_transaction():\n\
         \x20       context.execute(f'SET LOCAL search_path TO \"{{schema}}\", public')\n\
         \x20       context.run_migrations()\n\
         else:\n    {online}"
    );
    let project = Project::new(&guide.replace(online, &offline));
    project.revision("a", "None", "op.execute('create table t (a int)')");
    let fleet = Setup::schemas(3).runner(&project.runner()).start().await;
    let plan = fleet
        .herder(&["plan", "--output-format", "json"])
        .await
        .expect(0)
        .json();
    assert_eq!(plan["groups"][0]["by"], "live", "{plan:#}");
    let why = plan["groups"][0]["why"].as_str().unwrap_or_default();
    assert!(
        why.starts_with("the plan does not do what live Alembic does"),
        "{why}"
    );
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(4);
    let status = fleet.status().await;
    assert_eq!(status["counts"]["succeeded"], 0, "{status:#}");
    for job in status["jobs"].as_array().expect("jobs") {
        assert_eq!(job["error"]["reason"], "ledger_mismatch", "{job:#}");
        let hint = job["error"]["hint"].as_str().unwrap_or_default();
        assert!(hint.contains("commit"), "{job:#}");
    }
    assert_eq!(list(&fleet.home, LEFT).await, [""; 0]);
    fleet.assert_public_untouched().await;
}

#[tokio::test]
async fn what_is_migrated_live_says_why() {
    let project = Project::saas();
    project.revision("a", "None", "op.execute('create table t (a int)')");
    project.revision(
        "b",
        "'a'",
        "[op.execute('insert into t values (1)') for _ in op.get_bind().execute(sa.text('select 1'))]",
    );
    let fleet = Setup::schemas(3).runner(&project.runner()).start().await;
    let shown = fleet.herder(&["plan"]).await.expect(0);
    let why = "live: revision b: it reads what a statement found";
    assert!(shown.stdout.contains(why), "{}", shown.all());
    let script = fleet.herder(&["plan", "--sql"]).await.expect(0);
    assert!(script.stdout.contains(&format!("-- {why}")), "{}", script.all());
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    assert_eq!(by_plan_and_live(&fleet).await, (0, 3));
    let rows = "select (select count(*) from t001.t) + (select count(*) from t002.t) + (select count(*) from t003.t)";
    assert_eq!(ask::<i64>(&fleet.home, rows).await, 3);
}

/// One that may make no schemas: its tenants are migrated all the same.
#[tokio::test]
async fn a_role_without_the_right_to_make_schemas_migrates_live() {
    let fleet = Setup::schemas(3).plans(steps(2)).start().await;
    let role = fleet.database("role");
    let mut sql = format!("create role {role} login;");
    for tenant in &fleet.tenants {
        let schema = tenant.schema_name();
        sql +=
            &format!("alter schema {schema} owner to {role}; alter table {schema}.effects owner to {role};");
    }
    tell(&fleet.home, &sql).await;
    let url = fleet.cluster.url(&fleet.database("home"));
    let url = url.replacen("postgres@", &format!("{role}@"), 1);
    fleet.configure(|config| config["servers"]["main"]["url"] = url.into());
    let shown = fleet.herder(&["plan"]).await.expect(0);
    let why = "live: its proof needs a scratch schema in";
    assert!(shown.stdout.contains(why), "{}", shown.all());
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    assert_eq!(by_plan_and_live(&fleet).await, (0, 3));
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    sqlx::raw_sql(AssertSqlSafe(format!(
        "reassign owned by {role} to postgres; drop role {role}"
    )))
    .execute(&fleet.home)
    .await
    .expect("the role goes");
}
