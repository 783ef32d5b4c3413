//! The ledgers of many schemas, over one connection to the database that has them.

use std::collections::HashMap;

use sqlx::{AssertSqlSafe, Row};

use super::{LedgerTable, TenantSession, quote};
use crate::tenant_error::TenantError;

/// A row of one of them.
pub(crate) struct LedgerRow {
    /// Whose: the place of its schema among those that were asked for.
    pub(crate) schema: usize,
    pub(crate) revision: String,
    /// Of what it stands for, in hex, where the ledger keeps one and it was asked for.
    pub(crate) checksum: Option<String>,
    /// Whether it says that the revision is applied.
    pub(crate) counts: bool,
    /// Whether it says that the revision is applied or undone by half.
    pub(crate) half: bool,
}

impl TenantSession {
    /// Which schemas are there, and which of them have a ledger. From pg_catalog: information_schema takes seconds.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn find_ledgers(
        &mut self,
        schemas: &[&str],
        table: &LedgerTable,
    ) -> Result<HashMap<String, bool>, TenantError> {
        let rows: Vec<(String, bool)> = sqlx::query_as(
            "select n.nspname::text, exists (select from pg_class c where c.relnamespace = n.oid and c.relname = $2
                                             and c.relkind in ('r', 'p', 'v'))
             from pg_namespace n where n.nspname = any($1)",
        )
        .bind(schemas)
        .bind(&table.table)
        .persistent(false)
        .fetch_all(&mut self.connection)
        .await?;
        Ok(rows.into_iter().collect())
    }

    /// The rows of these schemas' ledgers, in one statement.
    ///
    /// # Errors
    /// The connection broke, or one of them is not there, or may not be read.
    pub(crate) async fn read_ledgers(
        &mut self,
        schemas: &[&str],
        ledger: &LedgerTable,
        with_checksums: bool,
    ) -> Result<Vec<LedgerRow>, TenantError> {
        let LedgerTable {
            table,
            revision,
            condition,
            half,
            checksum,
        } = ledger;
        let checksum = checksum.filter(|_| with_checksums).unwrap_or("null::text");
        let half = half.unwrap_or("false");
        let parts: Vec<String> = schemas
            .iter()
            .enumerate()
            .map(|(i, s)| {
                format!(
                    "select {i}, {revision}, {checksum}, {condition}, {half} from {}.{} where ({condition}) or {half}",
                    quote(s),
                    quote(table)
                )
            })
            .collect();
        // Rows as they are, and not an array for each: a part is then planned in half the time, and planning is the work.
        let text = AssertSqlSafe(parts.join(" union all "));
        let rows = sqlx::raw_sql(text).fetch_all(&mut self.connection).await?;
        rows.into_iter()
            .map(|row| {
                let schema: i32 = row.try_get(0)?;
                Ok(LedgerRow {
                    schema: usize::try_from(schema).unwrap_or_default(),
                    revision: ledger.named(row.try_get(1)?)?,
                    checksum: row.try_get(2)?,
                    counts: row.try_get(3)?,
                    half: row.try_get(4)?,
                })
            })
            .collect()
    }
}
