//! A target means the same thing to every attempt, whatever becomes of the migrations meanwhile.

use crate::fleet::{Setup, Tool, steps};

/// A tenant whose ledger made no sense when the run was made has its way to go found by an attempt. The next attempt must not
/// find another one.
#[tokio::test]
async fn a_step_down_is_the_same_one_for_every_attempt() {
    let all = || {
        let [first, second, third] = steps(3).try_into().expect("three");
        vec![first, second.gated_down(), third]
    };
    let fleet = Setup::schemas(1).migrations(Tool::Sql, all()).start().await;
    fleet.herder(&["upgrade", "--local", "1"]).await.expect(0);
    let mut edited = all();
    let first = edited.remove(0).then("select 'edited'");
    fleet.project().rewrite(&[vec![first], edited].concat());
    let worker = fleet.worker(&[]);
    fleet
        .herder(&["downgrade", "--to", "-2", "--yes", "--wait"])
        .await
        .expect(4);
    assert_eq!(fleet.job("t001").await["error"]["reason"], "edited_migration");
    fleet.project().rewrite(&all());
    let gate = fleet.close_gate().await;
    fleet.herder(&["retry"]).await.expect(0);
    fleet.wait_at_gate(1).await;
    // One step is done, and a second one is not.
    worker.kill().await;
    gate.open().await;
    let worker = fleet.worker(&[]);
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    let job = fleet.job("t001").await;
    assert_eq!(
        (&job["from"], &job["to"]),
        (&"20250203".into(), &"20250101".into()),
        "{job:#}"
    );
    let effects = fleet.effects(&fleet.tenants[0]).await;
    let undone: Vec<&String> = effects.iter().filter(|e| e.starts_with("down")).collect();
    assert_eq!(undone, ["down 20250203", "down 20250102"]);
    assert_eq!(worker.drain().await, Some(0));
}

/// The usual way to mend a migration that nobody has: another one takes its place, under another id.
#[tokio::test]
async fn a_target_that_is_there_no_more_is_not_taken_for_reached() {
    let setup = Setup::schemas(2).migrations(Tool::Sql, steps(1));
    let fleet = setup.start().await;
    fleet.herder(&["upgrade", "--local", "1"]).await.expect(0);
    fleet.project().file("20250102_bad.up.sql", "select 1 / 0;");
    let worker = fleet.worker(&[]);
    fleet
        .herder(&["upgrade", "--to", "+1", "--canary", "1", "--wait"])
        .await
        .expect(5);
    let bad = fleet.dir().join("project/20250102_bad.up.sql");
    std::fs::rename(&bad, bad.with_file_name("20250103_good.up.sql")).expect("another name");
    fleet
        .project()
        .file("20250103_good.up.sql", "create table good (x int);");
    fleet.herder(&["retry", "--wait"]).await.expect(5);
    let error = &fleet.job("t001").await["error"];
    let message = error["message"].as_str().unwrap_or_default();
    assert!(message.contains("no revision `20250102`"), "{error:#}");
    // What is left of it is not taken for done either.
    fleet.herder(&["resume", "--wait"]).await.expect(4);
    assert_eq!(fleet.count("failed").await, 2);
    assert_eq!(worker.drain().await, Some(0));
}
