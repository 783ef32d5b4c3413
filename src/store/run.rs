//! Runs: made, advanced, paused, resumed, cancelled, retried.

use sqlx::{Connection, PgConnection, PgPool, Postgres, Transaction};

use super::{StoreError, commit::commit, job::push_deliveries, notice};
use crate::domain::{
    revision::Direction,
    run::{Move, RunId, RunState, Standing},
    tenant::{PUBLIC, Place},
    trace::TraceContext,
};

/// A run as it is made.
#[derive(Clone, Debug)]
pub struct NewRun {
    /// Its id.
    pub id: RunId,
    /// Which way.
    pub direction: Direction,
    /// The target as it was named.
    pub target: String,
    /// The kind of the runner.
    pub runner: String,
    /// The checksum of the migrations.
    pub checksum: String,
    /// How many connections one attempt without a plan holds.
    pub connections: i16,
    /// How many jobs.
    pub tenants: i32,
    /// How many waves.
    pub waves: i32,
    /// Whether wave 0 must succeed before wave 1 opens.
    pub canary: bool,
    /// How many tenants may fail.
    pub failure_limit: Option<i32>,
    /// The trace that its attempts join.
    pub trace: Option<TraceContext>,
}

/// Keeps enqueuers apart: two of them at the same moment must see each other's jobs. Gone at the transaction's end.
///
/// # Errors
/// The control database fails.
pub async fn lock_enqueue(tx: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!("select pg_advisory_xact_lock(hashtextextended('herder/enqueue', 0)) as locked")
        .fetch_one(tx)
        .await?;
    Ok(())
}

/// Writes a run. That there is one to tell of is written once its jobs are there.
///
/// # Errors
/// The control database fails.
pub async fn insert(tx: &mut PgConnection, run: &NewRun) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into herder.run
           (id, direction, target, runner, checksum, connections, tenants, waves, canary, failure_limit, traceparent)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        run.id,
        run.direction.as_str(),
        run.target,
        run.runner,
        run.checksum,
        run.connections,
        run.tenants,
        run.waves,
        run.canary,
        run.failure_limit,
        run.trace.map(|trace| trace.to_string()),
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// An open run that still has work in one of these places, with the number of such places. None: they are all free.
///
/// # Errors
/// The control database fails.
pub async fn overlapping(
    tx: &mut PgConnection,
    places: &[&Place],
) -> Result<Option<(RunId, i64)>, StoreError> {
    let mut wanted = (Vec::new(), Vec::new(), Vec::new());
    for (server, database, schema) in places.iter().map(|place| place.identity()) {
        wanted.0.push(server.to_owned());
        wanted.1.push(database.to_owned());
        wanted.2.push(schema.to_owned());
    }
    let row = sqlx::query!(
        r#"select run.id, count(*) as "places!"
           from unnest($1::text[], $2::text[], $3::text[]) as wanted (server, database, schema)
           cross join lateral (
             -- A look into one index for each. A join would go by server and database, which a fleet of schemas shares, and
             -- compare each of its tenants with each open job; and so would an OR, where the server knows the table as
             -- an empty one: a minute for 20,000.
             select run_id from herder.job
             where job.server = wanted.server and job.database = wanted.database and job.schema = wanted.schema
               and job.state in ('waiting', 'ready', 'running')
             union all
             select run_id from herder.job
             where job.server = wanted.server and job.database = wanted.database
               and job.schema is null and wanted.schema = $4
               and job.state in ('waiting', 'ready', 'running')
           ) open
           join herder.run on run.id = open.run_id and run.state in ('running', 'paused', 'halted')
           group by run.id order by count(*) desc limit 1"#,
        &wanted.0,
        &wanted.1,
        &wanted.2,
        PUBLIC,
    )
    .fetch_optional(tx)
    .await?;
    Ok(row.map(|r| (r.id, r.places)))
}

/// The run that a person means: an id, a prefix of one, or the latest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// This one.
    One(RunId),
    /// There is none.
    None,
    /// The prefix fits several.
    Several(Vec<RunId>),
}

