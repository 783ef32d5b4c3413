//! Slots: each is the right to hold one connection to one server.

use sqlx::{PgConnection, PgPool};

use super::StoreError;
use crate::domain::job::{AttemptId, AttemptLabel};

/// A slot whose worker is gone. Its session may not be: ask the server before it is given away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// The server.
    pub server: String,
    /// Its number there.
    pub number: i32,
    /// The worker that is gone.
    pub worker: String,
    /// What the sessions of the attempt that it was taken for call themselves.
    pub label: AttemptLabel,
    /// The database that it is connected to.
    pub database: String,
    /// The tenant's schema, for the key of its lock.
    pub schema: Option<String>,
    /// The job's tenant: its URL may be the only way to this server.
    pub tenant: String,
    /// Whether that tenant has a URL of its own.
    pub own_url: bool,
}

/// All suspect slots for tenants' sessions.
///
/// # Errors
/// The control database fails.
pub async fn suspects(pool: &PgPool) -> Result<Vec<Suspect>, StoreError> {
    let rows = sqlx::query!(
        r#"select slot.server, slot.number, slot.worker as "worker!", job.run_id as "run!", job.id as "job!",
                  slot.epoch as "epoch!", job.database, job.schema, job.tenant, job.own_url
           from herder.slot join herder.job on job.id = slot.job_id
           where slot.suspect_since is not null and slot.worker is not null"#
    )
    .fetch_all(pool)
    .await?;
    let suspects = rows.into_iter().map(|row| Suspect {
        server: row.server,
        number: row.number,
        worker: row.worker,
        label: AttemptLabel {
            run: row.run,
            attempt: AttemptId {
                job: row.job,
                epoch: row.epoch,
            },
        },
        database: row.database,
        schema: row.schema,
        tenant: row.tenant,
        own_url: row.own_url,
    });
    Ok(suspects.collect())
}

/// Marks the slots that a lost worker held for no job: those of its attempts are marked when their jobs are rescued.
/// Returns how many there were.
///
/// # Errors
/// The control database fails.
pub async fn suspect_lost(connection: &mut PgConnection) -> Result<u64, StoreError> {
    let done = sqlx::query!(
        "with expired as (
           select id from herder.worker
           where lease_until < now()
             and exists (select from herder.slot where slot.worker = worker.id and slot.suspect_since is null)
           -- As a rescue does it: one whose heartbeat has just come, or is on its way, is not lost.
           for update skip locked
         )
         update herder.slot set suspect_since = now()
         where purpose in ('kept', 'control') and suspect_since is null
           and (worker in (select id from expired)
                or not exists (select from herder.worker where worker.id = slot.worker))"
    );
    Ok(done.execute(connection).await?.rows_affected())
}

/// Frees suspect slots, after their sessions were seen to be gone. One that is another attempt's by now stays.
///
/// # Errors
/// The control database fails.
pub async fn free_suspects(pool: &PgPool, suspects: &[Suspect]) -> Result<u64, StoreError> {
    let done = sqlx::query!(
        "update herder.slot
         set worker = null, purpose = null, job_id = null, epoch = null, taken_at = null, suspect_since = null
         from unnest($1::text[], $2::integer[], $3::bigint[], $4::integer[]) as seen (server, number, job, epoch)
         where slot.server = seen.server and slot.number = seen.number and slot.job_id = seen.job
           and slot.epoch = seen.epoch and slot.suspect_since is not null",
        &suspects.iter().map(|s| s.server.clone()).collect::<Vec<_>>(),
        &suspects.iter().map(|s| s.number).collect::<Vec<_>>(),
        &suspects.iter().map(|s| s.label.attempt.job).collect::<Vec<_>>(),
        &suspects.iter().map(|s| s.label.attempt.epoch).collect::<Vec<_>>(),
    );
    Ok(done.execute(pool).await?.rows_affected())
}

