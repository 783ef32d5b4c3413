//! The throw-away server starts, comes back after a crash, and leaves nothing behind, however its parent ends.

use std::env;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use herder::throwaway::{Settings, ThrowawayPostgres};
use rustix::process::{Pid, test_kill_process};
use sqlx::{Connection, PgConnection};

/// Where the doomed parent writes what its test looks for. Only that parent has it.
const NOTE: &str = "HERDER_TEST_DOOMED_NOTE";

#[tokio::test]
async fn it_answers_on_many_databases_and_leaves_nothing_behind() {
    let settings = Settings::default().parameter("max_connections", 17);
    let server = ThrowawayPostgres::start_with(&settings).expect("a server");
    let (dir, postmaster) = (server.dir().to_owned(), postmaster(server.dir()));

    let mut connection = connect(&server, "postgres").await;
    for statement in [
        "CREATE EXTENSION hstore",
        "CREATE EXTENSION pgcrypto",
        "CREATE DATABASE acme",
    ] {
        sqlx::query(statement)
            .execute(&mut connection)
            .await
            .expect(statement);
    }
    let limit: String = sqlx::query_scalar("SHOW max_connections")
        .fetch_one(&mut connection)
        .await
        .expect("the setting");
    assert_eq!(limit, "17");
    let here: String = sqlx::query_scalar("SELECT current_database()::text")
        .fetch_one(&mut connect(&server, "acme").await)
        .await
        .expect("a name");
    assert_eq!(here, "acme");

    // Dropped while a session is open.
    drop(server);
    assert!(!dir.exists(), "{} is still there", dir.display());
    assert!(!alive(postmaster), "the postmaster is still there");
}

#[tokio::test]
async fn a_crash_and_a_restart_keep_the_port_and_what_was_committed() {
    let server = ThrowawayPostgres::start().expect("a server");
    let url = server.url("postgres");
    let mut connection = connect(&server, "postgres").await;
    for statement in ["CREATE TABLE kept (id int)", "INSERT INTO kept VALUES (1)"] {
        sqlx::query(statement)
            .execute(&mut connection)
            .await
            .expect(statement);
    }

    server.stop_immediate();
    sqlx::query("SELECT 1")
        .execute(&mut connection)
        .await
        .expect_err("the session broke off");
    PgConnection::connect(&url).await.expect_err("nobody listens");
    assert!(
        server.dir().exists(),
        "the data stays while the server is stopped"
    );

    server.restart().expect("a restart of a stopped server");
    server.restart().expect("a restart of a running server");
    assert_eq!(server.url("postgres"), url);
    let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM kept")
        .fetch_one(&mut connect(&server, "postgres").await)
        .await
        .expect("the table");
    assert_eq!(kept, 1);
}

#[test]
fn a_server_that_cannot_start_says_why() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = holder.local_addr().expect("its address").port();
    let error = ThrowawayPostgres::start_with(&Settings {
        port,
        ..Settings::default()
    })
    .expect_err("a taken port");
    let message = error.to_string();
    assert!(message.contains("could not bind"), "{message}");
}

#[test]
fn servers_that_start_at_the_same_time_do_not_meet() {
    let starts: Vec<_> = (0..2).map(|_| thread::spawn(ThrowawayPostgres::start)).collect();
    let servers: Vec<_> = starts
        .into_iter()
        .map(|start| start.join().expect("no panic").expect("a server"))
        .collect();
    assert_ne!(servers[0].port(), servers[1].port());
    assert_ne!(servers[0].dir(), servers[1].dir());
}

#[test]
fn a_parent_killed_by_sigkill_takes_its_server_along() {
    let (mut parent, dir) = doomed_parent("running");
    let postmaster = postmaster(&dir);
    kill(&mut parent);
    wait_until("the server of a killed parent is gone", || {
        !alive(postmaster) && !dir.exists()
    });
}

#[test]
fn a_parent_killed_while_its_server_is_stopped_leaves_no_folder() {
    let (mut parent, dir) = doomed_parent("stopped");
    kill(&mut parent);
    wait_until("the folder of a killed parent is gone", || !dir.exists());
}

/// Not a test: the parent that the two above kill. It does nothing when it is run as a test.
#[test]
fn doomed() {
    let Some(note) = env::var_os(NOTE) else { return };
    let server = ThrowawayPostgres::start().expect("a server");
    if env::var("HERDER_TEST_DOOMED_STATE").as_deref() == Ok("stopped") {
        server.stop_immediate();
    }
    let draft = PathBuf::from(&note).with_extension("draft");
    fs::write(&draft, server.dir().as_os_str().as_encoded_bytes()).expect("a draft");
    fs::rename(&draft, &note).expect("a note");
    loop {
        thread::park();
    }
}

/// Runs [`doomed`] in a process of its own until its server is up, and returns it with the server's folder.
fn doomed_parent(state: &str) -> (Child, PathBuf) {
    let notes = tempfile::tempdir().expect("a folder");
    let note = notes.path().join("note");
    let parent = Command::new(env::current_exe().expect("this test's program"))
        .args(["--exact", "throwaway::doomed"])
        .env(NOTE, &note)
        .env("HERDER_TEST_DOOMED_STATE", state)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("a parent");
    wait_until("the doomed parent has its server", || note.exists());
    let dir = fs::read_to_string(&note).expect("a folder's name");
    (parent, PathBuf::from(dir))
}

fn kill(child: &mut Child) {
    child.kill().expect("a kill");
    assert_eq!(child.wait().expect("its end").signal(), Some(9));
}

async fn connect(server: &ThrowawayPostgres, database: &str) -> PgConnection {
    PgConnection::connect(&server.url(database))
        .await
        .expect("a connection")
}

fn postmaster(dir: &Path) -> Pid {
    let text = fs::read_to_string(dir.join("data/postmaster.pid")).expect("a pid file");
    let pid = text
        .lines()
        .next()
        .and_then(|line| line.parse().ok())
        .and_then(Pid::from_raw);
    pid.expect("a process id")
}

/// Another user's process answers EPERM, and is alive.
fn alive(pid: Pid) -> bool {
    test_kill_process(pid) != Err(rustix::io::Errno::SRCH)
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        thread::sleep(Duration::from_millis(20));
    }
}
