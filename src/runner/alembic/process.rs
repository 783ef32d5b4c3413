//! One warm Python process.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use percent_encoding::utf8_percent_encode;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::protocol::{
    Answer, Description, Migrated, Migration, Project, Rendered, Rendering, Versions, WarmError, Whereabouts,
    Within,
};
use crate::database_url::RESERVED;
use crate::domain::plan::Session;
use crate::runner::Halves;
use crate::scrub::Scrubber;
use crate::session::DEFAULTS;

/// Reads the first script from standard input and runs it. Drops the current directory from Python's path before that:
/// the alembic command does not have it there either, and a `logging.py` in it would stand in for Python's own.
const STARTER: &str = "import sys; sys.path[:] = filter(None, sys.path); source = sys.stdin.buffer; \
    exec(compile(source.read(int(source.readline())), 'herder_warm/bootstrap.py', 'exec'))";

/// Makes the modules below importable.
const BOOTSTRAP: &str = include_str!("warm/bootstrap.py");

/// The other end of the pipe. It travels over the pipe too: no file, so a read-only file system will do.
const MODULES: [(&str, &str); 25] = [
    ("herder_warm", ""),
    ("herder_warm.child", include_str!("warm/child.py")),
    ("herder_warm.clean", include_str!("warm/clean.py")),
    ("herder_warm.codes", include_str!("warm/codes.py")),
    ("herder_warm.connections", include_str!("warm/connections.py")),
    ("herder_warm.drivers", include_str!("warm/drivers.py")),
    ("herder_warm.errors", include_str!("warm/errors.py")),
    ("herder_warm.halves", include_str!("warm/halves.py")),
    ("herder_warm.harmless", include_str!("warm/harmless.py")),
    ("herder_warm.home", include_str!("warm/home.py")),
    ("herder_warm.leftovers", include_str!("warm/leftovers.py")),
    ("herder_warm.looks", include_str!("warm/looks.py")),
    ("herder_warm.migrate", include_str!("warm/migrate.py")),
    ("herder_warm.offline", include_str!("warm/offline.py")),
    ("herder_warm.own", include_str!("warm/own.py")),
    ("herder_warm.pipes", include_str!("warm/pipes.py")),
    ("herder_warm.plain", include_str!("warm/plain.py")),
    ("herder_warm.project", include_str!("warm/project.py")),
    ("herder_warm.run", include_str!("warm/run.py")),
    ("herder_warm.session", include_str!("warm/session.py")),
    ("herder_warm.serve", include_str!("warm/serve.py")),
    ("herder_warm.tries", include_str!("warm/tries.py")),
    ("herder_warm.urls", include_str!("warm/urls.py")),
    ("herder_warm.within", include_str!("warm/within.py")),
    ("herder_warm.words", include_str!("warm/words.py")),
];

/// How long a process may take to import Alembic. Half a second is usual; a cold disk and a busy machine take many.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How long it may take to read a project, or to render it: a large application takes a minute to import. Whoever waits for
/// that holds a slot.
const READING_LIMIT: Duration = Duration::from_secs(5 * 60);

/// How much of its standard error is kept for a request.
const TAIL: usize = 8 * 1024;

/// How often to look whether a silent process still lives. Its end is seen at once by the pipe's end, unless a process
/// that it forked holds the pipe open.
const PULSE: Duration = Duration::from_millis(500);

/// How long to wait for standard error to catch up with an answer that was written after it.
const STDERR_LAG: Duration = Duration::from_millis(250);

/// How to start a process.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The interpreter: a name that is looked up on `PATH`, or an absolute path.
    pub python: PathBuf,
    /// Variables that the user's code must not inherit, beside Herder's own [`Launch::CONTROL_URL`].
    pub env_remove: Vec<String>,
}

impl Launch {
    /// The variable with the control database's URL: not the business of anybody's migrations.
    pub const CONTROL_URL: &str = "HERDER_CONTROL_URL";

    fn command(&self) -> Command {
        let mut command = Command::new(&self.python);
        command
            .args(["-c", STARTER])
            .env_remove(Self::CONTROL_URL)
            // They would lead libpq past the server that the URL names.
            .env_remove("PGHOSTADDR")
            .env_remove("PGSERVICE")
            .env("PYTHONUNBUFFERED", "1")
            // The project's folder stays as it is, and an edited file is never mistaken for its old bytecode, which
            // Python tells apart by size and by time in whole seconds.
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: one signal then ends it with all that a migration started, and a Ctrl-C in the
            // worker's terminal does not reach it.
            .process_group(0)
            .kill_on_drop(true);
        for name in &self.env_remove {
            command.env_remove(name);
        }
        command
    }

    fn python(&self) -> String {
        self.python.display().to_string()
    }
}

