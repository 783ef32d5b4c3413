//! The other sessions on a tenant's server, and the end of those that must not go on.

use super::{TenantSession, limits::ANSWER_LIMIT};
use crate::{domain::job::AttemptLabel, tenant_error::TenantError};

/// How long the server may take to end a session that it was told to end.
const TERMINATE_MS: i64 = 3000;

/// By what the sessions that lost workers have left on a server are known.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// The labels of their attempts.
    pub(crate) attempts: Vec<String>,
    /// The labels of the connections that they kept. The same worker may have kept some as another role: those are ended as such.
    pub(crate) kept: Vec<String>,
    /// The databases of their tenants.
    pub(crate) databases: Vec<String>,
    /// The keys of these tenants' locks. A migration may call its session whatever it likes, but it does so behind that lock.
    pub(crate) keys: Vec<i64>,
}

impl TenantSession {
    /// Ends every backend on this server that belongs to an older attempt at the same job, and says how many there were.
    ///
    /// # Errors
    /// The connection broke, or one of them does not end.
    pub async fn end_older(&mut self, than: AttemptLabel) -> Result<usize, TenantError> {
        let AttemptLabel { run, attempt } = than;
        let of_job = format!("herder/{run}/{}/%", attempt.job);
        let is_older = |name: &str| {
            AttemptLabel::parse(name).is_some_and(|other| {
                (other.run, other.attempt.job) == (run, attempt.job) && other.attempt.epoch < attempt.epoch
            })
        };
        self.end_backends(&of_job, is_older).await
    }

    /// Ends the sessions of this very attempt's tool: those with its name, but for this one.
    ///
    /// # Errors
    /// The connection broke, or one of them does not end.
    pub async fn end_tool(&mut self, application_name: &str) -> Result<(), TenantError> {
        let end = self.end_backends(application_name, |name| name == application_name);
        match tokio::time::timeout(2 * ANSWER_LIMIT, end).await {
            Ok(ended) => ended.map(|_| ()),
            Err(_) => Err(TenantError::Silent(2 * ANSWER_LIMIT)),
        }
    }

    /// Ends what lost workers have left, and says how many sessions there were.
    ///
    /// # Errors
    /// The connection broke, or one of them does not end.
    pub(crate) async fn end_left(&mut self, left: &Left) -> Result<usize, TenantError> {
        let ended: Vec<bool> = sqlx::query_scalar(
            "select pg_terminate_backend(pid, $2) from pg_stat_activity
             where application_name = any($1) or (application_name = any($3) and usename = current_user)
                or (application_name not like 'herder/%' and usename = current_user and pid in (
                      select l.pid from pg_locks l join pg_database d on d.oid = l.database
                      join unnest($4::text[], $5::bigint[]) as tenant (database, key)
                        on tenant.database = d.datname and tenant.key = l.classid::bigint << 32 | l.objid::bigint
                      where l.locktype = 'advisory' and l.granted and l.objsubid = 1))",
        )
        .bind(&left.attempts)
        .bind(TERMINATE_MS)
        .bind(&left.kept)
        .bind(&left.databases)
        .bind(&left.keys)
        .persistent(false)
        .fetch_all(&mut self.connection)
        .await?;
        match ended.iter().all(|gone| *gone) {
            true => Ok(ended.len()),
            false => Err(TenantError::Connection("a session does not end".into())),
        }
    }

    /// Ends the sessions of this role with these names, and says whether none with them is left. Those of another role are
    /// ended by their own limits.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn end_named(&mut self, names: &[String]) -> Result<bool, TenantError> {
        sqlx::query(
            "select pg_terminate_backend(pid, $2) from pg_stat_activity
             where application_name = any($1) and usename = current_user and pid <> pg_backend_pid()",
        )
        .bind(names)
        .bind(TERMINATE_MS)
        .persistent(false)
        .execute(&mut self.connection)
        .await?;
        let is_clear = sqlx::query_scalar(
            "select not exists (select from pg_stat_activity where application_name = any($1) and pid <> pg_backend_pid())",
        );
        let is_clear = is_clear.bind(names).persistent(false);
        Ok(is_clear.fetch_one(&mut self.connection).await?)
    }

    /// Whether the server has a session with this process.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn sees(&mut self, backend: i32) -> Result<bool, TenantError> {
        let ask = sqlx::query_scalar("select exists (select from pg_stat_activity where pid = $1)");
        let ask = ask.bind(backend).persistent(false);
        Ok(ask.fetch_one(&mut self.connection).await?)
    }

    /// Ends the backends with names that are like this and meant, and says how many there were. When it returns well,
    /// they are gone, and their locks with them.
    async fn end_backends(
        &mut self,
        like: &str,
        is_meant: impl Fn(&str) -> bool,
    ) -> Result<usize, TenantError> {
        let meant = self.backends(like, &is_meant).await?;
        for pid in &meant {
            // It waits, but not for ever, and what it answers is no for one that was gone before, too.
            sqlx::query("select pg_terminate_backend($1, 5000)")
                .bind(pid)
                .persistent(false)
                .execute(&mut self.connection)
                .await?;
        }
        if !meant.is_empty() && !self.backends(like, &is_meant).await?.is_empty() {
            return Err(TenantError::Connection(
                "a session that was told to end is still there".into(),
            ));
        }
        Ok(meant.len())
    }

    async fn backends(
        &mut self,
        like: &str,
        is_meant: &impl Fn(&str) -> bool,
    ) -> Result<Vec<i32>, TenantError> {
        let rows: Vec<(i32, String)> = sqlx::query_as(
            "select pid, application_name from pg_stat_activity
             where application_name like $1 and pid <> pg_backend_pid()",
        )
        .bind(like)
        .persistent(false)
        .fetch_all(&mut self.connection)
        .await?;
        Ok(rows
            .into_iter()
            .filter_map(|(pid, name)| is_meant(&name).then_some(pid))
            .collect())
    }
}
