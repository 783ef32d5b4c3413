//! One warm Python process.

use std::time::Duration;

use percent_encoding::utf8_percent_encode;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    process::{Child, ChildStdin, ChildStdout},
    time::{sleep, timeout},
};

use super::{
    launch::{self, Launch},
    protocol::{
        Answer, Description, Migrated, Migration, Project, Rendered, Rendering, Versions, WarmError,
        Whereabouts, Within,
    },
    stderr::Stderr,
};
use crate::{
    database_url::RESERVED, domain::plan::Session, runner::Halves, scrub::Scrubber, session::DEFAULTS,
};

/// How long a process may take to import Alembic. Half a second is usual; a cold disk and a busy machine take many.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How long it may take to read a project, or to render it: a large application takes a minute to import. Whoever waits for
/// that holds a slot.
const READING_LIMIT: Duration = Duration::from_secs(5 * 60);

/// How long a process may take to be gone whose pipe has ended.
const LAST_STATUS: Duration = Duration::from_millis(250);

/// How often to look whether a silent process still lives. Its end is seen at once by the pipe's end, unless a process
/// that it forked holds the pipe open.
const PULSE: Duration = Duration::from_millis(500);

/// A Python process that has Alembic imported and waits for a tenant.
///
/// It answers one request at a time. Dropping it, or the future of a request, kills its whole process group: nothing
/// goes on migrating that nobody waits for. If this program dies instead, the process sees its pipe end and does the
/// same to itself.
pub struct WarmProcess {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    stderr: Stderr,
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
        let mut process = Self {
            child,
            requests,
            answers: BufReader::new(answers),
            stderr: Stderr::of(stderr),
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
        self.stderr.tail(&self.scrubber)
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

    /// Migrates one tenant, and notes what is half done before that is committed.
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
            "env": rendering.env,
        });
        self.ask_in_time(request).await
    }

    async fn greet(&mut self) -> Result<Versions, WarmError> {
        let script = launch::script();
        let exchange = async {
            self.say(&script).await?;
            self.receive(&()).await
        };
        match timeout(START_LIMIT, exchange).await {
            Ok(greeting) => greeting,
            Err(_) => Err(self.misunderstood(format!("no word from it in {} s", START_LIMIT.as_secs()))),
        }
    }

    /// Asks about nothing that is secret, and does not wait for ever: what a project does when it is imported may never end.
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
        self.stderr.clear();
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
        let _ = timeout(LAST_STATUS, async {
            while !self.has_exited() {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        self.kill_group();
        // The last words may still be on their way.
        self.stderr.end().await;
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
