//! The process group of a program, of which nobody stays behind, whatever becomes of this worker.

use std::{io, os::fd::OwnedFd, process::Stdio, time::Duration};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    net::unix::pipe,
    process::{Child, Command},
    task::JoinHandle,
    time::MissedTickBehavior,
};

/// How long the watchman may take to end itself, once it has ended the program.
const LAST_BREATH: Duration = Duration::from_millis(500);

/// How many signs of life a worker gives in the time that it may stand still.
const TICKS: u32 = 5;

/// A process group of which nobody may stay behind. Dropped while armed, it is killed at once: who drops an attempt
/// gives the tenant's lock back in the same moment, so there is no time for a grace.
pub(super) struct Group {
    leader: Option<Pid>,
    watchman: Option<Watchman>,
}

impl Group {
    /// The group of a program, which was started in that of its watchman, if it has one.
    pub(super) fn of(child: &Child, watchman: Option<Watchman>) -> Self {
        let own = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
        Self {
            leader: watchman.as_ref().and_then(Watchman::group).or(own),
            watchman,
        }
    }

    /// Whether the watchman has ended it, which takes the watchman along.
    pub(super) async fn was_ended(&mut self) -> bool {
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
    pub(super) fn signal(&self, signal: Signal) {
        if let Some(group) = self.leader {
            // ESRCH: they are gone already, which is what we want.
            let _ = kill_process_group(group, signal);
        }
    }

    pub(super) fn disarm(mut self) {
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
pub(super) struct Watchman {
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

    pub(super) fn start(stillness: Option<Duration>) -> Option<Self> {
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

    /// The group that a program is to be started in. 0: its own.
    pub(super) fn group_to_join(watchman: Option<&Self>) -> i32 {
        let group = watchman.and_then(Self::group);
        group.map_or(0, |group| group.as_raw_nonzero().get())
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
