//! Alembic's plans in whole fleets: what a run does by plan and what live, and what a proof leaves when it is broken off.

use std::path::Path;

use rustix::process::Signal;
use sqlx::AssertSqlSafe;
use tempfile::TempDir;

use crate::fleet::{Fleet, Setup, Step, ask, list, steps, tell};

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

/// A fleet whose proof waits in a scratch schema.
async fn proving() -> (Fleet, crate::fleet::Gate, crate::fleet::Herder) {
    let [first, second] = steps(2).try_into().expect("two");
    let fleet = Setup::schemas(3).plans(vec![first, second.gated()]).start().await;
    let gate = fleet.close_gate().await;
    let herder = fleet.start_herder(&["upgrade"]);
    fleet.wait_at_gate(1).await;
    assert_ne!(list(&fleet.home, LEFT).await, [""; 0]);
    (fleet, gate, herder)
}

#[tokio::test]
async fn ctrl_c_in_a_proof_leaves_nothing_and_starts_nothing() {
    let (fleet, _gate, herder) = proving().await;
    herder.signal(Signal::INT);
    let ended = herder.end().await.expect(130);
    assert!(ended.stderr.contains("No run was started"), "{}", ended.all());
    assert_eq!(fleet.state().await, "none");
    let schemas = "select nspname::text from pg_namespace where nspname like 'herder\\_shadow%'";
    assert_eq!(list(&fleet.home, schemas).await, [""; 0]);
    fleet
        .wait_until("its sessions are gone", async || {
            list(&fleet.home, LEFT).await.is_empty()
        })
        .await;
}

#[tokio::test]
async fn the_next_proof_clears_away_what_a_killed_one_left() {
    let (fleet, gate, herder) = proving().await;
    herder.kill().await;
    let schemas = "select count(*) from pg_namespace where nspname like 'herder\\_shadow%'";
    assert_eq!(ask::<i64>(&fleet.home, schemas).await, 2);
    gate.open().await;
    fleet.herder(&["plan"]).await.expect(0);
    fleet
        .wait_until("nothing is left", async || {
            list(&fleet.home, LEFT).await.is_empty()
        })
        .await;
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    assert_eq!(by_plan_and_live(&fleet).await, (3, 0));
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
}

#[tokio::test]
async fn a_proof_is_made_once_for_the_same_migrations() {
    let fleet = Setup::schemas(3).plans(steps(2)).start().await;
    let proofs = "select count(*) from herder.proof";
    fleet.herder(&["plan"]).await.expect(0);
    assert_eq!(fleet.ask::<i64>(proofs).await, 1);
    let proven = "select max(proven_at)::text from herder.proof";
    let before: String = fleet.ask(proven).await;
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    assert_eq!(fleet.ask::<i64>(proofs).await, 1);
    assert_eq!(fleet.ask::<String>(proven).await, before);
    fleet
        .herder(&["downgrade", "--to", "-1", "--yes", "--local", "2"])
        .await
        .expect(0);
    assert_eq!(fleet.ask::<i64>(proofs).await, 2);
    assert_eq!(by_plan_and_live(&fleet).await, (3, 0));
}

/// A plan is fitted to one tenant's sessions. Those of another database may begin in another way.
#[tokio::test]
async fn a_plan_is_not_used_where_sessions_begin_in_another_way() {
    let [first, second] = steps(2).try_into().expect("two");
    let second = second
        .then("create table w (at timestamptz)")
        .then("insert into w values ('2024-01-10 12:00')");
    let fleet = Setup::databases(3).plans(vec![first, second]).start().await;
    let elsewhere = fleet.database("t002");
    let zone = format!("alter database {elsewhere} set timezone = 'Asia/Tokyo'");
    tell(&fleet.home, &zone).await;
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    let times = "select (at at time zone 'UTC')::text from w";
    for (database, at) in [
        ("t001", "2024-01-10 12:00:00"),
        ("t002", "2024-01-10 03:00:00"),
        ("t003", "2024-01-10 12:00:00"),
    ] {
        let pool = fleet.pool(&fleet.database(database));
        assert_eq!(list(&pool, times).await, [at], "{database}");
    }
    assert_eq!(by_plan_and_live(&fleet).await, (2, 1));
}