/// A Python process that has Alembic imported and waits for a tenant.
///
/// It answers one request at a time. Dropping it, or the future of a request, kills its whole process group: nothing
/// goes on migrating that nobody waits for. If this program dies instead, the process sees its pipe end and does the
/// same to itself.
pub struct WarmProcess {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    stderr: Arc<Tail>,
    stderr_reader: JoinHandle<()>,
    scrubber: Scrubber,
    versions: Versions,
    last_id: u64,
    /// The revisions that are committed by half, as of the last request.
    halves: Vec<String>,
    usable: bool,
}

impl WarmProcess {
    /// Starts Python and waits until it has imported Alembic.
    pub async fn spawn(launch: &Launch) -> Result<Self, WarmError> {
        let missing = |source| WarmError::PythonMissing {
            python: launch.python(),
            source,
        };
        let mut child = launch.command().spawn().map_err(missing)?;
        let (Some(requests), Some(answers), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(missing(std::io::Error::other(
                "its standard streams are not pipes",
            )));
        };
        let tail = Arc::new(Tail::default());
        let mut process = Self {
            child,
            requests,
            answers: BufReader::new(answers),
            stderr_reader: tokio::spawn(read_stderr(stderr, Arc::clone(&tail))),
            stderr: tail,
            scrubber: Scrubber::default(),
            versions: Versions {
                python: String::new(),
                alembic: String::new(),
                sqlalchemy: String::new(),
            },
            last_id: 0,
            halves: Vec::new(),
            usable: true,
        };
        process.versions = process.greet().await.map_err(|error| match error {
            // Whatever it says before it can serve anybody is a failed import.
            WarmError::Tool(error) => WarmError::AlembicMissing {
                python: launch.python(),
                message: error.message,
            },
            other => other,
        })?;
        Ok(process)
    }

    /// What runs the migrations here.
    pub fn versions(&self) -> &Versions {
        &self.versions
    }

    /// Whether it can take another request: no request broke off, and it still lives.
    pub fn is_usable(&self) -> bool {
        self.usable && !self.has_exited()
    }

    /// The revisions of which a part is committed, or may be, while the ledger does not say so yet, by what was heard of the last
    /// request.
    pub(super) fn halves(&self) -> &[String] {
        &self.halves
    }

    /// The end of what it wrote to standard error during the last request, without passwords.
    pub fn stderr_tail(&self) -> String {
        let kept = String::from_utf8_lossy(&self.stderr.lock()).into_owned();
        let mut clean = self.scrubber.clean(kept.trim_end());
        // Colours are of no use in a report, and Postgres stores no NUL.
        clean.retain(|c| matches!(c, '\n' | '\t') || !c.is_control());
        let from = clean.len().saturating_sub(TAIL);
        clean[clean.ceil_char_boundary(from)..].to_owned()
    }

    /// Reads a project: its revisions, its heads, and every mistake that shows without a database.
    pub async fn describe(&mut self, project: &Project) -> Result<Description, WarmError> {
        let request =
            json!({ "do": "describe", "ini": project.ini.to_string_lossy(), "section": project.section });
        self.ask_in_time(request).await
    }

    /// Migrates one tenant. Cancel safe: a dropped future ends the migration, and this process with it.
    pub async fn migrate(
        &mut self,
        project: &Project,
        migration: &Migration<'_>,
    ) -> Result<Migrated, WarmError> {
        self.ask_about("migrate", project, migration, None).await
    }

    /// The same, where what is half done is noted before it is committed.
    pub(super) async fn migrate_noting(
        &mut self,
        project: &Project,
        migration: &Migration<'_>,
        halves: &dyn Halves,
    ) -> Result<Migrated, WarmError> {
        let (request, scrubber) = request_about("migrate", project, migration, None);
        self.ask_noting(request, scrubber, halves).await
    }

    /// Migrates a scratch tenant. What does not stay within it is not committed.
    pub(super) async fn migrate_within(
        &mut self,
        project: &Project,
        migration: &Migration<'_>,
        within: &Within,
    ) -> Result<Migrated, WarmError> {
        self.ask_about("migrate", project, migration, Some(("within", json!(within))))
            .await
    }

    /// Where env.py would take a migration. Changes nothing, wherever that is, but for what env.py does by itself
    /// `within` a scratch tenant.
    pub(super) async fn look(
        &mut self,
        project: &Project,
        migration: &Migration<'_>,
        within: &Within,
    ) -> Result<Whereabouts, WarmError> {
        self.ask_about("look", project, migration, Some(("within", json!(within))))
            .await
    }

    /// What a session to a tenant's database begins with, where the project's driver opens it: `TimeZone`, `DateStyle`.
    pub async fn session(
        &mut self,
        project: &Project,
        migration: &Migration<'_>,
    ) -> Result<Session, WarmError> {
        self.ask_about("session", project, migration, Some(("defaults", DEFAULTS.into())))
            .await
    }

