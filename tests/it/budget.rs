//! However many workers there are, a server never sees more connections than its budget.

use herder::throwaway::Settings;
use rustix::process::Signal;
use sqlx::{Connection, PgConnection, Postgres, Transaction};

use crate::fleet::{Cluster, Fleet, Setup, Tenant, Tool, ask, steps, tell};
use crate::sampler::Sampler;

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
    fleet
        .wait_until("all slots are given back", async || fleet.slots().await == 0)
        .await;
    assert_eq!(worker.drain().await, Some(0));
}

/// `herder budget --output-format json`, for the one server.
async fn budget(fleet: &Fleet, args: &[&str]) -> serde_json::Value {
    let all = [&["budget", "--output-format", "json"], args].concat();
    fleet.herder(&all).await.expect(0).json()["servers"][0].clone()
}

#[tokio::test]
async fn a_lowered_budget_drains_and_a_raised_one_counts_at_once() {
    let cluster = Cluster::own(Settings::default()).await;
    let [first, second] = steps(2).try_into().expect("two");
    let fleet = Setup::schemas(60)
        .migrations(Tool::Sql, vec![first, second.gated()])
        .on(&cluster)
        .set("servers.main.budget", 8)
        .start()
        .await;
    let mut gate = fleet.close_gate().await;
    let worker = fleet.worker(&["--concurrency", "16", "--listen", "127.0.0.1:0"]);
    fleet.herder(&["upgrade"]).await.expect(0);
    // One of the eight is for inspection.
    fleet.wait_at_gate(7).await;

    let output = fleet.herder(&["budget", "main", "--set", "2"]).await.expect(0);
    assert!(
        output
            .stderr
            .contains("Budget of `main` set to 2 (was 8); `--set config` restores the configured value"),
        "{output:?}"
    );
    assert!(
        output
            .stderr
            .contains("5 connections in use above the new budget"),
        "{output:?}"
    );
    let shown = budget(&fleet, &[]).await;
    assert_eq!(
        (&shown["budget"], &shown["configured"]),
        (&2.into(), &8.into()),
        "{shown:#}"
    );
    assert_eq!(
        (&shown["in_use"], &shown["above"]),
        (&7.into(), &5.into()),
        "{shown:#}"
    );
    assert_eq!(
        (&shown["overridden"], &shown["waiting"]),
        (&2.into(), &53.into()),
        "{shown:#}"
    );
    assert_eq!(
        (&shown["reserved"], &shown["suspect"]),
        (&3.into(), &0.into()),
        "{shown:#}"
    );
    // Ours here: the gate, and the pool that looks on.
    assert!(shown["not_ours"].as_i64() >= Some(1), "{shown:#}");
    // The command's own may linger for a moment.
    fleet
        .wait_until("nobody was ended", async || fleet.sessions().await == 7)
        .await;

    let next = async |gate: crate::fleet::Gate| {
        gate.open().await;
        fleet.close_gate().await
    };
    gate = next(gate).await;
    fleet
        .wait_until("what was above has gone", async || fleet.sessions().await <= 2)
        .await;
    fleet.wait_at_gate(2).await;
    let sampler = Sampler::start(cluster.url("postgres"));
    let done = fleet.count("succeeded").await;
    while fleet.count("succeeded").await < done + 8 {
        gate = next(gate).await;
        fleet.wait_at_gate(2).await;
    }
    let seen = sampler.end();
    assert_eq!(seen.most.len(), 2, "{seen:#?}");
    fleet
        .wait_until("the slots above have gone, too", async || {
            fleet.slots().await == 2
        })
        .await;
    fleet
        .wait_until("the metrics have it", async || {
            worker.metric("herder_connections_budget").await == 2.0
                && worker.metric("herder_connections_in_use").await == 2.0
        })
        .await;

    let shown = budget(&fleet, &["--set", "6"]).await;
    assert_eq!(
        (&shown["budget"], &shown["above"]),
        (&6.into(), &0.into()),
        "{shown:#}"
    );
    fleet.wait_at_gate(5).await;
    gate.open().await;
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;

    // The next run reads the config, and leaves what was set.
    fleet.herder(&["upgrade"]).await.expect(0);
    assert_eq!(budget(&fleet, &[]).await["budget"], 6);
    let output = fleet.herder(&["budget", "--set", "config"]).await.expect(0);
    assert!(
        output
            .stderr
            .contains("Budget of `main` restored to the configured 8 (was 6)"),
        "{output:?}"
    );
    assert_eq!(budget(&fleet, &[]).await["overridden"], serde_json::Value::Null);
    assert_eq!(worker.drain().await, Some(0));
}

