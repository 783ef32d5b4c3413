//! Workers, and what nobody works on.

use sqlx::PgPool;

use crate::{domain::run::RunId, store::StoreError};

/// Workers that live, i.e. have a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Workers {
    /// Those that take jobs.
    pub working: i64,
    /// Those that take nothing new.
    pub draining: i64,
}

impl Workers {
    /// How many there are, whatever they do.
    pub fn alive(self) -> i64 {
        self.working + self.draining
    }
}

/// How many workers live, by whether they take jobs.
///
/// # Errors
/// The control database fails.
pub async fn workers(pool: &PgPool) -> Result<Workers, StoreError> {
    Ok(sqlx::query_as!(
        Workers,
        r#"select count(*) filter (where not draining) as "working!", count(*) filter (where draining) as "draining!"
           from herder.worker where lease_until >= now()"#
    )
    .fetch_one(pool)
    .await?)
}

/// Why nobody takes what is due of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unserved {
    /// No worker lives.
    NoWorker,
    /// None of those that live has the run's kind of runner.
    Runner(String),
    /// None of those that have it has these servers in its config.
    Servers(Vec<String>),
}

/// Whether there is a worker for all that is due of a run.
///
/// # Errors
/// The control database fails.
pub async fn unserved(pool: &PgPool, run: RunId) -> Result<Option<Unserved>, StoreError> {
    let row = sqlx::query!(
        r#"with alive as (
             select servers, coalesce(worker.runner = run.runner, true) as fits
             from herder.worker join herder.run on run.id = $1
             where lease_until >= now() and coalesce(only_run = run.id, true)
           )
           select run.runner, exists (select from alive) as "alive!",
                  exists (select from alive where fits) as "fits!",
                  array(select distinct job.server from herder.job
                        where run_id = run.id and state = 'ready' and ready_at <= now() and not own_url
                          and not exists (select from alive where fits and coalesce(job.server = any(servers), true))
                        order by job.server) as "servers!"
           from herder.run where id = $1"#,
        run,
    );
    let row = row.fetch_one(pool).await?;
    Ok(match (row.alive, row.fits) {
        (false, _) => Some(Unserved::NoWorker),
        (true, false) => Some(Unserved::Runner(row.runner)),
        (true, true) if row.servers.is_empty() => None,
        (true, true) => Some(Unserved::Servers(row.servers)),
    })
}
