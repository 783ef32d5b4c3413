//! The control database: the only place that holds SQL for our tables. One file per noun, one function per
//! statement, named for what happens.

pub(crate) mod commit;
mod error;
pub mod half;
pub mod job;
pub mod line;
pub mod notice;
pub mod plan;
pub mod proof;
pub mod prune;
pub mod retry;
pub mod run;
pub mod server;
pub mod service;
pub mod setup;
pub mod slot;
pub mod view;
pub mod worker;

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{Connection, PgConnection, PgPool, postgres::PgPoolOptions};

pub use self::error::StoreError;
use crate::{database_url::DatabaseUrl, secret::Secret};

/// What time it is, by the control database's clock.
///
/// # Errors
/// The control database fails.
pub async fn now(pool: &PgPool) -> Result<DateTime<Utc>, StoreError> {
    let now = sqlx::query_scalar!(r#"select now() as "now!""#);
    Ok(now.fetch_one(pool).await?)
}

/// Since when the server of the control database runs. Another time is another server, or another life of the same one.
///
/// # Errors
/// The control database fails.
pub async fn server_since(connection: &mut PgConnection) -> Result<DateTime<Utc>, StoreError> {
    let since = sqlx::query_scalar!(r#"select pg_postmaster_start_time() as "since!""#);
    Ok(since.fetch_one(connection).await?)
}

/// Whether the control database takes no changes.
///
/// # Errors
/// The control database fails.
pub async fn is_read_only(pool: &PgPool) -> Result<bool, StoreError> {
    let on = sqlx::query_scalar!(r#"select current_setting('transaction_read_only')::bool as "on!""#);
    Ok(on.fetch_one(pool).await?)
}

/// How long a caller waits for a connection to the control database. Callers that must outlive it retry.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a small statement may take. A link that was cut without a word would be waited for a quarter of an hour.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Waits for what the control database says to a small statement, and no longer than that may take. The pool gives up a connection that
/// is in the middle of one.
///
/// # Errors
/// The control database fails, or is silent.
pub async fn answered<T>(work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let answer = tokio::time::timeout(ANSWER_LIMIT, work).await;
    answer.unwrap_or(Err(StoreError::Silent(ANSWER_LIMIT)))
}

/// For how long a connection is believed that came back alive.
const BELIEVED: Duration = Duration::from_secs(1);

/// A small pool of connections to the control database. None is opened before it is needed.
///
/// # Errors
/// The URL cannot be used.
pub fn pool(url: &Secret, application_name: &str, connections: u32) -> Result<PgPool, StoreError> {
    let options = DatabaseUrl::parse(url.expose())?
        .options()?
        .application_name(application_name)
        .options([
            // Nothing of ours takes long; a statement that does is stuck.
            ("statement_timeout", "60s"),
            ("idle_in_transaction_session_timeout", "30s"),
            ("client_connection_check_interval", "1s"),
            crate::session::pooler::PROBE,
            // What is read behind a lock must not be older than the lock, whatever role and database say.
            ("default_transaction_isolation", "read committed"),
            // All that we ask is few rows, found by an index. But the planner goes by what the tables were like when they
            // were last looked at: before a run, or in the middle of another. It would compile a claim for hundreds of
            // milliseconds, sort all that is ready for the first of it, or read a whole table for the rows of one job.
            ("jit", "off"),
            ("enable_sort", "off"),
            ("enable_seqscan", "off"),
            ("plan_cache_mode", "force_generic_plan"),
        ]);
    Ok(PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .before_acquire(|connection, meta| {
            Box::pin(async move {
                match meta.idle_for < BELIEVED {
                    true => Ok(true),
                    false => connection.ping().await.map(|()| true),
                }
            })
        })
        .after_release(|connection, _| {
            // sqlx asks a connection that comes back whether it lives, and has all the time in the world: over a dead
            // link its place in the pool would be lost.
            Box::pin(async {
                match tokio::time::timeout(ACQUIRE_TIMEOUT, connection.ping()).await {
                    Ok(alive) => alive.map(|()| true),
                    Err(_) => Err(sqlx::Error::PoolTimedOut),
                }
            })
        })
        .idle_timeout(Duration::from_secs(60))
        .connect_lazy_with(options))
}
