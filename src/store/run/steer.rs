//! What people do to a run: pause, resume, cancel; and what a death in the middle of that leaves behind.

use sqlx::{Connection, PgConnection, PgPool};

use super::{Others, advance};
use crate::{
    domain::run::{RunId, RunState},
    store::{StoreError, commit::commit, job::push_deliveries, notice},
};

/// Stops a run for now: nothing new is taken, what runs finishes. False: it was not running.
///
/// # Errors
/// The control database fails.
pub async fn pause(pool: &PgPool, run: RunId) -> Result<bool, StoreError> {
    let mut tx = pool.begin().await?;
    let done = sqlx::query!(
        "update herder.run set state = 'paused' where id = $1 and state = 'running'",
        run
    );
    let paused = done.execute(&mut *tx).await?.rows_affected() == 1;
    commit(tx, pool).await?;
    Ok(paused)
}

/// Lets a paused or halted run go on, and pushes what a running one has lost. The failures of a halted run so far are forgiven: its
/// failure limit counts from here. False: it is over.
///
/// # Errors
/// The control database fails.
pub async fn resume(pool: &PgPool, run: RunId) -> Result<bool, StoreError> {
    let mut tx = pool.begin().await?;
    let done = sqlx::query!(
        "update herder.run
         set state = 'running', reason = null,
             forgiven = case when state = 'halted'
                        then (select count(*) from herder.job where run_id = run.id and job.state = 'failed') else forgiven end
         where id = $1 and state in ('running', 'paused', 'halted')",
        run,
    )
    .execute(&mut *tx)
    .await?
    .rows_affected();
    // Nobody has tried anything meanwhile.
    sqlx::query!(
        "update herder.job set blocked_since = null
         where run_id = $1 and state = 'ready' and blocked_since is not null",
        run
    )
    .execute(&mut *tx)
    .await?;
    push_deliveries(&mut tx, run, None).await?;
    commit(tx, pool).await?;
    // What fails here is done by a worker's keeper.
    if let Ok(mut connection) = pool.acquire().await {
        let _ = advance(&mut connection, run, Others::Awaited).await;
    }
    Ok(done == 1)
}

/// Ends a run for good: what waits is cancelled, what runs is told to stop by its worker's next heartbeat. False: it
/// was over.
///
/// # Errors
/// The control database fails.
pub async fn cancel(pool: &PgPool, run: RunId) -> Result<bool, StoreError> {
    let mut tx = pool.begin().await?;
    let done = sqlx::query!(
        "update herder.run set state = 'cancelled', settled_at = now(), reason = null
         where id = $1 and state in ('running', 'paused', 'halted')",
        run,
    )
    .execute(&mut *tx)
    .await?
    .rows_affected();
    if done == 0 {
        // It may be over, and taken up again this moment by a retry: its jobs are not ours to cancel.
        return Ok(false);
    }
    cancel_open_jobs(&mut tx, run).await?;
    notice::write(&mut tx, run, RunState::Cancelled, None).await?;
    commit(tx, pool).await?;
    Ok(true)
}

async fn cancel_open_jobs(tx: &mut PgConnection, run: RunId) -> Result<(), StoreError> {
    sqlx::query!(
        "with cancelled as (
           update herder.job set state = 'cancelled', settled_at = now()
           where run_id = $1 and state in ('waiting', 'ready') returning id
         )
         update apalis.jobs set status = 'Killed', done_at = now()
         from cancelled where jobs.id = herder.delivery_id(cancelled.id)",
        run,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Mends what a death at the wrong moment can leave behind: open jobs of a cancelled run, and ready jobs without a
/// delivery. Returns how many deliveries were pushed again.
///
/// # Errors
/// The control database fails.
pub async fn mend(pool: &PgPool) -> Result<u64, StoreError> {
    let left = sqlx::query_scalar!(
        "select distinct run.id from herder.run join herder.job on job.run_id = run.id
         where run.state = 'cancelled' and job.state in ('waiting', 'ready')"
    )
    .fetch_all(pool)
    .await?;
    let mut connection = pool.acquire().await?;
    for run in left {
        let mut tx = connection.begin().await?;
        cancel_open_jobs(&mut tx, run).await?;
        tx.commit().await?;
    }
    let lost = sqlx::query!(
        r#"select run.id as run_id, array_agg(next.id) as jobs
           from herder.run cross join herder.server
           -- Those that are next: a claim passes over one without a delivery, so that it is among them in the end. All of a
           -- hundred thousand would be half a second's work.
           cross join lateral (
             select id from herder.job
             where job.run_id = run.id and job.server = server.name and job.state = 'ready'
             order by ready_at, id limit (select greatest(10, 1000 / count(*)) from herder.server)
           ) next
           where run.state = 'running'
             -- A look into one index for each: a join would be planned for far fewer pending deliveries than there may be.
             and (select status from apalis.jobs where jobs.id = herder.delivery_id(next.id)) is distinct from 'Pending'
           group by run.id"#
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut pushed = 0;
    for row in lost {
        pushed += push_deliveries(&mut connection, row.run_id, row.jobs.as_deref()).await?;
    }
    Ok(pushed)
}
