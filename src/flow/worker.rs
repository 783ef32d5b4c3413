//! A worker: the queue, the heartbeat and the keeper around [`execute`](super::execute), until it is drained.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio::{
    sync::{Notify, mpsc},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, error, field, info, info_span, warn};
use uuid::Uuid;

use super::{
    admission::Door,
    context::Context,
    enqueue::runner_kind,
    execute::{Attempt, Executed, close_all, verb},
    held::{Held, StopReason},
    herald::Herald,
    keeper::Keeper,
    kept::{Kept, KeptSession},
    plans::Plans,
    pulse::{Health, Pulse},
    reach::Reach,
    settler::Settler,
};
use crate::{
    domain::{
        backoff::Backoff,
        failure::JobError,
        job::{Claim, Epoch, JobId, Step},
        outcome::Settlement,
        run::RunId,
        worker::control_label,
    },
    metrics::{Metrics, WorkerFigures},
    queue::{self, Claimer, Delivery, Intake, QueueConfig},
    store::{
        StoreError,
        job::{Allowances, Appetite, Ended},
        line::Line,
        slot, worker,
    },
    telemetry,
};

/// How often signing on is tried again.
const SIGN_ON_BACKOFF: Backoff = Backoff {
    first: Duration::from_millis(100),
    max: Duration::from_secs(2),
};

/// How long a connection is kept that nobody asks for, while there is other work.
const KEEP: Duration = Duration::from_secs(1);

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

