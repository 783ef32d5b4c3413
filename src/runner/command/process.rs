//! Runs a program in a process group of its own, and does not come back before the whole group is ended: after the
//! program's exit, after a limit, when told to stop, when dropped, and when this worker is killed.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{ffi::OsStrExt, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::{
    fs::{Access, access},
    process::{Pid, Signal, kill_process_group},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    process::{Child, ChildStdin, Command},
    task::JoinHandle,
    time::MissedTickBehavior,
};

use super::output::Tail;
use crate::tenant_error::TenantError;

/// How long a program may take to end after SIGTERM. A transaction is rolled back by then; the rest is stubbornness.
const GRACE: Duration = Duration::from_secs(3);

/// How long to wait for the end of the output once the program itself has ended. A daemon that fled from the group
/// may hold the pipe open for ever.
const DRAIN: Duration = Duration::from_secs(1);

/// How long the watchman may take to end itself, once it has ended the program.
const LAST_BREATH: Duration = Duration::from_millis(500);

/// What became of a program whose worker stood still.
const STOOD_STILL: &str =
    "this worker stood still, and its program was ended: the tenant could have been another worker's by then";

/// How many signs of life a worker gives in the time that it may stand still.
const TICKS: u32 = 5;

/// How much is kept of what a program says.
const TAIL: usize = 8 * 1024;

/// How much it may print where its output is what we are after.
const ANSWER: usize = 1024 * 1024;

/// A program to run.
pub(super) struct Invocation {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<String>,
    pub(super) directory: PathBuf,
    /// Set in addition to our own environment.
    pub(super) env: Vec<(String, OsString)>,
    /// Taken out of it.
    pub(super) without: Vec<String>,
    pub(super) stdin: Option<String>,
    /// Whether its standard output is an answer, and not talk.
    pub(super) asked: bool,
    pub(super) limit: Duration,
    /// How long this worker may stand still before the program is ended. None: for ever, since it changes nothing.
    pub(super) stillness: Option<Duration>,
}

/// How it went.
pub(super) struct Finished {
    pub(super) status: ExitStatus,
    /// Its standard output, where that was asked for.
    pub(super) answer: Tail,
    /// All else that it said.
    pub(super) talk: Tail,
}

/// Runs it. `stop` comes back when it must end, with the reason.
pub(super) async fn run(
    invocation: &Invocation,
    stop: impl Future<Output = TenantError>,
) -> Result<Finished, TenantError> {
    let Running {
        mut child,
        mut group,
        talk: mut talk_pipe,
        answer: mut answer_pipe,
    } = Running::start(invocation)
        .map_err(|e| cannot_start(&invocation.program, &invocation.directory, &e))?;
    let (mut talk, mut answer) = (Tail::new(TAIL), Tail::new(ANSWER));
    let stdin = child.stdin.take();
    let ended = {
        let listening = async {
            tokio::join!(
                feed(stdin, invocation.stdin.as_deref().unwrap_or_default()),
                listen(Some(&mut talk_pipe), &mut talk),
                listen(answer_pipe.as_mut(), &mut answer),
            )
        };
        tokio::pin!(listening);
        let mut heard_all = false;
        let ended = {
            let exit = wait(&mut child, &mut listening, &mut heard_all);
            tokio::select! {
                status = exit => status.map_err(|e| TenantError::Connection(format!("lost sight of the program: {e}"))),
                reason = stop => Err(reason),
                () = tokio::time::sleep(invocation.limit) => {
                    let limit = humantime::format_duration(invocation.limit).to_string();
                    Err(match invocation.asked {
                        true => TenantError::NoAnswer(limit),
                        false => TenantError::TimedOut(limit),
                    })
                }
            }
        };
        if ended.is_err() {
            group.signal(Signal::TERM);
            // It goes on being listened to: a full pipe would keep it from ending in good order.
            let exit = wait(&mut child, &mut listening, &mut heard_all);
            let _ = tokio::time::timeout(GRACE, exit).await;
        }
        let ended = match ended {
            Ok(status) if status.signal() == Some(Signal::KILL.as_raw()) && group.was_ended().await => {
                Err(TenantError::Connection(STOOD_STILL.into()))
            }
            ended => ended,
        };
        // Whatever is left of the group: children of a shell, a daemon.
        group.signal(Signal::KILL);
        if ended.is_err() {
            let _ = child.wait().await;
        } else if !heard_all {
            let _ = tokio::time::timeout(DRAIN, &mut listening).await;
        }
        ended
    };
    group.disarm();
    let status = ended?;
    Ok(Finished { status, answer, talk })
}

