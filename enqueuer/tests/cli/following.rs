//! Waiting for runs: what the wait ends with, and what it outlives.

use std::{
    io::{Read as _, Write as _},
    process::{Child, Command, Stdio},
};

use herder::throwaway::ThrowawayPostgres;

use crate::fleet::Fleet;

/// A migration that fails for one tenant, until `mend` has run.
fn with_failure(names: &[&str], broken: &str) -> Fleet {
    let fleet = Fleet::new(names);
    fleet.migration(3, "create table c (x int)", "drop table c");
    fleet.tenants(&format!("create table t_{broken}.c (y int)"));
    fleet
}

#[test]
fn a_failed_tenant_is_told_mended_and_retried() {
    let fleet = with_failure(&["a", "b", "c"], "b");
    let ran = fleet.herder(&["upgrade", "--local", "2"]).code(4);
    let id = ran.id();
    assert!(ran.stderr.contains("FAILED"), "{ran:?}");
    ran.says("3 tenants: 2 migrated, 1 failed")
        .says(&format!("`herder status {} --failed` shows why", &id[..8]));
    let failed = fleet.json(&["status", "--failed"]);
    assert_eq!(failed["jobs"].as_array().map(Vec::len), Some(1));
    let error = &failed["jobs"][0]["error"];
    assert_eq!(
        (&error["sqlstate"], &error["revision"]),
        (&"42P07".into(), &"3".into())
    );
    assert!(
        error["message"].as_str().is_some_and(|m| m.contains("\"c\"")),
        "{error}"
    );
    assert!(
        error["statement"]
            .as_str()
            .is_some_and(|s| s.contains("create table c")),
        "{error}"
    );

    fleet.herder(&["resume"]).code(2).says("`herder retry");
    fleet
        .herder(&["retry", "--local", "1"])
        .code(4)
        .says("Retrying 1 tenant of run");
    fleet.tenants("drop table t_b.c");
    fleet
        .herder(&["retry", "--local", "1"])
        .ok()
        .says("(3/3) t_b")
        .says("3 migrated (1 retried)");
    fleet.herder(&["retry"]).ok().says("Nothing to do");
    fleet.herder(&["resume"]).ok().says("Nothing to do");
}

#[test]
fn whoever_retries_and_waits_hears_how_an_open_run_ends() {
    let fleet = Fleet::new(&["a", "b"]);
    fleet.herder(&["upgrade"]).ok();
    fleet.herder(&["retry"]).ok().says("`herder resume");
    fleet
        .herder(&["retry", "--local", "1"])
        .ok()
        .says("no tenant of run")
        .says("2 tenants: 2 migrated");
    assert_eq!(fleet.json(&["status"])["run"]["state"], "succeeded");
}

#[test]
fn a_failed_canary_halts_the_run() {
    let fleet = with_failure(&["a", "b", "c"], "a");
    let ran = fleet
        .herder(&["upgrade", "--canary", "1", "--local", "1"])
        .code(5);
    ran.says("HALTED").says("`herder resume");
    let status = fleet.json(&["status"]);
    assert_eq!(
        (&status["run"]["state"], &status["counts"]["waiting"]),
        (&"halted".into(), &2.into())
    );
    fleet.herder(&["upgrade"]).code(2).says("is still open over");
    fleet.herder(&["cancel"]).code(2).says("--yes");
    fleet.herder(&["cancel", "--yes"]).ok();
    fleet.herder(&["cancel", "--yes"]).ok().says("Nothing to do");
    fleet.herder(&["retry"]).code(2).says("was cancelled");
    fleet.herder(&["resume", "--wait"]).code(6);
}

#[test]
fn down_goes_only_who_says_so() {
    let fleet = Fleet::new(&["a", "b"]);
    fleet.herder(&["upgrade", "--local", "2"]).ok();
    fleet
        .herder(&["downgrade", "--to", "-1"])
        .code(2)
        .says("pass --yes");
    fleet.herder(&["downgrade", "--yes"]).code(2).says("--to");
    fleet
        .herder(&["downgrade", "--to", "head", "--yes"])
        .code(2)
        .says("is an upgrade target");
    fleet
        .herder(&["downgrade", "--to", "-1", "--yes", "--local", "2"])
        .ok()
        .says("2 → 1");
    // sqlx's word for the base; and what is said as JSON is what was asked for.
    let target = |to: &str| fleet.json(&["downgrade", "--yes", "--local", "2", "--to", to])["target"].clone();
    assert_eq!(target("0"), "base");
    assert_eq!(target("-1"), "-1");
    for base in ["0", "head-9"] {
        fleet
            .herder(&["upgrade", "--to", base])
            .code(2)
            .says(&format!("`{base}` is the base, which only a downgrade leads to"));
    }
}

