//! How many connections a server may be asked for.

use std::time::Duration;

use sqlx::{Connection, PgConnection};

use crate::{
    database_url::DatabaseUrl, domain::wave::Amount, runner::RunnerError, session::connect_error,
    store::server::ServerRow,
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
        .application_name("herder/budget");
    let connect = tokio::time::timeout(Duration::from_secs(10), PgConnection::connect_with(&options));
    let mut connection = connect
        .await
        .map_err(|_| RunnerError::Connection(format!("{} did not answer", url.address())))?
        .map_err(|e| connect_error(e, url))?;
    let read = read(&mut connection, budget).await;
    let _ = connection.close().await;
    Ok(read?)
}

/// Reads a server's limits over a connection to it.
///
/// # Errors
/// The connection broke.
pub(super) async fn read(
    connection: &mut PgConnection,
    budget: Option<Amount>,
) -> Result<Arithmetic, sqlx::Error> {
    // `reserved_connections` is younger than PostgreSQL 15.
    let (max, reserved): (i32, i32) = sqlx::query_as(
        "select current_setting('max_connections')::int,
                current_setting('superuser_reserved_connections')::int
                + coalesce(current_setting('reserved_connections', true)::int, 0)",
    )
    .fetch_one(connection)
    .await?;
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
