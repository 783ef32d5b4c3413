//! The control database: the only place that holds SQL for our tables. One file per noun, one function per
//! statement, named for what happens.

pub(crate) mod commit;
pub mod job;
pub mod line;
pub mod notice;
pub mod plan;
pub mod proof;
pub mod prune;
pub mod run;
pub mod server;
pub mod service;
pub mod setup;
pub mod slot;
pub mod view;
pub mod worker;

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{Connection, PgPool, postgres::PgPoolOptions};

use crate::{
    database_url::{DatabaseUrl, DatabaseUrlError},
    handshake,
    secret::Secret,
};

/// What can go wrong with the control database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its URL is none.
    #[error("the control database's URL is {0}")]
    Url(#[from] DatabaseUrlError),
    /// It cannot be reached, or refused a statement.
    #[error("control database error: {0}")]
    Database(#[from] sqlx::Error),
    /// They were made by another role, which has not let this one use them.
    #[error("role `{role}` has no access to the control tables ({message})")]
    NotAllowed {
        /// This role.
        role: String,
        /// What the server said.
        message: String,
    },
    /// It does not answer.
    #[error("the control database did not answer in {0:?}")]
    Silent(Duration),
    /// The answer to a commit was lost, and nobody can be asked what became of it.
    #[error("the connection broke during the commit, and it is not known whether that was done")]
    InDoubt(#[source] sqlx::Error),
    /// Its tables cannot be made.
    #[error("cannot set up the control database: {0}")]
    Setup(String),
}

impl StoreError {
    /// In one line, for whoever cannot even begin: with the server's address, and what to do about it.
    pub fn explain(&self, url: &Secret) -> String {
        let address = DatabaseUrl::parse(url.expose()).map_or_else(|_| "?".to_owned(), |url| url.address());
        let place = format!("the control database at {address}");
        match self {
            Self::NotAllowed { role, .. } => {
                format!("{self}: run `herder setup --grant {role}` as the role that created them")
            }
            Self::Database(error) => match (handshake::untrusted(error), error) {
                (Some((why, hint)), _) => {
                    format!("cannot open a trusted connection to {place}: {why}; {hint}")
                }
                (None, sqlx::Error::Database(refusal)) => {
                    let hint = handshake::refused(&refusal.code().unwrap_or_default(), refusal.message());
                    let hint = hint.map(|hint| format!("; {hint}")).unwrap_or_default();
                    format!("{place} refused the connection: {}{hint}", refusal.message())
                }
                (None, sqlx::Error::PoolTimedOut) => {
                    format!("{place} does not answer: check that it is running, and [control] `url`")
                }
                (None, sqlx::Error::Io(error)) => format!("cannot reach {place}: {error}"),
                (None, error) => format!("cannot reach {place}: {error}"),
            },
            other => other.to_string(),
        }
    }
}

/// What time it is, by the control database's clock.
///
/// # Errors
/// The control database fails.
pub async fn now(pool: &PgPool) -> Result<DateTime<Utc>, StoreError> {
    let now = sqlx::query_scalar!(r#"select now() as "now!""#);
    Ok(now.fetch_one(pool).await?)
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
            crate::session::PROBE,
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