/// A terminal, as many questions as the first argument says, and somebody who says yes to all but the last of them and thinks better
/// of that. Between two questions it writes a word, and waits for one.
const CTRL_C: &str = r"
import os, pty, signal, sys
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[2], sys.argv[2:])
signal.alarm(60)
said = b''
for question in range(int(sys.argv[1])):
    if question > 0:
        os.write(terminal, b'yes\n')
        while b'Queued' not in said:
            said += os.read(terminal, 1024)
        print('queued', flush=True)
        sys.stdin.readline()
        said = b''
    while b'to continue:' not in said:
        said += os.read(terminal, 1024)
signal.alarm(20)
os.write(terminal, b'\x03')
_, status = os.waitpid(pid, 0)
print(os.waitstatus_to_exitcode(status))
";

/// `herder` with these arguments at the end of so many questions.
fn thinks_better(fleet: &Fleet, questions: &str, args: &[&str]) -> Child {
    Command::new("python3")
        .args(["-c", CTRL_C, questions, env!("CARGO_BIN_EXE_herder")])
        .args(args)
        .current_dir(fleet.dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("Python")
}

#[test]
fn ctrl_c_is_an_answer() {
    let fleet = Fleet::new(&["a"]);
    fleet.herder(&["upgrade", "--local", "1"]).ok();
    let asked = thinks_better(&fleet, "1", &["downgrade", "--to", "-1"]);
    let ended = asked.wait_with_output().expect("an end");
    assert_eq!(String::from_utf8_lossy(&ended.stdout).trim(), "130", "{ended:?}");
    assert_eq!(fleet.json(&["runs"])["runs"].as_array().map(Vec::len), Some(1));
}

#[test]
fn ctrl_c_is_an_answer_to_a_question_after_a_wait_as_well() {
    let fleet = Fleet::new(&["a"]);
    fleet.herder(&["upgrade", "--local", "1"]).ok();
    fleet.migration(3, "select 3", "select -3");
    fleet.herder(&["upgrade"]).ok();
    let mut asked = thinks_better(&fleet, "2", &["downgrade", "--to", "-1", "--queue"]);
    let mut queued = [0; 7];
    let said = asked.stdout.as_mut().expect("its output");
    said.read_exact(&mut queued).expect("it waits");
    fleet.herder(&["cancel", "--yes"]).ok();
    let told = asked.stdin.as_mut().expect("its input");
    told.write_all(b"go on\n").expect("it listens");
    let ended = asked.wait_with_output().expect("an end");
    assert_eq!(String::from_utf8_lossy(&ended.stdout).trim(), "130", "{ended:?}");
    assert_eq!(fleet.json(&["runs"])["runs"].as_array().map(Vec::len), Some(2));
}

/// A terminal that can take back nothing, and what was written there.
const DUMB: &str = r"
import os, pty, sys
pid, terminal = pty.fork()
if pid == 0:
    os.environ['TERM'] = 'dumb'
    os.execv(sys.argv[1], sys.argv[1:])
try:
    while said := os.read(terminal, 1024):
        sys.stdout.buffer.write(said)
except OSError:
    pass
os.waitpid(pid, 0)
";

#[test]
fn a_terminal_without_a_bar_gets_the_lines() {
    let fleet = Fleet::new(&["a"]);
    let herder = env!("CARGO_BIN_EXE_herder");
    for args in [&["upgrade", "--local", "1"][..], &["watch"]] {
        let output = Command::new("python3")
            .args([&["-c", DUMB, herder], args].concat())
            .current_dir(fleet.dir.path())
            .output()
            .expect("Python");
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("MIGRATED"), "{args:?}: {said}");
    }
}

#[test]
fn ctrl_c_ends_the_wait_and_not_the_run() {
    let fleet = Fleet::new(&["a"]);
    let held = fleet.hold(7);
    fleet.migration(3, "select pg_advisory_xact_lock(7)", "");
    let worker = fleet.spawn(&["upgrade", "--local", "1"]);
    fleet.until("migrating", |status| status["jobs"][0]["step"] == "migrating");
    let watch = fleet.spawn(&["watch"]);
    let wait = fleet.spawn(&["resume", "--wait"]);
    // A signal would end them unhandled before they listen for it, and nothing tells when they do.
    std::thread::sleep(std::time::Duration::from_secs(1));
    watch.interrupt();
    wait.interrupt();
    watch.end().code(130).says("follows it again");
    wait.end().code(130).says("continues");
    assert_eq!(fleet.json(&["status"])["run"]["state"], "running");
    drop(held);
    worker.end().ok();
}

