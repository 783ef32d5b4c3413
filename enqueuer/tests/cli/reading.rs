//! What programs are told: JSON of one shape, and exit codes.

use crate::fleet::Fleet;

#[test]
fn a_run_is_reported_to_programs() {
    let fleet = Fleet::new(&["a", "b", "c"]);
    assert_eq!(fleet.json(&["runs"])["runs"], serde_json::json!([]));
    let ran = fleet.herder(&["upgrade", "--to", "1", "--local", "2"]).ok();
    let id = ran.id();
    assert!(
        ran.stderr.contains("Summary") && ran.stderr.contains("3 tenants: 3 migrated"),
        "{ran:?}"
    );

    let runs = fleet.json(&["runs"]);
    let run = &runs["runs"][0];
    assert_eq!(run["id"], id.as_str());
    assert_eq!(
        (&run["direction"], &run["target"], &run["state"], &run["tenants"]),
        (&"upgrade".into(), &"1".into(), &"succeeded".into(), &3.into())
    );
    assert!(run["created_at"].is_string());

    let status = fleet.json(&["status", &id[..6]]);
    assert_eq!(status["run"]["id"], id.as_str());
    let counts = serde_json::json!({
        "waiting": 0, "ready": 0, "running": 0, "succeeded": 3, "failed": 0, "skipped": 0, "cancelled": 0
    });
    assert_eq!(status["counts"], counts);
    let job = &status["jobs"][0];
    assert_eq!(
        (&job["tenant"], &job["server"], &job["state"], &job["outcome"]),
        (
            &"t_a".into(),
            &"main".into(),
            &"succeeded".into(),
            &"migrated".into()
        )
    );
    assert_eq!(
        (&job["attempts"], &job["from"], &job["to"], &job["error"]),
        (
            &1.into(),
            &serde_json::Value::Null,
            &"1".into(),
            &serde_json::Value::Null
        )
    );
    assert_eq!(fleet.json(&["status", "--failed"])["jobs"], serde_json::json!([]));
    assert_eq!(fleet.json(&["report"])["outcomes"]["migrated"], 3);
    assert_eq!(fleet.json(&["watch"])["run"]["state"], "succeeded");

    let started = fleet.json(&["upgrade"]);
    assert!(
        started["run"].is_string() && started["state"].is_null(),
        "{started}"
    );
    fleet.herder(&["cancel", "--yes"]).ok().says("Cancelled run");
    fleet.herder(&["watch"]).code(6);
}

#[test]
fn tenants_are_told_apart_by_where_they_stand() {
    let fleet = Fleet::new(&["behind", "current", "never"]);
    fleet
        .herder(&["upgrade", "--tenant", "t_current", "--local", "1"])
        .ok();
    fleet
        .herder(&["upgrade", "--to", "1", "--tenant", "t_behind", "--local", "1"])
        .ok();
    fleet.tenants(
        "create schema t_strange; create table t_strange._sqlx_migrations (like t_current._sqlx_migrations);
         insert into t_strange._sqlx_migrations select 99, 'x', now(), true, '', 1",
    );
    let listed = fleet.json(&["tenants"]);
    assert_eq!(listed["tenants"].as_array().map(Vec::len), Some(4));
    assert_eq!(listed["tenants"][0]["status"], serde_json::Value::Null);

    let tenants = fleet.json(&["tenants", "--revisions"]);
    let counts = serde_json::json!({"current": 1, "behind": 1, "never_migrated": 1, "unknown": 1});
    assert_eq!(tenants["counts"], counts);
    let of = |n: usize| {
        (
            tenants["tenants"][n]["id"].as_str(),
            tenants["tenants"][n]["status"].as_str(),
        )
    };
    assert_eq!(of(0), (Some("t_behind"), Some("behind")));
    assert_eq!(of(3), (Some("t_strange"), Some("unknown")));
    let why = tenants["tenants"][3]["why"].as_str().unwrap_or_default();
    assert!(why.contains("`99`"), "{why}");

    fleet.herder(&["plan"]).ok();
    fleet.herder(&["plan", "--check"]).code(7);
    fleet
        .herder(&["plan", "--check", "--tenant", "t_current"])
        .code(0);
    let plan = fleet.json(&["plan"]);
    assert_eq!(
        (&plan["pending"], &plan["current"], &plan["unknown"][0]["tenant"]),
        (&2.into(), &1.into(), &"t_strange".into())
    );
    let down = fleet.json(&["plan", "--to", "base", "--tenant", "t_current"]);
    assert_eq!(down["direction"], "downgrade");
    assert_eq!(down["groups"][0]["pending"][0]["id"], "2");
}