#[tokio::test]
async fn a_budget_below_what_one_job_needs_is_refused() {
    let fleet = Setup::schemas(1)
        .migrations(Tool::Command, steps(1))
        .start()
        .await;
    let output = fleet.herder(&["budget"]).await.expect(0);
    assert!(
        output.stderr.contains("No run has been started yet"),
        "{output:?}"
    );
    let output = fleet.herder(&["budget", "--set", "4"]).await.expect(2);
    assert!(
        output.stderr.contains("no server has a budget to set"),
        "{output:?}"
    );
    fleet.herder(&["upgrade"]).await.expect(0);
    let output = fleet.herder(&["budget", "--set", "1"]).await.expect(2);
    assert!(
        output.stderr.contains("one job needs 2 connections"),
        "{output:?}"
    );
    let output = fleet.herder(&["budget", "elsewhere"]).await.expect(2);
    assert!(
        output.stderr.contains("there is no server `elsewhere`"),
        "{output:?}"
    );
    fleet.herder(&["budget", "--set", "2"]).await.expect(0);
}

/// Alembic itself needs a second connection, and the budget was made smaller after its run was made.
#[tokio::test]
async fn a_job_that_is_wider_than_the_budget_holds_up_nobody() {
    let setup = Setup::schemas(2).plans(steps(2)).set("servers.main.budget", 2);
    let fleet = setup.set("runner.plan", "never").start().await;
    fleet.herder(&["upgrade", "--tenant", "t001"]).await.expect(0);
    fleet.configure(|config| {
        config["runner"]["plan"] = "auto".into();
        config["servers"]["main"]["budget"] = 1.into();
    });
    let worker = fleet.worker(&[]);
    fleet
        .herder(&["upgrade", "--tenant", "t002", "--wait"])
        .await
        .expect(0);
    assert_eq!(fleet.count("succeeded").await, 1);
    fleet.herder(&["budget", "--set", "2"]).await.expect(0);
    fleet.succeeded(2).await;
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
    assert_eq!(worker.drain().await, Some(0));
}

/// A long run takes a while to write. Meanwhile each server's service connection goes from hand to hand.
#[tokio::test]
async fn nobody_waits_for_a_run_that_is_being_written() {
    let fleet = Setup::schemas(3).set("servers.main.budget", 5).start().await;
    fleet.herder(&["upgrade", "--local", "2"]).await.expect(0);
    // So that the server is written anew, too.
    fleet.configure(|config| config["servers"]["main"]["budget"] = 6.into());
    let deliveries = fleet.lock("apalis.jobs", "share").await;
    let enqueuer = fleet.start_herder(&["downgrade", "--to", "base", "--yes"]);
    // Its jobs are written, and not committed.
    fleet.wait_at_lock("apalis.jobs").await;
    fleet.herder(&["tenants", "--revisions"]).await.expect(0);
    deliveries.rollback().await.expect("a rollback");
    enqueuer.end().await.expect(0);
    assert_eq!(budget(&fleet, &[]).await["budget"], 6);
}

fn checks(report: &serde_json::Value) -> Vec<(String, String)> {
    let text = |check: &serde_json::Value, key: &str| check[key].as_str().unwrap_or_default().to_owned();
    let of_server = |check: &&serde_json::Value| check["name"] == "server main";
    let checks = report["checks"]
        .as_array()
        .expect("checks")
        .iter()
        .filter(of_server);
    checks
        .map(|check| (text(check, "result"), text(check, "text")))
        .collect()
}

/// What the DBA is to run.
fn sql(report: &serde_json::Value) -> String {
    let checks = report["checks"].as_array().expect("checks");
    let sql = checks.iter().find_map(|check| check["sql"].as_str());
    sql.expect("SQL").to_owned()
}

