//! Jobs: written at enqueue, [claimed](claim()), [settled](settle()), rescued.

mod claim;
mod settle;

use std::{collections::HashSet, time::Duration};

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool, types::Json};

pub use self::{
    claim::{ClaimFilter, ClaimLimits, claim},
    settle::{Ended, Settled, settle},
};
use super::StoreError;
use crate::domain::{
    failure::JobError,
    job::{AttemptId, JobId, Step},
    revision::Position,
    run::RunId,
    tenant::{Place, Tenant},
};

/// A line of a run's manifest.
#[derive(Clone, Debug)]
pub struct NewJob {
    /// Whose.
    pub tenant: Tenant,
    /// Its wave, from 0 on.
    pub wave: i32,
    /// Where it stands.
    pub from: Position,
    /// Where it goes. Known by the ledger, or because the target is the same for every tenant.
    pub to: Position,
    /// Whether nothing is left to do: it is settled at once, without a delivery.
    pub current: bool,
    /// The plan that takes it there. None: the tool itself does.
    pub plan: Option<String>,
    /// How many slots an attempt takes.
    pub connections: i16,
    /// Whether more may be half applied in its tenant than was known when it got its plan.
    pub looks: bool,
}

/// How many jobs go into one statement: enough to make the round trip cheap, few enough to keep the message small.
const CHUNK: usize = 10_000;

/// Writes the manifest of a run. Jobs up to `open_wave` are ready, the others wait.
///
/// # Errors
/// The control database fails; a tenant stands there twice.
pub async fn insert_all(
    tx: &mut PgConnection,
    run: RunId,
    open_wave: i32,
    jobs: &[NewJob],
) -> Result<(), StoreError> {
    for chunk in jobs.chunks(CHUNK) {
        let text = |f: &dyn Fn(&NewJob) -> String| chunk.iter().map(f).collect::<Vec<String>>();
        let optional =
            |f: &dyn Fn(&NewJob) -> Option<String>| chunk.iter().map(f).collect::<Vec<Option<String>>>();
        let flag = |f: &dyn Fn(&NewJob) -> bool| chunk.iter().map(f).collect::<Vec<bool>>();
        sqlx::query_file!(
            "src/store/sql/insert_jobs.sql",
            run,
            open_wave,
            &text(&|j| j.tenant.id.clone()),
            &text(&|j| j.tenant.members.join("\n")),
            &text(&|j| j.tenant.isolation.as_str().into()),
            &text(&|j| j.tenant.place.server.clone()),
            &text(&|j| j.tenant.place.database.clone()),
            &optional(&|j| j.tenant.place.schema.clone()) as &[Option<String>],
            &flag(&|j| j.tenant.own_url),
            &chunk.iter().map(|j| j.wave).collect::<Vec<i32>>(),
            &flag(&|j| j.current),
            &optional(&|j| j.from.to_revision()) as &[Option<String>],
            &flag(&|j| j.from.is_known()),
            &optional(&|j| j.to.to_revision()) as &[Option<String>],
            &flag(&|j| j.to.is_known()),
            &optional(&|j| j.plan.clone()) as &[Option<String>],
            &chunk.iter().map(|j| j.connections).collect::<Vec<i16>>(),
            &flag(&|j| j.looks),
        )
        .execute(&mut *tx)
        .await?;
    }
    Ok(())
}

/// Pushes deliveries for a run's ready jobs, or for some of them. Pushing again changes nothing.
///
/// # Errors
/// The control database fails.
pub async fn push_deliveries(
    tx: &mut PgConnection,
    run: RunId,
    jobs: Option<&[JobId]>,
) -> Result<u64, StoreError> {
    Ok(sqlx::query_file!("src/store/sql/push_deliveries.sql", run, jobs)
        .execute(tx)
        .await?
        .rows_affected())
}

/// Freezes where a job goes, and where its tenant stood: from then on, a relative target means the same to every attempt.
/// False: the job went on without this attempt.
///
/// # Errors
/// The control database fails.
pub async fn freeze(
    pool: &PgPool,
    attempt: AttemptId,
    worker: &str,
    from: Option<&str>,
    to: Option<&str>,
) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "update herder.job set from_revision = $4, from_known = true, to_revision = $5, resolved = true
         where id = $1 and epoch = $2 and worker = $3 and state = 'running'",
        attempt.job,
        attempt.epoch,
        worker,
        from,
        to,
    );
    Ok(done.execute(pool).await?.rows_affected() == 1)
}

