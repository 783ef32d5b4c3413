//! One attempt at one tenant, by a plan or live. It ends with what is to be written down.

use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures_util::future::join_all;
use tracing::debug;

use super::{context::Context, held::Stop, kept::OpenSession, link, plans::Plans};
use crate::{
    database_url::DatabaseUrl,
    domain::{
        failure::FailureClass,
        half::{Half, Piece},
        job::{Claim, Step},
        outcome::{Progress, Settlement},
        plan::Note,
        revision::{Direction, Ledger},
    },
    metrics::Metrics,
    runner::{Halves, apply::Journal},
    session::{EXIT_GRACE, LINGER, TenantSession},
    store,
    tenant_error::TenantError,
};

mod by_plan;
mod guard;
mod judge;
mod live;
mod trail;

pub(super) use self::{
    judge::{BLOCKED_LIMIT, in_the_way_for},
    trail::Trail,
};

/// How long a control database that is away is waited for, where something is to be noted before it is committed: a restart takes less.
const NOTING_LIMIT: Duration = Duration::from_secs(30);

/// How often it is tried meanwhile.
const NOTING_PAUSE: Duration = Duration::from_millis(500);

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
    pub(super) trail: Trail,
}

/// How an attempt ended.
pub(super) struct Executed {
    /// What is to be written down. None: the job went on without it, and nothing may be.
    pub(super) settlement: Option<Settlement>,
    /// Its connection, where that is fit for another tenant.
    pub(super) kept: Option<OpenSession>,
    /// How far it came, where it did not succeed.
    pub(super) progress: Progress,
    /// Whether its server cannot say what became of its sessions: their slots are not free before it does.
    pub(super) is_out_of_sight: bool,
}

/// Ends sessions, and waits until their places on the server are free as well.
pub(super) async fn close_all(sessions: impl IntoIterator<Item = OpenSession>) {
    let closed = join_all(sessions.into_iter().map(OpenSession::close)).await;
    if !closed.is_empty() {
        tokio::time::sleep(EXIT_GRACE).await;
    }
}