#[test]
fn check_finds_what_is_wrong() {
    let fleet = Fleet::new(&["a"]);
    let report = fleet.json(&["check"]);
    assert_eq!(report["ok"], true, "{report}");
    fleet.herder(&["check"]).ok();
    // No tenant can go over it; once it is not the newest, those behind it can.
    fleet.migration(3, "insert into t values ('open)", "");
    let open = "0003_step.up.sql leaves a quote, a comment or a bracket open";
    let checked = fleet.herder(&["check"]).code(7);
    assert!(checked.stdout.contains(open), "{checked:?}");
    fleet.migration(4, "select 1", "");
    let checked = fleet.herder(&["check"]).ok();
    assert!(checked.stdout.contains(open), "{checked:?}");
    std::fs::remove_dir_all(fleet.path("migrations")).expect("the removal");
    fleet.herder(&["check"]).code(7);
}

/// `schemas` lists them all, and a role that may do nothing can read that list.
#[test]
fn check_finds_tenants_that_its_role_cannot_migrate() {
    let fleet = Fleet::new(&["a", "b", "c", "d", "e"]);
    fleet.herder(&["upgrade", "--tenant", "t_a", "--local", "1"]).ok();
    let number = fleet
        .url()
        .rsplit('_')
        .next()
        .map(str::to_owned)
        .expect("a number");
    fleet.tenants(&format!(
        "create role idler_{number} login; grant usage, create on schema t_e to idler_{number}"
    ));
    let config = std::fs::read_to_string(fleet.path("herder.toml")).expect("a config");
    let idle = config.replace(
        &fleet.url(),
        &fleet.url().replace("postgres@", &format!("idler_{number}@")),
    );
    assert_ne!(idle, config);
    std::fs::write(fleet.path("herder.toml"), idle).expect("a config");
    let report = fleet.herder(&["check", "--output-format", "json"]).code(7);
    let report: serde_json::Value = serde_json::from_str(&report.stdout).expect("JSON");
    let texts: Vec<&str> = report["checks"]
        .as_array()
        .expect("checks")
        .iter()
        .filter(|check| check["result"] == "problem")
        .filter_map(|check| check["text"].as_str())
        .collect();
    let [unread, closed] = texts[..] else {
        panic!("two problems in {report:#}");
    };
    assert!(
        unread.starts_with("1 of 5 tenants cannot be read: t_a: permission denied for schema t_a"),
        "{unread}"
    );
    assert_eq!(
        closed,
        format!("role `idler_{number}` lacks USAGE or CREATE on 4 schemas: t_a, t_b, t_c and 1 more")
    );
}

/// They are not live: there is no tool that could find another way.
#[test]
fn what_cannot_be_undone_is_told_before_it_is_tried() {
    let fleet = Fleet::new(&["a", "b"]);
    fleet.herder(&["upgrade", "--local", "2"]).ok();
    std::fs::remove_file(fleet.path("migrations/0001_step.down.sql")).expect("the removal");
    let down = ["--downgrade", "--to", "base"];
    let ran = fleet.herder(&[&["rehearse"], &down[..]].concat()).code(7);
    assert!(
        ran.stdout
            .contains("UNKNOWN t_a: revision 1 cannot be undone: it has no down migration"),
        "{ran:?}"
    );
    let plan = fleet.json(&[&["plan"], &down[..]].concat());
    assert_eq!(
        (&plan["pending"], &plan["groups"]),
        (&0.into(), &serde_json::json!([]))
    );
    assert_eq!(
        plan["unknown"][1]["hint"],
        "write a down migration for revision 1"
    );
    fleet.herder(&[&["plan", "--check"], &down[..]].concat()).code(7);
    fleet.herder(&["rehearse", "--downgrade", "--to", "1"]).ok();
}

#[test]
fn whoever_stops_reading_hears_no_complaint() {
    let fleet = Fleet::new(&["a"]);
    fleet.herder(&["upgrade", "--local", "1"]).ok();
    for command in ["status", "runs", "tenants", "completions bash", "watch"] {
        let herder = env!("CARGO_BIN_EXE_herder");
        let output = std::process::Command::new("sh")
            .args(["-c", &format!("{herder} {command} | true")])
            .current_dir(fleet.dir.path())
            .output()
            .expect("a shell");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{command}");
    }
    // What a command found, it says by its code to whoever asked for that.
    fleet.migration(3, "create table c (x int)", "drop table c");
    let herder = env!("CARGO_BIN_EXE_herder");
    for (command, code) in [("plan --check", 7), ("plan", 0), ("watch", 0)] {
        let script = format!(
            "(sleep 0.2; {herder} {command}; echo $? >code) | true; while ! [ -s code ]; do sleep 0.05; done; cat code; rm code"
        );
        let output = std::process::Command::new("sh")
            .args(["-c", &script])
            .current_dir(fleet.dir.path())
            .output()
            .expect("a shell");
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            format!("{code}\n"),
            "{command}"
        );
    }
}
