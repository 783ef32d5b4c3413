//! The `sql` runner: sqlx agrees with its ledger, and no file can talk it into a half-truth.

use std::{path::Path, sync::Arc};

use herder::{
    config::{RunnerConfig, SqlConfig},
    domain::{failure::FailureClass, revision::Direction},
    runner::{MigrationRunner, RunnerError, Work},
};
use sqlx::migrate::{MigrateError, Migrator};

use crate::tenant::{Tenant, build, execute, write};

const SQL_SAAS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/sql-saas/migrations");

fn runner(folder: &Path) -> Arc<dyn MigrationRunner> {
    build(&RunnerConfig::Sql(SqlConfig {
        directory: folder.to_owned(),
        extra_search_path: Vec::new(),
    }))
}

/// A tenant in schema `acme`, and a project with these files.
struct Bench {
    folder: tempfile::TempDir,
    runner: Arc<dyn MigrationRunner>,
    tenant: Tenant,
}

impl Bench {
    async fn new(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path(), files);
        Self {
            runner: runner(folder.path()),
            folder,
            tenant: Tenant::new(Some("acme")).await,
        }
    }

    async fn up(&self) -> Result<(), RunnerError> {
        self.tenant
            .attempt(&*self.runner, Direction::Upgrade, "head")
            .await
    }

    async fn down(&self, target: &str) -> Result<(), RunnerError> {
        self.tenant
            .attempt(&*self.runner, Direction::Downgrade, target)
            .await
    }

    async fn ledger(&self) -> String {
        self.tenant.ledger(&*self.runner).await.join(",")
    }

    /// sqlx's own migrator over the same files and schema.
    async fn sqlx(&self) -> Result<(), MigrateError> {
        let mut migrator = Migrator::new(self.folder.path()).await?;
        migrator.set_locking(false);
        migrator.run(&mut self.tenant.application().await).await
    }
}

async fn sqlx_over(folder: &str, tenant: &Tenant, target: Option<i64>) {
    let mut migrator = Migrator::new(Path::new(folder)).await.expect("the migrations");
    migrator.set_locking(false);
    let mut application = tenant.application().await;
    match target {
        Some(target) => migrator.run_to(target, &mut application).await,
        None => migrator.run(&mut application).await,
    }
    .expect("sqlx agrees");
}

#[tokio::test]
async fn sqlx_takes_over_where_herder_stops_and_the_other_way_round() {
    let (ours, theirs) = (Tenant::new(Some("acme")).await, Tenant::new(Some("acme")).await);
    let runner = runner(Path::new(SQL_SAAS));
    ours.attempt(&*runner, Direction::Upgrade, "0004")
        .await
        .expect("up to 4");
    ours.upgrade(&*runner).await.expect("up to the head");
    sqlx_over(SQL_SAAS, &theirs, Some(5)).await;
    theirs.upgrade(&*runner).await.expect("from where sqlx stopped");

    let before = ours.content().await;
    sqlx_over(SQL_SAAS, &ours, None).await;
    assert_eq!(ours.content().await, before, "sqlx found something to do");
    assert_eq!(theirs.content().await, before);
    assert!(!before.contains("public."), "{before}");
    let rows = "select string_agg(concat_ws(' ', version, description, success, checksum), E'\\n' order by version) \
                from _sqlx_migrations where execution_time > 0";
    let written = ours.value(rows).await;
    assert_eq!(written, theirs.value(rows).await);
    assert_eq!(written.lines().count(), 9);

    for tenant in [ours, theirs] {
        tenant
            .attempt(&*runner, Direction::Downgrade, "base")
            .await
            .expect("down to nothing");
        assert_eq!(
            tenant.content().await,
            "acme._sqlx_migrations r 0\nacme._sqlx_migrations_pkey i "
        );
    }
}

#[tokio::test]
async fn a_new_value_of_an_enum_is_there_for_the_next_file() {
    let bench = Bench::new(&[
        ("1_mood.sql", "create type mood as enum ('ok')"),
        ("2_more.sql", "alter type mood add value 'sad'"),
        ("3_use.sql", "create table felt as select 'sad'::mood as mood"),
    ])
    .await;
    bench.up().await.expect("three files");
    assert_eq!(bench.ledger().await, "1,2,3");
}

