//! A run is steered while it runs: paused, resumed, cancelled, or left by Ctrl-C.

use rustix::process::Signal;

use crate::fleet::{Fleet, Gate, Setup, Tool, Worker, steps};

/// A run of so many tenants, two of which are in the middle of their second migration.
pub(crate) async fn two_in_the_middle(tool: Tool, tenants: usize) -> (Fleet, Gate, Worker) {
    let [first, second] = steps(2).try_into().expect("two");
    let setup = Setup::schemas(tenants).migrations(tool, vec![first, second.gated()]);
    let fleet = setup.start().await;
    let gate = fleet.close_gate().await;
    let worker = fleet.worker(&["--concurrency", "2"]);
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet.wait_at_gate(2).await;
    (fleet, gate, worker)
}

/// Waits until a worker has had all the time it needs to take another job.
pub(crate) async fn heartbeats(fleet: &Fleet) {
    let now: f64 = fleet.ask("select extract(epoch from now())::float8").await;
    let beats = "select extract(epoch from max(beat_at))::float8 from herder.worker";
    fleet
        .wait_until("a few heartbeats have passed", async || {
            fleet.ask::<f64>(beats).await > now + 1.0
        })
        .await;
}

#[tokio::test]
async fn a_paused_run_finishes_what_runs_and_takes_nothing_new_until_it_is_resumed() {
    let (fleet, gate, worker) = two_in_the_middle(Tool::Sql, 6).await;
    fleet.herder(&["pause"]).await.expect(0);
    gate.open().await;
    fleet
        .wait_until("what ran is done", async || fleet.count("succeeded").await == 2)
        .await;
    heartbeats(&fleet).await;
    assert_eq!(
        (fleet.count("ready").await, fleet.state().await.as_str()),
        (4, "paused")
    );
    fleet.herder(&["pause"]).await.expect(0);
    fleet.herder(&["resume", "--wait"]).await.expect(0);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    assert_eq!(worker.drain().await, Some(0));
}

/// Its worker hears of the cancel in a while, and what it does to the tenant may be committed by then.
#[tokio::test]
async fn a_tenant_that_a_cancelled_run_is_still_at_is_not_taken_for_current() {
    let [first, second] = steps(2).try_into().expect("two");
    let setup = Setup::schemas(2).migrations(Tool::Sql, vec![first, second.gated_down()]);
    let fleet = setup.start().await;
    let worker = fleet.worker(&["--concurrency", "1"]);
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    let gate = fleet.close_gate_of("t001").await;
    let down = ["downgrade", "--to", "-1", "--yes", "--tenant", "t001"];
    fleet.herder(&down).await.expect(0);
    fleet.wait_at_gate(1).await;
    worker.signal(Signal::STOP);
    fleet.herder(&["cancel", "--yes"]).await.expect(0);
    fleet.herder(&["upgrade"]).await.expect(0);
    let states =
        "select string_agg(concat_ws(' ', tenant, job.state, outcome), ', ' order by tenant) from herder.job
                  join (select id from herder.run order by created_at desc limit 1) run on run.id = run_id";
    assert_eq!(
        fleet.ask::<String>(states).await,
        "t001 ready, t002 succeeded already_current"
    );
    // The statement goes on without its worker, and is committed.
    gate.open().await;
    worker.signal(Signal::CONT);
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    assert_eq!(fleet.count("succeeded").await, 2);
    let at_head = "select count(*) from t001._sqlx_migrations";
    assert_eq!(crate::fleet::ask::<i64>(&fleet.home, at_head).await, 2);
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn what_a_lost_worker_held_of_a_cancelled_run_keeps_no_watcher_waiting() {
    let (fleet, gate, worker) = two_in_the_middle(Tool::Sql, 3).await;
    worker.kill().await;
    fleet.herder(&["cancel", "--yes"]).await.expect(0);
    fleet.herder(&["watch"]).await.expect(6);
    assert_eq!(fleet.count("running").await, 2);
    gate.open().await;
    // The next worker finds that they are nobody's, and that nobody wants them.
    let worker = fleet.worker(&[]);
    fleet
        .wait_until("all are cancelled", async || fleet.count("cancelled").await == 3)
        .await;
    assert_eq!(worker.drain().await, Some(0));
}

async fn a_cancel_stops_what_runs(tool: Tool) {
    let (fleet, gate, worker) = two_in_the_middle(tool, 4).await;
    let watcher = fleet.start_herder(&["watch"]);
    fleet.herder(&["cancel", "--yes"]).await.expect(0);
    // The gate stays closed: nothing can have ended by itself.
    fleet
        .wait_until("all are cancelled", async || fleet.count("cancelled").await == 4)
        .await;
    watcher.end().await.expect(6);
    fleet
        .wait_until("all sessions are closed", async || fleet.sessions().await == 0)
        .await;
    gate.open().await;
    let kept: &[&str] = if tool == Tool::Alembic {
        &[]
    } else {
        &["up 20250101"]
    };
    for tenant in &fleet.tenants {
        let effects = fleet.effects(tenant).await;
        assert!(effects.is_empty() || effects == kept, "{effects:?}");
    }
    // What was cancelled is over for good, and in nobody's way.
    fleet.herder(&["resume"]).await.expect(2);
    fleet.herder(&["retry"]).await.expect(2);
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_cancelled_run_stops_what_runs() {
    a_cancel_stops_what_runs(Tool::Sql).await;
}

#[tokio::test]
async fn a_cancelled_run_stops_alembic() {
    a_cancel_stops_what_runs(Tool::Alembic).await;
}

#[tokio::test]
async fn a_cancelled_run_stops_commands() {
    a_cancel_stops_what_runs(Tool::Command).await;
}

#[tokio::test]
async fn ctrl_c_ends_the_wait_and_not_the_run() {
    let [first, second] = steps(2).try_into().expect("two");
    let setup = Setup::schemas(2).migrations(Tool::Sql, vec![first, second.gated()]);
    let fleet = setup.start().await;
    let gate = fleet.close_gate().await;
    let worker = fleet.worker(&[]);
    let waiting = fleet.start_herder(&["upgrade", "--wait"]);
    fleet.wait_at_gate(2).await;
    waiting.signal(Signal::INT);
    let output = waiting.end().await.expect(130);
    assert!(output.stderr.contains("continues"), "{}", output.all());
    assert_eq!(
        (fleet.state().await.as_str(), fleet.count("running").await),
        ("running", 2)
    );
    let watcher = fleet.start_herder(&["watch"]);
    gate.open().await;
    watcher.end().await.expect(0);
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn ctrl_c_gives_back_what_a_local_run_holds() {
    let [first, second] = steps(2).try_into().expect("two");
    let setup = Setup::schemas(3).migrations(Tool::Sql, vec![first, second.gated()]);
    let fleet = setup.set("worker.drain_timeout", "0s").start().await;
    let gate = fleet.close_gate().await;
    let local = fleet.start_herder(&["upgrade", "--local", "2"]);
    fleet.wait_at_gate(2).await;
    local.signal(Signal::INT);
    local.end().await.expect(130);
    assert_eq!(fleet.count("ready").await, 3, "{}", fleet.last_seen().await);
    gate.open().await;
    fleet.herder(&["resume", "--local", "2"]).await.expect(0);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    for job in fleet.status().await["jobs"].as_array().expect("jobs") {
        assert_eq!(job["attempts"], 1, "{job:#}");
    }
}
