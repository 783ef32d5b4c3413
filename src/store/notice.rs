//! Notices: written where a run moves, taken by whoever has a webhook, gone once told or given up.

use std::{collections::BTreeMap, time::Duration};

use sqlx::{PgConnection, PgPool, types::Json};

use super::StoreError;
use crate::domain::{
    job::JobState,
    notice::{Notice, Occasion},
    run::{RunId, RunState},
};

/// How many times a notice is tried: a receiver that is being restarted is back by the third.
pub const TRIES: i32 = 3;

/// How many failed tenants a notice names.
const NAMED: i64 = 3;

/// Writes what a run has come to, and its tenants, in the transaction that brought it there. Nobody may have a webhook: so what nobody
/// took in a day goes with the next one. A paused run is no news.
///
/// # Errors
/// The control database fails.
pub async fn write(
    tx: &mut PgConnection,
    run: RunId,
    state: RunState,
    reason: Option<&str>,
) -> Result<(), StoreError> {
    let Some(occasion) = Occasion::of(state) else {
        return Ok(());
    };
    sqlx::query!(
        "with old as (delete from herder.notice where made_at < now() - interval '1 day')
         insert into herder.notice (run_id, occasion, state, reason, counts, failed)
         select $1, $2, $3, $4,
                coalesce((select jsonb_object_agg(of.state, of.n)
                          from (select state, count(*) as n from herder.job where run_id = $1 group by state) of), '{}'),
                array(select tenant from herder.job where run_id = $1 and state = 'failed' order by id limit $5)",
        run,
        occasion.as_str(),
        state.as_str(),
        reason,
        NAMED,
    )
    .execute(tx)
    .await?;
    Ok(())
}

/// Takes the next notice that is due, of any run or of one. It is the caller's for `lease`; a caller that dies leaves it
/// to others after that. The notices of one run are taken in their order, and none that is older than an hour: old news
/// would only mislead.
///
/// # Errors
/// The control database fails.
pub async fn take(
    pool: &PgPool,
    run: Option<RunId>,
    occasions: &[Occasion],
    lease: Duration,
) -> Result<Option<Notice>, StoreError> {
    let row = sqlx::query_file!(
        "src/store/sql/take_notice.sql",
        run,
        &words(occasions),
        lease.as_secs_f64(),
        TRIES,
    )
    .fetch_optional(pool)
    .await?;
    Ok(row.map(|r| Notice {
        id: r.id,
        run: r.run_id,
        occasion: r.occasion,
        state: r.state,
        reason: r.reason,
        counts: r.counts.0,
        failed: r.failed,
        made_at: r.made_at,
        tries: r.tries,
    }))
}

/// A notice was told, or is given up.
///
/// # Errors
/// The control database fails. It is told once more then.
pub async fn remove(pool: &PgPool, id: i64) -> Result<(), StoreError> {
    sqlx::query!("delete from herder.notice where id = $1", id)
        .execute(pool)
        .await?;
    Ok(())
}

/// A notice could not be told: it is due again after `delay`.
///
/// # Errors
/// The control database fails. Its lease runs out by itself.
pub async fn put_back(pool: &PgPool, id: i64, delay: Duration) -> Result<(), StoreError> {
    sqlx::query!(
        "update herder.notice set due_at = now() + make_interval(secs => $2) where id = $1",
        id,
        delay.as_secs_f64(),
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// Whether a run has notices that somebody is telling, or is yet to tell.
///
/// # Errors
/// The control database fails.
pub async fn any_left(pool: &PgPool, run: RunId, occasions: &[Occasion]) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"select exists (
             select from herder.notice
             where run_id = $1 and occasion = any($2) and made_at > now() - interval '1 hour' and (tries < $3 or due_at > now())
           ) as "left!""#,
        run,
        &words(occasions),
        TRIES,
    )
    .fetch_one(pool)
    .await?)
}

fn words(occasions: &[Occasion]) -> Vec<String> {
    occasions.iter().map(|o| o.as_str().to_owned()).collect()
}
