//! Sending the failed tenants of a run back.

use sqlx::{PgConnection, PgPool};

use super::{
    StoreError,
    commit::commit,
    job::push_deliveries,
    run::{lock_enqueue, overlapping},
};
use crate::domain::{
    job::JobId,
    run::{RunId, RunState},
    tenant::{PUBLIC, Place},
};

/// How many tenants of a run are tried again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SentBack {
    /// All of them.
    pub tenants: u64,
    /// Those among them that were half applied, which counts as mended by hand.
    pub mended: u64,
}

/// What [`retry`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retried {
    /// Jobs are ready again.
    Jobs(SentBack),
    /// Nothing: with mended migrations the tool itself is needed, and this server's budget has no room for it.
    Narrow {
        /// The server.
        server: String,
        /// How many connections attempts may have there.
        budget: i32,
        /// How many one needs.
        needed: i16,
    },
    /// Nothing: another open run has work in the places of some of them.
    Overlap {
        /// The other run.
        run: RunId,
        /// How many places they share.
        places: i64,
    },
}

/// Sends the failed tenants of a run back, and with them the run. `checksum` freezes the migrations as they are now:
/// what was wrong may have been mended there.
///
/// # Errors
/// The control database fails.
pub async fn retry(pool: &PgPool, run: RunId, checksum: &str) -> Result<Retried, StoreError> {
    let mut tx = pool.begin().await?;
    // A later run may be at work on the same tenants, or about to be.
    lock_enqueue(&mut tx).await?;
    // Cancelled is final: its other tenants will not come along.
    if locked(&mut tx, run).await? == RunState::Cancelled {
        return Ok(Retried::Jobs(SentBack::default()));
    }
    let failed = failed(&mut tx, run).await?;
    // It cannot report this run: a place has one job in a run, and these jobs have failed.
    if let Some((run, places)) = overlapping(&mut tx, &failed.iter().collect::<Vec<_>>()).await? {
        return Ok(Retried::Overlap { run, places });
    }
    if !failed.is_empty()
        && let Some(narrow) = too_narrow(&mut tx, run, checksum).await?
    {
        return Ok(narrow);
    }
    let mended = forget_mended(&mut tx, run).await?;
    let jobs = send_back(&mut tx, run).await?;
    if !jobs.is_empty() {
        take_up(&mut tx, run, checksum).await?;
        push_deliveries(&mut tx, run, Some(&jobs)).await?;
    }
    commit(tx, pool).await?;
    Ok(Retried::Jobs(SentBack {
        tenants: jobs.len() as u64,
        mended,
    }))
}

/// Locks the run's row. Its state.
async fn locked(tx: &mut PgConnection, run: RunId) -> Result<RunState, StoreError> {
    let state = sqlx::query_scalar!(
        r#"select state as "state: RunState" from herder.run where id = $1 for update"#,
        run,
    );
    Ok(state.fetch_one(tx).await?)
}

/// The places of its failed tenants.
async fn failed(tx: &mut PgConnection, run: RunId) -> Result<Vec<Place>, StoreError> {
    let failed = sqlx::query_as!(
        Place,
        "select server, database, schema from herder.job where run_id = $1 and state = 'failed'",
        run,
    );
    Ok(failed.fetch_all(tx).await?)
}

/// A server whose budget has no room for the tool itself, where that is needed.
async fn too_narrow(
    tx: &mut PgConnection,
    run: RunId,
    checksum: &str,
) -> Result<Option<Retried>, StoreError> {
    let narrow = sqlx::query!(
        r#"select server.name, server.job_slots as "job_slots!", run.connections
           from herder.run join herder.job on job.run_id = run.id join herder.server on server.name = job.server
           where run.id = $1 and run.checksum <> $2 and job.state in ('waiting', 'ready', 'running', 'failed')
             and server.job_slots < run.connections
           limit 1"#,
        run,
        checksum,
    );
    let narrow = narrow.fetch_optional(tx).await?;
    Ok(narrow.map(|row| Retried::Narrow {
        server: row.name,
        budget: row.job_slots,
        needed: row.connections,
    }))
}

/// Whoever sends back what it was told to be half applied has mended it: the ledger says how far it is from here on.
async fn forget_mended(tx: &mut PgConnection, run: RunId) -> Result<u64, StoreError> {
    let mended = sqlx::query!(
        "delete from herder.half_applied as half using herder.job
         where job.run_id = $1 and job.state = 'failed' and job.error ->> 'reason' = 'half_applied'
           and half.noted_at <= job.settled_at
           and half.server = job.server and half.database = job.database and half.schema = coalesce(job.schema, $2)",
        run,
        PUBLIC,
    );
    Ok(mended.execute(tx).await?.rows_affected())
}

/// Its failed jobs are ready again. Which ones.
async fn send_back(tx: &mut PgConnection, run: RunId) -> Result<Vec<JobId>, StoreError> {
    let jobs = sqlx::query_scalar!(
        "update herder.job
         set state = 'ready', ready_at = now(), settled_at = null, starts = 0, failures = 0, blocked_since = null,
             -- Other runs may have left something there since it got its plan.
             looks = true
         where run_id = $1 and state = 'failed' returning id",
        run,
    );
    Ok(jobs.fetch_all(tx).await?)
}

/// The run goes on, with the migrations as they are now. A plan is made of them as they were, and nobody who is still to come must
/// get those: the mended ones take each tenant on from where it stands.
async fn take_up(tx: &mut PgConnection, run: RunId, checksum: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "update herder.job set plan_id = null, connections = them.connections
             from (select job.id, run.connections
                   from herder.run join herder.job on job.run_id = run.id
                   where run.id = $1 and run.checksum <> $2 and job.state in ('waiting', 'ready', 'running')
                   -- As settlements lock them, so that none waits for another.
                   order by job.id for update of job) them
             where job.id = them.id",
        run,
        checksum,
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "update herder.run set state = 'running', reason = null, settled_at = null, forgiven = 0, checksum = $2
             where id = $1",
        run,
        checksum,
    )
    .execute(tx)
    .await?;
    Ok(())
}
