//! A throw-away PostgreSQL server: started on demand, gone with whoever started it.
//!
//! `herder demo` and the tests run on it, so that neither needs a server, a container or any set-up. Two small shells
//! hold the promise that nothing stays behind, even after a SIGKILL: each reads a pipe whose other end only this
//! process has, and acts when that end closes, however it came to close.
//!
//! - The *keeper* runs `postgres` and stops it (one keeper per start, so a server can be stopped and started again).
//! - The *sweeper* removes the folder (one for the whole life, from before `initdb`).
//!
//! The server trusts every local user and does not sync to disk. It is no place for data that matters.

mod programs;

use std::{
    ffi::OsString,
    fs,
    io::{self, Read, Seek, SeekFrom},
    net::{Ipv4Addr, TcpListener},
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard},
    thread::sleep,
    time::{Duration, Instant},
};

use rand::Rng;

use self::programs::Programs;
use crate::locked::locked;

/// How long a server may take until it accepts connections. It takes a tenth of a second; a loaded machine, or a
/// recovery after [`ThrowawayPostgres::stop_immediate`], takes longer.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// How long a server may take to stop. PostgreSQL itself kills its children after 5 seconds.
const STOP_LIMIT: Duration = Duration::from_secs(15);

const POLL: Duration = Duration::from_millis(5);

/// Below the range from which Linux (32768) and macOS (49152) take the ports of outgoing connections. In that range a
/// client that reconnects to a stopped server can connect to itself, and the server never gets its port back.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// How often to pick another port when somebody was faster.
const PORT_TRIES: u32 = 10;

/// How much of the server's log an error shows.
const LOG_TAIL: u64 = 2_000;

/// The file that says: a keeper is at work in this folder. We make it, the keeper removes it.
const KEPT: &str = "kept";

/// `sh -c KEEPER keeper PROGRAM…`, in the folder: runs the program until it exits or the pipe on standard input closes.
///
/// SIGQUIT is PostgreSQL's immediate stop. A shell starts background programs with that signal ignored, until
/// PostgreSQL sets its handler: hence the loop, for a stop in the first milliseconds.
const KEEPER: &str = r#"
    exec 3<&0 </dev/null
    "$@" >>log 2>&1 3<&- & program=$!
    { while read -r _; do :; done; while kill -QUIT "$program"; do sleep 0.1; done; } <&3 & stopper=$!
    exec 3<&-
    wait "$program"; code=$?
    kill "$stopper"
    rm -f kept
    exit "$code"
"#;

/// `sh -c SWEEPER sweeper DIR`: removes the folder when the pipe on standard input closes.
///
/// It lets the keeper finish first: a PostgreSQL whose folder goes away fails to give back its shared memory, and
/// leaves it in /dev/shm. The limits (15 and 5 seconds) are for a keeper that was killed, and for stragglers that put a
/// file into a folder which `rm` is about to remove.
const SWEEPER: &str = r#"
    while read -r _; do :; done
    tries=0
    while [ -e "$1/kept" ] && [ $((tries += 1)) -le 150 ]; do sleep 0.1; done
    tries=0
    until rm -rf -- "$1" || [ $((tries += 1)) -gt 50 ]; do sleep 0.1; done
"#;

/// Why there is no throw-away server.
#[derive(Debug, thiserror::Error)]
pub enum ThrowawayError {
    /// This machine has no PostgreSQL server programs in any place where they are known to be.
    #[error(
        "no PostgreSQL server on this machine (looked for `initdb` and `postgres`); install one, or name one:\n  \
         Debian, Ubuntu   sudo apt-get install postgresql\n  \
         Fedora, RHEL     sudo dnf install postgresql-server postgresql-contrib\n  \
         macOS, Homebrew  brew install postgresql@17\n  \
         macOS, an app    Postgres.app, from https://postgresapp.com\n  \
         any other        pass --database-url, or set PG_BIN_DIR to the folder of `initdb`"
    )]
    NotFound,
    /// `PG_BIN_DIR` is set, but names a folder without the server programs. Not passed over in silence: whoever set it
    /// wants that version and no other.
    #[error("PG_BIN_DIR is {}, which lacks `initdb` or `postgres`", .0.display())]
    WrongBinDir(PathBuf),
    /// The server programs are there without the contrib modules, which the queue's own migrations ask for.
    #[error("{} lacks the extensions hstore and pgcrypto: install postgresql-contrib", .0.display())]
    NoContrib(PathBuf),
    /// PostgreSQL refuses to run as root, and there is no account to run it as.
    #[error("running as root, and /etc/passwd has neither `postgres` nor `nobody` to run a server as")]
    NoAccount,
    /// `initdb` failed; what it said.
    #[error("`initdb` failed:\n{0}")]
    Initdb(String),
    /// The server ended before it was ready.
    #[error("the server ended with {status} before it was ready; the end of its log:\n{log}")]
    Ended {
        /// Its exit code, or that of the shell around it.
        status: ExitStatus,
        /// The end of the server's log.
        log: String,
    },
    /// The server runs, but did not get ready in time.
    #[error("the server was not ready after {} seconds; the end of its log:\n{log}", READY_LIMIT.as_secs())]
    NotReady {
        /// The end of the server's log.
        log: String,
    },
    /// No free port was found. (One that was asked for and is taken shows as [`Self::Ended`].)
    #[error("no port to listen on: {0}")]
    NoPort(io::Error),
    /// The operating system refused something.
    #[error("cannot {doing}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
}

