//! Whoever is killed, and whenever: no tenant is lost, and nothing is done twice.

use std::time::Duration;

use crate::fleet::{Fleet, Setup, Tool, steps};

/// What each tenant must show at the end.
const ALL: [&str; 3] = ["up 20250101", "up 20250102", "up 20250203"];

/// Three migrations, the second of which waits at the gate.
fn gated(tool: Tool, tenants: usize) -> Setup {
    let [first, second, third] = steps(3).try_into().expect("three");
    Setup::schemas(tenants).migrations(tool, vec![first, second.gated(), third])
}

/// The same for Alembic by plan.
fn planned(tenants: usize) -> Setup {
    let [first, second, third] = steps(3).try_into().expect("three");
    Setup::schemas(tenants).plans(vec![first, second.gated(), third])
}

/// Every tenant is at the head by its own ledger, and saw each migration once.
async fn all_is_well(fleet: &Fleet) {
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    let status = fleet.status().await;
    for job in status["jobs"].as_array().expect("jobs") {
        assert_eq!(job["state"], "succeeded", "{job:#}");
        assert_eq!(job["to"], "20250203", "{job:#}");
        assert_eq!(job["attempts"], 1, "{job:#}");
    }
    assert_eq!(status["jobs"].as_array().map(Vec::len), Some(fleet.tenants.len()));
    fleet.assert_effects(&ALL).await;
    fleet.assert_public_untouched().await;
    nothing_is_left(fleet).await;
}

/// No slot is taken, and no session is open, once all is over.
async fn nothing_is_left(fleet: &Fleet) {
    fleet
        .wait_until("all slots are free and all sessions closed", async || {
            let taken: i64 = fleet
                .ask("select count(*) from herder.slot where purpose <> 'control'")
                .await;
            taken == 0 && fleet.sessions().await == 0
        })
        .await;
}

/// A worker is killed while it is in the middle of four tenants. Another one takes over.
async fn a_killed_worker_is_replaced(setup: Setup) {
    let fleet = setup.start().await;
    // First: a proof would wait at the gate, too.
    fleet.herder(&["upgrade"]).await.expect(0);
    let gate = fleet.close_gate().await;
    let doomed = fleet.worker(&["--concurrency", "4", "--name", "doomed"]);
    fleet.wait_at_gate(4).await;
    let heir = fleet.worker(&["--concurrency", "4", "--name", "heir"]);
    fleet.wait_at_gate(8).await;
    doomed.kill().await;
    let rescued = "select count(*) from herder.attempt where result = 'rescued'";
    fleet
        .wait_until("four jobs are rescued", async || {
            fleet.ask::<i64>(rescued).await == 4
        })
        .await;
    gate.open().await;
    all_is_well(&fleet).await;
    assert_eq!(fleet.ask::<i64>(rescued).await, 4);
    assert_eq!(heir.drain().await, Some(0));
}

#[tokio::test]
async fn a_killed_worker_costs_no_tenant_and_nothing_is_done_twice() {
    a_killed_worker_is_replaced(gated(Tool::Sql, 10)).await;
}

#[tokio::test]
async fn a_killed_worker_takes_its_alembic_along() {
    a_killed_worker_is_replaced(gated(Tool::Alembic, 10)).await;
}

#[tokio::test]
async fn a_killed_worker_in_the_middle_of_alembics_plans_costs_nothing() {
    // All of a tenant's plan is one message: it was killed with that on its way.
    a_killed_worker_is_replaced(planned(10)).await;
}

#[tokio::test]
async fn a_killed_workers_commands_come_to_nothing() {
    a_killed_worker_is_replaced(gated(Tool::Command, 10)).await;
}

/// No heir, and no server that ends its sessions: the program sleeps, and would go on by itself.
#[tokio::test]
async fn a_killed_workers_command_is_killed_with_all_that_it_started() {
    let script = "trap '' TERM HUP; sleep 1000 & echo $! >> pids; echo $$ >> pids; wait";
    let fleet = Setup::schemas(1)
        .migrations(Tool::Command, steps(1))
        .set("runner.command", vec!["sh", "-c", script])
        .start()
        .await;
    let worker = fleet.worker(&[]);
    fleet.herder(&["upgrade"]).await.expect(0);
    let path = fleet.dir().join("project/pids");
    let pids = || std::fs::read_to_string(&path).unwrap_or_default();
    fleet
        .wait_until("the program runs", async || pids().lines().count() == 2)
        .await;
    worker.kill().await;
    let lives = |pid: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| !rest.is_empty() && !rest.trim_start().starts_with('Z'))
    };
    fleet
        .wait_until("both are gone", async || !pids().lines().any(lives))
        .await;
}

