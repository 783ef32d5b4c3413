//! A run is steered while it runs: paused, resumed, cancelled, halted; and every command ends with the code that says so.

use rustix::process::Signal;

use crate::fleet::{Fleet, Setup, Tenant, Tool, Worker, list, steps, tell};

/// The code of a command that was asked for what cannot be done now: another run is at it.
const REFUSED: i32 = 2;

/// A run of so many tenants, two of which are in the middle of their second migration.
async fn two_in_the_middle(tool: Tool, tenants: usize) -> (Fleet, crate::fleet::Gate, Worker) {
    let [first, second] = steps(2).try_into().expect("two");
    let setup = Setup::schemas(tenants).migrations(tool, vec![first, second.gated()]);
    let fleet = setup.start().await;
    let gate = fleet.close_gate().await;
    let worker = fleet.worker(&["--concurrency", "2"]);
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet.wait_at_gate(2).await;
    (fleet, gate, worker)
}

/// Waits until a worker has had all the time it needs to take another job.
async fn heartbeats(fleet: &Fleet) {
    let now: f64 = fleet.ask("select extract(epoch from now())::float8").await;
    let beats = "select extract(epoch from max(beat_at))::float8 from herder.worker";
    fleet
        .wait_until("a few heartbeats have passed", async || {
            fleet.ask::<f64>(beats).await > now + 1.0
        })
        .await;
}

#[tokio::test]
async fn a_paused_run_finishes_what_runs_and_takes_nothing_new_until_it_is_resumed() {
    let (fleet, gate, worker) = two_in_the_middle(Tool::Sql, 6).await;
    fleet.herder(&["pause"]).await.expect(0);
    gate.open().await;
    fleet
        .wait_until("what ran is done", async || fleet.count("succeeded").await == 2)
        .await;
    heartbeats(&fleet).await;
    assert_eq!(
        (fleet.count("ready").await, fleet.state().await.as_str()),
        (4, "paused")
    );
    fleet.herder(&["pause"]).await.expect(0);
    fleet.herder(&["resume", "--wait"]).await.expect(0);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    assert_eq!(worker.drain().await, Some(0));
}

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

