//! Ctrl-C.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Ctrl-C, and what an orchestrator sends instead. While one of these lives, neither ends the process.
#[derive(Debug)]
pub(crate) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    /// One that was heard where nothing could be stopped.
    left: bool,
}

impl Interrupts {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            left: false,
        })
    }

    /// Waits for the next one.
    pub(crate) async fn next(&mut self) {
        if std::mem::take(&mut self.left) {
            return;
        }
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Leaves one to what comes next: it could not stop what it was meant for.
    pub(crate) fn leave(&mut self) {
        self.left = true;
    }
}