#[tokio::test]
async fn the_role_that_check_prints_is_enough_and_is_held_to_the_budget() {
    let cluster = Cluster::own(Settings::default()).await;
    let fleet = Setup::schemas(12)
        .migrations(Tool::Sql, steps(2))
        .on(&cluster)
        .set("servers.main.budget", 4)
        .start()
        .await;
    let owner = "create role app_owner; do $$ declare s text; begin
                   for s in select nspname from pg_namespace where nspname ~ '^t[0-9]' loop
                     execute format('alter schema %I owner to app_owner; alter table %I.effects owner to app_owner', s, s);
                   end loop;
                 end $$";
    tell(&fleet.home, owner).await;
    let check = async || fleet.herder(&["check", "--output-format", "json"]).await;
    let report = check().await.expect(0).json();
    let found = checks(&report);
    assert_eq!(found[0].0, "ok", "{report:#}");
    assert!(found[0].1.contains("; budget 4"), "{report:#}");
    assert!(
        found[1].1.contains("role `postgres` is a superuser"),
        "{report:#}"
    );
    tell(&fleet.home, &sql(&report)).await;

    let url = cluster
        .url(&fleet.database("home"))
        .replace("postgres@", "herder_migrator@");
    fleet.configure(|config| config["servers"]["main"]["url"] = url.clone().into());
    let report = check().await.expect(0).json();
    assert_eq!(checks(&report).len(), 1, "{report:#}");
    assert!(
        checks(&report)[0]
            .1
            .contains("role `herder_migrator` has a limit of 4"),
        "{report:#}"
    );
    assert!(!report.to_string().contains("CREATE ROLE"), "{report:#}");
    let sampler = Sampler::start(cluster.url("postgres"));
    fleet.herder(&["upgrade", "--local", "8"]).await.expect(0);
    let seen = sampler.end();
    assert!(seen.most.len() <= 4, "{seen:#?}");
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;

    // Somebody else as that role takes from the same limit.
    let other = PgConnection::connect(&url).await.expect("a connection");
    let report = check().await.expect(7).json();
    let found = checks(&report);
    assert_eq!(found[0].0, "problem", "{report:#}");
    assert!(
        found[1]
            .1
            .contains("role `herder_migrator` is not Herder's alone: 1 session"),
        "{report:#}"
    );
    other.close().await.expect("an end");
}

/// Since PostgreSQL 15 that schema belongs to `pg_database_owner`, which nobody can be made a member of.
#[tokio::test]
async fn the_role_that_check_prints_is_enough_for_tenants_in_public() {
    let cluster = Cluster::own(Settings::default()).await;
    let everybody = Tenant {
        isolation: Some("shared"),
        ..Tenant::schema("everybody", "public")
    };
    let [first, second] = steps(2).try_into().expect("two");
    let alters = second.then("alter table effects add column more int; create table made (x int)");
    let fleet = Setup::new(vec![everybody])
        .migrations(Tool::Sql, vec![first, alters])
        .on(&cluster)
        .set("servers.main.budget", 4)
        .start()
        .await;
    tell(
        &fleet.home,
        "create role app_owner; alter table effects owner to app_owner",
    )
    .await;
    let check = async || fleet.herder(&["check", "--output-format", "json"]).await;
    let report = check().await.expect(0).json();
    tell(&fleet.home, &sql(&report)).await;
    fleet.configure(|config| {
        let url = cluster.url(&fleet.database("home"));
        config["servers"]["main"]["url"] = url.replace("postgres@", "herder_migrator@").into();
    });
    let report = check().await.expect(0).json();
    assert!(!report.to_string().contains("GRANT"), "{report:#}");
    fleet.herder(&["upgrade", "--local", "1"]).await.expect(0);
    fleet.assert_effects(&["up 20250101", "up 20250102"]).await;
}

/// Holds up whoever reads the ledger of the first tenant, until the transaction ends.
async fn unreadable(fleet: &Fleet) -> Transaction<'static, Postgres> {
    let mut tx = fleet.home.begin().await.expect("a transaction");
    sqlx::raw_sql("lock table t001._sqlx_migrations in access exclusive mode")
        .execute(&mut *tx)
        .await
        .expect("a lock");
    tx
}

/// Waits for an inspection that is held up, and says which session that is.
async fn inspection(fleet: &Fleet) -> i32 {
    let held_up = "select coalesce(max(pid), 0) from pg_stat_activity
                   where application_name like 'herder/inspect%' and datname = current_database()
                     and wait_event_type = 'Lock'";
    fleet
        .wait_until("an inspection is held up", async || {
            ask::<i32>(&fleet.home, held_up).await != 0
        })
        .await;
    ask(&fleet.home, held_up).await
}

async fn is_there(fleet: &Fleet, session: i32) -> bool {
    ask(
        &fleet.home,
        &format!("select exists (select from pg_stat_activity where pid = {session})"),
    )
    .await
}

/// Two fleets, i.e. two control databases, with one role on one server.
#[tokio::test]
async fn a_lost_inspection_is_ended_by_its_own_fleet_which_leaves_that_of_another_alone() {
    let (fleet, other) = (Setup::schemas(2).start().await, Setup::schemas(2).start().await);
    for fleet in [&fleet, &other] {
        fleet.herder(&["upgrade", "--local", "1"]).await.expect(0);
    }
    let (lock, lock_of_other) = (unreadable(&fleet).await, unreadable(&other).await);
    let lost = fleet.start_herder(&["plan"]);
    let plan_of_other = other.start_herder(&["plan"]);
    let (session, session_of_other) = (inspection(&fleet).await, inspection(&other).await);
    lost.signal(Signal::STOP);
    fleet.herder(&["plan", "--tenant", "t002"]).await.expect(0);
    assert!(!is_there(&fleet, session).await);
    assert!(is_there(&other, session_of_other).await);
    lost.kill().await;
    drop((lock, lock_of_other));
    let plan = plan_of_other.end().await.expect(0);
    assert!(plan.stdout.contains("2 current, 0 unknown"), "{}", plan.all());
}