/// Gives back slots that a worker kept after these attempts, and whose connections it has closed. Safe to repeat: a slot
/// that was claimed meanwhile names another attempt, and stays.
///
/// # Errors
/// The control database fails.
pub async fn release_kept(pool: &PgPool, worker: &str, attempts: &[AttemptId]) -> Result<u64, StoreError> {
    let done = sqlx::query!(
        "update herder.slot
         set worker = null, purpose = null, job_id = null, epoch = null, taken_at = null, suspect_since = null
         from unnest($2::bigint[], $3::integer[]) as kept (job, epoch)
         where slot.worker = $1 and slot.purpose = 'kept' and slot.job_id = kept.job and slot.epoch = kept.epoch",
        worker,
        &attempts.iter().map(|a| a.job).collect::<Vec<_>>(),
        &attempts.iter().map(|a| a.epoch).collect::<Vec<_>>(),
    );
    Ok(done.execute(pool).await?.rows_affected())
}

/// Whether a worker's own connections to the control database have their slots, where they need any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// They have: now, or from before.
    Counted,
    /// The budget is too small to count them and leave an attempt what it needs. They come on top of it.
    OnTop,
    /// The others hold what there is: come back later.
    Full,
}

/// Takes slots for a worker's own connections to the control database, on the server that it shares with tenants, where
/// so many are left that an attempt can still take `need`. It locks the server's row, so that two workers at the door
/// see each other; but not against the jobs that a run being written has there.
///
/// # Errors
/// The control database fails.
pub async fn admit(
    tx: &mut PgConnection,
    worker: &str,
    server: &str,
    connections: i64,
    need: i64,
) -> Result<Admission, StoreError> {
    let job_slots = sqlx::query_scalar!(
        r#"select job_slots as "job_slots!" from herder.server where name = $1 for no key update"#,
        server
    )
    .fetch_optional(&mut *tx)
    .await?;
    let Some(job_slots) = job_slots.map(i64::from) else {
        return Ok(Admission::OnTop);
    };
    let held = sqlx::query!(
        r#"select count(*) filter (where worker = $2) as "ours!", count(*) as "all!"
           from herder.slot where server = $1 and purpose = 'control'"#,
        server,
        worker,
    )
    .fetch_one(&mut *tx)
    .await?;
    if held.ours >= connections {
        return Ok(Admission::Counted);
    }
    if job_slots < connections + need {
        return Ok(Admission::OnTop);
    }
    let more = connections - held.ours;
    if job_slots < held.all + more + need {
        return Ok(Admission::Full);
    }
    let taken = sqlx::query!(
        "update herder.slot set worker = $2, purpose = 'control', taken_at = now()
         from (select server, number from herder.slot
               where server = $1 and worker is null and number <= $4
               order by number desc
               -- As a claim has it: while a lowered budget drains, each slot above it that is taken uses up a free one below.
               offset (select count(*) from herder.slot
                       where server = $1 and worker is not null and number > $4)
               limit $3
               -- SKIP LOCKED: what a claim is just taking is not free.
               for update skip locked) free
         where slot.server = free.server and slot.number = free.number",
        server,
        worker,
        more,
        i32::try_from(job_slots).unwrap_or(i32::MAX),
    )
    .execute(&mut *tx)
    .await?
    .rows_affected();
    // What was taken of too few is given back with the transaction.
    match i64::try_from(taken) == Ok(more) {
        true => Ok(Admission::Counted),
        false => Ok(Admission::Full),
    }
}

/// Frees the control slots of workers that were lost, once none of their sessions is left here. They are told to go
/// first. Returns how many were freed.
///
/// # Errors
/// The control database fails.
pub async fn reclaim_control(connection: &mut PgConnection) -> Result<u64, StoreError> {
    let any = sqlx::query_scalar!(
        r#"select exists (select from herder.slot where purpose = 'control' and suspect_since is not null) as "any!""#
    );
    if !any.fetch_one(&mut *connection).await? {
        return Ok(0);
    }
    sqlx::query!(
        r#"select pg_terminate_backend(pid) as ended from pg_stat_activity
           where application_name in (select 'herder-worker/' || right(worker, 32) from herder.slot
                                      where purpose = 'control' and suspect_since is not null)"#
    )
    .fetch_all(&mut *connection)
    .await?;
    let freed = sqlx::query!(
        "update herder.slot set worker = null, purpose = null, taken_at = null, suspect_since = null
         where purpose = 'control' and suspect_since is not null
           and not exists (select from pg_stat_activity where application_name = 'herder-worker/' || right(slot.worker, 32))"
    );
    Ok(freed.execute(connection).await?.rows_affected())
}