/// Finds a run by prefix, or the latest one.
///
/// # Errors
/// The control database fails.
pub async fn find(pool: &PgPool, prefix: Option<&str>) -> Result<Found, StoreError> {
    let ids = match prefix {
        None => {
            sqlx::query_scalar!("select id from herder.run order by created_at desc, id limit 1")
                .fetch_all(pool)
                .await?
        }
        Some(prefix) => {
            // Ids are compared without their dashes, so that any copied piece fits.
            let digits: String = prefix
                .trim()
                .to_ascii_lowercase()
                .chars()
                .filter(|c| *c != '-')
                .collect();
            sqlx::query_scalar!(
                "select id from herder.run where starts_with(replace(id::text, '-', ''), $1) order by created_at desc limit 5",
                digits,
            )
            .fetch_all(pool)
            .await?
        }
    };
    Ok(match ids.as_slice() {
        [] => Found::None,
        [one] => Found::One(*one),
        _ => Found::Several(ids),
    })
}

/// What [`advance`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Advanced {
    /// Nothing was to do.
    No,
    /// This wave was opened, with so many jobs.
    Opened {
        /// The wave.
        wave: i32,
        /// Its jobs.
        jobs: u64,
    },
    /// More tenants failed than may.
    Halted(String),
    /// The last job settled.
    Settled(RunState),
}

/// What to do while somebody else moves the same run on. To open a wave of a hundred thousand takes seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// Wait: what was just settled may be what they have not seen.
    Awaited,
    /// Leave it to them: it will be looked at again.
    Skipped,
}

/// Moves a run on after a job settled: opens the next wave, halts it, or settles it. It locks the run's row, and is
/// safe to call at any time: whoever comes second finds nothing to do.
///
/// # Errors
/// The control database fails. The next call does what this one could not.
pub async fn advance(
    connection: &mut PgConnection,
    run: RunId,
    others: Others,
) -> Result<Advanced, StoreError> {
    // Most jobs are not the last of their wave: those ask once, and lock nothing.
    let due = sqlx::query_scalar!(
        r#"select (run.failure_limit is not null and
                   (select count(*) from herder.job where run_id = run.id and state = 'failed') - run.forgiven > run.failure_limit)
               or not exists (select from herder.job where run_id = run.id and wave <= run.wave and state in ('ready', 'running'))
               as "due!"
           from herder.run where id = $1 and state = 'running'"#,
        run,
    )
    .fetch_optional(&mut *connection)
    .await?;
    if due != Some(true) {
        return Ok(Advanced::No);
    }
    let mut tx = connection.begin().await?;
    if let Others::Skipped = others {
        let free = sqlx::query_scalar!(
            "select id from herder.run where id = $1 for update skip locked",
            run
        );
        if free.fetch_optional(&mut *tx).await?.is_none() {
            return Ok(Advanced::No);
        }
    }
    let advanced = advance_locked(&mut tx, run).await?;
    tx.commit().await?;
    Ok(advanced)
}

async fn advance_locked(tx: &mut Transaction<'_, Postgres>, run: RunId) -> Result<Advanced, StoreError> {
    // Another worker may be opening the very same wave: the lock makes one of us see what the other did.
    let Some(row) = sqlx::query!(
        "select wave, canary, failure_limit, forgiven from herder.run where id = $1 and state = 'running' for update",
        run,
    )
    .fetch_optional(&mut **tx)
    .await?
    else {
        return Ok(Advanced::No);
    };
    let counts = sqlx::query!(
        r#"select count(*) filter (where state = 'failed') as "failed!",
                  count(*) filter (where state = 'waiting') as "waiting!",
                  count(*) filter (where state in ('ready', 'running')) as "open!",
                  min(wave) filter (where state = 'waiting') as next
           from herder.job where run_id = $1"#,
        run,
    )
    .fetch_one(&mut **tx)
    .await?;
    let standing = Standing {
        wave: row.wave,
        next: counts.next,
        canary: row.canary,
        failure_limit: row.failure_limit,
        failed: counts.failed,
        forgiven: row.forgiven,
        open: counts.open,
        waiting: counts.waiting,
    };
    match standing.next_move() {
        Move::Stay => Ok(Advanced::No),
        Move::Halt(reason) => halt(tx, run, reason).await,
        Move::Open(wave) => open(tx, run, wave).await,
        Move::Settle(state) => settle(tx, run, state).await,
    }
}

