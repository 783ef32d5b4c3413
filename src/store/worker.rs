//! Workers: who lives, and what the control database thinks that they hold.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{Connection, PgConnection, PgPool};

use super::StoreError;
use crate::domain::{
    job::AttemptId,
    run::{RunId, RunState},
};

/// What a worker says of itself with every heartbeat.
#[derive(Clone, Debug)]
pub struct WorkerRow {
    /// Its name plus a random value per process start.
    pub id: String,
    /// Its name.
    pub name: String,
    /// How many jobs it runs at a time.
    pub concurrency: i32,
    /// Whether it takes nothing new.
    pub draining: bool,
    /// Only jobs of this run, where it works for one.
    pub only_run: Option<RunId>,
    /// The kind of its runner.
    pub runner: String,
    /// The servers that its config names.
    pub servers: Vec<String>,
}

/// A job that the control database thinks a worker holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Holding {
    /// Which attempt at it.
    pub attempt: AttemptId,
    /// Whether its run was cancelled.
    pub cancelled: bool,
    /// How long ago it was claimed, in seconds.
    pub age: f64,
}

/// The answer to a heartbeat.
#[derive(Clone, Debug)]
pub struct Beat {
    /// Since when the server runs that gave it.
    pub server_since: DateTime<Utc>,
    /// What the worker holds, as far as that one knows.
    pub known: Vec<Holding>,
}

/// Makes a worker known, or renews its lease on the server's clock, and answers with what it holds: what is missing there was taken
/// from it, what is too much there was lost on the way to it.
///
/// # Errors
/// The control database fails.
pub async fn beat(
    connection: &mut PgConnection,
    worker: &WorkerRow,
    lease: Duration,
) -> Result<Beat, StoreError> {
    let server_since = sqlx::query_scalar!(
        r#"with known as (
           -- Its deliveries refer to it. Every time: a worker that stood still for long has been struck off.
           insert into apalis.workers (id, worker_type, storage_name, layers, last_seen, started_at)
           values ($1, 'herder', 'herder', '', now(), now())
           on conflict (id) do nothing
         )
         insert into herder.worker (id, name, version, concurrency, draining, lease_until, runner, servers, only_run)
         values ($1, $2, $3, $4, $5, now() + $6::float8 * interval '1 second', $7, $8, $9)
         on conflict (id) do update
         set beat_at = now(), lease_until = excluded.lease_until, draining = excluded.draining,
             concurrency = excluded.concurrency
         returning pg_postmaster_start_time() as "since!""#,
        worker.id,
        worker.name,
        env!("CARGO_PKG_VERSION"),
        worker.concurrency,
        worker.draining,
        lease.as_secs_f64(),
        worker.runner,
        &worker.servers,
        worker.only_run,
    )
    .fetch_one(&mut *connection)
    .await?;
    let rows = sqlx::query!(
        r#"select job.id, job.epoch, run.state as "state: RunState",
                  extract(epoch from now() - job.claimed_at)::float8 as "age!"
           from herder.job join herder.run on run.id = job.run_id
           where job.worker = $1 and job.state = 'running'"#,
        worker.id,
    )
    .fetch_all(connection)
    .await?;
    let known = rows
        .into_iter()
        .map(|r| Holding {
            attempt: AttemptId {
                job: r.id,
                epoch: r.epoch,
            },
            cancelled: r.state == RunState::Cancelled,
            age: r.age,
        })
        .collect();
    Ok(Beat { server_since, known })
}

/// Forgets for how long the infrastructure has been in the way, where no other worker was there to find out.
///
/// # Errors
/// The control database fails.
pub async fn begin_anew(connection: &mut PgConnection, worker: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "update herder.job set blocked_since = null
         where run_id = any(array(select id from herder.run where state = 'running'))
           and state = 'ready' and blocked_since is not null
           and not exists (select from herder.worker where id <> $1 and lease_until >= now())",
        worker
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Whether any worker's lease runs.
///
/// # Errors
/// The control database fails.
pub async fn is_anybody_alive(connection: &mut PgConnection) -> Result<bool, StoreError> {
    let alive = sqlx::query_scalar!(
        r#"select exists (select from herder.worker where lease_until >= now()) as "alive!""#
    );
    Ok(alive.fetch_one(connection).await?)
}

/// A connection beside the pool: a heartbeat must not wait behind anything else.
///
/// # Errors
/// The control database cannot be reached.
pub async fn own_connection(pool: &PgPool) -> Result<PgConnection, StoreError> {
    Ok(PgConnection::connect_with(&pool.connect_options()).await?)
}

/// Sends back a job of which its worker can say nothing: the claim's answer was lost, or the attempt's end could not be written. What
/// it has done, if anything, its tenant's ledger says.
///
/// # Errors
/// The control database fails.
pub async fn give_back(
    connection: &mut PgConnection,
    worker: &str,
    attempt: AttemptId,
) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        r#"with returned as (
             update herder.job set state = 'ready', worker = null, step = null, starts = starts - 1, orphaned = true
             where id = $1 and epoch = $2 and worker = $3 and state = 'running' returning id, epoch
           ), ended as (
             update herder.attempt set ended_at = now(), result = 'returned'
             from returned where attempt.job_id = returned.id and attempt.epoch = returned.epoch
           ), freed as (
             update herder.slot set worker = null, purpose = null, job_id = null, epoch = null, taken_at = null, suspect_since = null
             from returned where slot.job_id = returned.id and slot.epoch = returned.epoch
           ), delivered as (
             update apalis.jobs set status = 'Pending', lock_by = null, lock_at = null
             from returned where jobs.id = herder.delivery_id(returned.id)
           )
           select count(*) as "count!" from returned"#,
        attempt.job,
        attempt.epoch,
        worker,
    )
    .fetch_one(connection)
    .await?;
    Ok(done.count == 1)
}

/// Strikes off a worker that is done, with all that it left in apalis's table and, at the very last, the slots of its own
/// connections: this one must be the only one that is left, and be closed right after.
///
/// # Errors
/// The control database fails.
pub async fn remove(connection: &mut PgConnection, worker: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "delete from apalis.workers where id = $1 and not exists (select from apalis.jobs where lock_by = $1)",
        worker
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "with gone as (delete from herder.worker where id = $1 returning id)
         update herder.slot set worker = null, purpose = null, taken_at = null, suspect_since = null
         from gone where slot.worker = gone.id and slot.purpose = 'control'",
        worker
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Strikes off workers that were lost, once nothing points to them any more. One that comes back is known again with its next
/// heartbeat. Returns how many.
///
/// # Errors
/// The control database fails.
pub async fn remove_lost(pool: &PgPool) -> Result<u64, StoreError> {
    let gone = sqlx::query!(
        "with gone as (
           delete from herder.worker
           where lease_until < now() - interval '1 minute'
             and not exists (select from herder.job where job.worker = worker.id and job.state = 'running')
             and not exists (select from herder.slot where slot.worker = worker.id)
           returning id
         )
         delete from apalis.workers using gone
         where workers.id = gone.id and not exists (select from apalis.jobs where lock_by = gone.id)"
    );
    Ok(gone.execute(pool).await?.rows_affected())
}
