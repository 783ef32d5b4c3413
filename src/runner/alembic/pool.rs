//! A few warm processes for many tenants.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{launch::Launch, process::WarmProcess, protocol::WarmError};
use crate::locked::locked;

/// At most N warm processes, started when they are needed.
#[derive(Clone)]
pub struct WarmPool {
    shared: Arc<Shared>,
}

struct Shared {
    launch: Launch,
    /// One permit for each process that may be checked out. Idle ones were put back under a permit, and are taken out
    /// before a new one is started, so both together never exceed it.
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<WarmProcess>>,
}

impl Shared {
    fn idle(&self) -> MutexGuard<'_, Vec<WarmProcess>> {
        locked(&self.idle)
    }
}

impl WarmPool {
    /// A pool of at most `size` processes. It starts none yet.
    pub fn new(launch: Launch, size: usize) -> Self {
        let permits = Arc::new(Semaphore::new(size.max(1)));
        Self {
            shared: Arc::new(Shared {
                launch,
                permits,
                idle: Mutex::default(),
            }),
        }
    }

    /// An idle process, or a new one; waits while all are out. Cancel safe.
    pub async fn checkout(&self) -> Result<WarmGuard, WarmError> {
        // The semaphore is never closed, and a permit that is absent only means one process more.
        let permit = Arc::clone(&self.shared.permits).acquire_owned().await.ok();
        let process = match self.take_idle() {
            Some(process) => process,
            None => WarmProcess::spawn(&self.shared.launch).await?,
        };
        Ok(WarmGuard {
            process: Some(process),
            shared: Arc::clone(&self.shared),
            _permit: permit,
        })
    }

    /// The process used last, because its memory is the warmest. One that died while idle is dropped here.
    fn take_idle(&self) -> Option<WarmProcess> {
        let mut idle = self.shared.idle();
        while let Some(process) = idle.pop() {
            if process.is_usable() {
                return Some(process);
            }
        }
        None
    }
}

/// A process that is checked out. Dropped, it goes back to the pool, unless it broke.
pub struct WarmGuard {
    process: Option<WarmProcess>,
    shared: Arc<Shared>,
    // Declared last, so released last: when another checkout runs, the process is back.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Deref for WarmGuard {
    type Target = WarmProcess;

    fn deref(&self) -> &WarmProcess {
        match &self.process {
            Some(process) => process,
            None => unreachable!("only `drop` takes the process out"),
        }
    }
}

impl DerefMut for WarmGuard {
    fn deref_mut(&mut self) -> &mut WarmProcess {
        match &mut self.process {
            Some(process) => process,
            None => unreachable!("only `drop` takes the process out"),
        }
    }
}

impl Drop for WarmGuard {
    fn drop(&mut self) {
        let Some(process) = self.process.take() else {
            return;
        };
        if process.is_usable() {
            self.shared.idle().push(process);
        }
    }
}