#[test]
fn ctrl_c_drains_the_work_in_this_process() {
    let fleet = Fleet::new(&["a", "b"]);
    let held = fleet.hold(7);
    fleet.migration(3, "select pg_advisory_xact_lock(7)", "");
    let local = fleet.spawn(&["upgrade", "--local", "1"]);
    fleet.until("migrating", |status| status["jobs"][0]["step"] == "migrating");
    local.interrupt();
    local.until_says("Finishing the running tenants");
    drop(held);
    let ran = local.end().code(130);
    ran.says("--local 1` continues it");
    let status = fleet.json(&["status"]);
    assert_eq!(
        (&status["counts"]["succeeded"], &status["counts"]["ready"]),
        (&1.into(), &1.into())
    );
    fleet
        .herder(&["resume", "--local", "1"])
        .ok()
        .says("1 tenant left")
        .says("(2/2)");
}

#[test]
fn a_second_ctrl_c_ends_at_once() {
    let fleet = Fleet::new(&["a"]);
    let held = fleet.hold(7);
    fleet.migration(3, "select pg_advisory_xact_lock(7)", "");
    let local = fleet.spawn(&["upgrade", "--local", "1"]);
    fleet.until("migrating", |status| status["jobs"][0]["step"] == "migrating");
    local.interrupt();
    local.until_says("Finishing the running tenants").interrupt();
    local.end().code(130);
    drop(held);
    fleet.herder(&["resume", "--local", "1"]).ok();
}

#[test]
fn a_paused_run_is_waited_for() {
    let fleet = Fleet::new(&["a", "b"]);
    let held = fleet.hold(7);
    fleet.migration(3, "select pg_advisory_xact_lock(7)", "");
    let local = fleet.spawn(&["upgrade", "--local", "1"]);
    fleet.until("migrating", |status| status["jobs"][0]["step"] == "migrating");
    fleet.herder(&["pause"]).ok().says("Paused run");
    drop(held);
    fleet.until("half done", |status| status["counts"]["succeeded"] == 1);
    fleet.herder(&["pause"]).ok().says("Nothing to do");
    local.until_says("PAUSED by an operator");
    let held = fleet.hold(7);
    fleet.herder(&["resume"]).ok().says("was paused");
    fleet.until("the other one", |status| status["counts"]["running"] == 1);
    local.until_says("RESUMED by an operator");
    drop(held);
    local.end().ok();
}

#[test]
fn the_control_database_may_go_away_for_a_while() {
    let server = ThrowawayPostgres::start().expect("a server");
    let fleet = Fleet::on(&server, &["a"]);
    fleet.herder(&["upgrade"]).ok().says("no worker is running");
    let watch = fleet.spawn(&["watch"]);
    watch.until_says("no worker is running");
    server.stop_immediate();
    fleet
        .herder(&["runs"])
        .code(3)
        .says("cannot reach the control database");
    watch.until_says("is unavailable");
    server.restart().expect("the server again");
    fleet.herder(&["resume", "--local", "1"]).ok();
    let ran = watch.end().ok();
    assert_eq!(ran.stderr.matches("is unavailable").count(), 1, "{ran:?}");
    assert!(ran.stderr.contains("is available again"), "{ran:?}");
    assert!(
        ran.stdout.contains("MIGRATED") && ran.stdout.contains("Summary"),
        "{ran:?}"
    );
}

#[test]
fn nobody_reading_changes_no_code() {
    let fleet = with_failure(&["a", "b"], "b");
    for format in ["text", "json"] {
        let args = ["upgrade", "--local", "1", "--output-format", format];
        let mut child = fleet
            .command(&args)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("herder runs");
        drop(child.stdout.take());
        assert_eq!(child.wait().expect("an end").code(), Some(4), "{format}");
    }
}

/// stdout is a full disk: the id is lost, and nothing else is.
#[test]
fn what_cannot_be_printed_orphans_no_run() {
    let fleet = Fleet::new(&["a", "b"]);
    for format in ["text", "json"] {
        let full = || {
            let full = std::fs::File::options().write(true).open("/dev/full");
            full.expect("a device that is full")
        };
        let args = ["--output-format", format];
        let run = |more: &[&str]| {
            let output = fleet
                .command(&[more, &args].concat())
                .stdout(full())
                .output()
                .expect("herder runs");
            (
                output.status.code(),
                String::from_utf8(output.stderr).expect("text"),
            )
        };
        let (code, said) = run(&["upgrade", "--local", "1"]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("2 migrated"), "{said}");
        assert!(said.contains("cannot write to standard output"), "{said}");
        let status = fleet.json(&["status"]);
        assert_eq!(status["run"]["state"], "succeeded", "{said}");
        // One that is not waited for is there, and is named.
        let (code, said) = run(&["downgrade", "--to", "base", "--yes"]);
        assert_eq!(code, Some(1), "{said}");
        let id = fleet.json(&["status"])["run"]["id"].clone();
        let id = &id.as_str().expect("an id")[..8];
        assert!(said.contains(&format!("herder watch {id}")), "{said}");
        assert!(said.contains(&format!("run {id} was started")), "{said}");
        fleet.herder(&["resume", "--local", "1"]).ok();
    }
}
