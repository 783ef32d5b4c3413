//! A tenant that fails: what is tried again, what is not, what is recorded of it, and how it is mended.

use crate::fleet::{Fleet, Setup, Tool, ask, steps, tell};

/// Two migrations; the second takes a lock on `effects` first.
fn locking(tool: Tool) -> Setup {
    let [first, second] = steps(2).try_into().expect("two");
    Setup::schemas(3)
        .migrations(
            tool,
            vec![first, second.then("lock table effects in access exclusive mode")],
        )
        .set("limits.lock_timeout", "200ms")
}

/// Holds the lock that the second migration of `t002` needs.
async fn hold_lock(fleet: &Fleet) -> sqlx::Transaction<'static, sqlx::Postgres> {
    let mut holder = fleet.home.begin().await.expect("a transaction");
    sqlx::raw_sql("lock table t002.effects in access share mode")
        .execute(&mut *holder)
        .await
        .expect("a lock");
    holder
}

async fn a_held_lock_is_waited_for(tool: Tool) {
    let fleet = locking(tool).set("limits.max_attempts", 1000).start().await;
    let holder = hold_lock(&fleet).await;
    let worker = fleet.worker(&["--listen", "127.0.0.1:0"]);
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet
        .wait_until("the others are done, and one was tried twice", async || {
            let retried = "select count(*) from herder.attempt where result = 'retried'";
            fleet.count("succeeded").await == 2 && fleet.ask::<i64>(retried).await >= 2
        })
        .await;
    let job = fleet.job("t002").await;
    assert_eq!(job["error"]["sqlstate"], "55P03", "{job:#}");
    assert_eq!(job["error"]["reason"], "lock_timeout", "{job:#}");
    assert!(worker.metric("herder_lock_timeouts_total").await >= 2.0);
    holder.rollback().await.expect("a rollback");
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    let job = fleet.job("t002").await;
    assert!(job["attempts"].as_i64() >= Some(3), "{job:#}");
    assert!(job["error"].is_null(), "{job:#}");
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
}

#[tokio::test]
async fn a_held_lock_is_recorded_and_waited_for() {
    a_held_lock_is_waited_for(Tool::Sql).await;
}

#[tokio::test]
async fn a_held_lock_is_recorded_and_waited_for_with_alembic() {
    a_held_lock_is_waited_for(Tool::Alembic).await;
}

#[tokio::test]
async fn a_held_lock_is_recorded_and_waited_for_with_a_command() {
    a_held_lock_is_waited_for(Tool::Command).await;
}

async fn a_lock_that_is_held_for_ever_fails_its_tenant(tool: Tool) {
    let fleet = locking(tool).set("limits.max_attempts", 3).start().await;
    let mut holder = hold_lock(&fleet).await;
    sqlx::raw_sql("set application_name = 'report'")
        .execute(&mut *holder)
        .await
        .expect("a name");
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()")
        .fetch_one(&mut *holder)
        .await
        .expect("a pid");
    let output = fleet.herder(&["upgrade", "--local", "2"]).await.expect(4);
    assert!(output.stderr.contains("55P03"), "{}", output.all());
    let job = fleet.job("t002").await;
    assert_eq!(
        (&job["state"], &job["attempts"]),
        (&"failed".into(), &3.into()),
        "{job:#}"
    );
    assert_eq!(job["error"]["sqlstate"], "55P03", "{job:#}");
    let hint = job["error"]["hint"].as_str().unwrap_or_default();
    let who = format!("pid {pid} (`report`: idle in transaction, its transaction was ");
    assert!(
        hint.starts_with(&who) && hint.contains("had a lock on t002.") && hint.contains("herder retry"),
        "{job:#}"
    );
    holder.rollback().await.expect("a rollback");
    fleet.herder(&["retry", "--local", "2"]).await.expect(0);
    assert_eq!(fleet.state().await, "succeeded");
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
}

