//! How many connections a server may be asked for, and the one of them that belongs to no job.

use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection, PgPool};
use tracing::info;

use crate::{
    database_url::DatabaseUrl,
    domain::wave::Amount,
    runner::RunnerError,
    session::connect_error,
    store::{StoreError, server::ServerRow, slot},
};

/// The share of a server's connections that is Herder's where the config says nothing.
pub const DEFAULT_BUDGET: Amount = Amount::Percent(50.0);

/// What is taken where a server cannot be asked: enough to go on with, too little to hurt. The next run asks again.
const UNKNOWN_BUDGET: i32 = 4;

/// How a server's budget came about.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Arithmetic {
    /// `max_connections`.
    pub max_connections: i32,
    /// Those that the server keeps for superusers.
    pub reserved: i32,
    /// What remains for Herder.
    pub budget: i32,
}

/// The arithmetic of a budget: a share is one of what the server does not reserve, and at least one connection.
pub fn arithmetic(max_connections: i32, reserved: i32, budget: Amount) -> Arithmetic {
    let open = usize::try_from(max_connections - reserved).unwrap_or_default();
    let budget = match budget {
        Amount::Count(n) => n as usize,
        // Rounded down, unlike a share of tenants: half of 97 is not 49.
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a share of a count fits one"
        )]
        Amount::Percent(p) => (open as f64 * p / 100.0).floor() as usize,
    };
    Arithmetic {
        max_connections,
        reserved,
        budget: i32::try_from(budget.max(1)).unwrap_or(i32::MAX),
    }
}

/// Asks a server for its limits.
///
/// # Errors
/// It cannot be reached.
pub async fn ask(url: &DatabaseUrl, budget: Option<Amount>) -> Result<Arithmetic, RunnerError> {
    let options = url
        .options()
        .map_err(|e| RunnerError::Connection(e.to_string()))?
        .application_name("herder/inspect");
    let connect = tokio::time::timeout(Duration::from_secs(10), PgConnection::connect_with(&options));
    let mut connection = connect
        .await
        .map_err(|_| RunnerError::Connection(format!("{} did not answer", url.address())))?
        .map_err(|e| connect_error(e, url))?;
    // `reserved_connections` is younger than PostgreSQL 15.
    let row: Result<(i32, i32), _> = sqlx::query_as(
        "select current_setting('max_connections')::int,
                current_setting('superuser_reserved_connections')::int
                + coalesce(current_setting('reserved_connections', true)::int, 0)",
    )
    .fetch_one(&mut connection)
    .await;
    let _ = connection.close().await;
    let (max, reserved) = row?;
    Ok(arithmetic(max, reserved, budget.unwrap_or(DEFAULT_BUDGET)))
}

/// A server's row, with its budget as the config and the server have it.
pub async fn server_row(
    name: &str,
    url: &DatabaseUrl,
    budget: Option<Amount>,
) -> (ServerRow, Option<RunnerError>) {
    let row = |budget| ServerRow {
        name: name.to_owned(),
        address: url.address(),
        budget,
    };
    if let Some(Amount::Count(n)) = budget {
        return (row(i32::try_from(n.max(1)).unwrap_or(i32::MAX)), None);
    }
    match ask(url, budget).await {
        Ok(arithmetic) => (row(arithmetic.budget), None),
        Err(e) => (row(UNKNOWN_BUDGET), Some(e)),
    }
}

/// The service connection of a server: the one of its budget that belongs to no job. Whoever holds this may connect
/// once. It is a lock of a session of its own, so it goes with the process, however that ends.
pub struct Service {
    connection: PgConnection,
    server: String,
}

impl Service {
    /// Waits until nobody else holds it.
    ///
    /// # Errors
    /// The control database fails.
    pub async fn acquire(pool: &PgPool, server: &str) -> Result<Self, StoreError> {
        let mut connection = PgConnection::connect_with(&pool.connect_options()).await?;
        let since = Instant::now();
        let mut said = false;
        while !slot::try_service(&mut connection, server).await? {
            if !said && since.elapsed() > Duration::from_secs(2) {
                said = true;
                info!(
                    server,
                    "Waiting for the service connection of `{server}`: somebody else inspects it"
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(Self {
            connection,
            server: server.to_owned(),
        })
    }

    /// Takes it if nobody else holds it.
    ///
    /// # Errors
    /// The control database fails.
    pub async fn try_acquire(pool: &PgPool, server: &str) -> Result<Option<Self>, StoreError> {
        let mut connection = PgConnection::connect_with(&pool.connect_options()).await?;
        match slot::try_service(&mut connection, server).await? {
            true => Ok(Some(Self {
                connection,
                server: server.to_owned(),
            })),
            false => Ok(None),
        }
    }

    /// Gives it back.
    pub async fn release(mut self) {
        let _ = slot::release_service(&mut self.connection, &self.server).await;
        let _ = self.connection.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_number_or_a_share_of_what_is_not_reserved() {
        assert_eq!(arithmetic(100, 3, DEFAULT_BUDGET).budget, 48);
        assert_eq!(arithmetic(100, 3, Amount::Count(7)).budget, 7);
        assert_eq!(arithmetic(5, 3, Amount::Percent(10.0)).budget, 1);
    }
}
