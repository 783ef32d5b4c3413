//! Proofs of plans, by the content of all that they hang on: what was proven once need not be proven again.

use sqlx::PgPool;

use super::StoreError;

/// Whether a proof is known. It is asked for again: then it is kept for longer.
///
/// # Errors
/// The control database fails.
pub async fn is_known(pool: &PgPool, key: &str) -> Result<bool, StoreError> {
    let done = sqlx::query("update herder.proof set used_at = now() where key = $1")
        .bind(key)
        .execute(pool)
        .await?;
    Ok(done.rows_affected() > 0)
}

/// Keeps a proof, and forgets those that nobody has asked for in three months. Two at once may find the same.
///
/// # Errors
/// The control database fails.
pub async fn keep(pool: &PgPool, key: &str) -> Result<(), StoreError> {
    sqlx::query(
        "with old as (delete from herder.proof where used_at < now() - interval '3 months')
         insert into herder.proof (key) values ($1) on conflict (key) do nothing",
    )
    .bind(key)
    .execute(pool)
    .await?;
    Ok(())
}
