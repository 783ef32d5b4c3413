//! A revision of Alembic's that is torn in pieces, because some of it runs outside a transaction. Between its pieces the
//! tenant's ledger says nothing: what was done must be known all the same.

use sqlx::{AssertSqlSafe, Postgres, Transaction};

use crate::fleet::{Fleet, Setup, Tool, Worker, ask, list, steps, tell};

mod live;
mod other_runs;

/// Tenants at the second of three revisions, and plans for the third, which has this outside a transaction.
async fn torn_by(outside: &str, tenants: usize) -> Fleet {
    let mut steps = steps(2);
    let first = steps
        .remove(0)
        .then("create table doubles (n int)")
        .then("create table locked (n int)");
    steps.insert(0, first);
    let fleet = Setup::schemas(tenants).plans(steps).start().await;
    let body = format!(
        "from alembic import op\nrevision = '20250203'\ndown_revision = '20250102'\n\n\
         def upgrade():\n    op.execute(\"insert into effects (step) values ('first piece')\")\n    \
         with op.get_context().autocommit_block():\n        op.execute(\"\"\"{outside}\"\"\")\n    \
         op.execute(\"insert into effects (step) values ('last piece')\")\n\n\
         def downgrade():\n    pass\n"
    );
    fleet.project().file("versions/20250203_step.py", &body);
    fleet
}

/// A worker, and all tenants at the revision before it.
async fn before_it(fleet: &Fleet) -> Worker {
    let worker = fleet.worker(&[]);
    fleet
        .herder(&["upgrade", "--to", "20250102", "--wait"])
        .await
        .expect(0);
    worker
}

/// Brings the tenant to the revision before it, with a row to count twice, and locks this table of its. Nobody waits long for a lock.
async fn impatient_with_a_lock(fleet: &Fleet, table: &str) -> (Worker, Transaction<'static, Postgres>) {
    fleet.configure(|config| {
        let limits: toml::Table = "lock_timeout = '50ms'\nbackoff = '50ms'".parse().expect("TOML");
        config.insert("limits".into(), limits.into());
    });
    let worker = before_it(fleet).await;
    tell(&fleet.home, "insert into t001.doubles values (1)").await;
    (worker, locked(fleet, table).await)
}

async fn locked(fleet: &Fleet, table: &str) -> Transaction<'static, Postgres> {
    let mut busy = fleet.home.begin().await.expect("a transaction");
    let lock = format!("lock table t001.{table} in exclusive mode");
    sqlx::raw_sql(AssertSqlSafe(lock))
        .execute(&mut *busy)
        .await
        .expect("a lock");
    busy
}

const ALL: [&str; 4] = ["up 20250101", "up 20250102", "first piece", "last piece"];

const UNIQUE: &str = "create unique index concurrently only_once on doubles (n)";

