//! Making the control tables, and telling whether they are there.

use std::borrow::Cow;

use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, migrate::Migrator};

use super::StoreError;
use crate::{queue, session::quote};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Where the history of our own tables is kept: beside them, so that it meets nobody else's.
const HISTORY: &str = "herder._sqlx_migrations";

/// Any number that is only ours: it keeps two set-ups apart.
const SETUP_LOCK: i64 = 0x4845_5244_4552;

/// What is missing in a control database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetupState {
    /// All there.
    Current,
    /// Never set up.
    Missing,
    /// Set up by an older Herder.
    Outdated,
    /// Set up by a newer Herder: this one must not touch it.
    Newer,
    /// A schema of this name is there, and somebody else's.
    Foreign(&'static str),
}

/// Makes the schemas `herder` and `apalis`, or brings them up to date. Safe to run twice, and by two at once: the
/// second waits for the first.
///
/// # Errors
/// The database cannot be reached, or the role may not create schemas and extensions in it.
pub async fn setup(pool: &PgPool) -> Result<(), StoreError> {
    // A connection of its own, closed at the end whatever happens: the lock goes with it.
    let mut connection = PgConnection::connect_with(&pool.connect_options()).await?;
    // What is right for a claim is wrong for an index over a million jobs. And a role may have a path that leads nowhere.
    sqlx::raw_sql(
        "set statement_timeout = 0; set enable_seqscan = on; set enable_sort = on; set plan_cache_mode = auto;
         set search_path = public",
    )
    .execute(&mut connection)
    .await?;
    sqlx::query("select pg_advisory_lock($1)")
        .bind(SETUP_LOCK)
        .execute(&mut connection)
        .await?;
    let done = setup_locked(&mut connection).await;
    let _ = connection.close().await;
    done
}

async fn setup_locked(connection: &mut PgConnection) -> Result<(), StoreError> {
    let mut migrator = Migrator::with_migrations(MIGRATIONS.iter().cloned().collect());
    migrator.dangerous_set_table_name(HISTORY);
    migrator.create_schema("herder");
    migrator.set_locking(false);
    migrator
        .run(&mut *connection)
        .await
        .map_err(|e| StoreError::Setup(e.to_string()))?;
    queue::setup(connection).await
}

/// Whether the role of this connection may do what `setup` does.
///
/// # Errors
/// The database cannot be reached.
pub async fn may_set_up(pool: &PgPool) -> Result<bool, StoreError> {
    let may = sqlx::query_scalar(
        "select has_database_privilege(current_database(), 'create')
         and coalesce((select pg_has_role(nspowner, 'usage') from pg_namespace where nspname = 'herder'), true)",
    );
    Ok(may.fetch_one(pool).await?)
}

/// Lets another role use the control tables, those of later versions included, without letting it change their shape.
/// Safe to run twice.
///
/// # Errors
/// The database cannot be reached, there is no such role, or the tables are somebody else's.
pub async fn grant(pool: &PgPool, role: &str) -> Result<(), StoreError> {
    let role = quote(role);
    let rows = "select, insert, update, delete";
    let mut statements = String::new();
    for schema in ["herder", "apalis"] {
        statements += &format!(
            "grant usage on schema {schema} to {role};
             grant {rows} on all tables in schema {schema} to {role};
             grant usage, select on all sequences in schema {schema} to {role};
             grant execute on all functions in schema {schema} to {role};
             alter default privileges in schema {schema} grant {rows} on tables to {role};
             alter default privileges in schema {schema} grant usage, select on sequences to {role};
             alter default privileges in schema {schema} grant execute on functions to {role};
             revoke insert, update, delete on {schema}._sqlx_migrations from {role};"
        );
    }
    // One message, so one transaction.
    sqlx::raw_sql(AssertSqlSafe(statements)).execute(pool).await?;
    Ok(())
}

impl SetupState {
    /// What is wrong with the control database, to be read on from its name, and what to do about it. None: nothing is.
    pub fn problem(self) -> Option<(Cow<'static, str>, &'static str)> {
        match self {
            Self::Current => None,
            Self::Missing => Some((
                "is not set up".into(),
                "run `herder setup`, which creates the schemas `herder` and `apalis`",
            )),
            Self::Outdated => Some((
                "was set up by an older version of Herder".into(),
                "run `herder setup` to update its tables",
            )),
            Self::Newer => Some((
                "was set up by a newer version of Herder".into(),
                "use that version, or a newer one",
            )),
            Self::Foreign(schema) => Some((
                format!("has a schema `{schema}` with tables that Herder did not make").into(),
                "choose another database in [control] `url`, e.g. an empty one, or rename that schema",
            )),
        }
    }
}

/// Whether `setup` has to run.
///
/// # Errors
/// The database cannot be reached.
pub async fn setup_state(pool: &PgPool) -> Result<SetupState, StoreError> {
    let there: bool = sqlx::query_scalar(
        "select to_regclass('herder._sqlx_migrations') is not null and to_regclass('apalis._sqlx_migrations') is not null",
    )
    .fetch_one(pool)
    .await
    .map_err(|error| not_allowed(error, pool))?;
    if !there {
        for schema in ["herder", "apalis"] {
            if is_foreign(pool, schema).await? {
                return Ok(SetupState::Foreign(schema));
            }
        }
        return Ok(SetupState::Missing);
    }
    let (ours, of_queue): (Option<i64>, Option<i64>) = sqlx::query_as(
        "select (select max(version) from herder._sqlx_migrations where success),
                (select max(version) from apalis._sqlx_migrations where success)",
    )
    .fetch_one(pool)
    .await
    .map_err(|error| not_allowed(error, pool))?;
    let newest = MIGRATIONS.iter().map(|m| m.version).max();
    Ok(match ours.cmp(&newest) {
        // Broken off between the two.
        _ if of_queue < queue::newest_migration() => SetupState::Outdated,
        std::cmp::Ordering::Less => SetupState::Outdated,
        std::cmp::Ordering::Equal => SetupState::Current,
        std::cmp::Ordering::Greater => SetupState::Newer,
    })
}

/// Whether there are tables in a schema of ours that no migration of ours has made. Each of them is made in one transaction
/// with its row in the history: a set-up that was broken off is ours.
async fn is_foreign(pool: &PgPool, schema: &str) -> Result<bool, StoreError> {
    let (history, others): (bool, bool) = sqlx::query_as(
        "select coalesce(bool_or(relname = '_sqlx_migrations'), false), coalesce(bool_or(relname <> '_sqlx_migrations'), false)
         from pg_class join pg_namespace on pg_namespace.oid = relnamespace
         where nspname = $1 and relkind in ('r', 'p', 'v', 'm', 'f', 'S')
           -- An extension may be there that somebody has installed for us.
           and not exists (select from pg_depend where classid = 'pg_class'::regclass and objid = pg_class.oid
                           and deptype = 'e')",
    )
    .bind(schema)
    .fetch_one(pool)
    .await?;
    if !others || !history {
        return Ok(others);
    }
    let applied = format!("select not exists (select from {schema}._sqlx_migrations where success)");
    let applied = sqlx::query_scalar(AssertSqlSafe(applied)).fetch_one(pool).await;
    applied.map_err(|error| not_allowed(error, pool))
}

fn not_allowed(error: sqlx::Error, pool: &PgPool) -> StoreError {
    match &error {
        sqlx::Error::Database(e) if e.code().as_deref() == Some("42501") => StoreError::NotAllowed {
            role: pool.connect_options().get_username().to_owned(),
            message: e.message().to_owned(),
        },
        _ => error.into(),
    }
}
