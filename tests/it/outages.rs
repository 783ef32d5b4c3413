//! Postgres goes away in the middle: the control database, or the tenants' server.

use std::{sync::Arc, time::Duration};

use herder::throwaway::Settings;
use rustix::process::Signal;

use crate::fleet::{Cluster, Fleet, Setup, Tool, ask, steps};

fn gated(tool: Tool, tenants: usize) -> Setup {
    let [first, second] = steps(2).try_into().expect("two");
    Setup::schemas(tenants).migrations(tool, vec![first, second.gated()])
}

/// The same for Alembic by plan.
fn planned(tenants: usize) -> Setup {
    let [first, second] = steps(2).try_into().expect("two");
    Setup::schemas(tenants).plans(vec![first, second.gated()])
}

/// Nothing was lost, nothing was done twice, and the outage has cost nobody an attempt.
async fn nothing_was_lost(fleet: &Fleet) {
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    for job in fleet.status().await["jobs"].as_array().expect("jobs") {
        assert_eq!(job["attempts"], 1, "{job:#}");
    }
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
}

async fn restart(cluster: &Arc<Cluster>) {
    let cluster = Arc::clone(cluster);
    tokio::task::spawn_blocking(move || cluster.server().restart().expect("a restart"))
        .await
        .expect("no panic");
}

async fn an_outage_of_the_control_database_loses_nothing(setup: Setup) {
    let cluster = Cluster::own(Settings::default()).await;
    let fleet = setup.control_on(&cluster).start().await;
    // First: a proof would wait at the gate, too.
    fleet.herder(&["upgrade"]).await.expect(0);
    let gate = fleet.close_gate().await;
    let mut workers = Vec::new();
    for _ in 0..2 {
        workers.push(fleet.worker(&["--concurrency", "2", "--listen", "127.0.0.1:0"]));
    }
    fleet.wait_at_gate(4).await;
    cluster.server().stop_immediate();
    for worker in &workers {
        worker.says("does not answer").await;
    }
    // What runs goes on, and is done while nobody can be told.
    gate.open().await;
    fleet
        .wait_until("what ran is done", async || fleet.sessions().await == 0)
        .await;
    for worker in &mut workers {
        // Restarting it would bring nothing back.
        assert_eq!(worker.get("/livez").await.0, 200);
        assert!(worker.runs());
        // Longer than a lease: by its own clock, too, it may no longer be believed.
        fleet
            .wait_until("its lease has run out", async || {
                worker.get("/readyz").await.0 == 503
            })
            .await;
    }
    restart(&cluster).await;
    nothing_was_lost(&fleet).await;
    for worker in workers {
        assert_eq!(
            worker.metric("herder_rescued_total").await,
            0.0,
            "{}",
            worker.log()
        );
        assert_eq!(worker.drain().await, Some(0));
    }
}

#[tokio::test]
async fn a_control_database_that_goes_away_loses_nothing() {
    an_outage_of_the_control_database_loses_nothing(gated(Tool::Sql, 12)).await;
}

#[tokio::test]
async fn a_control_database_that_goes_away_loses_nothing_of_alembics_plans() {
    an_outage_of_the_control_database_loses_nothing(planned(12)).await;
}

/// No lease was renewed while it was away.
#[tokio::test]
async fn whoever_waits_does_not_take_workers_for_gone_once_it_is_back() {
    let cluster = Cluster::own(Settings::default()).await;
    let [first] = steps(1).try_into().expect("one");
    let fleet = Setup::schemas(1)
        .migrations(Tool::Sql, vec![first.gated()])
        .control_on(&cluster)
        .start()
        .await;
    let gate = fleet.close_gate().await;
    let worker = fleet.worker(&["--listen", "127.0.0.1:0"]);
    let waiting = fleet.start_herder(&["upgrade", "--wait"]);
    fleet.wait_at_gate(1).await;
    worker.signal(Signal::STOP);
    cluster.server().stop_immediate();
    tokio::time::sleep(Duration::from_secs(3)).await;
    restart(&cluster).await;
    // As if it took so long to be heard of again.
    tokio::time::sleep(Duration::from_secs(5)).await;
    worker.signal(Signal::CONT);
    gate.open().await;
    let waited = waiting.end().await.expect(0);
    assert!(
        !waited.stderr.contains("no worker is running"),
        "{}",
        waited.all()
    );
    assert_eq!(worker.drain().await, Some(0));
}

/// Sessions that were kept after attempts whose end nobody could be told.
#[tokio::test]
async fn a_drain_without_a_control_database_closes_what_was_kept() {
    let control = Cluster::own(Settings::default()).await;
    // It notes each session that ends without a goodbye, by its name.
    let settings = Settings::default()
        .parameter("log_min_messages", "debug1")
        .parameter("log_line_prefix", "%a ");
    let cluster = Cluster::own(settings).await;
    let fleet = gated(Tool::Sql, 2)
        .on(&cluster)
        .control_on(&control)
        .start()
        .await;
    let gate = fleet.close_gate().await;
    let mut worker = fleet.worker(&["--concurrency", "2"]);
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet.wait_at_gate(2).await;
    control.server().stop_immediate();
    worker.says("does not answer").await;
    gate.open().await;
    let kept = "select count(*) from pg_stat_activity where application_name like 'herder/kept/%' and state = 'idle'";
    fleet
        .wait_until("both are done", async || ask::<i64>(&fleet.home, kept).await == 2)
        .await;
    worker.signal(Signal::TERM);
    worker.says("Draining").await;
    worker.signal(Signal::TERM);
    assert_eq!(worker.end().await.code(), Some(0), "{}", worker.log());
    fleet
        .wait_until("no session is left", async || fleet.sessions().await == 0)
        .await;
    let log = std::fs::read_to_string(cluster.server().dir().join("log")).expect("the server's log");
    let cut_short = |line: &&str| line.starts_with("herder/") && line.contains("unexpected EOF");
    assert_eq!(log.lines().find(cut_short), None);
}

