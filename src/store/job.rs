//! Jobs: written at enqueue, claimed, settled, rescued.

use std::{collections::HashSet, time::Duration};

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{PgConnection, PgPool, types::Json};

use super::StoreError;
use crate::domain::{
    failure::JobError,
    job::{AttemptId, Claim, JobId, Step},
    outcome::{Progress, Settlement},
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

/// What a worker can take.
#[derive(Clone, Debug)]
pub struct ClaimFilter {
    /// The worker's id.
    pub worker: String,
    /// Only this run, where a process works for one.
    pub run: Option<RunId>,
    /// The kind of its runner.
    pub runner: String,
    /// The servers that its config names.
    pub servers: Vec<String>,
}

/// How many more jobs a worker may take of each server.
#[derive(Clone, Debug, Default)]
pub struct ClaimLimits {
    /// The servers that it has an opinion about.
    pub servers: Vec<String>,
    /// How many jobs of each of them.
    pub jobs: Vec<i64>,
    /// How many of any other.
    pub others: i64,
}

impl ClaimLimits {
    /// As many of each as there is room for.
    pub fn unlimited() -> Self {
        Self {
            others: i64::MAX,
            ..Self::default()
        }
    }
}

/// Claims up to `limit` due jobs, each with its slots, of a server that runs since then: none of another one. It locks
/// what it takes and waits for nobody. Running it again takes others.
///
/// # Errors
/// The control database fails. A claim whose answer was lost is found by [`super::worker::beat`].
pub async fn claim(
    connection: &mut PgConnection,
    filter: &ClaimFilter,
    limits: &ClaimLimits,
    limit: usize,
    server_since: DateTime<Utc>,
) -> Result<Vec<Claim>, StoreError> {
    let rows = sqlx::query_file!(
        "src/store/sql/claim_jobs.sql",
        filter.worker,
        i64::try_from(limit).unwrap_or(i64::MAX),
        filter.run,
        filter.runner,
        &filter.servers,
        &limits.servers,
        &limits.jobs,
        limits.others,
        server_since,
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let wrong = |e: String| StoreError::Database(sqlx::Error::Decode(e.into()));
            Ok(Claim {
                attempt: AttemptId {
                    job: row.job,
                    epoch: row.epoch,
                },
                run: row.run,
                tenant: row.tenant,
                place: Place {
                    server: row.server,
                    database: row.database,
                    schema: row.schema,
                },
                own_url: row.own_url,
                direction: row.direction.parse().map_err(wrong)?,
                target: row.target.parse().map_err(wrong)?,
                from: row.from_revision,
                to: Position::stored(row.to_revision, row.resolved),
                checksum: row.checksum,
                failures: row.failures,
                in_doubt: row.orphaned,
                blocked: row
                    .blocked
                    .map(|age| Duration::try_from_secs_f64(age).unwrap_or_default()),
                plan: row.plan_id,
                looks: row.looks,
                // One that makes no sense costs a run its trace, not its tenants.
                trace: row.traceparent.and_then(|text| text.parse().ok()),
                slots: row.slots,
            })
        })
        .collect()
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

/// An attempt that ended, as it is written down.
#[derive(Debug, Serialize)]
pub struct Ended {
    /// Which one.
    #[serde(flatten)]
    pub attempt: AttemptId,
    state: &'static str,
    outcome: Option<&'static str>,
    error: Option<JobError>,
    from_revision: Option<String>,
    to_revision: Option<String>,
    /// Seconds.
    delay: f64,
    counts: i32,
    blocked: bool,
    result: &'static str,
    live: bool,
    keep: bool,
    begun: bool,
    in_doubt: bool,
}

impl Ended {
    /// Adds how far the attempt had come.
    #[must_use]
    pub fn after(self, progress: Progress) -> Self {
        Self {
            begun: progress != Progress::Prepared,
            in_doubt: progress == Progress::InDoubt,
            ..self
        }
    }

    /// What is written of an attempt. `keep`: its worker keeps the connection, and with it the slot.
    pub fn new(attempt: AttemptId, settlement: &Settlement, keep: bool) -> Self {
        let mut ended = Self {
            attempt,
            state: "ready",
            outcome: None,
            error: None,
            from_revision: None,
            to_revision: None,
            delay: 0.0,
            counts: 0,
            blocked: false,
            result: settlement.as_str(),
            live: false,
            keep,
            begun: false,
            in_doubt: false,
        };
        match settlement {
            Settlement::Succeeded { outcome, from, to } => {
                ended.state = "succeeded";
                ended.outcome = Some(outcome.as_str());
                (ended.from_revision, ended.to_revision) = (from.clone(), to.clone());
            }
            Settlement::Failed(why) => {
                ended.state = "failed";
                (ended.error, ended.counts) = (Some(why.storable()), 1);
            }
            Settlement::Retry { error, delay, counts } => {
                (ended.error, ended.delay) = (Some(error.storable()), delay.as_secs_f64());
                (ended.counts, ended.blocked) = (i32::from(*counts), settlement.is_blocked());
            }
            Settlement::Live { error, .. } => {
                ended.live = true;
                ended.error = error.as_ref().map(JobError::storable);
            }
            Settlement::Returned => {}
            Settlement::Skipped(why) => {
                ended.state = "skipped";
                ended.error = Some(why.storable());
            }
            Settlement::Cancelled => ended.state = "cancelled",
        }
        ended
    }
}

/// An attempt whose end was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Settled {
    /// Which one.
    pub attempt: AttemptId,
    /// Its run.
    pub run: RunId,
    /// Whether that may have to be moved on: too many may have failed now, or nothing more is ready.
    pub moves: bool,
}

/// Writes how attempts of a worker ended: for each its job, attempt, slots and delivery, all in one statement. Their
/// sessions must be gone, or kept. What is missing in the answer went on without that attempt, and nothing was written
/// of it. Writing again after a lost answer answers nothing, too.
///
/// # Errors
/// The control database fails: try again until it does not.
pub async fn settle(
    connection: &mut PgConnection,
    worker: &str,
    ended: &[&Ended],
) -> Result<Vec<Settled>, StoreError> {
    let rows = sqlx::query_file!(
        "src/store/sql/settle_jobs.sql",
        worker,
        Json(ended) as Json<&[&Ended]>
    )
    .fetch_all(connection)
    .await?;
    let settled = rows.into_iter().map(|row| Settled {
        attempt: AttemptId {
            job: row.job,
            epoch: row.epoch,
        },
        run: row.run,
        moves: row.moves,
    });
    Ok(settled.collect())
}

/// The places of all jobs that have settled since then and may have changed their tenants.
///
/// # Errors
/// The control database fails.
pub async fn settled_since(
    connection: &mut PgConnection,
    since: DateTime<Utc>,
) -> Result<HashSet<Place>, StoreError> {
    let rows = sqlx::query_as!(
        Place,
        "select job.server, job.database, job.schema
         from herder.attempt join herder.job on job.id = attempt.job_id
         where attempt.ended_at >= $1 and job.settled_at >= $1 and job.outcome is distinct from 'already_current'",
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
