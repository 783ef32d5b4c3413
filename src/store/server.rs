//! Servers and their budgets.

use sqlx::{PgConnection, PgPool};

use super::StoreError;

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

/// The state of a server's slots.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// The server's name.
    pub server: String,
    /// Connections that all of Herder may hold to it.
    pub budget: i64,
    /// Slots that are taken for tenants, suspect ones included.
    pub in_use: i64,
    /// Slots whose worker is gone and whose session may not be.
    pub suspect: i64,
}

/// Writes a server and its slots. A smaller budget takes free slots away at once, and taken ones when they are freed.
///
/// # Errors
/// The control database fails.
pub async fn ensure(tx: &mut PgConnection, server: &ServerRow) -> Result<(), StoreError> {
    sqlx::query!(
        "insert into herder.server (name, address, budget) values ($1, $2, $3)
         on conflict (name) do update set address = excluded.address, budget = excluded.budget, updated_at = now()
         where (server.address, server.budget) is distinct from (excluded.address, excluded.budget)",
        server.name,
        server.address,
        server.budget,
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "insert into herder.slot (server, number)
         select server.name, n from herder.server, generate_series(1, server.job_slots) n where server.name = $1
         on conflict do nothing",
        server.name,
    )
    .execute(&mut *tx)
    .await?;
    sqlx::query!(
        "delete from herder.slot using herder.server
         where slot.server = $1 and server.name = $1 and slot.number > server.job_slots and slot.worker is null",
        server.name,
    )
    .execute(&mut *tx)
    .await?;
    Ok(())
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

/// All servers with the state of their slots.
///
/// # Errors
/// The control database fails.
pub async fn usage(pool: &PgPool) -> Result<Vec<Usage>, StoreError> {
    Ok(sqlx::query_as!(
        Usage,
        r#"select server.name as server, server.budget::bigint as "budget!",
                  count(*) filter (where slot.purpose <> 'control') as "in_use!",
                  count(slot.suspect_since) as "suspect!"
           from herder.server left join herder.slot on slot.server = server.name
           group by server.name order by server.name"#
    )
    .fetch_all(pool)
    .await?)
}
