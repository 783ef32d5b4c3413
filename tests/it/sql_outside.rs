//! Files outside transactions, taken up again: an index is built or refused, and nothing is done twice.

use herder::{domain::revision::Direction, tenant_error::TenantError};
use sqlx::migrate::MigrateError;

use crate::{
    runner_sql::Bench,
    tenant::{execute, write},
};

const INDEX: &str = "-- no-transaction\ncreate unique index concurrently if not exists a_id on a (id)";

const INVALID: &str = "select count(*)::text from pg_index where not indisvalid";

#[tokio::test]
async fn an_index_that_failed_is_built_anew_once_the_data_is_mended() {
    let table = "create table a (id int); insert into a values (1), (1)";
    let bench = Bench::new(&[("1_a.sql", table), ("2_index.sql", INDEX)]).await;
    for _ in 0..2 {
        let error = bench.up().await.expect_err("there are duplicates");
        assert_eq!(
            error.to_job_error().sqlstate.as_deref(),
            Some("23505"),
            "{error:?}"
        );
        assert_eq!(bench.tenant.value(INVALID).await, "1");
        assert_eq!(bench.ledger().await, "1");
    }
    assert!(matches!(bench.sqlx().await, Err(MigrateError::Dirty(2))));
    bench.tenant.execute("truncate a").await;
    bench.up().await.expect("it is mended");
    assert_eq!(bench.tenant.value(INVALID).await, "0");
    assert_eq!(bench.ledger().await, "1,2");
    bench.sqlx().await.expect("sqlx agrees");
}

#[tokio::test]
async fn an_index_build_that_was_killed_is_taken_up_again() {
    let files = [
        ("1_a.sql", "create table a (id int); create table c (b int)"),
        (
            "2_index.up.sql",
            "-- no-transaction\nset statement_timeout = 0;\ncreate index concurrently first on c (b);\n\
             create index concurrently a_id on a (id);",
        ),
        (
            "2_index.down.sql",
            "-- no-transaction\ndrop index concurrently a_id; drop index concurrently first",
        ),
    ];
    let bench = Bench::new(&files).await;
    bench
        .tenant
        .attempt(&*bench.runner, Direction::Upgrade, "+1")
        .await
        .expect("a table");
    for (direction, target, ledger) in [
        (Direction::Upgrade, "head", "1,2"),
        (Direction::Downgrade, "1", "1"),
    ] {
        // The build waits for this transaction, after it has made the index known as invalid.
        let mut application = bench.tenant.application().await;
        execute(&mut application, "begin; insert into a values (1)").await;
        tokio::select! {
            done = bench.tenant.attempt(&*bench.runner, direction, target) => panic!("it came back: {done:?}"),
            () = bench.tenant.waits_for_a_lock() => {}
        }
        bench.tenant.is_left_alone().await;
        execute(&mut application, "rollback").await;
        bench
            .tenant
            .attempt(&*bench.runner, direction, target)
            .await
            .expect("the second try");
        assert_eq!(bench.ledger().await, ledger);
        assert_eq!(bench.tenant.value(INVALID).await, "0");
    }
    bench.up().await.expect("up again");
    assert_eq!(
        bench
            .tenant
            .value("select string_agg(relname, ' ' order by relname) from pg_class where relkind = 'i' and relname in ('first', 'a_id')")
            .await,
        "a_id first"
    );
}

