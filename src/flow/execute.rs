//! One attempt at one tenant, by a plan or live. It ends with what is to be written down.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::future::join_all;
use tracing::{debug, warn};

use super::{
    context::Context,
    held::{Stop, StopReason},
    kept::KeptSession,
    link, live,
    plans::{Known, Plans},
};
use crate::{
    database_url::DatabaseUrl,
    domain::{
        failure::{FailureClass, JobError},
        job::{Claim, Step},
        outcome::{Outcome, Settlement},
        plan::{Note, Plan},
        revision::{Direction, Ledger},
        worker::kept_label,
    },
    metrics::Metrics,
    runner::{
        RunnerError,
        apply::{Applied, Journal, Order, apply, fits},
    },
    session::{Holder, LINGER, SILENCE, TenantSession},
    store,
};

/// How long the infrastructure may be in a job's way before the job fails: long enough for a failover, short enough
/// that a wrong port does not keep a deploy waiting for ever.
const BLOCKED_LIMIT: Duration = Duration::from_secs(5 * 60);

/// How many times the lock is asked for while its holder goes away.
const LOCK_TRIES: usize = 3;

/// How often an attempt in doubt asks whether its job is still its own.
const DOUBT: Duration = Duration::from_millis(50);

/// What an attempt needs besides its claim.
pub(super) struct Attempt<'a> {
    pub(super) cx: &'a Context,
    pub(super) plans: &'a Plans,
    pub(super) claim: &'a Claim,
    /// This worker's id.
    pub(super) worker: &'a str,
    pub(super) stop: &'a Stop,
    pub(super) metrics: &'a Metrics,
    /// Told each step as it is entered.
    pub(super) enter: &'a (dyn Fn(Step) + Send + Sync),
    /// Whether this worker's lease still runs, and the job with it, by this worker's own clock.
    pub(super) is_sure: &'a (dyn Fn() -> bool + Send + Sync),
    /// Whether it has had a session to the tenant's server.
    pub(super) connected: AtomicBool,
    /// How far it got, or a former one, where the tenant's ledger cannot say so.
    pub(super) noted: Mutex<Option<Note>>,
}

/// How an attempt ended.
pub(super) struct Executed {
    /// What is to be written down. None: the job went on without it, and nothing may be.
    pub(super) settlement: Option<Settlement>,
    /// Its connection, where that is fit for another tenant.
    pub(super) kept: Option<KeptSession>,
}

/// Ends sessions. When this returns, their slots may be given away.
pub(super) async fn close_all(sessions: impl IntoIterator<Item = KeptSession>) {
    join_all(sessions.into_iter().map(KeptSession::close)).await;
}

