//! However many workers there are, a server never sees more connections than its budget.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use herder::throwaway::Settings;
use sqlx::{Connection, PgConnection};

use crate::fleet::{Cluster, Fleet, Setup, Tool, steps};

/// Looks at a server as often as it can, and keeps what it saw when there was the most of it.
struct Sampler {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    task: std::thread::JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Seen {
    samples: u64,
    /// The most sessions of Herder's at one moment.
    most: Vec<String>,
}

impl Sampler {
    /// A thread of its own: the test's must not slow it down.
    fn start(url: String) -> Self {
        let (seen, stop) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let (seeing, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let task = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let mut connection = PgConnection::connect(&url).await.expect("a connection");
                let sessions =
                    "select concat_ws(' ', pid, application_name, clock_timestamp() - backend_start, state, query)
                     from pg_stat_activity
                     where application_name like 'herder%' and backend_type = 'client backend'";
                while !stopped.load(Ordering::Relaxed) {
                    let now: Vec<String> = sqlx::query_scalar(sessions)
                        .fetch_all(&mut connection)
                        .await
                        .expect("sessions");
                    let mut seen = seeing.lock().expect("no panic");
                    seen.samples += 1;
                    if now.len() > seen.most.len() {
                        seen.most = now;
                    }
                }
            });
        });
        Self { seen, stop, task }
    }

    fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.task.join().expect("no panic");
        std::mem::take(&mut *self.seen.lock().expect("no panic"))
    }
}

/// Three workers, each of which could fill the server alone, one of them killed in the middle.
async fn the_budget_holds(tool: Tool, tenants: usize) {
    let cluster = Cluster::own(Settings::default()).await;
    let fleet = Setup::schemas(tenants)
        .migrations(tool, steps(3))
        .on(&cluster)
        .set("servers.main.budget", 5)
        .start()
        .await;
    let sampler = Sampler::start(cluster.url("postgres"));
    let workers: Vec<_> = (0..3).map(|_| fleet.worker(&["--concurrency", "8"])).collect();
    fleet.herder(&["upgrade"]).await.expect(0);
    let some = i64::try_from(tenants / 4).expect("a count");
    fleet
        .wait_until("some tenants are done", async || {
            fleet.count("succeeded").await >= some
        })
        .await;
    let mut workers = workers.into_iter();
    workers.next().expect("a worker").kill().await;
    // Inspection counts as well.
    fleet.herder(&["tenants", "--revisions"]).await.expect(0);
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    let seen = sampler.end();
    // A budget that is never used up would prove nothing.
    assert!((4..=5).contains(&seen.most.len()), "{seen:#?}");
    assert!(seen.samples > 200, "{seen:#?}");
    fleet
        .assert_effects(&["up 20250101", "up 20250102", "up 20250203"])
        .await;
    for worker in workers {
        assert_eq!(worker.drain().await, Some(0));
    }
}

#[tokio::test]
async fn three_workers_stay_under_one_budget() {
    the_budget_holds(Tool::Sql, 300).await;
}

#[tokio::test]
async fn three_workers_stay_under_one_budget_with_alembic() {
    the_budget_holds(Tool::Alembic, 40).await;
}

#[tokio::test]
async fn three_workers_stay_under_one_budget_with_a_command() {
    the_budget_holds(Tool::Command, 40).await;
}

/// How many slots are taken.
async fn taken(fleet: &Fleet) -> i64 {
    fleet
        .ask("select count(*) from herder.slot where purpose <> 'control'")
        .await
}

#[tokio::test]
async fn a_server_that_is_full_fails_nobody() {
    // Six connections in all, three of them reserved, and we take all that is left.
    let settings = Settings::default()
        .parameter("max_connections", 8)
        .parameter("max_wal_senders", 0);
    let cluster = Cluster::own(settings).await;
    let setup = Setup::schemas(10).migrations(Tool::Sql, steps(2)).on(&cluster);
    let fleet = setup.set("servers.main.budget", 5).start().await;
    fleet.home.close().await;
    let mut squatters = Vec::new();
    let role = "create role squatter login";
    let mut admin = PgConnection::connect(&cluster.url("postgres"))
        .await
        .expect("a connection");
    sqlx::raw_sql(role).execute(&mut admin).await.expect(role);
    let url = cluster.url("postgres").replace("postgres@", "squatter@");
    while let Ok(squatter) = PgConnection::connect(&url).await {
        squatters.push(squatter);
    }
    // The superuser's own seats are not for tenants.
    let seats = fleet.cluster.url("postgres");
    while let Ok(squatter) = PgConnection::connect(&seats).await {
        squatters.push(squatter);
    }
    drop(admin);
    let worker = fleet.worker(&["--listen", "127.0.0.1:0"]);
    fleet.herder(&["upgrade"]).await.expect(0);
    let refused = "select count(*) from herder.attempt where error ->> 'sqlstate' = '53300'";
    fleet
        .wait_until("the full server has refused some", async || {
            fleet.ask::<i64>(refused).await >= 3
        })
        .await;
    assert!(worker.metric("herder_connection_refused_total").await >= 3.0);
    for squatter in squatters {
        squatter.close().await.expect("an end");
    }
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    for job in fleet.status().await["jobs"].as_array().expect("jobs") {
        assert_eq!(job["attempts"], 1, "{job:#}");
    }
    assert_eq!(taken(&fleet).await, 0);
    assert_eq!(worker.drain().await, Some(0));
}
