//! Connections that no single attempt opens: a worker's own to the control database, and those that it keeps open from
//! one tenant to the next. They count like all others.

use rustix::process::Signal;
use sqlx::{Connection, PgConnection};

use crate::{
    fleet::{Cluster, Fleet, Setup, Tool, ask, steps, tell},
    sampler::Sampler,
};
use herder::throwaway::Settings;

/// The most sessions of workers and of what they do, at one moment of many, until `over` says so. Those of a worker at
/// the door are there for a moment, and belong to nobody yet.
async fn most_sessions(cluster: &Cluster, over: impl Future<Output = String>) -> (i64, u64) {
    let mut connection = PgConnection::connect(&cluster.url("postgres"))
        .await
        .expect("a connection");
    let (mut most, mut samples) = (0, 0);
    tokio::pin!(over);
    loop {
        tokio::select! {
            state = &mut over => {
                assert_eq!(state, "succeeded");
                return (most, samples);
            }
            now = sqlx::query_scalar::<_, i64>(
                "select count(*) from pg_stat_activity where backend_type = 'client backend'
                 and (application_name like 'herder/%' or application_name like 'herder-worker/%')",
            ).fetch_one(&mut connection) => {
                most = most.max(now.expect("a count"));
                samples += 1;
            }
        }
    }
}

/// A fleet whose control database is on the tenants' own server.
async fn together(cluster: &std::sync::Arc<Cluster>, budget: i64, tenants: usize) -> Fleet {
    Setup::schemas(tenants)
        .migrations(Tool::Sql, steps(3))
        .on(cluster)
        .control_on(cluster)
        .set("servers.main.budget", budget)
        .start()
        .await
}

