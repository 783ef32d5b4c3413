//! The demo: its story, and that nothing of it stays behind.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::fleet::{Fleet, command};

/// A folder in which the demo makes all its files. Whoever the server runs as must get through it.
fn temporary() -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
    dir
}

fn demo(dir: &TempDir, args: &[&str]) -> Command {
    let mut command = command(dir.path(), &[&["demo", "--tenants", "24"], args].concat());
    command.env("TMPDIR", dir.path());
    command
}

/// A server's folder is removed by a process that outlives the demo by a moment.
fn assert_empty(dir: &TempDir) {
    let left = || -> Vec<_> {
        let entries = fs::read_dir(dir.path()).expect("the folder");
        entries.map(|entry| entry.expect("an entry").path()).collect()
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while !left().is_empty() {
        assert!(Instant::now() < deadline, "{:?} stayed behind", left());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_demo_tells_its_story_and_leaves_nothing() {
    let dir = temporary();
    let output = demo(&dir, &[]).output().expect("the demo");
    let said = String::from_utf8(output.stdout).expect("text");
    let talk = String::from_utf8(output.stderr).expect("text");
    assert!(output.status.success(), "{said}{talk}");
    for step in [
        "Started a temporary PostgreSQL",
        "Creating 24 tenants",
        "tenant_014, has a problem",
        "kill -9: amber was killed",
        "birch took over",
        "users_email_key",
        "Repairing tenant_014",
        "24 tenants, nothing to do",
        "Cleaned up",
    ] {
        assert!(said.contains(step), "no `{step}` in {said}{talk}");
    }
    // The kill may come right after a commit: that tenant is found applied instead of migrated.
    let summaries: Vec<&str> = talk
        .lines()
        .filter(|line| line.contains(" 24 tenants: "))
        .collect();
    let [first, last] = summaries[..] else {
        panic!("two summaries in {talk}");
    };
    assert!(first.ends_with("1 failed"), "{talk}");
    assert!(talk.contains("RESCUED"), "{talk}");
    assert!(last.contains("(1 retried)") && !last.contains("failed"), "{talk}");
    assert_empty(&dir);
}

#[test]
fn ctrl_c_ends_the_demo_and_all_that_it_started() {
    let dir = temporary();
    let mut child = demo(&dir, &[])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the demo");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    lines
        .by_ref()
        .map(|line| line.expect("text"))
        .find(|line| line.contains("Starting two workers"))
        .expect("two workers");
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &pid])
            .status()
            .expect("kill")
            .success()
    );
    let last = lines.map(|line| line.expect("text")).last();
    assert!(
        last.as_deref().is_some_and(|line| line.contains("Cleaned up")),
        "{last:?}"
    );
    assert_eq!(child.wait().expect("its end").code(), Some(130));
    assert_empty(&dir);
}

#[test]
fn the_demo_drops_its_databases_on_a_server_that_is_not_its_own() {
    let dir = temporary();
    let fleet = Fleet::new(&[]);
    let output = demo(&dir, &["--database-url", &fleet.url()])
        .output()
        .expect("the demo");
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        fleet.count("select count(*) from pg_database where datname like 'herder_demo%'"),
        0
    );
    assert_empty(&dir);
}