struct Shared {
    cx: Arc<Context>,
    options: Options,
    id: String,
    held: Arc<Held>,
    reach: Reach,
    kept: Kept,
    /// Told when nothing is due.
    idle: Notify,
    /// Whether it waits for room in the budget.
    waiting: AtomicBool,
    /// Whether it was let in: before that, it has no room for a connection, whether or not anybody has told it so.
    admitted: AtomicBool,
    plans: Plans,
    health: Arc<Health>,
    metrics: Metrics,
    drain: CancellationToken,
    draining: Arc<AtomicBool>,
    hurry: CancellationToken,
    started: Instant,
    /// Milliseconds after `started` when a claim was last answered, well or not: the loop lives.
    claimed_at: AtomicU64,
    /// Whether its own connections have lost their room.
    signed_off: AtomicBool,
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
        Self {
            shared: Arc::new(Shared {
                plans: Plans::new(cx.pool.clone()),
                kept: Kept::default(),
                idle: Notify::default(),
                waiting: AtomicBool::new(false),
                admitted: AtomicBool::new(false),
                cx,
                id,
                held: Arc::default(),
                reach: Reach::new(options.concurrency),
                options,
                health: Arc::default(),
                metrics,
                drain: CancellationToken::new(),
                draining: Arc::default(),
                hurry: CancellationToken::new(),
                started: Instant::now(),
                claimed_at: AtomicU64::new(0),
                signed_off: AtomicBool::new(false),
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
        self.shared.draining.store(true, Ordering::Relaxed);
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
        let waits = shared.waiting.load(Ordering::Relaxed);
        !shared.draining.load(Ordering::Relaxed)
            && (waits || shared.health.is_alive(shared.cx.config.worker.lease))
    }

    /// Whether it may connect to the control database: not before it was let in, and not once it has signed off.
    pub fn may_connect(&self) -> bool {
        self.shared.admitted.load(Ordering::Relaxed) && !self.shared.signed_off.load(Ordering::Relaxed)
    }

    /// Whether its loop still turns. A control database that is away does not stop it; a bug would. While all its
    /// room is taken it has nothing to ask.
    pub fn is_alive(&self) -> bool {
        let shared = &self.shared;
        let answered = shared.claimed_at.load(Ordering::Relaxed);
        let silent = (shared.started.elapsed().as_millis() as u64).saturating_sub(answered);
        let busy = shared.held.all().len() >= shared.options.concurrency;
        busy || shared.draining.load(Ordering::Relaxed) || silent < 60_000
    }

    /// What it is at.
    pub fn figures(&self) -> WorkerFigures {
        let shared = &self.shared;
        WorkerFigures {
            running: shared.held.all().len(),
            concurrency: shared.options.concurrency,
            control_connections: shared.cx.pool.size(),
            control_idle: shared.cx.pool.num_idle(),
        }
    }

    /// Works until it is drained.
    ///
    /// # Errors
    /// The queue's runtime broke.
    pub async fn run(&self) -> Result<(), String> {
        let shared = Arc::clone(&self.shared);
        let config = shared.cx.config.worker.clone();
        let row = shared.row();
        let door = Door::new(&shared.cx, &row);
        if let Some(door) = &door {
            let turns = || shared.answered();
            tokio::select! {
                () = door.pass(&shared.waiting, &turns) => {}
                () = shared.drain.cancelled() => return Ok(()),
            }
        }
        shared.admitted.store(true, Ordering::Relaxed);
        shared.register(&row).await;
        let appetite = Appetite {
            worker: row.id.clone(),
            run: row.only_run,
            runner: row.runner.clone(),
            servers: row.servers.clone(),
        };
        let pulse = Pulse {
            pool: shared.cx.pool.clone(),
            row,
            draining: Arc::clone(&shared.draining),
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
        let pulse = shared.spawn_vital("heartbeat", pulse.run());
        let keeper = shared.spawn_vital("keeper", keeper.run());
        let silence = CancellationToken::new();
        let herald = Herald::new(&shared.cx.config.notify, shared.cx.pool.clone())
            .map(|herald| tokio::spawn(herald.run(silence.clone())));
        let claimer = Arc::new(Claimer {
            line: Line::new(shared.cx.pool.clone()),
            appetite,
            intake: Arc::clone(&shared) as Arc<dyn Intake>,
            drain: shared.drain.clone(),
        });
        let (next, handed) = mpsc::unbounded_channel();
        let settler = Arc::new(Settler::start(
            Arc::clone(&claimer),
            Arc::clone(&shared.held),
            next,
        ));
        let queue = QueueConfig {
            claimer,
            concurrency: shared.options.concurrency,
            poll: config.poll,
            handed,
        };
        let handler = Arc::clone(&shared);
        let deliver = move |delivery: Delivery| {
            let (shared, settler) = (Arc::clone(&handler), Arc::clone(&settler));
            async move { shared.deliver(delivery, &settler).await }
        };
        let drained = tokio::spawn(Arc::clone(&shared).end_when_late());
        let keeping = tokio::spawn(Arc::clone(&shared).keep());
        let ran = queue::run(queue, deliver).await;
        end(drained).await;
        end(keeper).await;
        end(keeping).await;
        // First, and whatever the control database does: no session of a tenant's outlives this worker.
        let closed = shared.kept.close_all().await;
        let _ = tokio::time::timeout(LAST_WORDS, shared.release(&closed)).await;
        silence.cancel();
        if let Some(herald) = herald {
            // What it is telling would be told twice. What it does not get done is left to others.
            let _ = tokio::time::timeout(LAST_WORDS, herald).await;
        }
        // What is left to say goes over the pool's connection: a third one would have no slot.
        end(pulse).await;
        shared.give_back_rest().await;
        shared.sign_off().await;
        match shared.panicked.load(Ordering::Relaxed) {
            true => Err("a part of the worker panicked".into()),
            false => ran,
        }
    }
}

impl Intake for Shared {
    fn sure_until(&self) -> Option<Instant> {
        self.health.sure_until(self.cx.config.worker.lease)
    }

    fn claimed(&self, claims: &[Claim], sure_until: Option<Instant>) {
        for claim in claims {
            self.held.add(claim.job, claim.epoch, sure_until);
            self.reach.claimed(&claim.place.server, claim.job, Instant::now());
        }
        if claims.is_empty() {
            self.idle.notify_one();
        }
    }

    fn allowances(&self) -> Allowances {
        self.reach.allowances(Instant::now())
    }

    fn answered(&self) {
        self.claimed_at
            .store(self.started.elapsed().as_millis() as u64, Ordering::Relaxed);
    }
}

impl Shared {
    /// What it says of itself.
    fn row(&self) -> worker::WorkerRow {
        worker::WorkerRow {
            id: self.id.clone(),
            name: self.options.name.clone(),
            concurrency: i32::try_from(self.options.concurrency).unwrap_or(i32::MAX),
            draining: false,
            only_run: self.options.only_run,
            runner: runner_kind(&self.cx.config.runner).into(),
            servers: self.cx.servers.names().map(str::to_owned).collect(),
        }
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
                shared.draining.store(true, Ordering::Relaxed);
                shared.drain.cancel();
            }
        })
    }

