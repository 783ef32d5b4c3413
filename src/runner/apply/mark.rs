//! What a tenant is known again by. A note of how far an attempt got is about the tenant as it was: whoever moves its ledger since,
//! there and back, or makes its schema anew, has it begin at the first piece again.

use sqlx::AssertSqlSafe;

use super::Applier;
use crate::{
    domain::plan::Note,
    session::{LedgerTable, literal},
    tenant_error::TenantError,
};

impl Applier<'_> {
    /// A query of the tenant's mark: which database and schema this is, and, where the ledger has rows, which table that is and which
    /// transactions wrote them. Reading them changes none of it, nor does any piece of a revision. A ledger without rows may be
    /// made by the very step that is noted.
    pub(super) fn mark(&self, has_rows: bool) -> String {
        let LedgerTable {
            table,
            revision,
            condition,
            ..
        } = self.order.ledger;
        let schema = format!(
            "(select oid from pg_catalog.pg_namespace where nspname = {})",
            literal(&self.home)
        );
        let rows = match has_rows {
            true => format!(
                ", (select oid from pg_catalog.pg_class where relname = {} and relnamespace = {schema}), \
                 array(select pg_catalog.concat_ws('=', {revision}, xmin) from {} where {condition} \
                 order by ({revision})::pg_catalog.text collate \"C\")",
                literal(table),
                self.ledger
            ),
            false => String::new(),
        };
        format!(
            "select pg_catalog.concat_ws(' ', (select oid from pg_catalog.pg_database \
             where datname = pg_catalog.current_database()), {schema}{rows})"
        )
    }

    /// Whether a former attempt's note is about the tenant as it is now.
    ///
    /// # Errors
    /// The note is of a build that took no marks, so that nobody knows.
    pub(super) async fn is_as_noted(&mut self, note: &Note) -> Result<bool, TenantError> {
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
        let asked = sqlx::query_scalar(AssertSqlSafe(self.mark(has_rows))).persistent(false);
        let mark: Option<String> = asked.fetch_optional(self.session.connection()).await?;
        Ok(mark.as_ref() == Some(noted))
    }
}