    async fn ask_about<T: DeserializeOwned>(
        &mut self,
        what: &str,
        project: &Project,
        migration: &Migration<'_>,
        besides: Option<(&str, Value)>,
    ) -> Result<T, WarmError> {
        let (request, scrubber) = request_about(what, project, migration, besides);
        self.ask(request, scrubber).await
    }

    /// Renders what Alembic would say to a tenant, in its own offline mode. Connects to nothing.
    pub async fn render(
        &mut self,
        project: &Project,
        rendering: &Rendering<'_>,
    ) -> Result<Rendered, WarmError> {
        let database = utf8_percent_encode(rendering.database, RESERVED);
        let request = json!({
            "do": "render",
            "ini": project.ini.to_string_lossy(),
            "section": project.section,
            "x": project.x,
            "direction": rendering.direction,
            "heads": rendering.heads,
            "target": rendering.target,
            // A name that no resolver ever finds, should anything get as far as that.
            "url": format!("postgresql://herder@herder.invalid/{database}"),
            "scheme": rendering.scheme,
            "schema": rendering.schema,
            "application_name": "herder/render",
            "settings": {},
        });
        self.ask_in_time(request).await
    }

    async fn greet(&mut self) -> Result<Versions, WarmError> {
        let modules = Value::Object(
            MODULES
                .map(|(name, source)| (name.to_owned(), source.into()))
                .into_iter()
                .collect(),
        )
        .to_string();
        let script = format!("{}\n{BOOTSTRAP}{}\n{modules}", BOOTSTRAP.len(), modules.len());
        let exchange = async {
            self.say(&script).await?;
            self.receive(&()).await
        };
        match timeout(START_LIMIT, exchange).await {
            Ok(greeting) => greeting,
            Err(_) => Err(self.misunderstood(format!("no word from it in {} s", START_LIMIT.as_secs()))),
        }
    }

    /// The same, about nothing that is secret, and not for ever: what a project does when it is imported may never end.
    async fn ask_in_time<T: DeserializeOwned>(&mut self, request: Value) -> Result<T, WarmError> {
        match timeout(READING_LIMIT, self.ask(request, Scrubber::default())).await {
            Ok(answer) => answer,
            Err(_) => {
                let minutes = READING_LIMIT.as_secs() / 60;
                Err(self.misunderstood(format!("reading the project took longer than {minutes} minutes")))
            }
        }
    }

    async fn ask<T: DeserializeOwned>(&mut self, request: Value, scrubber: Scrubber) -> Result<T, WarmError> {
        self.ask_noting(request, scrubber, &()).await
    }

    async fn ask_noting<T: DeserializeOwned>(
        &mut self,
        mut request: Value,
        scrubber: Scrubber,
        halves: &dyn Halves,
    ) -> Result<T, WarmError> {
        if !self.usable {
            return Err(self.misunderstood("it was ended before".to_owned()));
        }
        self.last_id += 1;
        self.halves.clear();
        request["id"] = self.last_id.into();
        self.scrubber = scrubber;
        self.stderr.lock().clear();
        let mut line = request.to_string();
        line.push('\n');
        let mut flight = Flight {
            process: self,
            landed: false,
        };
        let answer = flight.process.exchange(&line, halves).await;
        flight.landed = matches!(answer, Ok(_) | Err(WarmError::Tool(_)));
        answer
    }

    async fn exchange<T: DeserializeOwned>(
        &mut self,
        line: &str,
        halves: &dyn Halves,
    ) -> Result<T, WarmError> {
        self.say(line).await?;
        self.receive(halves).await
    }