    /// Signs on. The control database may be away: then it is waited for.
    async fn register(&self, row: &worker::WorkerRow) {
        let mut tries = 0;
        while let Err(error) = self.sign_on(row).await {
            tries += 1;
            if tries == 1 {
                warn!(%error, "Cannot register this worker; retrying until it works");
            }
            self.answered();
            tokio::select! {
                () = tokio::time::sleep(SIGN_ON_BACKOFF.delay(tries, rand::random())) => {}
                () = self.drain.cancelled() => return,
            }
        }
    }

    async fn sign_on(&self, row: &worker::WorkerRow) -> Result<(), StoreError> {
        // Before the first claim: a job whose worker has no lease is anybody's.
        let mut connection = self.cx.pool.acquire().await?;
        let (sent, lease) = (Instant::now(), self.cx.config.worker.lease);
        worker::beat(&mut connection, row, lease).await?;
        self.health.beat(sent, lease);
        Ok(())
    }

    /// From a claim to its settlement, whatever happens in between.
    async fn deliver(&self, delivery: Delivery, settler: &Settler) {
        let claim = &delivery.claim;
        let started = Instant::now();
        let span = info_span!(
            "attempt", run.id = %claim.run, job.id = claim.job, tenant.id = %claim.tenant, attempt = claim.epoch,
            trace_id = field::Empty
        );
        if let Some(trace) = &claim.trace {
            span.record("trace_id", field::display(trace.trace()));
            telemetry::adopt(&span, trace);
        }
        async {
            let Executed { settlement, kept } = self.attempt(claim).await;
            let server = &claim.place.server;
            self.reach
                .ended(server, claim.job, settlement.as_ref(), Instant::now());
            match settlement {
                Some(settlement) => {
                    self.held.enter(claim.job, claim.epoch, Step::Settling);
                    self.settle(&delivery, settler, &settlement, kept, started.elapsed())
                        .await;
                }
                None => close_all(kept).await,
            }
            self.held.remove(claim.job, claim.epoch);
        }
        .instrument(span)
        .await;
    }

    async fn attempt(&self, claim: &Claim) -> Executed {
        let stop = self.held.stop(claim.job, claim.epoch);
        let enter = |step| {
            self.held.enter(claim.job, claim.epoch, step);
            self.reach.entered(&claim.place.server, claim.job, step);
        };
        let is_sure = || self.held.is_sure(claim.job, claim.epoch);
        let attempt = Attempt {
            cx: &self.cx,
            plans: &self.plans,
            worker: &self.id,
            claim,
            stop: &stop,
            metrics: &self.metrics,
            enter: &enter,
            is_sure: &is_sure,
            connected: AtomicBool::new(false),
            noted: Mutex::new(claim.note.clone()),
        };
        let inherited = self.kept.take(claim).await;
        match AssertUnwindSafe(attempt.execute(inherited)).catch_unwind().await {
            Ok(executed) => executed,
            Err(_) => {
                error!(tenant.id = %claim.tenant, "A bug in Herder: the attempt at tenant `{}` panicked", claim.tenant);
                let reason = "panic".to_owned();
                let message = "a bug in Herder: the attempt panicked".to_owned();
                let hint = Some("the worker's log says where".to_owned());
                Executed {
                    settlement: Some(Settlement::Failed(JobError {
                        reason,
                        message,
                        hint,
                        ..JobError::default()
                    })),
                    kept: None,
                }
            }
        }
    }

    /// Writes an outcome, however long the control database is away; with the connection that is kept, if any.
    async fn settle(
        &self,
        delivery: &Delivery,
        settler: &Settler,
        settlement: &Settlement,
        kept: Option<KeptSession>,
        took: Duration,
    ) {
        let claim = &delivery.claim;
        let ended = Ended::new(claim.job, claim.epoch, settlement, kept.is_some());
        if let Some(kept) = kept {
            self.kept.put(claim, kept);
        }
        let written = tokio::select! {
            written = settler.write(ended, Arc::clone(&delivery.room)) => written,
            () = self.last_words_said() => return,
        };
        if !written {
            // Its slot is somebody else's by now, and so must its connection be.
            close_all(self.kept.take(claim).await).await;
            self.metrics.fenced();
            warn!(
                "The outcome of tenant `{}` came too late: its job no longer belongs to this attempt",
                claim.tenant
            );
            return;
        }
        self.kept.settled(claim);
        self.metrics.settled(settlement, took);
        log(claim, settlement, took);
    }

