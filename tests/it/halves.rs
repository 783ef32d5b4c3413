//! What counts as committed of a revision that fails in Alembic itself: whether another try would do it again.

use crate::fleet::{Fleet, Setup, Tool, list, steps, tell};
use crate::handmade::{DRIVERS, SYNC_ENV};

/// A revision that is refused twice for a while behind `before`, in Alembic itself: what it has counted in the end, and whether it was
/// given up as half applied.
async fn counted(driver: (&str, &str), before: &str) -> (i64, bool) {
    let (fleet, counts) = behind(driver, "pass", before).await;
    (counts, is_half(&fleet).await)
}

async fn is_half(fleet: &Fleet) -> bool {
    let job = fleet.job("t001").await;
    job["error"]["reason"] == "half_applied" && job["state"] == "failed"
}

/// The same, behind a revision that does `first`.
async fn behind((scheme, env): (&str, &str), first: &str, before: &str) -> (Fleet, i64) {
    let fleet = Setup::schemas(1)
        .migrations(Tool::Alembic, steps(1))
        .set("limits.backoff", "50ms")
        .set("runner.url_scheme", scheme)
        .start()
        .await;
    tell(
        &fleet.home,
        "create sequence t001.refusals; create table t001.counts (n int); create table t001.heard (n int);
         create function t001.refuse() returns void language plpgsql as $$ begin
           if nextval('refusals') < 3 then raise exception 'not now' using errcode = '55P03'; end if;
         end $$;
         create function t001.times_out() returns bool language plpgsql as $$ begin
           if nextval('refusals') < 3 then raise exception 'canceling statement due to statement timeout' using errcode = '57014'; end if;
           return true;
         end $$;
         create function t001.adds() returns void language sql as 'insert into t001.counts values (1)';
         create procedure t001.commits() language plpgsql as $$ begin
           insert into counts values (1); commit; perform refuse();
         end $$;
         create function t001.refuses() returns trigger language plpgsql as $$ begin perform refuse(); return null; end $$;
         create table t001.late (n int);
         create constraint trigger late after insert on t001.late deferrable initially deferred
           for each row execute function t001.refuses()",
    )
    .await;
    let revision = |id: &str, down: &str, body: &str| {
        format!(
            "import sqlalchemy as sa\nfrom alembic import op\nrevision = '{id}'\ndown_revision = '{down}'\n\
             COUNT = 'insert into t001.counts values (1)'\n\n\
             def alone(sql):\n    with op.get_context().autocommit_block():\n        op.execute(sql)\n\n\
             def elsewhere():\n    with sa.create_engine(op.get_bind().engine.url).begin() as other:\n        other.exec_driver_sql(COUNT)\n\n\
             def upgrade():\n    {body}\n\ndef downgrade():\n    pass\n"
        )
    };
    let refused = format!("{before}\n    op.execute('select refuse()')");
    for (id, down, body) in [
        ("20250102", "20250101", first),
        ("20250103", "20250102", &*refused),
    ] {
        let file = format!("versions/{id}_step.py");
        fleet.project().file(&file, &revision(id, down, body));
    }
    let configure = "    context.configure(";
    let searching = format!(
        "    connection.exec_driver_sql('set search_path to t001'); connection.commit()\n{configure}"
    );
    fleet
        .project()
        .file("env.py", &env.replace(configure, &searching));
    fleet.herder(&["upgrade", "--local", "1"]).await;
    let counts = list(&fleet.home, "select n::text from t001.counts").await.len();
    (fleet, counts as i64)
}

/// What the row of one revision says in the ledger is nothing about what another one has committed.
#[tokio::test]
async fn what_an_earlier_revision_has_done_hides_nothing() {
    let per_revision = SYNC_ENV.replace(
        "(connection=connection",
        "(connection=connection, transaction_per_migration=True",
    );
    let alone = SYNC_ENV.replace("poolclass=", "isolation_level='AUTOCOMMIT', poolclass=");
    let (psycopg2, asyncpg) = (DRIVERS[0], DRIVERS[3]);
    let (per_revision, alone) = ((psycopg2.0, &*per_revision), (psycopg2.0, &*alone));
    let index = "alone('create index concurrently if not exists by_n on t001.heard (n)')";
    let in_words = "op.execute(COUNT); op.execute('COMMIT')";
    for (driver, first, before, halves) in [
        (psycopg2, "op.execute('COMMIT')", in_words, "revision 20250103 is"),
        (asyncpg, "op.execute('COMMIT')", in_words, "revision 20250103 is"),
        (
            alone,
            "op.execute('select 1')",
            "op.execute(COUNT)",
            "revision 20250103 is",
        ),
        (
            psycopg2,
            "op.execute('select 1')",
            &format!("elsewhere(); {index}"),
            "revision 20250103 is",
        ),
        (
            per_revision,
            "op.execute('create table heard_of ()')",
            "elsewhere()",
            "revision 20250103 is",
        ),
        // All in one transaction: what was done elsewhere in the first one is left behind as well.
        (
            psycopg2,
            "elsewhere()",
            "elsewhere()",
            "revisions 20250102, 20250103 are",
        ),
    ] {
        let (fleet, counts) = behind(driver, first, before).await;
        let job = fleet.job("t001").await;
        assert!(
            is_half(&fleet).await,
            "{} {first}; {before}: {counts} {job:#}",
            driver.0
        );
        assert_eq!(
            counts,
            if halves.contains(',') { 2 } else { 1 },
            "{} {before}",
            driver.0
        );
        let message = job["error"]["message"].as_str().unwrap_or_default();
        assert!(
            message.starts_with(&format!("{halves} half applied")),
            "{message}"
        );
    }
    // It ends well, and its last transaction was let go of.
    let let_go = "op.execute(COUNT); op.get_bind().commit(); return";
    let (fleet, _) = behind(psycopg2, "pass", let_go).await;
    assert!(is_half(&fleet).await, "{:#}", fleet.job("t001").await);
}