#[tokio::test]
async fn what_a_file_does_to_its_session_stays_in_it() {
    let bench = Bench::new(&[
        (
            "1_dump.sql",
            "select pg_catalog.set_config('search_path', '', false); set standard_conforming_strings = off; \
             create table acme.one (a text default 'a''b')",
        ),
        ("2_wrapped.sql", "begin;\ncreate table two (a int);\ncommit;\n"),
        (
            "3_role.sql",
            "create role nobody_special; grant usage on schema acme to nobody_special; set role nobody_special; \
             set lock_timeout = '7s'",
        ),
        (
            "4_after.sql",
            "create table four as select current_user::text as who, current_setting('lock_timeout') as lock_timeout",
        ),
        (
            "5_it's odd \\'.sql",
            "create table five (a int); savepoint s; drop table five; rollback to s",
        ),
        (
            "6_pieces.sql",
            "create table six (a int); commit; insert into six values (1); begin; insert into six values (2)",
        ),
    ])
    .await;
    bench.up().await.expect("six files");
    assert_eq!(bench.ledger().await, "1,2,3,4,5,6");
    bench.sqlx().await.expect("sqlx agrees");
    let who = bench
        .tenant
        .value("select who || ' ' || lock_timeout from four")
        .await;
    assert_eq!(who, "postgres 1min");
    assert_eq!(bench.tenant.value("select count(*)::text from six").await, "2");
    let content = bench.tenant.content().await;
    assert!(
        !content.contains("public.") && content.contains("acme.two r"),
        "{content}"
    );
    bench
        .tenant
        .execute("drop owned by nobody_special; drop role nobody_special")
        .await;
}

#[tokio::test]
async fn a_file_that_wanders_off_to_another_schema_is_undone() {
    let wander = "create table here (a int); set search_path = public; create table there (a int)";
    let bench = Bench::new(&[("1_a.sql", "create table a (a int)"), ("2_wander.sql", wander)]).await;
    let error = bench.up().await.expect_err("it wandered off");
    assert_eq!(
        error.to_string(),
        "search_path was set to schema `public`: what was made there is not the tenant's"
    );
    assert_eq!(error.class(), FailureClass::Permanent);
    assert_eq!(error.to_job_error().revision.as_deref(), Some("2"));
    assert_eq!(bench.ledger().await, "1");
    let content = bench.tenant.content().await;
    assert!(
        !content.contains("public.") && !content.contains("acme.here"),
        "{content}"
    );
}

