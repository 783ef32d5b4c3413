//! Migration tools. A runner does the work once and tells the truth: it never retries, never writes our tables, and
//! never decides whether a failure matters. The flow does, so that every tool gets the same retries, locks, limits
//! and records.

pub mod alembic;
pub(crate) mod apply;
mod command;
mod copy;
pub(crate) mod kind;
mod proof;
mod sql;
pub(crate) mod statement;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

pub use self::proof::{Ground, Verdict};
use self::{command::CommandRunner, sql::SqlRunner};
use crate::{
    config::{LimitsConfig, RunnerConfig},
    database_url::DatabaseUrl,
    domain::{
        job::Claim,
        plan::Plan,
        revision::{Direction, History, Ledger},
        tenant::{Isolation, Place},
    },
    session::{LedgerTable, TenantSession},
    tenant_error::TenantError,
};

/// Makes sure that a migration is what it was when it was applied.
///
/// # Errors
/// It was edited since.
pub fn as_applied(history: &History, revision: &str, checksum: &str) -> Result<(), TenantError> {
    match history.get(revision) {
        Some(known) if known.checksum.as_deref().is_some_and(|now| now != checksum) => {
            Err(TenantError::Edited {
                revision: revision.to_owned(),
                file: known.file.clone().unwrap_or_default(),
            })
        }
        _ => Ok(()),
    }
}

/// Whose ledger is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The tenant's id.
    pub tenant: &'a str,
    /// Where it lives.
    pub place: &'a Place,
    /// Its database, with its secret.
    pub url: &'a DatabaseUrl,
}

/// Where it is noted that a part of a revision is about to be committed, while the ledger does not say so. It outlives the attempt:
/// whoever comes next must not do that part again.
#[async_trait]
pub trait Halves: Send + Sync {
    /// Notes the revisions, in place of those before: none of them, where nothing is left behind any more. When this returns, it is safe.
    async fn leave(&self, revisions: &[String]) -> Result<(), TenantError>;
}

/// For what nobody comes back to.
#[async_trait]
impl Halves for () {
    async fn leave(&self, _: &[String]) -> Result<(), TenantError> {
        Ok(())
    }
}

/// One piece of work: what is pending in one tenant.
pub struct Work<'a> {
    /// The attempt.
    pub claim: &'a Claim,
    /// The history that `pending` comes from.
    pub history: &'a History,
    /// Where the tenant's ledger stood when this attempt read it. None: never migrated.
    pub from: Option<&'a str>,
    /// The absolute target. None: the base.
    pub to: Option<&'a str>,
    /// The revisions to apply or undo, by id, in order. Never empty where the history is known.
    pub pending: &'a [String],
    /// The tenant's database, with its secret.
    pub url: &'a DatabaseUrl,
    /// The limits of this attempt.
    pub limits: &'a LimitsConfig,
    /// How long this worker may stand still before the tenant may be another's.
    pub stillness: Duration,
    /// Told to stop: a drain that ran out of time, a cancelled run, a lost lease.
    pub cancel: &'a CancellationToken,
    /// Where it is noted what is half committed.
    pub halves: &'a dyn Halves,
}

impl<'a> Work<'a> {
    /// Whose work it is.
    pub fn subject(&self) -> Subject<'a> {
        Subject {
            tenant: &self.claim.tenant,
            place: &self.claim.place,
            url: self.url,
        }
    }
}

/// How a runner brings all tenants that stand at one place to another.
#[derive(Clone, Debug)]
pub enum Offer {
    /// By SQL that is the same for all of them.
    Plan(Plan),
    /// One by one, each with the tool itself.
    Live {
        /// Why there is no plan. Reads on from "live, because".
        why: String,
    },
}

