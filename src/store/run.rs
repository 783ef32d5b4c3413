//! Runs: made, found, [advanced](advance()) by what becomes of their jobs, and steered by people.

mod advance;
mod steer;

use sqlx::{PgConnection, PgPool};

pub use self::{
    advance::{Advanced, Others, advance},
    steer::{cancel, mend, pause, resume},
};
use super::StoreError;
use crate::domain::{
    revision::Direction,
    run::{RunId, RunState},
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
        r#"select direction as "direction: Direction", target,
                  (select to_revision from herder.job where run_id = run.id and state <> 'succeeded' order by id limit 1) as to
           from herder.run where id = $1"#,
        run,
    )
    .fetch_one(pool)
    .await?;
    Ok(Manifest {
        direction: row.direction,
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
