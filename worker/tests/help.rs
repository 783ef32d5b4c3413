//! The help text, as a user sees it, and what is said about wrong arguments.

use std::process::{Command, Output};

fn worker(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_herder-worker"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("HERDER_")) {
        command.env_remove(name);
    }
    let command = command.args(args).env("COLUMNS", "100");
    command.output().expect("herder-worker runs")
}

#[test]
fn it_explains_itself() {
    let output = worker(&["--help"]);
    assert!(output.status.success(), "{output:?}");
    insta::assert_snapshot!(String::from_utf8(output.stdout).expect("text"));
}

#[test]
fn wrong_arguments_end_with_2_and_say_why() {
    for args in [
        &["--concurrency", "0"][..],
        &["--listen", "nowhere"],
        &["--drain-timeout", "soon"],
        &["--log-format", "xml"],
        &["surplus"],
    ] {
        let output = worker(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{args:?}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.starts_with("error: "), "{said}");
    }
}

#[test]
fn a_missing_config_ends_with_3_and_names_it() {
    let output = worker(&["--config", "/nowhere/herder.toml"]);
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("/nowhere/herder.toml"), "{said}");
}
