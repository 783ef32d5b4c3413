//! Takes jobs, each with its slots.

use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use crate::{
    domain::{
        job::{AttemptId, Claim},
        revision::{Direction, Position},
        run::RunId,
        tenant::Place,
    },
    store::StoreError,
};

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
    /// No limits: as many jobs of each server as there is room for.
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
/// The control database fails. A claim whose answer was lost is found by [`crate::store::worker::beat`].
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
                direction: row.direction,
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
