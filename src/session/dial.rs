//! How a session of Herder's own is opened on a tenants' server: what it says of itself, how long that may take, and what to make
//! of a refusal.

use std::time::Duration;

use sqlx::postgres::PgConnectOptions;

use super::{
    Limits,
    limits::own_settings,
    pooler::{self, PROBE},
};
use crate::{database_url::DatabaseUrl, handshake, tenant_error::TenantError};

/// How long opening a connection may take. A server that does not answer for so long is down, as far as this attempt
/// is concerned.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What a session is opened with: its label, and the limits by which it outlives neither its statement nor its owner by much.
///
/// # Errors
/// The URL cannot be used.
pub(crate) fn options(
    url: &DatabaseUrl,
    application_name: &str,
    limits: Limits,
) -> Result<PgConnectOptions, TenantError> {
    let options = url
        .options()
        .map_err(|e| TenantError::Connection(e.to_string()))?;
    Ok(options
        .application_name(application_name)
        .options(own_settings(limits))
        .options([PROBE]))
}

/// Waits for a session to be opened.
///
/// # Errors
/// The server cannot be reached, or refuses.
pub(crate) async fn opened<T>(
    url: &DatabaseUrl,
    opening: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, TenantError> {
    match tokio::time::timeout(CONNECT_TIMEOUT, opening).await {
        Ok(opened) => opened.map_err(|error| refused(error, url)),
        Err(_) => Err(TenantError::Connection(format!(
            "{} did not answer in {CONNECT_TIMEOUT:?}",
            url.address()
        ))),
    }
}

/// sqlx's words for a failed connect name no secret, but also not the place.
fn refused(error: sqlx::Error, url: &DatabaseUrl) -> TenantError {
    if let Some((why, hint)) = handshake::untrusted(&error) {
        return TenantError::Untrusted {
            message: format!(
                "cannot open a trusted connection to the server at {}: {why}",
                url.address()
            ),
            hint: hint.to_owned(),
        };
    }
    if let Some(pooled) = pooler::refusal(&error) {
        return TenantError::Pooled(pooled.to_string());
    }
    match error {
        // Closed for now (ALTER DATABASE … ALLOW_CONNECTIONS false), which is no failure of its tenants'.
        sqlx::Error::Database(closed) if closed.code().as_deref() == Some("55000") => {
            TenantError::Connection(format!(
                "cannot connect to {}: {}",
                url.address(),
                closed.message()
            ))
        }
        sqlx::Error::Database(_) => error.into(),
        other => TenantError::Connection(format!("cannot connect to {}: {other}", url.address())),
    }
}