/// Waits for the exit, and does the listening meanwhile.
async fn wait(
    child: &mut Child,
    listening: &mut (impl Future + Unpin),
    heard_all: &mut bool,
) -> io::Result<ExitStatus> {
    loop {
        tokio::select! {
            biased;
            status = child.wait() => return status,
            _ = &mut *listening, if !*heard_all => *heard_all = true,
        }
    }
}

/// A program that was started.
struct Running {
    child: Child,
    group: Group,
    talk: pipe::Receiver,
    answer: Option<pipe::Receiver>,
}

impl Running {
    fn start(invocation: &Invocation) -> io::Result<Self> {
        // One pipe for both streams keeps their lines in order.
        let (talk, talk_end) = io::pipe()?;
        let mut answer = None;
        let mut command = Command::new(&invocation.program);
        command
            .args(&invocation.arguments)
            .current_dir(&invocation.directory)
            .stderr(talk_end.try_clone()?)
            .stdin(match invocation.stdin {
                Some(_) => Stdio::piped(),
                None => Stdio::null(),
            })
            .kill_on_drop(true);
        let watchman = Watchman::start(invocation.stillness);
        match watchman.as_ref().and_then(Watchman::group) {
            Some(group) => command.process_group(group.as_raw_nonzero().get()),
            None => command.process_group(0),
        };
        if invocation.asked {
            let (reader, writer) = io::pipe()?;
            command.stdout(writer);
            answer = Some(pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?);
        } else {
            command.stdout(talk_end);
        }
        for name in &invocation.without {
            command.env_remove(name);
        }
        command.envs(invocation.env.iter().map(|(name, value)| (name, value)));
        let talk = pipe::Receiver::from_owned_fd(OwnedFd::from(talk))?;
        let child = command.spawn()?;
        // Our ends for writing go with `command`: only the program's own are left.
        let own = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        let group = Group {
            leader: watchman.as_ref().and_then(Watchman::group).or(own),
            watchman,
        };
        Ok(Self {
            child,
            group,
            talk,
            answer,
        })
    }
}

/// A process group of which nobody may stay behind. Dropped while armed, it is killed at once: who drops an attempt
/// gives the tenant's lock back in the same moment, so there is no time for a grace.
struct Group {
    leader: Option<Pid>,
    watchman: Option<Watchman>,
}

impl Group {
    /// Whether the watchman has ended it, which takes the watchman along.
    async fn was_ended(&mut self) -> bool {
        let Some(watchman) = &mut self.watchman else {
            return false;
        };
        let was_ended = tokio::time::timeout(LAST_BREATH, watchman.child.wait())
            .await
            .is_ok();
        if was_ended {
            // Nobody is left to hold the number.
            self.leader = None;
        }
        was_ended
    }

    /// The number stays ours as long as one process of the group was not waited for, as the watchman never is before.
    fn signal(&self, signal: Signal) {
        if let Some(group) = self.leader {
            // ESRCH: they are gone already, which is what we want.
            let _ = kill_process_group(group, signal);
        }
    }