/// What cannot be noted of the only tenant is not committed, and is once it can be.
async fn noted_late(fleet: &Fleet) {
    let worker = before_it(fleet).await;
    let first_piece = locked(fleet, "effects").await;
    fleet.herder(&["upgrade"]).await.expect(0);
    let at_it = "select count(*) from pg_locks where relation = 't001.effects'::regclass and not granted";
    fleet
        .wait_until("it waits for its first piece", async || {
            ask::<i64>(&fleet.home, at_it).await > 0
        })
        .await;
    let mut job = fleet.control.begin().await.expect("a transaction");
    sqlx::raw_sql("select from herder.job where state = 'running' for update")
        .execute(&mut *job)
        .await
        .expect("a lock");
    first_piece.rollback().await.expect("an end");
    let noting = "select count(pg_terminate_backend(pid)) from pg_stat_activity
        where datname = current_database() and wait_event_type = 'Lock' and query ilike 'with mine as%half_applied%'";
    for _ in 0..2 {
        fleet
            .wait_until("it cannot note it", async || fleet.ask::<i64>(noting).await > 0)
            .await;
    }
    let committed = list(&fleet.home, "select step from t001.effects order by ctid").await;
    assert_eq!(committed, ALL[..2]);
    job.rollback().await.expect("an end");
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    fleet.assert_effects(&ALL).await;
    let tries: i32 = fleet
        .ask("select epoch from herder.job order by id desc limit 1")
        .await;
    assert_eq!(tries, 1);
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_piece_that_cannot_be_noted_is_not_committed() {
    let fleet = torn_by(UNIQUE, 1).await;
    noted_late(&fleet).await;
    fleet.assert_by_plan().await;
}

#[tokio::test]
async fn a_retry_goes_on_behind_the_piece_that_was_done() {
    let fleet = torn_by(UNIQUE, 1).await;
    let worker = before_it(&fleet).await;
    tell(&fleet.home, "insert into t001.doubles values (1), (1)").await;
    fleet.herder(&["upgrade", "--wait"]).await.expect(4);
    fleet.assert_by_plan().await;
    let error = &fleet.job("t001").await["error"];
    assert_eq!(
        (&error["sqlstate"], &error["revision"], &error["statement"]),
        (&"23505".into(), &"20250203".into(), &UNIQUE.into())
    );
    tell(&fleet.home, "truncate t001.doubles").await;
    fleet.herder(&["retry", "--wait"]).await.expect(0);
    fleet.assert_by_plan().await;
    fleet.assert_effects(&ALL).await;
    assert_eq!(worker.drain().await, Some(0));
}

/// What was noted of a tenant is about the tenant as it was: not about one that went there and back since, or was made anew.
#[tokio::test]
async fn a_retry_does_not_go_on_behind_a_piece_that_the_tenant_has_no_more() {
    let fleet = torn_by(UNIQUE, 3).await;
    let worker = before_it(&fleet).await;
    for tenant in ["t001", "t002", "t003"] {
        tell(
            &fleet.home,
            &format!("insert into {tenant}.doubles values (1), (1)"),
        )
        .await;
    }
    fleet.herder(&["upgrade", "--wait"]).await.expect(4);
    fleet.assert_by_plan().await;
    let undo = "truncate doubles; delete from effects where step = 'first piece'";
    for (tenant, since) in [
        (
            "t001",
            "update alembic_version set version_num = '20250203'; update alembic_version set version_num = '20250102'",
        ),
        (
            "t002",
            "drop schema t002 cascade; create schema t002; create table doubles (n int); create table locked (n int);
             create table effects (n int generated always as identity, step text);
             create table alembic_version (version_num varchar(32) primary key);
             insert into alembic_version values ('20250102');
             insert into effects (step) values ('up 20250101'), ('up 20250102')",
        ),
    ] {
        tell(
            &fleet.home,
            &format!("set search_path = {tenant}; {undo}; {since}"),
        )
        .await;
    }
    // A note of an older build has nothing to compare: a person decides.
    let unmarked: i64 = fleet
        .ask(
            "with unmarked as (update herder.half_applied set note = note - 'mark'
                               where schema = 't003' and note ? 'mark' returning 1)
             select count(*) from unmarked",
        )
        .await;
    assert_eq!(unmarked, 1);
    fleet.herder(&["retry", "--wait"]).await.expect(4);
    for tenant in ["t001", "t002"] {
        assert_eq!(fleet.job(tenant).await["outcome"], "migrated");
    }
    assert_eq!(fleet.job("t003").await["error"]["reason"], "half_applied");
    tell(&fleet.home, &format!("set search_path = t003; {undo}")).await;
    fleet.herder(&["retry", "--wait"]).await.expect(0);
    fleet.assert_effects(&ALL).await;
    fleet.assert_by_plan().await;
    assert_eq!(worker.drain().await, Some(0));
}

/// Nobody knows what doing it twice means. But the server refused it whole, so that it was not done once.
#[tokio::test]
async fn what_was_refused_outside_a_transaction_is_tried_again() {
    let fleet = torn_by("update doubles set n = n + 1", 1).await;
    let (worker, busy) = impatient_with_a_lock(&fleet, "doubles").await;
    fleet.herder(&["upgrade"]).await.expect(0);
    let refused = "select count(*) from herder.attempt where error ->> 'sqlstate' = '55P03'";
    fleet
        .wait_until("it was refused", async || fleet.ask::<i64>(refused).await >= 1)
        .await;
    busy.rollback().await.expect("an end");
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    fleet.assert_by_plan().await;
    fleet.assert_effects(&ALL).await;
    assert_eq!(list(&fleet.home, "select n::text from t001.doubles").await, ["2"]);
    assert_eq!(worker.drain().await, Some(0));
}

