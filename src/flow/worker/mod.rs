//! A worker: the queue, the heartbeat and the keeper around one attempt after the other, until it is drained.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::FutureExt;
use sqlx::PgConnection;
use tokio::{sync::Notify, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, warn};
use uuid::Uuid;

pub(super) use self::{admission::CONTROL_CONNECTIONS, keeper::ROUND};
use self::{admission::Door, parts::Parts, pulse::Health, reach::Reach};
use super::{
    context::Context,
    execute::close_all,
    held::{Held, StopReason},
    kept::Kept,
    plans::Plans,
};
use crate::{
    domain::{job::Claim, run::RunId, worker::control_label},
    locked::locked,
    metrics::{Metrics, WorkerFigures},
    queue::{self, CLAIM_TIMEOUT, Delivery, Intake},
    store::{job::ClaimLimits, line::Line, worker},
};

mod admission;
mod deliver;
mod keeper;
mod parts;
mod pulse;
mod reach;
mod reclaim;
mod settler;
mod sign_on;
mod spare;

/// How many connections a worker's pool to the control database has: claims, outcomes and the keeper share it. They come in
/// batches, so that more would be idle; and each counts against the budget of a server that has tenants, too.
pub const POOL: u32 = 1;

/// How long a drained worker keeps trying to write outcomes. After that its lease runs out, and others take over.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// How a worker is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name: the pod's or the host's. Its id is this plus a random value, so that a restart is another worker.
    pub name: String,
    /// How many jobs it runs at a time.
    pub concurrency: usize,
    /// How long a drain waits for what runs.
    pub drain_timeout: Duration,
    /// Only jobs of this run.
    pub only_run: Option<RunId>,
}

/// A worker that runs. Dropping it does not stop it.
#[derive(Clone)]
pub struct Worker {
    shared: Arc<Shared>,
}

/// How far a worker has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nobody has let it in yet: it has no room for a connection.
    Outside,
    /// Nor has the budget any for it now.
    Waiting,
    /// It may connect.
    Inside,
    /// Its own connections have lost their room.
    SignedOff,
}

/// Why a worker could not work until it was drained.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// apalis's worker ended by itself.
    #[error("the queue's worker ended: {0}")]
    Queue(String),
    /// A part of it that it cannot work without.
    #[error("a part of the worker panicked")]
    Panicked,
}

struct Shared {
    cx: Arc<Context>,
    options: Options,
    id: String,
    held: Arc<Held>,
    reach: Reach,
    kept: Kept,
    /// Told when nothing is due.
    idle: Notify,
    stage: Mutex<Stage>,
    /// To the control database, for what comes often.
    line: Arc<Line>,
    plans: Plans,
    health: Arc<Health>,
    metrics: Metrics,
    drain: CancellationToken,
    hurry: CancellationToken,
    started: Instant,
    /// Milliseconds after `started` when a claim was last answered, well or not: the loop lives.
    claimed_at: AtomicU64,
    /// Whether a part of it is missing that it cannot work without.
    panicked: AtomicBool,
}

impl Worker {
    /// Makes a worker. Nothing runs before [`run`](Self::run).
    pub fn new(cx: Arc<Context>, options: Options, metrics: Metrics) -> Self {
        let id = format!("{}-{}", options.name, Uuid::new_v4().simple());
        let label = control_label(&id);
        cx.pool
            .set_connect_options((*cx.pool.connect_options()).clone().application_name(&label));
        let line = Line::new(cx.pool.clone());
        Self {
            shared: Arc::new(Shared {
                plans: Plans::new(Arc::clone(&line)),
                line,
                kept: Kept::default(),
                idle: Notify::default(),
                stage: Mutex::new(Stage::Outside),
                cx,
                id,
                held: Arc::default(),
                reach: Reach::new(options.concurrency),
                options,
                health: Arc::default(),
                metrics,
                drain: CancellationToken::new(),
                hurry: CancellationToken::new(),
                started: Instant::now(),
                claimed_at: AtomicU64::new(0),
                panicked: AtomicBool::new(false),
            }),
        }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.shared.id
    }

    /// Takes nothing new from now on. [`run`](Self::run) returns once all is finished or given back.
    pub fn drain(&self) {
        self.shared.drain.cancel();
    }

    /// Does not wait for what runs: it is given back now.
    pub fn hurry(&self) {
        self.drain();
        self.shared.hurry.cancel();
    }

    /// Whether it can do its work: its lease runs. Or it waits until the budget has room for it.
    pub fn is_ready(&self) -> bool {
        let shared = &self.shared;
        let waits = shared.stage() == Stage::Waiting;
        !shared.drain.is_cancelled() && (waits || shared.health.is_alive(shared.cx.config.worker.lease))
    }

    /// Whether it may connect to the control database: not before it was let in, and not once it has signed off.
    pub fn may_connect(&self) -> bool {
        self.shared.stage() == Stage::Inside
    }