    fn disarm(mut self) {
        self.leader = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// The first process of a group, which kills all of it when this worker is gone, however it went: it reads from a pipe
/// whose other end nobody else has. It does so, too, when this worker stands still: nothing comes over the pipe then, and the
/// tenant is another's before long. Where there is no `sh`, a program outlives a worker that is killed, until the next attempt ends
/// its sessions; where there is no `timeout`, one that stands still.
struct Watchman {
    child: Child,
    _pipe: Pipe,
}

/// The worker's end of a watchman's pipe.
enum Pipe {
    Silent { _end: io::PipeWriter },
    Ticking(JoinHandle<()>),
}

impl Drop for Pipe {
    fn drop(&mut self) {
        if let Self::Ticking(ticks) = self {
            ticks.abort();
        }
    }
}

impl Watchman {
    /// $1 is how long nothing may come, in seconds. A polite signal is for the program; it must not leave it unwatched. `read` knows
    /// no limit of time, and may read more than a byte.
    const SCRIPT: &str = r#"trap '' TERM INT HUP
if [ "$1" ] && command -v timeout && command -v dd; then
    while [ "$(timeout -s KILL "$1" dd bs=1 count=1)" ]; do :; done
else
    read -r _
fi
kill -s KILL 0"#;

    fn start(stillness: Option<Duration>) -> Option<Self> {
        let (reader, writer) = io::pipe().ok()?;
        let seconds = stillness.map(|limit| format!("{:.1}", limit.as_secs_f64()));
        let child = Command::new("/bin/sh")
            .args(["-c", Self::SCRIPT, "watchman", &seconds.unwrap_or_default()])
            .env_clear()
            .current_dir("/")
            .stdin(reader)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        let pipe = match stillness {
            None => Pipe::Silent { _end: writer },
            Some(limit) => {
                let ticks = tick(
                    pipe::Sender::from_owned_fd(OwnedFd::from(writer)).ok()?,
                    limit / TICKS,
                );
                Pipe::Ticking(tokio::spawn(ticks))
            }
        };
        Some(Self {
            child: child.ok()?,
            _pipe: pipe,
        })
    }

    fn group(&self) -> Option<Pid> {
        Pid::from_raw(self.child.id()?.cast_signed())
    }
}

/// Says that this worker is at it, for as long as this is polled.
async fn tick(to: pipe::Sender, every: Duration) {
    let mut ticks = tokio::time::interval(every);
    // After a pause, one is enough.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // A watchman that does not listen has no limit of time.
        let _ = to.try_write(b".");
    }
}

/// Writes what the program reads. One that does not care to read is no error.
async fn feed(stdin: Option<ChildStdin>, text: &str) {
    if let Some(mut stdin) = stdin {
        let _ = stdin.write_all(text.as_bytes()).await;
    }
}

async fn listen(from: Option<&mut (impl AsyncRead + Unpin)>, into: &mut Tail) {
    let Some(from) = from else { return };
    let mut buffer = [0; 4096];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        into.push(&buffer[..n]);
    }
}

fn cannot_start(program: &Path, directory: &Path, error: &io::Error) -> TenantError {
    let named = program.display();
    let (message, hint) = match error.kind() {
        io::ErrorKind::NotFound if !directory.is_dir() => (
            format!("the folder {} does not exist", directory.display()),
            "[runner] `directory` names the folder to run the command in",
        ),
        io::ErrorKind::NotFound => (
            format!("cannot run `{named}`: there is no such program"),
            "install it, or write its path in [runner]; a relative path begins in `directory`",
        ),
        io::ErrorKind::PermissionDenied => (
            format!("cannot run `{named}`: permission denied"),
            "make it executable (chmod +x), or name its interpreter first, as in [\"sh\", \"migrate.sh\"]",
        ),
        _ => (
            format!("cannot run `{named}`: {error}"),
            "see whether it runs by hand, as the worker's user",
        ),
    };
    TenantError::Setup {
        message,
        hint: hint.into(),
    }
}

/// Finds out whether a program could be started, without starting it. A name without a folder is looked for in `path`,
/// as the system does it: the first that may be executed counts.
pub(super) fn find(program: &Path, directory: &Path, path: &OsStr) -> Result<(), TenantError> {
    let candidates: Vec<PathBuf> = match program.as_os_str().as_bytes().contains(&b'/') {
        true => vec![program.to_owned()],
        // A relative folder of PATH begins where the program will run.
        false => env::split_paths(path)
            .map(|folder| directory.join(folder).join(program))
            .collect(),
    };
    let mut why = io::ErrorKind::NotFound;
    let found = directory.is_dir()
        && candidates.iter().any(|candidate| match is_executable(candidate) {
            Ok(true) => true,
            Ok(false) => {
                why = io::ErrorKind::PermissionDenied;
                false
            }
            Err(_) => false,
        });
    match found {
        true => Ok(()),
        false => Err(cannot_start(program, directory, &why.into())),
    }
}

/// Whether this process may execute the file.
fn is_executable(file: &Path) -> io::Result<bool> {
    Ok(fs::metadata(file)?.is_file() && access(file, Access::EXEC_OK).is_ok())
}