/// Fits the plans that a tool has made to their tenants, and proves that they do what the tool does.
#[async_trait]
pub trait PlanProver: Send + Sync {
    /// Fits a plan to the tenants of a place: a session of the tool's may begin in another way than ours.
    ///
    /// # Errors
    /// The server cannot be reached.
    async fn fit(&self, plan: Plan, to: Option<&str>, ground: Ground<'_>) -> Result<Offer, TenantError>;

    /// Whether a plan needs a proof, or is taken as it is.
    fn needs_proof(&self) -> bool;

    /// The name under which the proof of a plan is kept: another one as soon as anything that it hangs on changes.
    /// None: the plan is not even the same when it is made again.
    ///
    /// # Errors
    /// A broken project, or the server cannot be reached.
    async fn proof_key(
        &self,
        plan: &Plan,
        to: Option<&str>,
        ground: Ground<'_>,
    ) -> Result<Option<String>, TenantError>;

    /// Proves that a plan does what the tool does, beside a tenant that it leaves alone. At most one connection to the
    /// tenant's server is open at any time.
    ///
    /// # Errors
    /// The server cannot be reached, or the proof was told to stop. What speaks against the plan is no error.
    async fn prove(&self, plan: &Plan, to: Option<&str>, ground: Ground<'_>) -> Result<Verdict, TenantError>;
}

/// A migration tool. What these docs promise is held by the conformance suite, run against every runner.
#[async_trait]
pub trait MigrationRunner: Send + Sync {
    /// All revisions of the project. Touches no tenant. Files may have changed since the last call.
    ///
    /// # Errors
    /// A broken project, a missing tool.
    async fn history(&self) -> Result<Arc<History>, TenantError>;

    /// How many connections to the tenant's server an attempt holds at most, the guard's own among them.
    fn connections(&self) -> i16;

    /// How the ledger is read in SQL. None where only the tool can tell: then [`read_ledger`](Self::read_ledger) asks it.
    fn ledger_table(&self) -> Option<LedgerTable>;

    /// Reads the tenant's ledger. Changes nothing.
    ///
    /// # Errors
    /// Whatever keeps it from being read. An absent table is no error: the tenant was never migrated.
    async fn read_ledger(&self, session: &mut TenantSession, of: Subject<'_>) -> Result<Ledger, TenantError> {
        let _ = of;
        let Some(table) = self.ledger_table() else {
            return Ok(Ledger::default());
        };
        let mut ledger = session.read_ledger(&table).await?;
        ledger.half = session.read_half(&table).await?;
        if let Some(checksum) = table.checksum.filter(|_| !ledger.revisions.is_empty()) {
            let (history, sums) = (
                self.history().await?,
                session.read_checksums(&table, checksum).await?,
            );
            for (revision, checksum) in sums {
                as_applied(&history, &revision, &checksum)?;
            }
        }
        Ok(ledger)
    }

    /// Reads the ledger of a tenant that nobody is at work on, over one connection at a time: more is not kept for it.
    ///
    /// # Errors
    /// The errors of [`read_ledger`](Self::read_ledger).
    async fn look(&self, mut session: TenantSession, of: Subject<'_>) -> Result<Ledger, TenantError> {
        let ledger = self.read_ledger(&mut session, of).await;
        session.close().await;
        ledger
    }

    /// How tenants of this isolation whose ledger is `before` come to `to`, an absolute target; None is the base.
    /// Touches no tenant. The same question has the same answer as long as the project does not change.
    ///
    /// # Errors
    /// A broken project, a missing tool, a way that does not exist.
    async fn plan(
        &self,
        direction: Direction,
        before: &Ledger,
        to: Option<&str>,
        isolation: Isolation,
    ) -> Result<Offer, TenantError>;

    /// What fits and proves its plans, where those are made by the tool, and not written as SQL by a person.
    fn prover(&self) -> Option<&dyn PlanProver> {
        None
    }

    /// Whether its plans are made by the tool.
    fn is_rendered(&self) -> bool {
        self.prover().is_some()
    }

    /// Whether the tool may succeed where a plan fails: where a revision says so (`checkfirst`), it looks first whether something is
    /// there, and a plan is for those where nothing is. It would begin a half done revision anew.
    fn knows_better(&self, plan: &Plan, error: &TenantError) -> bool {
        // duplicate_table, duplicate_object (a type), duplicate_schema; undefined_table, undefined_object.
        const CHECKED: [&str; 5] = ["42P07", "42710", "42P06", "42P01", "42704"];
        let TenantError::Database {
            sqlstate, revision, ..
        } = error
        else {
            return false;
        };
        let is_undone = || revision.as_deref().is_some_and(|revision| plan.undoes(revision));
        self.is_rendered() && CHECKED.contains(&sqlstate.as_str()) && (plan.is_in_messages() || is_undone())
    }

    /// Brings the tenant to `work.to`, under the tenant's lock that `session` holds. Migrating twice is the same as
    /// once, and killed midway and run again ends at the target. Returns soon after `work.cancel` is told, with
    /// nothing of its own left running. After an error, a cancel or a drop, `session` may be in the middle of
    /// something: it is good for closing only, which also ends what the server still does for it.
    ///
    /// # Errors
    /// What the tool or the server said. The tenant may stand anywhere between the two revisions then.
    async fn migrate(&self, session: &mut TenantSession, work: &Work<'_>) -> Result<(), TenantError>;
}

/// Builds the runner that the config names, for `concurrency` attempts at a time. The only list of runners there is.
///
/// # Errors
/// What the config says cannot be. Nothing is started yet.
pub fn build(config: &RunnerConfig, concurrency: usize) -> Result<Arc<dyn MigrationRunner>, TenantError> {
    Ok(match config {
        RunnerConfig::Alembic(c) => Arc::new(alembic::AlembicRunner::new(c, concurrency)),
        RunnerConfig::Sql(c) => Arc::new(SqlRunner::new(c)),
        RunnerConfig::Command(c) => Arc::new(CommandRunner::new(c)?),
    })
}
