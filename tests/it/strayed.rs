//! Tenants of Alembic's that are not what their ledger says: they must not be migrated as if they were, nor others in their place.

use crate::fleet::{Fleet, Setup, Tool, ask, steps, tell};

const BEFORE: &str = "0011_audit";

/// Two tenants before the last revision, which alters `tasks`.
async fn fleet(plan: &str) -> Fleet {
    let setup = Setup::schemas(2).alembic_saas("alembic_schema.ini");
    let fleet = setup.set("runner.plan", plan).start().await;
    let up = ["upgrade", "--to", BEFORE, "--local", "2"];
    fleet.herder(&up).await.expect(0);
    fleet
}

async fn tell_second(fleet: &Fleet, sql: &str) {
    let schema = fleet.tenants[1].schema_name();
    tell(
        &fleet.home,
        &format!("set search_path = {schema}; {sql}; reset search_path"),
    )
    .await;
}

/// Migrates both, and returns why the second was not.
async fn failed(fleet: &Fleet, reason: &str) -> String {
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(4);
    let [first, second] = [0, 1].map(|i| fleet.tenants[i].id.clone());
    assert_eq!(fleet.job(&first).await["outcome"], "migrated");
    let job = fleet.job(&second).await;
    assert_eq!(job["error"]["reason"], reason, "{job:#}");
    format!("{} {}", job["error"]["message"], job["error"]["hint"])
}

#[tokio::test]
async fn another_schema_s_table_is_not_altered_in_place_of_one_that_is_missing() {
    for plan in ["auto", "never"] {
        let fleet = fleet(plan).await;
        tell_second(
            &fleet,
            "drop table tasks cascade; create table public.tasks (id int)",
        )
        .await;
        let said = failed(&fleet, "tool_failed").await;
        assert!(said.contains("the tenant has no tasks"), "{plan}: {said}");
        assert!(said.contains("schema `public`"), "{plan}: {said}");
        let columns =
            "select count(*) from pg_attribute where attrelid = 'public.tasks'::regclass and attnum > 0";
        assert_eq!(ask::<i64>(&fleet.home, columns).await, 1, "{plan}");
    }
}

#[tokio::test]
async fn a_ledger_with_the_same_row_twice_is_nothing_to_build_on() {
    for plan in ["auto", "never"] {
        let fleet = fleet(plan).await;
        let twice = "alter table alembic_version drop constraint alembic_version_pkc; \
                     insert into alembic_version select * from alembic_version";
        tell_second(&fleet, twice).await;
        let said = failed(&fleet, "tool_failed").await;
        assert!(
            said.contains("2 found") && said.contains("delete"),
            "{plan}: {said}"
        );
    }
}

#[tokio::test]
async fn a_ledger_with_a_row_that_another_builds_on_is_not_current() {
    let fleet = fleet("auto").await;
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    tell_second(
        &fleet,
        &format!("insert into alembic_version values ('{BEFORE}')"),
    )
    .await;
    let listed = fleet
        .herder(&["tenants", "--revisions", "--output-format", "json"])
        .await
        .expect(0)
        .json();
    let second = &listed["tenants"][1];
    assert_eq!(second["status"], "unknown", "{second:#}");
    let said = second.to_string();
    assert!(said.contains(BEFORE) && said.contains("builds on it"), "{said}");
    fleet.herder(&["plan", "--check"]).await.expect(7);
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(4);
    let job = fleet.job(&fleet.tenants[1].id).await;
    assert_eq!(job["error"]["reason"], "ledger_overlap", "{job:#}");
}

/// What the alembic command would make of it is what Herder makes of it: the ledger says how far it came.
#[tokio::test]
async fn an_env_that_exits_with_zero_has_come_to_a_good_end() {
    let fleet = Setup::schemas(2)
        .migrations(Tool::Alembic, steps(2))
        .start()
        .await;
    let env = fleet.project().text("env.py");
    let silent = "\nimport sys\nsys.stdout = sys.stderr = None\n";
    fleet
        .project()
        .file("env.py", &format!("{env}{silent}sys.exit(0)\n"));
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    fleet.project().file("env.py", &format!("import sys\n{env}"));
    let early = "from alembic import op\nimport sys\nrevision = '20250103'\ndown_revision = '20250102'\n\n\
                 def upgrade():\n    op.execute('create table early (x int)')\n    sys.exit(0)\n";
    fleet.project().file("versions/20250103_step.py", early);
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(4);
    let job = fleet.job(&fleet.tenants[0].id).await;
    assert_eq!(job["error"]["reason"], "ledger_mismatch", "{job:#}");
}

/// A tenant without a ledger has nothing to compare, and may stray all the same.
#[tokio::test]
async fn a_new_tenant_does_not_drop_what_belongs_to_all() {
    let first = steps(1).remove(0).then("drop table if exists legacy");
    let setup = Setup::schemas(1).migrations(Tool::Alembic, vec![first]);
    let fleet = setup.set("runner.plan", "always").start().await;
    tell(&fleet.home, "create table public.legacy (id int)").await;
    fleet.herder(&["upgrade", "--local", "1"]).await.expect(4);
    let job = fleet.job(&fleet.tenants[0].id).await;
    let said = job["error"]["message"].to_string();
    assert!(said.contains("the tenant has no legacy"), "{job:#}");
    assert!(ask::<bool>(&fleet.home, "select to_regclass('public.legacy') is not null").await);
    tell(&fleet.home, "drop table public.legacy").await;
    fleet.herder(&["upgrade", "--local", "1"]).await.expect(0);
    fleet.assert_by_plan().await;
}
