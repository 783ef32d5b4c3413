//! Who was in the way where a lock was waited for in vain. The server itself names nobody.

use std::{fmt, time::Duration};

use super::{TenantSession, limits::ANSWER_LIMIT};
use crate::{domain::tenant::PUBLIC, tenant_error::TenantError};

/// The oldest transaction of others with a lock on one of the tenant's tables, or on a shared one. What is done `CONCURRENTLY` ($4)
/// waits for those that write there, and for every snapshot in its database. $1 is the tenant's schema, $2 this attempt's label. Of
/// other roles' sessions, a role without `pg_read_all_stats` sees who they are, and no more.
const OLDEST: &str = "
    with locker as (
        select l.pid, n.nspname || '.' || c.relname as relation, n.nspname is not distinct from $1 as own, c.relkind <> 'r' as minor
        from pg_catalog.pg_locks l
        join pg_catalog.pg_class c on c.oid = l.relation
        join pg_catalog.pg_namespace n on n.oid = c.relnamespace
        where l.locktype = 'relation' and l.granted
          and l.database = (select oid from pg_catalog.pg_database where datname = pg_catalog.current_database())
          and (case when $1::text is null then n.nspname !~ '^(pg_|information_schema$)' else n.nspname in ($1, $3) end)
          and not ($4 and l.mode in ('AccessShareLock', 'RowShareLock'))
        union all
        select pid, null, true, true from pg_catalog.pg_stat_activity
        where $4 and datname = pg_catalog.current_database() and backend_xmin is not null
    )
    select a.pid, coalesce(nullif(a.application_name, ''), a.usename, a.backend_type) as who,
           coalesce(a.state, '') as state, extract(epoch from clock_timestamp() - a.xact_start)::float8 as age, locker.relation
    from locker join pg_catalog.pg_stat_activity a on a.pid = locker.pid
    where a.pid <> pg_catalog.pg_backend_pid() and a.application_name is distinct from $2
    order by locker.own desc, a.xact_start, locker.minor, locker.relation
    limit 1";

impl TenantSession {
    /// Who that is, in words, right behind the failure of this statement.
    ///
    /// # Errors
    /// The connection broke, or does not answer.
    pub(crate) async fn oldest_in_the_way(
        &mut self,
        statement: Option<&str>,
        label: &str,
    ) -> Result<Option<String>, TenantError> {
        let is_concurrent = statement.is_some_and(|text| text.to_ascii_lowercase().contains("concurrently"));
        let asking = async {
            // The transaction that has failed may still be open.
            sqlx::raw_sql("rollback").execute(&mut self.connection).await?;
            sqlx::query_as(OLDEST)
                .bind(&self.schema)
                .bind(label)
                .bind(PUBLIC)
                .bind(is_concurrent)
                .persistent(false)
                .fetch_optional(&mut self.connection)
                .await
        };
        let asked = tokio::time::timeout(ANSWER_LIMIT, asking).await;
        let found: Option<InTheWay> = asked.map_err(|_| TenantError::Silent(ANSWER_LIMIT))??;
        Ok(found.map(|found| found.to_string()))
    }
}

/// A transaction that others waited for.
#[derive(sqlx::FromRow)]
struct InTheWay {
    pid: i32,
    who: String,
    state: String,
    /// In seconds.
    age: Option<f64>,
    /// What it had a lock on. None: it had a snapshot.
    relation: Option<String>,
}

impl fmt::Display for InTheWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {} (`{}`", self.pid, self.who)?;
        let age = self
            .age
            .and_then(|seconds| Duration::try_from_secs_f64(seconds.round()).ok());
        let age = age.map(|age| format!("its transaction was {} old", humantime::format_duration(age)));
        let state = Some(self.state.clone()).filter(|state| !state.is_empty());
        let known: Vec<String> = state.into_iter().chain(age).collect();
        if !known.is_empty() {
            write!(f, ": {}", known.join(", "))?;
        }
        match &self.relation {
            Some(relation) => write!(f, ") had a lock on {relation} then"),
            None => write!(f, ") read from a snapshot of this database then"),
        }
    }
}
