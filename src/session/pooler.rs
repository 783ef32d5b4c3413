//! Is there a pooler in between that hands out a session for one transaction at a time? Herder's locks, limits and labels
//! belong to sessions: with such a one nothing would hold.

use serde::Serialize;
use sqlx::{Connection, PgConnection, PgPool};

use super::{Limits, dial};
use crate::{database_url::DatabaseUrl, domain::worker::Errand, tenant_error::TenantError};

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

/// Looks at a session that was opened with the options of a probe. None: it is one, as far as one alone can tell. Every known pooler
/// that shares sessions keeps what a connection is opened with to itself, so that alone is telling.
///
/// # Errors
/// The connection broke.
pub async fn examine(connection: &mut PgConnection) -> Result<Option<Pooled>, sqlx::Error> {
    let found = found(compare(connection, None).await)?;
    if found.is_none() {
        // It may be looked at again.
        sqlx::query("reset herder.probe").execute(connection).await?;
    }
    Ok(found)
}

/// Looks at a session of a pool to the control database.
///
/// # Errors
/// It cannot be reached.
pub async fn examine_pool(pool: &PgPool) -> Result<Option<Pooled>, sqlx::Error> {
    match pool.acquire().await {
        Ok(mut connection) => examine(&mut connection).await,
        Err(error) => refusal(&error).map(Some).ok_or(error),
    }
}

/// Looks at a server with two connections at once: while one of them is in a transaction, a pooler that shares sessions has
/// to give the other another backend. Where a role has but one connection left, that one has to do.
///
/// # Errors
/// It cannot be reached, or does not answer.
pub async fn look(url: &DatabaseUrl, mark: &str) -> Result<Option<Pooled>, TenantError> {
    let options = dial::options(url, &Errand::Inspect.label(mark), Limits::QUESTION)?;
    // A pooler with no connection to spare lets its clients wait.
    dial::opened(url, async {
        let mut one = match PgConnection::connect_with(&options).await {
            Err(error) if refusal(&error).is_some() => return Ok(refusal(&error)),
            one => one?,
        };
        let mut two = match PgConnection::connect_with(&options).await {
            Err(error) if is(&error, &["53300"]) => None,
            two => Some(two?),
        };
        let compared = compare(&mut one, two.as_mut()).await;
        // They must be gone before somebody else takes their place.
        let _ = one.close().await;
        if let Some(two) = two {
            let _ = two.close().await;
        }
        found(compared)
    })
    .await
}

async fn compare(
    one: &mut PgConnection,
    two: Option<&mut PgConnection>,
) -> Result<Option<Pooled>, sqlx::Error> {
    let (first, probe) = backend(one).await?;
    if probe.as_deref() != Some(PROBE.1) {
        return Ok(Some(Pooled::Stripped));
    }
    sqlx::query("set herder.probe = 'mine'")
        .execute(&mut *one)
        .await?;
    let mut second = None;
    let (again, probe) = match two {
        None => backend(one).await?,
        Some(two) => {
            sqlx::query("begin").execute(&mut *two).await?;
            second = Some(backend(two).await?.0);
            let again = backend(one).await?;
            sqlx::query("rollback").execute(&mut *two).await?;
            again
        }
    };
    Ok(if second == Some(first) || second == Some(again) {
        Some(Pooled::Shared)
    } else if again != first {
        Some(Pooled::Moved)
    } else if probe.as_deref() != Some("mine") {
        Some(Pooled::Forgotten)
    } else {
        None
    })
}

/// In which backend we are, and what it knows of us.
async fn backend(connection: &mut PgConnection) -> Result<(i32, Option<String>), sqlx::Error> {
    sqlx::query_as("select pg_backend_pid(), current_setting('herder.probe', true)")
        .fetch_one(connection)
        .await
}

/// Duplicate, missing, or of another shape: statements of another session.
fn found(compared: Result<Option<Pooled>, sqlx::Error>) -> Result<Option<Pooled>, sqlx::Error> {
    match compared {
        Err(error) if is(&error, &["42P05", "26000", "08P01"]) => Ok(Some(Pooled::Statements)),
        compared => compared,
    }
}

/// Whether the server answered with one of these codes.
fn is(error: &sqlx::Error, codes: &[&str]) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    code.is_some_and(|code| codes.contains(&&*code))
}
