//! What this worker holds: which attempts, in which step, and whether one was told to stop.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    time::Instant,
};

use tokio_util::sync::CancellationToken;

use crate::domain::job::{AttemptId, Step};
use crate::locked::locked;

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
pub(super) struct Held(Mutex<State>);

#[derive(Default)]
struct State {
    entries: HashMap<AttemptId, Entry>,
    /// Claims that were given back because their answer seemed to be lost: it may arrive after all.
    disowned: HashSet<AttemptId>,
}

/// An attempt that is held as long as this is.
pub(super) struct HeldEntry<'a> {
    held: &'a Held,
    attempt: AttemptId,
}

impl Drop for HeldEntry<'_> {
    fn drop(&mut self) {
        self.held.state().entries.remove(&self.attempt);
    }
}

impl Held {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it was held cannot have left a half-written entry.
        locked(&self.0)
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
        let State { entries, disowned } = &mut *self.state();
        if disowned.remove(&attempt) {
            entry.stop.tell(StopReason::Superseded);
        }
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

    /// Takes note of a claim that is given back without ever having been held here. False: it is held by now.
    pub(super) fn disown(&self, attempt: AttemptId) -> bool {
        let State { entries, disowned } = &mut *self.state();
        let is_lost = !entries.contains_key(&attempt);
        if is_lost {
            disowned.insert(attempt);
        }
        is_lost
    }

    /// Takes note that the control database knew these attempts as ours, under a lease that runs until `until` at least.
    pub(super) fn confirm(&self, known: impl Iterator<Item = AttemptId>, until: Instant) {
        let entries = &mut self.state().entries;
        for attempt in known {
            if let Some(entry) = entries.get_mut(&attempt) {
                entry.sure_until = Some(until);
            }
        }
    }

    /// Whether an attempt is ours beyond doubt: its job cannot have been given to another worker by now.
    pub(super) fn is_sure(&self, attempt: AttemptId) -> bool {
        let until = self
            .state()
            .entries
            .get(&attempt)
            .and_then(|entry| entry.sure_until);
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Forgets the attempt once this is dropped.
    pub(super) fn entry(&self, attempt: AttemptId) -> HeldEntry<'_> {
        HeldEntry { held: self, attempt }
    }

    /// How an attempt is told to stop.
    pub(super) fn stop(&self, attempt: AttemptId) -> Stop {
        let stop = self.state().entries.get(&attempt).map(|entry| entry.stop.clone());
        stop.unwrap_or_default()
    }

    /// Takes note of the step that an attempt enters. The next heartbeat publishes it.
    pub(super) fn enter(&self, attempt: AttemptId, step: Step) {
        if let Some(entry) = self.state().entries.get_mut(&attempt) {
            (entry.step, entry.published) = (step, false);
        }
    }

    /// Whether an attempt is still at work, i.e. its end is not being written yet.
    pub(super) fn is_working(&self, attempt: AttemptId) -> bool {
        let step = self.state().entries.get(&attempt).map(|entry| entry.step);
        step.is_some_and(|step| step != Step::Settling)
    }

    /// The steps that were entered, and are not published yet.
    pub(super) fn unpublished(&self) -> Vec<(AttemptId, Step)> {
        let state = self.state();
        let fresh = state.entries.iter().filter(|(_, entry)| !entry.published);
        fresh.map(|(attempt, entry)| (*attempt, entry.step)).collect()
    }

    /// Takes note that steps were published.
    pub(super) fn published(&self, steps: impl IntoIterator<Item = (AttemptId, Step)>) {
        let mut state = self.state();
        for (attempt, step) in steps {
            let entry = state.entries.get_mut(&attempt);
            if let Some(entry) = entry.filter(|entry| entry.step == step) {
                entry.published = true;
            }
        }
    }

    /// How many attempts there are.
    pub(super) fn len(&self) -> usize {
        self.state().entries.len()
    }

    /// All attempts.
    pub(super) fn all(&self) -> HashSet<AttemptId> {
        self.state().entries.keys().copied().collect()
    }

    /// Tells an attempt to stop. False: it was told before, or is not held.
    pub(super) fn tell(&self, attempt: AttemptId, reason: StopReason) -> bool {
        let entries = &self.state().entries;
        let untold = entries
            .get(&attempt)
            .filter(|entry| entry.stop.reason().is_none());
        untold.inspect(|entry| entry.stop.tell(reason)).is_some()
    }

    /// Tells all attempts to stop.
    pub(super) fn tell_all(&self, reason: StopReason) {
        for entry in self.state().entries.values() {
            entry.stop.tell(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_not_disowned_and_what_is_disowned_stops_when_it_comes() {
        let (held, [ours, lost]) = (Held::default(), [1, 2].map(|job| AttemptId { job, epoch: 1 }));
        assert!(held.add(ours, None));
        assert!(!held.disown(ours) && held.disown(lost));
        assert!(held.add(lost, None));
        assert_eq!(held.stop(ours).reason(), None);
        assert_eq!(held.stop(lost).reason(), Some(StopReason::Superseded));
    }

    #[test]
    fn a_step_is_published_until_it_is_said_to_be() {
        let (held, attempt) = (Held::default(), AttemptId { job: 7, epoch: 1 });
        held.add(attempt, None);
        assert_eq!(held.unpublished(), []);
        held.enter(attempt, Step::Connecting);
        assert_eq!(held.unpublished(), [(attempt, Step::Connecting)]);
        let sent = held.unpublished();
        held.enter(attempt, Step::Migrating);
        held.published(sent);
        assert_eq!(held.unpublished(), [(attempt, Step::Migrating)]);
        held.published([(attempt, Step::Migrating)]);
        assert_eq!(held.unpublished(), []);
    }

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
