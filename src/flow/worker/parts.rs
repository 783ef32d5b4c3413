//! What runs beside a worker's queue, and how it comes to its end.

use std::sync::Arc;

use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{LAST_WORDS, Shared, admission::Door, keeper::Keeper, pulse::Pulse, settler::Settler};
use crate::{
    flow::notifier::Notifier,
    queue::{Claimer, Intake, QueueConfig},
    store::{job::ClaimFilter, worker::WorkerRow},
};

/// The tasks of a worker.
pub(super) struct Parts {
    pulse: JoinHandle<()>,
    keeper: JoinHandle<()>,
    settling: JoinHandle<()>,
    keeping: JoinHandle<()>,
    lateness: JoinHandle<()>,
    notifier: Option<JoinHandle<()>>,
    /// Told when the notifier is to end.
    silence: CancellationToken,
}

impl Parts {
    /// Starts them, with what takes the ends of attempts, and what the queue needs.
    pub(super) fn start(
        shared: &Arc<Shared>,
        row: WorkerRow,
        door: Option<Door>,
    ) -> (Self, Settler, QueueConfig) {
        let config = &shared.cx.config.worker;
        let claimer = Arc::new(Claimer {
            line: Arc::clone(&shared.line),
            filter: ClaimFilter {
                worker: row.id.clone(),
                run: row.only_run,
                runner: row.runner.clone(),
                servers: row.servers.clone(),
            },
            room: Arc::new(Semaphore::new(shared.options.concurrency)),
            intake: Arc::clone(shared) as Arc<dyn Intake>,
            drain: shared.drain.clone(),
        });
        let pulse = Pulse {
            pool: shared.cx.pool.clone(),
            row,
            drain: shared.drain.clone(),
            held: Arc::clone(&shared.held),
            health: Arc::clone(&shared.health),
            metrics: shared.metrics.clone(),
            heartbeat: config.heartbeat,
            lease: config.lease,
            door,
        };
        let keeper = Keeper {
            cx: Arc::clone(&shared.cx),
            health: Arc::clone(&shared.health),
            metrics: shared.metrics.clone(),
            lease: config.lease,
        };
        let (next, handed) = mpsc::unbounded_channel();
        let (settler, settling) = Settler::new(Arc::clone(&claimer), Arc::clone(&shared.held), next);
        let silence = CancellationToken::new();
        let notifier = Notifier::new(&shared.cx.config.notify, shared.cx.pool.clone());
        let parts = Self {
            pulse: shared.spawn_vital("heartbeat", pulse.run()),
            keeper: shared.spawn_vital("keeper", keeper.run()),
            settling: shared.spawn_vital("settler", settling),
            keeping: tokio::spawn(Arc::clone(shared).keep()),
            lateness: tokio::spawn(Arc::clone(shared).end_when_late()),
            notifier: notifier.map(|notifier| tokio::spawn(notifier.run(silence.clone()))),
            silence,
        };
        let queue = QueueConfig {
            claimer,
            poll: config.poll,
            handed,
        };
        (parts, settler, queue)
    }

    /// Ends them, once the queue has: all outcomes are written, or nobody waits for them any more.
    pub(super) async fn end(self, shared: &Shared) {
        end(self.lateness).await;
        end(self.settling).await;
        end(self.keeper).await;
        end(self.keeping).await;
        // First, and whatever the control database does: no session of a tenant's outlives this worker.
        let closed = shared.kept.close_all().await;
        let _ = tokio::time::timeout(LAST_WORDS, shared.release(&closed)).await;
        self.silence.cancel();
        if let Some(notifier) = self.notifier {
            // What it is telling would be told twice. What it does not get done is left to others.
            let _ = tokio::time::timeout(LAST_WORDS, notifier).await;
        }
        // What is left to say goes over the pool's connection: a third one would have no slot.
        end(self.pulse).await;
        shared.give_back_rest().await;
        shared.sign_off().await;
    }
}

/// Ends a task, and waits until it has: its connection is closed then, or back in the pool.
async fn end(task: JoinHandle<()>) {
    task.abort();
    let _ = task.await;
}
