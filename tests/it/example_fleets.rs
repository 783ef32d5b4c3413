//! The example projects over whole fleets: two workers, one of them killed in the middle, everything exactly once.
//!
//! The large fleets take minutes and are ignored: `just test-large`.

use std::time::{Duration, Instant};

use crate::fleet::{Fleet, Setup, ask, list};

/// What a tenant's schema looks like, the same for any name of it: tables, columns, indexes, constraints, functions,
/// triggers, types, and the rows that the migrations brought.
const SHAPE: &str = "
    with home as (select oid, nspname from pg_namespace where nspname = $1),
    thing as (
        select format('%s %s.%s %s', c.relkind, c.relname, a.attname, format_type(a.atttypid, a.atttypmod)) as line
        from home join pg_class c on c.relnamespace = home.oid join pg_attribute a on a.attrelid = c.oid
        where a.attnum > 0 and not a.attisdropped and c.relkind in ('r', 'i', 'S')
        union all select pg_get_indexdef(indexrelid) || indisvalid from home join pg_class c on c.relnamespace = home.oid
        join pg_index on indexrelid = c.oid
        union all select conname || pg_get_constraintdef(c.oid) from home join pg_constraint c on connamespace = home.oid
        union all select proname || prosrc from home join pg_proc on pronamespace = home.oid
        union all select tgname from home join pg_class c on c.relnamespace = home.oid join pg_trigger on tgrelid = c.oid
        where not tgisinternal
        union all select typname from home join pg_type on typnamespace = home.oid
    )
    select coalesce(string_agg(replace(replace(line, format('%I.', nspname), ''), nspname || '.', ''), e'\\n' order by line), '')
    from thing, home";

/// The two workers, the run, the kill, and how long the run took.
async fn migrated_despite_a_kill(fleet: &Fleet) -> Duration {
    let tenants = i64::try_from(fleet.tenants.len()).expect("a count");
    let doomed = fleet.worker(&["--name", "doomed"]);
    let heir = fleet.worker(&["--name", "heir"]);
    let start = Instant::now();
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet
        .wait_long("a third of the tenants is done", async || {
            fleet.count("succeeded").await >= tenants / 3
        })
        .await;
    doomed.kill().await;
    fleet
        .wait_long("the run is over", async || fleet.state().await != "running")
        .await;
    let took = start.elapsed();
    assert_eq!(fleet.state().await, "succeeded", "{}", fleet.last_seen().await);
    assert_eq!(fleet.count("succeeded").await, tenants);
    let odd = "select count(*) from herder.job where attempts <> 1";
    assert_eq!(fleet.ask::<i64>(odd).await, 0, "{}", fleet.last_seen().await);
    let rescued: i64 = fleet
        .ask("select count(*) from herder.attempt where result = 'rescued'")
        .await;
    eprintln!("{tenants} tenants in {took:.1?}, {rescued} of them rescued");
    assert_eq!(heir.drain().await, Some(0));
    took
}

/// By its own ledger, everybody is at the head; and another upgrade finds nothing to do, soon.
async fn nothing_is_left_to_do(fleet: &Fleet) {
    let deliveries = "select count(*) from apalis.jobs";
    let before: i64 = fleet.ask(deliveries).await;
    let start = Instant::now();
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    eprintln!("another upgrade took {:.1?}", start.elapsed());
    let current = "select count(*) from herder.job where outcome = 'already_current'";
    assert_eq!(fleet.ask::<i64>(current).await, fleet.tenants.len() as i64);
    assert_eq!(fleet.ask::<i64>(deliveries).await, before);
}

/// All schemas look the same, and hold the same rows.
async fn all_schemas_look_the_same(fleet: &Fleet, ledger: &str, revisions: i64) {
    let mut first: Option<(String, i64)> = None;
    for tenant in &fleet.tenants {
        let schema = tenant.schema.as_deref().expect("a schema");
        let shape: String = sqlx::query_scalar(SHAPE)
            .bind(schema)
            .fetch_one(&fleet.home)
            .await
            .expect("a shape");
        let rows = format!("select count(*) from {schema}.plans");
        let seen = (shape, ask::<i64>(&fleet.home, &rows).await);
        let first = first.get_or_insert_with(|| seen.clone());
        assert_eq!(&seen, first, "{schema}");
        let applied = format!("select count(*) from {schema}.{ledger}");
        assert_eq!(ask::<i64>(&fleet.home, &applied).await, revisions, "{schema}");
    }
    let (shape, plans) = first.expect("a tenant");
    assert!(shape.lines().count() > 50, "{shape}");
    assert!(plans > 0);
    fleet.assert_public_untouched().await;
}

