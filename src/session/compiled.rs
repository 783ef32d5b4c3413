//! Whether a session can serve tenants one after the other, by what its database's functions keep in it.

use super::{LedgerTable, TenantSession};
use crate::tenant_error::TenantError;

/// Whether there is a function, outside the tenants' own schemas, that a session compiles once with the types of the
/// first tenant that calls it. PL/pgSQL does that with what a function declares (`declare s cfg.v%type`), and other languages
/// may keep whatever they like; neither RESET nor DISCARD makes a session forget it. $1 is the ledger's table.
const COMPILES: &str = r"
with own as materialized (
    select relnamespace as oid from pg_catalog.pg_class
    where relname = $1 and relkind in ('r', 'p', 'v')
      and relnamespace is distinct from pg_catalog.to_regnamespace('public')
), known as materialized (
    -- The body of a trigger's function is compiled for each trigger, which is one table's. An event trigger is everybody's.
    select p.oid, p.proname, p.pronamespace
    from pg_catalog.pg_proc p join pg_catalog.pg_language l on l.oid = p.prolang
    where l.lanname not in ('internal', 'c', 'sql')
      and not (l.lanname = 'plpgsql' and p.prorettype = 'trigger'::pg_catalog.regtype)
      and p.pronamespace not in (select oid from pg_catalog.pg_namespace
                                 where nspname in ('pg_catalog', 'information_schema', 'pg_toast'))
), shared as materialized (
    select oid from known where pronamespace not in (select oid from own)
    union
    -- A shared schema may have a ledger of its own. What tenants have, each of them has.
    select pg_catalog.unnest(pg_catalog.array_agg(oid)) from known
    group by proname having min(pronamespace) = max(pronamespace)
)
select exists (
    select from shared join pg_catalog.pg_proc p using (oid) join pg_catalog.pg_language l on l.oid = p.prolang
    where (l.lanname <> 'plpgsql' or p.prosrc ~* '\mdeclare\M|%\s*(row)?type')
      and not exists (select from pg_catalog.pg_depend d
                      where d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass and d.objid = p.oid and d.deptype = 'e')
)";

impl TenantSession {
    /// Whether a tenant may meet another one's types over this connection. Asked once.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn mixes_types(&mut self, ledger: &LedgerTable) -> Result<bool, TenantError> {
        if let Some(known) = self.mixes_types {
            return Ok(known);
        }
        let ask = sqlx::query_scalar(COMPILES).bind(&ledger.table).persistent(false);
        let mixes = ask.fetch_one(&mut self.connection).await?;
        self.mixes_types = Some(mixes);
        Ok(mixes)
    }
}