impl Attempt<'_> {
    /// Runs the attempt. `inherited` are the connections that came with its slots. When this returns, all its sessions
    /// are closed but the one that can be kept for another tenant.
    pub(super) async fn execute(&self, inherited: Vec<KeptSession>) -> Executed {
        match self.attempt(inherited).await {
            Ok((settlement, kept)) => Executed {
                settlement: Some(settlement),
                kept,
            },
            Err(error) => {
                if self.may_linger(&error) {
                    tokio::time::sleep(linger(&error)).await;
                }
                Executed {
                    settlement: self.judge(error).await,
                    kept: None,
                }
            }
        }
    }

    /// Whether the server may still be at work for this attempt, because it was broken off. Its slot is not free as long.
    fn may_linger(&self, error: &RunnerError) -> bool {
        (is_broken(error) || matches!(error, RunnerError::Cancelled))
            && self.connected.load(Ordering::Relaxed)
    }

    async fn attempt(
        &self,
        inherited: Vec<KeptSession>,
    ) -> Result<(Settlement, Option<KeptSession>), RunnerError> {
        let Some(id) = &self.claim.plan else {
            return self.live(inherited).await;
        };
        let plan = self.plans.get(id).await;
        let is_lasting = plan.as_ref().is_ok_and(|plan| self.is_lasting(plan));
        let ready = self.pick(inherited, is_lasting).await;
        let plan = plan?;
        let executed = match is_lasting {
            true => self.by_lasting_plan(&plan.plan, ready).await?,
            false => (self.by_plan(&plan.plan).await?, None),
        };
        if let Settlement::Live { at, error } = &executed.0
            && let Err(no_room) = self.has_room_for_tool(at).await
        {
            let Some(error) = error else {
                return Err(no_room);
            };
            let error = error.clone().and_tool(&no_room.to_job_error());
            self.metrics.failed(&error);
            return Ok((Settlement::Failed(error), None));
        }
        Ok(executed)
    }

    /// Nobody would ever claim a job that needs more connections than its server's budget has.
    async fn has_room_for_tool(&self, at: &str) -> Result<(), RunnerError> {
        let (server, needed) = (&self.claim.place.server, self.cx.runner.connections());
        match store::server::job_slots(&self.cx.pool, server).await {
            Ok(Some(slots)) if slots < i32::from(needed) => Err(RunnerError::Setup {
                message: format!(
                    "the tenant is at {at}, where its plan does not fit, and server `{server}` has {slots} in \
                     its budget for attempts, of the {needed} connections that the migration tool needs"
                ),
                hint: format!("raise [servers.{server}] `budget`, and `herder retry`"),
            }),
            _ => Ok(()),
        }
    }

    /// Of the connections that came with the slots, the one for this attempt, turned to its tenant. The others are closed.
    pub(super) async fn pick(
        &self,
        mut inherited: Vec<KeptSession>,
        is_lasting: bool,
    ) -> Option<KeptSession> {
        let place = &self.claim.place;
        let mut ready = inherited
            .iter()
            .position(|kept| is_lasting && kept.database == place.database)
            .map(|at| inherited.swap_remove(at));
        close_all(inherited).await;
        if let Some(kept) = &mut ready {
            self.connected.store(true, Ordering::Relaxed);
            kept.session
                .turn_to(place, self.cx.config.runner.extra_search_path());
        }
        ready
    }

    /// Whether a plan leaves its connection fit for the next tenant: each message brings its own guard and leaves nothing
    /// behind.
    fn is_lasting(&self, known: &Known) -> bool {
        known.plan.is_in_messages()
            && !known.leaves_residue
            && self.is_among_others()
            && self.claim.slots.len() == 1
            && self.cx.runner.ledger_table().is_some()
    }

    /// Whether other tenants can be reached by the same connection. A database of its own, or a URL of its own, is nobody
    /// else's.
    pub(super) fn is_among_others(&self) -> bool {
        self.claim.place.schema.is_some() && !self.claim.own_url
    }

    /// Over a connection that outlives the attempt.
    async fn by_lasting_plan(
        &self,
        plan: &Plan,
        ready: Option<KeptSession>,
    ) -> Result<(Settlement, Option<KeptSession>), RunnerError> {
        let mut again = false;
        if let Some(kept) = ready {
            match self.over(kept, plan, false).await {
                // A new one tells how far this tenant got.
                Err(error) if self.was_lost(&error).await => again = true,
                done => return done,
            }
        }
        let kept = self.connect(&self.url().await?, &kept_label(self.worker)).await?;
        self.over(kept, plan, again).await
    }

    /// Whether a kept connection was lost, since the last tenant or now, and its slot is free for another one: its server has
    /// noticed when this returns. One that is silent may still be there.
    pub(super) async fn was_lost(&self, error: &RunnerError) -> bool {
        let is_lost =
            is_broken(error) && !matches!(error, RunnerError::Silent(_)) && self.stop.reason().is_none();
        if is_lost {
            debug!(%error, "A kept connection was lost; opening another");
            tokio::time::sleep(LINGER).await;
        }
        is_lost
    }

    /// Applies a plan over a connection, and keeps that if all went well. `again`: another connection was lost over it.
    async fn over(
        &self,
        mut kept: KeptSession,
        plan: &Plan,
        again: bool,
    ) -> Result<(Settlement, Option<KeptSession>), RunnerError> {
        let settled = self.unless_stopped(&mut kept, plan, true, again).await;
        Self::keep(kept, true, settled).await
    }

    /// Keeps a connection that is as new after a tenant, if all went well. Any other is closed before anything is
    /// written: its slot must not be free while it is there.
    pub(super) async fn keep(
        mut kept: KeptSession,
        is_as_new: bool,
        settled: Result<Settlement, RunnerError>,
    ) -> Result<(Settlement, Option<KeptSession>), RunnerError> {
        if is_as_new && matches!(settled, Ok(Settlement::Succeeded { .. })) && kept.served() {
            return Ok((settled?, Some(kept)));
        }
        kept.close().await;
        Ok((settled?, None))
    }

    /// With a plan: no migration tool is asked for anything, and none need be here.
    async fn by_plan(&self, plan: &Plan) -> Result<Settlement, RunnerError> {
        let mut opened = self
            .connect(&self.url().await?, &self.claim.application_name())
            .await?;
        let settled = self.unless_stopped(&mut opened, plan, false, false).await;
        opened.close().await;
        settled
    }

    /// Where its tenant is. The list of tenants is asked for a URL that stands nowhere else, and may take its time.
    pub(super) async fn url(&self) -> Result<DatabaseUrl, RunnerError> {
        (self.enter)(Step::Connecting);
        tokio::select! {
            biased;
            () = self.stop.token().cancelled() => Err(RunnerError::Cancelled),
            url = self.cx.url_of(self.claim) => url,
        }
    }

    pub(super) async fn connect(&self, url: &DatabaseUrl, label: &str) -> Result<KeptSession, RunnerError> {
        let mut session = self.open(url, label).await?;
        let backend = session.backend().await?;
        Ok(KeptSession::new(session, &self.claim.place.database, backend))
    }

    async fn unless_stopped(
        &self,
        on: &mut KeptSession,
        plan: &Plan,
        forget: bool,
        again: bool,
    ) -> Result<Settlement, RunnerError> {
        // A connection that was kept may be another worker's to use up by now.
        self.be_sure().await?;
        let backend = on.backend;
        let working = self.with_plan(&mut on.session, plan, forget, again);
        self.while_wanted(backend, working).await
    }

    /// Waits for what is said over a session to the tenant's server, unless this attempt is told to stop, or the link was cut
    /// without a word. Then the session is good for closing only.
    pub(super) async fn while_wanted<T>(
        &self,
        backend: i32,
        saying: impl Future<Output = Result<T, RunnerError>>,
    ) -> Result<T, RunnerError> {
        tokio::select! {
            biased;
            () = self.stop.token().cancelled() => Err(RunnerError::Cancelled),
            said = saying => said,
            () = link::is_cut(self.cx, self.claim, backend) => Err(RunnerError::Connection(
                "its server has ended the session: the link to it was cut without a word".into()
            )),
        }
    }

    async fn with_plan(
        &self,
        session: &mut TenantSession,
        plan: &Plan,
        forget: bool,
        again: bool,
    ) -> Result<Settlement, RunnerError> {
        let claim = self.claim;
        let Some(ledger) = self.cx.runner.ledger_table() else {
            return Ok(Settlement::live("a place that cannot be read in SQL"));
        };
        if !fits(plan, &session.home().await?) {
            return Ok(Settlement::live("a schema whose name it cannot hold"));
        }
        if !session.suits(&plan.session).await? {
            return Ok(Settlement::live("a database with another TimeZone or DateStyle"));
        }
        (self.enter)(Step::Guarding);
        if !plan.is_transactional() {
            self.guard(session).await?;
        } else if claim.epoch > 1 {
            self.end_older(session).await?;
        }
        (self.enter)(Step::Migrating);
        let order = Order {
            plan,
            ledger: &ledger,
            name: &claim.application_name(),
            forget,
            journal: self,
        };
        for _ in 0..LOCK_TRIES {
            let applied = match apply(session, &order).await {
                Err(error) if plan.is_in_messages() && self.knows_better(&error) => {
                    return Ok(Settlement::Live {
                        at: format!("a place where its plan fails ({error})"),
                        error: Some(error.to_job_error()),
                    });
                }
                applied => applied?,
            };
            let (outcome, from) = match applied {
                Applied::Locked => {
                    self.face_holder(session).await?;
                    continue;
                }
                Applied::Elsewhere(found) => return Ok(Settlement::live(describe(&found))),
                Applied::Done(after) if after.revisions != plan.after => {
                    let wanted = claim.to.clone().unwrap_or_else(|| "base".into());
                    let missing = plan.after.difference(&after.revisions);
                    let missing: Vec<&str> = missing.map(String::as_str).collect();
                    return Err(RunnerError::LedgerMismatch {
                        found: live::found(describe(&after), &wanted, &missing),
                        wanted,
                        hint: None,
                    });
                }
                Applied::Done(_) => (Outcome::Migrated, claim.from.clone()),
                // The first attempt found nothing to do; a later one finds what a former one did.
                Applied::Found(_) if claim.epoch > 1 || again => (Outcome::FoundApplied, claim.from.clone()),
                Applied::Found(_) => (Outcome::AlreadyCurrent, claim.to.clone()),
            };
            return Ok(Settlement::Succeeded {
                outcome,
                from,
                to: claim.to.clone(),
            });
        }
        Err(RunnerError::LockedByOther("a session that comes and goes".into()))
    }

    /// Whether the migration tool may succeed where a plan fails: where a revision says so (`checkfirst`), the tool looks first
    /// whether something exists, and a rendered plan cannot.
    fn knows_better(&self, error: &RunnerError) -> bool {
        // duplicate_table, duplicate_object (a type), duplicate_schema; undefined_table, undefined_object.
        const CHECKED: [&str; 5] = ["42P07", "42710", "42P06", "42P01", "42704"];
        self.cx.runner.is_rendered()
            && matches!(error, RunnerError::Database { sqlstate, .. } if CHECKED.contains(&sqlstate.as_str()))
    }

    /// A session to the tenant. Only while the job is ours beyond doubt: a worker that stood still since its claim would
    /// connect without a slot otherwise, because that may be another's by now.
    async fn open(&self, url: &DatabaseUrl, label: &str) -> Result<TenantSession, RunnerError> {
        let (place, limits, path) = (
            &self.claim.place,
            &self.cx.config.limits,
            self.cx.config.runner.extra_search_path(),
        );
        loop {
            self.be_sure().await?;
            let session = TenantSession::connect(url, place, label, limits, path).await?;
            self.connected.store(true, Ordering::Relaxed);
            if (self.is_sure)() {
                return Ok(session);
            }
            session.close().await;
        }
    }

    /// Waits until the job is ours beyond doubt, or until this attempt is told that it is not.
    pub(super) async fn be_sure(&self) -> Result<(), RunnerError> {
        while !(self.is_sure)() {
            tokio::select! {
                () = self.stop.token().cancelled() => break,
                () = tokio::time::sleep(DOUBT) => {}
            }
        }
        match self.stop.reason() {
            Some(_) => Err(RunnerError::Cancelled),
            None => Ok(()),
        }
    }

    /// Takes the tenant's lock. An older attempt at the same job is ended; a newer one means that this one is over; a
    /// stranger is left alone.
    pub(super) async fn guard(&self, session: &mut TenantSession) -> Result<(), RunnerError> {
        let claim = self.claim;
        if claim.epoch > 1 {
            // Its tool may be at work without its guard.
            self.end_older(session).await?;
        }
        for _ in 0..LOCK_TRIES {
            if session.try_lock().await? {
                return Ok(());
            }
            self.face_holder(session).await?;
        }
        Err(RunnerError::LockedByOther("a session that comes and goes".into()))
    }

    /// Looks who holds the tenant's lock. Ok: nobody any more, as it seems.
    async fn face_holder(&self, session: &mut TenantSession) -> Result<(), RunnerError> {
        let claim = self.claim;
        match session.holder().await? {
            None => Ok(()),
            Some(Holder::Attempt { run, job, epoch, .. }) if (run, job) == (claim.run, claim.job) => {
                if epoch > claim.epoch {
                    return Err(RunnerError::Superseded);
                }
                self.end_older(session).await
            }
            Some(Holder::Attempt { run, .. }) => {
                let run = crate::domain::run::short(&run);
                Err(RunnerError::LockedByOther(format!("run {run}")))
            }
            Some(Holder::Stranger(name)) => Err(RunnerError::LockedByOther(name)),
        }
    }

    pub(super) async fn end_older(&self, session: &mut TenantSession) -> Result<(), RunnerError> {
        let claim = self.claim;
        let ended = session.end_older(claim.run, claim.job, claim.epoch).await?;
        if ended > 0 {
            warn!(
                run.id = %claim.run, tenant.id = %claim.tenant, attempt = claim.epoch, ended,
                "Ended {ended} sessions that a former attempt at tenant `{}` had left", claim.tenant
            );
        }
        Ok(())
    }

    /// What becomes of a job whose attempt failed.
    async fn judge(&self, error: RunnerError) -> Option<Settlement> {
        match self.stop.reason() {
            Some(StopReason::Superseded) => return None,
            Some(StopReason::RunCancelled) => return Some(Settlement::Cancelled),
            Some(StopReason::Drain) => return Some(Settlement::Returned),
            None => {}
        }
        if matches!(error, RunnerError::Superseded) {
            return None;
        }
        let (claim, limits) = (self.claim, &self.cx.config.limits);
        let mut recorded = error.to_job_error();
        self.tell_of_pieces(&mut recorded).await;
        self.metrics.failed(&recorded);
        if let Some(plan) = self.plan_error(&error).await {
            recorded = plan.and_tool(&recorded);
        }
        let backoff = |n: i32| limits.backoff().delay(n.max(1).unsigned_abs(), rand::random());
        match error.class() {
            FailureClass::Permanent if self.is_gone(&error, &mut recorded).await => {
                Some(Settlement::Skipped(recorded))
            }
            FailureClass::Permanent => Some(Settlement::Failed(recorded)),
            FailureClass::Transient if claim.failures + 1 >= limits.max_attempts => {
                recorded.hint.get_or_insert_with(|| {
                    format!(
                        "it was tried {} times; `herder retry` tries again",
                        claim.failures + 1
                    )
                });
                Some(Settlement::Failed(recorded))
            }
            FailureClass::Transient => Some(Settlement::Retry {
                error: recorded,
                delay: backoff(claim.failures + 1),
                burns: true,
            }),
            FailureClass::Infrastructure if recorded.is_backpressure() => Some(Settlement::Retry {
                error: recorded,
                delay: backoff(1),
                burns: false,
            }),
            FailureClass::Infrastructure => {
                if claim.blocked.is_some_and(|b| b > BLOCKED_LIMIT) {
                    recorded.hint = Some(format!(
                        "it was in the way for {} minutes; `herder retry` tries again",
                        BLOCKED_LIMIT.as_secs() / 60
                    ));
                    return Some(Settlement::Failed(recorded));
                }
                // The longer it lasts, the rarer the tries.
                let tries = claim.blocked.map_or(1, |b| {
                    1 + i32::try_from(b.as_secs() / 2).unwrap_or(i32::MAX).min(30)
                });
                Some(Settlement::Retry {
                    error: recorded,
                    delay: backoff(tries),
                    burns: false,
                })
            }
        }
    }

    /// What the job's plan failed with, where the migration tool was to take over from it and could not even be asked.
    async fn plan_error(&self, error: &RunnerError) -> Option<JobError> {
        let is_about_tool = matches!(error, RunnerError::Setup { .. } | RunnerError::OtherMigrations);
        if self.claim.plan.is_some() || !is_about_tool || self.claim.epoch < 2 {
            return None;
        }
        // Where the control database does not answer, the tool's own error has to do.
        store::job::plan_error(&self.cx.pool, self.claim.job).await.ok()?
    }

    /// Says so where a revision was torn in pieces and some of them are done: whoever undid those by hand, as one does with a
    /// migration that failed, would have a retry go on without them.
    async fn tell_of_pieces(&self, recorded: &mut JobError) {
        let (Some(note), Some(id)) = (self.noted().clone(), &self.claim.plan) else {
            return;
        };
        let (Some(done), Ok(known)) = (note.done_through(), self.plans.get(id).await) else {
            return;
        };
        let revision = known.plan.revision_of(done);
        if recorded.revision.as_deref() == Some(&revision) && recorded.reason != "half_applied" {
            recorded.hint.get_or_insert_with(|| {
                format!(
                    "the pieces of revision {revision} before this one are committed, and `herder retry` goes on behind them; \
                     whoever undoes them by hand starts a new run instead"
                )
            });
        }
    }

    fn noted(&self) -> MutexGuard<'_, Option<Note>> {
        self.noted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the tenant was dropped since the run was made, and taken off the list: then nothing is wrong. A list of nobody at
    /// all says nothing about anybody: it is being written, or its query is wrong, and a run must not succeed by that.
    async fn is_gone(&self, error: &RunnerError, recorded: &mut JobError) -> bool {
        let source = &self.cx.source;
        let off_the_list = matches!(error, RunnerError::OffTheList);
        let dropped = matches!(error, RunnerError::SchemaMissing(_))
            || matches!(error, RunnerError::Database { sqlstate, .. } if sqlstate == "3D000");
        if !(off_the_list || dropped && matches!(source.find(&self.claim.tenant).await, Ok(None))) {
            return false;
        }
        match source.list().await {
            Ok(list) if list.is_empty() => {
                if off_the_list {
                    recorded.message = "the tenant source lists nobody any more".into();
                }
                recorded.hint = Some(
                    "a list of nobody does not say that this tenant is gone: once `herder tenants` shows the others, \
                     `herder retry` tries again"
                        .into(),
                );
                false
            }
            Ok(list) => list.iter().all(|listed| listed.id != self.claim.tenant),
            Err(_) => false,
        }
    }
}

