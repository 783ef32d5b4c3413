//! The scratch schemas and databases of proofs, and the one connection that a proof has at a time.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::{
    database_url::DatabaseUrl,
    runner::proof::Ground,
    session::{dial, quote},
    tenant_error::TenantError,
};

/// How every scratch schema and database begins. No tenant may.
pub const SHADOW_PREFIX: &str = "herder_shadow_";

/// After how long a scratch schema is one that nobody removed.
const STALE: Duration = Duration::from_secs(60 * 60);

/// A scratch tenant.
pub(super) struct Scratch {
    pub(super) name: String,
    pub(super) url: DatabaseUrl,
    pub(super) schema: Option<String>,
}

/// The major version of the server: another one may take the same SQL for something else.
pub(in crate::runner::alembic) async fn postgres_major(ground: Ground<'_>) -> Result<i32, TenantError> {
    let mut on = open(ground.url, &ground).await?;
    let version = sqlx::query_scalar("select current_setting('server_version_num')::int / 10000")
        .fetch_one(&mut on)
        .await;
    close(on).await;
    Ok(version?)
}

/// The one connection of a proof. It is closed before anything else is waited for: nothing keeps its idle limit away.
pub(super) async fn open(url: &DatabaseUrl, ground: &Ground<'_>) -> Result<PgConnection, TenantError> {
    let options = dial::options(url, &ground.label(), ground.limits.into())?
        // What a schema is, is asked in one long statement: compiled, it takes ten times as long.
        .options([("jit", "off")]);
    dial::opened(url, PgConnection::connect_with(&options)).await
}

pub(super) async fn close(on: PgConnection) {
    // A connection that is broken already is closed, too.
    let _ = on.close().await;
}

/// Whether a scratch schema is still there. A database is, as long as there is a connection to it.
pub(super) async fn is_there(on: &mut PgConnection, schema: Option<&str>) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("select $1 is null or exists (select from pg_catalog.pg_namespace where nspname = $1)")
        .bind(schema)
        .persistent(false)
        .fetch_one(on)
        .await
}

/// Removes what earlier proofs left behind, as far as we may: their sessions first, which may be in the middle of
/// something there, and count against the budget.
pub(super) async fn sweep(on: &mut PgConnection, ground: &Ground<'_>) {
    let _ = sqlx::query(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity
         where application_name = $1 and pid <> pg_backend_pid() and usename = current_user
           and (datname = current_database() or starts_with(datname, $2))",
    )
    .bind(ground.label())
    .bind(format!("{SHADOW_PREFIX}{}_", ground.owner))
    .persistent(false)
    .execute(&mut *on)
    .await;
    let list = match ground.place.schema.is_some() {
        true => "select nspname::text from pg_namespace where nspname like 'herder\\_shadow\\_%'",
        false => "select datname::text from pg_database where datname like 'herder\\_shadow\\_%'",
    };
    let names: Vec<String> = sqlx::query_scalar(list)
        .fetch_all(&mut *on)
        .await
        .unwrap_or_default();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    for name in names
        .iter()
        .filter(|name| is_left_behind(name, ground.owner, now))
    {
        // Somebody else's, perhaps.
        let _ = remove(on, name, ground.place.schema.is_some()).await;
    }
}

/// Whether nobody needs a scratch schema any more: it is ours, or another's and an hour old.
fn is_left_behind(name: &str, owner: &str, now: Duration) -> bool {
    let mut parts = name.strip_prefix(SHADOW_PREFIX).unwrap_or_default().split('_');
    let (whose, made) = (parts.next().unwrap_or_default(), parts.next());
    match made.and_then(|seconds| seconds.parse().ok()) {
        Some(made) => whose == owner || Duration::from_secs(made) + STALE < now,
        None => false,
    }
}

pub(super) async fn remove(on: &mut PgConnection, name: &str, is_schema: bool) -> Result<(), TenantError> {
    let name = quote(name);
    let sql = match is_schema {
        true => format!("drop schema if exists {name} cascade"),
        false => format!("drop database if exists {name} with (force)"),
    };
    on.execute(AssertSqlSafe(sql)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ours_or_old_is_left_behind() {
        let now = Duration::from_secs(10_000);
        let left = |name: &str| is_left_behind(name, "0a1b", now);
        assert!(left("herder_shadow_ffff_6399_ab_a"));
        assert!(!left("herder_shadow_ffff_6400_ab_a"));
        assert!(left("herder_shadow_0a1b_9999_ab_a"));
        assert!(!left("herder_shadow_0a1b_x_1"));
        assert!(!left("acme_0a1b_6399"));
    }
}
