//! Every command ends with the code that says what became of it.

use rustix::process::Signal;

use crate::fleet::{Setup, Tool, steps, tell};

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
        if what == "a control database that is down" {
            let args = ["check", "--config", "wrong.toml", "--output-format", "json"];
            let report = fleet.herder(&args).await.expect(3).json();
            let result = |name: &str| {
                let checks = report["checks"].as_array().expect("checks");
                let check = checks.iter().find(|check| check["name"] == name);
                check.map(|check| check["result"].as_str().expect("a result").to_owned())
            };
            assert_eq!(result("control database").as_deref(), Some("problem"), "{report}");
            assert_eq!(result("tenants").as_deref(), Some("ok"), "{report}");
            assert_eq!(result("server main"), None, "{report}");
        }
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

/// The signal comes too early to stop the waiting, and too late to stop the writing.
#[tokio::test]
async fn ctrl_c_while_a_run_is_written_holds_for_what_follows() {
    let fleet = Setup::schemas(2).start().await;
    for args in [&["upgrade", "--wait"][..], &["upgrade", "--local", "1"]] {
        let lock = fleet.lock("herder.run", "exclusive").await;
        let herder = fleet.start_herder(args);
        fleet.wait_at_lock("herder.run").await;
        herder.signal(Signal::INT);
        lock.rollback().await.expect("a rollback");
        let ended = herder.end().await.expect(130);
        assert!(ended.stdout.trim().len() == 36, "{}", ended.all());
        fleet.herder(&["cancel", "--yes"]).await;
    }
}

#[tokio::test]
async fn a_control_database_that_takes_no_changes_says_why_that_may_be() {
    let fleet = Setup::schemas(1).start().await;
    let control = herder::session::quote(&fleet.database("control"));
    let set = format!("alter database {control} set default_transaction_read_only = on");
    tell(&fleet.home, &set).await;
    let refused = fleet.herder(&["upgrade"]).await.expect(3).all();
    assert!(
        refused.contains("hint: it takes no changes now: a standby"),
        "{refused}"
    );
}

/// Each tenant would be tried five times in vain.
#[tokio::test]
async fn a_check_finds_a_role_that_may_change_nothing() {
    let fleet = Setup::schemas(1).migrations(Tool::Sql, steps(1)).start().await;
    let says = async || {
        fleet
            .herder(&["check"])
            .await
            .all()
            .contains("take no changes unless")
    };
    assert!(!says().await);
    let home = herder::session::quote(&fleet.database("home"));
    let set = format!("alter database {home} set default_transaction_read_only = on");
    tell(&fleet.home, &set).await;
    assert!(says().await);
}