/// How to start a [`ThrowawayPostgres`]. The default is any free port and PostgreSQL's own settings.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The port to listen on, on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// Server settings as for `postgres -c NAME=VALUE`. They win over those that this module sets.
    pub parameters: Vec<(String, String)>,
}

impl Settings {
    /// Adds one server setting, such as `max_connections`.
    #[must_use]
    pub fn parameter(mut self, name: &str, value: impl ToString) -> Self {
        self.parameters.push((name.to_owned(), value.to_string()));
        self
    }
}

/// A running PostgreSQL server of our own. Dropping it stops the server and removes its folder.
///
/// All calls block, for a second or so to start: from async code, use `spawn_blocking`.
#[derive(Debug)]
pub struct ThrowawayPostgres {
    programs: Programs,
    account: Option<Account>,
    parameters: Vec<(String, String)>,
    port: u16,
    dir: PathBuf,
    /// `None` while stopped.
    keeper: Mutex<Option<Child>>,
    sweeper: Child,
}

impl ThrowawayPostgres {
    /// Starts a server with the default [`Settings`].
    ///
    /// # Errors
    ///
    /// See [`ThrowawayError`]; nothing stays behind.
    pub fn start() -> Result<Self, ThrowawayError> {
        Self::start_with(&Settings::default())
    }

    /// Starts a server and returns when it accepts connections.
    ///
    /// # Errors
    ///
    /// See [`ThrowawayError`]; nothing stays behind.
    pub fn start_with(settings: &Settings) -> Result<Self, ThrowawayError> {
        let programs = Programs::find()?;
        let account = Account::to_drop_to()?;

        let temp = tempfile::Builder::new()
            .prefix("herder-pg-")
            .tempdir()
            .map_err(io_error("make a temporary folder"))?;
        if let Some(account) = account {
            chown(temp.path(), Some(account.uid), Some(account.gid))
                .map_err(io_error("give the temporary folder to the server's account"))?;
        }
        let mut sweeper = Command::new("/bin/sh");
        sweeper.args(["-c", SWEEPER, "sweeper"]).arg(temp.path());
        let sweeper = in_background(&mut sweeper).map_err(io_error("start /bin/sh"))?;

        // From here on the sweeper removes the folder, also when a later step fails: Drop closes its pipe.
        let mut server = Self {
            programs,
            account,
            parameters: settings.parameters.clone(),
            port: settings.port,
            dir: temp.keep(),
            keeper: Mutex::new(None),
            sweeper,
        };
        server.programs.check_contrib(|program| server.command(program))?;
        server.init()?;
        server.start_on_a_port()?;
        Ok(server)
    }

    /// Where to connect to a database of this server, as its superuser. The name is taken as it is.
    #[must_use]
    pub fn url(&self, database: &str) -> String {
        format!(
            "postgresql://postgres@{}:{}/{database}",
            Ipv4Addr::LOCALHOST,
            self.port
        )
    }

    /// The port on 127.0.0.1. It stays the same over [`Self::restart`].
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder that holds the cluster (`data`), the server's log (`log`) and its socket.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Ends the server as a crash would: sessions break off, and the next start recovers from the log. What was
    /// committed is kept. Does nothing when it is stopped already.
    pub fn stop_immediate(&self) {
        if let Some(keeper) = self.keeper().take() {
            close_and_wait(keeper);
        }
    }