#[tokio::test]
async fn what_the_server_says_to_do_is_recorded() {
    let [step] = steps(1).try_into().expect("one");
    let raise = "do $$ begin raise exception 'not now' using hint = 'Ask the DBA.'; end $$";
    let fleet = Setup::schemas(1)
        .migrations(Tool::Sql, vec![step.then(raise)])
        .start()
        .await;
    fleet.herder(&["upgrade", "--local", "1"]).await.expect(4);
    let job = fleet.job("t001").await;
    assert_eq!(
        (&job["error"]["message"], &job["error"]["hint"]),
        (&"not now".into(), &"Ask the DBA".into()),
        "{job:#}"
    );
}

/// It has no lock on anything of the tenant's: an index that is built concurrently waits for every older snapshot.
#[tokio::test]
async fn a_snapshot_in_the_way_of_a_concurrent_index_is_named() {
    let [first, second] = steps(2).try_into().expect("two");
    let second = second.outside("create index concurrently later on effects (step)");
    let fleet = Setup::schemas(2)
        .migrations(Tool::Sql, vec![first, second])
        .set("limits.lock_timeout", "200ms")
        .set("limits.max_attempts", 2)
        .start()
        .await;
    tell(&fleet.home, "create table unrelated ()").await;
    // Older, but it has let go of its snapshot, and only ever read.
    let mut reader = fleet.home.begin().await.expect("a transaction");
    sqlx::raw_sql("select from unrelated")
        .execute(&mut *reader)
        .await
        .expect("a table");
    let mut report = fleet.home.begin().await.expect("a transaction");
    let looks =
        "set transaction isolation level repeatable read; set local application_name = 'report'; select 1";
    sqlx::raw_sql(looks)
        .execute(&mut *report)
        .await
        .expect("a snapshot");
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()")
        .fetch_one(&mut *report)
        .await
        .expect("a pid");
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(4);
    let job = fleet.job("t002").await;
    assert_eq!(job["error"]["sqlstate"], "55P03", "{job:#}");
    let hint = job["error"]["hint"].as_str().unwrap_or_default();
    let who = format!("pid {pid} (`report`: idle in transaction, its transaction was ");
    assert!(
        hint.starts_with(&who) && hint.contains("read from a snapshot of this database"),
        "{job:#}"
    );
    report.rollback().await.expect("a rollback");
    fleet.herder(&["retry", "--local", "2"]).await.expect(0);
    assert_eq!(fleet.state().await, "succeeded");
}

#[tokio::test]
async fn a_lock_that_is_held_for_ever_fails_its_tenant_and_a_retry_begins_anew() {
    a_lock_that_is_held_for_ever_fails_its_tenant(Tool::Sql).await;
}

#[tokio::test]
async fn a_lock_that_is_held_for_ever_fails_its_tenant_in_alembic() {
    a_lock_that_is_held_for_ever_fails_its_tenant(Tool::Alembic).await;
}

#[tokio::test]
async fn a_lock_that_is_held_for_ever_fails_its_tenant_with_a_command() {
    a_lock_that_is_held_for_ever_fails_its_tenant(Tool::Command).await;
}

#[tokio::test]
async fn a_storm_of_lock_timeouts_leaves_room_for_the_others() {
    let [first, second] = steps(2).try_into().expect("two");
    let locks = second.then("lock table effects in access exclusive mode");
    let fleet = Setup::schemas(40)
        .migrations(Tool::Sql, vec![first, locks])
        .set("limits.lock_timeout", "200ms")
        .set("limits.max_attempts", 1000)
        .start()
        .await;
    // More tenants are stuck than the worker runs at a time, and they come first.
    let mut holder = fleet.home.begin().await.expect("a transaction");
    for tenant in 1..=5 {
        let lock = format!("lock table t00{tenant}.effects in access share mode");
        sqlx::raw_sql(sqlx::AssertSqlSafe(lock))
            .execute(&mut *holder)
            .await
            .expect("a lock");
    }
    let worker = fleet.worker(&["--concurrency", "3"]);
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet
        .wait_until("all others are done", async || {
            fleet.count("succeeded").await == 35
        })
        .await;
    // Whoever has waited for a lock once goes behind all that have not begun.
    let pushed_in: i64 = fleet
        .ask(
            "select count(*) from herder.attempt a where epoch > 2 and started_at < (
                 select max(started_at) from herder.attempt join herder.job on id = job_id
                 where attempt.epoch = 1 and state = 'succeeded')",
        )
        .await;
    assert_eq!(pushed_in, 0, "{}", fleet.last_seen().await);
    holder.rollback().await.expect("a rollback");
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    assert_eq!(worker.drain().await, Some(0));
}

