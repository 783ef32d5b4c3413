//! A rehearsal: a plan up to its first step outside a transaction, in one transaction that is rolled back.

use std::time::{Duration, Instant};

use super::{Afterwards, Applier, Checks, Message, Order, RESET, Refusal, block, failed};
use crate::{
    domain::{
        plan::{PlanStep, StepForm},
        revision::Ledger,
    },
    session::{TenantSession, literal},
    tenant_error::TenantError,
};

/// What the server says where a step uses an enum's value that the same transaction has added.
const UNSAFE_ENUM_VALUE: &str = "55P04";

/// How a rehearsal went. The tenant is as it was, its sequences excepted.
pub(crate) enum Rehearsed {
    /// These steps, the first so many, would go through.
    Fine {
        /// How many.
        steps: usize,
        /// Why not all of them. None: they are all.
        left_out: Option<&'static str>,
    },
    /// Somebody else holds the tenant's lock.
    Locked,
    /// The ledger stands where the plan does not begin.
    Elsewhere(Ledger),
    /// The plan is not for it, which is at such a place.
    Unfit(String),
}

/// Rehearses a plan, and says for how long its transaction held locks: from its beginning to its end, as the server
/// tells the time, or as we saw it where it failed. After an error the session is good for closing only.
pub(crate) async fn rehearse(
    session: &mut TenantSession,
    order: &Order<'_>,
) -> (Result<Rehearsed, TenantError>, Duration) {
    match Applier::of(session, order).await {
        Ok(mut applier) => applier.rehearse().await,
        Err(error) => (Err(error), Duration::ZERO),
    }
}

impl Applier<'_> {
    async fn rehearse(&mut self) -> (Result<Rehearsed, TenantError>, Duration) {
        let all = &self.order.plan.steps;
        let mut steps = all
            .iter()
            .take_while(|s| matches!(s.form, StepForm::Transaction { .. }))
            .count();
        let mut left_out =
            (steps < all.len()).then_some("what runs outside a transaction cannot be rolled back");
        loop {
            if steps == 0 {
                return (Ok(Rehearsed::Fine { steps, left_out }), Duration::ZERO);
            }
            let began = Instant::now();
            let refusal = match self.try_out(&all[..steps]).await {
                Ok(held) => {
                    let clean = match self.order.afterwards {
                        Afterwards::NextTenant => self.clean_up().await,
                        Afterwards::Closed => Ok(()),
                    };
                    return (clean.map(|()| Rehearsed::Fine { steps, left_out }), held);
                }
                Err(refusal) => refusal,
            };
            let held = began.elapsed();
            if let Err(lost) = self.clean_up().await {
                return (Err(lost), held);
            }
            match refusal {
                Refusal::Locked => return (Ok(Rehearsed::Locked), Duration::ZERO),
                Refusal::Moved(found) => return (Ok(Rehearsed::Elsewhere(found)), Duration::ZERO),
                Refusal::Unfit(at) => return (Ok(Rehearsed::Unfit(at)), Duration::ZERO),
                other => {
                    let error = failed(other);
                    let Some(fewer) = self.before_enum_value(&error, steps) else {
                        return (Err(error), held);
                    };
                    steps = fewer;
                    left_out =
                        Some("it uses an enum's value that is not there before an earlier step commits");
                }
            }
        }
    }

    /// Does all steps in one transaction, and takes them back. The time from its beginning to its end.
    async fn try_out(&mut self, steps: &[PlanStep]) -> Result<Duration, Refusal> {
        let mut message = Message::default();
        for (i, step) in steps.iter().enumerate() {
            let StepForm::Transaction { sql } = &step.form else {
                continue;
            };
            let begin = match i {
                0 => self.frame.begin(step, true, Checks::Careful)?,
                _ => self.frame.enter(step, false, Checks::Careful)?,
            };
            message.before(step, &begin);
            message.step(step, &self.frame.placed(sql)?);
            message.behind(step, &self.frame.end(Checks::Careful));
            // What its COMMIT would have done: check what was deferred. What comes may defer again.
            message.behind(step, "set constraints all immediate");
            message.behind(step, RESET);
            if i + 1 < steps.len() {
                message.behind(step, &self.defer());
            }
            if message.len() > super::MESSAGE_LIMIT {
                std::mem::take(&mut message)
                    .send(self.session.connection())
                    .await?;
            }
        }
        message.besides(
            "select (extract(epoch from pg_catalog.clock_timestamp() - pg_catalog.transaction_timestamp()))\
             ::pg_catalog.float8",
        );
        message.besides("rollback");
        message.besides(RESET);
        let reply = message.send(self.session.connection()).await?;
        let seconds: f64 = match &reply.row {
            Some(row) => sqlx::Row::try_get(row, 0)?,
            None => 0.0,
        };
        Ok(Duration::try_from_secs_f64(seconds).unwrap_or_default())
    }

    /// Defers what a transaction begins with as deferred, and nothing else: a table with anything pending cannot be altered. Other
    /// tenants' constraints are none of this one's.
    fn defer(&self) -> String {
        let home = literal(&self.frame.home);
        let body = format!(
            "select pg_catalog.string_agg(pg_catalog.format('%I.%I', n.nspname, c.conname), ', ') into herder_names \
             from pg_catalog.pg_constraint c join pg_catalog.pg_namespace n on n.oid = c.connamespace \
             where c.condeferred and pg_catalog.has_schema_privilege(n.oid, 'usage') and (n.nspname = {home} or not exists ( \
               select from pg_catalog.pg_class l where l.relname = {} and l.relnamespace = n.oid)); \
             if herder_names is not null then execute 'set constraints ' || herder_names || ' deferred'; end if;",
            literal(&self.order.ledger.table)
        );
        block("herder_names pg_catalog.text;", &body)
    }

    /// How many steps come before the one that uses an enum's value too early. In a run, each commits before the next.
    fn before_enum_value(&self, error: &TenantError, steps: usize) -> Option<usize> {
        let TenantError::Database {
            sqlstate, revision, ..
        } = error
        else {
            return None;
        };
        let steps = self.order.plan.steps.iter().take(steps);
        let at = revision
            .as_ref()
            .and_then(|r| steps.clone().position(|s| s.revisions.contains(r)))?;
        (sqlstate == UNSAFE_ENUM_VALUE && at > 0).then_some(at)
    }
}
