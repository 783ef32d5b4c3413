//! What a warm process says on its standard error: the end of it, for the request at hand.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{io::AsyncReadExt, process::ChildStderr, sync::Notify, task::JoinHandle, time::timeout};

use crate::{locked::locked, scrub::Scrubber};

/// How much is kept for a request.
const TAIL: usize = 8 * 1024;

/// How long to wait for it to catch up with what was written elsewhere after it.
const LAG: Duration = Duration::from_millis(250);

/// The standard error of a process, read as it comes.
pub(super) struct Stderr {
    tail: Arc<Tail>,
    reader: JoinHandle<()>,
}

impl Stderr {
    pub(super) fn of(stderr: ChildStderr) -> Self {
        let tail = Arc::new(Tail::default());
        Self {
            reader: tokio::spawn(read(stderr, Arc::clone(&tail))),
            tail,
        }
    }

    /// Forgets what was said so far.
    pub(super) fn clear(&self) {
        self.tail.lock().clear();
    }

    /// The end of what was said, without passwords.
    pub(super) fn tail(&self, scrubber: &Scrubber) -> String {
        let kept = String::from_utf8_lossy(&self.tail.lock()).into_owned();
        let mut clean = scrubber.clean(kept.trim_end());
        // Colours are of no use in a report, and Postgres stores no NUL.
        clean.retain(|c| matches!(c, '\n' | '\t') || !c.is_control());
        let from = clean.len().saturating_sub(TAIL);
        clean[clean.ceil_char_boundary(from)..].to_owned()
    }

    /// Waits until all that was written before the answer is here, and takes the mark off.
    pub(super) async fn wait_for_mark(&self, id: u64) {
        let mark = format!("\u{1e}{id}\n").into_bytes();
        let arrives = async {
            while !self.tail.take_mark(&mark) {
                self.tail.grown.notified().await;
            }
        };
        // A migration may have closed standard error: then there is no mark, and nothing to wait for.
        let _ = timeout(LAG, arrives).await;
    }

    /// Waits for the last words of a process that has ended.
    pub(super) async fn end(&mut self) {
        let _ = timeout(LAG, &mut self.reader).await;
    }
}

impl Drop for Stderr {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

#[derive(Default)]
struct Tail {
    kept: Mutex<Vec<u8>>,
    grown: Notify,
}

impl Tail {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        locked(&self.kept)
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

    fn take_mark(&self, mark: &[u8]) -> bool {
        let mut kept = self.lock();
        let found = kept.windows(mark.len()).rposition(|window| window == mark);
        if let Some(at) = found {
            kept.truncate(at);
        }
        found.is_some()
    }
}

async fn read(mut stderr: ChildStderr, tail: Arc<Tail>) {
    let mut buffer = vec![0; 4096];
    while let Ok(read @ 1..) = stderr.read(&mut buffer).await {
        tail.push(&buffer[..read]);
    }
}