#[tokio::test]
async fn an_index_of_that_name_which_nobody_announced_is_left_alone() {
    let table = "create table a (id int); create index a_id on a (id)";
    let index = "-- no-transaction\ncreate index concurrently a_id on a (id)";
    let bench = Bench::new(&[("1_a.sql", table), ("2_index.sql", index)]).await;
    let error = bench.up().await.expect_err("it is there already");
    assert_eq!(
        error.to_job_error().sqlstate.as_deref(),
        Some("42P07"),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_half_done_file_without_a_transaction_is_never_done_again_by_itself() {
    let call = "-- no-transaction\ninsert into a values (1);\ncall broken()";
    let files = [
        (
            "1_a.sql",
            "create table a (id int); create procedure broken() language sql as 'insert into a select 1 / (select 0)'",
        ),
        ("2_call.sql", call),
    ];
    let bench = Bench::new(&files).await;
    let error = bench.up().await.expect_err("it breaks");
    let record = error.to_job_error();
    assert_eq!(
        (record.sqlstate.as_deref(), record.statement.as_deref()),
        (Some("22012"), Some("call broken()"))
    );
    let again = bench.up().await.expect_err("nobody knows");
    assert!(
        matches!(&again, TenantError::Dirty(revision) if revision == "2"),
        "{again:?}"
    );
    assert!(
        again
            .hint()
            .is_some_and(|hint| hint.contains("delete from _sqlx_migrations where version = 2"))
    );
    assert_eq!(bench.tenant.value("select count(*)::text from a").await, "1");
    assert_eq!(bench.ledger().await, "1");
    assert!(matches!(bench.sqlx().await, Err(MigrateError::Dirty(2))));

    // As the hint says.
    bench
        .tenant
        .execute("delete from a; delete from _sqlx_migrations where not success; create or replace procedure broken() language sql as ''")
        .await;
    bench.up().await.expect("it is mended");
    assert_eq!(bench.ledger().await, "1,2");
}

#[tokio::test]
async fn a_half_undone_file_without_a_transaction_still_counts_as_applied() {
    let files = [
        ("1_a.up.sql", "create table a (id int)"),
        ("1_a.down.sql", "-- no-transaction\ndrop table a; vacuum nothing"),
    ];
    let bench = Bench::new(&files).await;
    bench.up().await.expect("a table");
    bench.down("base").await.expect_err("it breaks");
    assert_eq!(bench.ledger().await, "1", "half undone is not undone");
    let again = bench.down("base").await.expect_err("nobody knows");
    assert!(
        matches!(&again, TenantError::Dirty(revision) if revision == "1"),
        "{again:?}"
    );

    // As the hint says, by somebody who brings back what was undone.
    bench
        .tenant
        .execute("create table a (id int); update _sqlx_migrations set success = true, execution_time = 0 where version = 1")
        .await;
    bench.up().await.expect("it is applied");
    assert_eq!(bench.ledger().await, "1");
}

/// As the hint says, by somebody who finishes what was begun.
#[tokio::test]
async fn a_half_done_file_that_was_finished_by_hand_is_not_done_again() {
    let files = [
        ("1_a.sql", "create table a (id int)"),
        (
            "2_b.sql",
            "-- no-transaction\ninsert into a values (1);\nvacuum nothing",
        ),
    ];
    let bench = Bench::new(&files).await;
    bench.up().await.expect_err("it breaks");
    let hint = bench
        .up()
        .await
        .expect_err("nobody knows")
        .hint()
        .expect("a hint");
    let update = "update _sqlx_migrations set success = true, execution_time = 0 where version = 2";
    assert!(hint.contains(update), "{hint}");
    bench.tenant.execute(update).await;
    bench.up().await.expect("it is applied");
    assert_eq!(bench.tenant.value("select count(*)::text from a").await, "1");
    bench.sqlx().await.expect("sqlx agrees");
}

#[tokio::test]
async fn a_file_without_a_transaction_that_did_nothing_may_be_tried_again() {
    let bench = Bench::new(&[
        ("1_a.sql", "create table a (id int)"),
        (
            "2_b.sql",
            "-- no-transaction\nalter table a add column b int; alter table a add column b int",
        ),
    ])
    .await;
    for _ in 0..2 {
        let error = bench.up().await.expect_err("there are two");
        assert_eq!(
            error.to_job_error().sqlstate.as_deref(),
            Some("42701"),
            "{error:?}"
        );
    }
    write(
        bench.folder.path(),
        &[("2_b.sql", "-- no-transaction\nalter table a add column b int")],
    );
    bench.up().await.expect("it is mended");
    bench.sqlx().await.expect("sqlx agrees");
}

/// The table's own schema is the index's, and another tenant may be building it.
#[tokio::test]
async fn an_invalid_index_on_a_shared_table_fails_every_tenant_that_wants_it() {
    let table = "create schema shared; create table shared.u (a int); insert into shared.u values (1), (1)";
    let index = "-- no-transaction\ncreate unique index concurrently if not exists uq on shared.u (a)";
    let bench = Bench::new(&[("1_a.sql", table), ("2_index.sql", index)]).await;
    let error = bench.up().await.expect_err("there are duplicates").to_job_error();
    assert_eq!(error.sqlstate.as_deref(), Some("23505"), "{error:?}");
    for _ in 0..2 {
        let error = bench.up().await.expect_err("it is not valid").to_job_error();
        assert!(error.message.contains("not valid"), "{error:?}");
        let drop = "drop index concurrently \"shared\".\"uq\"";
        assert!(error.hint.is_some_and(|hint| hint.contains(drop)));
        assert_eq!(bench.ledger().await, "1");
    }
    bench
        .tenant
        .execute("truncate shared.u; drop index shared.uq")
        .await;
    bench.up().await.expect("it is mended");
    assert_eq!(bench.tenant.value(INVALID).await, "0");
    bench.up().await.expect("nothing to do");
}

#[tokio::test]
async fn an_invalid_index_is_found_by_the_name_that_the_server_has_cut() {
    let table = "create table a (id int); insert into a values (1), (1)";
    let index = format!(
        "-- no-transaction\ncreate unique index concurrently if not exists {} on a (id)",
        "ié".repeat(30)
    );
    let bench = Bench::new(&[("1_a.sql", table), ("2_index.sql", &index)]).await;
    for _ in 0..2 {
        let error = bench.up().await.expect_err("there are duplicates").to_job_error();
        assert_eq!(error.sqlstate.as_deref(), Some("23505"), "{error:?}");
    }
    bench.tenant.execute("truncate a").await;
    bench.up().await.expect("it is mended");
    assert_eq!(bench.tenant.value(INVALID).await, "0");
}

/// The refusal of an up, by its SQLSTATE.
async fn refused(bench: &Bench) -> String {
    let error = bench.up().await.expect_err("it is refused").to_job_error();
    error.sqlstate.unwrap_or(error.message)
}

#[tokio::test]
async fn an_index_of_a_file_that_was_mended_since_does_not_count_as_done() {
    let broken =
        "-- no-transaction\ncreate index concurrently i on u (a); create index concurrently j on u (nocol)";
    let bench = Bench::new(&[("1_a.sql", "create table u (a int, b int)"), ("2_i.sql", broken)]).await;
    assert_eq!(refused(&bench).await, "42703");
    let mended =
        "-- no-transaction\ncreate index concurrently i on u (b); create index concurrently j on u (a)";
    write(bench.folder.path(), &[("2_i.sql", mended)]);
    for _ in 0..2 {
        assert_eq!(refused(&bench).await, "42P07");
    }
    bench.tenant.execute("drop index i").await;
    bench.up().await.expect("it is out of the way");
    let columns =
        "select string_agg(indexdef, '; ' order by indexname) from pg_indexes where tablename = 'u'";
    let columns = bench.tenant.value(columns).await;
    assert!(columns.contains("(b); CREATE INDEX j"), "{columns}");
}

#[tokio::test]
async fn an_index_that_stood_in_the_way_is_not_taken_for_one_s_own_on_a_retry() {
    let index =
        "-- no-transaction\ncreate index concurrently i on u (a); create index concurrently j on u (a)";
    let table = "create table u (a int, b int); create index j on u (b)";
    let bench = Bench::new(&[("1_a.sql", table), ("2_i.sql", index)]).await;
    for _ in 0..2 {
        let error = bench.up().await.expect_err("j is there").to_job_error();
        assert!(error.message.contains("\"j\""), "{error:?}");
    }
    bench.tenant.execute("drop index j").await;
    bench.up().await.expect("i is known for its own");
    assert_eq!(bench.ledger().await, "1,2");
}