/// What the job's plan failed with, where it was given up for the tool itself.
///
/// # Errors
/// The control database fails.
pub async fn plan_error(pool: &PgPool, job: JobId) -> Result<Option<JobError>, StoreError> {
    let error = sqlx::query_scalar!(
        r#"select error as "error: Json<JobError>" from herder.attempt
           where job_id = $1 and result = 'replanned' order by epoch desc limit 1"#,
        job
    );
    let error = error.fetch_optional(pool).await?.flatten();
    Ok(error.map(|Json(error)| error))
}

/// Publishes the steps that attempts have entered, and says which. One whose job went on without it is passed over, and so is one
/// that is just being settled: waiting for each other's jobs, this and a settlement would stand still until the server ended one.
///
/// # Errors
/// The control database fails.
pub async fn publish(
    connection: &mut PgConnection,
    steps: &[(AttemptId, Step)],
) -> Result<HashSet<AttemptId>, StoreError> {
    let published = sqlx::query_as!(
        AttemptId,
        "with entered as (
           select job.id, entered.step
           from unnest($1::bigint[], $2::integer[], $3::text[]) as entered (job, epoch, step)
           join herder.job on job.id = entered.job and job.epoch = entered.epoch
           -- Whoever has a worker is running. Said that way, no index of the running ones is taken, which may hold many
           -- that no longer do.
           where job.worker is not null and job.id = any($1)
           for update of job skip locked
         )
         update herder.job set step = entered.step from entered
         where job.id = entered.id and job.id = any(array(select id from entered))
         returning job.id as job, job.epoch",
        &steps.iter().map(|s| s.0.job).collect::<Vec<_>>(),
        &steps.iter().map(|s| s.0.epoch).collect::<Vec<_>>(),
        &steps.iter().map(|s| s.1.as_str().to_owned()).collect::<Vec<_>>(),
    );
    let published = published.fetch_all(connection).await?;
    Ok(published.into_iter().collect())
}

/// The places of all attempts that have ended since then and may have changed their tenants. One that is to be tried again, too: if its
/// run was cancelled meanwhile, nobody sees it for a moment.
///
/// # Errors
/// The control database fails.
pub async fn ended_since(
    connection: &mut PgConnection,
    since: DateTime<Utc>,
) -> Result<HashSet<Place>, StoreError> {
    let rows = sqlx::query_as!(
        Place,
        "select job.server, job.database, job.schema
         from herder.attempt join herder.job on job.id = attempt.job_id
         where attempt.ended_at >= $1 and job.outcome is distinct from 'already_current'",
        since,
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().collect())
}

/// The places where an attempt is at work, or may be: that of a cancelled run goes on until its worker hears of it, and that
/// of a lost worker until its server says that its session is gone.
///
/// # Errors
/// The control database fails.
pub async fn at_work(connection: &mut PgConnection) -> Result<HashSet<Place>, StoreError> {
    let rows = sqlx::query_as!(
        Place,
        "select job.server, job.database, job.schema
         from herder.slot join herder.job on job.id = slot.job_id
         where slot.worker is not null and slot.purpose = 'attempt'
           -- A later attempt has ended what was left of this one.
           and slot.epoch = job.epoch",
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().collect())
}

/// A job whose worker was lost.
#[derive(Clone, Debug)]
pub struct Rescued {
    /// Its run.
    pub run: RunId,
    /// The attempt that was lost.
    pub attempt: AttemptId,
    /// Its tenant.
    pub tenant: String,
    /// The worker that was lost.
    pub worker: String,
    /// Whether it was parked instead of sent back.
    pub parked: bool,
}

/// Sends back the jobs of workers whose lease ran out. Any number of workers may do so at once.
///
/// # Errors
/// The control database fails.
pub async fn rescue(connection: &mut PgConnection, max_starts: i32) -> Result<Vec<Rescued>, StoreError> {
    let rows = sqlx::query_file!("src/store/sql/rescue_jobs.sql", max_starts)
        .fetch_all(connection)
        .await?;
    Ok(rows
        .into_iter()
        .map(|r| Rescued {
            run: r.run,
            attempt: AttemptId {
                job: r.job,
                epoch: r.epoch,
            },
            tenant: r.tenant,
            worker: r.worker,
            parked: r.state == "failed",
        })
        .collect())
}

/// Fails the jobs that wait on a server for slots which its silence has kept from becoming free for so long. Which runs they are of, and how
/// many there were of each.
///
/// # Errors
/// The control database fails.
pub async fn fail_out_of_reach(
    pool: &PgPool,
    server: &str,
    error: &JobError,
    after: Duration,
) -> Result<Vec<(RunId, i64)>, StoreError> {
    let rows = sqlx::query_file!(
        "src/store/sql/fail_out_of_reach.sql",
        server,
        Json(error) as Json<&JobError>,
        after.as_secs_f64(),
    );
    let rows = rows.fetch_all(pool).await?.into_iter();
    Ok(rows.map(|row| (row.run, row.jobs)).collect())
}
