//! Who holds a server's service connection: the one of its budget that belongs to no job. The row is the lease, also of the slots that
//! its holder has borrowed.

use std::time::Duration;

use sqlx::PgPool;

use super::StoreError;

/// The holder's name once the connection was given back in good order.
const ENDING: &str = "";

/// What became of asking for a service connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It is the asker's.
    Ours {
        /// Whether the one before never gave it back, or what it borrowed: its sessions may still be there.
        lost: bool,
        /// How many slots the asker has borrowed.
        borrowed: i64,
    },
    /// Somebody else holds it.
    Taken,
    /// The server is not known yet: no run or proof was ever made for it, so there is nobody to share with.
    Unknown,
}

/// Takes a server's service connection for a while, or holds it a while longer. It locks the server's row for a moment, but not
/// against the jobs that a run being written has there.
///
/// # Errors
/// The control database fails.
pub async fn hold(pool: &PgPool, server: &str, holder: &str, lease: Duration) -> Result<Hold, StoreError> {
    let held = sqlx::query!(
        r#"with before as (select service_holder from herder.server where name = $1 for no key update),
           held as (
             update herder.server
             set service_holder = $2, service_until = now() + $3::float8 * interval '1 second'
             where name = $1 and (service_until is null or service_until < now() or service_holder = $2)
             returning name
           ),
           borrowed as (
             select count(*) filter (where worker = $2) as ours, count(*) filter (where worker <> $2) as others
             from herder.slot where server = $1 and purpose = 'service'
           )
           select before.service_holder as before, exists (select from held) as "held!",
                  borrowed.ours as "ours!", borrowed.others as "others!"
           from before, borrowed"#,
        server,
        holder,
        lease.as_secs_f64(),
    )
    .fetch_optional(pool)
    .await?;
    Ok(match held {
        None => Hold::Unknown,
        Some(row) if row.held => Hold::Ours {
            lost: row.others > 0
                || row
                    .before
                    .is_some_and(|before| before != ENDING && before != holder),
            borrowed: row.ours,
        },
        Some(_) => Hold::Taken,
    })
}

/// Borrows free slots of the server, at most so many and half of those that there are: others need some, too. Returns how many.
///
/// # Errors
/// The control database fails. Some may be borrowed then, until [`release`].
pub async fn borrow(pool: &PgPool, server: &str, holder: &str, most: i64) -> Result<i64, StoreError> {
    let done = sqlx::query!(
        "with room as (
           select job_slots, count(*) filter (where worker is null and number <= job_slots) as free,
                  -- As a claim has it: while a lowered budget drains, each slot above it that is taken uses up a free one below.
                  count(*) filter (where worker is not null and number > job_slots) as above
           from herder.server join herder.slot on slot.server = name
           where name = $1 and service_holder = $2
           group by job_slots
         ),
         free as (
           select slot.server, slot.number from herder.slot join room on number <= job_slots
           where server = $1 and worker is null
           order by number desc
           offset (select above from room) limit (select greatest(0, least($3, (free - above) / 2)) from room)
           -- SKIP LOCKED: what a claim is just taking is not free.
           for update of slot skip locked
         )
         update herder.slot set worker = $2, purpose = 'service', taken_at = now()
         from free where slot.server = free.server and slot.number = free.number",
        server,
        holder,
        most,
    );
    let borrowed = done.execute(pool).await?.rows_affected();
    Ok(i64::try_from(borrowed).unwrap_or(i64::MAX))
}

/// Frees what holders before this one have borrowed and not given back, once none of their sessions is left.
///
/// # Errors
/// The control database fails.
pub async fn free_lost(pool: &PgPool, server: &str, holder: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "update herder.slot set worker = null, purpose = null, taken_at = null
         where server = $1 and purpose = 'service' and worker <> $2
           and exists (select from herder.server where name = $1 and service_holder = $2)",
        server,
        holder,
    )
    .execute(pool)
    .await?;
    Ok(())
}

/// A server with slots that are still borrowed by a process that no longer holds its service connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Abandoned {
    /// The server.
    pub server: String,
    /// A database that is known to be there.
    pub database: Option<String>,
    /// A tenant there, whose URL may be the only way to this server.
    pub tenant: Option<String>,
    /// Whether that tenant has a URL of its own.
    pub own_url: bool,
}

/// All servers with abandoned slots.
///
/// # Errors
/// The control database fails.
pub async fn abandoned(pool: &PgPool) -> Result<Vec<Abandoned>, StoreError> {
    let rows = sqlx::query!(
        r#"-- First, and nearly always nothing: then no job is looked for.
           with abandoned as materialized (
             select distinct server.name from herder.slot join herder.server on server.name = slot.server
             where slot.purpose = 'service' and (service_until < now() or service_holder is distinct from slot.worker)
           )
           select abandoned.name, known.database as "database?", known.tenant as "tenant?", known.own_url as "own_url?"
           from abandoned
           left join lateral (
             select database, tenant, own_url from herder.job where job.server = abandoned.name order by id desc limit 1
           ) known on true"#
    );
    let rows = rows.fetch_all(pool).await?.into_iter();
    Ok(rows
        .map(|row| Abandoned {
            server: row.name,
            database: row.database,
            tenant: row.tenant,
            own_url: row.own_url.unwrap_or_default(),
        })
        .collect())
}

/// How a holder leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// In good order: nothing is there that was not counted.
    Clear,
    /// The one before it was lost, and its sessions were not seen to be gone. The next one is told so, too.
    Uncleared,
}

/// Gives it back with all that was borrowed, if it is still the holder's. Nobody gets it before `grace` is over, in which its session
/// ends.
///
/// # Errors
/// The control database fails: the lease runs out by itself.
pub async fn release(
    pool: &PgPool,
    server: &str,
    holder: &str,
    grace: Duration,
    leave: Leave,
) -> Result<(), StoreError> {
    sqlx::query!(
        "with borrowed as (
           update herder.slot set worker = null, purpose = null, taken_at = null
           where server = $1 and purpose = 'service' and worker = $2
         )
         update herder.server set service_holder = $3, service_until = now() + $4::float8 * interval '1 second'
         where name = $1 and service_holder = $2",
        server,
        holder,
        match leave {
            Leave::Clear => ENDING,
            Leave::Uncleared => holder,
        },
        grace.as_secs_f64(),
    )
    .execute(pool)
    .await?;
    Ok(())
}
