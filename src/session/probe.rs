//! Does what a connection is opened with reach the server? A pooler that hands out a session for one transaction at a time keeps
//! it to itself, every known one, so that alone is telling: Herder's locks, limits and labels would not hold.

use serde::Serialize;
use sqlx::PgConnection;

/// What a connection is opened with to see whether that reaches the server. The setting does nothing.
pub(crate) const PROBE: (&str, &str) = ("herder.probe", "on");

/// What a session did that it must not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Pooled {
    /// What the connection was opened with did not reach the server.
    #[error("the settings that a connection is opened with do not reach the server")]
    Stripped,
    /// Two sessions of ours were one on the server.
    #[error("two sessions share one backend")]
    Shared,
    /// A session went on in another backend.
    #[error("a session changes its backend from one transaction to the next")]
    Moved,
    /// What was set for a session was gone in the next transaction.
    #[error("a setting does not last from one transaction to the next")]
    Forgotten,
    /// The driver's prepared statements are not where it left them.
    #[error("a session does not find the statements that it prepared")]
    Statements,
}

/// What a failed connect says about a pooler: PgBouncer refuses what it would have to pass on.
pub fn refusal(error: &sqlx::Error) -> Option<Pooled> {
    let database = error.as_database_error()?;
    (database.code().as_deref() == Some("08P01") && database.message().contains("startup parameter"))
        .then_some(Pooled::Stripped)
}

/// Whether the probe of a connection that was opened with it is there. Asked without preparing anything, in one round trip.
pub(super) async fn is_passed_on(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let probe = sqlx::raw_sql("select current_setting('herder.probe', true) = 'on'").fetch_one(connection);
    Ok(sqlx::Row::try_get::<Option<bool>, _>(&probe.await?, 0)? == Some(true))
}
