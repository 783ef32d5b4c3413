//! Migration tools. A runner does the work once and tells the truth: it never retries, never writes our tables, and
//! never decides whether a failure matters. The flow does, so that every tool gets the same retries, locks, limits
//! and records.

pub mod alembic;
mod command;
mod error;
mod proof;
mod sql;

use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

pub use self::error::RunnerError;
pub use self::proof::{Ground, Offer, Verdict};
use self::{command::CommandRunner, sql::SqlRunner};
use crate::{
    config::{LimitsConfig, RunnerConfig},
    database_url::DatabaseUrl,
    domain::{
        job::Claim,
        revision::{History, Ledger},
    },
    session::TenantSession,
};

/// How a runner's ledger is read in SQL, so that ten thousand of them can be read in a few statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerTable {
    /// The table's name, unquoted. It lives in the tenant's schema, or in `public` of a tenant's database.
    pub table: String,
    /// An expression that gives a row's revision as text.
    pub revision: &'static str,
    /// Which rows count.
    pub condition: &'static str,
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
    /// Told to stop: a drain that ran out of time, a cancelled run, a lost lease.
    pub cancel: &'a CancellationToken,
}

/// A migration tool. What these docs promise is held by the conformance suite, run against every runner.
#[async_trait]
pub trait MigrationRunner: Send + Sync {
    /// All revisions of the project. Touches no tenant. Files may have changed since the last call.
    ///
    /// # Errors
    /// A broken project, a missing tool.
    async fn history(&self) -> Result<Arc<History>, RunnerError>;

    /// How many connections to the tenant's server an attempt holds at most, the guard's own among them.
    fn connections(&self) -> i16;

    /// How the ledger is read in SQL. None where only the tool can tell: then [`read_ledger`](Self::read_ledger) asks it.
    fn ledger_table(&self) -> Option<LedgerTable>;

    /// Reads the tenant's ledger. Changes nothing.
    ///
    /// # Errors
    /// Whatever keeps it from being read. An absent table is no error: the tenant was never migrated.
    async fn read_ledger(
        &self,
        session: &mut TenantSession,
        url: &DatabaseUrl,
    ) -> Result<Ledger, RunnerError> {
        let _ = url;
        match self.ledger_table() {
            Some(table) => session.read_ledger(&table).await,
            None => Ok(Ledger::default()),
        }
    }

    /// Brings the tenant to `work.to`, under the tenant's lock that `session` holds. Migrating twice is the same as
    /// once, and killed midway and run again ends at the target. Returns soon after `work.cancel` is told, with
    /// nothing of its own left running. After an error, a cancel or a drop, `session` may be in the middle of
    /// something: it is good for closing only, which also ends what the server still does for it.
    ///
    /// # Errors
    /// What the tool or the server said. The tenant may stand anywhere between the two revisions then.
    async fn migrate(&self, session: &mut TenantSession, work: &Work<'_>) -> Result<(), RunnerError>;
}

/// Builds the runner that the config names, for `concurrency` attempts at a time. The only list of runners there is.
///
/// # Errors
/// What the config says cannot be. Nothing is started yet.
pub fn build(config: &RunnerConfig, concurrency: usize) -> Result<Arc<dyn MigrationRunner>, RunnerError> {
    Ok(match config {
        RunnerConfig::Alembic(c) => Arc::new(alembic::AlembicRunner::new(c, concurrency)),
        RunnerConfig::Sql(c) => Arc::new(SqlRunner::new(c)),
        RunnerConfig::Command(c) => Arc::new(CommandRunner::new(c)?),
    })
}