/// A duplicate in the data of `t002` keeps a unique index from being made there.
async fn a_duplicate_fails_its_tenant_at_once(tool: Tool) {
    let [first, second, third] = steps(3).try_into().expect("three");
    let second = second.then("create unique index people_email on people (email)");
    let first = first.then("create table if not exists people (email text)");
    let fleet = Setup::schemas(4)
        .migrations(tool, vec![first, second, third])
        .start()
        .await;
    tell(
        &fleet.home,
        "create table t002.people (email text); insert into t002.people values ('ada@example.com'), ('ada@example.com')",
    )
    .await;
    let worker = fleet.worker(&[]);
    let output = fleet.herder(&["upgrade", "--wait"]).await.expect(4);
    assert!(output.stderr.contains("23505"), "{}", output.all());
    let job = fleet.job("t002").await;
    assert_eq!(
        (&job["state"], &job["attempts"]),
        (&"failed".into(), &1.into()),
        "{job:#}"
    );
    let error = &job["error"];
    assert_eq!(error["sqlstate"], "23505", "{job:#}");
    let message = error["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("could not create unique index \"people_email\""),
        "{job:#}"
    );
    // A program's own words are all that is known of its work.
    if tool != Tool::Command {
        assert_eq!(error["revision"], "20250102", "{job:#}");
        let statement = error["statement"].as_str().unwrap_or_default();
        assert!(statement.contains("create unique index people_email"), "{job:#}");
    }
    assert_eq!(fleet.count("succeeded").await, 3);

    // Only the failed one is shown, and taken up again.
    let failed = fleet
        .herder(&["status", "--failed", "--output-format", "json"])
        .await
        .expect(0)
        .json();
    assert_eq!(failed["jobs"].as_array().map(Vec::len), Some(1), "{failed:#}");
    fleet.herder(&["retry", "--wait"]).await.expect(4);
    tell(&fleet.home, "delete from t002.people where ctid = '(0,2)'").await;
    fleet.herder(&["retry", "--wait"]).await.expect(0);
    let attempts: i64 = fleet.ask("select count(*) from herder.attempt").await;
    assert_eq!(attempts, 6);
    fleet
        .assert_effects(&["up 20250101", "up 20250102", "up 20250203"])
        .await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_duplicate_fails_its_tenant_with_all_that_is_known_and_a_retry_mends_it() {
    a_duplicate_fails_its_tenant_at_once(Tool::Sql).await;
}

#[tokio::test]
async fn a_duplicate_fails_its_tenant_with_all_that_alembic_knows() {
    a_duplicate_fails_its_tenant_at_once(Tool::Alembic).await;
}

#[tokio::test]
async fn a_duplicate_fails_its_tenant_with_a_commands_own_words() {
    a_duplicate_fails_its_tenant_at_once(Tool::Command).await;
}

/// The migration itself is wrong. It is mended, and the very same run goes on with it.
#[tokio::test]
async fn an_index_of_somebody_elses_is_not_taken_for_the_one_that_failed() {
    let [first, second] = steps(2).try_into().expect("two");
    let first = first.then("create table u (e text, f text)");
    let second = second.outside("create index concurrently uf on u (f)");
    let fleet = Setup::schemas(1)
        .migrations(Tool::Sql, vec![first, second])
        .start()
        .await;
    let worker = fleet.worker(&[]);
    fleet
        .herder(&["upgrade", "--to", "20250101", "--wait"])
        .await
        .expect(0);
    tell(&fleet.home, "create index uf on t001.u (e)").await;
    fleet.herder(&["upgrade", "--wait"]).await.expect(4);
    fleet.herder(&["retry", "--wait"]).await.expect(4);
    assert_eq!(fleet.job("t001").await["error"]["sqlstate"], "42P07");
    tell(&fleet.home, "drop index t001.uf").await;
    fleet.herder(&["retry", "--wait"]).await.expect(0);
    let index = "select indexdef from pg_indexes where indexname = 'uf'";
    let index: String = ask(&fleet.home, index).await;
    assert!(index.ends_with("(f)"), "{index}");
    assert_eq!(worker.drain().await, Some(0));
}

