//! Commits whose answer may be lost.

use std::time::Duration;

use sqlx::{PgPool, Postgres, Transaction};
use tokio::time::{Instant, sleep};

use super::StoreError;

/// How long to find out what became of a commit: a control database that restarts is back by then.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long to wait before asking again.
const PAUSE: Duration = Duration::from_millis(250);

/// Commits what a person has asked for. Where the answer is lost it finds out whether that was done: whoever is told of an
/// error must be able to rely on it that nothing was changed.
///
/// # Errors
/// Nothing was committed, but for [`StoreError::InDoubt`].
pub(crate) async fn commit(mut tx: Transaction<'_, Postgres>, pool: &PgPool) -> Result<(), StoreError> {
    let id = sqlx::query_scalar!(r#"select pg_current_xact_id()::text as "id!""#)
        .fetch_one(&mut *tx)
        .await?;
    let Err(error) = tx.commit().await else {
        return Ok(());
    };
    let until = Instant::now() + PATIENCE;
    loop {
        match status(pool, &id).await.ok().flatten().as_deref() {
            Some("committed") => return Ok(()),
            Some("aborted") => return Err(error.into()),
            // The control database is away, or has not noticed yet that we have gone.
            _ if Instant::now() >= until => return Err(StoreError::InDoubt(error)),
            _ => sleep(PAUSE).await,
        }
    }
}

/// What became of a transaction. None: so long ago that nobody knows.
async fn status(pool: &PgPool, id: &str) -> Result<Option<String>, StoreError> {
    let status = sqlx::query_scalar!("select pg_xact_status($1::text::xid8)", id);
    Ok(status.fetch_one(pool).await?)
}
