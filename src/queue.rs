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
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

use crate::{
    domain::{
        backoff::{Backoff, spread},
        job::Claim,
    },
    store::{
        StoreError,
        job::{ClaimFilter, ClaimLimits, claim},
        line::Line,
        run,
    },
};

/// How long a claim may take. A connection that died in the middle of it answers never.
pub(crate) const CLAIM_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait after a failed claim: short enough to be back soon, long enough not to hammer a server that is
/// just coming up.
const FAULT_BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(250),
    max: Duration::from_secs(5),
};

/// How many times within a poll a worker glances whether there is a run, while there is none. Such a glance costs a fraction of a
/// claim, and what it finds late is what somebody waits for who has just started a run.
const GLANCES: u32 = 3;

/// Makes apalis's tables, in schema `apalis`. Safe to run twice. What they are made with by a name without a schema lives
/// in `public`: the session's path must lead there.
///
/// # Errors
/// The role may not create schemas or extensions.
pub async fn setup(connection: &mut PgConnection) -> Result<(), StoreError> {
    let made = PostgresStorage::migrations().run(connection).await;
    made.map_err(|e| StoreError::Setup(e.to_string()))
}

/// The version of the newest of apalis's tables.
pub fn newest_migration() -> Option<i64> {
    PostgresStorage::migrations().iter().map(|m| m.version).max()
}

/// A delivery: a claimed job, and the room that this worker keeps for it while it lives.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The job.
    pub claim: Arc<Claim>,
    /// Goes on to the next job that is claimed in its place.
    pub room: Arc<OwnedSemaphorePermit>,
}

/// What tells the rest of the worker about claims, in the moment that they are made.
#[async_trait]
pub trait Intake: Send + Sync + 'static {
    /// How many more jobs may be taken of each server, now.
    fn limits(&self) -> ClaimLimits;
    /// Until when this worker's lease runs at least. Asked before a claim is sent.
    fn sure_until(&self) -> Option<Instant>;
    /// Since when the server runs that it may take jobs of. None: of none for now.
    fn server_since(&self) -> Option<DateTime<Utc>>;
    /// These jobs are this worker's now, under the lease that ran when they were asked for. None: nothing is due, or no
    /// slot is free for it. Returns those that it can begin.
    fn claimed(&self, claims: Vec<Claim>, sure_until: Option<Instant>) -> Vec<Claim>;
    /// These jobs are not to be begun: the worker was told to take nothing more while they were claimed. Gives them back.
    async fn decline(&self, claims: Vec<Claim>);
    /// A claim came to its end, answered or not.
    fn answered(&self);
}

/// What became of a claim.
#[derive(Default)]
pub struct Claimed {
    /// The jobs.
    pub deliveries: Vec<Delivery>,
    /// Whether they take all the room that there was: more may be due.
    is_full: bool,
}

/// Claims jobs for a worker.
pub struct Claimer {
    /// The control database.
    pub line: Arc<Line>,
    /// What the worker can take.
    pub filter: ClaimFilter,
    /// The room for the jobs that it runs at a time.
    pub room: Arc<Semaphore>,
    /// Who is told.
    pub intake: Arc<dyn Intake>,
    /// Told when it is to take nothing more.
    pub drain: CancellationToken,
}

impl Claimer {
    /// Claims where there is a run to claim of. None: there is not.
    async fn look(&self, room: Vec<Arc<OwnedSemaphorePermit>>) -> Result<Option<Claimed>, StoreError> {
        let glancing = async |line: &mut PgConnection| run::is_any_running(line, self.filter.run).await;
        if self.line.with(CLAIM_TIMEOUT, glancing).await? {
            return self.claim(room).await.map(Some);
        }
        self.intake.answered();
        self.intake.claimed(Vec::new(), None);
        Ok(None)
    }

    /// One look at the control database, for no more jobs than there is room for: this, and all that is free besides. What is
    /// claimed takes the first of it.
    ///
    /// # Errors
    /// The control database fails.
    pub async fn claim(&self, mut room: Vec<Arc<OwnedSemaphorePermit>>) -> Result<Claimed, StoreError> {
        let free = std::iter::from_fn(|| Arc::clone(&self.room).try_acquire_owned().ok());
        room.extend(free.map(Arc::new));
        let Some(since) = self.intake.server_since().filter(|_| !self.drain.is_cancelled()) else {
            self.intake.answered();
            return Ok(Claimed::default());
        };
        let sure_until = self.intake.sure_until();
        let claiming = async |line: &mut PgConnection| {
            claim(line, &self.filter, &self.intake.limits(), room.len(), since).await
        };
        let claimed = self.line.with(CLAIM_TIMEOUT, claiming).await;
        self.intake.answered();
        let claims = claimed?;
        if self.drain.is_cancelled() {
            // Whoever waits to be told of them is not asked any more.
            self.intake.decline(claims).await;
            return Ok(Claimed::default());
        }
        let claims = self.intake.claimed(claims, sure_until);
        let is_full = claims.len() == room.len();
        let deliver = |(claim, room)| Delivery {
            claim: Arc::new(claim),
            room,
        };
        Ok(Claimed {
            deliveries: claims.into_iter().zip(room).map(deliver).collect(),
            is_full,
        })
    }
}

