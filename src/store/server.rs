//! Servers and their budgets.

use std::collections::HashMap;

use sqlx::{PgConnection, PgExecutor, PgPool};

use super::{StoreError, commit::commit};

/// A server as the control database knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerRow {
    /// Its name in the config.
    pub name: String,
    /// host:port.
    pub address: String,
    /// Connections that all of Herder may hold to it.
    pub budget: i32,
}

impl ServerRow {
    /// How many of them attempts may hold: as the table's `job_slots`.
    pub fn job_slots(&self) -> i32 {
        job_slots_of(self.budget)
    }
}

/// A budget of three or more has one for inspection.
fn job_slots_of(budget: i32) -> i32 {
    if budget >= 3 { budget - 1 } else { budget }
}

/// The state of a server's slots.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// The server's name.
    pub server: String,
    /// Connections that all of Herder may hold to it.
    pub budget: i64,
    /// Slots that are taken, for tenants or for a worker's own connections, suspect ones included. As in
    /// [`BudgetView::in_use`].
    pub in_use: i64,
    /// Slots whose worker is gone and whose session may not be.
    pub suspect: i64,
}

/// Writes a server and its slots. An override stays. Its row is locked until the transaction ends, which must be soon: who asks
/// for the service connection waits for it.
///
/// # Errors
/// The control database fails.
pub async fn ensure(tx: &mut PgConnection, server: &ServerRow) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into herder.server as known (name, address, budget, configured) values ($1, $2, $3, $3)
         on conflict (name) do update
         set address = excluded.address, configured = excluded.configured,
             budget = coalesce(known.overridden, excluded.configured), updated_at = now()
         where (known.address, known.configured) is distinct from (excluded.address, excluded.configured)",
        server.name,
        server.address,
        server.budget,
    )
    .execute(&mut *tx)
    .await?;
    fit_slots(tx, &server.name).await
}

/// Writes a server that is not known yet, so that its service connection can be held. One that is known stays as its runs have it.
///
/// # Errors
/// The control database fails.
pub async fn introduce(pool: &PgPool, server: &ServerRow) -> Result<(), StoreError> {
    let mut tx = pool.begin().await?;
    let introduced = sqlx::query!(
        "insert into herder.server (name, address, budget, configured) values ($1, $2, $3, $3) on conflict do nothing",
        server.name,
        server.address,
        server.budget,
    );
    if introduced.execute(&mut *tx).await?.rows_affected() > 0 {
        fit_slots(&mut tx, &server.name).await?;
    }
    commit(tx, pool).await
}

/// Makes the slots of a budget. A smaller one takes free slots away at once, and taken ones when they are freed: a claim
/// looks at no slot above it.
async fn fit_slots(tx: &mut PgConnection, server: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into herder.slot (server, number)
         select server.name, n from herder.server, generate_series(1, server.job_slots) n where server.name = $1
         on conflict do nothing",
        server,
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "delete from herder.slot using herder.server
         where slot.server = $1 and server.name = $1 and slot.number > server.job_slots and slot.worker is null",
        server,
    )
    .execute(&mut *tx)
    .await?;
    Ok(())
}

/// What a change of a budget did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// What it was.
    pub before: i32,
    /// What it is.
    pub after: i32,
}

/// Overrides the budget of a server from now on, or (None) takes the override back. Nothing is ended: slots above a
/// smaller budget are not taken again. None: no such server.
///
/// # Errors
/// The control database fails.
pub async fn override_budget(
    pool: &PgPool,
    server: &str,
    budget: Option<i32>,
) -> Result<Option<Changed>, StoreError> {
    let mut tx = pool.begin().await?;
    let changed = sqlx::query_as!(
        Changed,
        r#"with former as (select name, budget from herder.server where name = $1 for no key update)
           update herder.server
           set overridden = $2, budget = coalesce($2, server.configured), updated_at = now()
           from former where server.name = former.name
           returning former.budget as "before!", server.budget as after"#,
        server,
        budget,
    )
    .fetch_optional(&mut *tx)
    .await?;
    fit_slots(&mut tx, server).await?;
    commit(tx, pool).await?;
    Ok(changed)
}

/// What must fit into a budget, or nothing would ever be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Least {
    /// The connections that the widest of its open jobs takes.
    pub job: i32,
    /// The workers' own connections, where the control database is on that server.
    pub control: i32,
}

impl Least {
    /// Whether a budget is enough.
    pub fn fits(&self, budget: i32) -> bool {
        job_slots_of(budget) >= self.job + self.control
    }
}

