//! An attempt with a plan: no migration tool is asked for anything, and none need be here.

use super::{Attempt, guard::LOCK_TRIES, live};
use crate::{
    domain::{
        job::Step,
        outcome::{Outcome, Settlement},
        plan::Plan,
        worker::kept_label,
    },
    flow::{kept::OpenSession, plans::Known},
    runner::apply::{Afterwards, Applied, Order, apply, fits},
    session::{LedgerTable, TenantSession},
    tenant_error::TenantError,
};

impl Attempt<'_> {
    /// Whether a plan leaves its connection fit for the next tenant: each message brings its own guard and leaves nothing
    /// behind.
    pub(super) fn is_lasting(&self, known: &Known) -> bool {
        known.plan.is_in_messages()
            && !known.leaves_residue
            && !known.mixes_types(&self.claim.place)
            && self.is_among_others()
            && self.claim.slots.len() == 1
            && self.cx.runner.ledger_table().is_some()
    }

    /// Over a connection that outlives the attempt.
    pub(super) async fn by_lasting_plan(
        &self,
        known: &Known,
        ready: Option<OpenSession>,
    ) -> Result<(Settlement, Option<OpenSession>), TenantError> {
        if let Some(kept) = ready {
            match self.over(kept, known).await {
                // Over a new connection the ledger says whether the commit went through.
                Err(error) if self.was_lost(&error).await => {}
                done => return done,
            }
        }
        let kept = self.connect(&self.url().await?, &kept_label(self.worker)).await?;
        self.over(kept, known).await
    }

    /// Applies a plan over a connection, and keeps that if all went well.
    async fn over(
        &self,
        mut kept: OpenSession,
        known: &Known,
    ) -> Result<(Settlement, Option<OpenSession>), TenantError> {
        let settled = self
            .unless_stopped(&mut kept, &known.plan, Afterwards::NextTenant)
            .await;
        let is_as_new = settled.is_ok() && self.is_as_new(&mut kept, known).await;
        Self::keep(kept, is_as_new, settled).await
    }

    /// Whether nothing of this tenant is left in a connection that has forgotten it. Asked behind the plan, which may have
    /// made such a function itself.
    async fn is_as_new(&self, kept: &mut OpenSession, known: &Known) -> bool {
        let Some(ledger) = self.cx.runner.ledger_table() else {
            return false;
        };
        let backend = kept.backend;
        let asked = self
            .while_wanted(backend, kept.session.mixes_types(&ledger))
            .await;
        if let Ok(true) = asked {
            known.note_mixing(&self.claim.place);
        }
        matches!(asked, Ok(false))
    }

    /// With a plan: no migration tool is asked for anything, and none need be here.
    pub(super) async fn by_plan(&self, plan: &Plan) -> Result<Settlement, TenantError> {
        let mut opened = self
            .connect(&self.url().await?, &self.claim.label().to_string())
            .await?;
        let settled = self.unless_stopped(&mut opened, plan, Afterwards::Closed).await;
        opened.close().await;
        settled
    }

    async fn unless_stopped(
        &self,
        on: &mut OpenSession,
        plan: &Plan,
        afterwards: Afterwards,
    ) -> Result<Settlement, TenantError> {
        // A connection that was kept may be another worker's to use up by now.
        self.be_sure().await?;
        let backend = on.backend;
        let working = self.with_plan(&mut on.session, plan, afterwards);
        self.while_wanted(backend, working).await
    }

    async fn with_plan(
        &self,
        session: &mut TenantSession,
        plan: &Plan,
        afterwards: Afterwards,
    ) -> Result<Settlement, TenantError> {
        let claim = self.claim;
        let Some(ledger) = self.cx.runner.ledger_table() else {
            return Ok(Settlement::live("a place that cannot be read in SQL"));
        };
        if !fits(plan, &session.home().await?) {
            return Ok(Settlement::live("a schema whose name it cannot hold"));
        }
        if !session.suits(&plan.session).await? {
            return Ok(Settlement::live(
                "a database with another TimeZone, DateStyle or way to read literals",
            ));
        }
        (self.enter)(Step::Guarding);
        if !plan.is_transactional() || claim.looks {
            self.guard(session).await?;
        } else if claim.attempt.epoch > 1 {
            self.end_older(session).await?;
        }
        if !plan.is_in_messages() || claim.looks {
            self.take_up_half(session, &ledger, plan).await?;
        }
        self.begin();
        let order = Order {
            plan,
            ledger: &ledger,
            name: &claim.label().to_string(),
            afterwards,
            journal: self,
        };
        for _ in 0..LOCK_TRIES {
            let applied = match apply(session, &order).await {
                Err(error) if self.cx.runner.knows_better(plan, &error) => {
                    return Ok(Settlement::Live {
                        at: format!("a place where its plan fails ({error})"),
                        error: Some(self.recorded(&error)),
                    });
                }
                Err(error) => {
                    self.look_who_was_in_the_way(session, &error).await;
                    return Err(error);
                }
                Ok(applied) => applied,
            };
            let (outcome, from) = match applied {
                Applied::Locked => {
                    self.face_holder(session).await?;
                    continue;
                }
                Applied::Elsewhere(found) => return Ok(Settlement::live(found.in_words())),
                Applied::Unfit(at) => return Ok(Settlement::live(at)),
                Applied::Done(after) if after.revisions != plan.after => {
                    let wanted = claim.to.to_revision().unwrap_or_else(|| "base".into());
                    let missing = plan.after.difference(&after.revisions);
                    let missing: Vec<&str> = missing.map(String::as_str).collect();
                    return Err(TenantError::LedgerMismatch {
                        found: live::found(after.in_words(), &wanted, &missing),
                        wanted,
                        hint: None,
                    });
                }
                Applied::Done(_) => {
                    self.forget_half().await;
                    (Outcome::Migrated, claim.from.clone())
                }
                Applied::Found(_) if self.may_have_been_done() => (Outcome::FoundApplied, claim.from.clone()),
                Applied::Found(_) => (Outcome::AlreadyCurrent, claim.to.to_revision()),
            };
            return Ok(Settlement::Succeeded {
                outcome,
                from,
                to: claim.to.to_revision(),
            });
        }
        Err(TenantError::LockedByOther("a session that comes and goes".into()))
    }

    /// Whether what is found applied may be this attempt's own work, or an earlier one's.
    fn may_have_been_done(&self) -> bool {
        self.claim.in_doubt || self.trail.has_lost()
    }

    /// Goes on behind what was left behind in its tenant, which is locked, or says that nobody knows how.
    async fn take_up_half(
        &self,
        session: &mut TenantSession,
        table: &LedgerTable,
        plan: &Plan,
    ) -> Result<(), TenantError> {
        let ledger = session.read_ledger(table).await?;
        let Some(half) = self.half(&ledger).await? else {
            return Ok(());
        };
        if let Some(piece) = &half.piece {
            let of = self.plans.get(&piece.plan).await?;
            if let Some(note) = piece.note_for(&of.plan, plan) {
                self.trail.noted(Some(note));
                return Ok(());
            }
        }
        let has_pending = ledger.revisions != plan.after;
        match half.bars(plan.direction, has_pending) && !half.revisions.is_empty() {
            true => Err(TenantError::left_before(half.revisions, half.direction)),
            false => Ok(()),
        }
    }
}