    async fn say(&mut self, line: &str) -> Result<(), WarmError> {
        match self.requests.write_all(line.as_bytes()).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.died().await),
        }
    }

    async fn receive<T: DeserializeOwned>(&mut self, halves: &dyn Halves) -> Result<T, WarmError> {
        let answer = loop {
            let line = self.line().await?;
            let answer: Answer = match self.read(&line) {
                Ok(answer) => answer,
                Err(error) => return Err(self.misunderstood(format!("its answer is not one: {error}"))),
            };
            if answer.id != self.last_id {
                return Err(self.misunderstood(format!("answer {} to request {}", answer.id, self.last_id)));
            }
            let Some(left) = answer.halves else {
                break answer;
            };
            // It waits: what is not noted is not committed. What is there no more is so already.
            self.halves.retain(|half| left.contains(half));
            halves
                .leave(&left)
                .await
                .map_err(|error| WarmError::Unnoted(Box::new(error)))?;
            self.halves = left;
            self.say("{\"noted\": true}\n").await?;
        };
        self.stderr.wait_for_mark(answer.id).await;
        match (answer.result, answer.error) {
            (_, Some(error)) => Err(WarmError::Tool(error)),
            (result, None) => serde_json::from_value(result.unwrap_or_default())
                .map_err(|error| self.misunderstood(format!("its answer lacks something: {error}"))),
        }
    }

    async fn line(&mut self) -> Result<Vec<u8>, WarmError> {
        let mut line = Vec::new();
        loop {
            tokio::select! {
                read = self.answers.read_until(b'\n', &mut line) => match read {
                    Ok(_) if line.ends_with(b"\n") => return Ok(line),
                    _ => return Err(self.died().await),
                },
                () = sleep(PULSE) => if self.has_exited() { return Err(self.died().await) },
            }
        }
    }

    /// An answer without passwords. A plan stays as it is: its URL was made up, and a text that looks like somebody's URL belongs
    /// to the plan.
    fn read(&self, line: &[u8]) -> serde_json::Result<Answer> {
        let mut answer: Value = serde_json::from_slice(line)?;
        if answer["result"].get("events").is_none() {
            self.scrubber.clean_json(&mut answer);
        }
        serde_json::from_value(answer)
    }

    fn misunderstood(&self, message: String) -> WarmError {
        WarmError::Protocol {
            message,
            stderr_tail: self.stderr_tail(),
        }
    }

    /// Tells how the process ended, and ends what is left of its group. Called once: nothing is asked of it afterwards.
    async fn died(&mut self) -> WarmError {
        // It may have closed its end of the pipe just before it ends: the signal must not hide its own last status.
        let _ = timeout(STDERR_LAG, async {
            while !self.has_exited() {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        self.kill_group();
        // The last words may still be on their way.
        let _ = timeout(STDERR_LAG, &mut self.stderr_reader).await;
        match self.child.wait().await {
            Ok(status) => WarmError::Died {
                status,
                stderr_tail: self.stderr_tail(),
            },
            Err(error) => self.misunderstood(format!("its end is not known: {error}")),
        }
    }

    /// Kills the whole group. Does nothing once the process was reaped, because its number may then be another's.
    fn kill_group(&mut self) {
        self.usable = false;
        if let Some(group) = self.pid() {
            // It fails only when all of them are gone.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }

    /// Whether the process has ended. Looks without reaping it, so that its group can still be killed.
    fn has_exited(&self) -> bool {
        let Some(pid) = self.pid() else { return true };
        let peek = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        !matches!(waitid(WaitId::Pid(pid), peek), Ok(None))
    }

    fn pid(&self) -> Option<Pid> {
        self.child.id().and_then(|id| Pid::from_raw(id.cast_signed()))
    }
}

impl Drop for WarmProcess {
    fn drop(&mut self) {
        self.kill_group();
        self.stderr_reader.abort();
    }
}

/// A request about a tenant, and what must not be seen of it.
fn request_about(
    what: &str,
    project: &Project,
    migration: &Migration<'_>,
    besides: Option<(&str, Value)>,
) -> (Value, Scrubber) {
    let mut request = json!(migration);
    if let Some((name, value)) = besides {
        request[name] = value;
    }
    request["do"] = what.into();
    request["ini"] = json!(project.ini.to_string_lossy());
    request["section"] = json!(project.section);
    request["x"] = json!(project.x);
    (request, Scrubber::of_url(migration.url))
}

/// A request under way. Dropped before its answer arrived, it takes the process with it.
struct Flight<'a> {
    process: &'a mut WarmProcess,
    landed: bool,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if !self.landed {
            self.process.kill_group();
        }
    }
}

/// The end of a process's standard error.
#[derive(Default)]
struct Tail {
    kept: Mutex<Vec<u8>>,
    grown: Notify,
}

impl Tail {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, bytes: &[u8]) {
        let mut kept = self.lock();
        kept.extend_from_slice(bytes);
        // Twice the tail: a password that is cut in two at the front is then never in the part that is shown.
        let surplus = kept.len().saturating_sub(2 * TAIL);
        kept.drain(..surplus);
        drop(kept);
        self.grown.notify_one();
    }

    /// Waits until all that was written before the answer is here, and takes the mark off.
    async fn wait_for_mark(&self, id: u64) {
        let mark = format!("\u{1e}{id}\n").into_bytes();
        let arrives = async {
            while !self.take_mark(&mark) {
                self.grown.notified().await;
            }
        };
        // A migration may have closed standard error: then there is no mark, and nothing to wait for.
        let _ = timeout(STDERR_LAG, arrives).await;
    }

    fn take_mark(&self, mark: &[u8]) -> bool {
        let mut kept = self.lock();
        let found = kept.windows(mark.len()).rposition(|window| window == mark);
        if let Some(at) = found {
            kept.truncate(at);
        }
        found.is_some()
    }
}

async fn read_stderr(mut stderr: ChildStderr, tail: Arc<Tail>) {
    let mut buffer = vec![0; 4096];
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        tail.push(&buffer[..read]);
    }
}
