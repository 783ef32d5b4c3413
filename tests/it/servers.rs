//! A server that is full, dead, silent or not up yet holds back its own tenants, and nobody else's.

use sqlx::{Connection, PgConnection};

use crate::fleet::{Door, Fleet, Setup, Step, Tool, Way, ask, steps, tell};

/// Ten tenants behind a door, which are listed and so taken first, and ten on a server that answers.
async fn two_servers() -> (Fleet, Door) {
    two_servers_with(steps(2)).await
}

async fn two_servers_with(migrations: Vec<Step>) -> (Fleet, Door) {
    let fleet = Setup::schemas(20)
        .migrations(Tool::Sql, migrations)
        .set(
            "tenants.query",
            "select id, schema, server from tenants order by n",
        )
        .start()
        .await;
    let door = Door::to(&fleet.cluster);
    lead_far(&fleet, &format!("postgres@{}", door.address()));
    fleet
        .tell(
            "alter table tenants add server text default 'main';
             update tenants set server = 'far' where n <= 10",
        )
        .await;
    (fleet, door)
}

/// Where the far server is, and as whom.
fn lead_far(fleet: &Fleet, user_at_address: &str) {
    let url = format!("postgresql://{user_at_address}/{}", fleet.database("home"));
    fleet.configure(|config| {
        let servers = config["servers"].as_table_mut().expect("servers");
        let far = toml::Table::from_iter([("url".to_owned(), url.into())]);
        servers.insert("far".into(), far.into());
    });
}

async fn settled_on(fleet: &Fleet, server: &str) -> i64 {
    fleet
        .ask(&format!(
            "select count(*) from herder.job where server = '{server}' and state = 'succeeded'"
        ))
        .await
}

/// How many attempts at tenants of the far server have ended.
async fn tried_far(fleet: &Fleet) -> i64 {
    fleet
        .ask(
            "select count(*) from herder.attempt join herder.job on job.id = attempt.job_id
             where job.server = 'far' and attempt.ended_at is not null",
        )
        .await
}

/// As if the far server had been in the way of its tenants for longer than anybody waits.
async fn for_ten_minutes(fleet: &Fleet) {
    fleet
        .tell("update herder.job set blocked_since = now() - interval '10 minutes' where server = 'far'")
        .await;
}

/// Nobody lost an attempt, and each tenant has what it should have.
async fn all_is_well(fleet: &Fleet) {
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    for job in fleet.status().await["jobs"].as_array().expect("jobs") {
        assert_eq!(job["attempts"], 1, "{job:#}");
    }
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
}

