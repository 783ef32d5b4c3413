//! An env.py that goes elsewhere, or writes there.

use super::*;

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
    let role = format!("r{}", uuid::Uuid::new_v4().simple());
    let env = ENV.replace(
        "        connection.execute(text(f'SET search_path",
        &format!("        connection.execute(text('SET ROLE {role}'))\n        connection.execute(text(f'SET search_path"),
    );
    let fleet = Fleet::new(&env, &[("a", TABLE)]).await;
    run(&mut fleet.admin().await, &format!("create role {role}")).await;
    assert_eq!(
        fleet.up(&[], "a").await.expect_err("it may not"),
        format!("env.py works as role `{role}`, which has no rights in a scratch schema")
    );
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
