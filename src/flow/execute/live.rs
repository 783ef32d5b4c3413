//! An attempt with the migration tool itself, while a session of ours holds the tenant's lock.

use std::time::Duration;

use tracing::debug;

use super::{Attempt, close_all};
use crate::{
    config::WorkerConfig,
    database_url::DatabaseUrl,
    domain::{
        job::Step,
        outcome::{Outcome, Settlement},
        revision::{Direction, History, Ledger, Standing},
        worker::kept_label,
    },
    flow::kept::OpenSession,
    runner::{Subject, Work},
    session::{LINGER, SILENCE, TenantSession},
    store,
    tenant_error::TenantError,
};

impl Attempt<'_> {
    /// With the migration tool, under a guard. The guard is kept for the next tenant where the tool works over connections
    /// of its own: then it was as new before, and nobody but us has spoken over it since.
    pub(super) async fn live(
        &self,
        inherited: Vec<OpenSession>,
    ) -> Result<(Settlement, Option<OpenSession>), TenantError> {
        let is_lasting = self.cx.runner.connections() > 1 && self.is_among_others();
        let ready = self.pick(inherited, is_lasting).await;
        let prepared = async {
            let history = self.cx.runner.history().await?;
            self.check_migrations(&history)?;
            Ok((history, self.url().await?))
        };
        let prepared = tokio::select! {
            biased;
            // A project may take its time to say what it is.
            () = self.stop.token().cancelled() => Err(TenantError::Cancelled),
            prepared = prepared => prepared,
        };
        let (history, url) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                close_all(ready).await;
                return Err(error);
            }
        };
        let mut guard = self.guard_session(ready, &url, is_lasting).await?;
        let settled = self.in_session(&mut guard, &url, &history).await;
        let is_as_new = is_lasting && settled.is_ok() && forgets(&mut guard.session).await;
        Self::keep(guard, is_as_new, settled).await
    }

    /// A session in the tenant's schema that bears the attempt's name: the one that is ready, if it still lives.
    async fn guard_session(
        &self,
        ready: Option<OpenSession>,
        url: &DatabaseUrl,
        is_lasting: bool,
    ) -> Result<OpenSession, TenantError> {
        if let Some(kept) = ready {
            match self.while_wanted(kept.backend, self.take_up(kept)).await {
                Err(error) if self.was_lost(&error).await => {}
                taken => return taken,
            }
        }
        let label = match is_lasting {
            true => kept_label(self.worker),
            false => self.claim.label().to_string(),
        };
        self.take_up(self.connect(url, &label).await?).await
    }

    async fn take_up(&self, mut kept: OpenSession) -> Result<OpenSession, TenantError> {
        let taken = async {
            // A connection that was kept may be another worker's to use up by now.
            self.be_sure().await?;
            kept.session.call_itself(&self.claim.label().to_string()).await?;
            kept.session.enter().await
        };
        match taken.await {
            Ok(()) => Ok(kept),
            Err(error) => {
                kept.close().await;
                Err(error)
            }
        }
    }

    async fn in_session(
        &self,
        guard: &mut OpenSession,
        url: &DatabaseUrl,
        history: &History,
    ) -> Result<Settlement, TenantError> {
        let (claim, backend, session) = (self.claim, guard.backend, &mut guard.session);
        let subject = Subject {
            tenant: &claim.tenant,
            place: &claim.place,
            url,
        };
        (self.enter)(Step::Guarding);
        self.while_wanted(backend, self.guard(session)).await?;

        (self.enter)(Step::Inspecting);
        let reading = self.cx.runner.read_ledger(session, subject);
        let course = self.course(history, self.while_wanted(backend, reading).await?)?;
        let standing = history.standing(claim.direction, course.to.as_deref(), &course.ledger)?;
        let is_there = standing == Standing::AtTarget;
        if let Some(half) = self.while_wanted(backend, self.half(&course.ledger)).await?
            && half.bars(claim.direction, !is_there)
        {
            let still = half.still(history, &course.ledger);
            if !still.is_empty() {
                return Err(TenantError::left_before(still, half.direction));
            }
        }
        if is_there {
            return self.nothing_to_do(course);
        }

        self.begin();
        self.run_tool(session, backend, &course, url, history).await?;

        (self.enter)(Step::Verifying);
        let reading = self.cx.runner.read_ledger(session, subject);
        let after = self.while_wanted(backend, reading).await?;
        self.verify(history, &course, &after)?;
        self.forget_half().await;
        Ok(Settlement::Succeeded {
            outcome: Outcome::Migrated,
            from: course.from,
            to: history.describe(&after),
        })
    }

    /// From where its ledger says that the tenant stands to where its job goes.
    fn course(&self, history: &History, ledger: Ledger) -> Result<Course, TenantError> {
        let claim = self.claim;
        let to = match claim.to.is_known() {
            true => claim.to.to_revision(),
            false => history.resolve(&claim.target, &ledger)?,
        };
        let pending = history.pending(claim.direction, to.as_deref(), &ledger)?;
        Ok(Course {
            from: history.describe(&ledger),
            pending: pending.into_iter().map(|r| r.id.clone()).collect(),
            to,
            ledger,
        })
    }

    fn nothing_to_do(&self, course: Course) -> Result<Settlement, TenantError> {
        if let Some(half) = course.ledger.half {
            return Err(TenantError::Dirty(half));
        }
        let (outcome, from) = match self.claim.in_doubt {
            true => (Outcome::FoundApplied, self.claim.from.clone()),
            false => (Outcome::AlreadyCurrent, course.from.clone()),
        };
        Ok(Settlement::Succeeded {
            outcome,
            from,
            to: course.from,
        })
    }

    /// Lets the tool do its work, over sessions of its own, while this one holds the tenant's lock.
    async fn run_tool(
        &self,
        session: &mut TenantSession,
        backend: i32,
        course: &Course,
        url: &DatabaseUrl,
        history: &History,
    ) -> Result<(), TenantError> {
        let claim = self.claim;
        // Whoever took over ends this session first: does it still stand?
        session.guarded(self.stop.token(), self.be_sure()).await??;
        if !claim.to.is_known() {
            // `-1` must not go down another step because this attempt is lost. What enqueue resolved is frozen already.
            let freezing = self.freeze(course.from.as_deref(), course.to.as_deref());
            session.guarded(self.stop.token(), freezing).await??;
        }
        session.ping().await?;
        let work = Work {
            claim,
            history,
            from: course.from.as_deref(),
            to: course.to.as_deref(),
            pending: &course.pending,
            url,
            limits: &self.cx.config.limits,
            stillness: stillness(&self.cx.config.worker),
            cancel: self.stop.token(),
            halves: self,
        };
        let migrating = self.cx.runner.migrate(session, &work);
        let mut migrated = match self.cx.runner.connections() {
            // Over this very session, which cannot be asked anything meanwhile.
            1 => self.while_wanted(backend, migrating).await,
            _ => migrating.await,
        };
        if migrated.is_err() && self.cx.runner.connections() > 1 {
            // The tool is gone, but the server may not have noticed yet.
            if let Err(lost) = session.end_tool(&claim.label().to_string()).await {
                // Our own session broke as well: whatever the tool made of that, it was not the tenant's fault.
                migrated = Err(match migrated {
                    Err(TenantError::Left {
                        revisions, direction, ..
                    }) => TenantError::Left {
                        revisions,
                        direction,
                        cause: Box::new(lost),
                    },
                    _ => lost,
                });
            }
        }
        if let Err(error) = &migrated {
            self.look_who_was_in_the_way(session, error).await;
        }
        match self.stop.reason() {
            Some(_) => Err(migrated.err().unwrap_or(TenantError::Cancelled)),
            None => migrated,
        }
    }

    async fn freeze(&self, from: Option<&str>, to: Option<&str>) -> Result<(), TenantError> {
        let freeze = store::job::freeze(&self.cx.pool, self.claim.attempt, self.worker, from, to);
        match store::answered(freeze).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(TenantError::Superseded),
            Err(e) => Err(TenantError::ControlDatabase(format!(
                "cannot note where it goes: {e}"
            ))),
        }
    }

    /// The run was made with certain migrations; a worker from another image must not apply others in its name.
    fn check_migrations(&self, history: &History) -> Result<(), TenantError> {
        let claim = self.claim;
        let covered = claim.target.covered(claim.direction, claim.to.to_revision());
        match (history.is_opaque() || covered.as_deref().is_none_or(|t| history.get(t).is_some()))
            && history.fingerprint(covered.as_deref()) == claim.checksum
        {
            true => Ok(()),
            false => Err(TenantError::OtherMigrations),
        }
    }

    /// A tool's word is not enough: the ledger must say the same, and no more.
    fn verify(&self, history: &History, course: &Course, after: &Ledger) -> Result<(), TenantError> {
        let (direction, to) = (self.claim.direction, course.to.as_deref());
        let at = history.describe(after).unwrap_or_else(|| "base".into());
        let wanted = to.unwrap_or("base").to_owned();
        if history.standing(direction, to, after)? != Standing::AtTarget {
            let pending = history.pending(direction, to, after)?;
            let missing: Vec<&str> = pending.into_iter().map(|r| r.id.as_str()).collect();
            return Err(TenantError::LedgerMismatch {
                found: found(at, &wanted, &missing),
                wanted,
                hint: None,
            });
        }
        let beyond = history.beyond(direction, &course.ledger, &course.pending, after)?;
        if beyond.is_empty() {
            return Ok(());
        }
        let done = match direction {
            Direction::Upgrade => "applied",
            Direction::Downgrade => "undid",
        };
        Err(TenantError::LedgerMismatch {
            found: at,
            wanted,
            hint: Some(format!(
                "the tool went past the target: it {done} {}, too; `command` must use {{to}}, or its tool a target of its own",
                beyond.join(", ")
            )),
        })
    }
}

