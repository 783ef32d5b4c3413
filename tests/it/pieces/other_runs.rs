//! What is half applied is the tenant's: another run knows of it as well.

use serde_json::json;

use super::*;

/// What `herder plan` says about the only tenant, and whether it could say what a run would do.
async fn planned(fleet: &Fleet) -> (bool, String) {
    let plan = fleet.herder(&["plan", "--check"]).await.expect(7).all();
    (!plan.contains("unknown: "), plan)
}

/// The only tenant has two rows where its third revision wants one: the first piece is there, and no run gets further.
async fn stuck() -> (Fleet, Worker) {
    let fleet = torn_by(UNIQUE, 1).await;
    let worker = before_it(&fleet).await;
    tell(&fleet.home, "insert into t001.doubles values (1), (1)").await;
    fleet.herder(&["upgrade", "--wait"]).await.expect(4);
    (fleet, worker)
}

#[tokio::test]
async fn another_run_goes_on_behind_the_piece_that_was_done() {
    let (fleet, worker) = stuck().await;
    let (is_known, said) = planned(&fleet).await;
    assert!(is_known, "{said}");
    let rehearsed = ["rehearse", "--output-format", "json"];
    let rehearsed = fleet.herder(&rehearsed).await.expect(0).json();
    let why = rehearsed["tenants"][0]["why"].as_str().unwrap_or_default();
    assert!(why.contains("in the middle of a revision"), "{rehearsed:#}");
    fleet.herder(&["upgrade", "--wait"]).await.expect(4);
    // Where it goes further than the run before it, too.
    let next = "from alembic import op\nrevision = '20250204'\ndown_revision = '20250203'\n\n\
                def upgrade():\n    op.execute(\"insert into effects (step) values ('next')\")\n\n\
                def downgrade():\n    pass\n";
    fleet.project().file("versions/20250204_step.py", next);
    tell(&fleet.home, "truncate t001.doubles").await;
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    fleet.assert_by_plan().await;
    fleet.assert_effects(&[&ALL[..], &["next"]].concat()).await;
    let left: i64 = fleet.ask("select count(*) from herder.half_applied").await;
    assert_eq!(left, 0);
    assert_eq!(worker.drain().await, Some(0));
}

/// Whoever cancels a run wants it to stop, and not that the next one does a part of it again. That begins where the tenant is by then.
#[tokio::test]
async fn so_does_another_run_than_one_that_was_cancelled() {
    let fleet = torn_by("create unique index concurrently only_once on effects (n)", 1).await;
    let worker = fleet.worker(&[]);
    let mut busy = fleet.home.begin().await.expect("a transaction");
    sqlx::raw_sql("lock table t001.effects in share update exclusive mode")
        .execute(&mut *busy)
        .await
        .expect("a lock");
    fleet.herder(&["upgrade"]).await.expect(0);
    waits_to(&fleet, "create unique index").await;
    fleet.herder(&["cancel", "--yes"]).await.expect(0);
    fleet
        .wait_until("it has stopped", async || fleet.count("cancelled").await == 1)
        .await;
    busy.rollback().await.expect("an end");
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    fleet.assert_by_plan().await;
    fleet.assert_effects(&ALL).await;
    assert_eq!(worker.drain().await, Some(0));
}

/// With other pieces nobody knows what is done of them: a person looks, and a retry says that they did.
#[tokio::test]
async fn another_run_with_other_pieces_leaves_it_to_a_person() {
    let (fleet, worker) = stuck().await;
    let file = "versions/20250203_step.py";
    let edited = fleet
        .project()
        .text(file)
        .replace("'first piece'", "'another piece'");
    fleet.project().file(file, &edited);
    refused(&fleet).await;
    tell(
        &fleet.home,
        "truncate t001.doubles; delete from t001.effects where step = 'first piece'",
    )
    .await;
    fleet.herder(&["retry", "--wait"]).await.expect(0);
    fleet
        .assert_effects(&[ALL[0], ALL[1], "another piece", ALL[3]])
        .await;
    assert_eq!(worker.drain().await, Some(0));
}

/// Nobody knows how far Alembic itself got.
#[tokio::test]
async fn what_alembic_itself_has_committed_no_other_run_does_again() {
    let fleet = torn_by(UNIQUE, 1).await;
    live::live(&fleet);
    let worker = before_it(&fleet).await;
    tell(&fleet.home, "insert into t001.doubles values (1), (1)").await;
    fleet.herder(&["upgrade", "--wait"]).await.expect(4);
    for _ in 0..2 {
        refused(&fleet).await;
    }
    // A revision that is not in the way is none of its business.
    let below = ["upgrade", "--to", "20250102", "--wait"];
    fleet.herder(&below).await.expect(0);
    refused(&fleet).await;
    // By plan as little as live.
    fleet.configure(|config| config["runner"]["plan"] = "auto".into());
    refused(&fleet).await;
    let mend = "truncate t001.doubles; delete from t001.effects where step = 'first piece'";
    tell(&fleet.home, mend).await;
    let said = fleet.herder(&["retry", "--wait"]).await.expect(0).all();
    assert!(
        said.contains("1 of them half applied, which counts as mended by hand"),
        "{said}"
    );
    fleet.assert_effects(&ALL).await;
    assert_eq!(
        fleet.ask::<i64>("select count(*) from herder.half_applied").await,
        0
    );
    assert_eq!(worker.drain().await, Some(0));
}

