//! The queue: apalis's table and worker runtime, with a persistence of our own. The only file that names apalis.
//!
//! The stock storage retries without delay, prefetches past its slots, and dies with the first database error. This one
//! claims only what it has room for, together with the slots, and answers a database fault by waiting. Heartbeats and
//! outcomes are not its business: they have connections and transactions of their own.

use std::{
    convert::Infallible,
    future::Future,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use apalis::prelude::{Data, Task, TaskBuilder, WorkerBuilder};
use apalis_core::{
    backend::{
        Backend, BackendConfig,
        finalize::Ephemeral,
        persistence::{Persisted, Persistence, TaskEvent},
    },
    layers::Identity,
    worker::context::WorkerContext,
};
use apalis_postgres::PostgresStorage;
use sqlx::{PgConnection, PgPool};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::{
    domain::{backoff::Backoff, job::Claim},
    store::{
        StoreError,
        job::{Allowances, Appetite, claim},
        line::Line,
    },
};

/// How long a claim may take. A connection that died in the middle of it answers never.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a claim waits for more room while other jobs run: those that were settled together give theirs back in this
/// very moment, and a claim costs much the same for one as for ten.
const GATHER: Duration = Duration::from_millis(1);

/// How long to wait after a failed claim: short enough to be back soon, long enough not to hammer a server that is
/// just coming up.
const FAULT_BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(250),
    max: Duration::from_secs(5),
};

/// Makes apalis's tables, in schema `apalis`. Safe to run twice.
///
/// # Errors
/// The role may not create schemas or extensions.
pub async fn setup(pool: &PgPool) -> Result<(), StoreError> {
    PostgresStorage::setup(pool)
        .await
        .map_err(|e| StoreError::Setup(e.to_string()))
}

/// A delivery: a claimed job, and the room that this worker keeps for it while it lives.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The job.
    pub claim: Arc<Claim>,
    _room: Arc<OwnedSemaphorePermit>,
}

/// What tells the rest of the worker about claims, in the moment that they are made.
pub trait Intake: Send + Sync + 'static {
    /// How many more jobs may be taken of each server, now.
    fn allowances(&self) -> Allowances;
    /// Until when this worker's lease runs at least. Asked before a claim is sent.
    fn sure_until(&self) -> Option<Instant>;
    /// These jobs are this worker's now, under the lease that ran when they were asked for. None: nothing is due, or no
    /// slot is free for it.
    fn claimed(&self, claims: &[Claim], sure_until: Option<Instant>);
    /// The control database answered a claim (`true`) or did not.
    fn answered(&self, well: bool);
}

/// What the queue needs to know.
#[derive(Clone)]
pub struct QueueConfig {
    /// The control database.
    pub line: Arc<Line>,
    /// What this worker can take.
    pub appetite: Appetite,
    /// How many jobs it runs at a time.
    pub concurrency: usize,
    /// How often it looks while there is nothing.
    pub poll: Duration,
    /// Told when there may be something before that: a slot of this worker's has become free.
    pub wake: Arc<Notify>,
    /// Told when it is to take nothing more.
    pub drain: CancellationToken,
}

/// Takes deliveries and hands each to `handle`, until `drain` is told; then returns once all are handled. A handler
/// that panics costs nothing but its delivery.
///
/// # Errors
/// apalis's worker ended by itself.
pub async fn run<F, Fut>(config: QueueConfig, intake: Arc<dyn Intake>, handle: F) -> Result<(), String>
where
    F: Fn(Delivery) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let name = config.appetite.worker.clone();
    let drain = config.drain.clone();
    let claims = Claims {
        room: Arc::new(Semaphore::new(config.concurrency)),
        config,
        intake,
        faults: 0,
    };
    // The attempt runs in a task of its own, so that nothing that apalis does to its worker can drop it half way.
    async fn deliver<F, Fut>(delivery: Delivery, handle: Data<Handler<F>>) -> Result<(), Infallible>
    where
        F: Fn(Delivery) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        if tokio::spawn((handle.0.0)(delivery)).await.is_err() {
            warn!("a handler panicked");
        }
        Ok(())
    }
    WorkerBuilder::new(name.as_str())
        .backend(Queue(Persisted::new(claims)))
        .data(Handler(handle))
        .build(deliver::<F, Fut>)
        .run_until(async move {
            drain.cancelled().await;
            Ok::<(), std::io::Error>(())
        })
        .await
        .map_err(|e| e.to_string())
}

/// The handler as apalis's shared data.
#[derive(Clone)]
struct Handler<F>(F);

/// The backend that apalis's worker polls.
struct Queue(Persisted<Claims>);

impl Backend for Queue {
    type Task = Task<Delivery>;
    type Error = Infallible;