#[tokio::test]
async fn workers_killed_at_any_moment_get_it_done_together() {
    let fleet = Setup::schemas(150).migrations(Tool::Sql, steps(3)).start().await;
    fleet.herder(&["upgrade"]).await.expect(0);
    let mut kills = 0;
    while fleet.count("succeeded").await < 150 {
        let before = fleet.count("succeeded").await;
        let worker = fleet.worker(&["--concurrency", "8"]);
        // At any moment of its work: here a moment is a number of settled tenants, and a little chance on top.
        let settled = before + rand::random_range(1..20);
        fleet
            .wait_until("some tenants are done", async || {
                fleet.count("succeeded").await >= settled.min(150)
            })
            .await;
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..30))).await;
        worker.kill().await;
        kills += 1;
    }
    assert!(kills > 2, "{kills}");
    let worker = fleet.worker(&[]);
    all_is_well(&fleet).await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_run_whose_only_process_was_killed_goes_on_where_it_stood() {
    let fleet = gated(Tool::Sql, 6).start().await;
    let gate = fleet.close_gate().await;
    let local = fleet.start_herder(&["upgrade", "--local", "3"]);
    fleet.wait_at_gate(3).await;
    local.kill().await;
    let resumed = fleet.start_herder(&["resume", "--local", "3"]);
    // The new ones wait, too; the old sessions are ended, or have noticed by themselves.
    let waiting = "select count(*) from herder.attempt where result = 'rescued'";
    fleet
        .wait_until("three jobs are rescued", async || {
            fleet.ask::<i64>(waiting).await == 3
        })
        .await;
    gate.open().await;
    resumed.end().await.expect(0);
    all_is_well(&fleet).await;
}

#[tokio::test]
async fn an_enqueuer_killed_in_its_transaction_leaves_no_run() {
    let fleet = Setup::schemas(20).migrations(Tool::Sql, steps(3)).start().await;
    // Each is written by one step of the enqueue, and a lock stops the enqueuer right there.
    for table in ["herder.server", "herder.run", "herder.job", "apalis.jobs"] {
        let stop = fleet.lock(table, "share").await;
        let enqueuer = fleet.start_herder(&["upgrade"]);
        fleet.wait_at_lock(table).await;
        enqueuer.kill().await;
        stop.rollback().await.expect("a rollback");
        fleet
            .wait_until("its session is gone", async || fleet.enqueuers().await == 0)
            .await;
        for table in ["herder.run", "herder.job", "apalis.jobs"] {
            let rows: i64 = fleet.ask(&format!("select count(*) from {table}")).await;
            assert_eq!(rows, 0, "{table}");
        }
    }
    let worker = fleet.worker(&[]);
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    all_is_well(&fleet).await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn an_enqueuer_killed_at_any_moment_leaves_a_whole_run_or_none() {
    let tenants = 300;
    let fleet = Setup::schemas(tenants)
        .migrations(Tool::Sql, steps(3))
        .start()
        .await;
    let (mut none, mut whole) = (0, 0);
    let mut delay = Duration::ZERO;
    // Later and later, until it outlives three kills.
    while whole < 3 {
        let enqueuer = fleet.start_herder(&["upgrade"]);
        tokio::time::sleep(delay).await;
        enqueuer.kill().await;
        fleet
            .wait_until("its session is gone", async || fleet.enqueuers().await == 0)
            .await;
        let jobs: i64 = fleet.ask("select count(*) from herder.job join herder.run on run.id = run_id where run.state = 'running'").await;
        match fleet.state().await.as_str() {
            "none" | "cancelled" => {
                assert_eq!(jobs, 0);
                none += 1;
            }
            _ => {
                let deliveries: i64 = fleet
                    .ask("select count(*) from apalis.jobs where status = 'Pending'")
                    .await;
                assert_eq!((jobs, deliveries), (tenants as i64, tenants as i64));
                whole += 1;
                if whole < 3 {
                    fleet.herder(&["cancel", "--yes"]).await.expect(0);
                }
            }
        }
        delay += Duration::from_millis(rand::random_range(5..40));
    }
    assert!(none > 0, "even the first kill came too late");
    let worker = fleet.worker(&[]);
    all_is_well(&fleet).await;
    assert_eq!(worker.drain().await, Some(0));
}
