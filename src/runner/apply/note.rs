//! How far an attempt got where the ledger cannot say so: pieces of a revision, each with a note. A note is about the tenant as it
//! was: whoever moves its ledger since, there and back, or makes its schema anew, has it begin at the first piece again.

use sqlx::AssertSqlSafe;

use super::{Applier, Checks, RESET, message::Message, outside, refusal::Refusal};
use crate::{
    domain::{
        failure::FailureClass,
        plan::{Note, StepForm},
    },
    tenant_error::TenantError,
};

impl Applier<'_> {
    /// A step in a transaction that leaves the ledger as it is: a piece of a revision. Whether it was committed is
    /// known by its transaction's number, which is noted before the commit.
    pub(super) async fn between(&mut self, at: usize) -> Result<(), Refusal> {
        let step = &self.order.plan.steps[at];
        let StepForm::Transaction { sql } = &step.form else {
            return Ok(());
        };
        let mut message = Message::default();
        message.before(step, &self.frame.begin(step, !self.checked, Checks::Careful)?);
        message.step(step, &self.frame.placed(sql)?);
        message.behind(step, &self.frame.end(Checks::Careful));
        message.behind(
            step,
            &format!(
                "select pg_catalog.pg_current_xact_id()::pg_catalog.text, ({})",
                self.frame.mark(!step.before.is_empty())
            ),
        );
        let reply = message.send(self.session.connection()).await?;
        let (transaction, mark) = (reply.text(0)?, reply.text(1)?);
        let former = self.noted.clone();
        let note = Note {
            transaction: transaction.clone(),
            ..Note::of(at, mark)
        };
        self.note(Some(self.about(note))).await?;
        let mut message = Message::default();
        message.behind(step, "commit");
        message.committed(RESET);
        let sent = message.send(self.session.connection()).await;
        if let (Err(Refusal::Failed(error)), Some(transaction)) = (&sent, transaction)
            && error.class() != FailureClass::Infrastructure
        {
            self.clean_up().await?;
            // It may be there all the same: a cancel that comes while it is committed meets what is said behind that.
            if self.status(&transaction).await?.as_deref() == Some("aborted") {
                self.note(former).await?;
            }
        }
        sent.map(drop)
    }

    pub(super) async fn note(&mut self, note: Option<Note>) -> Result<(), TenantError> {
        self.order.journal.note(note.as_ref()).await?;
        self.noted = note;
        Ok(())
    }

    /// A note with the revision that it leaves half applied, if it does.
    pub(super) fn about(&self, note: Note) -> Note {
        let plan = self.order.plan;
        let begun = usize::try_from(note.step).ok();
        let may_be_done = begun.filter(|&at| plan.steps.get(at).is_some_and(outside::is_for_once));
        let half = may_be_done.or_else(|| note.done_through());
        Note {
            revision: half.map(|at| plan.revision_of(at)),
            ..note
        }
    }

    /// Where to begin, by what a former attempt noted.
    pub(super) async fn after_note(&mut self) -> Result<usize, TenantError> {
        let Some(note) = self.noted.clone() else {
            return Ok(0);
        };
        if !self.is_as_noted(&note).await? {
            self.note(None).await?;
            return Ok(0);
        }
        let at = usize::try_from(note.step).unwrap_or_default();
        let Some(transaction) = note.transaction else {
            return Ok(at + usize::from(note.done));
        };
        // Its backend is gone, so that it is one of the two.
        match self.status(&transaction).await?.as_deref() {
            Some("committed") => Ok(at + 1),
            Some("aborted") => Ok(at),
            _ => Err(self.half_done(at)),
        }
    }

    /// What became of a transaction. None: it was so long ago that nobody knows any more.
    async fn status(&mut self, transaction: &str) -> Result<Option<String>, TenantError> {
        let asked = sqlx::query_scalar("select pg_xact_status($1::xid8)")
            .bind(transaction)
            .persistent(false);
        Ok(asked.fetch_one(self.session.connection()).await?)
    }

    /// That nobody knows how much of a step was done.
    pub(super) fn half_done(&self, at: usize) -> TenantError {
        let revision = self.order.plan.revision_of(at);
        match self.order.ledger.half {
            Some(_) => TenantError::Dirty(revision),
            None => TenantError::Torn(revision),
        }
    }

    /// Whether a former attempt's note is about the tenant as it is now.
    ///
    /// # Errors
    /// The note is of a build that took no marks, so that nobody knows.
    async fn is_as_noted(&mut self, note: &Note) -> Result<bool, TenantError> {
        let Some(noted) = &note.mark else {
            let step = usize::try_from(note.step).unwrap_or_default();
            return Err(self.half_done(step));
        };
        let has_rows = !self
            .session
            .read_ledger(self.order.ledger)
            .await?
            .revisions
            .is_empty();
        let asked = sqlx::query_scalar(AssertSqlSafe(self.frame.mark(has_rows))).persistent(false);
        let mark: Option<String> = asked.fetch_optional(self.session.connection()).await?;
        Ok(mark.as_ref() == Some(noted))
    }
}