/// Its ledger says that it is at head, and a part of that is undone.
#[tokio::test]
async fn what_is_undone_by_half_is_not_taken_for_current() {
    let fleet = torn_by(UNIQUE, 1).await;
    live::live(&fleet);
    let file = "versions/20250203_step.py";
    let torn = fleet.project().text(file).replace(
        "    pass\n",
        "    op.execute(\"insert into effects (step) values ('undone')\")\n    \
         with op.get_context().autocommit_block():\n        op.execute('drop index concurrently nothing')\n",
    );
    fleet.project().file(file, &torn);
    let worker = fleet.worker(&[]);
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    let down = ["downgrade", "--to", "20250102", "--yes", "--wait"];
    fleet.herder(&down).await.expect(4);
    assert_eq!(fleet.job("t001").await["error"]["reason"], "half_applied");
    let (is_known, said) = planned(&fleet).await;
    assert!(!is_known && said.contains("is half applied"), "{said}");
    for again in [&["upgrade", "--wait"][..], &down] {
        fleet.herder(again).await.expect(4);
        assert_eq!(fleet.job("t001").await["error"]["reason"], "half_applied");
    }
    fleet.assert_effects(&[&ALL[..], &["undone"]].concat()).await;
    tell(&fleet.home, "delete from t001.effects where step = 'undone'").await;
    fleet.herder(&["upgrade", "--wait"]).await.expect(4);
    fleet.herder(&["retry", "--wait"]).await.expect(0);
    assert_eq!(fleet.job("t001").await["outcome"], "already_current");
    fleet.herder(&["plan", "--check"]).await.expect(0);
    assert_eq!(worker.drain().await, Some(0));
}

/// Whoever finishes it by hand says so in the ledger.
#[tokio::test]
async fn what_was_finished_and_stamped_is_half_applied_no_more() {
    let (fleet, worker) = stuck().await;
    tell(&fleet.home, FINISHED).await;
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    assert_eq!(fleet.job("t001").await["outcome"], "already_current");
    fleet.assert_effects(&ALL).await;
    assert_eq!(
        fleet.ask::<i64>("select count(*) from herder.half_applied").await,
        0
    );
    assert_eq!(worker.drain().await, Some(0));
}

