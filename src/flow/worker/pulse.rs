//! A worker's sign of life: a heartbeat on a connection of its own, and what the control database answers to it.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::admission::Door;
use crate::{
    domain::job::AttemptId,
    flow::held::{Held, StopReason},
    locked::locked,
    metrics::Metrics,
    queue::CLAIM_TIMEOUT,
    store::{StoreError, job, slot::Admission, worker},
};

/// How old a claim must be before "we do not hold it" means that its answer was lost: one that is still on its way is younger.
const LOST_AFTER: Duration = CLAIM_TIMEOUT.saturating_mul(2);

/// What a heartbeat may take before its connection is given up.
const BEAT_TIMEOUT: Duration = Duration::from_secs(5);

/// Since when a worker is believed, by its own monotonic clock.
#[derive(Default)]
pub(super) struct Health {
    state: Mutex<State>,
}

#[derive(Clone, Copy, Default)]
struct State {
    unbroken_since: Option<Instant>,
    /// When the last answered heartbeat was sent. Not when it was answered: the lease began somewhere in between.
    last: Option<Instant>,
    /// Since when the server runs that answered it.
    server_since: Option<DateTime<Utc>>,
    /// When another server than the one before answered for the first time.
    replaced: Option<Instant>,
}

impl Health {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        locked(&self.state)
    }

    /// Takes note of a heartbeat that was sent then, and has just been answered by a server that runs since `since`.
    /// True: another one than before.
    pub(super) fn beat(&self, sent: Instant, lease: Duration, since: DateTime<Utc>) -> bool {
        let mut state = self.state();
        let now = Instant::now();
        let is_other = state.server_since.is_some_and(|known| known != since);
        if is_other {
            state.replaced = Some(now);
        }
        if is_other || state.last.is_none_or(|last| now.duration_since(last) > lease) {
            state.unbroken_since = Some(now);
        }
        (state.last, state.server_since) = (Some(sent), Some(since));
        is_other
    }

    /// Since when the server of the control database runs, if jobs may be taken of it. One that has just taken the place of
    /// another may have lost the last of what that one knew: what it calls free may be in use. Within a lease, whoever uses it
    /// has heard that it is not his, and has ended.
    pub(super) fn server_since(&self, lease: Duration) -> Option<DateTime<Utc>> {
        let state = self.state();
        let is_settled = state.replaced.is_none_or(|at| at.elapsed() >= lease);
        state.server_since.filter(|_| is_settled)
    }

    /// Until when our lease runs at least: until then, nobody takes from us what we hold.
    pub(super) fn sure_until(&self, lease: Duration) -> Option<Instant> {
        Some(self.state().last? + lease)
    }

    /// Whether our lease still runs.
    pub(super) fn is_alive(&self, lease: Duration) -> bool {
        self.state().last.is_some_and(|last| last.elapsed() <= lease)
    }

    /// Whether it ran for a whole lease without a break, on the server that runs since `since`. Only then may we call
    /// others dead: after an outage of the control database everybody's lease has run out, and the first to be back must not
    /// take it all.
    pub(super) fn may_judge(&self, lease: Duration, since: DateTime<Utc>) -> bool {
        let state = *self.state();
        self.is_alive(lease)
            && state.server_since == Some(since)
            && state.unbroken_since.is_some_and(|since| since.elapsed() >= lease)
    }
}

/// What the heartbeat works with.
pub(super) struct Pulse {
    pub(super) pool: PgPool,
    pub(super) row: worker::WorkerRow,
    pub(super) drain: CancellationToken,
    pub(super) held: Arc<Held>,
    pub(super) health: Arc<Health>,
    pub(super) metrics: Metrics,
    pub(super) heartbeat: Duration,
    pub(super) lease: Duration,
    /// Where this worker's own connections are counted, if anywhere.
    pub(super) door: Option<Door>,
}

