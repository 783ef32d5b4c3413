//! sqlx's own ledger, `_sqlx_migrations`, in the tenant's schema. Its table is named in full everywhere: what a
//! migration did to `search_path` must not lead us elsewhere.
//!
//! A file that runs outside a transaction is announced first, and recorded once it is through. While it is announced,
//! its row says `success = false`: what sqlx calls dirty, and refuses to build on. Undoing such a file is announced
//! by an `execution_time` of its own instead, because a row without success would read as undone.

use sqlx::{AssertSqlSafe, PgConnection, Row, migrate::Migrate, migrate::MigrateError};

use super::directory::{Migration, hex};
use crate::{
    runner::RunnerError,
    session::{TenantSession, quote},
};

/// The table that sqlx writes.
pub(super) const TABLE: &str = "_sqlx_migrations";

/// What `execution_time` says while a file without a transaction is being undone. sqlx writes -1 or nanoseconds.
const UNDOING: i64 = -2;

/// One row.
#[derive(Debug)]
pub(super) struct Applied {
    pub(super) version: i64,
    pub(super) checksum: Vec<u8>,
    /// Not so: a file without a transaction was begun, to be done or undone, and nobody said that it was through.
    pub(super) whole: bool,
}

/// The tenant's ledger.
pub(super) struct LedgerOf {
    table: String,
}

impl LedgerOf {
    pub(super) async fn new(session: &mut TenantSession) -> Result<Self, RunnerError> {
        let schema = session.home().await?;
        Ok(Self {
            table: format!("{}.{}", quote(&schema), quote(TABLE)),
        })
    }

    /// All rows. None where the table is not there.
    pub(super) async fn rows(&self, on: &mut PgConnection) -> Result<Option<Vec<Applied>>, RunnerError> {
        let exists: bool = sqlx::query_scalar("select to_regclass($1) is not null")
            .bind(&self.table)
            .persistent(false)
            .fetch_one(&mut *on)
            .await?;
        if !exists {
            return Ok(None);
        }
        let rows = sqlx::query(AssertSqlSafe(format!(
            "select version, checksum, success and execution_time <> {UNDOING} from {} order by version",
            self.table
        )));
        let rows = rows.persistent(false).fetch_all(on).await?;
        let applied = rows.iter().map(|row| Applied {
            version: row.get(0),
            checksum: row.get(1),
            whole: row.get(2),
        });
        Ok(Some(applied.collect()))
    }

    /// Makes the table, in sqlx's own words.
    pub(super) async fn ensure(&self, on: &mut PgConnection) -> Result<(), RunnerError> {
        on.ensure_migrations_table(&self.table)
            .await
            .map_err(|e| match e {
                MigrateError::Execute(e) => e.into(),
                other => RunnerError::Connection(other.to_string()),
            })
    }

    fn insert(&self, m: &Migration, success: bool) -> String {
        format!(
            "insert into {} (version, description, success, checksum, execution_time) \
             values ({}, {}, {success}, pg_catalog.decode('{}', 'hex'), -1) on conflict (version) do nothing",
            self.table,
            m.version,
            literal(&m.description),
            hex(&m.checksum),
        )
    }

    /// Records a migration in an open transaction, before it runs. Gives the transaction's number, if there was
    /// something to record. Another attempt at the same waits here for the end of this one.
    pub(super) fn record(&self, m: &Migration) -> String {
        format!("{} returning {XID}", self.insert(m, true))
    }

    /// The opposite of [`record`](Self::record).
    pub(super) fn erase(&self, m: &Migration) -> String {
        format!(
            "delete from {} where version = {} returning {XID}",
            self.table, m.version
        )
    }

    /// How long it took.
    pub(super) fn took(&self, m: &Migration, nanoseconds: u128) -> String {
        format!(
            "update {} set execution_time = {nanoseconds} where version = {}",
            self.table, m.version
        )
    }

    /// Announces a migration that runs outside a transaction.
    pub(super) fn announce(&self, m: &Migration) -> String {
        self.insert(m, false)
    }

    /// Takes an announcement back: nothing was done.
    pub(super) fn withdraw(&self, m: &Migration) -> String {
        format!(
            "delete from {} where version = {} and not success",
            self.table, m.version
        )
    }

    /// It is through. The file may have been mended since it was announced.
    pub(super) fn complete(&self, m: &Migration, nanoseconds: u128) -> String {
        format!(
            "update {} set success = true, execution_time = {nanoseconds}, description = {}, \
             checksum = pg_catalog.decode('{}', 'hex') where version = {}",
            self.table,
            literal(&m.description),
            hex(&m.checksum),
            m.version
        )
    }

    /// Announces that a migration is being undone outside a transaction.
    pub(super) fn announce_undo(&self, m: &Migration) -> String {
        self.execution_time(m, UNDOING)
    }

    /// Takes that back: nothing was undone.
    pub(super) fn withdraw_undo(&self, m: &Migration) -> String {
        self.execution_time(m, -1)
    }

    fn execution_time(&self, m: &Migration, value: i64) -> String {
        format!(
            "update {} set execution_time = {value} where version = {}",
            self.table, m.version
        )
    }

    /// It is undone.
    pub(super) fn complete_undo(&self, m: &Migration) -> String {
        format!("delete from {} where version = {}", self.table, m.version)
    }
}

/// The number of the transaction that a statement runs in.
const XID: &str = "pg_catalog.pg_current_xact_id()::pg_catalog.text";

/// A text as SQL, whatever stands in it, and whatever a migration did to `standard_conforming_strings`.
pub(super) fn literal(text: &str) -> String {
    format!("E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}
