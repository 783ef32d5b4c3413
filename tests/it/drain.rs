//! SIGTERM drains a worker: nothing new is taken, what runs finishes, and what cannot finish in time goes back for free.

use rustix::process::Signal;

use crate::fleet::{Fleet, Setup, Tool, Worker, steps};

async fn two_at_the_gate(tool: Tool, tenants: usize, args: &[&str]) -> (Fleet, crate::fleet::Gate, Worker) {
    let [first, second] = steps(2).try_into().expect("two");
    let setup = Setup::schemas(tenants).migrations(tool, vec![first, second.gated()]);
    let fleet = setup.start().await;
    let gate = fleet.close_gate().await;
    let worker = fleet.worker(&[&["--concurrency", "2"], args].concat());
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet.wait_at_gate(2).await;
    (fleet, gate, worker)
}

/// Another worker brings the run to its end. What was given back has cost no attempt.
async fn another_one_finishes(fleet: &Fleet) {
    let worker = fleet.worker(&["--name", "heir"]);
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    for job in fleet.status().await["jobs"].as_array().expect("jobs") {
        assert_eq!(job["attempts"], 1, "{job:#}");
    }
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_draining_worker_takes_nothing_new_and_finishes_what_runs() {
    let (fleet, gate, mut worker) = two_at_the_gate(Tool::Sql, 6, &["--listen", "127.0.0.1:0"]).await;
    assert_eq!(worker.get("/readyz").await.0, 200);
    worker.signal(Signal::TERM);
    worker.says("Draining").await;
    let (ready, _) = worker.get("/readyz").await;
    assert_eq!((ready, worker.get("/livez").await.0), (503, 200));
    let draining = "select bool_and(draining) from herder.worker";
    fleet
        .wait_until("the drain is known", async || fleet.ask::<bool>(draining).await)
        .await;
    gate.open().await;
    assert_eq!(worker.end().await.code(), Some(0), "{}", worker.log());
    assert_eq!(
        (fleet.count("succeeded").await, fleet.count("ready").await),
        (2, 4)
    );
    assert_eq!(fleet.ask::<i64>("select count(*) from herder.attempt").await, 2);
    assert_eq!(fleet.ask::<i64>("select count(*) from herder.worker").await, 0);
    another_one_finishes(&fleet).await;
}

/// A revision file is a program, and may do anything while it is read.
#[tokio::test]
async fn a_project_that_does_not_say_what_it_is_holds_up_no_drain() {
    let setup = Setup::schemas(1).migrations(Tool::Alembic, steps(1));
    let fleet = setup.set("runner.plan", "never").start().await;
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet
        .project()
        .file("versions/20250102_slow.py", "import time\ntime.sleep(3600)\n");
    let mut worker = fleet.worker(&["--drain-timeout", "1s"]);
    fleet
        .wait_until("it is claimed", async || fleet.count("running").await == 1)
        .await;
    worker.signal(Signal::TERM);
    assert_eq!(worker.end().await.code(), Some(0), "{}", worker.log());
    assert_eq!(fleet.count("ready").await, 1);
}

/// apalis goes on with nothing once it is to stop, and drops nothing either: a claim that it stood still over kept the line to
/// the control database from the outcome of what ran.
#[tokio::test]
async fn a_claim_on_its_way_does_not_hold_up_a_drain() {
    let [first, second] = steps(2).try_into().expect("two");
    let setup = Setup::schemas(1).migrations(Tool::Sql, vec![first, second.gated()]);
    let fleet = setup.start().await;
    let gate = fleet.close_gate().await;
    let mut worker = fleet.worker(&["--concurrency", "2", "--drain-timeout", "1h"]);
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet.wait_at_gate(1).await;
    let slots = fleet.lock("herder.slot", "exclusive").await;
    fleet.wait_at_lock("herder.slot").await;
    worker.signal(Signal::TERM);
    worker.says("Draining").await;
    gate.open().await;
    slots.rollback().await.expect("an end");
    assert_eq!(worker.end().await.code(), Some(0), "{}", worker.log());
    assert_eq!(fleet.count("succeeded").await, 1, "{}", fleet.last_seen().await);
}

/// Nobody begins it any more, and another worker need not wait for what runs here.
#[tokio::test]
async fn what_is_claimed_while_a_drain_begins_goes_back_at_once() {
    let [first, second] = steps(2).try_into().expect("two");
    let setup = Setup::schemas(2).migrations(Tool::Sql, vec![first, second.gated()]);
    let fleet = setup.start().await;
    let gate = fleet.close_gate().await;
    let (control, tenants) = fleet.wires().await;
    let args = ["--concurrency", "2", "--drain-timeout", "1h"];
    let mut worker = fleet.worker_over(&control, &tenants, &args);
    fleet.herder(&["upgrade", "--tenant", "t001"]).await.expect(0);
    fleet.wait_at_gate(1).await;
    control.hold_answer_at("t002");
    fleet.herder(&["upgrade", "--tenant", "t002"]).await.expect(0);
    fleet
        .wait_until("it is claimed", async || fleet.count("running").await == 1)
        .await;
    worker.signal(Signal::TERM);
    worker.says("Draining").await;
    control.heal();
    fleet
        .wait_until("it is given back", async || fleet.count("ready").await == 1)
        .await;
    let running = "select count(*) from herder.job where state = 'running'";
    assert_eq!(fleet.ask::<i64>(running).await, 1);
    gate.open().await;
    assert_eq!(worker.end().await.code(), Some(0), "{}", worker.log());
    let succeeded = "select count(*) from herder.job where state = 'succeeded'";
    assert_eq!(
        fleet.ask::<i64>(succeeded).await,
        1,
        "{}",
        fleet.last_seen().await
    );
}

async fn a_drain_runs_out_of_time(tool: Tool) {
    let (fleet, gate, worker) = two_at_the_gate(tool, 4, &["--drain-timeout", "0s"]).await;
    assert_eq!(worker.drain().await, Some(0));
    // With the gate still closed: so nothing can have finished.
    assert_eq!(fleet.count("ready").await, 4, "{}", fleet.last_seen().await);
    let given_back: i64 = fleet
        .ask("select count(*) from herder.attempt where result = 'returned'")
        .await;
    assert_eq!(given_back, 2);
    let taken: i64 = fleet
        .ask("select count(*) from herder.slot where purpose <> 'control'")
        .await;
    assert_eq!(taken, 0);
    gate.open().await;
    another_one_finishes(&fleet).await;
}

#[tokio::test]
async fn a_drain_out_of_time_gives_back_for_free() {
    a_drain_runs_out_of_time(Tool::Sql).await;
}

#[tokio::test]
async fn a_drain_out_of_time_ends_alembic() {
    a_drain_runs_out_of_time(Tool::Alembic).await;
}

#[tokio::test]
async fn a_drain_out_of_time_ends_commands() {
    a_drain_runs_out_of_time(Tool::Command).await;
}

#[tokio::test]
async fn a_second_signal_waits_for_nothing() {
    let (fleet, gate, mut worker) = two_at_the_gate(Tool::Sql, 4, &["--drain-timeout", "1h"]).await;
    worker.signal(Signal::TERM);
    worker.says("Draining").await;
    assert!(worker.runs());
    worker.signal(Signal::INT);
    assert_eq!(worker.end().await.code(), Some(0), "{}", worker.log());
    assert_eq!(fleet.count("ready").await, 4, "{}", fleet.last_seen().await);
    gate.open().await;
    another_one_finishes(&fleet).await;
}

#[tokio::test]
async fn an_idle_worker_drains_at_once() {
    let fleet = Setup::schemas(1).start().await;
    for signal in [Signal::TERM, Signal::INT] {
        let mut worker = fleet.worker(&[]);
        worker.says("takes jobs").await;
        fleet
            .wait_until("it has signed on", async || {
                fleet.ask::<i64>("select count(*) from herder.worker").await == 1
            })
            .await;
        worker.signal(signal);
        assert_eq!(worker.end().await.code(), Some(0), "{}", worker.log());
        assert_eq!(fleet.ask::<i64>("select count(*) from herder.worker").await, 0);
    }
}

/// Its heartbeat's connection and another one: for these it has slots, where the control database is on a server with tenants.
#[tokio::test]
async fn a_worker_comes_to_its_end_over_the_two_connections_that_it_has() {
    let fleet = Setup::schemas(1).start().await;
    let role = fleet.database("worker");
    fleet
        .tell(&format!("create role {role} login connection limit 2"))
        .await;
    fleet.herder(&["setup", "--grant", &role]).await.expect(0);
    fleet.configure(|config| {
        let url = config["control"]["url"].as_str().expect("a URL");
        config["control"]["url"] = url.replace("postgres@", &format!("{role}@")).into();
    });
    let mut worker = fleet.worker(&[]);
    let sessions = format!("select count(*) from pg_stat_activity where usename = '{role}'");
    fleet
        .wait_until("it has signed on, and has both", async || {
            fleet.ask::<i64>("select count(*) from herder.worker").await == 1
                && fleet.ask::<i64>(&sessions).await == 2
        })
        .await;
    worker.signal(Signal::TERM);
    assert_eq!(worker.end().await.code(), Some(0), "{}", worker.log());
    assert!(!worker.log().contains("Could not"), "{}", worker.log());
    assert_eq!(fleet.ask::<i64>("select count(*) from herder.worker").await, 0);
    fleet
        .tell(&format!("drop owned by {role}; drop role {role}"))
        .await;
}