/// A backslash in a plain literal, and the digits of a number as text.
#[tokio::test]
async fn a_plan_is_not_used_where_its_literals_mean_something_else() {
    let [first, second] = steps(2).try_into().expect("two");
    let first = first
        .then("create table w (a text, f float8)")
        .then("insert into w values ('x', 0.1::float8 + 0.2)");
    let second = second.then("update w set a = a || 'a\\\\b' || f");
    let fleet = Setup::databases(3).plans(vec![first, second]).start().await;
    for (tenant, setting) in [
        ("t002", "standard_conforming_strings = off"),
        ("t003", "extra_float_digits = 0"),
    ] {
        tell(
            &fleet.home,
            &format!("alter database {} set {setting}", fleet.database(tenant)),
        )
        .await;
    }
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    assert_eq!(by_plan_and_live(&fleet).await, (1, 2));
    for (tenant, text) in [
        ("t001", "xa\\b0.30000000000000004"),
        ("t002", "xa\u{8}0.30000000000000004"),
        ("t003", "xa\\b0.3"),
    ] {
        let pool = fleet.pool(&fleet.database(tenant));
        assert_eq!(list(&pool, "select a from w").await, [text], "{tenant}");
    }
}

/// Where all of them are so, nothing is rendered.
#[tokio::test]
async fn a_place_where_backslashes_escape_has_no_plan() {
    let fleet = Setup::schemas(2).plans(steps(2)).start().await;
    let home = fleet.database("home");
    tell(
        &fleet.home,
        &format!("alter database {home} set standard_conforming_strings = off"),
    )
    .await;
    let shown = fleet.herder(&["plan"]).await.expect(0);
    assert!(
        shown.stdout.contains("live: its sessions have standard_conforming_strings off, and a plan's literals are written for on"),
        "{}",
        shown.all()
    );
}

/// Two tenants, of which t002 has the type already that the last revision makes where it is missing.
async fn half_with_the_type(setup: Setup) -> Fleet {
    let fleet = setup.plans(steps(2)).start().await;
    let body = "from alembic import op\nfrom sqlalchemy.dialects import postgresql as pg\n\
                revision = '20250203'\ndown_revision = '20250102'\n\n\
                def upgrade():\n    pg.ENUM('a', 'b', name='kind').create(op.get_bind(), checkfirst=True)\n\n\
                def downgrade():\n    pass\n";
    fleet.project().file("versions/20250203_step.py", body);
    tell(&fleet.home, "create type t002.kind as enum ('a', 'b')").await;
    fleet
}

/// A revision that looks first has a plan that does. Whoever has the thing already is left to the tool.
#[tokio::test]
async fn what_is_there_already_is_left_to_the_tool() {
    let fleet = half_with_the_type(Setup::schemas(2)).await;
    let shown = fleet.herder(&["plan", "--sql"]).await.expect(0).all();
    let look = "if pg_catalog.to_regtype('\"kind\"') is not null then";
    assert!(shown.contains(look), "{shown}");
    let rehearsal = fleet
        .herder(&["rehearse", "--all", "--output-format", "json"])
        .await
        .expect(0)
        .json();
    let forecasts = rehearsal["tenants"].as_array().expect("tenants");
    let left: Vec<_> = forecasts
        .iter()
        .filter(|tenant| tenant["forecast"] == "not_rehearsed")
        .collect();
    assert!(
        left.len() == 1
            && left[0]["why"]
                .as_str()
                .is_some_and(|why| why.contains("its plan does not fit there")),
        "{rehearsal:#}"
    );
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    assert_eq!(by_plan_and_live(&fleet).await, (1, 1));
}

/// A fleet whose last revision makes something where it is missing. The first tenant is there already, by a plan: a proof is kept.
async fn after_one_that_looked(steps: &[Step], body: &str) -> Fleet {
    let setup = Setup::schemas(3).plans(steps.to_vec());
    let fleet = setup.start().await;
    let down = steps.last().map_or("", |step| step.id);
    let body = format!(
        "from alembic import op\nimport sqlalchemy as sa\nfrom sqlalchemy.dialects import postgresql as pg\n\
         revision = '20250102'\ndown_revision = '{down}'\n\ndef upgrade():\n    bind = op.get_bind()\n{body}\n\
         def downgrade():\n    pass\n"
    );
    fleet.project().file("versions/20250102_step.py", &body);
    let first = ["upgrade", "--to", "20250102", "--tenant", "t001", "--local", "1"];
    fleet.herder(&first).await.expect(0);
    assert_eq!(by_plan_and_live(&fleet).await, (1, 0));
    fleet
}

