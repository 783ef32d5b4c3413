//! What this worker holds: which attempts, in which step, and whether one was told to stop.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Instant,
};

use tokio_util::sync::CancellationToken;

use crate::domain::job::{Epoch, JobId, Step};

/// Why an attempt was told to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StopReason {
    /// The drain ran out of time: the job goes back.
    Drain,
    /// The run was cancelled: the job is cancelled.
    RunCancelled,
    /// The job went on without this attempt: nothing may be written about it any more.
    Superseded,
}

/// Tells one attempt to stop, and why. The first reason counts.
#[derive(Clone, Debug, Default)]
pub(super) struct Stop {
    token: CancellationToken,
    reason: Arc<OnceLock<StopReason>>,
}

impl Stop {
    fn tell(&self, reason: StopReason) {
        let _ = self.reason.set(reason);
        self.token.cancel();
    }

    /// The reason, once it was told.
    pub(super) fn reason(&self) -> Option<StopReason> {
        self.reason.get().copied()
    }

    /// What a runner listens to.
    pub(super) fn token(&self) -> &CancellationToken {
        &self.token
    }
}

struct Entry {
    epoch: Epoch,
    step: Step,
    published: bool,
    /// Until then nobody can have taken the job away. None: that is not known.
    sure_until: Option<Instant>,
    stop: Stop,
}

/// All attempts of this process, from claim to settlement.
#[derive(Default)]
pub(super) struct Held {
    entries: Mutex<HashMap<JobId, Entry>>,
    /// Claims that were given back because their answer seemed to be lost: it may arrive after all.
    disowned: Mutex<HashSet<(JobId, Epoch)>>,
}

/// An attempt that is held as long as this is.
pub(super) struct HeldEntry<'a> {
    held: &'a Held,
    job: JobId,
    epoch: Epoch,
}

impl Drop for HeldEntry<'_> {
    fn drop(&mut self) {
        self.held.remove(self.job, self.epoch);
    }
}

impl Held {
    fn entries(&self) -> MutexGuard<'_, HashMap<JobId, Entry>> {
        // A panic while it was held cannot have left a half-written entry.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disowned(&self) -> MutexGuard<'_, HashSet<(JobId, Epoch)>> {
        self.disowned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a claim, and until when the lease that it was made under runs.
    pub(super) fn add(&self, job: JobId, epoch: Epoch, sure_until: Option<Instant>) {
        let entry = Entry {
            epoch,
            step: Step::Claimed,
            published: true,
            sure_until,
            stop: Stop::default(),
        };
        if self.disowned().remove(&(job, epoch)) {
            entry.stop.tell(StopReason::Superseded);
        }
        if let Some(older) = self.entries().insert(job, entry) {
            // Ours, lost for a while and won again: the older attempt is a zombie all the same.
            older.stop.tell(StopReason::Superseded);
        }
    }

    /// Takes note of a claim that is given back without ever having been held here.
    pub(super) fn disown(&self, job: JobId, epoch: Epoch) {
        self.disowned().insert((job, epoch));
    }

    /// Takes note that the control database knew these attempts as ours, under a lease that runs until `until` at least.
    pub(super) fn confirm(&self, known: impl Iterator<Item = (JobId, Epoch)>, until: Instant) {
        let mut entries = self.entries();
        for (job, epoch) in known {
            if let Some(entry) = entries.get_mut(&job).filter(|e| e.epoch == epoch) {
                entry.sure_until = Some(until);
            }
        }
    }

    /// Whether an attempt is ours beyond doubt: its job cannot have been given to another worker by now.
    pub(super) fn is_sure(&self, job: JobId, epoch: Epoch) -> bool {
        self.entries()
            .get(&job)
            .is_some_and(|e| e.epoch == epoch && e.sure_until.is_some_and(|until| Instant::now() < until))
    }

    /// Forgets the attempt once this is dropped.
    pub(super) fn entry(&self, job: JobId, epoch: Epoch) -> HeldEntry<'_> {
        HeldEntry {
            held: self,
            job,
            epoch,
        }
    }

    /// Forgets an attempt, unless a newer one took its place.
    fn remove(&self, job: JobId, epoch: Epoch) {
        let mut entries = self.entries();
        if entries.get(&job).is_some_and(|e| e.epoch == epoch) {
            entries.remove(&job);
        }
    }

    /// How an attempt is told to stop.
    pub(super) fn stop(&self, job: JobId, epoch: Epoch) -> Stop {
        self.entries()
            .get(&job)
            .filter(|e| e.epoch == epoch)
            .map(|e| e.stop.clone())
            .unwrap_or_default()
    }

    /// Takes note of the step that an attempt enters. The next heartbeat publishes it.
    pub(super) fn enter(&self, job: JobId, epoch: Epoch, step: Step) {
        if let Some(entry) = self.entries().get_mut(&job).filter(|e| e.epoch == epoch) {
            (entry.step, entry.published) = (step, false);
        }
    }

    /// Whether an attempt is still at work, i.e. its end is not being written yet.
    pub(super) fn is_working(&self, job: JobId, epoch: Epoch) -> bool {
        self.entries()
            .get(&job)
            .is_some_and(|e| e.epoch == epoch && e.step != Step::Settling)
    }

    /// The steps that were entered since the last call.
    pub(super) fn unpublished(&self) -> Vec<(JobId, Epoch, Step)> {
        let mut entries = self.entries();
        let fresh = entries.iter_mut().filter(|(_, e)| !e.published);
        fresh
            .map(|(job, entry)| {
                entry.published = true;
                (*job, entry.epoch, entry.step)
            })
            .collect()
    }

    /// How many attempts there are.
    pub(super) fn len(&self) -> usize {
        self.entries().len()
    }

    /// All attempts.
    pub(super) fn all(&self) -> Vec<(JobId, Epoch)> {
        self.entries().iter().map(|(job, e)| (*job, e.epoch)).collect()
    }

    /// Tells an attempt to stop. False: it was told before, or is not held.
    pub(super) fn tell(&self, job: JobId, epoch: Epoch, reason: StopReason) -> bool {
        let entries = self.entries();
        let Some(entry) = entries
            .get(&job)
            .filter(|e| e.epoch == epoch && e.stop.reason().is_none())
        else {
            return false;
        };
        entry.stop.tell(reason);
        true
    }

    /// Tells all attempts to stop.
    pub(super) fn tell_all(&self, reason: StopReason) {
        for (job, epoch) in self.all() {
            self.tell(job, epoch, reason);
        }
    }
}