    fn poll_ready(&mut self, cx: &mut Context<'_>, worker: &WorkerContext) -> Poll<Result<(), Infallible>> {
        // A heartbeat of apalis's would find a stalled worker alive: ours is elsewhere, so its timer may sleep.
        self.0.poll_ready(cx, worker, Duration::from_secs(3600))
    }

    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
        worker: &WorkerContext,
    ) -> Poll<Option<Result<Task<Delivery>, Infallible>>> {
        self.0.poll_next(cx, worker)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>, worker: &WorkerContext) -> Poll<Result<(), Infallible>> {
        self.0.poll_close(cx, worker)
    }
}

impl BackendConfig for Queue {
    type Args = Delivery;
    type Id = ();
    type Kind = Ephemeral;
    type Config = ();
    type Layer = Identity;

    fn config(&self) -> &() {
        &()
    }

    fn middleware(&mut self, _: &mut WorkerContext) -> Identity {
        Identity::new()
    }
}

/// Our persistence: claims instead of fetches.
#[derive(Clone)]
struct Claims {
    config: QueueConfig,
    intake: Arc<dyn Intake>,
    room: Arc<Semaphore>,
    faults: u32,
}

impl Claims {
    /// Waits until there is room for a job, and takes as much of it as there is.
    async fn take_room(&self) -> Option<Vec<OwnedSemaphorePermit>> {
        let first = Arc::clone(&self.room).acquire_owned().await.ok()?;
        if self.room.available_permits() + 1 < self.config.concurrency {
            tokio::time::sleep(GATHER).await;
        }
        let more = std::iter::from_fn(|| Arc::clone(&self.room).try_acquire_owned().ok());
        Some(std::iter::once(first).chain(more).collect())
    }

    /// One look at the control database. A fault is waited out here: nobody above can do better.
    async fn claim(&mut self, limit: usize) -> Vec<Claim> {
        let sure_until = self.intake.sure_until();
        let problem = match self.try_claim(limit).await {
            Ok(claims) => {
                self.faults = 0;
                self.intake.answered(true);
                self.intake.claimed(&claims, sure_until);
                return claims;
            }
            Err(e) => e.to_string(),
        };
        self.intake.answered(false);
        self.faults += 1;
        if self.faults == 1 {
            warn!(error = %problem, "Cannot take jobs; trying again until it works");
        }
        tokio::time::sleep(FAULT_BACKOFF.delay(self.faults, rand::random())).await;
        Vec::new()
    }

    async fn try_claim(&self, limit: usize) -> Result<Vec<Claim>, StoreError> {
        let claiming = async |line: &mut PgConnection| {
            claim(line, &self.config.appetite, &self.intake.allowances(), limit).await
        };
        self.config.line.with(CLAIM_TIMEOUT, claiming).await
    }
}

impl Persistence for Claims {
    type Compact = Delivery;
    type Response = ();
    type Error = Infallible;

    async fn register(&mut self, _: &WorkerContext) -> Result<(), Infallible> {
        Ok(())
    }

    async fn heartbeat(&mut self, _: &WorkerContext) -> Result<(), Infallible> {
        Ok(())
    }

    /// Returns when it has something: apalis would ask again only after its next heartbeat.
    async fn fetch_next(&mut self, _: &WorkerContext) -> Result<Vec<Task<Delivery>>, Infallible> {
        loop {
            if self.config.drain.is_cancelled() {
                std::future::pending::<()>().await;
            }
            let Some(mut room) = self.take_room().await else {
                std::future::pending().await
            };
            let claims = self.claim(room.len()).await;
            if !claims.is_empty() {
                let deliver = |claim| {
                    let room = Arc::new(room.pop()?);
                    Some(
                        TaskBuilder::new(Delivery {
                            claim: Arc::new(claim),
                            _room: room,
                        })
                        .build(),
                    )
                };
                return Ok(claims.into_iter().filter_map(deliver).collect());
            }
            drop(room);
            tokio::select! {
                // With jitter, so that workers that started together do not ask together.
                () = tokio::time::sleep(self.config.poll.mul_f64(0.75 + rand::random::<f64>() / 2.0)) => {}
                () = self.config.wake.notified() => {}
            }
        }
    }

    /// What was claimed and never begun is found by the drain, which asks the control database what we hold.
    async fn reenqueue_abandoned(
        &mut self,
        tasks: Vec<Task<Delivery>>,
        _: &WorkerContext,
    ) -> Result<u64, Infallible> {
        Ok(tasks.len() as u64)
    }

    async fn handle_events(&mut self, _: Vec<TaskEvent<()>>, _: &WorkerContext) -> Result<(), Infallible> {
        Ok(())
    }

    /// Deliveries are pushed where their jobs become ready, in the same transaction.
    async fn push_tasks(&mut self, _: Vec<Task<Delivery>>) -> Result<(), Infallible> {
        Ok(())
    }
}
