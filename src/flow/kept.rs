//! Connections that a worker keeps open from one tenant to the next of the same database, each with its slot. Opening
//! one costs more than a small migration does.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use futures_util::future::join_all;

use crate::{
    domain::job::{AttemptId, Claim},
    locked::locked,
    session::{EXIT_LIMIT, TenantSession},
};

/// How many tenants a connection may see. A backend never forgets a table that it has touched, at some 8 KB for each
/// schema; and a slot that is never given back is one that no other worker gets.
const MAX_TENANTS: u32 = 200;

/// How old it may become, for tenants that take longer: also so that other workers get their turn.
const MAX_AGE: Duration = Duration::from_secs(60);

/// How long closing one may take. What does not close by then is cut.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// An open connection that has just done its work for a tenant and forgotten all about it.
pub(super) struct OpenSession {
    pub(super) session: TenantSession,
    /// The database that it is connected to.
    pub(super) database: String,
    /// Its process on the server.
    pub(super) backend: i32,
    opened: Instant,
    tenants: u32,
}

impl OpenSession {
    /// A session that was opened just now.
    pub(super) fn new(session: TenantSession, database: &str, backend: i32) -> Self {
        Self {
            session,
            database: database.to_owned(),
            backend,
            opened: Instant::now(),
            tenants: 0,
        }
    }

    /// Counts a tenant, and says whether it may see another one.
    pub(super) fn served(&mut self) -> bool {
        self.tenants += 1;
        self.tenants < MAX_TENANTS && self.opened.elapsed() < MAX_AGE
    }

    /// Ends it. The server's process goes a moment later: a slot that is given away by way of the control database comes later than
    /// that, and who connects in its place at once waits, as [`close_all`](super::execute::close_all) does.
    pub(super) async fn close(self) {
        let _ = tokio::time::timeout(CLOSE_LIMIT, self.session.close()).await;
    }
}

struct Entry {
    kept: OpenSession,
    /// The attempt after which it was kept: what its slots' rows name.
    after: AttemptId,
    /// All slots that were kept after it: the tool of a live one had a connection, too.
    slots: Vec<i32>,
    since: Instant,
    /// Whether the end of that attempt was written. Before that its slot is not a kept one yet, and cannot be given back.
    settled: bool,
    /// Whether a claim has taken its slot again, and is about to come for it.
    claimed: bool,
}

/// The kept connections of a worker, by server and slot.
#[derive(Default)]
pub(super) struct Kept {
    state: Mutex<State>,
    /// Held while connections are being closed: a claim may have taken their slots already.
    closing: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    entries: HashMap<(String, i32), Entry>,
    /// The attempts whose slots were kept, and whose connections are closed by now, or have gone on to another attempt.
    closed: Vec<AttemptId>,
}

impl Kept {
    fn state(&self) -> MutexGuard<'_, State> {
        // A panic while it was held cannot have left a half-written entry.
        locked(&self.state)
    }

    /// Keeps a connection under the slot of the attempt that it has just served. Before that attempt is settled: from
    /// then on a claim may take the slot again.
    pub(super) fn put(&self, claim: &Claim, kept: OpenSession) {
        let Some(slot) = claim.slots.first() else {
            return;
        };
        let entry = Entry {
            kept,
            after: claim.attempt,
            slots: claim.slots.clone(),
            since: Instant::now(),
            settled: false,
            claimed: false,
        };
        self.state()
            .entries
            .insert((claim.place.server.clone(), *slot), entry);
    }

    /// The end of the attempt that a connection was kept after is written: its slot is a kept one now.
    pub(super) fn settled(&self, claim: &Claim) {
        let mut state = self.state();
        let mut entries = state.entries.values_mut();
        if let Some(entry) = entries.find(|entry| entry.after == claim.attempt) {
            entry.settled = true;
        }
    }

    /// A claim was made: what it comes for is not idle.
    pub(super) fn claimed(&self, claim: &Claim) {
        let mut state = self.state();
        for slot in &claim.slots {
            if let Some(entry) = state.entries.get_mut(&(claim.place.server.clone(), *slot)) {
                entry.claimed = true;
            }
        }
    }

    /// The connections that came with the slots of a claim: it must use them, or close them before it opens its own.
    pub(super) async fn take(&self, claim: &Claim) -> Vec<OpenSession> {
        let _closed = self.closing.lock().await;
        let mut state = self.state();
        let slots = claim.slots.iter();
        let entries: Vec<Entry> = slots
            .filter_map(|slot| state.entries.remove(&(claim.place.server.clone(), *slot)))
            .collect();
        for entry in &entries {
            // The claim needs fewer: the others are nobody's now.
            if entry.slots.iter().any(|slot| !claim.slots.contains(slot)) {
                state.closed.push(entry.after);
            }
        }
        entries.into_iter().map(|entry| entry.kept).collect()
    }

    /// Closes those that nobody has asked for in a while, and names the attempts whose slots can go, these and all that
    /// could not be given back before.
    pub(super) async fn close_idle(&self, longer_than: Duration) -> Vec<AttemptId> {
        self.close(|entry| entry.settled && !entry.claimed && entry.since.elapsed() >= longer_than)
            .await
    }

    /// Closes all, also those after attempts whose end could not be written. Names the attempts as well.
    pub(super) async fn close_all(&self) -> Vec<AttemptId> {
        self.close(|_| true).await
    }

    async fn close(&self, which: impl Fn(&Entry) -> bool) -> Vec<AttemptId> {
        let _closing = self.closing.lock().await;
        let (leaving, closed) = {
            let mut state = self.state();
            let leaving: Vec<Entry> = state
                .entries
                .extract_if(|_, entry| which(entry))
                .map(|(_, entry)| entry)
                .collect();
            // Before they are: an interrupted call has dropped them, which closes their sockets.
            state.closed.extend(leaving.iter().map(|entry| entry.after));
            (leaving, state.closed.clone())
        };
        join_all(leaving.into_iter().map(|entry| entry.kept.close())).await;
        if !closed.is_empty() {
            // Also for those that were interrupted here: a socket is closed at once, and a server's process goes later.
            tokio::time::sleep(EXIT_LIMIT).await;
        }
        closed
    }

    /// Takes note that these slots were given back.
    pub(super) fn given_back(&self, attempts: &[AttemptId]) {
        self.state().closed.retain(|attempt| !attempts.contains(attempt));
    }
}
