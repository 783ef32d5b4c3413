//! Forgetting old runs: the only place where rows of ours are deleted for their age. Nothing of it touches a tenant.

use std::time::Duration;

use sqlx::PgPool;

use super::{StoreError, run::lock_enqueue};
use crate::domain::run::RunId;

/// How long a row of apalis's for a worker must be without one of ours. A worker that starts writes apalis's first.
const WORKER_AGE: &str = "1 day";

/// A run that is over, and has been for so long that it may go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OldRun {
    /// Its id.
    pub id: RunId,
    /// How many jobs it has left: an interrupted deletion goes on with those.
    pub jobs: i64,
}

/// The runs that settled before so long, the oldest first. One whose attempt still holds a connection, or may, is not
/// among them: its job says what to ask the server for.
///
/// # Errors
/// The control database fails.
pub async fn old_runs(pool: &PgPool, age: Duration) -> Result<Vec<OldRun>, StoreError> {
    let rows = sqlx::query_as!(
        OldRun,
        r#"select run.id, (select count(*) from herder.job where run_id = run.id) as "jobs!"
           from herder.run
           where settled_at < now() - $1::float8 * interval '1 second'
             and not exists (select from herder.job where run_id = run.id and job.state = 'running')
             and not exists (select from herder.slot join herder.job on job.id = slot.job_id where job.run_id = run.id)
           order by settled_at, run.id"#,
        age.as_secs_f64(),
    );
    Ok(rows.fetch_all(pool).await?)
}

/// Deletes up to `limit` jobs of an old run, with their attempts and deliveries; zero: none is left. Locks the run's row
/// and looks at its age again, so that a run that somebody takes up by `retry` meanwhile is left alone.
///
/// # Errors
/// The control database fails. What was deleted is deleted; the next call goes on.
pub async fn delete_jobs(pool: &PgPool, run: RunId, age: Duration, limit: i64) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"with old as materialized (
             select id from herder.run where id = $1 and settled_at < now() - $2::float8 * interval '1 second' for update
           ), gone as (
             delete from herder.job
             where id = any(array(select job.id from herder.job join old on old.id = job.run_id
                                  where job.state <> 'running' limit $3))
             returning id
           ), delivered as (
             delete from apalis.jobs using gone where jobs.id = herder.delivery_id(gone.id)
           )
           select count(*) as "count!" from gone"#,
        run,
        age.as_secs_f64(),
        limit,
    )
    .fetch_one(pool)
    .await?)
}

/// Deletes an old run that has no jobs any more. False: it was taken up again.
///
/// # Errors
/// The control database fails.
pub async fn delete_run(pool: &PgPool, run: RunId, age: Duration) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "delete from herder.run
         where id = $1 and settled_at < now() - $2::float8 * interval '1 second'
           and not exists (select from herder.job where run_id = run.id)",
        run,
        age.as_secs_f64(),
    );
    Ok(done.execute(pool).await?.rows_affected() == 1)
}

/// Deletes plans of that age that no job uses, and no tenant is in the middle of. Returns how many.
///
/// # Errors
/// The control database fails.
pub async fn delete_plans(pool: &PgPool, age: Duration) -> Result<u64, StoreError> {
    let mut tx = pool.begin().await?;
    // An enqueuer that finds its plan here does not write it again, and its jobs are not to be seen yet.
    lock_enqueue(&mut tx).await?;
    let done = sqlx::query!(
        "delete from herder.plan
         where created_at < now() - $1::float8 * interval '1 second'
           and not exists (select from herder.job where job.plan_id = plan.id)
           and not exists (select from herder.half_applied where half_applied.plan_id = plan.id)",
        age.as_secs_f64(),
    )
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(done.rows_affected())
}

/// Deletes up to `limit` deliveries whose job is gone, e.g. because somebody deleted a run by hand; zero: none is left.
///
/// # Errors
/// The control database fails.
pub async fn delete_stray_deliveries(pool: &PgPool, limit: i64) -> Result<u64, StoreError> {
    // A job and its delivery come in one transaction: what is seen without its job has none.
    let done = sqlx::query!(
        "delete from apalis.jobs
         where id = any(array(
           select jobs.id from apalis.jobs
           where job_type = 'herder'
             and not exists (select from herder.job where herder.delivery_id(job.id) = jobs.id)
           limit $1))",
        limit,
    );
    Ok(done.execute(pool).await?.rows_affected())
}

/// Deletes apalis's rows of workers that are gone, where no delivery names them any more. Returns how many.
///
/// # Errors
/// The control database fails.
pub async fn delete_workers(pool: &PgPool) -> Result<u64, StoreError> {
    let done = sqlx::query!(
        "delete from apalis.workers
         where worker_type = 'herder' and last_seen < now() - $1::text::interval
           and not exists (select from herder.worker where worker.id = workers.id)
           and not exists (select from apalis.jobs where lock_by = workers.id)",
        WORKER_AGE,
    );
    Ok(done.execute(pool).await?.rows_affected())
}
