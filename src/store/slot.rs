//! Slots: each is the right to hold one connection to one server.

use sqlx::{PgConnection, PgPool};

use super::StoreError;
use crate::domain::{
    job::{Epoch, JobId},
    run::RunId,
};

/// A slot whose worker is gone. Its session may not be: ask the server before it is given away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// The server.
    pub server: String,
    /// The run, for the session's name.
    pub run: RunId,
    /// The job.
    pub job: JobId,
    /// The attempt that held it.
    pub epoch: Epoch,
    /// The database that the attempt was connected to.
    pub database: String,
    /// The job's tenant: its URL may be the only way to this server.
    pub tenant: String,
    /// Whether that tenant has a URL of its own.
    pub own_url: bool,
}

/// All suspect slots, one line an attempt.
///
/// # Errors
/// The control database fails.
pub async fn suspects(pool: &PgPool) -> Result<Vec<Suspect>, StoreError> {
    let rows = sqlx::query_as!(
        Suspect,
        r#"select distinct slot.server, job.run_id as "run!", job.id as "job!", slot.epoch as "epoch!",
                  job.database, job.tenant, job.own_url
           from herder.slot join herder.job on job.id = slot.job_id
           where slot.suspect_since is not null and slot.worker is not null"#
    );
    Ok(rows.fetch_all(pool).await?)
}

/// Frees the slots of a lost attempt, after its sessions were seen to be gone.
///
/// # Errors
/// The control database fails.
pub async fn free_suspect(pool: &PgPool, job: JobId, epoch: Epoch) -> Result<u64, StoreError> {
    let done = sqlx::query!(
        "update herder.slot
         set worker = null, job_id = null, epoch = null, taken_at = null, suspect_since = null
         where job_id = $1 and epoch = $2 and suspect_since is not null",
        job,
        epoch,
    )
    .execute(pool)
    .await?;
    Ok(done.rows_affected())
}

/// Holds the one connection per server that belongs to no job: inspection and reclaim take turns at it. The lock is
/// the session's, so it goes when the session does. False: somebody else has it.
///
/// # Errors
/// The control database fails.
pub async fn try_service(connection: &mut PgConnection, server: &str) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"select pg_try_advisory_lock(hashtextextended('herder/service/' || $1, 0)) as "got!""#,
        server
    )
    .fetch_one(connection)
    .await?)
}

/// Gives the service connection of a server back.
///
/// # Errors
/// The control database fails.
pub async fn release_service(connection: &mut PgConnection, server: &str) -> Result<(), StoreError> {
    sqlx::query!(
        r#"select pg_advisory_unlock(hashtextextended('herder/service/' || $1, 0)) as "got!""#,
        server
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}
