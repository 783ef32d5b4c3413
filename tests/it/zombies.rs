//! A worker that stood still wakes up after its jobs went on without it.

use rustix::process::Signal;

use crate::fleet::{Setup, Tool, steps};

async fn a_zombie_wakes_up(tool: Tool) {
    let [first, second, third] = steps(3).try_into().expect("three");
    let setup = Setup::schemas(3).migrations(tool, vec![first, second.gated(), third]);
    let fleet = setup.start().await;
    let gate = fleet.close_gate().await;
    let zombie = fleet.worker(&["--name", "zombie", "--listen", "127.0.0.1:0"]);
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet.wait_at_gate(3).await;
    zombie.signal(Signal::STOP);
    let heir = fleet.worker(&["--name", "heir"]);
    let rescued = "select count(*) from herder.attempt where result = 'rescued'";
    fleet
        .wait_until("its jobs are rescued", async || {
            fleet.ask::<i64>(rescued).await == 3
        })
        .await;
    gate.open().await;
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    zombie.signal(Signal::CONT);
    fleet
        .wait_until("it knows that its attempts are over", async || {
            zombie.metric("herder_fenced_total").await == 3.0
        })
        .await;
    for job in fleet.status().await["jobs"].as_array().expect("jobs") {
        assert_eq!(
            (&job["attempts"], &job["epoch"]),
            (&1.into(), &2.into()),
            "{job:#}"
        );
    }
    fleet
        .assert_effects(&["up 20250101", "up 20250102", "up 20250203"])
        .await;
    // It is a worker like any other again.
    assert_eq!(heir.drain().await, Some(0));
    fleet
        .herder(&["downgrade", "--to", "-1", "--yes", "--wait"])
        .await
        .expect(0);
    assert_eq!(zombie.drain().await, Some(0));
}

#[tokio::test]
async fn a_zombie_does_nothing_twice() {
    a_zombie_wakes_up(Tool::Sql).await;
}

#[tokio::test]
async fn a_zombies_alembic_does_nothing_twice() {
    a_zombie_wakes_up(Tool::Alembic).await;
}

#[tokio::test]
async fn a_zombies_commands_do_nothing_twice() {
    a_zombie_wakes_up(Tool::Command).await;
}