async fn a_mended_migration_is_taken_up(tool: Tool) {
    let [first, second] = steps(2).try_into().expect("two");
    let wrong = second.clone().then("insert into nowhere values (1)");
    let fleet = Setup::schemas(3)
        .migrations(tool, vec![first.clone(), wrong])
        .start()
        .await;
    let worker = fleet.worker(&[]);
    fleet.herder(&["upgrade", "--wait"]).await.expect(4);
    let run: String = fleet.ask("select id::text from herder.run").await;
    let job = fleet.job("t001").await;
    assert_eq!(job["error"]["sqlstate"], "42P01", "{job:#}");
    // Alembic has one transaction for all of a tenant's revisions.
    let kept: &[&str] = if tool == Tool::Alembic {
        &[]
    } else {
        &["up 20250101"]
    };
    fleet.assert_effects(kept).await;
    fleet.project().rewrite(&[first, second]);
    fleet.herder(&["retry", &run[..6], "--wait"]).await.expect(0);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    assert_eq!(fleet.ask::<i64>("select count(*) from herder.run").await, 1);
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_mended_migration_is_taken_up_by_a_retry() {
    a_mended_migration_is_taken_up(Tool::Sql).await;
}

#[tokio::test]
async fn a_mended_migration_is_taken_up_by_a_retry_with_alembic() {
    a_mended_migration_is_taken_up(Tool::Alembic).await;
}

/// sqlx looks at all that was applied, whether there is anything to do or not.
#[tokio::test]
async fn an_edited_migration_is_found_where_nothing_is_to_do() {
    for setup in [Setup::schemas(2), Setup::databases(2)] {
        let migrations = steps(2);
        let fleet = setup.migrations(Tool::Sql, migrations.clone()).start().await;
        fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
        let [first, second] = migrations.try_into().expect("two");
        fleet.project().rewrite(&[first.then("select 'edited'"), second]);
        let plan = fleet.herder(&["plan", "--check"]).await.expect(7);
        assert!(
            plan.all().contains("was edited after it had been applied"),
            "{}",
            plan.all()
        );
        fleet.herder(&["upgrade", "--local", "2"]).await.expect(4);
        let job = fleet.job("t001").await;
        assert_eq!(job["error"]["reason"], "edited_migration", "{job:#}");
        assert_eq!(job["error"]["revision"], "20250101", "{job:#}");
    }
}

#[tokio::test]
async fn an_applied_migration_that_was_edited_is_refused_by_name() {
    let [first, second] = steps(2).try_into().expect("two");
    let fleet = Setup::schemas(2)
        .migrations(Tool::Sql, vec![first.clone()])
        .start()
        .await;
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    fleet
        .project()
        .rewrite(&[first.clone().then("select 'edited'"), second]);
    let output = fleet.herder(&["upgrade", "--local", "2"]).await.expect(4);
    assert!(output.stderr.contains("20250101_step.up.sql"), "{}", output.all());
    let job = fleet.job("t001").await;
    assert_eq!(job["error"]["reason"], "edited_migration", "{job:#}");
    fleet.assert_effects(&["up 20250101"]).await;
    // Restored as it was, it is no obstacle any more.
    fleet.project().rewrite(&[first]);
    fleet.herder(&["retry", "--local", "2"]).await.expect(0);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
}

#[tokio::test]
async fn a_worker_with_other_migrations_leaves_a_run_alone() {
    let [first, second] = steps(2).try_into().expect("two");
    let fleet = Setup::schemas(2)
        .migrations(Tool::Alembic, vec![first.clone(), second.clone()])
        .set("limits.max_attempts", 2)
        .start()
        .await;
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet
        .project()
        .rewrite(&[first.clone(), second.clone().then("select 'another image'")]);
    let worker = fleet.worker(&[]);
    assert_eq!(fleet.over().await, "failed", "{}", fleet.last_seen().await);
    let job = fleet.job("t001").await;
    assert_eq!(job["error"]["reason"], "other_migrations", "{job:#}");
    fleet.assert_effects(&[]).await;
    fleet.project().rewrite(&[first, second]);
    fleet.herder(&["retry", "--wait"]).await.expect(0);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_worker_with_other_migrations_applies_the_plan_that_the_run_was_made_with() {
    let [first, second] = steps(2).try_into().expect("two");
    let fleet = Setup::schemas(2)
        .migrations(Tool::Sql, vec![first.clone(), second.clone()])
        .start()
        .await;
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet
        .project()
        .rewrite(&[first, second.then("select 'another image'::int")]);
    let worker = fleet.worker(&[]);
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    assert_eq!(worker.drain().await, Some(0));
}

/// Somebody sees a statement do harm in `t002`, and ends it.
async fn a_statement_that_a_person_cancels_is_not_begun_again(tool: Tool) {
    let [first, second] = steps(2).try_into().expect("two");
    let fleet = Setup::schemas(3)
        .migrations(tool, vec![first, second.gated()])
        .start()
        .await;
    let gate = fleet.close_gate_of("t002").await;
    let worker = fleet.worker(&[]);
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet.wait_at_gate(1).await;
    tell(
        &fleet.home,
        "select pg_cancel_backend(pid) from pg_locks
         where locktype = 'advisory' and classid = 7 and not granted
           and database = (select oid from pg_database where datname = current_database())",
    )
    .await;
    assert_eq!(fleet.over().await, "failed", "{}", fleet.last_seen().await);
    let job = fleet.job("t002").await;
    assert_eq!(
        (&job["state"], &job["attempts"]),
        (&"failed".into(), &1.into()),
        "{job:#}"
    );
    assert_eq!(job["error"]["sqlstate"], "57014", "{job:#}");
    assert_eq!(job["error"]["reason"], "statement_cancelled", "{job:#}");
    let hint = job["error"]["hint"].as_str().unwrap_or_default();
    assert!(hint.contains("somebody"), "{job:#}");
    gate.open().await;
    fleet.herder(&["retry", "--wait"]).await.expect(0);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_statement_that_a_person_cancels_is_left_alone() {
    a_statement_that_a_person_cancels_is_not_begun_again(Tool::Sql).await;
}

#[tokio::test]
async fn a_statement_that_a_person_cancels_is_left_alone_by_alembic() {
    a_statement_that_a_person_cancels_is_not_begun_again(Tool::Alembic).await;
}

#[tokio::test]
async fn a_statement_that_a_person_cancels_is_left_alone_by_a_command() {
    a_statement_that_a_person_cancels_is_not_begun_again(Tool::Command).await;
}

/// Only a server that lets nobody in is waited for, however long that takes.
async fn a_code_of_a_full_server_that_a_migration_raises_counts(tool: Tool, codes: &[&str]) {
    for &code in codes {
        let raise = format!("do $$ begin raise exception 'no room' using errcode = '{code}'; end $$");
        let [first] = steps(1).try_into().expect("one");
        let fleet = Setup::schemas(1)
            .migrations(tool, vec![first.then(&raise)])
            .set("limits.max_attempts", 2)
            .set("limits.backoff", "10ms")
            .start()
            .await;
        fleet.herder(&["upgrade", "--local", "1"]).await.expect(4);
        let job = fleet.job("t001").await;
        assert_eq!(job["attempts"], 2, "{job:#}");
        assert_eq!(
            (&job["error"]["sqlstate"], &job["error"]["reason"]),
            (&code.into(), &"sql_error".into()),
            "{job:#}"
        );
    }
}

#[tokio::test]
async fn a_code_of_a_full_server_that_a_file_raises_counts() {
    a_code_of_a_full_server_that_a_migration_raises_counts(Tool::Sql, &["53300", "57P03", "57P01", "08006"])
        .await;
}

#[tokio::test]
async fn a_code_of_a_full_server_that_alembic_raises_counts() {
    a_code_of_a_full_server_that_a_migration_raises_counts(Tool::Alembic, &["53300", "57P03"]).await;
}

#[tokio::test]
async fn a_code_of_a_full_server_that_a_command_raises_counts() {
    a_code_of_a_full_server_that_a_migration_raises_counts(Tool::Command, &["53300", "57P03"]).await;
}