async fn alembic(tenants: usize) {
    let fleet = Setup::schemas(tenants)
        .alembic_saas("alembic_schema.ini")
        .start()
        .await;
    migrated_despite_a_kill(&fleet).await;
    fleet.assert_by_plan().await;
    all_schemas_look_the_same(&fleet, "alembic_version", 1).await;
    nothing_is_left_to_do(&fleet).await;
}

/// Two fleets, one by plan and one by live Alembic, end alike.
async fn plans_and_live_alembic_end_alike(tenants: usize) {
    let mut shapes = Vec::new();
    for plan in ["auto", "never"] {
        let setup = Setup::schemas(tenants).alembic_saas("alembic_schema.ini");
        let fleet = setup.set("runner.plan", plan).start().await;
        let worker = fleet.worker(&["--concurrency", "2"]);
        fleet.herder(&["upgrade"]).await.expect(0);
        fleet
            .wait_long("the run is over", async || fleet.state().await != "running")
            .await;
        assert_eq!(fleet.state().await, "succeeded", "{}", fleet.last_seen().await);
        assert_eq!(worker.drain().await, Some(0));
        all_schemas_look_the_same(&fleet, "alembic_version", 1).await;
        let live: i64 = fleet
            .ask("select count(*) from herder.job where plan_id is null")
            .await;
        assert_eq!(live == 0, plan == "auto");
        let shape = sqlx::query_scalar::<_, String>(SHAPE).bind(fleet.tenants[0].schema.as_deref());
        shapes.push(shape.fetch_one(&fleet.home).await.expect("a shape"));
    }
    assert_eq!(shapes[0], shapes[1]);
}

async fn alembic_databases(tenants: usize) {
    let fleet = Setup::databases(tenants)
        .alembic_saas("alembic_database.ini")
        .start()
        .await;
    migrated_despite_a_kill(&fleet).await;
    fleet.assert_by_plan().await;
    for tenant in &fleet.tenants {
        let pool = fleet.pool(tenant.database.as_deref().expect("a database"));
        let at = list(&pool, "select version_num from alembic_version").await;
        assert_eq!(at, ["0012_task_priority"], "{}", tenant.id);
        pool.close().await;
    }
    nothing_is_left_to_do(&fleet).await;
}

async fn sql(tenants: usize) {
    let fleet = Setup::schemas(tenants).sql_saas().start().await;
    migrated_despite_a_kill(&fleet).await;
    all_schemas_look_the_same(&fleet, "_sqlx_migrations", 9).await;
    nothing_is_left_to_do(&fleet).await;
}

async fn databases(tenants: usize) {
    let fleet = Setup::databases(tenants).sql_saas().start().await;
    migrated_despite_a_kill(&fleet).await;
    for tenant in &fleet.tenants {
        let pool = fleet.pool(tenant.database.as_deref().expect("a database"));
        let seen = list(
            &pool,
            "select version::text from _sqlx_migrations where success union all select count(*)::text from plans",
        )
        .await;
        assert_eq!(seen.len(), 10, "{}: {seen:?}", tenant.id);
        pool.close().await;
    }
    nothing_is_left_to_do(&fleet).await;
}

#[tokio::test]
async fn alembic_saas_brings_60_schemas_to_the_head_despite_a_kill() {
    alembic(60).await;
}

#[tokio::test]
async fn alembic_saas_brings_12_databases_to_the_head_despite_a_kill() {
    alembic_databases(12).await;
}

#[tokio::test]
async fn alembic_saas_ends_alike_by_plan_and_live() {
    plans_and_live_alembic_end_alike(2).await;
}

#[tokio::test]
async fn sql_saas_brings_100_schemas_to_the_head_despite_a_kill() {
    sql(100).await;
}

#[tokio::test]
async fn sql_saas_brings_20_databases_to_the_head_despite_a_kill() {
    databases(20).await;
}

#[tokio::test]
#[ignore = "takes minutes: just test-large"]
async fn alembic_saas_brings_1000_schemas_to_the_head_despite_a_kill() {
    alembic(1000).await;
}

#[tokio::test]
#[ignore = "takes minutes: just test-large"]
async fn sql_saas_brings_1000_schemas_to_the_head_despite_a_kill() {
    sql(1000).await;
}

#[tokio::test]
#[ignore = "takes minutes: just test-large"]
async fn sql_saas_brings_200_databases_to_the_head_despite_a_kill() {
    databases(200).await;
}