/// What the queue needs to know.
pub struct QueueConfig {
    /// What claims.
    pub claimer: Arc<Claimer>,
    /// How often it looks while there is nothing.
    pub poll: Duration,
    /// What was claimed in the place of jobs that ended.
    pub handed: mpsc::UnboundedReceiver<Delivery>,
}

/// Takes deliveries and hands each to `handle`, until `drain` is told; then returns once all are handled. A handler
/// that panics costs nothing but its delivery.
///
/// # Errors
/// apalis's worker ended by itself.
pub async fn run<F, Fut>(config: QueueConfig, handle: F) -> Result<(), String>
where
    F: Fn(Delivery) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let name = config.claimer.filter.worker.clone();
    let drain = config.claimer.drain.clone();
    let claims = Claims {
        claimer: config.claimer,
        poll: config.poll,
        lookout: Arc::new(Mutex::new(Lookout {
            handed: config.handed,
            rest_until: Instant::now(),
            faults: 0,
        })),
    };
    // The attempt runs in a task of its own, so that nothing that apalis does to its worker can drop it half way.
    async fn deliver<F, Fut>(delivery: Delivery, handle: Data<Handler<F>>) -> Result<(), Infallible>
    where
        F: Fn(Delivery) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let claim = Arc::clone(&delivery.claim);
        if let Err(panicked) = tokio::spawn((handle.0.0)(delivery)).await {
            error!(
                run.id = %claim.run, tenant.id = %claim.tenant, attempt = claim.attempt.epoch, error = %panicked,
                "The attempt at tenant `{}` panicked, which is a bug in Herder", claim.tenant
            );
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

fn task(delivery: Delivery) -> Task<Delivery> {
    TaskBuilder::new(delivery).build()
}

/// Our persistence: claims instead of fetches. Each fetch is done by a clone.
#[derive(Clone)]
struct Claims {
    claimer: Arc<Claimer>,
    poll: Duration,
    lookout: Arc<Mutex<Lookout>>,
}

/// What one fetch leaves to the next.
struct Lookout {
    handed: mpsc::UnboundedReceiver<Delivery>,
    /// Until when there is nothing to look for.
    rest_until: Instant,
    faults: u32,
}

impl Lookout {
    /// What was claimed already in the place of jobs that ended.
    async fn handed(&mut self) -> Vec<Delivery> {
        let mut deliveries = Vec::new();
        if self.handed.recv_many(&mut deliveries, usize::MAX).await == 0 {
            // Whoever hands on is gone: the worker is about to end.
            std::future::pending::<()>().await;
        }
        deliveries
    }
}

impl Claims {
    /// Waits until it is time to look, and there is room for a job.
    async fn take_room(&self, rest_until: Instant) -> Arc<OwnedSemaphorePermit> {
        tokio::time::sleep_until(rest_until.into()).await;
        match Arc::clone(&self.claimer.room).acquire_owned().await {
            Ok(room) => Arc::new(room),
            Err(_) => std::future::pending().await,
        }
    }

    /// One look at the control database. A fault is waited out here: nobody above can do better.
    async fn claim(&self, room: Arc<OwnedSemaphorePermit>, lookout: &mut Lookout) -> Vec<Delivery> {
        // In a task of its own: once apalis is told to stop, it polls this future no longer, and a claim left half way would keep the
        // line from whoever writes outcomes.
        let claimer = Arc::clone(&self.claimer);
        let claimed = tokio::spawn(async move { claimer.look(vec![room]).await });
        let claimed = claimed.await.unwrap_or_else(|panicked| {
            error!(error = %panicked, "A claim panicked, which is a bug in Herder");
            Ok(Some(Claimed::default()))
        });
        let mut deliveries = Vec::new();
        let pause = match claimed {
            Ok(Some(claimed)) if claimed.is_full => {
                lookout.faults = 0;
                return claimed.deliveries;
            }
            Ok(found) => {
                lookout.faults = 0;
                let poll = match found {
                    Some(_) => self.poll,
                    None => self.poll / GLANCES,
                };
                deliveries = found.unwrap_or_default().deliveries;
                // With jitter, so that workers that started together do not ask together.
                spread(poll, rand::random())
            }
            Err(error) => {
                lookout.faults += 1;
                if lookout.faults == 1 {
                    warn!(%error, "Cannot take jobs; trying again until it works");
                }
                FAULT_BACKOFF.delay(lookout.faults, rand::random())
            }
        };
        lookout.rest_until = Instant::now() + pause;
        deliveries
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
        let lookout = &mut *self.lookout.lock().await;
        loop {
            if self.claimer.drain.is_cancelled() {
                std::future::pending::<()>().await;
            }
            let rest_until = lookout.rest_until;
            let room = tokio::select! {
                biased;
                deliveries = lookout.handed() => return Ok(deliveries.into_iter().map(task).collect()),
                room = self.take_room(rest_until) => room,
            };
            // Not to be dropped half way: what it claims would be nobody's.
            let deliveries = self.claim(room, lookout).await;
            if !deliveries.is_empty() {
                return Ok(deliveries.into_iter().map(task).collect());
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
