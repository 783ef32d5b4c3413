//! Applies a plan to one tenant: the only way in which Herder runs the SQL of a migration.
//!
//! Steps in transactions go to the server in one message, however many they are. Each transaction holds all that makes
//! it safe by itself: the tenant's lock, the proof that unqualified names mean the tenant's schema, the ledger at the
//! step's beginning, the step with its own word in the ledger, and the proof that it neither wandered off to another
//! schema nor ended the transaction. So it does not matter who is at work on the tenant besides, how often a step is
//! sent, or whether the answer to a COMMIT gets lost: the ledger says so, and what it does not allow does not happen.

mod frame;
mod message;
mod note;
mod outside;
mod place;
mod refusal;
mod rehearse;
mod residue;

use std::ops::Range;

use async_trait::async_trait;
use sqlx::Row;

pub(crate) use self::{
    frame::{BEGAN, array},
    place::fits,
    refusal::{DIRTY, EDITED, UNFIT, block, raise},
    rehearse::{Rehearsed, rehearse},
    residue::leaves_residue,
};
use self::{
    frame::{Checks, Frame},
    message::Message,
    refusal::Refusal,
};
use crate::{
    domain::{
        half::Piece,
        plan::{Note, Plan, PlanStep, StepForm},
        revision::Ledger,
    },
    session::{LedgerTable, TenantSession},
    tenant_error::TenantError,
};

/// How much may ride in one message: enough for any sane number of files, little enough for the server to swallow.
const MESSAGE_LIMIT: usize = 1 << 20;

/// Back to the session as it was opened: a migration may have left its own settings, role and path.
const RESET: &str = "reset session authorization; reset role; reset all";

/// What else a session would leave to the next tenant's: DISCARD ALL, in words that may ride in a message. What
/// [`leaves_residue`] is about stays.
const FORGET: &str = "close all; unlisten *; deallocate all; discard temp; discard sequences; \
                      select pg_catalog.pg_advisory_unlock_all()";

/// What a plan is applied with.
pub(crate) struct Order<'a> {
    /// The plan.
    pub(crate) plan: &'a Plan,
    /// How the tenant's ledger is read.
    pub(crate) ledger: &'a LedgerTable,
    /// What the session calls itself while it works at this tenant.
    pub(crate) name: &'a str,
    /// What becomes of the session.
    pub(crate) afterwards: Afterwards,
    /// What outlives the attempt besides the ledger.
    pub(crate) journal: &'a dyn Journal,
}

/// What becomes of a session behind a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Afterwards {
    /// It is closed.
    Closed,
    /// It goes on to another tenant: it must be as new in the end, but for its connection. Only for plans that need no lock of
    /// the session's own: that would be forgotten, too.
    NextTenant,
}

/// How a plan was applied.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Applied {
    /// All of it is done. The ledger was read after the last commit.
    Done(Ledger),
    /// The ledger was at the plan's end before anything was done.
    Found(Ledger),
    /// Somebody else holds the tenant's lock. Steps before that may have been done.
    Locked,
    /// The ledger stands where none of the plan's steps begins. Steps before that may have been done.
    Elsewhere(Ledger),
    /// Its ledger is where the plan begins, and the plan is not for it all the same: it is at such a place.
    Unfit(String),
}

/// How far an attempt got between two revisions, where the ledger cannot say so. It must outlive the attempt.
#[async_trait]
pub(crate) trait Journal: Send + Sync {
    /// What was noted last, by this attempt or by one before it.
    fn last(&self) -> Option<Note>;

    /// Notes it, in place of what was noted before. When this returns, it is safe.
    async fn note(&self, note: Option<&Note>) -> Result<(), TenantError>;
}

/// For plans whose ledger says all.
pub(crate) struct NoJournal;

#[async_trait]
impl Journal for NoJournal {
    fn last(&self) -> Option<Note> {
        None
    }

    async fn note(&self, _: Option<&Note>) -> Result<(), TenantError> {
        Ok(())
    }
}

/// Applies what is left to do of a plan. Where it has steps outside transactions, `session` must hold the tenant's
/// lock. After an error the session is good for closing only.
///
/// # Errors
/// What the server said. The tenant is at the beginning of a step, or in the middle of one outside a transaction.
pub(crate) async fn apply(session: &mut TenantSession, order: &Order<'_>) -> Result<Applied, TenantError> {
    let mut applier = Applier::of(session, order).await?;
    applier.apply().await
}

/// Whether a plan goes on behind a piece of the plan that this is `of`. Not where that was begun and is not to be done twice.
pub(crate) fn goes_on(piece: &Piece, of: &Plan, plan: &Plan) -> bool {
    let Some(note) = piece.note_for(of, plan) else {
        return false;
    };
    let step = usize::try_from(note.step).ok().and_then(|at| plan.steps.get(at));
    note.done || !step.is_some_and(outside::is_for_once)
}

struct Applier<'a> {
    session: &'a mut TenantSession,
    order: &'a Order<'a>,
    frame: Frame<'a>,
    /// What was noted last, by this attempt or by a former one.
    noted: Option<Note>,
    /// Whether the plan's own check went through.
    checked: bool,
    /// The ledger as it was read behind the last step.
    read: Option<Ledger>,
}