    /// Whether its loop still turns. A control database that is away does not stop it; a bug would. While all its
    /// room is taken it has nothing to ask.
    pub fn is_alive(&self) -> bool {
        let shared = &self.shared;
        let answered = shared.claimed_at.load(Ordering::Relaxed);
        let silent = (shared.started.elapsed().as_millis() as u64).saturating_sub(answered);
        let busy = shared.held.len() >= shared.options.concurrency;
        busy || shared.drain.is_cancelled() || silent < 60_000
    }

    /// What it is at.
    pub fn figures(&self) -> WorkerFigures {
        let shared = &self.shared;
        WorkerFigures {
            running: shared.held.len(),
            concurrency: shared.options.concurrency,
            control_connections: shared.cx.pool.size(),
            control_idle: shared.cx.pool.num_idle(),
        }
    }

    /// Works until it is drained.
    ///
    /// # Errors
    /// See [`WorkerError`].
    pub async fn run(&self) -> Result<(), WorkerError> {
        let shared = &self.shared;
        let row = shared.row();
        let door = Door::new(&shared.cx, &row);
        if !shared.is_let_in(door.as_ref()).await {
            return Ok(());
        }
        shared.register(&row).await;
        let (parts, settler, queue) = Parts::start(shared, row, door);
        let (handler, settler) = (Arc::clone(shared), Arc::new(settler));
        let deliver = move |delivery: Delivery| {
            let (shared, settler) = (Arc::clone(&handler), Arc::clone(&settler));
            async move { shared.deliver(delivery, &settler).await }
        };
        let ran = queue::run(queue, deliver).await;
        parts.end(shared).await;
        match shared.panicked.load(Ordering::Relaxed) {
            true => Err(WorkerError::Panicked),
            false => ran.map_err(WorkerError::Queue),
        }
    }
}

#[async_trait]
impl Intake for Shared {
    fn sure_until(&self) -> Option<Instant> {
        self.health.sure_until(self.cx.config.worker.lease)
    }

    fn server_since(&self) -> Option<DateTime<Utc>> {
        self.health.server_since(self.cx.config.worker.lease)
    }

    fn claimed(&self, mut claims: Vec<Claim>, sure_until: Option<Instant>) -> Vec<Claim> {
        if claims.is_empty() {
            self.idle.notify_one();
        }
        claims.retain(|claim| {
            let is_new = self.held.add(claim.attempt, sure_until);
            match is_new {
                true => {
                    let server = &claim.place.server;
                    self.reach.claimed(server, claim.attempt.job, Instant::now());
                    self.kept.claimed(claim);
                }
                // It ends by itself, and the next heartbeats give the job back.
                false => warn!(
                    run.id = %claim.run, tenant.id = %claim.tenant, attempt = claim.attempt.epoch,
                    "The control database has gone back in time: this attempt at tenant `{}` is under way already",
                    claim.tenant
                ),
            }
            is_new
        });
        claims
    }

    async fn decline(&self, claims: Vec<Claim>) {
        for claim in &claims {
            // What its slots stand for goes before they do.
            close_all(self.kept.take(claim).await).await;
        }
        let giving = async |line: &mut PgConnection| {
            for claim in &claims {
                worker::give_back(&mut *line, &self.id, claim.attempt).await?;
            }
            Ok(())
        };
        if let Err(error) = self.line.with(CLAIM_TIMEOUT, giving).await {
            // A heartbeat finds jobs that nobody here holds, and gives them back.
            debug!(%error, "Cannot give back jobs that were claimed too late yet");
        }
    }

    fn limits(&self) -> ClaimLimits {
        self.reach.limits(Instant::now())
    }

    fn answered(&self) {
        self.claimed_at
            .store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}

impl Shared {
    fn stage(&self) -> Stage {
        *locked(&self.stage)
    }

    fn enter(&self, stage: Stage) {
        *locked(&self.stage) = stage;
    }

    /// Waits at the door, where there is one. No: it was drained meanwhile.
    async fn is_let_in(&self, door: Option<&Door>) -> bool {
        if let Some(door) = door {
            let looked = |is_full| {
                self.answered();
                self.enter(match is_full {
                    true => Stage::Waiting,
                    false => Stage::Outside,
                });
            };
            tokio::select! {
                () = door.pass(&looked) => {}
                () = self.drain.cancelled() => return false,
            }
        }
        self.enter(Stage::Inside);
        true
    }

    /// Runs a part that lasts as long as the worker. Without it the worker would look alive and do nothing: if it panics, the
    /// worker is drained, and ends with an error.
    fn spawn_vital(
        self: &Arc<Self>,
        part: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_err() {
                error!("The {part} panicked, which is a bug in Herder: draining and ending this worker");
                shared.panicked.store(true, Ordering::Relaxed);
                shared.drain.cancel();
            }
        })
    }

    /// After a drain's time is up, what still runs is told to go back.
    async fn end_when_late(self: Arc<Self>) {
        self.drain.cancelled().await;
        tokio::select! {
            () = tokio::time::sleep(self.options.drain_timeout) => {
                warn!("The drain timed out; returning running jobs");
            }
            () = self.hurry.cancelled() => {}
        }
        self.hurry.cancel();
        loop {
            // Again and again: a claim may have been on its way.
            self.held.tell_all(StopReason::Drain);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}
