//! Each runner brings tenants of each isolation up, down and to the base, and nothing anywhere else.

use std::time::{Duration, Instant};

use crate::fleet::{Fleet, Setup, Tool, steps};

/// Up, down and to the base, over each kind of target.
async fn goes_everywhere(tool: Tool, setup: Setup) {
    takes_everywhere(&setup.migrations(tool, steps(4)).start().await).await;
}

async fn takes_everywhere(fleet: &Fleet) {
    let worker = fleet.worker(&["--concurrency", "4"]);
    for (args, at) in [
        (&["upgrade", "--to", "+1"][..], Some("20250101")),
        (&["upgrade", "--to", "202502"], Some("20250203")),
        (&["downgrade", "--to", "-1", "--yes"], Some("20250102")),
        (&["upgrade"], Some("20250304")),
        (&["downgrade", "--to", "20250203", "--yes"], Some("20250203")),
        (&["upgrade", "--to", "head"], Some("20250304")),
        (&["downgrade", "--to", "base", "--yes"], None),
    ] {
        fleet.herder(&[args, &["--wait"]].concat()).await.expect(0);
        let status = fleet.status().await;
        for job in status["jobs"].as_array().expect("jobs") {
            assert_eq!(job["outcome"], "migrated", "{status:#}");
            assert_eq!(job["attempts"], 1, "{status:#}");
            assert_eq!(job["to"].as_str(), at, "{status:#}");
        }
        // Once in the middle, and once at the end: each look costs as much as a run.
        if at.is_none_or(|at| at == "20250102") {
            stands_at(fleet, at).await;
        }
    }
    fleet
        .assert_effects(&[
            "up 20250101",
            "up 20250102",
            "up 20250203",
            "down 20250203",
            "up 20250203",
            "up 20250304",
            "down 20250304",
            "up 20250304",
            "down 20250304",
            "down 20250203",
            "down 20250102",
            "down 20250101",
        ])
        .await;
    if fleet.tenants[0].schema.is_some() {
        fleet.assert_public_untouched().await;
    }
    assert_eq!(worker.drain().await, Some(0));
}

/// The same for Alembic by plan.
async fn plans_go_everywhere(setup: Setup) {
    let fleet = setup.plans(steps(4)).start().await;
    takes_everywhere(&fleet).await;
    let live = "select count(*) from herder.job where plan_id is null";
    assert_eq!(fleet.ask::<i64>(live).await, 0, "{}", fleet.last_seen().await);
}

#[tokio::test]
async fn alembics_plans_take_schemas_everywhere() {
    plans_go_everywhere(Setup::schemas(5)).await;
}

#[tokio::test]
async fn alembics_plans_take_databases_everywhere() {
    plans_go_everywhere(Setup::databases(3)).await;
}

#[tokio::test]
async fn alembics_plans_take_a_shared_schema_everywhere() {
    plans_go_everywhere(Setup::shared(3)).await;
}

/// By their own ledgers, as `herder tenants --revisions` reads them.
async fn stands_at(fleet: &Fleet, revision: Option<&str>) {
    let output = fleet
        .herder(&["tenants", "--revisions", "--output-format", "json"])
        .await
        .expect(0);
    let listed = output.json();
    for tenant in listed["tenants"].as_array().expect("tenants") {
        assert_eq!(tenant["revision"].as_str(), revision, "{listed:#}");
    }
}

/// The same claim for each runner and isolation.
macro_rules! everywhere {
    ($($name:ident: $tool:ident, $setup:expr;)+) => {$(
        #[tokio::test]
        async fn $name() {
            goes_everywhere(Tool::$tool, $setup).await;
        }
    )+};
}

everywhere! {
    sql_takes_schemas_everywhere: Sql, Setup::schemas(5);
    sql_takes_databases_everywhere: Sql, Setup::databases(3);
    sql_takes_a_shared_schema_everywhere: Sql, Setup::shared(3);
    alembic_takes_schemas_everywhere: Alembic, Setup::schemas(5);
    alembic_takes_databases_everywhere: Alembic, Setup::databases(3);
    alembic_takes_a_shared_schema_everywhere: Alembic, Setup::shared(3);
    a_command_takes_schemas_everywhere: Command, Setup::schemas(3);
    a_command_takes_databases_everywhere: Command, Setup::databases(3);
    a_command_takes_a_shared_schema_everywhere: Command, Setup::shared(3);
}

/// The project of `examples/alembic-saas`, as far up as it goes, and all the way down.
async fn alembic_saas_goes_up_and_down(ini: &str, setup: Setup) {
    let fleet = setup.alembic_saas(ini).start().await;
    let local = ["--local", "4"];
    fleet.herder(&[&["upgrade"], &local[..]].concat()).await.expect(0);
    let at = fleet.status().await["jobs"][0]["to"].clone();
    stands_at(&fleet, at.as_str()).await;
    fleet
        .herder(&[&["downgrade", "--to", "base", "--yes"], &local[..]].concat())
        .await
        .expect(0);
    stands_at(&fleet, None).await;
    if fleet.tenants[0].schema.is_some() {
        fleet.assert_public_untouched().await;
    }
}

#[tokio::test]
async fn alembic_saas_goes_up_and_down_with_an_asynchronous_driver() {
    alembic_saas_goes_up_and_down("alembic_schema.ini", Setup::schemas(4)).await;
}

#[tokio::test]
async fn alembic_saas_goes_up_and_down_with_a_synchronous_driver() {
    alembic_saas_goes_up_and_down("alembic_sync.ini", Setup::schemas(4)).await;
}

#[tokio::test]
async fn alembic_saas_goes_up_and_down_in_databases() {
    alembic_saas_goes_up_and_down("alembic_database.ini", Setup::databases(3)).await;
}

#[tokio::test]
async fn a_second_upgrade_is_quick_and_makes_no_delivery() {
    let fleet = Setup::schemas(100).start().await;
    let worker = fleet.worker(&[]);
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    let deliveries = "select count(*) from apalis.jobs";
    let before: i64 = fleet.ask(deliveries).await;
    let start = Instant::now();
    fleet.herder(&["upgrade", "--wait"]).await.expect(0);
    let took = start.elapsed();
    assert_eq!(fleet.ask::<i64>(deliveries).await, before);
    assert_eq!(fleet.state().await, "succeeded");
    let outcomes: i64 = fleet
        .ask("select count(*) from herder.job where outcome = 'already_current'")
        .await;
    assert_eq!(outcomes, 100);
    assert!(took < Duration::from_secs(20), "{took:?}");
    fleet.assert_effects(&["up 20250101"]).await;
    assert_eq!(worker.drain().await, Some(0));
}