/// The tables and enums of a tenant's own that its last revision made.
async fn own(fleet: &Fleet, schema: &str) -> Vec<String> {
    let asked =
        "select typname::text from pg_type where typnamespace = to_regnamespace($1) and typtype in ('c', 'e')
                 and typname not in ('alembic_version', 'effects') order by typname collate \"C\"";
    let asked = sqlx::query_scalar(asked).bind(schema);
    asked.fetch_all(&fleet.home).await.expect("a look")
}

/// Live Alembic looks along the whole search_path. Whoever finds there what the revision makes is left to it, though the plan was proven
/// when nobody did.
#[tokio::test]
async fn what_the_search_path_has_by_now_is_made_by_no_plan() {
    let tables = "    metadata = sa.MetaData()\n    \
                  for name in ('plain', 'Odd one'):\n        \
                  sa.Table(name, metadata, sa.Column('kind', sa.Enum('a', name='kind')))\n    \
                  metadata.create_all(bind)\n";
    for (body, there, of_its_own) in [
        (tables, "create table public.plain ()", &["Odd one", "kind"][..]),
        (
            tables,
            "create type public.kind as enum ('a')",
            &["Odd one", "plain"],
        ),
        (
            "    pg.ENUM('a', name='Kind').create(bind)\n",
            "create type public.\"Kind\" as enum ('a')",
            &[],
        ),
    ] {
        let fleet = after_one_that_looked(&steps(1), body).await;
        tell(&fleet.home, there).await;
        fleet
            .herder(&["upgrade", "--tenant", "t002", "--local", "1"])
            .await
            .expect(0);
        assert_eq!(by_plan_and_live(&fleet).await, (0, 1), "{there}");
        let tried = "select count(*) from herder.attempt where result = 'replanned'";
        assert_eq!(fleet.ask::<i64>(tried).await, 1, "{there}");
        assert_eq!(
            fleet.ask::<i64>("select count(*) from herder.proof").await,
            1,
            "{there}"
        );
        fleet.configure(|config| config["runner"]["plan"] = "never".into());
        fleet
            .herder(&["upgrade", "--tenant", "t003", "--local", "1"])
            .await
            .expect(0);
        for tenant in ["t002", "t003"] {
            assert_eq!(own(&fleet, tenant).await, of_its_own, "{tenant}, {there}");
        }
    }
}

/// A revision in pieces behind it changes nothing: none of them is begun.
#[tokio::test]
async fn what_the_search_path_has_is_left_to_the_tool_ahead_of_a_revision_in_pieces() {
    let body = "    pg.ENUM('a', name='kind').create(bind)\n";
    let fleet = after_one_that_looked(&steps(1), body).await;
    let torn = "from alembic import op\nrevision = '20250203'\ndown_revision = '20250102'\n\n\
                def upgrade():\n    with op.get_context().autocommit_block():\n        \
                op.execute('create index concurrently i on effects (step)')\n\n\
                def downgrade():\n    pass\n";
    fleet.project().file("versions/20250203_step.py", torn);
    fleet
        .herder(&["upgrade", "--tenant", "t002", "--local", "1"])
        .await
        .expect(0);
    assert_eq!(by_plan_and_live(&fleet).await, (1, 0));
    tell(&fleet.home, "create type public.kind as enum ('a')").await;
    fleet
        .herder(&["upgrade", "--tenant", "t003", "--local", "1"])
        .await
        .expect(0);
    assert_eq!(by_plan_and_live(&fleet).await, (0, 1));
    assert!(own(&fleet, "t002").await.contains(&"kind".into()));
    assert!(!own(&fleet, "t003").await.contains(&"kind".into()));
}

#[tokio::test]
async fn a_plans_error_is_told_where_the_tool_cannot_be_asked() {
    let no_tool = half_with_the_type(Setup::schemas(2)).await;
    no_tool.herder(&["upgrade"]).await.expect(0);
    no_tool.configure(|config| config["runner"]["python"] = "/nowhere/python".into());
    let worker = no_tool.worker(&[]);
    assert_eq!(no_tool.over().await, "failed");
    assert_eq!(worker.drain().await, Some(0));
    let no_room = half_with_the_type(Setup::schemas(2).set("servers.main.budget", 1)).await;
    no_room.herder(&["upgrade", "--local", "1"]).await.expect(4);

    for (fleet, why) in [(no_tool, "/nowhere/python"), (no_room, "has 1 in its budget")] {
        let error = &fleet.job("t002").await["error"];
        assert_eq!(
            (&error["sqlstate"], &error["message"]),
            (&"42710".into(), &"type \"kind\" already exists".into())
        );
        assert_eq!(error["revision"], "20250203");
        let hint = error["hint"].as_str().unwrap_or_default();
        assert!(hint.contains(why), "{error:#}");
        assert_eq!(fleet.count("succeeded").await, 1);
    }
}