/// What must fit into the budget of a server, as its jobs and workers are now.
///
/// # Errors
/// The control database fails.
pub async fn least(pool: &PgPool, server: &str) -> Result<Least, StoreError> {
    Ok(sqlx::query_as!(
        Least,
        r#"select (select coalesce(max(connections), 1)::int from herder.job
                   where server = $1 and state in ('waiting', 'ready', 'running')) as "job!",
                  (select count(*)::int from herder.slot where server = $1 and purpose = 'control') as "control!""#,
        server
    )
    .fetch_one(pool)
    .await?)
}

/// A server's budget and what is made of it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct BudgetView {
    /// The server's name.
    pub server: String,
    /// Host and port.
    pub address: String,
    /// Connections that all of Herder may hold to it.
    pub budget: i32,
    /// What the config and the server came to when a run was last made.
    pub configured: i32,
    /// What a person has set instead.
    pub overridden: Option<i32>,
    /// Slots that are taken, for tenants or for a worker's own connections, suspect ones included.
    pub in_use: i64,
    /// Slots whose worker is gone and whose session may not be.
    pub suspect: i64,
    /// Taken slots above the budget: they are given up as soon as they are free.
    pub above: i64,
    /// Due jobs that wait for a slot, or for a worker.
    pub waiting: i64,
}

/// The budgets of all servers, or of one.
///
/// # Errors
/// The control database fails.
pub async fn budgets(pool: &PgPool, server: Option<&str>) -> Result<Vec<BudgetView>, StoreError> {
    Ok(sqlx::query_as!(
        BudgetView,
        r#"select server.name as server, server.address, server.budget, server.configured, server.overridden,
                  count(slot.worker) as "in_use!", count(slot.suspect_since) as "suspect!",
                  count(slot.worker) filter (where slot.number > server.job_slots) as "above!",
                  (select count(*) from herder.run join herder.job on job.run_id = run.id
                   where run.state = 'running' and job.server = server.name and job.state = 'ready'
                     and job.ready_at <= now()) as "waiting!"
           from herder.server left join herder.slot on slot.server = server.name
           where $1::text is null or server.name = $1
           group by server.name order by server.name"#,
        server
    )
    .fetch_all(pool)
    .await?)
}

/// The budgets that a person has set, by server.
///
/// # Errors
/// The control database fails.
pub async fn overrides(on: impl PgExecutor<'_>) -> Result<HashMap<String, i32>, StoreError> {
    let rows = sqlx::query!(
        r#"select name, overridden as "budget!" from herder.server where overridden is not null"#
    );
    let rows = rows.fetch_all(on).await?;
    Ok(rows.into_iter().map(|row| (row.name, row.budget)).collect())
}

/// Whether a server has a row.
///
/// # Errors
/// The control database fails.
pub async fn is_known(connection: &mut PgConnection, server: &str) -> Result<bool, StoreError> {
    let known = sqlx::query_scalar!(
        r#"select exists (select from herder.server where name = $1) as "known!""#,
        server
    );
    Ok(known.fetch_one(connection).await?)
}

/// How many connections attempts may hold on a server. None: it has no row.
///
/// # Errors
/// The control database fails.
pub async fn job_slots(on: impl PgExecutor<'_>, server: &str) -> Result<Option<i32>, StoreError> {
    let slots = sqlx::query_scalar!(
        r#"select job_slots as "job_slots!" from herder.server where name = $1"#,
        server
    );
    Ok(slots.fetch_optional(on).await?)
}

/// All servers with the state of their slots.
///
/// # Errors
/// The control database fails.
pub async fn usage(pool: &PgPool) -> Result<Vec<Usage>, StoreError> {
    Ok(sqlx::query_as!(
        Usage,
        r#"select server.name as server, server.budget::bigint as "budget!",
                  count(slot.worker) as "in_use!",
                  count(slot.suspect_since) as "suspect!"
           from herder.server left join herder.slot on slot.server = server.name
           group by server.name order by server.name"#
    )
    .fetch_all(pool)
    .await?)
}

/// The servers other than these on which tenants of a running run are ready.
///
/// # Errors
/// The control database fails.
pub async fn waited_for(pool: &PgPool, besides: &[String]) -> Result<Vec<String>, StoreError> {
    let names = sqlx::query_scalar!(
        "select name from herder.server
         where name <> all($1)
           and exists (select from herder.run join herder.job on job.run_id = run.id
                       where run.state = 'running' and job.state = 'ready' and job.server = server.name
                         -- Whoever brings a URL is reached by any worker.
                         and not job.own_url)",
        besides,
    );
    Ok(names.fetch_all(pool).await?)
}
