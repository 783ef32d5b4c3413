//! Forgetting old runs: what goes, and above all what does not.

use crate::fleet::{Fleet, Setup, Tool, steps};

/// Lets time go by for everything in the control database that is over.
async fn age(fleet: &Fleet, run: &str, days: u32) {
    fleet
        .tell(&format!(
            "update herder.run set created_at = created_at - interval '{days} days', settled_at = settled_at - interval '{days} days'
             where id = '{run}';
             update herder.plan set created_at = created_at - interval '{days} days'"
        ))
        .await;
}

/// Starts a run and sees it through. Returns its id.
async fn run(fleet: &Fleet, args: &[&str]) -> String {
    fleet.herder(args).await.expect(0);
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    let latest = "select id::text from herder.run order by created_at desc limit 1";
    fleet.ask(latest).await
}

#[tokio::test]
async fn old_runs_go_with_all_that_was_theirs_and_nothing_else_does() {
    let fleet = Setup::schemas(6).migrations(Tool::Sql, steps(2)).start().await;
    let worker = fleet.worker(&["--concurrency", "2"]);
    let old = run(&fleet, &["upgrade"]).await;
    let held = run(&fleet, &["downgrade", "--to", "-1", "--yes"]).await;
    assert_eq!(worker.drain().await, Some(0));
    let worker = fleet.worker(&["--concurrency", "2"]);
    let young = run(&fleet, &["upgrade"]).await;
    assert_eq!(worker.drain().await, Some(0));
    // One that nobody finished, however long ago.
    fleet
        .herder(&["downgrade", "--to", "base", "--yes"])
        .await
        .expect(0);
    let open: String = fleet
        .ask("select id::text from herder.run where settled_at is null")
        .await;
    for id in [&old, &held, &open] {
        age(&fleet, id, 100).await;
    }
    // A session that nobody could ask about yet: its job says what to look for.
    fleet
        .tell(&format!(
            "update herder.slot set worker = 'lost', job_id = (select min(id) from herder.job where run_id = '{held}'),
                                    epoch = 1, purpose = 'attempt', taken_at = now(), suspect_since = now()
             where number = 1"
        ))
        .await;

    // There is nobody to ask here.
    let refused = fleet.herder(&["prune"]).await.expect(2);
    assert!(refused.stderr.contains("--yes"), "{}", refused.stderr);
    let said = fleet.herder(&["prune", "--yes"]).await.expect(0).stderr;
    assert!(
        said.contains("Deleted 1 run with 6 jobs, 1 unused plan and 0 unused workers"),
        "{said}"
    );
    let left = crate::fleet::list(
        &fleet.control,
        "select id::text from herder.run order by created_at, id",
    )
    .await;
    assert_eq!(left.len(), 3);
    for id in [&held, &young, &open] {
        assert!(left.contains(id), "{left:?}");
    }

    // The session is gone: so may the run. One worker died before its first heartbeat, another has just begun.
    fleet
        .tell(
            "update herder.slot set worker = null, job_id = null, epoch = null, purpose = null, taken_at = null, suspect_since = null
             where worker = 'lost';
             insert into apalis.workers (id, worker_type, storage_name, layers, last_seen, started_at)
             select id, 'herder', 'herder', '', at, at
             from (values ('lost', now() - interval '2 days'), ('new', now())) as begun (id, at)",
        )
        .await;
    let said = fleet
        .herder(&["prune", "--older-than", "1d", "--yes"])
        .await
        .expect(0)
        .stderr;
    assert!(
        said.contains("Deleted 1 run with 6 jobs, 1 unused plan and 1 unused worker"),
        "{said}"
    );
    let workers = crate::fleet::list(&fleet.control, "select id from apalis.workers").await;
    assert_eq!(workers, ["new"]);
    for (what, sql) in [
        ("jobs", "select count(*) from herder.job"),
        (
            "attempts without a job",
            "select 12 + count(*) from herder.attempt where job_id not in (select id from herder.job)",
        ),
        ("deliveries", "select count(*) from apalis.jobs"),
    ] {
        assert_eq!(fleet.ask::<i64>(sql).await, 12, "{what}");
    }
    let missing = "select count(*) from herder.job where plan_id is not null and plan_id not in (select id from herder.plan)";
    assert_eq!(fleet.ask::<i64>(missing).await, 0);
    let said = fleet
        .herder(&["prune", "--older-than", "1d", "--yes"])
        .await
        .expect(0)
        .stderr;
    assert!(
        said.contains("Deleted 0 runs with 0 jobs, 0 unused plans"),
        "{said}"
    );

    // What was left goes on as if nothing had been.
    let _worker = fleet.worker(&["--concurrency", "2"]);
    let state = format!("select state from herder.run where id = '{open}'");
    fleet
        .wait_until("the open run succeeds", async || {
            fleet.ask::<String>(&state).await == "succeeded"
        })
        .await;
    run(&fleet, &["upgrade"]).await;
}

#[tokio::test]
async fn a_run_deleted_by_hand_leaves_deliveries_that_go_as_well() {
    let fleet = Setup::schemas(3).start().await;
    let worker = fleet.worker(&[]);
    run(&fleet, &["upgrade"]).await;
    assert_eq!(worker.drain().await, Some(0));
    fleet.tell("delete from herder.run").await;
    assert_eq!(fleet.ask::<i64>("select count(*) from apalis.jobs").await, 3);
    fleet.herder(&["prune", "--yes"]).await.expect(0);
    assert_eq!(fleet.ask::<i64>("select count(*) from apalis.jobs").await, 0);
}
