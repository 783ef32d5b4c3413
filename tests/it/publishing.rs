//! Steps are published for people to look at: nothing depends on them, and nothing waits for them.

use std::time::Duration;

use herder::{
    domain::job::{AttemptId, Step},
    store::job,
};

use crate::fleet::{Setup, Tool, steps};

/// A heartbeat that waited for a settlement, which waited for another job of the same heartbeat, would stand still with
/// it until the server ended one of the two.
#[tokio::test]
async fn a_step_is_published_without_waiting_for_whoever_holds_the_job() {
    let [first, second] = steps(2).try_into().expect("two");
    let fleet = Setup::schemas(1)
        .migrations(Tool::Sql, vec![first, second.gated()])
        .start()
        .await;
    let gate = fleet.close_gate().await;
    let worker = fleet.worker(&[]);
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet.wait_at_gate(1).await;
    let step = "select step from herder.job";
    let published = async || fleet.ask::<String>(step).await == "migrating";
    fleet
        .wait_until("the worker has said all that it has to say", published)
        .await;
    let attempt = AttemptId {
        job: fleet.ask("select id from herder.job").await,
        epoch: 1,
    };

    let mut settling = fleet.control.begin().await.expect("a transaction");
    sqlx::query("select from herder.job for update")
        .execute(&mut *settling)
        .await
        .expect("a lock");
    let mut heartbeat = fleet.control.acquire().await.expect("a connection");
    let steps = [(attempt, Step::Verifying)];
    let publishing = tokio::time::timeout(Duration::from_secs(20), job::publish(&mut heartbeat, &steps));
    publishing.await.expect("it does not wait").expect("an answer");
    settling.rollback().await.expect("a rollback");
    assert_eq!(fleet.ask::<String>(step).await, "migrating");

    job::publish(&mut heartbeat, &steps).await.expect("an answer");
    assert_eq!(fleet.ask::<String>(step).await, "verifying");
    gate.open().await;
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    assert_eq!(worker.drain().await, Some(0));
}
