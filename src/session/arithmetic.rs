//! A server's connections: how many there are, who has them, and how many of them are Herder's.

use sqlx::{PgConnection, Row};

use crate::domain::wave::Amount;

/// The share of a server's connections that is Herder's where the config says nothing.
pub const DEFAULT_BUDGET: Amount = Amount::Percent(50.0);

/// A server's connections, and what of them is Herder's.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Arithmetic {
    /// `max_connections`.
    pub max_connections: i32,
    /// Those that the server keeps for superusers, and for the role that may use reserved ones.
    pub reserved: i32,
    /// Sessions that are not Herder's, of whoever.
    pub not_ours: i32,
    /// Sessions of Herder's, but for the one that asked.
    pub ours: i32,
    /// The role that Herder comes as.
    pub role: Role,
    /// The limit of the database, where it has one.
    pub database: Option<Limit>,
    /// How many locks there can be on the server at once, as it was configured; there is a little more room than that.
    pub locks: i64,
    /// What remains for Herder.
    pub budget: i32,
}

/// The role that Herder comes as.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// Whether nothing holds it back: no limit does.
    pub superuser: bool,
    /// Sessions of it that are not Herder's.
    pub not_ours: i32,
    /// Its `CONNECTION LIMIT`, where it has one.
    pub limit: Option<i32>,
    /// Whether its transactions take no changes, unless they say otherwise.
    pub read_only: bool,
}

/// What a database has room for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Limit {
    /// The database.
    pub name: String,
    /// Its `CONNECTION LIMIT`.
    pub limit: i32,
    /// Sessions in it that are not Herder's.
    pub not_ours: i32,
}

impl Arithmetic {
    /// How many connections Herder can have at most, now: what the server, the role and the database leave to it.
    pub fn headroom(&self) -> i32 {
        let server = self.max_connections - self.reserved - self.not_ours;
        // A superuser may have as many as he likes, of the reserved ones, too: but a budget that counts on them is none.
        let role = self
            .role
            .limit
            .filter(|_| !self.role.superuser)
            .map(|limit| limit - self.role.not_ours);
        let database = self
            .database
            .as_ref()
            .filter(|_| !self.role.superuser)
            .map(|database| database.limit - database.not_ours);
        [role, database]
            .into_iter()
            .flatten()
            .fold(server, i32::min)
            .max(0)
    }
}

/// A budget: a share is one of what the server does not reserve, and at least one connection.
pub fn budget_of(max_connections: i32, reserved: i32, budget: Amount) -> i32 {
    let open = usize::try_from(max_connections - reserved).unwrap_or_default();
    // Rounded down, unlike a share of tenants: half of 97 is not 49.
    let budget = budget.within(open);
    i32::try_from(budget.max(1)).unwrap_or(i32::MAX)
}

/// Reads a server's limits and sessions over a connection to it.
///
/// # Errors
/// The connection broke.
pub(crate) async fn read(
    connection: &mut PgConnection,
    budget: Option<Amount>,
) -> Result<Arithmetic, sqlx::Error> {
    // `backend_type` of a session that is not ours to look at is null; what has a user and a database is a client then.
    // `reserved_connections` is younger than PostgreSQL 15.
    let row = sqlx::query(
        "with client as (
           select usename, datname, coalesce(application_name, '') ~ '^herder([/ -]|$)' as ours
           from pg_stat_activity
           where pid <> pg_backend_pid() and usename is not null and datname is not null
             and coalesce(backend_type, 'client backend') = 'client backend'
         ),
         count as (
           select count(*) filter (where ours)::int as ours, count(*) filter (where not ours)::int as not_ours,
                  count(*) filter (where not ours and usename = session_user)::int as of_role,
                  count(*) filter (where not ours and datname = current_database())::int as of_database
           from client
         ),
         setting as (
           select current_setting('max_connections')::int as max_connections,
                  current_setting('superuser_reserved_connections')::int
                    + coalesce(current_setting('reserved_connections', true)::int, 0) as reserved,
                  current_setting('max_locks_per_transaction')::bigint
                    * (current_setting('max_connections')::bigint
                       + current_setting('max_prepared_transactions')::bigint) as locks
         )
         select setting.*, count.*, role.rolname::text as role, role.rolsuper as superuser,
                nullif(role.rolconnlimit, -1) as role_limit, current_setting('transaction_read_only')::boolean as read_only,
                database.datname::text as database,
                nullif(database.datconnlimit, -1) as database_limit
         from setting, count, pg_roles role, pg_database database
         where role.rolname = session_user and database.datname = current_database()",
    )
    .persistent(false)
    .fetch_one(connection)
    .await?;
    let (max_connections, reserved) = (row.try_get("max_connections")?, row.try_get("reserved")?);
    let database_limit: Option<i32> = row.try_get("database_limit")?;
    Ok(Arithmetic {
        max_connections,
        reserved,
        not_ours: row.try_get("not_ours")?,
        ours: row.try_get("ours")?,
        role: Role {
            name: row.try_get("role")?,
            superuser: row.try_get("superuser")?,
            not_ours: row.try_get("of_role")?,
            limit: row.try_get("role_limit")?,
            read_only: row.try_get("read_only")?,
        },
        database: match database_limit {
            None => None,
            Some(limit) => Some(Limit {
                name: row.try_get("database")?,
                limit,
                not_ours: row.try_get("of_database")?,
            }),
        },
        locks: row.try_get("locks")?,
        budget: budget_of(max_connections, reserved, budget.unwrap_or(DEFAULT_BUDGET)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_number_or_a_share_of_what_is_not_reserved() {
        assert_eq!(budget_of(100, 3, DEFAULT_BUDGET), 48);
        assert_eq!(budget_of(100, 3, Amount::Count(7)), 7);
        assert_eq!(budget_of(5, 3, Amount::Percent(10.0)), 1);
    }

    #[test]
    fn the_headroom_is_what_server_role_and_database_leave() {
        let mut sum = Arithmetic {
            max_connections: 100,
            reserved: 3,
            not_ours: 40,
            ours: 5,
            role: Role {
                name: "migrator".into(),
                superuser: false,
                not_ours: 1,
                limit: None,
                read_only: false,
            },
            database: None,
            locks: 6400,
            budget: 48,
        };
        assert_eq!(sum.headroom(), 57);
        sum.database = Some(Limit {
            name: "app".into(),
            limit: 50,
            not_ours: 10,
        });
        assert_eq!(sum.headroom(), 40);
        sum.role.limit = Some(20);
        assert_eq!(sum.headroom(), 19);
        sum.role.superuser = true;
        assert_eq!(sum.headroom(), 57);
        sum.not_ours = 200;
        assert_eq!(sum.headroom(), 0);
    }
}