#[tokio::test]
async fn what_counts_as_committed_is_what_the_server_has_committed() {
    let half = [
        "op.execute(COUNT); alone('select 1')",
        "alone(COUNT)",
        "alone('explain analyze ' + COUNT)",
        "alone('with w as (' + COUNT + ' returning n) select n from w')",
        "alone('select adds()')",
        "op.execute('select adds()'); alone('select 1')",
        "alone('call commits() /* concurrently */')",
        "alone('do $$ begin call commits(); end $$')",
        "op.execute(COUNT); op.get_bind().engine.connect().close(); alone('select 1')",
        "op.execute('select adds /* */ ()'); alone('select 1')",
        "alone(\"select E'it\\\\'s', adds()\")",
        "nested = op.get_bind().begin_nested(); op.execute(COUNT); nested.commit(); alone('select 1')",
    ];
    let half_by_psycopg2 = [
        "alone(\"set statement_timeout = '1min'; \" + COUNT)",
        "alone('create table if not exists q (i int); ' + COUNT)",
        "op.execute('begin; ' + COUNT + '; commit')",
        "op.execute(COUNT + '; commit; select refuse()')",
        "op.execute('commit'); op.execute(COUNT)",
    ];
    let again = [
        "alone('insert into counts select 1 where times_out()'); return",
        "op.execute(COUNT)",
        "op.execute('select 1'); alone('select 1'); op.execute(COUNT)",
        "op.execute('(select 1)'); op.execute('values (1)'); alone('select 1'); op.execute(COUNT)",
        "op.execute('with w as (select lower(current_user)) select * from w'); alone('select count(*) from late'); op.execute(COUNT)",
        "nested = op.get_bind().begin_nested(); op.execute(COUNT); nested.rollback(); alone('select 1'); op.execute(COUNT)",
        "op.execute('insert into late values (1)'); op.execute(COUNT); alone('select 1'); op.execute('delete from late')",
        "alone('create or replace function f() returns int language sql as $$ select 1; select 2 $$'); op.execute(COUNT)",
    ];
    for driver in [DRIVERS[0], DRIVERS[3]] {
        // The others send a statement as one that is prepared, which can be one only.
        let in_one = if driver.0.ends_with("psycopg2") {
            &half_by_psycopg2[..]
        } else {
            &[]
        };
        for before in half.iter().chain(in_one) {
            assert_eq!(counted(driver, before).await, (1, true), "{} {before}", driver.0);
        }
        for before in again {
            assert_eq!(counted(driver, before).await, (1, false), "{} {before}", driver.0);
        }
    }
    // An env.py that goes on with its connection, whatever became of the last COMMIT; and one that writes behind the ledger's row.
    let late = "op.execute('insert into late values (1)'); return";
    let going_on = SYNC_ENV.replace(MIGRATES, GOING_ON);
    let driver = (DRIVERS[0].0, going_on.as_str());
    assert_eq!(counted(driver, &format!("alone(COUNT); {late}")).await, (1, true));
    let writing = SYNC_ENV.replace("(connection=connection", WRITING);
    let driver = (DRIVERS[0].0, writing.as_str());
    assert_eq!(
        counted(driver, &format!("op.execute(COUNT); {late}")).await,
        (1, false)
    );
}

const WRITING: &str = "(connection=connection,
        on_version_apply=lambda ctx, **_: ctx.connection.exec_driver_sql('insert into heard values (1)')";

const MIGRATES: &str = "    with context.begin_transaction():
        context.run_migrations()
";

const GOING_ON: &str = "    try:
        with context.begin_transaction():
            context.run_migrations()
    finally:
        connection.rollback()
        connection.exec_driver_sql('select 1')
        connection.commit()
";