async fn halt(
    tx: &mut Transaction<'_, Postgres>,
    run: RunId,
    reason: String,
) -> Result<Advanced, StoreError> {
    sqlx::query!(
        "update herder.run set state = 'halted', reason = $2 where id = $1",
        run,
        reason
    )
    .execute(&mut **tx)
    .await?;
    notice::write(tx, run, RunState::Halted, Some(&reason)).await?;
    Ok(Advanced::Halted(reason))
}

async fn open(tx: &mut Transaction<'_, Postgres>, run: RunId, wave: i32) -> Result<Advanced, StoreError> {
    sqlx::query!("update herder.run set wave = $2 where id = $1", run, wave)
        .execute(&mut **tx)
        .await?;
    sqlx::query!(
        "update herder.job set state = 'ready', ready_at = now() where run_id = $1 and wave = $2 and state = 'waiting'",
        run,
        wave,
    )
    .execute(&mut **tx)
    .await?;
    let jobs = push_deliveries(tx, run, None).await?;
    Ok(Advanced::Opened { wave, jobs })
}

async fn settle(
    tx: &mut Transaction<'_, Postgres>,
    run: RunId,
    state: RunState,
) -> Result<Advanced, StoreError> {
    sqlx::query!(
        "update herder.run set state = $2, settled_at = now() where id = $1",
        run,
        state.as_str()
    )
    .execute(&mut **tx)
    .await?;
    notice::write(tx, run, state, None).await?;
    Ok(Advanced::Settled(state))
}

/// The state of a run.
///
/// # Errors
/// The control database fails.
pub async fn state(pool: &PgPool, run: RunId) -> Result<RunState, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"select state as "state: RunState" from herder.run where id = $1"#,
        run
    )
    .fetch_one(pool)
    .await?)
}

/// What a run was made with.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// Which way.
    pub direction: Direction,
    /// The target as it was named.
    pub target: String,
    /// The absolute target of its jobs. None: the base, or another one for each.
    pub to: Option<String>,
}

/// Reads what a run was made with.
///
/// # Errors
/// The control database fails, or has no such run.
pub async fn manifest(pool: &PgPool, run: RunId) -> Result<Manifest, StoreError> {
    let row = sqlx::query!(
        "select direction, target,
                (select to_revision from herder.job where run_id = run.id and state <> 'succeeded' order by id limit 1) as to
         from herder.run where id = $1",
        run,
    )
    .fetch_one(pool)
    .await?;
    let direction = row
        .direction
        .parse()
        .map_err(|e: String| sqlx::Error::Decode(e.into()))?;
    Ok(Manifest {
        direction,
        target: row.target,
        to: row.to,
    })
}

/// All runs that workers may take jobs of.
///
/// # Errors
/// The control database fails.
pub async fn running(pool: &PgPool) -> Result<Vec<RunId>, StoreError> {
    Ok(
        sqlx::query_scalar!("select id from herder.run where state = 'running'")
            .fetch_all(pool)
            .await?,
    )
}

/// Whether there is any, or this one is.
///
/// # Errors
/// The control database fails.
pub async fn is_any_running(connection: &mut PgConnection, only: Option<RunId>) -> Result<bool, StoreError> {
    let any = sqlx::query_scalar!(
        r#"select exists (select from herder.run where state = 'running' and ($1::uuid is null or id = $1)) as "any!""#,
        only,
    );
    Ok(any.fetch_one(connection).await?)
}

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