#[tokio::test]
async fn a_control_database_that_crashes_again_and_again_loses_nothing() {
    let cluster = Cluster::own(Settings::default()).await;
    let setup = Setup::schemas(120).migrations(Tool::Sql, steps(2));
    let fleet = setup.control_on(&cluster).start().await;
    let workers = [
        fleet.worker(&["--concurrency", "2"]),
        fleet.worker(&["--concurrency", "2"]),
    ];
    fleet.herder(&["upgrade"]).await.expect(0);
    for crashes in 1..=3 {
        fleet
            .wait_until("some more tenants are done", async || {
                fleet.count("succeeded").await >= crashes * 15
            })
            .await;
        restart(&cluster).await;
    }
    nothing_was_lost(&fleet).await;
    for worker in workers {
        assert_eq!(worker.drain().await, Some(0));
    }
}

#[tokio::test]
async fn a_worker_may_come_before_its_control_database() {
    let cluster = Cluster::own(Settings::default()).await;
    let fleet = Setup::schemas(2).control_on(&cluster).start().await;
    cluster.server().stop_immediate();
    let mut worker = fleet.worker(&[]);
    // It says so and ends: whoever started it starts it again. Or it waits. But it does not crash.
    worker.says("control database").await;
    if !worker.runs() {
        assert_eq!(worker.end().await.code(), Some(3), "{}", worker.log());
    }
}

/// The tenants' server crashes while a worker is in the middle of some.
async fn a_crash_costs_no_attempt(setup: Setup) {
    let cluster = Cluster::own(Settings::default()).await;
    let fleet = setup.on(&cluster).start().await;
    fleet.herder(&["upgrade"]).await.expect(0);
    let gate = fleet.close_gate().await;
    let worker = fleet.worker(&["--concurrency", "3"]);
    fleet.wait_at_gate(3).await;
    cluster.server().stop_immediate();
    let snoozed = "select count(distinct job_id) from herder.attempt where result = 'snoozed'";
    fleet
        .wait_until("all have found the server away", async || {
            fleet.ask::<i64>(snoozed).await == 6
        })
        .await;
    let job = fleet.job("t001").await;
    assert_eq!(job["attempts"], 0, "{job:#}");
    assert_eq!(job["error"]["reason"], "connection_lost", "{job:#}");
    gate.open().await;
    restart(&cluster).await;
    nothing_was_lost(&fleet).await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_crash_of_the_tenants_server_costs_no_attempt() {
    a_crash_costs_no_attempt(gated(Tool::Sql, 6)).await;
}

#[tokio::test]
async fn a_crash_of_the_tenants_server_costs_no_attempt_with_alembic() {
    a_crash_costs_no_attempt(gated(Tool::Alembic, 6)).await;
}

#[tokio::test]
async fn a_crash_of_the_tenants_server_costs_no_attempt_with_alembics_plans() {
    a_crash_costs_no_attempt(planned(6)).await;
}

#[tokio::test]
async fn a_crash_of_the_tenants_server_costs_no_attempt_with_a_command() {
    a_crash_costs_no_attempt(gated(Tool::Command, 6)).await;
}

#[tokio::test]
async fn a_server_that_is_down_at_the_start_is_waited_for() {
    let cluster = Cluster::own(Settings::default()).await;
    let fleet = Setup::schemas(5)
        .migrations(Tool::Sql, steps(2))
        .on(&cluster)
        .start()
        .await;
    cluster.server().stop_immediate();
    let tenants = fleet
        .herder(&["tenants", "--revisions", "--output-format", "json"])
        .await
        .expect(0)
        .json();
    for tenant in tenants["tenants"].as_array().expect("tenants") {
        assert_eq!(tenant["status"], "unknown", "{tenants:#}");
    }
    let worker = fleet.worker(&[]);
    fleet.herder(&["upgrade"]).await.expect(0);
    let snoozed = "select count(distinct job_id) from herder.attempt where result = 'snoozed'";
    fleet
        .wait_until("some have found the server away", async || {
            fleet.ask::<i64>(snoozed).await >= 4
        })
        .await;
    restart(&cluster).await;
    nothing_was_lost(&fleet).await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_worker_that_cannot_begin_says_where_and_what_to_do() {
    let fleet = Setup::schemas(1).migrations(Tool::Sql, steps(1)).start().await;
    fleet.configure(|config| {
        config["control"]["url"] = "postgresql://u:hunter2@127.0.0.1:1/x".into();
    });
    let mut worker = fleet.worker(&[]);
    assert_eq!(worker.end().await.code(), Some(3));
    worker.says("the control database at 127.0.0.1:1").await;
    worker.says("check that it is running, and [control] `url`").await;
    assert!(!worker.log().contains("hunter2"), "{}", worker.log());
}
