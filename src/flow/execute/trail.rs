//! What an attempt knows of itself on its way.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering},
};

use crate::domain::{outcome::Progress, plan::Note};
use crate::locked::locked;

/// What an attempt knows of itself on its way.
#[derive(Default)]
pub(in crate::flow) struct Trail {
    connected: Mark,
    begun: Mark,
    lost: Mark,
    leaves: Mark,
    noted: Mutex<Option<Note>>,
    in_the_way: Mutex<Option<String>>,
}

impl Trail {
    /// It has a session to the tenant's server.
    pub(super) fn connected(&self) {
        self.connected.set();
    }

    /// The migration itself begins.
    pub(super) fn begun(&self) {
        self.begun.set();
    }

    /// A connection was lost over it, and it goes on over another.
    pub(super) fn lost(&self) {
        self.lost.set();
    }

    /// It, or an attempt before it, has written that something is half applied in its tenant.
    pub(super) fn leaves(&self) {
        self.leaves.set();
    }

    /// How far it got by its plan, or a former one, where the tenant's ledger cannot say so.
    pub(super) fn noted(&self, note: Option<Note>) {
        *locked(&self.noted) = note;
    }

    /// Who was in the way of a lock that it waited for in vain.
    pub(super) fn was_in_the_way(&self, who: Option<String>) {
        *locked(&self.in_the_way) = who;
    }

    pub(super) fn has_connected(&self) -> bool {
        self.connected.is_set()
    }

    pub(super) fn has_lost(&self) -> bool {
        self.lost.is_set()
    }

    pub(super) fn has_left(&self) -> bool {
        self.leaves.is_set()
    }

    pub(super) fn note(&self) -> Option<Note> {
        locked(&self.noted).clone()
    }

    pub(super) fn in_the_way(&self) -> Option<String> {
        locked(&self.in_the_way).clone()
    }

    /// How far it came. `is_open`: its end says nothing of what it may have committed.
    pub(in crate::flow) fn progress(&self, is_open: bool) -> Progress {
        match self.begun.is_set() {
            false => Progress::Prepared,
            true if is_open => Progress::InDoubt,
            true => Progress::Begun,
        }
    }
}

/// What happened, or has not yet.
#[derive(Default)]
struct Mark(AtomicBool);

impl Mark {
    fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