/// A step outside a transaction that is done is noted as such: the one behind it may be refused as often as it likes.
#[tokio::test]
async fn what_was_done_outside_a_transaction_is_not_taken_for_half_done() {
    let fleet = torn_by(
        "update doubles set n = n + 1\"\"\")\n    with op.get_context().autocommit_block():\n        \
         op.execute(\"\"\"alter table locked add m int",
        1,
    )
    .await;
    let (worker, busy) = impatient_with_a_lock(&fleet, "locked").await;
    fleet.herder(&["upgrade", "--wait"]).await.expect(4);
    fleet.assert_by_plan().await;
    let error = &fleet.job("t001").await["error"];
    assert_eq!(error["sqlstate"], "55P03", "{error:#}");
    let hint = error["hint"].as_str().unwrap_or_default();
    assert!(hint.contains("goes on behind them"), "{error:#}");
    busy.rollback().await.expect("an end");
    fleet.herder(&["retry", "--wait"]).await.expect(0);
    fleet.assert_effects(&ALL).await;
    assert_eq!(list(&fleet.home, "select n::text from t001.doubles").await, ["2"]);
    assert_eq!(worker.drain().await, Some(0));
}

/// What was rolled back is not there, whatever was noted before the server was asked to commit it.
#[tokio::test]
async fn a_piece_that_fails_at_its_commit_is_not_said_to_be_there() {
    let fleet = torn_by(UNIQUE, 1).await;
    let worker = before_it(&fleet).await;
    let late = "alter table t001.effects add constraint once unique (step) deferrable initially deferred";
    tell(&fleet.home, late).await;
    tell(
        &fleet.home,
        "insert into t001.effects (step) values ('first piece')",
    )
    .await;
    fleet.herder(&["upgrade", "--wait"]).await.expect(4);
    let error = &fleet.job("t001").await["error"];
    assert_eq!(
        (&error["sqlstate"], &error["hint"]),
        (&"23505".into(), &serde_json::Value::Null)
    );
    tell(&fleet.home, "delete from t001.effects where step = 'first piece'").await;
    fleet.herder(&["retry", "--wait"]).await.expect(0);
    fleet.assert_by_plan().await;
    fleet.assert_effects(&ALL).await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_rehearsal_of_some_of_its_pieces_is_none() {
    let fleet = torn_by(UNIQUE, 1).await;
    let report = fleet
        .herder(&["rehearse", "--output-format", "json"])
        .await
        .expect(0)
        .json();
    let tenant = &report["tenants"][0];
    assert_eq!(
        tenant["rehearsed"],
        serde_json::json!(["20250101", "20250102"]),
        "{report:#}"
    );
    assert_eq!(tenant["left_out"], serde_json::json!(["20250203"]), "{report:#}");
}

/// Somebody brings a tenant to the revision before it, by hand, after the run was made.
#[tokio::test]
async fn whoever_stands_at_the_revision_before_gets_its_first_piece() {
    let fleet = torn_by(UNIQUE, 2).await;
    fleet.herder(&["upgrade"]).await.expect(0);
    tell(
        &fleet.home,
        "set search_path = t001; create table doubles (n int); create table locked (n int);
         create table alembic_version (version_num varchar(32) primary key);
         insert into alembic_version values ('20250102');
         insert into effects (step) values ('up 20250101'), ('up 20250102')",
    )
    .await;
    let worker = fleet.worker(&[]);
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    fleet.assert_by_plan().await;
    fleet.assert_effects(&ALL).await;
    assert_eq!(worker.drain().await, Some(0));
}

/// A file of the `sql` runner's that has nothing around it: what was undone of it by half counts as applied still.
#[tokio::test]
async fn what_is_half_undone_is_not_taken_for_current() {
    let fleet = Setup::schemas(2).migrations(Tool::Sql, steps(2)).start().await;
    let worker = fleet.worker(&[]);
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    let torn = "-- no-transaction\ncreate table gone (n int); vacuum nothing";
    fleet.project().file("20250102_step.down.sql", torn);
    let undo = [
        "downgrade",
        "--to",
        "20250101",
        "--tenant",
        "t001",
        "--yes",
        "--wait",
    ];
    fleet.herder(&undo).await.expect(4);

    let listed = fleet
        .herder(&["tenants", "--revisions", "--output-format", "json"])
        .await
        .expect(0)
        .json();
    assert_eq!(listed["tenants"][0]["status"], "unknown", "{listed}");
    assert_eq!(listed["tenants"][1]["status"], "current", "{listed}");
    fleet.herder(&["plan", "--check"]).await.expect(7);
    fleet.herder(&["upgrade", "--wait"]).await.expect(4);
    assert_eq!(fleet.job("t001").await["error"]["reason"], "half_applied");
    assert_eq!(fleet.job("t002").await["outcome"], "already_current");
    worker.drain().await;
}

/// What the next run would refuse is no plain step ahead; an index that it would take up again is.
#[tokio::test]
async fn what_is_half_applied_is_seen_before_a_run() {
    let [first, second] = steps(2).try_into().expect("two");
    let second = second.outside("create table half (n int); vacuum nothing");
    let fleet = Setup::schemas(2)
        .migrations(Tool::Sql, vec![first.clone(), second])
        .start()
        .await;
    let upgrade = ["upgrade", "--tenant", "t001", "--local", "1"];
    fleet.herder(&upgrade).await.expect(4);
    let statuses = async || {
        let listed = ["tenants", "--revisions", "--output-format", "json"];
        let listed = fleet.herder(&listed).await.expect(0).json();
        [0, 1].map(|i| listed["tenants"][i]["status"].clone())
    };
    assert_eq!(statuses().await, ["unknown", "never_migrated"]);
    let plan = fleet.herder(&["plan", "--check"]).await.expect(7);
    assert!(plan.all().contains("half applied"), "{}", plan.all());
    fleet.herder(&upgrade).await.expect(4);
    assert_eq!(fleet.job("t001").await["error"]["reason"], "half_applied");

    let index = steps(2)
        .remove(1)
        .outside("create index concurrently i on effects (step); analyze effects");
    fleet.project().rewrite(&[first, index]);
    assert_eq!(statuses().await, ["behind", "never_migrated"]);
    fleet.herder(&upgrade).await.expect(0);
}

/// A tool that knows no target, and goes where it always goes.
#[tokio::test]
async fn a_tool_that_goes_past_the_target_has_not_succeeded() {
    let fleet = Setup::schemas(1)
        .migrations(Tool::Command, steps(3))
        .start()
        .await;
    let worker = fleet.worker(&[]);
    let as_told = fleet.project().text("migrate.sh");
    fleet
        .project()
        .file("migrate.sh", &as_told.replace("to=$HERDER_TO;", "to=20250203;"));
    fleet
        .herder(&["upgrade", "--to", "20250101", "--wait"])
        .await
        .expect(4);
    let error = &fleet.job("t001").await["error"];
    assert_eq!(error["reason"], "ledger_mismatch", "{error}");
    assert!(
        error["hint"]
            .as_str()
            .is_some_and(|hint| hint.contains("it applied 20250102, 20250203, too")),
        "{error}"
    );

    fleet
        .project()
        .file("migrate.sh", &as_told.replace("to=$HERDER_TO;", "to=0;"));
    fleet
        .herder(&["downgrade", "--to", "20250102", "--yes", "--wait"])
        .await
        .expect(4);
    let error = &fleet.job("t001").await["error"];
    assert_eq!(error["reason"], "ledger_mismatch", "{error}");
    worker.drain().await;
}

/// A long transaction keeps the proof's own index from being built. That says nothing about the plan.
#[tokio::test]
async fn a_proof_that_is_hindered_is_tried_again() {
    let fleet = torn_by(UNIQUE, 1).await;
    fleet.configure(|config| {
        let limits: toml::Table = "lock_timeout = '300ms'".parse().expect("TOML");
        config.insert("limits".into(), limits.into());
    });
    let mut report = fleet.home.begin().await.expect("a transaction");
    sqlx::raw_sql("set transaction isolation level repeatable read; select 1 from pg_class limit 1")
        .execute(&mut *report)
        .await
        .expect("a snapshot");
    let plan = fleet.start_herder(&["plan", "--output-format", "json"]);
    let scratch =
        "select coalesce(min(nspname::text), '') from pg_namespace where nspname like 'herder\\_shadow\\_%'";
    let made = || async { list(&fleet.home, scratch).await.concat() };
    let first = std::cell::RefCell::new(String::new());
    fleet
        .wait_until("its second try", async || {
            let now = made().await;
            if first.borrow().is_empty() {
                first.replace(now.clone());
            }
            !now.is_empty() && now != *first.borrow()
        })
        .await;
    report.rollback().await.expect("an end");
    let plan = plan.end().await.expect(0).json();
    assert_eq!(plan["groups"][0]["by"], "plan", "{plan:#}");
}
