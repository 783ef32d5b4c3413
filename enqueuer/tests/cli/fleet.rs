//! A fleet of schema tenants with a config of its own, and `herder` to run on it.

use std::{
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use herder::throwaway::ThrowawayPostgres;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::TempDir;

/// How long a condition may take on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// All tests but those that stop it share a server. It goes with this process.
static SERVER: LazyLock<ThrowawayPostgres> = LazyLock::new(|| ThrowawayPostgres::start().expect("a server"));

static DATABASES: AtomicUsize = AtomicUsize::new(0);

/// Tenants in schemas `t_…` of one database, a control database, SQL migrations and a config.
pub(crate) struct Fleet {
    pub(crate) dir: TempDir,
    control: String,
    tenants: String,
    runtime: tokio::runtime::Runtime,
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Fleet {
    /// Tenants with these names, and two migrations. The control database is set up.
    pub(crate) fn new(names: &[&str]) -> Self {
        Self::on(&SERVER, names)
    }

    /// The same on a server of the test's own.
    pub(crate) fn on(server: &ThrowawayPostgres, names: &[&str]) -> Self {
        let fleet = Self::bare(server);
        for name in names {
            fleet.tenants(&format!("create schema t_{name}"));
        }
        fleet.migration(1, "create table a (x int)", "drop table a");
        fleet.migration(2, "create table b (x int)", "drop table b");
        fleet.herder(&["setup"]).ok();
        fleet
    }

    /// No tenants, no migrations, no control tables.
    pub(crate) fn bare(server: &ThrowawayPostgres) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let number = DATABASES.fetch_add(1, Ordering::Relaxed);
        let [control, tenants] = ["control", "fleet"].map(|what| server.url(&format!("{what}_{number}")));
        let fleet = Self {
            dir: tempfile::tempdir().expect("a folder"),
            control,
            tenants,
            runtime,
        };
        let postgres = server.url("postgres");
        fleet.sql(&postgres, &format!("create database control_{number}"));
        fleet.sql(&postgres, &format!("create database fleet_{number}"));
        std::fs::create_dir(fleet.path("migrations")).expect("a folder");
        fleet.config("");
        fleet
    }

    /// Writes the config, with more at its end.
    pub(crate) fn config(&self, more: &str) {
        let text = format!(
            r#"
            [control]
            url = "{}"
            [tenants]
            source = "schemas"
            server = "main"
            pattern = "t_*"
            [servers.main]
            url = "{}"
            [runner]
            kind = "sql"
            directory = "migrations"
            [limits]
            lock_timeout = "1min"
            {more}
            "#,
            self.control, self.tenants
        );
        std::fs::write(self.path("herder.toml"), text).expect("a config");
    }

    /// Adds a migration.
    pub(crate) fn migration(&self, version: u32, up: &str, down: &str) {
        let file = |way: &str| self.path(&format!("migrations/{version:04}_step.{way}.sql"));
        std::fs::write(file("up"), up).expect("a file");
        std::fs::write(file("down"), down).expect("a file");
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs statements in the tenants' database.
    pub(crate) fn tenants(&self, sql: &str) {
        self.sql(&self.tenants, sql);
    }

    /// The tenants' database.
    pub(crate) fn url(&self) -> String {
        self.tenants.clone()
    }

    /// A number that a query gives.
    pub(crate) fn count(&self, sql: &str) -> i64 {
        self.runtime.block_on(async {
            let mut connection = PgConnection::connect(&self.tenants).await.expect("a connection");
            let count = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
            count.fetch_one(&mut connection).await.expect(sql)
        })
    }

    /// Opens a connection to the tenants' database that holds an advisory lock: a migration that asks for it waits
    /// as long as the test likes.
    pub(crate) fn hold(&self, key: i64) -> Held<'_> {
        let connection = self.runtime.block_on(async {
            let mut connection = PgConnection::connect(&self.tenants).await.expect("a connection");
            sqlx::query("select pg_advisory_lock($1)")
                .bind(key)
                .execute(&mut connection)
                .await
                .expect("a lock");
            connection
        });
        Held {
            fleet: self,
            connection: Some(connection),
        }
    }

    fn sql(&self, url: &str, sql: &str) {
        self.runtime.block_on(async {
            let mut connection = PgConnection::connect(url).await.expect("a connection");
            sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
                .execute(&mut connection)
                .await
                .expect(sql);
            connection.close().await.expect("an end");
        });
    }

    /// `herder` with these arguments, in the fleet's folder.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        command(self.dir.path(), args)
    }

    pub(crate) fn herder(&self, args: &[&str]) -> Ran {
        Ran::from(self.command(args).output().expect("herder runs"))
    }

    /// Starts it, to be talked to while it runs.
    pub(crate) fn spawn(&self, args: &[&str]) -> Running {
        let mut child = self
            .command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("herder starts");
        Running {
            stdout: Heard::from(child.stdout.take().expect("a pipe")),
            stderr: Heard::from(child.stderr.take().expect("a pipe")),
            child,
        }
    }

    /// What a reading command says as JSON.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let ran = self.herder(&[args, &["--output-format", "json"]].concat());
        let value: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|e| panic!("{e}: {ran:?}"));
        assert_eq!(value["version"], 1, "{ran:?}");
        value
    }

    /// Waits until the latest run is as it should be.
    pub(crate) fn until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + LIMIT;
        let mut last = Value::Null;
        while Instant::now() < deadline {
            let ran = self.herder(&["status", "--output-format", "json"]);
            if let Ok(status) = serde_json::from_str(&ran.stdout) {
                last = status;
                if holds(&last) {
                    return last;
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("not {what} in {LIMIT:?}; last: {last}");
    }
}

/// `herder` with these arguments, in a folder.
pub(crate) fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_herder"));
    command
        .args(args)
        .current_dir(dir)
        .env_remove("HERDER_CONFIG")
        .env_remove("GITHUB_ACTIONS")
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    command
}

