//! What two runs may do beside each other: nothing, at the same tenants.

use rustix::process::Signal;

use crate::fleet::{Fleet, Gate, Setup, Tenant, Tool, Worker, steps, tell};
use crate::steering::{heartbeats, two_in_the_middle};
use crate::waves::broken_in;

/// The code of a command that was asked for what cannot be done now: another run is at it.
const REFUSED: i32 = 2;

#[tokio::test]
async fn a_second_run_over_the_same_tenants_is_refused_and_names_the_first() {
    let (fleet, gate, worker) = two_in_the_middle(Tool::Sql, 4).await;
    let first: String = fleet.ask("select id::text from herder.run").await;
    let refused = fleet.herder(&["upgrade"]).await.expect(REFUSED);
    assert!(refused.stderr.contains(&first[..8]), "{}", refused.all());
    fleet
        .herder(&["downgrade", "--to", "base", "--yes"])
        .await
        .expect(REFUSED);
    // Paused is still open.
    fleet.herder(&["pause"]).await.expect(0);
    fleet.herder(&["upgrade"]).await.expect(REFUSED);
    fleet.herder(&["resume"]).await.expect(0);
    assert_eq!(fleet.ask::<i64>("select count(*) from herder.run").await, 1);
    gate.open().await;
    assert_eq!(fleet.over().await, "succeeded");
    assert_eq!(worker.drain().await, Some(0));
}

/// The ledger of both stands in `public`. Within one run they are one job; two runs must not have one each.
#[tokio::test]
async fn a_whole_database_and_its_public_schema_are_one_place_to_two_runs() {
    let mut fleet = Setup::schemas(1).migrations(Tool::Sql, steps(1)).start().await;
    let database = Some(fleet.database("app"));
    fleet
        .cluster
        .create(&herder::session::quote(&fleet.database("app")))
        .await;
    let whole = Tenant {
        id: "whole".into(),
        database: database.clone(),
        ..Tenant::default()
    };
    let public = Tenant {
        database,
        ..Tenant::schema("public", "public")
    };
    fleet.tell("delete from tenants").await;
    fleet.tenants = vec![whole, public];
    fleet.populate().await;
    for [first, second] in [["whole", "public"], ["public", "whole"]] {
        fleet.herder(&["upgrade", "--tenant", first]).await.expect(0);
        fleet
            .herder(&["upgrade", "--tenant", second])
            .await
            .expect(REFUSED);
        fleet.herder(&["cancel", "--yes"]).await.expect(0);
    }
}

/// A fleet at its newest revision, two of whose tenants are in the middle of its downgrade.
async fn two_on_their_way_down(tenants: usize) -> (Fleet, Gate, Worker) {
    let [first, second] = steps(2).try_into().expect("two");
    let setup = Setup::schemas(tenants).migrations(Tool::Sql, vec![first, second.gated_down()]);
    let fleet = setup.start().await;
    let worker = fleet.worker(&["--concurrency", "2"]);
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    let gate = fleet.close_gate().await;
    fleet
        .herder(&["downgrade", "--to", "-1", "--yes"])
        .await
        .expect(0);
    fleet.wait_at_gate(2).await;
    (fleet, gate, worker)
}

#[tokio::test]
async fn an_upgrade_is_refused_while_a_downgrade_has_yet_to_undo_its_tenants() {
    let (fleet, gate, worker) = two_on_their_way_down(3).await;
    // All are at the newest revision still.
    fleet.herder(&["upgrade", "--wait"]).await.expect(REFUSED);
    assert_eq!(fleet.ask::<i64>("select count(*) from herder.run").await, 2);
    gate.open().await;
    assert_eq!(fleet.over().await, "succeeded");
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    fleet
        .assert_effects(&["up 20250101", "up 20250102", "down 20250102", "up 20250102"])
        .await;
    assert_eq!(worker.drain().await, Some(0));
}

