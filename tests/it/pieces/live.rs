//! Where Alembic itself does the pieces: it goes on behind none of them.

use super::*;

pub(super) fn live(fleet: &Fleet) {
    fleet.configure(|config| config["runner"]["plan"] = "never".into());
}

/// Alembic itself notes nothing between the pieces: another try would do the first one again.
async fn left_behind(fleet: &Fleet, why: &str) {
    let job = fleet.job("t001").await;
    let error = &job["error"];
    assert_eq!(
        (&job["attempts"], &error["reason"], &error["revision"]),
        (&1.into(), &"half_applied".into(), &"20250203".into()),
        "{job:#}"
    );
    assert!(
        error["message"].as_str().is_some_and(|m| m.contains(why)),
        "{job:#}"
    );
    assert_eq!(
        list(&fleet.home, "select step from t001.effects order by ctid").await,
        ALL[..3]
    );
    tell(&fleet.home, "delete from t001.effects where step = 'first piece'").await;
}

#[tokio::test]
async fn what_alembic_itself_has_committed_is_not_done_again() {
    let fleet = torn_by("update doubles set n = n + 1", 1).await;
    live(&fleet);
    let (worker, busy) = impatient_with_a_lock(&fleet, "doubles").await;
    let said = fleet.herder(&["upgrade", "--wait"]).await.expect(4).all();
    // Whoever retries by reflex does it again.
    for hint in [
        "what to mend by hand first (half applied: 1); only then `herder retry",
        "next: `herder status",
    ] {
        assert!(said.contains(hint), "{said}");
    }
    left_behind(&fleet, "lock timeout").await;
    busy.rollback().await.expect("an end");
    fleet.herder(&["retry", "--wait"]).await.expect(0);
    fleet.assert_effects(&ALL).await;
    assert_eq!(list(&fleet.home, "select n::text from t001.doubles").await, ["2"]);
    assert_eq!(worker.drain().await, Some(0));
}

/// The sessions that build their index, or are about to.
const BUILDING: &str = "select pid from pg_stat_activity where datname = current_database()
    and wait_event_type = 'Lock' and query ilike 'create unique index concurrently%'";

/// A worker in a revision that builds an index beside what it has committed, which waits for the lock that is given back with it.
/// `told`: what the server is asked of that session.
async fn building(told: &str) -> (Fleet, Worker, Transaction<'static, Postgres>) {
    let fleet = torn_by(UNIQUE, 1).await;
    live(&fleet);
    let worker = before_it(&fleet).await;
    let busy = locked(&fleet, "doubles").await;
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet
        .wait_until("it builds its index", async || {
            let asked = format!("select count({told}) from ({BUILDING}) as waiting");
            ask::<i64>(&fleet.home, &asked).await > 0
        })
        .await;
    (fleet, worker, busy)
}

/// The run fails with what was left behind; once that is undone by hand, a retry does all of it.
async fn mended_by_hand(fleet: &Fleet, busy: Transaction<'static, Postgres>, why: &str) {
    assert_eq!(fleet.over().await, "failed", "{}", fleet.last_seen().await);
    left_behind(fleet, why).await;
    busy.rollback().await.expect("an end");
    fleet.herder(&["retry", "--wait"]).await.expect(0);
    fleet.assert_effects(&ALL).await;
}

#[tokio::test]
async fn nor_is_it_where_its_connection_is_lost() {
    let (fleet, worker, busy) = building("pg_terminate_backend(pid)").await;
    mended_by_hand(&fleet, busy, "").await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn nor_is_it_where_its_worker_is_killed() {
    let (fleet, worker, busy) = building("pid").await;
    worker.kill().await;
    let heir = fleet.worker(&[]);
    mended_by_hand(&fleet, busy, "an earlier attempt did not come to its end").await;
    assert_eq!(heir.drain().await, Some(0));
}

/// Whoever began anew would do it again.
#[tokio::test]
async fn nor_is_it_forgotten_where_its_run_is_cancelled() {
    let (fleet, worker, busy) = building("pid").await;
    fleet.herder(&["cancel", "--yes"]).await.expect(0);
    fleet
        .wait_until("its end is told", async || fleet.count("failed").await == 1)
        .await;
    assert_eq!(fleet.state().await, "cancelled");
    left_behind(&fleet, "it was told to stop").await;
    busy.rollback().await.expect("an end");
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn what_cannot_be_noted_is_not_committed() {
    let fleet = torn_by(UNIQUE, 1).await;
    live(&fleet);
    noted_late(&fleet).await;
}
