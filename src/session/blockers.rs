//! Who was in the way where a lock was waited for in vain. The server itself names nobody.

use std::time::Duration;

use super::{TenantSession, limits::ANSWER_LIMIT};
use crate::{domain::tenant::PUBLIC, runner::RunnerError};

/// The oldest transaction of others with a lock on one of the tenant's tables, or on a shared one. $1 is the tenant's schema, $2 this
/// attempt's label. Of other roles' sessions, a role without `pg_read_all_stats` sees who they are, and no more.
const OLDEST: &str = "
    select a.pid, coalesce(nullif(a.application_name, ''), a.usename, a.backend_type), coalesce(a.state, ''),
           extract(epoch from clock_timestamp() - a.xact_start)::float8, n.nspname || '.' || c.relname
    from pg_catalog.pg_locks l
    join pg_catalog.pg_class c on c.oid = l.relation
    join pg_catalog.pg_namespace n on n.oid = c.relnamespace
    join pg_catalog.pg_stat_activity a on a.pid = l.pid
    where l.locktype = 'relation' and l.granted and l.pid <> pg_catalog.pg_backend_pid()
      and l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
      and a.application_name is distinct from $2
      and (case when $1::text is null then n.nspname !~ '^(pg_|information_schema$)' else n.nspname in ($1, $3) end)
    order by n.nspname is not distinct from $1 desc, a.xact_start, c.relkind <> 'r', c.relname
    limit 1";

impl TenantSession {
    /// Who that is, in words, right behind the failure.
    ///
    /// # Errors
    /// The connection broke, or does not answer.
    pub(crate) async fn oldest_with_locks(&mut self, label: &str) -> Result<Option<String>, RunnerError> {
        let asking = async {
            // The transaction that has failed may still be open.
            sqlx::raw_sql("rollback").execute(&mut self.connection).await?;
            sqlx::query_as(OLDEST)
                .bind(&self.schema)
                .bind(label)
                .bind(PUBLIC)
                .persistent(false)
                .fetch_optional(&mut self.connection)
                .await
        };
        let asked = tokio::time::timeout(ANSWER_LIMIT, asking).await;
        let found: Option<(i32, String, String, Option<f64>, String)> =
            asked.map_err(|_| RunnerError::Silent(ANSWER_LIMIT))??;
        Ok(found.map(|(pid, who, state, age, table)| {
            let age = age.and_then(|seconds| Duration::try_from_secs_f64(seconds.round()).ok());
            let age = age.map(|age| format!("its transaction was {} old", humantime::format_duration(age)));
            let known: Vec<String> = [Some(state).filter(|s| !s.is_empty()), age]
                .into_iter()
                .flatten()
                .collect();
            let known = if known.is_empty() {
                String::new()
            } else {
                format!(": {}", known.join(", "))
            };
            format!("pid {pid} (`{who}`{known}) had a lock on {table} then")
        }))
    }
}