    /// Once a drain must come to its end, outcomes are waited for no longer than this.
    async fn last_words_said(&self) {
        self.hurry.cancelled().await;
        tokio::time::sleep(LAST_WORDS).await;
    }

    /// Closes kept connections that nobody asks for, and gives back their slots.
    async fn release_kept(&self, longer_than: Duration) {
        let closed = self.kept.close_idle(longer_than).await;
        self.release(&closed).await;
    }

    /// Gives back the slots of connections that were kept after these attempts, and are closed.
    async fn release(&self, attempts: &[(JobId, Epoch)]) {
        if attempts.is_empty() {
            return;
        }
        match slot::release_kept(&self.cx.pool, &self.id, attempts).await {
            Ok(_) => self.kept.given_back(attempts),
            Err(error) => debug!(%error, "Cannot give back the slots of closed connections yet"),
        }
    }

    /// Gives back kept connections as soon as nothing is due, and otherwise after a while.
    async fn keep(self: Arc<Self>) {
        loop {
            let longer_than = tokio::select! {
                () = self.idle.notified() => Duration::ZERO,
                () = tokio::time::sleep(KEEP) => KEEP,
            };
            self.release_kept(longer_than).await;
        }
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

    /// Gives back what the control database thinks that we hold: claims that were never begun.
    async fn give_back_rest(&self) {
        let rest = async {
            let mut connection = self.cx.pool.acquire().await?;
            let row = worker::WorkerRow {
                concurrency: 0,
                draining: true,
                ..self.row()
            };
            let held = worker::beat(&mut connection, &row, self.cx.config.worker.lease).await?;
            for job in held {
                worker::give_back(&mut connection, &self.id, job.job, job.epoch).await?;
            }
            Ok::<_, StoreError>(())
        };
        match tokio::time::timeout(LAST_WORDS, rest).await {
            Ok(Ok(())) => {}
            _ => warn!("Could not return the remaining jobs; their lease will expire"),
        }
    }

    /// Signs off, over the last connection to the control database, and closes that one.
    async fn sign_off(&self) {
        self.signed_off.store(true, Ordering::Relaxed);
        let off = async {
            let mut connection = self.cx.pool.acquire().await?;
            worker::remove(&mut connection, &self.id).await?;
            Ok::<_, StoreError>(connection.close().await?)
        };
        let off = tokio::time::timeout(LAST_WORDS, off).await;
        if let Err(error) = off.unwrap_or(Err(StoreError::Silent(LAST_WORDS))) {
            warn!(%error, "Could not sign off; the lease will expire");
        }
    }
}

/// Ends a task, and waits until it has: its connection is closed then, or back in the pool.
async fn end(task: JoinHandle<()>) {
    task.abort();
    let _ = task.await;
}

/// One line for each ended attempt.
fn log(claim: &Claim, settlement: &Settlement, took: Duration) {
    let tenant = &claim.tenant;
    let duration_ms = took.as_millis() as u64;
    let name = |r: &Option<String>| r.clone().unwrap_or_else(|| "base".into());
    match settlement {
        Settlement::Succeeded { outcome, from, to } => info!(
            duration_ms,
            outcome = outcome.as_str(),
            "{} tenant `{tenant}` from {} to {}",
            verb(claim.direction),
            name(from),
            name(to)
        ),
        Settlement::Failed(e) => error!(
            duration_ms, reason = %e.reason, sqlstate = e.sqlstate.as_deref(), revision = e.revision.as_deref(),
            "Failed to migrate tenant `{tenant}`: {}", e.message
        ),
        Settlement::Retry { error: e, delay, .. } => warn!(
            duration_ms, reason = %e.reason, sqlstate = e.sqlstate.as_deref(),
            "Retrying tenant `{tenant}` in {delay:.1?}: {}", e.message
        ),
        Settlement::Live { at, .. } => warn!(
            duration_ms,
            "Tenant `{tenant}` is at {at}, not where its plan starts: continuing with the migration tool"
        ),
        Settlement::Returned => info!(duration_ms, "Returned tenant `{tenant}`: this worker is draining"),
        Settlement::Skipped(e) => warn!(
            duration_ms,
            "Skipped tenant `{tenant}`, which is no longer listed: {}", e.message
        ),
        Settlement::Cancelled => info!(duration_ms, "Stopped tenant `{tenant}`: its run was cancelled"),
    }
}
