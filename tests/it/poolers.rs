//! A pooler that hands out sessions for a transaction at a time is found, and refused. With the real PgBouncer, where it
//! is installed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use herder::database_url::DatabaseUrl;
use herder::session::pooler::{Pooled, look};
use sqlx::{Connection, PgConnection};

use crate::fleet::{Cluster, Fleet, Setup};

/// A PgBouncer in front of a server. Ends with its test.
struct PgBouncer {
    child: Child,
    dir: tempfile::TempDir,
    port: u16,
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where it is on this machine. None: the tests that need it say so, and do nothing.
fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    let found = std::env::split_paths(&path)
        .chain(sbin)
        .map(|dir| dir.join("pgbouncer"))
        .find(|program| program.exists());
    if found.is_none() {
        eprintln!("NOT TESTED: there is no pgbouncer here (apt-get install pgbouncer)");
    }
    found
}

impl PgBouncer {
    /// `database` goes into the line of every database, `settings` below.
    async fn start(program: &Path, cluster: &Cluster, database: &str, settings: &str) -> Self {
        let url = DatabaseUrl::parse(&cluster.url("postgres")).expect("a URL");
        let address = url.address();
        let (host, server_port) = address.rsplit_once(':').expect("host and port");
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = free.local_addr().expect("an address").port();
        drop(free);
        // Not in the home of whoever runs the tests: it runs as another user where that is root.
        let dir = tempfile::Builder::new()
            .prefix("herder-pool-")
            .tempdir_in("/tmp")
            .expect("a folder");
        let ini = dir.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host={host} port={server_port} user=postgres {database}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\npool_mode = transaction\n{settings}\n"
        );
        std::fs::write(&ini, text).expect("pgbouncer.ini");
        let log = std::fs::File::create(dir.path().join("log")).expect("a log");
        let mut command = Command::new(program);
        if rustix::process::geteuid().is_root() {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("a mode");
            command.args(["-u", "nobody"]);
        }
        command.arg(ini).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        let pooler = Self {
            child: command.spawn().expect("pgbouncer"),
            dir,
            port,
        };
        pooler.answers().await;
        pooler
    }

    /// It listens as soon as anybody is let in, or sent away by it.
    async fn answers(&self) {
        for _ in 0..200 {
            match PgConnection::connect(&self.url("postgres")).await {
                Err(sqlx::Error::Io(_)) => tokio::time::sleep(std::time::Duration::from_millis(50)).await,
                _ => return,
            }
        }
        let log = std::fs::read_to_string(self.dir.path().join("log"));
        panic!("pgbouncer does not answer: {log:?}");
    }

    fn url(&self, database: &str) -> String {
        format!("postgresql://postgres@127.0.0.1:{}/{database}", self.port)
    }
}

async fn found_behind(pooler: &PgBouncer) -> Option<Pooled> {
    let url = DatabaseUrl::parse(&pooler.url("postgres")).expect("a URL");
    look(&url, "0a1b2c3d").await.expect("a look")
}

#[tokio::test]
async fn a_server_itself_is_no_pooler() {
    let cluster = Cluster::shared().await;
    let url = DatabaseUrl::parse(&cluster.url("postgres")).expect("a URL");
    assert_eq!(look(&url, "0a1b2c3d").await.expect("a look"), None);
}

#[tokio::test]
async fn a_pooler_that_shares_sessions_is_found() {
    let Some(program) = program() else {
        return;
    };
    let cluster = Cluster::shared().await;
    // As it comes: it refuses the settings that a connection is opened with.
    let pooler = PgBouncer::start(&program, &cluster, "", "").await;
    assert_eq!(found_behind(&pooler).await, Some(Pooled::Stripped));
    // As many are set up: it drops them.
    let ignore = "ignore_startup_parameters = options,extra_float_digits";
    let pooler = PgBouncer::start(&program, &cluster, "", ignore).await;
    assert_eq!(found_behind(&pooler).await, Some(Pooled::Stripped));
    // Even if it passed them on, it would give itself away.
    let passed_on = "connect_query='set herder.probe = \"on\"'";
    let pooler = PgBouncer::start(&program, &cluster, passed_on, ignore).await;
    let found = found_behind(&pooler).await;
    assert!(found.is_some_and(|found| found != Pooled::Stripped), "{found:?}");
}

fn lead(fleet: &Fleet, path: [&str; 2], url: &str) {
    fleet.configure(|config| {
        let table = match path {
            ["servers", name] => &mut config["servers"][name],
            [table, _] => &mut config[table],
        };
        table["url"] = url.into();
    });
}

#[tokio::test]
async fn neither_tenants_nor_control_tables_are_used_through_one() {
    let Some(program) = program() else {
        return;
    };
    let cluster = Cluster::shared().await;
    let ignore = "ignore_startup_parameters = options,extra_float_digits";
    let pooler = PgBouncer::start(&program, &cluster, "", ignore).await;
    let fleet = Setup::schemas(2).start().await;
    lead(&fleet, ["servers", "main"], &pooler.url(&fleet.database("home")));
    let says_so = |text: &str| {
        assert!(
            text.contains("a pooler is in between that shares sessions"),
            "{text}"
        );
        assert!(
            text.contains("hint: give a url that leads to the server itself"),
            "{text}"
        );
    };
    says_so(&fleet.herder(&["check"]).await.expect(7).all());
    says_so(&fleet.herder(&["upgrade"]).await.expect(3).all());
    assert_eq!(fleet.state().await, "none");

    lead(&fleet, ["servers", "main"], &cluster.url(&fleet.database("home")));
    lead(&fleet, ["control", ""], &pooler.url(&fleet.database("control")));
    says_so(&fleet.herder(&["check"]).await.expect(3).all());
    says_so(&fleet.herder(&["upgrade"]).await.expect(3).all());
    let mut worker = fleet.worker(&[]);
    assert_eq!(worker.end().await.code(), Some(3), "{}", worker.log());
    assert!(
        worker
            .log()
            .contains("a pooler in front of the control database shares sessions"),
        "{}",
        worker.log()
    );
}

/// A server that is moved behind one while a run goes on costs no tenant anything but time.
#[tokio::test]
async fn one_that_comes_in_between_during_a_run_is_waited_for() {
    let Some(program) = program() else {
        return;
    };
    let cluster = Cluster::shared().await;
    let ignore = "ignore_startup_parameters = options,extra_float_digits";
    let pooler = PgBouncer::start(&program, &cluster, "", ignore).await;
    let fleet = Setup::schemas(3).start().await;
    fleet.herder(&["upgrade"]).await.expect(0);
    lead(&fleet, ["servers", "main"], &pooler.url(&fleet.database("home")));
    let worker = fleet.worker(&[]);
    let told = "select count(*) from herder.job
                where error ->> 'message' like '%a pooler is in between%'";
    fleet
        .wait_until("every tenant waits", async || fleet.ask::<i64>(told).await == 3)
        .await;
    worker.drain().await;
    lead(&fleet, ["servers", "main"], &cluster.url(&fleet.database("home")));
    let _worker = fleet.worker(&[]);
    assert_eq!(fleet.over().await, "succeeded", "{}", fleet.last_seen().await);
    for job in fleet.status().await["jobs"].as_array().expect("jobs") {
        assert_eq!(job["attempts"], 1, "{job:#}");
    }
}