    /// Starts the server again, on the same port and data; stops it first if it runs.
    ///
    /// # Errors
    ///
    /// [`ThrowawayError::Ended`] or [`ThrowawayError::NotReady`]. The server is then stopped; a further call may work.
    pub fn restart(&self) -> Result<(), ThrowawayError> {
        self.stop_immediate();
        *self.keeper() = Some(self.run(self.port)?);
        Ok(())
    }

    fn keeper(&self) -> MutexGuard<'_, Option<Child>> {
        locked(&self.keeper)
    }

    fn init(&self) -> Result<(), ThrowawayError> {
        let mut initdb = vec![self.programs.initdb().into_os_string()];
        initdb.extend(
            [
                "-U",
                "postgres",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "--locale=C",
                "-N",
                "-D",
                "data",
            ]
            .map(Into::into),
        );
        let mut keeper = self.keep(&initdb)?;
        // Not `wait`: it closes the pipe, which tells the keeper to end the program.
        let status = loop {
            match keeper.try_wait().map_err(io_error("wait for `initdb`"))? {
                Some(status) => break status,
                None => sleep(POLL),
            }
        };
        if status.success() {
            Ok(())
        } else {
            Err(ThrowawayError::Initdb(self.log_tail(0)))
        }
    }

    fn start_on_a_port(&mut self) -> Result<(), ThrowawayError> {
        let wanted = self.port;
        let mut tries = 1;
        loop {
            let port = if wanted == 0 { free_port()? } else { wanted };
            match self.run(port) {
                Ok(keeper) => {
                    self.port = port;
                    *self.keeper() = Some(keeper);
                    return Ok(());
                }
                // The port was free a moment ago: somebody else took it in between.
                Err(ThrowawayError::Ended { log, .. })
                    if wanted == 0 && tries < PORT_TRIES && log.contains("could not bind") =>
                {
                    tries += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Runs `postgres` under a keeper until it is ready.
    fn run(&self, port: u16) -> Result<Child, ThrowawayError> {
        let stale = self.pid_file();
        let log_start = fs::metadata(self.log()).map_or(0, |log| log.len());

        let mut postgres = vec![
            self.programs.postgres().into_os_string(),
            "-D".into(),
            "data".into(),
        ];
        // A crash of the server, unlike one of the machine, loses nothing without fsync and full_page_writes. It would
        // with synchronous_commit off: that stays on, or a test could not rely on what it committed.
        let own = [
            ("fsync", "off"),
            ("full_page_writes", "off"),
            ("listen_addresses", "127.0.0.1"),
            ("unix_socket_directories", &self.dir.to_string_lossy()),
        ];
        let given = self
            .parameters
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()));
        let port = port.to_string();
        for (name, value) in own.into_iter().chain(given).chain([("port", port.as_str())]) {
            postgres.extend(["-c".into(), format!("{name}={value}").into()]);
        }
        let mut keeper = self.keep(&postgres)?;

        let deadline = Instant::now() + READY_LIMIT;
        loop {
            let pid_file = self.pid_file();
            // A postmaster that was killed leaves its file, which still says `ready`.
            if pid_file != stale && pid_file.lines().nth(7).is_some_and(|line| line.trim() == "ready") {
                return Ok(keeper);
            }
            if let Some(status) = keeper.try_wait().map_err(io_error("wait for the server"))? {
                return Err(ThrowawayError::Ended {
                    status,
                    log: self.log_tail(log_start),
                });
            }
            if Instant::now() > deadline {
                let log = self.log_tail(log_start);
                close_and_wait(keeper);
                return Err(ThrowawayError::NotReady { log });
            }
            sleep(POLL);
        }
    }

    /// Runs a program under a keeper.
    fn keep(&self, program: &[OsString]) -> Result<Child, ThrowawayError> {
        let kept = self.dir.join(KEPT);
        fs::write(&kept, "").map_err(io_error("write to the server's folder"))?;
        let mut shell = self.command(Path::new("/bin/sh"));
        in_background(shell.args(["-c", KEEPER, "keeper"]).args(program)).map_err(|source| {
            // Nobody is there to remove it. The folder goes in any case, only later.
            let _ = fs::remove_file(kept);
            io_error("start /bin/sh")(source)
        })
    }

    /// A command that runs as the server's account, in the server's folder, with no PostgreSQL variable from outside.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir(&self.dir)
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        for name in ["PGDATA", "PGPORT", "PGDATESTYLE", "PGCLIENTENCODING"] {
            command.env_remove(name);
        }
        if let Some(account) = self.account {
            command.uid(account.uid).gid(account.gid);
        }
        command
    }

    fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    /// The text of `postmaster.pid`; empty if there is none.
    fn pid_file(&self) -> String {
        fs::read_to_string(self.dir.join("data/postmaster.pid")).unwrap_or_default()
    }

    /// The end of what the server has logged since `start`, an offset in bytes.
    fn log_tail(&self, start: u64) -> String {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = fs::File::open(self.log())?;
            let from = start.max(file.metadata()?.len().saturating_sub(LOG_TAIL));
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) => String::from_utf8_lossy(&bytes).trim_end().to_owned(),
            Err(error) => format!("(no log: {error})"),
        }
    }
}

