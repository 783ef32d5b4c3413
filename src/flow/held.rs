//! What this worker holds: which attempts, in which step, and whether one was told to stop.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Instant,
};

use tokio_util::sync::CancellationToken;

use crate::domain::job::{AttemptId, Step};

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
    step: Step,
    published: bool,
    /// Until then nobody can have taken the job away. None: that is not known.
    sure_until: Option<Instant>,
    stop: Stop,
}

/// All attempts of this process, from claim to settlement.
#[derive(Default)]
pub(super) struct Held {
    entries: Mutex<HashMap<AttemptId, Entry>>,
    /// Claims that were given back because their answer seemed to be lost: it may arrive after all.
    disowned: Mutex<HashSet<AttemptId>>,
}

/// An attempt that is held as long as this is.
pub(super) struct HeldEntry<'a> {
    held: &'a Held,
    attempt: AttemptId,
}

impl Drop for HeldEntry<'_> {
    fn drop(&mut self) {
        self.held.entries().remove(&self.attempt);
    }
}

impl Held {
    fn entries(&self) -> MutexGuard<'_, HashMap<AttemptId, Entry>> {
        // A panic while it was held cannot have left a half-written entry.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn disowned(&self) -> MutexGuard<'_, HashSet<AttemptId>> {
        self.disowned.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a claim, and until when the lease that it was made under runs. False: that very attempt is held
    /// already, and whatever the control database has forgotten about it, there must not be two.
    pub(super) fn add(&self, attempt: AttemptId, sure_until: Option<Instant>) -> bool {
        let entry = Entry {
            step: Step::Claimed,
            published: true,
            sure_until,
            stop: Stop::default(),
        };
        if self.disowned().remove(&attempt) {
            entry.stop.tell(StopReason::Superseded);
        }
        let mut entries = self.entries();
        if entries.contains_key(&attempt) {
            return false;
        }
        // Ours, lost for a while and won again: an older attempt is a zombie all the same.
        for (_, older) in entries.iter().filter(|(other, _)| other.job == attempt.job) {
            older.stop.tell(StopReason::Superseded);
        }
        entries.insert(attempt, entry);
        true
    }

    /// Takes note of a claim that is given back without ever having been held here.
    pub(super) fn disown(&self, attempt: AttemptId) {
        self.disowned().insert(attempt);
    }

    /// Takes note that the control database knew these attempts as ours, under a lease that runs until `until` at least.
    pub(super) fn confirm(&self, known: impl Iterator<Item = AttemptId>, until: Instant) {
        let mut entries = self.entries();
        for attempt in known {
            if let Some(entry) = entries.get_mut(&attempt) {
                entry.sure_until = Some(until);
            }
        }
    }

    /// Whether an attempt is ours beyond doubt: its job cannot have been given to another worker by now.
    pub(super) fn is_sure(&self, attempt: AttemptId) -> bool {
        let until = self.entries().get(&attempt).and_then(|entry| entry.sure_until);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Forgets the attempt once this is dropped.
    pub(super) fn entry(&self, attempt: AttemptId) -> HeldEntry<'_> {
        HeldEntry { held: self, attempt }
    }

    /// How an attempt is told to stop.
    pub(super) fn stop(&self, attempt: AttemptId) -> Stop {
        let stop = self.entries().get(&attempt).map(|entry| entry.stop.clone());
        stop.unwrap_or_default()
    }

    /// Takes note of the step that an attempt enters. The next heartbeat publishes it.
    pub(super) fn enter(&self, attempt: AttemptId, step: Step) {
        if let Some(entry) = self.entries().get_mut(&attempt) {
            (entry.step, entry.published) = (step, false);
        }
    }

    /// Whether an attempt is still at work, i.e. its end is not being written yet.
    pub(super) fn is_working(&self, attempt: AttemptId) -> bool {
        let step = self.entries().get(&attempt).map(|entry| entry.step);
        step.is_some_and(|step| step != Step::Settling)
    }

    /// The steps that were entered since the last call.
    pub(super) fn unpublished(&self) -> Vec<(AttemptId, Step)> {
        let mut entries = self.entries();
        let fresh = entries.iter_mut().filter(|(_, entry)| !entry.published);
        fresh
            .map(|(attempt, entry)| {
                entry.published = true;
                (*attempt, entry.step)
            })
            .collect()
    }

    /// How many attempts there are.
    pub(super) fn len(&self) -> usize {
        self.entries().len()
    }

    /// All attempts.
    pub(super) fn all(&self) -> HashSet<AttemptId> {
        self.entries().keys().copied().collect()
    }

    /// Tells an attempt to stop. False: it was told before, or is not held.
    pub(super) fn tell(&self, attempt: AttemptId, reason: StopReason) -> bool {
        let entries = self.entries();
        let untold = entries
            .get(&attempt)
            .filter(|entry| entry.stop.reason().is_none());
        untold.inspect(|entry| entry.stop.tell(reason)).is_some()
    }

    /// Tells all attempts to stop.
    pub(super) fn tell_all(&self, reason: StopReason) {
        for entry in self.entries().values() {
            entry.stop.tell(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_attempt_is_not_held_twice_and_an_older_one_is_told_to_stop() {
        let (held, first) = (Held::default(), AttemptId { job: 7, epoch: 1 });
        assert!(held.add(first, None));
        let entry = held.entry(first);
        assert!(!held.add(first, None));
        assert_eq!(held.stop(first).reason(), None);
        assert!(held.add(AttemptId { job: 7, epoch: 2 }, None));
        assert_eq!(held.stop(first).reason(), Some(StopReason::Superseded));
        assert_eq!(held.len(), 2);
        drop(entry);
        assert_eq!(held.all(), [AttemptId { job: 7, epoch: 2 }].into());
    }
}