/// Its worker hears of the cancel in a while, and what it does to the tenant may be committed by then.
#[tokio::test]
async fn a_tenant_that_a_cancelled_run_is_still_at_is_not_taken_for_current() {
    let [first, second] = steps(2).try_into().expect("two");
    let setup = Setup::schemas(2).migrations(Tool::Sql, vec![first, second.gated_down()]);
    let fleet = setup.start().await;
    let worker = fleet.worker(&["--concurrency", "1"]);
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    let gate = fleet.close_gate_of("t001").await;
    let down = ["downgrade", "--to", "-1", "--yes", "--tenant", "t001"];
    fleet.herder(&down).await.expect(0);
    fleet.wait_at_gate(1).await;
    worker.signal(Signal::STOP);
    fleet.herder(&["cancel", "--yes"]).await.expect(0);
    fleet.herder(&["upgrade"]).await.expect(0);
    let states =
        "select string_agg(concat_ws(' ', tenant, job.state, outcome), ', ' order by tenant) from herder.job
                  join (select id from herder.run order by created_at desc limit 1) run on run.id = run_id";
    assert_eq!(
        fleet.ask::<String>(states).await,
        "t001 ready, t002 succeeded already_current"
    );
    // The statement goes on without its worker, and is committed.
    gate.open().await;
    worker.signal(Signal::CONT);
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    assert_eq!(fleet.count("succeeded").await, 2);
    let at_head = "select count(*) from t001._sqlx_migrations";
    assert_eq!(crate::fleet::ask::<i64>(&fleet.home, at_head).await, 2);
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn what_a_lost_worker_held_of_a_cancelled_run_keeps_no_watcher_waiting() {
    let (fleet, gate, worker) = two_in_the_middle(Tool::Sql, 3).await;
    worker.kill().await;
    fleet.herder(&["cancel", "--yes"]).await.expect(0);
    fleet.herder(&["watch"]).await.expect(6);
    assert_eq!(fleet.count("running").await, 2);
    gate.open().await;
    // The next worker finds that they are nobody's, and that nobody wants them.
    let worker = fleet.worker(&[]);
    fleet
        .wait_until("all are cancelled", async || fleet.count("cancelled").await == 3)
        .await;
    assert_eq!(worker.drain().await, Some(0));
}

async fn a_cancel_stops_what_runs(tool: Tool) {
    let (fleet, gate, worker) = two_in_the_middle(tool, 4).await;
    let watcher = fleet.start_herder(&["watch"]);
    fleet.herder(&["cancel", "--yes"]).await.expect(0);
    // The gate stays closed: nothing can have ended by itself.
    fleet
        .wait_until("all are cancelled", async || fleet.count("cancelled").await == 4)
        .await;
    watcher.end().await.expect(6);
    fleet
        .wait_until("all sessions are closed", async || fleet.sessions().await == 0)
        .await;
    gate.open().await;
    let kept: &[&str] = if tool == Tool::Alembic {
        &[]
    } else {
        &["up 20250101"]
    };
    for tenant in &fleet.tenants {
        let effects = fleet.effects(tenant).await;
        assert!(effects.is_empty() || effects == kept, "{effects:?}");
    }
    // What was cancelled is over for good, and in nobody's way.
    fleet.herder(&["resume"]).await.expect(2);
    fleet.herder(&["retry"]).await.expect(2);
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_cancelled_run_stops_what_runs() {
    a_cancel_stops_what_runs(Tool::Sql).await;
}

#[tokio::test]
async fn a_cancelled_run_stops_alembic() {
    a_cancel_stops_what_runs(Tool::Alembic).await;
}

#[tokio::test]
async fn a_cancelled_run_stops_commands() {
    a_cancel_stops_what_runs(Tool::Command).await;
}

#[tokio::test]
async fn a_second_run_over_the_same_tenants_is_refused_and_names_the_first() {
    let (fleet, gate, worker) = two_in_the_middle(Tool::Sql, 4).await;
    let first: String = fleet.ask("select id::text from herder.run").await;
    let refused = fleet.herder(&["upgrade"]).await.expect(REFUSED);
    assert!(refused.stderr.contains(&first[..8]), "{}", refused.all());
    fleet
        .herder(&["downgrade", "--to", "base", "--yes"])
        .await
        .expect(REFUSED);
    // Paused is still open.
    fleet.herder(&["pause"]).await.expect(0);
    fleet.herder(&["upgrade"]).await.expect(REFUSED);
    fleet.herder(&["resume"]).await.expect(0);
    assert_eq!(fleet.ask::<i64>("select count(*) from herder.run").await, 1);
    gate.open().await;
    assert_eq!(fleet.over().await, "succeeded");
    assert_eq!(worker.drain().await, Some(0));
}

/// The ledger of both stands in `public`. Within one run they are one job; two runs must not have one each.
#[tokio::test]
async fn a_whole_database_and_its_public_schema_are_one_place_to_two_runs() {
    let mut fleet = Setup::schemas(1).migrations(Tool::Sql, steps(1)).start().await;
    let database = Some(fleet.database("app"));
    fleet
        .cluster
        .create(&herder::session::quote(&fleet.database("app")))
        .await;
    let whole = Tenant {
        id: "whole".into(),
        database: database.clone(),
        ..Tenant::default()
    };
    let public = Tenant {
        database,
        ..Tenant::schema("public", "public")
    };
    fleet.tell("delete from tenants").await;
    fleet.tenants = vec![whole, public];
    fleet.populate().await;
    for [first, second] in [["whole", "public"], ["public", "whole"]] {
        fleet.herder(&["upgrade", "--tenant", first]).await.expect(0);
        fleet
            .herder(&["upgrade", "--tenant", second])
            .await
            .expect(REFUSED);
        fleet.herder(&["cancel", "--yes"]).await.expect(0);
    }
}

/// A fleet at its newest revision, two of whose tenants are in the middle of its downgrade.
async fn two_on_their_way_down(tenants: usize) -> (Fleet, crate::fleet::Gate, Worker) {
    let [first, second] = steps(2).try_into().expect("two");
    let setup = Setup::schemas(tenants).migrations(Tool::Sql, vec![first, second.gated_down()]);
    let fleet = setup.start().await;
    let worker = fleet.worker(&["--concurrency", "2"]);
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    let gate = fleet.close_gate().await;
    fleet
        .herder(&["downgrade", "--to", "-1", "--yes"])
        .await
        .expect(0);
    fleet.wait_at_gate(2).await;
    (fleet, gate, worker)
}

#[tokio::test]
async fn an_upgrade_is_refused_while_a_downgrade_has_yet_to_undo_its_tenants() {
    let (fleet, gate, worker) = two_on_their_way_down(3).await;
    // All are at the newest revision still.
    fleet.herder(&["upgrade", "--wait"]).await.expect(REFUSED);
    assert_eq!(fleet.ask::<i64>("select count(*) from herder.run").await, 2);
    gate.open().await;
    assert_eq!(fleet.over().await, "succeeded");
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    fleet
        .assert_effects(&["up 20250101", "up 20250102", "down 20250102", "up 20250102"])
        .await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn what_another_run_undid_after_the_ledgers_were_read_is_read_again() {
    let (fleet, gate, worker) = two_on_their_way_down(2).await;
    // Whoever writes a run waits for this one, with what it read before.
    let lock = "select pg_advisory_xact_lock(hashtextextended('herder/enqueue', 0))";
    let mut other = fleet.control.begin().await.expect("a transaction");
    sqlx::query(lock).execute(&mut *other).await.expect("a lock");
    let upgrade = fleet.start_herder(&["upgrade", "--wait"]);
    fleet
        .wait_until("a run waits to be written", async || {
            fleet
                .ask::<i64>("select count(*) from pg_stat_activity where wait_event = 'advisory' and datname = current_database()")
                .await
                == 1
        })
        .await;
    gate.open().await;
    assert_eq!(fleet.over().await, "succeeded");
    other.rollback().await.expect("an end");
    upgrade.end().await.expect(0);
    fleet
        .assert_effects(&["up 20250101", "up 20250102", "down 20250102", "up 20250102"])
        .await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn of_two_runs_at_the_same_moment_one_is_made() {
    let fleet = Setup::schemas(50).start().await;
    let both = [(); 2].map(|()| fleet.start_herder(&["upgrade"]));
    let [a, b] = both;
    let (a, b) = (a.end().await, b.end().await);
    let mut codes = [a.code, b.code];
    codes.sort_unstable();
    assert_eq!(codes, [Some(0), Some(REFUSED)], "{}\n{}", a.all(), b.all());
    assert_eq!(fleet.ask::<i64>("select count(*) from herder.run").await, 1);
    assert_eq!(fleet.ask::<i64>("select count(*) from herder.job").await, 50);
}

/// Waits until so many commands look whether the run before theirs has ended.
async fn queued(fleet: &Fleet, commands: i64) {
    let looks = "select count(*) from pg_stat_activity
                 where application_name = 'herder' and datname = current_database() and query like '%coalesce(counts.of%'";
    fleet
        .wait_until("commands wait for the run before theirs", async || {
            fleet.ask::<i64>(looks).await >= commands
        })
        .await;
}

#[tokio::test]
async fn a_second_run_waits_behind_the_first_if_it_is_told_to() {
    let (fleet, gate, worker) = two_in_the_middle(Tool::Sql, 4).await;
    let runs = "select count(*) from herder.run";
    // Two of them: whoever comes second waits for both.
    let up = fleet.start_herder(&["upgrade", "--queue", "--wait"]);
    let down = fleet.start_herder(&["downgrade", "--to", "-1", "--tenant", "t001", "--queue", "--yes"]);
    queued(&fleet, 2).await;
    heartbeats(&fleet).await;
    assert_eq!(fleet.ask::<i64>(runs).await, 1);
    gate.open().await;
    up.end().await.expect(0);
    down.end().await.expect(0);
    fleet.succeeded(3).await;
    // No two of them were at one tenant at once.
    let interleaved: i64 = fleet
        .ask(
            "select count(*) from herder.attempt a join herder.job on job.id = a.job_id
             join herder.job other on other.tenant = job.tenant and other.run_id <> job.run_id
             join herder.attempt b on b.job_id = other.id
             where a.started_at < b.started_at and a.ended_at > b.started_at",
        )
        .await;
    assert_eq!(interleaved, 0);
    let effects = fleet.effects(&fleet.tenants[0]).await;
    assert_eq!(effects[..2], ["up 20250101", "up 20250102"]);
    assert_eq!(effects[2], "down 20250102");
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_wait_behind_another_run_that_is_given_up_leaves_nothing() {
    let (fleet, gate, worker) = two_in_the_middle(Tool::Sql, 2).await;
    let waiting = fleet.start_herder(&["upgrade", "--queue"]);
    queued(&fleet, 1).await;
    let stalled = fleet
        .herder(&["upgrade", "--queue", "--stall-timeout", "1s"])
        .await
        .expect(8);
    assert!(
        stalled.stderr.contains("nothing was started"),
        "{}",
        stalled.all()
    );
    waiting.signal(Signal::INT);
    let output = waiting.end().await.expect(130);
    assert!(output.stderr.contains("nothing was started"), "{}", output.all());
    assert_eq!(output.stdout, "");
    gate.open().await;
    assert_eq!(fleet.over().await, "succeeded");
    assert_eq!(fleet.ask::<i64>("select count(*) from herder.run").await, 1);
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_retry_is_refused_while_another_run_is_at_its_tenants() {
    let fleet = broken_in(&["t001"], 3).await;
    let worker = fleet.worker(&[]);
    fleet.herder(&["upgrade", "--wait"]).await.expect(4);
    let first: String = fleet.ask("select id::text from herder.run").await;
    assert_eq!(worker.drain().await, Some(0));
    fleet.herder(&["upgrade"]).await.expect(0);
    let refused = fleet.herder(&["retry", &first]).await.expect(REFUSED);
    assert!(refused.stderr.contains("cannot retry"), "{}", refused.all());
    let open = "select count(*) from herder.job where state in ('ready', 'running')";
    assert_eq!(fleet.ask::<i64>(open).await, 1);
    fleet.herder(&["cancel", "--yes"]).await.expect(0);
    tell(&fleet.home, "drop table t001.broken").await;
    fleet.herder(&["retry", &first, "--local", "1"]).await.expect(0);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
}

#[tokio::test]
async fn runs_over_different_tenants_go_side_by_side() {
    let fleet = Setup::schemas(6).migrations(Tool::Sql, steps(2)).start().await;
    fleet
        .herder(&["upgrade", "--tenant", "t001", "--tenant", "t002"])
        .await
        .expect(0);
    fleet
        .herder(&["upgrade", "--exclude", "t001", "--exclude", "t002"])
        .await
        .expect(0);
    let worker = fleet.worker(&[]);
    fleet.succeeded(2).await;
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    assert_eq!(worker.drain().await, Some(0));
}

/// A fleet in which the migration fails in some tenants: those whose schema has a table `broken`.
async fn broken_in(tenants: &[&str], count: usize) -> Fleet {
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
async fn ctrl_c_ends_the_wait_and_not_the_run() {
    let [first, second] = steps(2).try_into().expect("two");
    let setup = Setup::schemas(2).migrations(Tool::Sql, vec![first, second.gated()]);
    let fleet = setup.start().await;
    let gate = fleet.close_gate().await;
    let worker = fleet.worker(&[]);
    let waiting = fleet.start_herder(&["upgrade", "--wait"]);
    fleet.wait_at_gate(2).await;
    waiting.signal(Signal::INT);
    let output = waiting.end().await.expect(130);
    assert!(output.stderr.contains("continues"), "{}", output.all());
    assert_eq!(
        (fleet.state().await.as_str(), fleet.count("running").await),
        ("running", 2)
    );
    let watcher = fleet.start_herder(&["watch"]);
    gate.open().await;
    watcher.end().await.expect(0);
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn ctrl_c_gives_back_what_a_local_run_holds() {
    let [first, second] = steps(2).try_into().expect("two");
    let setup = Setup::schemas(3).migrations(Tool::Sql, vec![first, second.gated()]);
    let fleet = setup.set("worker.drain_timeout", "0s").start().await;
    let gate = fleet.close_gate().await;
    let local = fleet.start_herder(&["upgrade", "--local", "2"]);
    fleet.wait_at_gate(2).await;
    local.signal(Signal::INT);
    local.end().await.expect(130);
    assert_eq!(fleet.count("ready").await, 3, "{}", fleet.last_seen().await);
    gate.open().await;
    fleet.herder(&["resume", "--local", "2"]).await.expect(0);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    for job in fleet.status().await["jobs"].as_array().expect("jobs") {
        assert_eq!(job["attempts"], 1, "{job:#}");
    }
}

#[tokio::test]
async fn what_cannot_be_done_ends_with_2_or_3_and_leaves_no_run() {
    let fleet = Setup::schemas(2).start().await;
    for args in [
        &["upgrade", "--to", "20990101"][..],
        &["upgrade", "--to", "2025010199"],
        &["upgrade", "--to", "-1"],
        &["downgrade", "--to", "+1", "--yes"],
        &["downgrade", "--to", "base"],
        &["upgrade", "--tenant", "t00l"],
        &["upgrade", "--local", "0"],
        &["upgrade", "--no-such-option"],
        &["status", "ffff"],
        &["status"],
        &["no-such-command"],
    ] {
        fleet.herder(args).await.expect(2);
    }
    let config = std::fs::read_to_string(fleet.dir().join("herder.toml")).expect("herder.toml");
    let unreachable = "postgresql://postgres@127.0.0.1:1/control";
    let home = fleet.cluster.url(&fleet.database("home"));
    let control = fleet.cluster.url(&fleet.database("control"));
    for (what, text) in [
        ("an unknown key", format!("{config}\n[limitz]\n")),
        ("no TOML", "[control".to_owned()),
        (
            "a control database that is down",
            config.replace(
                &format!("[control]\nurl = \"{control}\""),
                &format!("[control]\nurl = \"{unreachable}\""),
            ),
        ),
        ("a database that is not set up", config.replace(&control, &home)),
        (
            "a folder that is not there",
            config.replace("/project", "/no-project"),
        ),
    ] {
        assert_ne!(text, config, "{what}");
        std::fs::write(fleet.dir().join("wrong.toml"), text).expect("wrong.toml");
        let output = fleet.herder(&["upgrade", "--config", "wrong.toml"]).await;
        assert_eq!(output.code, Some(3), "{what}: {}", output.all());
        let mut worker = fleet.worker(&["--config", "wrong.toml"]);
        if what != "a folder that is not there" {
            assert_eq!(worker.end().await.code(), Some(3), "{what}: {}", worker.log());
        }
    }
    fleet
        .herder(&["upgrade", "--config", "missing.toml"])
        .await
        .expect(3);
    assert_eq!(fleet.state().await, "none");
}

#[tokio::test]
async fn a_check_of_the_plan_ends_with_7_while_anything_is_pending() {
    let fleet = Setup::schemas(3).migrations(Tool::Sql, steps(2)).start().await;
    fleet.herder(&["plan"]).await.expect(0);
    let plan = fleet.herder(&["plan", "--check"]).await.expect(7);
    assert!(plan.stdout.contains("20250102"), "{}", plan.all());
    fleet
        .herder(&["upgrade", "--local", "2", "--exclude", "t002"])
        .await
        .expect(0);
    fleet.herder(&["plan", "--check"]).await.expect(7);
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    fleet.herder(&["plan", "--check"]).await.expect(0);
    // What cannot be read is not known to be done.
    tell(&fleet.home, "drop schema t003 cascade").await;
    fleet.herder(&["plan", "--check"]).await.expect(7);
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
