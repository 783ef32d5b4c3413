//! Who holds a server's service connection: the one of its budget that belongs to no job. The row is the lease.

use std::time::Duration;

use sqlx::PgPool;

use super::StoreError;

/// Who holds it that was given back.
const ENDING: &str = "";

/// What became of asking for a service connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Service {
    /// It is the asker's.
    Held {
        /// Whether the one before never gave it back: its session may still be there.
        lost: bool,
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
pub async fn hold(pool: &PgPool, server: &str, holder: &str, lease: Duration) -> Result<Service, StoreError> {
    let held = sqlx::query!(
        r#"with before as (select service_holder from herder.server where name = $1 for no key update),
           held as (
             update herder.server
             set service_holder = $2, service_until = now() + $3::float8 * interval '1 second'
             where name = $1 and (service_until is null or service_until < now() or service_holder = $2)
             returning name
           )
           select before.service_holder as before, exists (select from held) as "held!" from before"#,
        server,
        holder,
        lease.as_secs_f64(),
    )
    .fetch_optional(pool)
    .await?;
    Ok(match held {
        None => Service::Unknown,
        Some(row) if row.held => Service::Held {
            lost: row
                .before
                .is_some_and(|before| before != ENDING && before != holder),
        },
        Some(_) => Service::Taken,
    })
}

/// Gives it back, if it is still the holder's. Nobody gets it before `grace` is over, in which its session ends.
///
/// # Errors
/// The control database fails: the lease runs out by itself.
pub async fn release(pool: &PgPool, server: &str, holder: &str, grace: Duration) -> Result<(), StoreError> {
    sqlx::query!(
        "update herder.server set service_holder = $3, service_until = now() + $4::float8 * interval '1 second'
         where name = $1 and service_holder = $2",
        server,
        holder,
        ENDING,
        grace.as_secs_f64(),
    )
    .execute(pool)
    .await?;
    Ok(())
}