#[tokio::test]
async fn a_silent_server_holds_back_nobody_elses_tenants() {
    let (fleet, door) = two_servers().await;
    fleet.herder(&["upgrade"]).await.expect(0);
    door.turn(Way::Silent);
    // Its ten tenants could fill this worker's room more than twice.
    let worker = fleet.worker(&["--concurrency", "4"]);
    fleet
        .wait_until("the tenants of the other server are done", async || {
            settled_on(&fleet, "main").await == 10
        })
        .await;
    // Half of the room waits ten seconds for an answer. Were all of it to wait, the others would have needed three rounds
    // of four at the least.
    let tried = tried_far(&fleet).await;
    assert!(tried <= 4, "{tried} attempts\n{}", fleet.last_seen().await);
    door.turn(Way::Open);
    all_is_well(&fleet).await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_dead_server_holds_back_nobody_elses_tenants() {
    let (fleet, door) = two_servers().await;
    fleet.herder(&["upgrade"]).await.expect(0);
    door.turn(Way::Shut);
    let worker = fleet.worker(&["--concurrency", "4"]);
    fleet
        .wait_until("the tenants of the other server are done", async || {
            settled_on(&fleet, "main").await == 10
        })
        .await;
    fleet
        .wait_until("the dead one was asked", async || tried_far(&fleet).await > 0)
        .await;
    assert_eq!(settled_on(&fleet, "far").await, 0);
    door.turn(Way::Open);
    all_is_well(&fleet).await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_silent_server_is_asked_once_for_the_ledgers_of_all_its_tenants() {
    let (fleet, door) = two_servers().await;
    let url = format!(
        "postgresql://postgres@{}/{}",
        door.address(),
        fleet.database("home")
    );
    fleet
        .tell(&format!("update tenants set url = '{url}' where n <= 3"))
        .await;
    fleet.configure(|config| {
        config["tenants"]["query"] = "select id, schema, server, url from tenants order by n".into();
    });
    door.turn(Way::Silent);
    let tenants = fleet
        .herder(&["tenants", "--revisions", "--output-format", "json"])
        .await;
    let counts = tenants.expect(0).json()["counts"].clone();
    assert_eq!(
        (&counts["never_migrated"], &counts["unknown"]),
        (&10.into(), &10.into())
    );
    // What its budget is, and where they stand.
    assert_eq!(door.guests(), 2);
}

/// As if every worker's clock were ahead of the control database's by so much.
async fn ten_minutes_ahead(fleet: &Fleet) {
    let control = fleet.database("control");
    fleet
        .tell(&format!(
            "create function public.now() returns timestamptz stable language sql
               as $$ select pg_catalog.now() - interval '10 minutes' $$;
             alter table herder.job alter ready_at set default public.now();
             alter database {control} set search_path = public, pg_catalog"
        ))
        .await;
}

#[tokio::test]
async fn a_command_whose_clock_is_ahead_tells_the_time_that_a_run_took() {
    let fleet = Setup::schemas(1).start().await;
    ten_minutes_ahead(&fleet).await;
    fleet
        .tell("alter table herder.run alter created_at set default public.now()")
        .await;
    fleet.herder(&["upgrade"]).await.expect(0);
    for command in ["report", "status", "runs"] {
        let told = fleet.herder(&[command]).await.expect(0);
        assert!(!told.stdout.contains("10m"), "{told:?}");
    }
}

#[tokio::test]
async fn a_worker_whose_clock_is_ahead_gives_up_no_sooner_than_others() {
    let (fleet, door) = two_servers().await;
    ten_minutes_ahead(&fleet).await;
    fleet.herder(&["upgrade"]).await.expect(0);
    door.turn(Way::Shut);
    let worker = fleet.worker(&["--concurrency", "4"]);
    let tried = "select count(*) from herder.attempt where epoch = 3 and ended_at is not null";
    fleet
        .wait_until("a tenant of the dead one was tried three times", async || {
            fleet.ask::<i64>(tried).await > 0 || fleet.count("failed").await > 0
        })
        .await;
    assert_eq!(fleet.count("failed").await, 0, "{}", fleet.last_seen().await);
    door.turn(Way::Open);
    all_is_well(&fleet).await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_server_that_is_starting_up_is_waited_for_however_long_it_takes() {
    let (fleet, door) = two_servers().await;
    fleet.herder(&["upgrade"]).await.expect(0);
    door.turn(Way::Starting);
    let worker = fleet.worker(&["--concurrency", "4"]);
    fleet
        .wait_until("it was asked", async || tried_far(&fleet).await > 0)
        .await;
    for_ten_minutes(&fleet).await;
    let told =
        "select count(*) from herder.attempt where error ->> 'sqlstate' = '57P03' and result = 'snoozed'";
    fleet
        .wait_until("it has said so a few times", async || {
            fleet.ask::<i64>(told).await >= 5
        })
        .await;
    let spent = "select sum(attempts + failures)::bigint from herder.job where server = 'far'";
    assert_eq!(fleet.ask::<i64>(spent).await, 0);
    door.turn(Way::Open);
    all_is_well(&fleet).await;
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_role_at_its_limit_is_waited_for_however_long_it_takes() {
    let (fleet, door) = two_servers().await;
    let role = fleet.database("migrator");
    // A role that the limit holds for: no superuser.
    let make = format!(
        "create role {role} login connection limit 3;
         do $$ declare s text; begin
           for s in select nspname from pg_namespace where nspname ~ '^t[0-9]' loop
             execute format('alter schema %I owner to {role}; alter table %I.effects owner to {role}', s, s);
           end loop;
         end $$"
    );
    tell(&fleet.home, &make).await;
    let user_at_address = format!("{role}@{}", door.address());
    lead_far(&fleet, &user_at_address);
    fleet.herder(&["upgrade"]).await.expect(0);
    let url = format!("postgresql://{user_at_address}/{}", fleet.database("home"));
    let mut squatters = Vec::new();
    while squatters.len() < 3 {
        // What the inspection has left may linger for a moment.
        if let Ok(squatter) = PgConnection::connect(&url).await {
            squatters.push(squatter);
        }
    }
    let worker = fleet.worker(&["--concurrency", "4"]);
    fleet
        .wait_until("it was asked", async || tried_far(&fleet).await > 0)
        .await;
    for_ten_minutes(&fleet).await;
    let refused =
        "select count(*) from herder.attempt where error ->> 'sqlstate' = '53300' and result = 'snoozed'";
    fleet
        .wait_until("the role's limit has refused some", async || {
            fleet.ask::<i64>(refused).await >= 5
        })
        .await;
    let spent = "select sum(attempts + failures)::bigint from herder.job where server = 'far'";
    assert_eq!(fleet.ask::<i64>(spent).await, 0);
    for squatter in squatters {
        squatter.close().await.expect("an end");
    }
    all_is_well(&fleet).await;
    assert_eq!(worker.drain().await, Some(0));
    let drop = format!("reassign owned by {role} to postgres; drop role {role}");
    tell(&fleet.home, &drop).await;
}

/// A worker that is killed leaves slots on both.
#[tokio::test]
async fn a_silent_server_holds_back_no_slots_of_others() {
    let [first, second] = steps(2).try_into().expect("two");
    let (fleet, door) = two_servers_with(vec![first, second.gated()]).await;
    let gate = fleet.close_gate().await;
    let doomed = fleet.worker(&["--concurrency", "4"]);
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet.wait_at_gate(4).await;
    let servers = "select count(distinct server) from herder.slot where job_id is not null";
    assert_eq!(fleet.ask::<i64>(servers).await, 2);
    doomed.kill().await;
    door.turn(Way::Silent);
    let heir = fleet.worker(&["--name", "heir", "--concurrency", "4"]);
    heir.says("slots of lost attempts on `main`").await;
    // It takes five seconds to give up on the silent one. Nobody waited for that.
    let log = heir.log();
    assert!(!log.contains("Cannot reclaim slots on `far`"), "{log}");
    heir.says("Cannot reclaim slots on `far`").await;
    gate.open().await;
    door.turn(Way::Open);
    all_is_well(&fleet).await;
    assert_eq!(heir.drain().await, Some(0));
}

/// Its slots are nobody's for ever, if only that database can tell that their sessions are gone.
#[tokio::test]
async fn a_database_that_was_dropped_takes_no_slot_along() {
    let fleet = Setup::databases(1)
        .migrations(Tool::Sql, steps(1))
        .set("servers.main.budget", 2)
        .start()
        .await;
    let database = fleet.tenants[0].database.clone().expect("a database");
    let theirs = fleet.pool(&database);
    let mut held = theirs.begin().await.expect("a transaction");
    sqlx::raw_sql("lock table effects")
        .execute(&mut *held)
        .await
        .expect("a lock");
    let doomed = fleet.worker(&[]);
    fleet.herder(&["upgrade"]).await.expect(0);
    let waits = format!(
        "select count(*) from pg_stat_activity
         where datname = '{database}' and application_name like 'herder/%' and wait_event_type = 'Lock'"
    );
    fleet
        .wait_until("the migration waits for the table", async || {
            ask::<i64>(&fleet.home, &waits).await == 1
        })
        .await;
    doomed.kill().await;
    tell(&fleet.home, &format!("drop database {database} with (force)")).await;
    let heir = fleet.worker(&["--name", "heir"]);
    heir.says("Reclaimed 1 slots").await;
    assert_eq!(fleet.over().await, "failed", "{}", fleet.last_seen().await);
    let taken = "select count(*) from herder.slot where worker is not null";
    fleet
        .wait_until("no slot is taken", async || fleet.ask::<i64>(taken).await == 0)
        .await;
    assert_eq!(heir.drain().await, Some(0));
}

#[tokio::test]
async fn a_worker_says_whose_tenants_it_leaves_alone() {
    let fleet = Setup::schemas(1).start().await;
    fleet.herder(&["upgrade"]).await.expect(0);
    fleet.configure(|config| {
        let servers = config["servers"].as_table_mut().expect("servers");
        let main = servers.remove("main").expect("a server");
        servers.insert("other".into(), main);
    });
    let worker = fleet.worker(&[]);
    worker
        .says("Tenants are waiting on server `main`, which is not in this worker's config")
        .await;
    assert_eq!(fleet.count("ready").await, 1);
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn whoever_waits_for_a_run_that_no_worker_takes_is_told_why() {
    let (fleet, door) = two_servers().await;
    fleet.configure(|config| {
        let servers = config["servers"].as_table_mut().expect("servers");
        servers.remove("far").expect("a far server");
    });
    let worker = fleet.worker(&[]);
    fleet
        .wait_until("it has signed on", async || {
            fleet.ask::<i64>("select count(*) from herder.worker").await == 1
        })
        .await;
    lead_far(&fleet, &format!("postgres@{}", door.address()));
    let says = "no running worker has server `far` in its config";
    let wait = ["upgrade", "--wait", "--stall-timeout", "8s"];
    let waited = fleet.herder(&wait).await.expect(8);
    assert!(waited.stderr.contains(says), "{waited:?}");
    let status = fleet.herder(&["status"]).await.expect(0);
    assert!(status.stderr.contains(says), "{status:?}");
    fleet.herder(&["resume", "--local", "4"]).await.expect(0);
    all_is_well(&fleet).await;
    assert_eq!(worker.drain().await, Some(0));
}
