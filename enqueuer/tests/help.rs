//! Every help text, as a user sees it.

use std::process::Command;

/// What the binary prints, with its exit code.
fn herder(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_herder"))
        .args(args)
        .env_remove("HERDER_CONFIG")
        .env("COLUMNS", "100")
        .output()
        .expect("herder runs");
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn every_command_explains_itself() {
    let all = herder(&["--help"]);
    let commands: Vec<&str> = all
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.split_whitespace().next())
        .filter(|command| *command != "help")
        .collect();
    assert_eq!(commands.len(), 20, "{commands:?}");
    let mut text = format!("$ herder --help\n{all}");
    for command in commands {
        text += &format!("\n$ herder {command} --help\n{}", herder(&[command, "--help"]));
    }
    insta::assert_snapshot!(text);
}
