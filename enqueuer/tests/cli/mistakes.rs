//! Mistakes at the command line and in the config: each is refused before it does anything, in words that help.

use serde_json::Value;

use crate::fleet::{Fleet, command};

/// What was typed, the exit code, and words that are said.
type Mistake<'a> = (&'a [&'a str], i32, &'a str);

#[track_caller]
fn refused(fleet: &Fleet, mistakes: &[Mistake<'_>]) {
    let mut accepted = Vec::new();
    for (args, code, words) in mistakes {
        let ran = fleet.herder(args);
        let text = ran.stderr.split_whitespace().collect::<Vec<_>>().join(" ");
        if ran.code != Some(*code) || !text.contains(words) {
            accepted.push(format!("{args:?}: no {code} with `{words}` in {ran:?}"));
        }
    }
    assert!(accepted.is_empty(), "{}", accepted.join("\n"));
}

#[test]
fn bad_arguments_do_nothing() {
    let fleet = Fleet::new(&["a", "b"]);
    fleet.herder(&["upgrade", "--to", "1"]).ok();
    refused(
        &fleet,
        &[
            (
                &["budget", "main", "--set", "262144"],
                2,
                "must be at most 262143",
            ),
            (
                &["budget", "main", "--set", "9999999999"],
                2,
                "must be at most 262143",
            ),
            (&["budget", "main", "--set", "-1"], 2, ""),
            (&["budget", "main", "--set=-1"], 2, "must be at least 1"),
            (&["cancel", "--yes", "--", "-"], 2, "`-` is not a run"),
            (&["cancel", "--yes", "--", "--"], 2, "`--` is not a run"),
            (
                &["upgrade", "--wait", "--stall-timeout", "0s"],
                2,
                "must be more than 0s",
            ),
            (&["upgrade", "--stall-timeout", "5s"], 2, "--queue"),
            (&["resume", "--stall-timeout", "5s"], 2, "--local"),
            (
                &["prune", "--older-than", "999999999999d", "--yes"],
                2,
                "at most 1000 years",
            ),
            (
                &["upgrade", "--canary", "101%"],
                2,
                "`101%` is not between 0% and 100%",
            ),
            (
                &["upgrade", "--failure-limit", "4294967296"],
                2,
                "`4294967296` is not between 0 and 4294967295",
            ),
            (&["tenants", "--to", "77"], 2, "--revisions"),
            (
                &["tenants", "--revisions", "--to", "base"],
                2,
                "`base` is a downgrade target",
            ),
            (&["plan", "--downgrade"], 2, "`head` is an upgrade target"),
            (
                &["plan", "--downgrade", "--to", "+1"],
                2,
                "`+1` is an upgrade target",
            ),
            (&["rehearse", "--downgrade"], 2, "`head` is an upgrade target"),
            (&["plan", "--to", "HEAD"], 2, "did you mean --to head?"),
            (&["plan", "--to", "eu@head"], 2, "a branch is no target"),
            (
                &["init", "no-such-folder/herder.toml"],
                2,
                "make its folder first",
            ),
            (&["upgrade", "--to", "0"], 2, "use `herder downgrade --to 0`"),
        ],
    );
    // Nothing of it reached the run.
    assert_eq!(fleet.json(&["status"])["run"]["state"], "running");
    assert_eq!(fleet.json(&["budget"])["servers"][0]["overridden"], Value::Null);
    fleet.herder(&["plan", "--to", "heads"]).ok();
    assert_eq!(fleet.json(&["plan", "--to", "head-1"])["revision"], "1");
    fleet.herder(&["help", "upgrade"]).ok();
}

#[test]
fn a_hint_can_be_typed_as_it_is() {
    let fleet = Fleet::new(&["a", "b"]);
    fleet.herder(&["upgrade", "--to", "1", "--tenant", "t_a"]).ok();
    let elsewhere = fleet.path("fleet.toml");
    std::fs::rename(fleet.path("herder.toml"), &elsewhere).expect("a config");
    for (args, words) in [
        (&["upgrade"][..], "--config fleet.toml` ends it"),
        (&["watch", "abc"], "`herder runs --config fleet.toml`"),
        (
            &["upgrade", "--tenant", "t_c"],
            "`herder tenants --config fleet.toml`",
        ),
        (
            &["upgrade", "--to", "-1"],
            "`herder downgrade --to -1 --config fleet.toml`",
        ),
        (
            &["downgrade", "--to", "head"],
            "`herder upgrade --to head --config fleet.toml`",
        ),
    ] {
        let args = [&["--config", "fleet.toml"], args].concat();
        fleet.herder(&args).code(2).says(words);
    }
    fleet
        .herder(&["init", "new.toml"])
        .ok()
        .says("`herder check --config new.toml` shows what is missing");
    // Nobody is there to do it, and who did it here may do so again.
    fleet
        .herder(&["--config", "fleet.toml", "pause"])
        .ok()
        .says("--config fleet.toml` continues it");
    fleet
        .herder(&["--config", "fleet.toml", "resume"])
        .ok()
        .says("no worker is running");
    fleet.tenants("create table t_a.a (x text)");
    fleet
        .herder(&["--config", "fleet.toml", "resume", "--local", "3"])
        .code(4)
        .says("--local 3 --config fleet.toml`\n");
    fleet
        .herder(&["--config", "fleet.toml", "retry"])
        .ok()
        .says("no worker is running");
}

#[test]
fn tenants_of_one_place_are_left_out_together_or_not_at_all() {
    let fleet = Fleet::new(&["a", "b"]);
    let config = std::fs::read_to_string(fleet.path("herder.toml")).expect("a config");
    let config = config.replace("\"schemas\"", "\"file\"\npath = \"tenants.csv\"");
    let config = config
        .replacen("server = \"main\"\n", "\n", 1)
        .replace("pattern = \"t_*\"", "");
    std::fs::write(fleet.path("herder.toml"), config).expect("a config");
    std::fs::write(
        fleet.path("tenants.csv"),
        "id,schema,plan\nfirst,t_a,pro\nsecond,t_a,pro\nother,t_b,free\n",
    )
    .expect("a file");
    refused(
        &fleet,
        &[
            (
                &["upgrade", "--exclude", "second"],
                2,
                "--exclude cannot leave out `second`",
            ),
            (
                &["upgrade", "--exclude", "nobody"],
                2,
                "names what the source does not list",
            ),
            (
                &["upgrade", "--label", "plan=gold"],
                2,
                "no tenant has the label `plan=gold`",
            ),
        ],
    );
    let listed = fleet.json(&["tenants", "--label", "plan=free"]);
    assert_eq!(listed["tenants"].as_array().map(Vec::len), Some(1), "{listed}");
    let planned = fleet.json(&["plan", "--label", "plan=pro", "--label", "plan"]);
    assert!(
        planned.to_string().contains("\"first\"") && !planned.to_string().contains("\"other\""),
        "{planned}"
    );
    fleet.herder(&["upgrade", "--local", "1"]).ok();
    let ran = fleet.herder(&["status"]).ok();
    assert!(ran.stdout.contains("first (with second)"), "{ran:?}");
    let ran = fleet.herder(&["report", "--format", "csv"]).ok();
    assert!(
        ran.stdout.contains(",members\nfirst,") && ran.stdout.contains(",second\n"),
        "{ran:?}"
    );
    let ran = fleet.herder(&["report", "--format", "junit"]).ok();
    assert!(
        ran.stdout.contains("tests=\"3\"") && ran.stdout.contains("name=\"second\""),
        "{ran:?}"
    );
}

#[test]
fn a_halted_run_says_that_a_retry_goes_on_with_all_of_it() {
    let fleet = Fleet::new(&["a", "b", "c"]);
    fleet.tenants("create table t_a.a (x text)");
    let waves = ["upgrade", "--wave", "1", "--failure-limit", "0", "--local", "1"];
    fleet.herder(&waves).code(5);
    fleet.tenants("drop table t_a.a");
    let ran = fleet
        .herder(&["retry", "--local", "1"])
        .ok()
        .says("Retrying 1 tenant of")
        .says("it was halted, and goes on with its other tenants, too");
    // A wave is open before anything happens in it.
    let place = |text: &str| {
        ran.stderr
            .find(text)
            .unwrap_or_else(|| panic!("no `{text}` in {ran:?}"))
    };
    assert!(place("WAVE 2 of 3") < place("t_b"), "{ran:?}");
    assert!(place("WAVE 3 of 3") < place("t_c"), "{ran:?}");
}

#[test]
fn a_downgrade_is_shown_with_the_files_that_it_runs() {
    let fleet = Fleet::new(&["a"]);
    fleet.herder(&["upgrade", "--local", "1"]).ok();
    let file = |args: &[&str]| fleet.json(args)["groups"][0]["pending"][0]["file"].clone();
    assert_eq!(file(&["plan", "--to", "-1"]), "0002_step.down.sql");
    assert_eq!(file(&["plan", "--to", "1", "--downgrade"]), "0002_step.down.sql");
    fleet.migration(3, "create table c (x int)", "drop table c");
    assert_eq!(file(&["plan"]), "0003_step.up.sql");
}

#[test]
fn an_empty_variable_is_none() {
    let fleet = Fleet::new(&["a"]);
    let mut command = fleet.command(&["runs"]);
    let output = command.env("HERDER_CONFIG", "").output().expect("herder runs");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn init_says_what_is_in_its_way() {
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("file"), "").expect("a file");
    for (path, words) in [
        (".", "`herder init PATH` takes"),
        ("nowhere/x", "No such file"),
        ("file/x", "Not a directory"),
    ] {
        for force in [&[][..], &["--force"]] {
            let args = [&["init", path], force].concat();
            let output = command(dir.path(), &args).output().expect("herder runs");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(
                output.status.code() == Some(2) && said.contains(words),
                "{args:?}: {said}"
            );
            assert!(!said.contains("--force replaces"), "{args:?}: {said}");
        }
    }
}

#[test]
fn nobody_is_there_to_stop_what_a_lost_worker_held() {
    let fleet = Fleet::new(&["a"]);
    fleet.config("[worker]\nheartbeat = \"100ms\"\nlease = \"300ms\"");
    fleet.migration(1, "select pg_advisory_xact_lock(1)", "select 1");
    let held = fleet.hold(1);
    let herder = fleet.spawn(&["upgrade", "--local", "1"]);
    fleet.until("running", |status| status["counts"]["running"] == 1);
    herder.kill();
    while !fleet
        .herder(&["status"])
        .ok()
        .stderr
        .contains("no worker is running")
    {}
    let words = "what lost workers held (1 tenant) stays `running`";
    fleet.herder(&["cancel", "--yes"]).ok().says(words);
    fleet.herder(&["status"]).ok().says(words);
    drop(held);
}