/// A run is to be written when the ledgers that it has read are another run's by then, of which `besides` is true as well.
async fn what_another_run_undid_after_the_ledgers_were_read(besides: &str) {
    let (fleet, gate, worker) = two_on_their_way_down(2).await;
    // Whoever writes a run waits for this one, with what it read before.
    let lock = "select pg_advisory_xact_lock(hashtextextended('herder/enqueue', 0))";
    let mut other = fleet.control.begin().await.expect("a transaction");
    sqlx::query(lock).execute(&mut *other).await.expect("a lock");
    let upgrade = fleet.start_herder(&["upgrade", "--wait"]);
    fleet
        .wait_until("a run waits to be written", async || {
            fleet
                .ask::<i64>("select count(*) from pg_stat_activity where wait_event = 'advisory' and datname = current_database()")
                .await
                == 1
        })
        .await;
    gate.open().await;
    assert_eq!(fleet.over().await, "succeeded");
    fleet.tell(besides).await;
    other.rollback().await.expect("an end");
    upgrade.end().await.expect(0);
    fleet
        .assert_effects(&["up 20250101", "up 20250102", "down 20250102", "up 20250102"])
        .await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn what_another_run_undid_after_the_ledgers_were_read_is_read_again() {
    what_another_run_undid_after_the_ledgers_were_read("").await;
}

/// Its attempts ended as ones that are to be tried again, in the moment before anybody has seen that it was cancelled.
#[tokio::test]
async fn what_a_cancelled_run_undid_after_the_ledgers_were_read_is_read_again() {
    let cancelled = "update herder.run set state = 'cancelled';
                     update herder.job set state = 'ready', settled_at = null, outcome = null";
    what_another_run_undid_after_the_ledgers_were_read(cancelled).await;
}

#[tokio::test]
async fn of_two_runs_at_the_same_moment_one_is_made() {
    let fleet = Setup::schemas(50).start().await;
    let both = [(); 2].map(|()| fleet.start_herder(&["upgrade"]));
    let [a, b] = both;
    let (a, b) = (a.end().await, b.end().await);
    let mut codes = [a.code, b.code];
    codes.sort_unstable();
    assert_eq!(codes, [Some(0), Some(REFUSED)], "{}\n{}", a.all(), b.all());
    assert_eq!(fleet.ask::<i64>("select count(*) from herder.run").await, 1);
    assert_eq!(fleet.ask::<i64>("select count(*) from herder.job").await, 50);
}

/// What is read behind a lock is no older than the lock, whatever the database's own default is.
#[tokio::test]
async fn of_two_runs_that_wait_for_their_turn_one_is_made() {
    let fleet = Setup::schemas(3).start().await;
    let default = "set default_transaction_isolation = 'repeatable read'";
    let control = herder::session::quote(&fleet.database("control"));
    tell(&fleet.home, &format!("alter database {control} {default}")).await;
    let lock = "select pg_advisory_xact_lock(hashtextextended('herder/enqueue', 0))";
    let mut turn = fleet.control.begin().await.expect("a transaction");
    sqlx::query(lock).execute(&mut *turn).await.expect("a lock");
    let [a, b] = [(); 2].map(|()| fleet.start_herder(&["upgrade"]));
    let waiting = "select count(*) from pg_stat_activity where wait_event = 'advisory' and datname = current_database()";
    fleet
        .wait_until("both wait", async || fleet.ask::<i64>(waiting).await == 2)
        .await;
    turn.rollback().await.expect("an end");
    let mut codes = [a.end().await.code, b.end().await.code];
    codes.sort_unstable();
    assert_eq!(codes, [Some(0), Some(REFUSED)]);
    assert_eq!(fleet.ask::<i64>("select count(*) from herder.run").await, 1);
}

/// Waits until so many commands look whether the run before theirs has ended.
async fn queued(fleet: &Fleet, commands: i64) {
    let looks = "select count(*) from pg_stat_activity
                 where application_name = 'herder' and datname = current_database() and query like '%coalesce(counts.of%'";
    fleet
        .wait_until("commands wait for the run before theirs", async || {
            fleet.ask::<i64>(looks).await >= commands
        })
        .await;
}

#[tokio::test]
async fn a_second_run_waits_behind_the_first_if_it_is_told_to() {
    let (fleet, gate, worker) = two_in_the_middle(Tool::Sql, 4).await;
    let runs = "select count(*) from herder.run";
    // Two of them: whoever comes second waits for both.
    let up = fleet.start_herder(&["upgrade", "--queue", "--wait"]);
    let down = fleet.start_herder(&["downgrade", "--to", "-1", "--tenant", "t001", "--queue", "--yes"]);
    queued(&fleet, 2).await;
    heartbeats(&fleet).await;
    assert_eq!(fleet.ask::<i64>(runs).await, 1);
    gate.open().await;
    up.end().await.expect(0);
    down.end().await.expect(0);
    fleet.succeeded(3).await;
    // No two of them were at one tenant at once.
    let interleaved: i64 = fleet
        .ask(
            "select count(*) from herder.attempt a join herder.job on job.id = a.job_id
             join herder.job other on other.tenant = job.tenant and other.run_id <> job.run_id
             join herder.attempt b on b.job_id = other.id
             where a.started_at < b.started_at and a.ended_at > b.started_at",
        )
        .await;
    assert_eq!(interleaved, 0);
    let effects = fleet.effects(&fleet.tenants[0]).await;
    assert_eq!(effects[..2], ["up 20250101", "up 20250102"]);
    assert_eq!(effects[2], "down 20250102");
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_wait_behind_another_run_that_is_given_up_leaves_nothing() {
    let (fleet, gate, worker) = two_in_the_middle(Tool::Sql, 2).await;
    let waiting = fleet.start_herder(&["upgrade", "--queue"]);
    queued(&fleet, 1).await;
    let stalled = fleet
        .herder(&["upgrade", "--queue", "--stall-timeout", "1s"])
        .await
        .expect(8);
    assert!(
        stalled.stderr.contains("nothing was started"),
        "{}",
        stalled.all()
    );
    waiting.signal(Signal::INT);
    let output = waiting.end().await.expect(130);
    assert!(output.stderr.contains("nothing was started"), "{}", output.all());
    assert_eq!(output.stdout, "");
    gate.open().await;
    assert_eq!(fleet.over().await, "succeeded");
    assert_eq!(fleet.ask::<i64>("select count(*) from herder.run").await, 1);
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_retry_is_refused_while_another_run_is_at_its_tenants() {
    let fleet = broken_in(&["t001"], 3).await;
    let worker = fleet.worker(&[]);
    fleet.herder(&["upgrade", "--wait"]).await.expect(4);
    let first: String = fleet.ask("select id::text from herder.run").await;
    assert_eq!(worker.drain().await, Some(0));
    fleet.herder(&["upgrade"]).await.expect(0);
    let refused = fleet.herder(&["retry", &first]).await.expect(REFUSED);
    assert!(refused.stderr.contains("cannot retry"), "{}", refused.all());
    let open = "select count(*) from herder.job where state in ('ready', 'running')";
    assert_eq!(fleet.ask::<i64>(open).await, 1);
    fleet.herder(&["cancel", "--yes"]).await.expect(0);
    tell(&fleet.home, "drop table t001.broken").await;
    fleet.herder(&["retry", &first, "--local", "1"]).await.expect(0);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
}

#[tokio::test]
async fn runs_over_different_tenants_go_side_by_side() {
    let fleet = Setup::schemas(6).migrations(Tool::Sql, steps(2)).start().await;
    fleet
        .herder(&["upgrade", "--tenant", "t001", "--tenant", "t002"])
        .await
        .expect(0);
    fleet
        .herder(&["upgrade", "--exclude", "t001", "--exclude", "t002"])
        .await
        .expect(0);
    let worker = fleet.worker(&[]);
    fleet.succeeded(2).await;
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    assert_eq!(worker.drain().await, Some(0));
}