/// A lock that a migration waits for.
pub(crate) struct Held<'a> {
    fleet: &'a Fleet,
    connection: Option<PgConnection>,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take() {
            // A server that was stopped meanwhile has dropped the lock itself.
            let _ = self.fleet.runtime.block_on(connection.close());
        }
    }
}

/// A `herder` that runs.
pub(crate) struct Running {
    child: Child,
    stdout: Heard,
    stderr: Heard,
}

impl Running {
    /// Waits until it has said this, on stderr or stdout.
    pub(crate) fn until_says(&self, text: &str) -> &Self {
        let deadline = Instant::now() + LIMIT;
        while Instant::now() < deadline {
            if [&self.stderr, &self.stdout]
                .iter()
                .any(|heard| heard.so_far().contains(text))
            {
                return self;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!(
            "no `{text}` in {LIMIT:?}: {}{}",
            self.stdout.so_far(),
            self.stderr.so_far()
        );
    }

    /// Ctrl-C.
    pub(crate) fn interrupt(&self) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-INT", &pid]).status().expect("kill");
        assert!(sent.success());
    }

    /// `kill -9`.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("a kill");
        self.child.wait().expect("its end");
    }

    /// Waits for its end.
    pub(crate) fn end(mut self) -> Ran {
        Ran {
            stdout: self.stdout.until_the_end(),
            stderr: self.stderr.until_the_end(),
            code: self.child.wait().expect("an end").code(),
        }
    }
}

/// What a process has said, read as it says it.
struct Heard {
    text: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
}

impl Heard {
    fn from(pipe: impl Read + Send + 'static) -> Self {
        let text = Arc::new(Mutex::new(String::new()));
        let heard = text.clone();
        let reader = std::thread::spawn(move || {
            let mut pipe = BufReader::new(pipe);
            let mut line = String::new();
            while pipe.read_line(&mut line).expect("text") > 0 {
                heard.lock().expect("a lock").push_str(&std::mem::take(&mut line));
            }
        });
        Self { text, reader }
    }

    fn so_far(&self) -> String {
        self.text.lock().expect("a lock").clone()
    }

    fn until_the_end(self) -> String {
        self.reader.join().expect("its reader");
        Arc::into_inner(self.text)
            .expect("nobody else")
            .into_inner()
            .expect("a lock")
    }
}

impl Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Self {
            code: output.status.code(),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }

    /// It ended with this code.
    #[track_caller]
    pub(crate) fn code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self
    }

    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        self.code(0)
    }

    /// It said this on stderr.
    #[track_caller]
    pub(crate) fn says(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "no `{text}` in {self:?}");
        self
    }

    /// The run's id on stdout, and nothing else.
    #[track_caller]
    pub(crate) fn id(&self) -> String {
        assert_eq!(self.stdout.lines().count(), 1, "{self:?}");
        self.stdout.trim().to_owned()
    }
}