#[async_trait]
impl Journal for Attempt<'_> {
    fn last(&self) -> Option<Note> {
        self.noted().clone()
    }

    async fn note(&self, note: Option<&Note>) -> Result<(), RunnerError> {
        let claim = self.claim;
        let noted = store::plan::note(&self.cx.pool, claim.job, claim.epoch, self.worker, note).await;
        match noted {
            Ok(true) => {
                *self.noted() = note.cloned();
                Ok(())
            }
            Ok(false) => Err(RunnerError::Superseded),
            Err(e) => Err(RunnerError::Connection(format!(
                "cannot note how far it got: {e}"
            ))),
        }
    }
}

/// Whether an error means that a connection broke, or that there was none.
fn is_broken(error: &RunnerError) -> bool {
    match error {
        RunnerError::LockedByOther(_) | RunnerError::Superseded | RunnerError::Cancelled => false,
        error => error.class() == FailureClass::Infrastructure,
    }
}

/// How long the server may take to end a session that was given up with this error.
pub(super) fn linger(error: &RunnerError) -> Duration {
    match error {
        RunnerError::Silent(_) => SILENCE,
        _ => LINGER,
    }
}

/// What a ledger says, for a person, where no history tells which of its rows is the newest.
fn describe(ledger: &Ledger) -> String {
    let rows: Vec<&str> = ledger.revisions.iter().map(String::as_str).collect();
    match rows.as_slice() {
        [] => "base".into(),
        [.., last] if rows.len() > 5 => format!("{} rows, {last} among them", rows.len()),
        _ => rows.join(","),
    }
}

/// What the log says that an attempt did to its tenant.
pub(super) fn verb(direction: Direction) -> &'static str {
    match direction {
        Direction::Upgrade => "Migrated",
        Direction::Downgrade => "Downgraded",
    }
}