/// With room for one connection a plan is all that can be done.
#[tokio::test]
async fn a_tenant_that_needs_the_tool_where_there_is_no_room_for_it_fails_and_says_so() {
    let setup = Setup::databases(2).plans(steps(1)).set("servers.main.budget", 1);
    let fleet = setup.start().await;
    let zone = format!(
        "alter database {} set timezone = 'Asia/Tokyo'",
        fleet.database("t002")
    );
    tell(&fleet.home, &zone).await;
    fleet.herder(&["upgrade", "--local", "1"]).await.expect(4);
    let error = &fleet.job("t002").await["error"];
    let message = error["message"].as_str().unwrap_or_default();
    assert!(message.contains("server `main` has 1 in its budget"), "{error:#}");
    assert_eq!(fleet.count("succeeded").await, 1);
}

/// Mended migrations go by the tool. A run that has no room for that is not made to wait for it.
#[tokio::test]
async fn a_retry_that_needs_the_tool_where_there_is_no_room_for_it_is_refused() {
    let [first, second] = steps(2).try_into().expect("two");
    let broken = second.clone().then("select 1 / 0 from locked");
    let first = first
        .then("create table locked (n int)")
        .then("insert into locked values (1)");
    let setup = Setup::schemas(1).plans(vec![first.clone(), broken]);
    let fleet = setup.set("servers.main.budget", 1).start().await;
    // Nothing is read in a scratch schema that would fail there.
    fleet.configure(|config| config["runner"]["plan"] = "always".into());
    fleet.herder(&["upgrade", "--local", "1"]).await.expect(4);
    fleet.project().rewrite(&[first, second]);
    let said = fleet.herder(&["retry", "--local", "1"]).await.expect(3).all();
    assert!(
        said.contains("the budget of server `main` is 1") && said.contains("needs 2"),
        "{said}"
    );
    assert_eq!(fleet.state().await, "failed");
    fleet.herder(&["budget", "main", "--set", "2"]).await.expect(0);
    fleet.herder(&["retry", "--local", "1"]).await.expect(0);
}

#[tokio::test]
async fn the_budget_that_a_person_set_decides_whether_a_run_can_be_made() {
    let setup = Setup::schemas(1).plans(steps(2)).set("servers.main.budget", 1);
    let fleet = setup.start().await;
    fleet.herder(&["upgrade", "--local", "1"]).await.expect(0);
    fleet.configure(|config| config["runner"]["plan"] = "never".into());
    let down = ["downgrade", "--to", "-1", "--yes", "--local", "1"];
    for (set, configured, exit) in [("2", 1, 0), ("1", 5, 3)] {
        fleet.herder(&["budget", "main", "--set", set]).await.expect(0);
        fleet.configure(|config| config["servers"]["main"]["budget"] = configured.into());
        fleet.herder(&down).await.expect(exit);
    }
}

/// sqlx tells the server another time zone than anybody else's client does.
#[tokio::test]
async fn a_plan_reads_times_as_the_tools_own_sessions_do() {
    let [first, second] = steps(2).try_into().expect("two");
    let first = first.then("create table w (at timestamp, d text)");
    let second = second.then("alter table w alter at type timestamptz, alter d type date using d::date");
    let fleet = Setup::schemas(1).plans(vec![first, second]).start().await;
    let worker = fleet.worker(&[]);
    fleet
        .herder(&["upgrade", "--to", "20250101", "--wait"])
        .await
        .expect(0);
    tell(
        &fleet.home,
        "insert into t001.w values ('2024-01-10 12:00', '02/01/2024')",
    )
    .await;
    for setting in ["timezone = 'Europe/Berlin'", "datestyle = 'ISO, DMY'"] {
        let home = fleet.database("home");
        tell(&fleet.home, &format!("alter database {home} set {setting}")).await;
    }
    let shown = fleet.herder(&["plan", "--sql"]).await.expect(0);
    assert!(
        shown.stdout.contains("SET LOCAL TimeZone = 'Europe/Berlin';\n"),
        "{}",
        shown.all()
    );
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    fleet.assert_by_plan().await;
    let times = "select format('%s %s', at at time zone 'UTC', to_char(d, 'YYYY-MM-DD')) from t001.w";
    assert_eq!(list(&fleet.home, times).await, ["2024-01-10 11:00:00 2024-01-02"]);
    assert_eq!(worker.drain().await, Some(0));
}
