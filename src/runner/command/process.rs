//! Runs a program in a process group of its own, and does not come back before the whole group is ended: after the
//! program's exit, after a limit, when told to stop, when dropped, and when this worker is killed.

use std::{
    ffi::OsString,
    io,
    os::{fd::OwnedFd, unix::process::ExitStatusExt},
    path::PathBuf,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::Signal;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    process::{Child, ChildStdin, Command},
};

use super::{
    output::Tail,
    program::cannot_start,
    watchman::{Group, Watchman},
};
use crate::tenant_error::TenantError;

/// How long a program may take to end after SIGTERM. A transaction is rolled back by then; the rest is stubbornness.
const GRACE: Duration = Duration::from_secs(3);

/// How long to wait for the end of the output once the program itself has ended. A daemon that fled from the group
/// may hold the pipe open for ever.
const DRAIN: Duration = Duration::from_secs(1);

/// What became of a program whose worker stood still.
const STOOD_STILL: &str =
    "this worker stood still, and its program was ended: the tenant could have been another worker's by then";

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
        command.process_group(Watchman::group_to_join(watchman.as_ref()));
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
        let group = Group::of(&child, watchman);
        Ok(Self {
            child,
            group,
            talk,
            answer,
        })
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