/// An older run was told of something else, or of nothing: its retry mends nothing, and leaves the tenant alone.
#[tokio::test]
async fn the_retry_of_an_older_run_knows_of_it_as_well() {
    let fleet = torn_by(UNIQUE, 1).await;
    let (worker, busy) = impatient_with_a_lock(&fleet, "effects").await;
    let down = ["downgrade", "--to", "20250101", "--yes", "--wait"];
    fleet.herder(&down).await.expect(4);
    busy.rollback().await.expect("an end");
    let older = latest(&fleet).await;
    tell(&fleet.home, "insert into t001.doubles values (1)").await;
    fleet.herder(&["upgrade", "--wait"]).await.expect(4);
    fleet.herder(&["retry", &older, "--wait"]).await.expect(4);
    let told = format!("select error ->> 'reason' from herder.job where run_id = '{older}'");
    assert_eq!(fleet.ask::<String>(&told).await, "half_applied");
    tell(&fleet.home, "truncate t001.doubles").await;
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    fleet.assert_effects(&ALL).await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_retry_mends_only_what_its_run_was_told() {
    let (fleet, worker) = stuck().await;
    live::live(&fleet);
    let first = latest(&fleet).await;
    refused(&fleet).await;
    let told = latest(&fleet).await;
    tell(&fleet.home, FINISHED).await;
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    let next = fleet
        .project()
        .text("versions/20250203_step.py")
        .replace("20250203", "20250204")
        .replace("20250102", "20250203")
        .replace("only_once", "only_twice")
        .replace("piece'", "piece of the next'");
    fleet.project().file("versions/20250204_step.py", &next);
    tell(
        &fleet.home,
        "drop index t001.only_once; insert into t001.doubles values (1), (1)",
    )
    .await;
    fleet.herder(&["upgrade", "--wait"]).await.expect(4);
    for older in [first, told] {
        fleet.herder(&["retry", &older, "--wait"]).await.expect(0);
    }
    fleet.herder(&["upgrade", "--wait"]).await.expect(4);
    assert_eq!(fleet.job("t001").await["error"]["reason"], "half_applied");
    fleet
        .assert_effects(&[&ALL[..], &["first piece of the next"]].concat())
        .await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_tenant_that_was_made_anew_has_nothing_half_applied() {
    let (fleet, worker) = stuck().await;
    let anew = "drop schema t001 cascade; create schema t001;
                create table t001.effects (n int generated always as identity, step text)";
    tell(&fleet.home, anew).await;
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    fleet.assert_effects(&ALL).await;
    assert_eq!(worker.drain().await, Some(0));
}

/// Nobody knows whether a statement was done that is not to be done twice.
#[tokio::test]
async fn what_broke_off_in_a_statement_of_its_own_is_left_to_a_person() {
    let fleet = torn_by("update doubles set n = n + 1", 1).await;
    let worker = before_it(&fleet).await;
    tell(&fleet.home, "insert into t001.doubles values (1)").await;
    let busy = locked(&fleet, "doubles").await;
    fleet.herder(&["upgrade"]).await.expect(0);
    waits_to(&fleet, "update doubles").await;
    worker.kill().await;
    fleet.herder(&["cancel", "--yes"]).await.expect(0);
    busy.rollback().await.expect("an end");
    let heir = fleet.worker(&[]);
    fleet
        .wait_until("it is given up", async || fleet.count("cancelled").await == 1)
        .await;
    refused(&fleet).await;
    assert_eq!(heir.drain().await, Some(0));
}

/// A cancelled run may be at work still when the next one is made.
#[tokio::test]
async fn a_run_that_is_made_meanwhile_finds_what_is_left_in_the_end() {
    let fleet = torn_by(UNIQUE, 1).await;
    fleet.configure(|config| {
        let worker: toml::Table = "lease = '30s'".parse().expect("TOML");
        config.insert("worker".into(), worker.into());
    });
    let worker = before_it(&fleet).await;
    // So that its way down is proven, and a run is made in no time.
    let down = ["downgrade", "--to", "20250101", "--yes"];
    fleet.herder(&[&down[..], &["--wait"]].concat()).await.expect(0);
    let up = ["upgrade", "--to", "20250102", "--wait"];
    fleet.herder(&up).await.expect(0);
    let (effects, doubles) = (locked(&fleet, "effects").await, locked(&fleet, "doubles").await);
    fleet.herder(&["upgrade"]).await.expect(0);
    waits_to(&fleet, "").await;
    // Its worker does not hear of the end, and nothing is left behind yet.
    let mut heartbeat = fleet.control.begin().await.expect("a transaction");
    sqlx::raw_sql("select from herder.worker for update")
        .execute(&mut *heartbeat)
        .await
        .expect("a lock");
    fleet.herder(&["cancel", "--yes"]).await.expect(0);
    fleet.herder(&down).await.expect(0);
    effects.rollback().await.expect("an end");
    waits_to(&fleet, "create unique index").await;
    heartbeat.rollback().await.expect("an end");
    assert_eq!(fleet.over().await, "failed", "{}", fleet.last_seen().await);
    assert_eq!(fleet.job("t001").await["error"]["reason"], "half_applied");
    doubles.rollback().await.expect("an end");
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    let again = ["down 20250102", ALL[1]];
    fleet
        .assert_effects(&[&ALL[..2], &again, &ALL[2..]].concat())
        .await;
    assert_eq!(worker.drain().await, Some(0));
}

/// Waits until a statement that begins so waits for a lock.
async fn waits_to(fleet: &Fleet, begins: &str) {
    let asked = format!(
        "select count(*) from pg_stat_activity
         where datname = current_database() and wait_event_type = 'Lock' and query ilike '{begins}%'"
    );
    fleet
        .wait_until("it waits for a lock", async || {
            ask::<i64>(&fleet.home, &asked).await > 0
        })
        .await;
}

/// The id of the latest run.
async fn latest(fleet: &Fleet) -> String {
    fleet.status().await["run"]["id"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// What is left to do of the third revision, done by hand.
const FINISHED: &str = "truncate t001.doubles; drop index t001.only_once;
    create unique index only_once on t001.doubles (n);
    insert into t001.effects (step) values ('last piece');
    update t001.alembic_version set version_num = '20250203'";

/// A new run says what is half applied, before it and in the end, and does nothing there.
async fn refused(fleet: &Fleet) {
    let (is_known, said) = planned(fleet).await;
    assert!(
        !is_known && said.contains("revision 20250203 is half applied"),
        "{said}"
    );
    fleet.herder(&["upgrade", "--wait"]).await.expect(4);
    let job = fleet.job("t001").await;
    assert_eq!(job["error"]["reason"], json!("half_applied"), "{job:#}");
    let done = list(&fleet.home, "select step from t001.effects order by ctid").await;
    assert_eq!(done, ALL[..3]);
}