impl Attempt<'_> {
    /// Runs the attempt. `inherited` are the connections that came with its slots. When this returns, all its sessions
    /// are closed but the one that can be kept for another tenant.
    pub(super) async fn execute(&self, inherited: Vec<OpenSession>) -> Executed {
        match self.attempt(inherited).await {
            Ok((settlement, kept)) => Executed {
                settlement: Some(settlement),
                kept,
                progress: self.trail.progress(false),
                is_out_of_sight: false,
            },
            Err(error) => {
                let is_out_of_sight = is_out_of_sight(&error) && self.trail.has_connected();
                if !is_out_of_sight && self.may_linger(&error) {
                    tokio::time::sleep(LINGER).await;
                }
                // A plan that the server has refused is rolled back. What a tool has done nobody knows.
                let is_open =
                    is_broken(&error) || matches!(error, TenantError::Cancelled) || self.claim.plan.is_none();
                Executed {
                    progress: self.trail.progress(is_open),
                    settlement: self.judge(error).await,
                    kept: None,
                    is_out_of_sight,
                }
            }
        }
    }

    /// The migration itself begins.
    fn begin(&self) {
        self.trail.begun();
        (self.enter)(Step::Migrating);
    }

    /// Whether the server may still be at work for this attempt, because it was broken off. Its slot is not free as long.
    fn may_linger(&self, error: &TenantError) -> bool {
        let ended = match error {
            TenantError::Left { cause, .. } => cause,
            error => error,
        };
        (is_broken(ended) || matches!(ended, TenantError::Cancelled)) && self.trail.has_connected()
    }

    async fn attempt(
        &self,
        inherited: Vec<OpenSession>,
    ) -> Result<(Settlement, Option<OpenSession>), TenantError> {
        let Some(id) = &self.claim.plan else {
            return self.live(inherited).await;
        };
        let plan = self.plans.get(id).await;
        let is_lasting = plan.as_ref().is_ok_and(|plan| self.is_lasting(plan));
        let ready = self.pick(inherited, is_lasting).await;
        let plan = plan?;
        let executed = match is_lasting {
            true => self.by_lasting_plan(&plan, ready).await?,
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
    async fn has_room_for_tool(&self, at: &str) -> Result<(), TenantError> {
        let (server, needed) = (&self.claim.place.server, self.cx.runner.connections());
        match store::answered(store::server::job_slots(&self.cx.pool, server)).await {
            Ok(Some(slots)) if slots < i32::from(needed) => Err(TenantError::Setup {
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
        mut inherited: Vec<OpenSession>,
        is_lasting: bool,
    ) -> Option<OpenSession> {
        let place = &self.claim.place;
        let mut ready = inherited
            .iter()
            .position(|kept| is_lasting && kept.database == place.database)
            .map(|at| inherited.swap_remove(at));
        close_all(inherited).await;
        if let Some(kept) = &mut ready {
            self.trail.connected();
            kept.session
                .turn_to(place, self.cx.config.runner.extra_search_path());
        }
        ready
    }

    /// Whether other tenants can be reached by the same connection. A database of its own, or a URL of its own, is nobody
    /// else's.
    pub(super) fn is_among_others(&self) -> bool {
        self.claim.place.schema.is_some() && !self.claim.own_url
    }

    /// Keeps a connection that is as new after a tenant, if all went well. Any other is closed before anything is
    /// written: its slot must not be free while it is there.
    pub(super) async fn keep(
        mut kept: OpenSession,
        is_as_new: bool,
        settled: Result<Settlement, TenantError>,
    ) -> Result<(Settlement, Option<OpenSession>), TenantError> {
        if is_as_new && matches!(settled, Ok(Settlement::Succeeded { .. })) && kept.served() {
            return Ok((settled?, Some(kept)));
        }
        kept.close().await;
        Ok((settled?, None))
    }

    /// Whether a kept connection was lost, since the last tenant or now, and its slot is free for another one: its server has
    /// noticed when this returns. One that is silent may still be there.
    pub(super) async fn was_lost(&self, error: &TenantError) -> bool {
        let is_lost = is_broken(error) && !is_out_of_sight(error) && self.stop.reason().is_none();
        if is_lost {
            debug!(%error, "A kept connection was lost; opening another");
            self.trail.lost();
            tokio::time::sleep(LINGER).await;
        }
        is_lost
    }

    /// Where its tenant is. The list of tenants is asked for a URL that stands nowhere else, and may take its time.
    pub(super) async fn url(&self) -> Result<DatabaseUrl, TenantError> {
        (self.enter)(Step::Connecting);
        tokio::select! {
            biased;
            () = self.stop.token().cancelled() => Err(TenantError::Cancelled),
            url = self.cx.url_of(self.claim) => url,
        }
    }

    pub(super) async fn connect(&self, url: &DatabaseUrl, label: &str) -> Result<OpenSession, TenantError> {
        let mut session = self.open(url, label).await?;
        let backend = session.backend().await?;
        Ok(OpenSession::new(session, &self.claim.place.database, backend))
    }

    /// A session to the tenant. Only while the job is ours beyond doubt: a worker that stood still since its claim would
    /// connect without a slot otherwise, because that may be another's by now.
    async fn open(&self, url: &DatabaseUrl, label: &str) -> Result<TenantSession, TenantError> {
        let (place, limits, path) = (
            &self.claim.place,
            &self.cx.config.limits,
            self.cx.config.runner.extra_search_path(),
        );
        loop {
            self.be_sure().await?;
            let session = TenantSession::connect(url, place, label, limits, path).await?;
            self.trail.connected();
            if (self.is_sure)() {
                return Ok(session);
            }
            session.close().await;
        }
    }

    /// Waits for what is said over a session to the tenant's server, unless this attempt is told to stop, or the link was cut
    /// without a word. Then the session is good for closing only.
    pub(super) async fn while_wanted<T>(
        &self,
        backend: i32,
        saying: impl Future<Output = Result<T, TenantError>>,
    ) -> Result<T, TenantError> {
        tokio::select! {
            biased;
            () = self.stop.token().cancelled() => Err(TenantError::Cancelled),
            said = saying => said,
            cut = link::cut(self.cx, self.claim, backend) => Err(cut),
        }
    }

    /// Looks who was in the way, where a lock was waited for in vain. The session is good for closing only.
    async fn look_who_was_in_the_way(&self, session: &mut TenantSession, error: &TenantError) {
        let failed = error.to_job_error();
        if failed.sqlstate.as_deref() != Some("55P03") {
            return;
        }
        let label = self.claim.label().to_string();
        match session
            .oldest_in_the_way(failed.statement.as_deref(), &label)
            .await
        {
            Ok(found) => self.trail.was_in_the_way(found),
            Err(error) => debug!(%error, "Cannot see who was in the way"),
        }
    }

    /// What attempts before this one have left behind in its tenant, which is locked, and has this ledger.
    async fn half(&self, ledger: &Ledger) -> Result<Option<Half>, TenantError> {
        let read = store::answered(store::half::of(&self.cx.pool, &self.claim.place)).await;
        let read =
            read.map_err(|e| TenantError::ControlDatabase(format!("cannot read what is half applied: {e}")));
        let Some(half) = read? else {
            return Ok(None);
        };
        self.trail.leaves();
        let is_void = match &half.piece {
            Some(piece) => !piece.is_about(&self.plans.get(&piece.plan).await?.plan, ledger),
            None => false,
        };
        Ok((!is_void).then_some(half))
    }

    /// Writes what is half applied in its tenant, before that is committed. A control database that is away is waited for; whoever is
    /// about to commit waits as well, and its transaction with it.
    async fn write_half(&self, half: Option<&Half>) -> Result<(), TenantError> {
        self.trail.leaves();
        let until = Instant::now() + NOTING_LIMIT;
        loop {
            let write = store::half::write(&self.cx.pool, self.claim.attempt, self.worker, half);
            match store::answered(write).await {
                Ok(true) => return Ok(()),
                Ok(false) => return Err(TenantError::Superseded),
                Err(e) if e.is_away() && Instant::now() < until => tokio::time::sleep(NOTING_PAUSE).await,
                Err(e) => {
                    return Err(TenantError::ControlDatabase(format!(
                        "cannot note what is half applied: {e}"
                    )));
                }
            }
        }
    }

    /// Forgets what was half applied in a tenant that is whole now. Where that cannot be written, the next run sees it by the ledger.
    async fn forget_half(&self) {
        if self.trail.has_left() {
            let write = store::half::write(&self.cx.pool, self.claim.attempt, self.worker, None);
            let _ = store::answered(write).await;
        }
    }
}

#[async_trait]
impl Journal for Attempt<'_> {
    fn last(&self) -> Option<Note> {
        self.trail.note()
    }

    async fn note(&self, note: Option<&Note>) -> Result<(), TenantError> {
        let piece = self.claim.plan.clone().zip(note.cloned());
        let half = piece.map(|(plan, note)| Half {
            direction: self.claim.direction,
            revisions: note.revision.clone().into_iter().collect(),
            piece: Some(Piece { plan, note }),
        });
        self.write_half(half.as_ref()).await?;
        self.trail.noted(note.cloned());
        Ok(())
    }
}

#[async_trait]
impl Halves for Attempt<'_> {
    async fn leave(&self, revisions: &[String]) -> Result<(), TenantError> {
        let half = (!revisions.is_empty()).then(|| Half {
            direction: self.claim.direction,
            revisions: revisions.to_vec(),
            piece: None,
        });
        self.write_half(half.as_ref()).await
    }
}

/// Whether an error means that a connection to the tenant's server broke, or that there was none.
fn is_broken(error: &TenantError) -> bool {
    match error {
        TenantError::LockedByOther(_)
        | TenantError::Superseded
        | TenantError::Cancelled
        | TenantError::ControlDatabase(_)
        | TenantError::TenantSource(_) => false,
        error => error.class() == FailureClass::Infrastructure,
    }
}

/// Whether nobody can tell if the attempt's sessions are still there, before their server answers: its slots wait for that.
fn is_out_of_sight(error: &TenantError) -> bool {
    match error {
        TenantError::Left { cause, .. } => is_out_of_sight(cause),
        error => matches!(error, TenantError::Silent(_) | TenantError::Vanished(_)),
    }
}

/// What the log says that an attempt did to its tenant.
pub(super) fn verb(direction: Direction) -> &'static str {
    match direction {
        Direction::Upgrade => "Migrated",
        Direction::Downgrade => "Downgraded",
    }
}