#[tokio::test]
async fn check_refuses_a_budget_that_the_server_has_no_room_for() {
    let settings = Settings::default()
        .parameter("max_connections", 20)
        .parameter("max_wal_senders", 0)
        .parameter("max_locks_per_transaction", 10);
    let cluster = Cluster::own(settings).await;
    let many: String = (0..100).map(|n| format!("create table t{n} (x int); ")).collect();
    let [step] = steps(1).try_into().expect("one");
    let fleet = Setup::schemas(2)
        .migrations(Tool::Sql, vec![step.then(&many)])
        .on(&cluster)
        .set("servers.main.budget", 18)
        .start()
        .await;
    let output = fleet.herder(&["check"]).await.expect(7);
    assert!(
        output.stdout.contains("max_connections 20 - 3 reserved - "),
        "{output:?}"
    );
    assert!(
        output.stdout.contains("lower [servers.main] `budget`"),
        "{output:?}"
    );
    assert!(
        output.stdout.contains("the lock table holds 200 locks"),
        "{output:?}"
    );
    fleet.configure(|config| config["servers"]["main"]["budget"] = 5.into());
    fleet.herder(&["check"]).await.expect(0);
}

/// What a server gets where the config says nothing: half of what it does not reserve.
async fn share(fleet: &Fleet) -> i32 {
    let half = "select (current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int) / 2";
    ask(&fleet.home, half).await
}

async fn row_of_main(fleet: &Fleet) -> (i32, String) {
    let budget = "select budget from herder.server where name = 'main'";
    let address = "select address from herder.server where name = 'main'";
    (fleet.ask(budget).await, fleet.ask(address).await)
}

#[tokio::test]
async fn a_first_tenant_that_leads_elsewhere_sets_no_budget() {
    let fleet = Setup::schemas(3)
        .set("servers.main.budget", 40)
        .set("servers.us.url", "postgresql://postgres@127.0.0.1:1/postgres")
        .set(
            "tenants.query",
            "select id, schema, url, 'main' as server from tenants order by n",
        )
        .start()
        .await;
    fleet.herder(&["upgrade", "--local", "1"]).await.expect(0);
    let before = row_of_main(&fleet).await;
    assert_eq!(before.0, 40);
    fleet
        .tell("update tenants set url = 'postgresql://postgres@127.0.0.1:1/postgres' where id = 't001'")
        .await;
    fleet.herder(&["upgrade"]).await.expect(0);
    assert_eq!(row_of_main(&fleet).await, before);
    // Nobody at all has a way there that makes sense.
    fleet.herder(&["cancel", "--yes"]).await.expect(0);
    fleet.herder(&["upgrade", "--tenant", "t001"]).await.expect(0);
    assert_eq!(row_of_main(&fleet).await, before);
}

#[tokio::test]
async fn a_first_tenant_that_is_let_in_nowhere_sets_no_budget() {
    let mut fleet = Setup::databases(2).start().await;
    fleet.tenants[0].url = Some(
        fleet
            .cluster
            .url("postgres")
            .replace("postgres@", "nobody_of_that_name@"),
    );
    fleet.tell("delete from tenants").await;
    fleet.list_tenants().await;
    let upgrade = fleet.herder(&["upgrade"]).await.expect(0);
    assert_eq!(row_of_main(&fleet).await.0, share(&fleet).await, "{upgrade:?}");
    assert!(!upgrade.stderr.contains("cannot be asked now"), "{upgrade:?}");
}

#[tokio::test]
async fn a_first_tenant_that_was_dropped_sets_no_budget() {
    let fleet = Setup::databases(2).start().await;
    // Its own database will not do, either.
    fleet.configure(|config| {
        config["servers"]["main"]["url"] = fleet.cluster.url(&fleet.database("nowhere")).into();
    });
    let first = fleet.tenants[0].database.as_deref().expect("a database");
    tell(&fleet.home, &format!("drop database {first}")).await;
    let upgrade = fleet.herder(&["upgrade"]).await.expect(0);
    assert_eq!(row_of_main(&fleet).await.0, share(&fleet).await, "{upgrade:?}");
    assert!(!upgrade.stderr.contains("cannot be asked now"), "{upgrade:?}");
}