impl<'a> Applier<'a> {
    async fn of(session: &'a mut TenantSession, order: &'a Order<'a>) -> Result<Self, TenantError> {
        let home = session.home().await?;
        Ok(Self {
            frame: Frame::new(session, home, order),
            session,
            noted: order.journal.last(),
            order,
            checked: false,
            read: None,
        })
    }

    async fn apply(&mut self) -> Result<Applied, TenantError> {
        let steps = &self.order.plan.steps;
        // A former attempt may have got some way: the server says so at the first step, and where.
        let mut at = self.after_note().await?;
        let (mut begun, mut looks) = (false, 0);
        while at < steps.len() {
            let end = at + self.ride(at);
            let done = match &steps[at].form {
                StepForm::Transaction { .. } if steps[at].before == steps[at].after => self.between(at).await,
                StepForm::Transaction { .. } => self.transactions(at..end).await,
                StepForm::Outside { .. } => self.outside(at).await,
            };
            let found = match done {
                Ok(()) => {
                    (at, begun, self.checked) = (end, true, true);
                    continue;
                }
                Err(Refusal::Moved(found)) => found,
                Err(Refusal::Locked) => {
                    self.clean_up().await?;
                    return Ok(Applied::Locked);
                }
                Err(Refusal::Unfit(at)) => {
                    self.clean_up().await?;
                    return Ok(Applied::Unfit(at));
                }
                Err(refusal) => return Err(failed(refusal)),
            };
            self.clean_up().await?;
            // Of several in a message, those before the one that was refused are committed.
            begun |= steps[at..end].iter().skip(1).any(|s| s.before == found.revisions);
            looks += 1;
            at = match self.locate(&found) {
                Some(end) if end == steps.len() && begun => return Ok(Applied::Done(found)),
                Some(end) if end == steps.len() => return Ok(Applied::Found(found)),
                // Without this limit, another tool that keeps moving the ledger would hold us here for ever.
                Some(step) if looks <= steps.len() => step,
                _ => return Ok(Applied::Elsewhere(found)),
            };
        }
        Ok(Applied::Done(match self.read.take() {
            Some(ledger) => ledger,
            None => self.session.read_ledger(self.order.ledger).await?,
        }))
    }

    /// How many steps from `at` on go to the server at once.
    fn ride(&self, at: usize) -> usize {
        let rides = |s: &&PlanStep| matches!(s.form, StepForm::Transaction { .. }) && s.before != s.after;
        self.order.plan.steps[at..]
            .iter()
            .take_while(rides)
            .count()
            .max(1)
    }

    /// Where to go on with this ledger. The number of steps: nowhere, it is at the end.
    fn locate(&self, found: &Ledger) -> Option<usize> {
        let plan = self.order.plan;
        if found.revisions == plan.after {
            return Some(plan.steps.len());
        }
        plan.steps.iter().position(|s| s.before == found.revisions)
    }

    /// Leaves the session as it was before the step that was refused.
    async fn clean_up(&mut self) -> Result<(), TenantError> {
        let mut message = Message::default();
        message.besides("rollback");
        message.besides(RESET);
        if self.order.afterwards == Afterwards::NextTenant {
            message.besides(FORGET);
        }
        message.send(self.session.connection()).await.map_err(failed)?;
        Ok(())
    }

    /// Steps that are one transaction each. Nearly always all is as the plan wants it, and then the quick checks are
    /// enough. What they refuse was not committed, so it may be sent again with those that say why.
    async fn transactions(&mut self, range: Range<usize>) -> Result<(), Refusal> {
        match self.send(range.clone(), Checks::Quick).await {
            Err(Refusal::Unexpected) => {
                self.clean_up().await?;
                self.send(range, Checks::Careful).await
            }
            sent => sent,
        }
    }

    /// Sends steps in as few messages as may be.
    async fn send(&mut self, range: Range<usize>, checks: Checks) -> Result<(), Refusal> {
        let plan = self.order.plan;
        let mut message = Message::default();
        for i in range.clone() {
            let step = &plan.steps[i];
            let StepForm::Transaction { sql } = &step.form else {
                continue;
            };
            message.before(
                step,
                &self
                    .frame
                    .begin(step, i == range.start && !self.checked, checks)?,
            );
            message.step(step, &self.frame.placed(sql)?);
            message.behind(step, &self.frame.end(checks));
            message.behind(step, "commit");
            message.committed(RESET);
            if message.len() > MESSAGE_LIMIT && i + 1 < range.end {
                std::mem::take(&mut message)
                    .send(self.session.connection())
                    .await?;
            }
        }
        let last = range.end == plan.steps.len();
        if last && self.order.afterwards == Afterwards::NextTenant {
            message.committed(FORGET);
        }
        // A ledger that is empty may be gone altogether: that is asked for apart.
        let read_back = last && !plan.after.is_empty();
        if read_back {
            message.committed(&self.frame.read_back());
        }
        let reply = message.send(self.session.connection()).await?;
        if read_back {
            let row = reply.row.as_ref().map(|row| row.try_get::<Vec<String>, _>(0));
            let revisions = row.transpose()?.unwrap_or_default().into_iter().collect();
            self.read = Some(Ledger {
                revisions,
                half: None,
            });
        }
        Ok(())
    }
}

fn failed(refusal: Refusal) -> TenantError {
    match refusal {
        Refusal::Failed(error) => error,
        other => TenantError::UnexpectedAnswer(format!("the server answered out of turn: {other:?}")),
    }
}
