//! Moves a run on: its next wave, a halt, its end.

use sqlx::{Connection, PgConnection, Postgres, Transaction};

use crate::{
    domain::run::{Move, RunId, RunState, Standing},
    store::{StoreError, job::push_deliveries, notice},
};

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
