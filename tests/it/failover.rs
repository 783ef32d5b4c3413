//! A standby takes the place of a server: of the control database's, whose last commits it had not heard of, or of the
//! tenants', before it is promoted.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use herder::throwaway::Settings;

use crate::fleet::{Cluster, Setup, Tool, steps, tell};
use crate::sampler::Sampler;

/// A copy of a server's files, owners and all.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.expect("cp").success());
}

/// Something to do with a server that blocks.
async fn with(cluster: &Arc<Cluster>, work: impl FnOnce(&Cluster) + Send + 'static) {
    let cluster = Arc::clone(cluster);
    let done = tokio::task::spawn_blocking(move || work(&cluster)).await;
    done.expect("no panic");
}

/// Two attempts are at work, and all that the budget has is theirs. Then nobody knows of them any more but their worker, and the
/// slots look free to another.
#[tokio::test]
async fn slots_that_were_forgotten_are_not_given_away_while_they_are_used() {
    let control = Cluster::own(Settings::default()).await;
    let cluster = Cluster::own(Settings::default()).await;
    let [first, second] = steps(2).try_into().expect("two");
    let fleet = Setup::schemas(6)
        .migrations(Tool::Sql, vec![first, second.gated()])
        .on(&cluster)
        .control_on(&control)
        .set("servers.main.budget", 3)
        .start()
        .await;
    fleet.herder(&["upgrade"]).await.expect(0);
    with(&control, |control| {
        let data = control.server().dir().join("data");
        control.server().stop_immediate();
        copy(&data, &data.with_file_name("before"));
        control.server().restart().expect("a restart");
    })
    .await;
    let gate = fleet.close_gate().await;
    let holder = fleet.worker(&["--name", "holder", "--concurrency", "2"]);
    fleet.wait_at_gate(2).await;
    let other = fleet.worker(&["--name", "other", "--concurrency", "2"]);
    let both = "select count(*) from herder.worker";
    fleet
        .wait_until("both have signed on", async || fleet.ask::<i64>(both).await == 2)
        .await;
    let sampler = Sampler::start(cluster.url("postgres"));
    with(&control, |control| {
        let data = control.server().dir().join("data");
        control.server().stop_immediate();
        std::fs::remove_dir_all(&data).expect("no data");
        std::fs::rename(data.with_file_name("before"), &data).expect("the data of before");
        control.server().restart().expect("a restart");
    })
    .await;
    holder.says("no longer belongs to it").await;
    // Again, by whom it may be.
    fleet.wait_at_gate(2).await;
    gate.open().await;
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    let seen = sampler.end();
    assert!((2..=3).contains(&seen.most.len()), "{seen:#?}");
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    let waited =
        "select extract(epoch from min(started_at) - pg_postmaster_start_time())::float8 from herder.attempt";
    let waited: f64 = fleet.ask(waited).await;
    assert!(
        waited >= 2.0,
        "a lease is 2 s, and a job was taken after {waited} s"
    );
    for worker in [holder, other] {
        assert_eq!(worker.drain().await, Some(0));
    }
}

/// For a while the tenants' URL leads to a standby that nobody has promoted yet.
#[tokio::test]
async fn a_standby_costs_no_attempt() {
    let cluster = Cluster::own(Settings::default()).await;
    let control = Cluster::own(Settings::default()).await;
    let setup = Setup::schemas(3).migrations(Tool::Sql, steps(2));
    let fleet = setup.on(&cluster).control_on(&control).start().await;
    fleet.herder(&["upgrade"]).await.expect(0);
    with(&cluster, |cluster| {
        cluster.server().stop_immediate();
        std::fs::write(cluster.server().dir().join("data/standby.signal"), "").expect("a signal");
        cluster.server().restart().expect("a restart");
    })
    .await;
    let worker = fleet.worker(&[]);
    let tried = "select min(epoch) from herder.job";
    fleet
        .wait_until("each was tried more often than it may fail", async || {
            fleet.ask::<i32>(tried).await > 6
        })
        .await;
    let why = "select distinct error ->> 'message' from herder.job";
    let why: String = fleet.ask(why).await;
    assert!(why.contains("is a standby"), "{why}");
    tell(&fleet.home, "select pg_promote()").await;
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    for job in fleet.status().await["jobs"].as_array().expect("jobs") {
        assert_eq!(job["attempts"], 1, "{job:#}");
    }
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    assert_eq!(worker.drain().await, Some(0));
}