#[tokio::test]
async fn workers_own_connections_count_where_the_control_database_has_tenants() {
    let cluster = Cluster::own(Settings::default()).await;
    let fleet = together(&cluster, 9, 300).await;
    let workers: Vec<_> = (0..3)
        .map(|_| fleet.worker(&["--concurrency", "8", "--listen", "127.0.0.1:0"]))
        .collect();
    let control = "select count(*) from herder.slot where purpose = 'control'";
    fleet
        .wait_until("all three have their slots", async || {
            fleet.ask::<i64>(control).await == 6
        })
        .await;
    let shown = fleet
        .herder(&["budget", "--output-format", "json"])
        .await
        .expect(0)
        .json();
    assert_eq!(shown["servers"][0]["in_use"], 6, "{shown:#}");
    fleet
        .wait_until("the metrics have it", async || {
            workers[0].metric("herder_connections_in_use").await == 6.0
        })
        .await;
    fleet.herder(&["upgrade"]).await.expect(0);
    let (most, samples) = most_sessions(&cluster, fleet.over()).await;
    // Six of their own, two for attempts and one for reclaim: a budget that is never used up would prove nothing.
    assert!((7..=9).contains(&most), "{most} in {samples} samples");
    for worker in workers {
        assert_eq!(worker.drain().await, Some(0));
    }
    let left: i64 = fleet
        .ask("select count(*) from herder.slot where worker is not null")
        .await;
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_worker_that_finds_no_room_waits_ready_and_takes_over() {
    let cluster = Cluster::own(Settings::default()).await;
    let [first, second, third] = steps(3).try_into().expect("three");
    let fleet = Setup::schemas(40)
        .migrations(Tool::Sql, vec![first, second.gated(), third])
        .on(&cluster)
        .control_on(&cluster)
        .set("servers.main.budget", 4)
        .start()
        .await;
    let gate = fleet.close_gate().await;
    let first = fleet.worker(&["--listen", "127.0.0.1:0", "--name", "first"]);
    let admitted = "select count(*) from herder.slot where purpose = 'control'";
    fleet
        .wait_until("the first has its slots", async || {
            fleet.ask::<i64>(admitted).await == 2
        })
        .await;
    let second = fleet.worker(&["--listen", "127.0.0.1:0", "--name", "second"]);
    second.says("no room for another worker").await;
    assert_eq!(second.get("/readyz").await.0, 200);
    assert_eq!(second.get("/livez").await.0, 200);
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet.wait_at_gate(1).await;
    let workers: Vec<String> = crate::fleet::list(&fleet.control, "select name from herder.worker").await;
    assert_eq!(workers, ["first"]);
    first.kill().await;
    gate.open().await;
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    fleet
        .assert_effects(&["up 20250101", "up 20250102", "up 20250203"])
        .await;
    assert_eq!(second.drain().await, Some(0));
}

#[tokio::test]
async fn check_warns_of_a_budget_without_room_for_a_worker_and_a_job() {
    let cluster = Cluster::own(Settings::default()).await;
    for (budget, warns) in [(3, true), (4, false)] {
        let fleet = together(&cluster, budget, 1).await;
        let checked = fleet.herder(&["check"]).await.expect(0);
        assert_eq!(
            checked.stdout.contains("they come on top"),
            warns,
            "{}",
            checked.stdout
        );
        let worker = fleet.worker(&[]);
        match warns {
            true => worker.says("they are not counted").await,
            false => {
                let counted = "select count(*) from herder.slot where purpose = 'control'";
                fleet
                    .wait_until("it has its slots", async || fleet.ask::<i64>(counted).await == 2)
                    .await;
            }
        }
        assert_eq!(worker.drain().await, Some(0));
    }
}

#[tokio::test]
async fn a_worker_at_the_door_holds_no_connection() {
    let cluster = Cluster::own(Settings::default()).await;
    let fleet = together(&cluster, 4, 2).await;
    let first = fleet.worker(&["--name", "first"]);
    fleet
        .wait_until("the first has its slots", async || {
            fleet
                .ask::<i64>("select count(*) from herder.slot where purpose = 'control'")
                .await
                == 2
        })
        .await;
    let second = fleet.worker(&["--listen", "127.0.0.1:0"]);
    second.says("no room for another worker").await;
    let page = second.get("/metrics").await.1;
    let pooled: Vec<&str> = page
        .lines()
        .filter(|line| line.starts_with("herder_control_connections"))
        .collect();
    assert_eq!(
        pooled,
        [
            "herder_control_connections{state=\"idle\"} 0",
            "herder_control_connections{state=\"used\"} 0",
        ]
    );
    assert_eq!(second.drain().await, Some(0));
    assert_eq!(first.drain().await, Some(0));
}

#[tokio::test]
async fn a_connection_serves_one_tenant_after_the_other_and_brings_nothing_along() {
    let noted = "create table seen as select pg_backend_pid() as pid, current_setting('work_mem') as mem, \
                 to_regclass('pg_temp.left_behind') is not null as temp";
    // Whatever a migration leaves in its session must not reach the next tenant's.
    let litter = "set work_mem = '123MB'; create temp table left_behind (a int); prepare p as select 1; \
                  declare c cursor with hold for select 1; listen l; select pg_advisory_lock(4711)";
    let [first, second] = steps(2).try_into().expect("two");
    let fleet = Setup::schemas(60)
        .migrations(Tool::Sql, vec![first.then(noted), second.then(litter)])
        .start()
        .await;
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    let all: Vec<String> = fleet
        .tenants
        .iter()
        .map(|t| format!("select * from {}.seen", t.schema_name()))
        .collect();
    let all = all.join(" union all ");
    let backends: i64 = ask(&fleet.home, &format!("select count(distinct pid) from ({all}) s")).await;
    assert!(backends <= 10, "{backends} connections for 60 tenants");
    let dirty: i64 = ask(
        &fleet.home,
        &format!("select count(*) from ({all}) s where mem = '123MB' or temp"),
    )
    .await;
    assert_eq!(dirty, 0);
    let locks: i64 = ask(
        &fleet.home,
        "select count(*) from pg_locks where locktype = 'advisory' and objid = 4711
         and database = (select oid from pg_database where datname = current_database())",
    )
    .await;
    assert_eq!(locks, 0);
}

/// Databases on a server of their own that a run has made known, and a budget of six for attempts.
async fn databases(cluster: &std::sync::Arc<Cluster>, tenants: usize) -> Fleet {
    let fleet = Setup::databases(tenants)
        .migrations(Tool::Sql, steps(1))
        .on(cluster)
        .set("servers.main.budget", 7)
        .start()
        .await;
    fleet.herder(&["upgrade", "--local", "4"]).await.expect(0);
    fleet
}

const BORROWED: &str = "select count(*) from herder.slot where purpose = 'service'";

#[tokio::test]
async fn databases_are_read_side_by_side_within_the_budget() {
    let cluster = Cluster::own(Settings::default()).await;
    let fleet = databases(&cluster, 30).await;
    // Again by attempts, while others read.
    fleet
        .herder(&["downgrade", "--to", "base", "--yes"])
        .await
        .expect(0);
    let sampler = Sampler::start(cluster.url("postgres"));
    let worker = fleet.worker(&["--concurrency", "4"]);
    let mut most = 0;
    for _ in 0..3 {
        let reading = fleet.start_herder(&["tenants", "--revisions", "--output-format", "json"]);
        let read = reading.end();
        tokio::pin!(read);
        let read = loop {
            tokio::select! {
                read = &mut read => break read,
                borrowed = fleet.ask::<i64>(BORROWED) => most = most.max(borrowed),
            }
        };
        let tenants = read.expect(0).json()["tenants"].as_array().map(Vec::len);
        assert_eq!(tenants, Some(30));
    }
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    let seen = sampler.end();
    assert!((1..=3).contains(&most), "{most} slots were borrowed");
    assert!(seen.most.len() <= 7, "{seen:#?}");
    assert_eq!(worker.drain().await, Some(0));
    assert_eq!(fleet.slots().await, 0);
}

/// The next command would wait for a lease to run out otherwise.
#[tokio::test]
async fn a_command_that_is_stopped_gives_back_its_turn() {
    let fleet = Setup::schemas(2).migrations(Tool::Sql, steps(1)).start().await;
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    for args in [&["plan"][..], &["tenants", "--revisions"], &["upgrade"]] {
        let mut busy = fleet.home.begin().await.expect("a transaction");
        sqlx::raw_sql("lock table t001._sqlx_migrations")
            .execute(&mut *busy)
            .await
            .expect("a lock");
        let stopped = fleet.start_herder(args);
        fleet
            .wait_until("it waits for a ledger", async || {
                let waits = "select count(*) from pg_locks where not granted and relation = 't001._sqlx_migrations'::regclass";
                ask::<i64>(&fleet.home, waits).await > 0
            })
            .await;
        stopped.signal(Signal::INT);
        stopped.end().await.expect(130);
        let held = "select count(*) from herder.server where service_holder <> ''";
        assert_eq!(fleet.ask::<i64>(held).await, 0, "{args:?}");
        busy.rollback().await.expect("a rollback");
    }
}

/// "Not now" is no failure, and without a list there is nobody whose attempt could be put off.
#[tokio::test]
async fn a_full_server_is_waited_for_where_its_tenants_are_listed() {
    let fleet = Setup::schemas(1).migrations(Tool::Sql, steps(1)).start().await;
    fleet.herder(&["upgrade", "--local", "1"]).await.expect(0);
    let role = fleet.database("limited");
    tell(
        &fleet.home,
        &format!("create role {role} login connection limit 0"),
    )
    .await;
    let url = fleet
        .cluster
        .url(&fleet.database("home"))
        .replace("postgres@", &format!("{role}@"));
    fleet.configure(|config| {
        config["servers"]["main"]["url"] = url.into();
        let tenants: toml::Table = "source = 'schemas'\npattern = 't0*'".parse().expect("TOML");
        config.insert("tenants".into(), tenants.into());
    });
    let planning = fleet.start_herder(&["plan"]);
    let holds = "select count(*) from herder.server where service_holder <> ''";
    fleet
        .wait_until("it has its turn", async || fleet.ask::<i64>(holds).await == 1)
        .await;
    // It has been refused by then.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    tell(&fleet.home, &format!("alter role {role} connection limit -1")).await;
    let planned = planning.end().await.expect(0);
    assert!(planned.stdout.contains("t001"), "{}", planned.all());
}

#[tokio::test]
async fn what_a_killed_command_has_borrowed_is_freed_by_a_worker() {
    let cluster = Cluster::own(Settings::default()).await;
    let fleet = databases(&cluster, 8).await;
    let pool = fleet.pool(fleet.tenants[0].database.as_deref().expect("a database"));
    let mut busy = pool.begin().await.expect("a transaction");
    sqlx::raw_sql("lock table _sqlx_migrations")
        .execute(&mut *busy)
        .await
        .expect("a lock");
    let reading = fleet.start_herder(&["tenants", "--revisions"]);
    fleet
        .wait_until("it waits for a ledger", async || {
            let waits = "select count(*) from pg_locks where not granted";
            ask::<i64>(&pool, waits).await > 0
        })
        .await;
    assert!(fleet.ask::<i64>(BORROWED).await > 0);
    reading.kill().await;
    let worker = fleet.worker(&[]);
    fleet
        .wait_until("what it had is free", async || fleet.slots().await == 0)
        .await;
    let sessions = "select count(*) from pg_stat_activity where application_name like 'herder/inspect/%'";
    assert_eq!(ask::<i64>(&pool, sessions).await, 0);
    assert_eq!(worker.drain().await, Some(0));
}

/// In its first lease it may judge nobody, and has other things to do. It has the connection of the claims, too, and must not wait
/// for it while it holds it.
#[tokio::test]
async fn a_keeper_that_may_not_judge_yet_leaves_the_claims_their_connection() {
    let setup = Setup::schemas(1)
        .migrations(Tool::Sql, steps(1))
        .set("worker.lease", "1h");
    let fleet = setup.start().await;
    let worker = fleet.worker_with(&[], &[("RUST_LOG", "herder=debug")]);
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    // Its third round is over by then, and would have waited for 5 s.
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    assert!(
        !worker.log().contains("A keeper's round failed"),
        "{}",
        worker.log()
    );
    assert_eq!(worker.drain().await, Some(0));
}
