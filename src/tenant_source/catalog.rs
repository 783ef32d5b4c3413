//! Asking a database for tenants: one connection, one read-only transaction, one statement, and gone.

use std::time::Duration;

use sqlx::{Connection, Execute, Executor, PgConnection, Postgres, postgres::PgRow};

use super::TenantSourceError;
use crate::{database_url::DatabaseUrl, domain::failure::is_refusal, handshake};

/// How long opening the connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the statement may take. A list of 100,000 takes a second; a catalog that is locked should not hold up an
/// operator for longer than they look at the screen.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// What `pg_stat_activity` calls us.
const APPLICATION_NAME: &str = "herder/tenants";

/// Why a statement gave no rows.
pub(super) enum CatalogError {
    /// The server was not reached, or the connection broke.
    Connection(String),
    /// The server, the role or the database has all the connections that it may have, or it is not up yet.
    Full(String),
    /// The server refused the statement.
    Refused(String),
}

impl CatalogError {
    pub(super) fn into_source_error(self, source_name: &str) -> TenantSourceError {
        let is_full = matches!(self, Self::Full(_));
        let (Self::Connection(message) | Self::Full(message) | Self::Refused(message)) = self;
        TenantSourceError::Unreadable {
            source_name: source_name.to_owned(),
            message,
            is_full,
        }
    }
}

/// Runs one statement and returns its rows.
pub(super) async fn fetch<'q, E>(url: &DatabaseUrl, statement: E) -> Result<Vec<PgRow>, CatalogError>
where
    E: Execute<'q, Postgres> + 'q,
{
    let mut connection = connect(url).await?;
    // The server's own limit comes first, with its message. Ours is for a server that went silent.
    let limit = STATEMENT_TIMEOUT + CONNECT_TIMEOUT;
    let rows = tokio::time::timeout(limit, read(&mut connection, statement)).await;
    let rows = match rows {
        Ok(rows) => rows.map_err(|e| refused(&e)),
        Err(_) => {
            let message = format!("{} fell silent for {limit:?}", url.address());
            return Err(CatalogError::Connection(message));
        }
    };
    // A connection that is broken already is closed, too.
    let _ = connection.close().await;
    rows
}

async fn connect(url: &DatabaseUrl) -> Result<PgConnection, CatalogError> {
    let words_for = |why: String| format!("cannot connect to {}: {why}", url.address());
    let cannot = |why: String| CatalogError::Connection(words_for(why));
    let options = url.options().map_err(|e| cannot(e.to_string()))?;
    let options = options.application_name(APPLICATION_NAME);
    match tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options)).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) if is_full(&error) => Err(CatalogError::Full(words_for(words(&error)))),
        Ok(Err(error)) => Err(cannot(match advice(&error) {
            Some(hint) => format!("{}; {hint}", words(&error)),
            None => words(&error),
        })),
        Err(_) => Err(cannot(format!("no answer in {CONNECT_TIMEOUT:?}"))),
    }
}

async fn read<'q, E>(connection: &mut PgConnection, statement: E) -> Result<Vec<PgRow>, sqlx::Error>
where
    E: Execute<'q, Postgres> + 'q,
{
    // Set in the transaction, not at the connect: a pooler refuses start parameters that it does not know.
    let begin = format!(
        "begin read only; set local statement_timeout = {}; set local standard_conforming_strings = on",
        STATEMENT_TIMEOUT.as_millis()
    );
    connection
        .execute(sqlx::raw_sql(sqlx::AssertSqlSafe(begin)))
        .await?;
    connection.fetch_all(statement).await
}

fn is_full(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    code.is_some_and(|code| is_refusal(&code))
}

fn refused(error: &sqlx::Error) -> CatalogError {
    match error {
        sqlx::Error::Database(_) => CatalogError::Refused(words(error)),
        _ => CatalogError::Connection(words(error)),
    }
}

/// What to do about a server that does not let us in, or should not be let near us.
fn advice(error: &sqlx::Error) -> Option<&'static str> {
    match error {
        sqlx::Error::Database(e) => handshake::refused(&e.code().unwrap_or_default(), e.message()),
        other => handshake::untrusted(other).map(|(_, hint)| hint),
    }
}

/// The server's message and SQLSTATE; sqlx's own words where the server said nothing.
fn words(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(e) => match e.code() {
            Some(code) => format!("{} ({code})", e.message()),
            None => e.message().to_owned(),
        },
        other => other.to_string(),
    }
}
