//! A worker that stood still wakes up after its jobs went on without it.

use std::time::Duration;

use herder::{
    config::LimitsConfig,
    database_url::DatabaseUrl,
    domain::{
        job::{AttemptId, AttemptLabel},
        run::RunId,
        tenant::Place,
    },
    session::TenantSession,
    store::{
        job, slot,
        worker::{self, WorkerRow},
    },
    tenant_error::TenantError,
};
use rustix::process::{Pid, Signal, kill_process};

use crate::fleet::{Cluster, Setup, Tool, ask, list, steps, tell};

/// Between its sessions nobody sees it in the database: whoever takes over could only do its work beside it.
#[tokio::test]
async fn a_zombies_program_does_not_outlive_its_lease() {
    let cluster = Cluster::shared().await;
    let psql = cluster.program("psql").display().to_string();
    let current = "select case when to_regclass('done') is null then 'base' else '1' end";
    let script = "psql -Xqc 'insert into public.tried values (1)' && sleep 5 &&
        psql -Xq1c 'create table if not exists done (); insert into public.effect values (1)'"
        .replace("psql", &psql);
    let runner = format!(
        "kind = 'command'\nrevisions = ['1']\ncommand = ['sh', '-c', {script:?}]\n\
         current_command = [{psql:?}, '-AtXqc', {current:?}]"
    );
    let fleet = Setup::schemas(1).runner(&runner).on(&cluster).start().await;
    tell(
        &fleet.home,
        "create table tried (n int); create table effect (n int)",
    )
    .await;
    let zombie = fleet.worker(&["--name", "zombie"]);
    fleet.herder(&["upgrade"]).await.expect(0);
    let tried = "select count(*) from tried";
    fleet
        .wait_until("its program is between two sessions", async || {
            ask::<i64>(&fleet.home, tried).await == 1
        })
        .await;
    zombie.signal(Signal::STOP);
    let heir = fleet.worker(&["--name", "heir"]);
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    zombie.signal(Signal::CONT);
    assert_eq!(zombie.drain().await, Some(0));
    assert_eq!(heir.drain().await, Some(0));
    assert_eq!(ask::<i64>(&fleet.home, tried).await, 2);
    let effects = "select count(*) from effect";
    assert_eq!(ask::<i64>(&fleet.home, effects).await, 1);
    let results: Vec<String> = list(&fleet.control, "select result from herder.attempt order by epoch").await;
    assert_eq!(results, ["rescued", "migrated"]);
}

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
    if tool == Tool::Command {
        // A program that connects again is beyond anybody's reach: where its migration went on at this very moment, it would.
        let first = "select count(*) from pg_stat_activity
                     where application_name like 'herder/%/1' and datname = current_database()";
        fleet
            .wait_until("the sessions of its commands are ended", async || {
                crate::fleet::ask::<i64>(&fleet.home, first).await == 0
            })
            .await;
    }
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

/// A migration may call its session as it likes: the slot is free when that is gone, and not before.
#[tokio::test]
async fn a_zombies_session_in_disguise_is_ended_before_its_slot_is_free() {
    let [first, second] = steps(2).try_into().expect("two");
    let disguised = second.then("set application_name = 'app'").gated();
    let setup = Setup::schemas(2).migrations(Tool::Sql, vec![first, disguised]);
    let fleet = setup.start().await;
    let gate = fleet.close_gate().await;
    let zombie = fleet.worker(&["--name", "zombie"]);
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet.wait_at_gate(2).await;
    let disguises = "select pid::text from pg_stat_activity where application_name = 'app'
                     and datname = current_database() order by pid";
    let old = list(&fleet.home, disguises).await;
    assert_eq!(old.len(), 2);
    zombie.signal(Signal::STOP);
    let heir = fleet.worker(&["--name", "heir"]);
    let reclaimed = "select not exists (select from herder.slot where suspect_since is not null)
                     and 2 = (select count(*) from herder.attempt where result = 'rescued')";
    fleet
        .wait_until("its slots are reclaimed", async || fleet.ask(reclaimed).await)
        .await;
    let now = list(&fleet.home, disguises).await;
    assert!(old.iter().all(|pid| !now.contains(pid)), "{old:?} {now:?}");
    gate.open().await;
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    zombie.signal(Signal::CONT);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    assert_eq!(heir.drain().await, Some(0));
    assert_eq!(zombie.drain().await, Some(0));
}

