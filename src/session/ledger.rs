//! A tenant's ledger, as SQL reads it.

use sqlx::AssertSqlSafe;

use super::{TenantSession, quote};
use crate::{domain::revision::Ledger, tenant_error::TenantError};

/// How a runner's ledger is read in SQL, so that ten thousand of them can be read in a few statements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LedgerTable {
    /// The table's name, unquoted. It lives in the tenant's schema, or in `public` of a tenant's database.
    pub table: String,
    /// An expression that gives a row's revision as text.
    pub revision: &'static str,
    /// Which rows count.
    pub condition: &'static str,
    /// Which rows are of a revision that is applied or undone by half, where the tool says so. They may count or not.
    pub half: Option<&'static str>,
    /// An expression that gives the checksum in hex of what a row stands for, where the tool keeps one.
    pub checksum: Option<&'static str>,
}

impl LedgerTable {
    /// The revision of a row. A table that was made by hand, or a view, may have a row without one.
    ///
    /// # Errors
    /// There is none.
    pub fn named(&self, revision: Option<String>) -> Result<String, TenantError> {
        revision.ok_or_else(|| {
            TenantError::UnexpectedAnswer(format!(
                "its ledger `{}` has a row without a revision",
                self.table
            ))
        })
    }
}

impl TenantSession {
    /// Reads the tenant's ledger. An absent table means: never migrated.
    ///
    /// # Errors
    /// The connection broke, or the table may not be read.
    pub async fn read_ledger(&mut self, ledger: &LedgerTable) -> Result<Ledger, TenantError> {
        if !self.has(ledger).await? {
            return Ok(Ledger::default());
        }
        let rows: Vec<(Option<String>,)> = self.rows(ledger, ledger.revision, ledger.condition).await?;
        let revisions = rows.into_iter().map(|(revision,)| ledger.named(revision));
        Ok(Ledger {
            revisions: revisions.collect::<Result<_, _>>()?,
            half: None,
        })
    }

    async fn has(&mut self, ledger: &LedgerTable) -> Result<bool, TenantError> {
        let schema = self.home().await?;
        let exists = sqlx::query_scalar(
            // One look into one index. A join might read the ledgers of all tenants: they share their table's name.
            "select exists (select from pg_class where relname = $2 and relkind in ('r', 'p', 'v') \
             and relnamespace = (select oid from pg_namespace where nspname = $1))",
        )
        .bind(&schema)
        .bind(&ledger.table)
        .persistent(false)
        .fetch_one(&mut self.connection);
        Ok(exists.await?)
    }

    /// A revision that the ledger says is applied or undone by half.
    ///
    /// # Errors
    /// The connection broke, or the table may not be read.
    pub async fn read_half(&mut self, ledger: &LedgerTable) -> Result<Option<String>, TenantError> {
        let Some(half) = ledger.half else {
            return Ok(None);
        };
        if !self.has(ledger).await? {
            return Ok(None);
        }
        let rows: Vec<(String,)> = self.rows(ledger, ledger.revision, half).await?;
        Ok(rows.into_iter().map(|(revision,)| revision).min())
    }

    /// The revisions in a ledger that is there, each with the checksum that this expression gives.
    ///
    /// # Errors
    /// The connection broke, or the ledger may not be read.
    pub async fn read_checksums(
        &mut self,
        ledger: &LedgerTable,
        checksum: &str,
    ) -> Result<Vec<(String, String)>, TenantError> {
        let columns = format!("{}, {checksum}", ledger.revision);
        self.rows(ledger, &columns, ledger.condition).await
    }

    async fn rows<T>(
        &mut self,
        ledger: &LedgerTable,
        columns: &str,
        condition: &str,
    ) -> Result<Vec<T>, TenantError>
    where
        T: for<'r> sqlx::FromRow<'r, sqlx::postgres::PgRow> + Send + Unpin,
    {
        let (schema, table) = (quote(&self.home().await?), quote(&ledger.table));
        let rows = sqlx::query_as(AssertSqlSafe(format!(
            "select {columns} from {schema}.{table} where {condition}"
        )));
        Ok(rows.persistent(false).fetch_all(&mut self.connection).await?)
    }
}
