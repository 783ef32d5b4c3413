//! Where the budget has room for a plan's connection, and not for the tool's.

use super::*;

/// With room for one connection a plan is all that can be done.
#[tokio::test]
async fn a_tenant_that_needs_the_tool_where_there_is_no_room_for_it_fails_and_says_so() {
    let setup = Setup::databases(2).plans(steps(1)).set("servers.main.budget", 1);
    let fleet = setup.start().await;
    let zone = format!(
        "alter database {} set timezone = 'Asia/Tokyo'",
        fleet.database("t002")
    );
    tell(&fleet.home, &zone).await;
    fleet.herder(&["upgrade", "--local", "1"]).await.expect(4);
    let error = &fleet.job("t002").await["error"];
    let message = error["message"].as_str().unwrap_or_default();
    assert!(message.contains("server `main` has 1 in its budget"), "{error:#}");
    assert_eq!(fleet.count("succeeded").await, 1);
}

/// Mended migrations go by the tool. A run that has no room for that is not made to wait for it.
#[tokio::test]
async fn a_retry_that_needs_the_tool_where_there_is_no_room_for_it_is_refused() {
    let [first, second] = steps(2).try_into().expect("two");
    let broken = second.clone().then("select 1 / 0 from locked");
    let first = first
        .then("create table locked (n int)")
        .then("insert into locked values (1)");
    let setup = Setup::schemas(1).plans(vec![first.clone(), broken]);
    let fleet = setup.set("servers.main.budget", 1).start().await;
    // Nothing is read in a scratch schema that would fail there.
    fleet.configure(|config| config["runner"]["plan"] = "always".into());
    fleet.herder(&["upgrade", "--local", "1"]).await.expect(4);
    fleet.project().rewrite(&[first, second]);
    let said = fleet.herder(&["retry", "--local", "1"]).await.expect(3).all();
    assert!(
        said.contains("the budget of server `main` is 1") && said.contains("needs 2"),
        "{said}"
    );
    assert_eq!(fleet.state().await, "failed");
    fleet.herder(&["budget", "main", "--set", "2"]).await.expect(0);
    fleet.herder(&["retry", "--local", "1"]).await.expect(0);
}

#[tokio::test]
async fn the_budget_that_a_person_set_decides_whether_a_run_can_be_made() {
    let setup = Setup::schemas(1).plans(steps(2)).set("servers.main.budget", 1);
    let fleet = setup.start().await;
    fleet.herder(&["upgrade", "--local", "1"]).await.expect(0);
    fleet.configure(|config| config["runner"]["plan"] = "never".into());
    let down = ["downgrade", "--to", "-1", "--yes", "--local", "1"];
    for (set, configured, exit) in [("2", 1, 0), ("1", 5, 3)] {
        fleet.herder(&["budget", "main", "--set", set]).await.expect(0);
        fleet.configure(|config| config["servers"]["main"]["budget"] = configured.into());
        fleet.herder(&down).await.expect(exit);
    }
}