impl Pulse {
    /// Beats for ever. A fault costs the connection, never the worker.
    pub(super) async fn run(mut self) {
        let mut connection: Option<PgConnection> = None;
        let mut well = true;
        loop {
            let beaten = tokio::time::timeout(BEAT_TIMEOUT, self.beat(&mut connection)).await;
            self.metrics.control_answers(matches!(beaten, Ok(Ok(()))));
            match beaten {
                Ok(Ok(())) if !well => {
                    well = true;
                    info!("The control database answers again");
                }
                Ok(Ok(())) => {}
                failed => {
                    if let Some(broken) = connection.take() {
                        drop(broken);
                    }
                    let error = match failed {
                        Ok(Err(e)) => e.to_string(),
                        _ => format!("no answer in {BEAT_TIMEOUT:?}"),
                    };
                    if std::mem::take(&mut well) {
                        warn!(%error, "Heartbeat failed: the control database does not answer; running attempts continue");
                    }
                }
            }
            tokio::time::sleep(self.heartbeat).await;
        }
    }

    async fn beat(&mut self, connection: &mut Option<PgConnection>) -> Result<(), StoreError> {
        let connection = match connection {
            Some(open) => open,
            None => {
                let mut opened = worker::own_connection(&self.pool).await?;
                // After an outage others may have found our slots without a session, and given them away.
                if let Some(door) = &self.door
                    && door.enter(&mut opened, false).await? == Admission::Full
                {
                    warn!("This worker's own connections exceed the budget for now");
                }
                connection.insert(opened)
            }
        };
        self.row.draining = self.drain.is_cancelled();
        // Before the answer is asked for: what is claimed meanwhile is no contradiction.
        let held = self.held.all();
        let sent = Instant::now();
        let worker::Beat { server_since, known } = worker::beat(connection, &self.row, self.lease).await?;
        if self.health.beat(sent, self.lease, server_since) {
            info!(
                "The control database was restarted, or another has taken its place: taking no jobs for {:?}",
                self.lease
            );
        }
        let ours = known.iter().map(|known| known.attempt);
        self.held.confirm(ours, sent + self.lease);
        self.compare(connection, held, &known).await?;
        let steps = self.held.unpublished();
        if !steps.is_empty() {
            let published = job::publish(connection, &steps).await?;
            self.held.published(
                steps
                    .into_iter()
                    .filter(|(attempt, _)| published.contains(attempt)),
            );
        }
        Ok(())
    }

    /// What we hold against what the control database knows of it.
    async fn compare(
        &self,
        connection: &mut PgConnection,
        held: HashSet<AttemptId>,
        known: &[worker::Holding],
    ) -> Result<(), StoreError> {
        for &worker::Holding {
            attempt,
            cancelled,
            age,
        } in known
        {
            let is_ours = held.contains(&attempt);
            if is_ours && cancelled && self.held.tell(attempt, StopReason::RunCancelled) {
                info!(job = attempt.job, "Stopping an attempt: its run was cancelled");
            }
            if !is_ours && age > LOST_AFTER.as_secs_f64() {
                // First: from the moment that it is given back it may be another worker's.
                if self.held.disown(attempt) && worker::give_back(connection, &self.row.id, attempt).await? {
                    warn!(job = attempt.job, "Returned a job whose claim response was lost");
                }
            }
        }
        let theirs: HashSet<AttemptId> = known.iter().map(|known| known.attempt).collect();
        for attempt in held {
            // One that is just being settled is gone there, too: being told to stop does it no harm any more.
            if !theirs.contains(&attempt)
                && self.held.is_working(attempt)
                && self.held.tell(attempt, StopReason::Superseded)
            {
                self.metrics.fenced();
                warn!(
                    job = attempt.job,
                    attempt = attempt.epoch,
                    "Stopping an attempt: its job no longer belongs to it"
                );
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_server_is_trusted_after_a_lease() {
        let (health, lease) = (Health::default(), Duration::from_secs(3600));
        let (one, other) = (DateTime::UNIX_EPOCH, DateTime::UNIX_EPOCH + lease);
        assert_eq!(health.server_since(lease), None);
        assert!(!health.beat(Instant::now(), lease, one));
        assert!(!health.beat(Instant::now(), lease, one));
        assert_eq!(health.server_since(lease), Some(one));
        assert!(health.beat(Instant::now(), lease, other));
        assert_eq!(health.server_since(lease), None);
        assert_eq!(health.server_since(Duration::ZERO), Some(other));
    }
}
