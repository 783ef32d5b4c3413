//! Canaries, waves and the failure limit.

use crate::fleet::{Fleet, Setup, Tool, list, steps, tell};
use crate::steering::heartbeats;

/// A fleet in which the migration fails in some tenants: those whose schema has a table `broken`.
pub(crate) async fn broken_in(tenants: &[&str], count: usize) -> Fleet {
    let [first, second] = steps(2).try_into().expect("two");
    let fails = "do $$ begin if to_regclass('broken') is not null then raise 'it is broken'; end if; end $$";
    let setup = Setup::schemas(count).migrations(Tool::Sql, vec![first, second.then(fails)]);
    let fleet = setup.start().await;
    for tenant in tenants {
        tell(&fleet.home, &format!("create table {tenant}.broken ()")).await;
    }
    fleet
}

#[tokio::test]
async fn a_canary_that_fails_halts_its_run_before_the_others_begin() {
    let fleet = broken_in(&["t001"], 5).await;
    let worker = fleet.worker(&[]);
    let output = fleet
        .herder(&["upgrade", "--canary", "1", "--wait"])
        .await
        .expect(5);
    assert!(output.stderr.contains("canary"), "{}", output.all());
    assert_eq!(
        (fleet.count("failed").await, fleet.count("waiting").await),
        (1, 4)
    );
    tell(&fleet.home, "drop table t001.broken").await;
    fleet.herder(&["retry", "--wait"]).await.expect(0);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    assert_eq!(worker.drain().await, Some(0));
}

/// Those that waited behind the canary have a plan, too, and it is of the migrations as they were.
#[tokio::test]
async fn a_retry_with_mended_migrations_is_for_all_that_are_still_to_come() {
    let fleet = broken_in(&["t001"], 4).await;
    let worker = fleet.worker(&[]);
    fleet
        .herder(&["upgrade", "--canary", "1", "--wait"])
        .await
        .expect(5);
    fleet.project().rewrite(&steps(2));
    fleet.herder(&["retry", "--wait"]).await.expect(0);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    let sums: Vec<String> = fleet
        .tenants
        .iter()
        .map(|t| {
            format!(
                "select encode(checksum, 'hex') from {}._sqlx_migrations where version = 20250102",
                t.schema_name()
            )
        })
        .collect();
    // UNION: each different one once.
    assert_eq!(list(&fleet.home, &sums.join(" union ")).await.len(), 1);
    // And they are those of the files.
    fleet.herder(&["plan", "--check"]).await.expect(0);
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn the_failure_limit_halts_a_run_and_a_resume_goes_on_past_it() {
    let fleet = broken_in(&["t001", "t002", "t003", "t004"], 6).await;
    let worker = fleet.worker(&["--concurrency", "1"]);
    fleet
        .herder(&["upgrade", "--failure-limit", "1", "--wait"])
        .await
        .expect(5);
    assert_eq!((fleet.count("failed").await, fleet.count("ready").await), (2, 4));
    fleet.herder(&["resume", "--wait"]).await.expect(5);
    assert_eq!((fleet.count("failed").await, fleet.count("ready").await), (4, 2));
    // The rest is well: the run ends, with four tenants failed.
    fleet.herder(&["resume", "--wait"]).await.expect(4);
    assert_eq!(
        (fleet.count("failed").await, fleet.count("succeeded").await),
        (4, 2)
    );
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn waves_open_one_after_the_other() {
    let [first, second] = steps(2).try_into().expect("two");
    let setup = Setup::schemas(5).migrations(Tool::Sql, vec![first, second.gated()]);
    let fleet = setup.start().await;
    let worker = fleet.worker(&[]);
    let gate = fleet.close_gate().await;
    fleet
        .herder(&["upgrade", "--canary", "1", "--wave", "2"])
        .await
        .expect(0);
    fleet.wait_at_gate(1).await;
    heartbeats(&fleet).await;
    assert_eq!(
        (fleet.count("running").await, fleet.count("waiting").await),
        (1, 4)
    );
    let last = fleet.close_gate_of("t005").await;
    gate.open().await;
    fleet
        .wait_until("all but the last are done", async || {
            (fleet.count("succeeded").await, fleet.count("running").await) == (4, 1)
        })
        .await;
    last.open().await;
    assert_eq!(fleet.over().await, "succeeded");
    // Nobody began before all of the wave before had ended.
    let early: i64 = fleet
        .ask(
            "select count(*) from herder.job a join herder.job b on b.wave < a.wave
             join herder.attempt on attempt.job_id = a.id where attempt.started_at < b.settled_at",
        )
        .await;
    assert_eq!(early, 0);
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_canary_of_zero_is_none_and_a_wave_of_zero_is_refused() {
    let fleet = Setup::schemas(3)
        .migrations(Tool::Sql, steps(1))
        .set("rollout.canary", 1)
        .start()
        .await;
    let refused = fleet.herder(&["upgrade", "--wave", "0"]).await.expect(2);
    assert!(refused.stderr.contains("at least 1"), "{}", refused.all());
    fleet.herder(&["upgrade", "--canary", "0"]).await.expect(0);
    let released: i64 = fleet
        .ask("select count(*) from herder.job where wave = 0 and state = 'ready'")
        .await;
    assert_eq!(released, 3);
    assert!(!fleet.ask::<bool>("select canary from herder.run").await);
}
