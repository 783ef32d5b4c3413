//! The `sql` runner: sqlx agrees with its ledger, and no file can talk it into a half-truth.

use std::{path::Path, sync::Arc};

use herder::{
    config::{RunnerConfig, SqlConfig},
    domain::{failure::FailureClass, revision::Direction},
    runner::{MigrationRunner, Work},
    tenant_error::TenantError,
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
pub(crate) struct Bench {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) runner: Arc<dyn MigrationRunner>,
    pub(crate) tenant: Tenant,
}

impl Bench {
    pub(crate) async fn new(files: &[(&str, &str)]) -> Self {
        Self::of(files, Tenant::new(Some("acme")).await)
    }

    fn of(files: &[(&str, &str)], tenant: Tenant) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        write(folder.path(), files);
        Self {
            runner: runner(folder.path()),
            folder,
            tenant,
        }
    }

    pub(crate) async fn up(&self) -> Result<(), TenantError> {
        self.tenant
            .attempt(&*self.runner, Direction::Upgrade, "head")
            .await
    }

    pub(crate) async fn down(&self, target: &str) -> Result<(), TenantError> {
        self.tenant
            .attempt(&*self.runner, Direction::Downgrade, target)
            .await
    }

    pub(crate) async fn ledger(&self) -> String {
        self.tenant.ledger(&*self.runner).await.join(",")
    }

    /// sqlx's own migrator over the same files and schema.
    pub(crate) async fn sqlx(&self) -> Result<(), MigrateError> {
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

/// A versioning trigger tells by the number of its transaction what was changed in it already.
#[tokio::test]
async fn what_a_file_writes_has_the_number_of_its_transaction() {
    let bench = Bench::new(&[
        (
            "1_versions.sql",
            "create table a (n int); create table versions (n int); insert into a values (1);
             create function keep() returns trigger language plpgsql as $$ begin
               if old.xmin::text::bigint <> txid_current() % 4294967296 then
                 insert into versions values (old.n);
               end if;
               return new;
             end $$;
             create trigger keep before update on a for each row execute function keep()",
        ),
        ("2_twice.sql", "update a set n = n * 10; update a set n = n + 1"),
    ])
    .await;
    bench.up().await.expect("two files");
    let versions = "select (select n from a) || ' ' || string_agg(n::text, ',') from versions";
    assert_eq!(bench.tenant.value(versions).await, "11 1");
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
        assert!(matches!(refused, TenantError::LockedByOther(_)), "{refused:?}");
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
        stillness: std::time::Duration::from_secs(60),
        cancel: &bench.tenant.cancel,
        halves: &(),
    };
    let done = bench
        .runner
        .migrate(&mut bench.tenant.session().await, &work)
        .await;
    assert!(matches!(done, Err(TenantError::OtherMigrations)), "{done:?}");
    assert_eq!(bench.tenant.content().await, "");
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
        matches!(&error, TenantError::Irreversible(revision) if revision == "1"),
        "{error:?}"
    );
    assert_eq!(bench.tenant.content().await, before);
    bench.down("-1").await.expect("2 has one");
    assert_eq!(bench.ledger().await, "1");
}

#[tokio::test]
async fn each_file_s_time_is_its_own() {
    let files = [
        ("1_slow.sql", "select pg_sleep(1)"),
        ("2_quick.sql", "reset all; select 1"),
        ("3_quick.sql", "set datestyle = 'German'; select 1"),
    ];
    let bench = Bench::new(&files).await;
    bench.up().await.expect("all three");
    let times = "select bool_and(execution_time > 0) and max(execution_time) filter (where version = 3)
                 < max(execution_time) filter (where version = 1) from _sqlx_migrations";
    assert_eq!(
        bench.tenant.value(&format!("select ({times})::text")).await,
        "true"
    );
}

/// As with psql, where the transaction ends in the role that the file has set.
#[tokio::test]
async fn what_a_file_defers_is_done_in_the_role_that_the_file_set() {
    let role = format!("appr_{}", uuid::Uuid::new_v4().simple());
    let table = format!(
        "create table p (id int); create table log (who text);
         create function tell() returns trigger language plpgsql as $$ begin insert into log values (current_user); return null; end $$;
         create constraint trigger later after insert on p initially deferred for each row execute function tell();
         create role {role}; grant usage on schema acme to {role}; grant all on p, log to {role}"
    );
    let insert = format!("set role {role}; insert into p values (1)");
    let bench = Bench::new(&[("1_a.sql", &table), ("2_b.sql", &insert)]).await;
    bench.up().await.expect("both");
    assert_eq!(bench.tenant.value("select who from log").await, role);
    let forget = format!("drop owned by {role}; drop role {role}");
    bench.tenant.execute(&forget).await;
}

/// The server reads a message before it runs any of it: the first file has no part in what is wrong with the third.
#[tokio::test]
async fn a_character_that_the_database_cannot_hold_is_laid_to_its_file() {
    let files = [
        ("1_a.sql", "create table a (b text)"),
        ("2_b.sql", "insert into a values ('é')"),
        ("3_c.sql", "insert into a values ('€')"),
    ];
    let options = "encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' template template0";
    let bench = Bench::of(&files, Tenant::with(Some("acme"), options).await);
    let error = bench
        .up()
        .await
        .expect_err("there is no such character")
        .to_job_error();
    assert_eq!(
        (error.sqlstate.as_deref(), error.revision.as_deref()),
        (Some("22P05"), Some("3")),
        "{error:?}"
    );
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_is_no_lost_connection() {
    let raise = "set client_encoding = 'LATIN1'; do $$ begin raise exception 'é'; end $$";
    let bench = Bench::new(&[("1_a.sql", raise)]).await;
    let error = bench.up().await.expect_err("it says so");
    assert_eq!(
        (error.reason(), error.class()),
        ("unexpected_answer", FailureClass::Permanent),
        "{error:?}"
    );
}