/// It was away for so long that it was struck off: with its next heartbeat it is one of the workers again.
#[tokio::test]
async fn a_worker_that_was_struck_off_comes_back() {
    let fleet = Setup::schemas(2).migrations(Tool::Sql, steps(1)).start().await;
    let sleeper = fleet.worker(&["--name", "sleeper"]);
    let known = "select count(*) from herder.worker join apalis.workers using (id)";
    let is_known = async || fleet.ask::<i64>(known).await == 1;
    fleet.wait_until("it has signed on", is_known).await;
    sleeper.signal(Signal::STOP);
    // What others do in a minute.
    let long_ago = "update herder.worker set lease_until = now() - interval '2 minutes'";
    fleet.tell(long_ago).await;
    let mut keeper = fleet.control.acquire().await.expect("a connection");
    slot::suspect_lost(&mut keeper).await.expect("suspects");
    drop(keeper);
    fleet
        .wait_until("its own slots are free", async || {
            let mut keeper = fleet.control.acquire().await.expect("a connection");
            slot::reclaim_control(&mut keeper).await.expect("an end");
            fleet
                .ask::<i64>("select count(*) from herder.slot where worker is not null")
                .await
                == 0
        })
        .await;
    worker::remove_lost(&fleet.control).await.expect("a sweep");
    let left = "select id from herder.worker union all select id from apalis.workers";
    assert_eq!(list(&fleet.control, left).await, [""; 0]);
    sleeper.signal(Signal::CONT);
    fleet.wait_until("it is back", is_known).await;
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    fleet.assert_effects(&["up 20250101"]).await;
    assert_eq!(sleeper.drain().await, Some(0));
}

/// It was away for its whole lease, and is back in the very moment in which others look: it is asked what it holds in the same
/// breath, and must not believe in what it is just being robbed of.
#[tokio::test]
async fn a_heartbeat_on_its_way_saves_what_its_worker_holds() {
    let [first, second] = steps(2).try_into().expect("two");
    let setup = Setup::schemas(1).migrations(Tool::Sql, vec![first, second.gated()]);
    let fleet = setup.start().await;
    let gate = fleet.close_gate().await;
    let sleeper = fleet.worker(&["--name", "sleeper"]);
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet.wait_at_gate(1).await;
    sleeper.signal(Signal::STOP);
    let expired = "select count(*) from herder.worker where lease_until < now()";
    fleet
        .wait_until("its lease has run out", async || {
            fleet.ask::<i64>(expired).await == 1
        })
        .await;
    let row = WorkerRow {
        id: fleet.ask("select id from herder.worker").await,
        name: "sleeper".into(),
        concurrency: 8,
        draining: false,
        only_run: None,
        runner: "sql".into(),
        servers: vec!["main".into()],
    };
    let mut heartbeat = fleet.control.begin().await.expect("a transaction");
    let held = worker::beat(&mut heartbeat, &row, Duration::from_secs(60)).await;
    assert_eq!(held.expect("a heartbeat").known.len(), 1);
    let mut keeper = fleet.control.acquire().await.expect("a connection");
    let rescued = job::rescue(&mut keeper, 10).await.expect("a rescue");
    assert!(rescued.is_empty(), "{rescued:?}");
    heartbeat.commit().await.expect("a commit");
    sleeper.signal(Signal::CONT);
    gate.open().await;
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    assert_eq!(fleet.job("t001").await["epoch"], 1);
    assert_eq!(sleeper.drain().await, Some(0));
}

/// A backend that hangs in the kernel, or runs code that asks for no interrupts, cannot be ended: its tool may still be at work.
#[tokio::test]
async fn a_session_that_does_not_end_is_not_taken_for_gone() {
    let fleet = Setup::schemas(1).start().await;
    let (run, place) = (
        RunId::new_v4(),
        Place {
            server: "main".into(),
            database: fleet.database("home"),
            schema: fleet.tenants[0].schema.clone(),
        },
    );
    let url = DatabaseUrl::parse(&fleet.cluster.url(&place.database)).expect("a URL");
    let (url, limits) = (&url, &LimitsConfig::default());
    let open = async |name: &str| {
        TenantSession::open(url, &place, name, limits, &[])
            .await
            .expect("a session")
    };
    let label = |epoch| AttemptLabel {
        run,
        attempt: AttemptId { job: 7, epoch },
    };
    let older = label(1).to_string();
    let _former = open(&older).await;
    let mut session = open(&label(2).to_string()).await;
    let pid = format!("select pid from pg_stat_activity where application_name = '{older}'");
    let pid = Pid::from_raw(ask(&fleet.home, &pid).await).expect("a process id");
    kill_process(pid, Signal::STOP).expect("a signal");
    let ended = session.end_older(label(2)).await;
    let tool = session.end_tool(&older).await;
    kill_process(pid, Signal::CONT).expect("a signal");
    assert!(matches!(ended, Err(TenantError::Connection(_))), "{ended:?}");
    assert!(matches!(tool, Err(TenantError::Connection(_))), "{tool:?}");
    session.end_older(label(2)).await.expect("it ends now");
}