impl Drop for ThrowawayPostgres {
    fn drop(&mut self) {
        self.stop_immediate();
        drop(self.sweeper.stdin.take());
        wait_at_most(&mut self.sweeper, STOP_LIMIT);
    }
}

/// The account that a server runs as when we are root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Account {
    uid: u32,
    gid: u32,
}

impl Account {
    /// `None` when we are not root, and so need not change.
    fn to_drop_to() -> Result<Option<Self>, ThrowawayError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let passwd = fs::read_to_string("/etc/passwd").map_err(io_error("read /etc/passwd"))?;
        let account = ["postgres", "nobody"]
            .iter()
            .find_map(|name| Self::named(name, &passwd));
        account.map(Some).ok_or(ThrowawayError::NoAccount)
    }

    /// Looks a name up in the text of /etc/passwd: `initdb` refuses a user id that is not in there.
    fn named(name: &str, passwd: &str) -> Option<Self> {
        passwd.lines().find_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            let [found, _, uid, gid, ..] = fields.as_slice() else {
                return None;
            };
            if *found != name {
                return None;
            }
            Some(Self {
                uid: uid.parse().ok()?,
                gid: gid.parse().ok()?,
            })
        })
    }
}

/// Spawns a shell that lives until its standard input closes. It gets a process group of its own, or Ctrl-C in a
/// terminal would end it before it has done its work.
fn in_background(command: &mut Command) -> io::Result<Child> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
}

fn close_and_wait(mut child: Child) {
    drop(child.stdin.take());
    wait_at_most(&mut child, STOP_LIMIT);
}

fn wait_at_most(child: &mut Child, limit: Duration) {
    let deadline = Instant::now() + limit;
    while let Ok(None) = child.try_wait() {
        if Instant::now() > deadline {
            tracing::warn!(
                "A helper of the throw-away server still runs after {} seconds",
                limit.as_secs()
            );
            return;
        }
        sleep(POLL);
    }
}

/// A port that nobody listens on right now.
fn free_port() -> Result<u16, ThrowawayError> {
    let mut rng = rand::rng();
    let mut last = None;
    for _ in 0..100 {
        let port = rng.random_range(PORTS);
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(_) => return Ok(port),
            Err(error) => last = Some(error),
        }
    }
    Err(ThrowawayError::NoPort(
        last.unwrap_or_else(|| io::ErrorKind::AddrInUse.into()),
    ))
}

fn io_error(doing: &'static str) -> impl FnOnce(io::Error) -> ThrowawayError {
    move |source| ThrowawayError::Io { doing, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_found_by_its_whole_name() {
        let passwd =
            "root:x:0:0::/root:/bin/sh\npostgres2:x:7:7::/:/bin/sh\npostgres:x:101:104:,,,:/:/bin/sh\n";
        assert_eq!(
            Account::named("postgres", passwd),
            Some(Account { uid: 101, gid: 104 })
        );
        assert_eq!(Account::named("nobody", passwd), None);
    }

    #[test]
    fn a_missing_server_names_one_remedy_per_platform() {
        let message = ThrowawayError::NotFound.to_string();
        for remedy in [
            "apt-get install",
            "dnf install",
            "brew install",
            "Postgres.app",
            "--database-url",
        ] {
            assert_eq!(
                message.lines().filter(|line| line.contains(remedy)).count(),
                1,
                "{remedy} in {message}"
            );
        }
    }
}
