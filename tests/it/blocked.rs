//! For how long the infrastructure may be in a tenant's way before that counts as a failure.

use crate::fleet::{Door, Fleet, Setup, Step, Tool, Way, steps, tell};

/// A few tenants behind a door.
async fn behind_a_door(migrations: Vec<Step>) -> (Fleet, Door) {
    let fleet = Setup::schemas(3).migrations(Tool::Sql, migrations).start().await;
    let door = Door::to(&fleet.cluster);
    let url = format!(
        "postgresql://postgres@{}/{}",
        door.address(),
        fleet.database("home")
    );
    fleet.configure(|config| config["servers"]["main"]["url"] = url.into());
    fleet.herder(&["upgrade"]).await.expect(0);
    (fleet, door)
}

/// Waits until each tenant's attempts with these numbers have ended.
async fn tried(fleet: &Fleet, epochs: i64) {
    let ended = "select min(n) from (select count(ended_at) n from herder.job left join herder.attempt on job_id = job.id
                                     group by job.id) each";
    fleet
        .wait_until(&format!("each tenant was tried {epochs} times"), async || {
            fleet.ask::<i64>(ended).await >= epochs || fleet.count("failed").await > 0
        })
        .await;
}

/// As if that had been so for longer than anybody waits.
async fn for_ten_minutes(fleet: &Fleet) {
    fleet
        .tell("update herder.job set blocked_since = now() - interval '10 minutes'")
        .await;
}

#[tokio::test]
async fn a_server_that_is_away_for_too_long_fails_its_tenants() {
    let (fleet, door) = behind_a_door(steps(2)).await;
    door.turn(Way::Shut);
    let worker = fleet.worker(&[]);
    tried(&fleet, 1).await;
    for_ten_minutes(&fleet).await;
    assert_eq!(fleet.over().await, "failed", "{}", fleet.last_seen().await);
    for job in fleet.status().await["jobs"].as_array().expect("jobs") {
        let hint = job["error"]["hint"].as_str().expect("a hint");
        assert!(hint.starts_with("it was in the way for 5 minutes"), "{hint}");
    }
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_time_in_which_nobody_tried_does_not_count() {
    let (fleet, door) = behind_a_door(steps(2)).await;
    door.turn(Way::Shut);
    let worker = fleet.worker(&[]);
    tried(&fleet, 1).await;
    fleet.herder(&["pause"]).await.expect(0);
    for_ten_minutes(&fleet).await;
    fleet.herder(&["resume"]).await.expect(0);
    tried(&fleet, 3).await;
    assert_eq!(
        fleet.count("failed").await,
        0,
        "paused: {}",
        fleet.last_seen().await
    );
    assert_eq!(worker.drain().await, Some(0));

    for_ten_minutes(&fleet).await;
    let worker = fleet.worker(&[]);
    tried(&fleet, 5).await;
    assert_eq!(
        fleet.count("failed").await,
        0,
        "no worker: {}",
        fleet.last_seen().await
    );
    door.turn(Way::Open);
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn the_time_of_a_migration_does_not_count() {
    let [first, second] = steps(2).try_into().expect("two");
    let (fleet, door) = behind_a_door(vec![first, second.gated()]).await;
    let gate = fleet.close_gate().await;
    let worker = fleet.worker(&[]);
    fleet.wait_at_gate(3).await;
    // The server had been away just before, and then let them work for ten minutes.
    fleet
        .tell(
            "update herder.job set blocked_since = now() - interval '10 minutes', claimed_at = now() - interval '10 minutes'",
        )
        .await;
    door.turn(Way::Shut);
    gate.open().await;
    tried(&fleet, 3).await;
    assert_eq!(fleet.count("failed").await, 0, "{}", fleet.last_seen().await);
    door.turn(Way::Open);
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_database_that_is_closed_for_a_while_fails_nobody() {
    let fleet = Setup::schemas(3).migrations(Tool::Sql, steps(2)).start().await;
    fleet.herder(&["upgrade"]).await.expect(0);
    let let_in = async |whether: bool| {
        let home = fleet.database("home");
        tell(
            &fleet.pool("postgres"),
            &format!("alter database {home} allow_connections {whether}"),
        )
        .await;
    };
    let_in(false).await;
    let worker = fleet.worker(&[]);
    tried(&fleet, 2).await;
    assert_eq!(fleet.count("failed").await, 0, "{}", fleet.last_seen().await);
    let_in(true).await;
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    assert_eq!(worker.drain().await, Some(0));
}