/// A session of Herder's begins with no search_path at all.
#[tokio::test]
async fn a_file_that_resets_everything_is_told_what_that_took() {
    let files = [("1_a.sql", "reset all; create table a (a int)")];
    let error = Bench::new(&files).await.up().await.expect_err("it has no schema");
    assert!(
        error
            .hint()
            .is_some_and(|hint| hint.contains("take RESET and SET search_path out")),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_error_names_revision_and_statement() {
    let files = [
        (
            "1_a.sql",
            "create table a (id int primary key); insert into a values (1);\n-- again; ä\ninsert into a values (1); select 1",
        ),
        (
            "2_b.sql",
            "create table b ();\n-- ä; not here\nselect nothing from a; select 1",
        ),
        ("3_c.sql", "select 'ä';\nselect $f$;$f$ fro m"),
        (
            "4_d.sql",
            "create table d (id int references a deferrable initially deferred); insert into d values (9)",
        ),
    ];
    let bench = Bench::new(&files).await;
    let mut failures = Vec::new();
    for _ in 0..files.len() {
        let record = bench.up().await.expect_err("it fails").to_job_error();
        let revision = record.revision.unwrap_or_default();
        let mended = "create table if not exists a (id int primary key)";
        let (file, _) = files
            .iter()
            .find(|(file, _)| file.starts_with(&revision))
            .expect("a file");
        write(bench.folder.path(), &[(file, mended)]);
        failures.push((
            revision,
            record.sqlstate.unwrap_or_default(),
            record.statement.unwrap_or_default(),
        ));
    }
    // What cannot be parsed comes first: the server reads all files before it runs one.
    let expected = [
        ("3", "42601", "select $f$;$f$ fro m"),
        ("1", "23505", "insert into a values (1)"),
        ("2", "42703", "select nothing from a"),
        ("4", "23503", ""),
    ];
    let expected = expected.map(|(a, b, c)| (a.to_owned(), b.to_owned(), c.to_owned()));
    assert_eq!(failures, expected);
}

/// Found out in the middle, nobody would know what was done.
#[tokio::test]
async fn a_copy_with_the_client_fails_the_tenant_before_anything_is_done() {
    for first in ["create table a (id int);", "-- no-transaction\nset a.b = 1;"] {
        for (copy, message) in [
            (
                "copy a (id) from stdin;\n1\n\\.\n",
                "1_a.sql: COPY … FROM stdin has nobody to read from",
            ),
            (
                "copy a (id) from stdin;\nit's\n\\.\n",
                "1_a.sql: COPY … FROM stdin has nobody to read from",
            ),
            (
                "copy a\n  to STDOUT;\nselect 1 / 0",
                "1_a.sql: COPY … TO stdout has nobody to write to",
            ),
        ] {
            let bench = Bench::new(&[("1_a.sql", &format!("{first}\n{copy}"))]).await;
            let error = bench.up().await.expect_err("there is nobody");
            assert_eq!(error.class(), FailureClass::Permanent, "{error:?}");
            let record = error.to_job_error();
            assert_eq!(record.message, message);
            assert_eq!(record.revision.as_deref(), Some("1"));
            assert_eq!(record.statement.as_deref(), copy.split(';').next(), "{record:?}");
            assert_eq!(bench.tenant.content().await, "");

            write(bench.folder.path(), &[("1_a.sql", "create table a (id int)")]);
            bench.up().await.expect("it is mended");
            assert_eq!(bench.ledger().await, "1");
        }
    }
}

/// PostgreSQL ends a comment at a carriage return, too: what comes behind it is no part of the comment.
#[tokio::test]
async fn what_follows_a_comment_that_ends_in_a_carriage_return_is_done() {
    let indexes = "-- no-transaction\ncreate index concurrently i1 on a (id); -- one\r\
                   create index concurrently i2 on a (id);\r";
    let commits = "create table b (id int); -- it commits\rcommit; create table c (id int)";
    let files = [
        ("1_a.sql", "create table a (id int)"),
        ("2_indexes.sql", indexes),
        ("3_commits.sql", commits),
    ];
    let bench = Bench::new(&files).await;
    bench.up().await.expect("every statement is seen");
    let made = "select string_agg(relname, ',' order by relname) from pg_class
                where relnamespace = 'acme'::regnamespace and relname in ('i1', 'i2', 'b', 'c')";
    assert_eq!(bench.tenant.value(made).await, "b,c,i1,i2");
    assert_eq!(bench.ledger().await, "1,2,3");
}

#[tokio::test]
async fn a_second_attempt_at_the_same_is_refused_and_later_finds_it_done() {
    let once = "select pg_advisory_xact_lock_shared(4242); insert into a values (1)";
    let bench = Bench::new(&[("1_a.sql", "create table a (id int)"), ("2_once.sql", once)]).await;
    bench
        .tenant
        .attempt(&*bench.runner, Direction::Upgrade, "+1")
        .await
        .expect("one step");
    let mut gate = bench.tenant.admin().await;
    execute(&mut gate, "select pg_advisory_lock(4242)").await;
    let attempt = || async {
        let mut session = bench.tenant.session().await;
        let runner = &*bench.runner;
        bench
            .tenant
            .work_on(&mut session, runner, Direction::Upgrade, "head")
            .await
    };
    let other = async {
        bench.tenant.waits_for_a_lock().await;
        let refused = attempt().await.expect_err("the first is at it");
        assert!(matches!(refused, RunnerError::LockedByOther(_)), "{refused:?}");
        execute(&mut gate, "select pg_advisory_unlock(4242)").await;
    };
    let (one, ()) = tokio::join!(attempt(), other);
    one.expect("the first did it");
    attempt().await.expect("the second found it done");
    assert_eq!(bench.tenant.value("select count(*)::text from a").await, "1");
    assert_eq!(bench.ledger().await, "1,2");
}

#[tokio::test]
async fn migrations_that_changed_since_the_history_was_read_are_not_run() {
    let bench = Bench::new(&[("1_a.sql", "create table a (id int)")]).await;
    let history = bench.runner.history().await.expect("a history");
    write(bench.folder.path(), &[("1_a.sql", "create table b (id int)")]);
    let work = Work {
        claim: &bench.tenant.claim(Direction::Upgrade, "head"),
        history: &history,
        from: None,
        to: Some("1"),
        pending: &["1".into()],
        url: &bench.tenant.url,
        limits: &bench.tenant.limits,
        cancel: &bench.tenant.cancel,
    };
    let done = bench
        .runner
        .migrate(&mut bench.tenant.session().await, &work)
        .await;
    assert!(matches!(done, Err(RunnerError::OtherMigrations)), "{done:?}");
    assert_eq!(bench.tenant.content().await, "");
}

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
        matches!(&again, RunnerError::Dirty(revision) if revision == "2"),
        "{again:?}"
    );
    assert!(again.hint().is_some_and(|hint| hint.contains("delete its row")));
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
        matches!(&again, RunnerError::Dirty(revision) if revision == "1"),
        "{again:?}"
    );
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

#[tokio::test]
async fn nothing_is_undone_where_one_step_has_no_way_down() {
    let bench = Bench::new(&[
        ("1_a.sql", "create table a (id int)"),
        ("2_b.up.sql", "create table b (id int)"),
        ("2_b.down.sql", "drop table b"),
    ])
    .await;
    bench.up().await.expect("up");
    let before = bench.tenant.content().await;
    let error = bench.down("base").await.expect_err("1 has no way down");
    assert!(
        matches!(&error, RunnerError::Irreversible(revision) if revision == "1"),
        "{error:?}"
    );
    assert_eq!(bench.tenant.content().await, before);
    bench.down("-1").await.expect("2 has one");
    assert_eq!(bench.ledger().await, "1");
}