/// A tenant's way, in terms of the tool's own revisions.
struct Course {
    /// What its ledger says before.
    ledger: Ledger,
    /// Where that is. None: the base, or never migrated.
    from: Option<String>,
    /// Where it goes. None: the base.
    to: Option<String>,
    /// What is applied or undone on the way, by id.
    pending: Vec<String>,
}

/// Where a ledger is. One that is at the target and lacks rows below it would read as if nothing were wrong.
pub(super) fn found(at: String, wanted: &str, missing: &[&str]) -> String {
    const NAMED: usize = 3;
    if at != wanted || missing.is_empty() {
        return at;
    }
    let named = missing[..missing.len().min(NAMED)].join(", ");
    match missing.len().saturating_sub(NAMED) {
        0 => format!("{at} without {named}"),
        more => format!("{at} without {named} and {more} more"),
    }
}

/// Whether a session is as new again. One that does not answer is waited for until it is gone: its slot is about to be free.
async fn forgets(session: &mut TenantSession) -> bool {
    match session.forget().await {
        Ok(()) => true,
        Err(error) => {
            debug!(%error, "A guard cannot be kept");
            let goes_after = match error {
                TenantError::Silent(_) => SILENCE,
                _ => LINGER,
            };
            tokio::time::sleep(goes_after).await;
            false
        }
    }
}

/// How long a worker may stand still at most before its lease is over: it may have renewed that a heartbeat ago. A tenth of it is for what
/// ends then.
fn stillness(config: &WorkerConfig) -> Duration {
    config.lease.saturating_sub(config.heartbeat).mul_f64(0.9)
}
