//! Making the control tables, and telling whether they are there.

use sqlx::{Connection, PgConnection, PgPool, migrate::Migrator};

use super::StoreError;

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
}

/// Makes the schemas `herder` and `apalis`, or brings them up to date. Safe to run twice, and by two at once: the
/// second waits for the first.
///
/// # Errors
/// The database cannot be reached, or the role may not create schemas and extensions in it.
pub async fn setup(pool: &PgPool) -> Result<(), StoreError> {
    // A connection of its own, closed at the end whatever happens: the lock goes with it.
    let mut connection = PgConnection::connect_with(&pool.connect_options()).await?;
    sqlx::query("select pg_advisory_lock($1)")
        .bind(SETUP_LOCK)
        .execute(&mut connection)
        .await?;
    let done = setup_locked(pool, &mut connection).await;
    let _ = connection.close().await;
    done
}

async fn setup_locked(pool: &PgPool, connection: &mut PgConnection) -> Result<(), StoreError> {
    let mut migrator = Migrator::with_migrations(MIGRATIONS.iter().cloned().collect());
    migrator.dangerous_set_table_name(HISTORY);
    migrator.create_schema("herder");
    migrator.set_locking(false);
    migrator
        .run(connection)
        .await
        .map_err(|e| StoreError::Setup(e.to_string()))?;
    crate::queue::setup(pool).await
}

/// Whether `setup` has to run.
///
/// # Errors
/// The database cannot be reached.
pub async fn setup_state(pool: &PgPool) -> Result<SetupState, StoreError> {
    let there: bool = sqlx::query_scalar(
        "select to_regclass('herder._sqlx_migrations') is not null and to_regclass('apalis.jobs') is not null",
    )
    .fetch_one(pool)
    .await?;
    if !there {
        return Ok(SetupState::Missing);
    }
    let applied: Option<i64> =
        sqlx::query_scalar("select max(version) from herder._sqlx_migrations where success")
            .fetch_one(pool)
            .await?;
    let newest = MIGRATIONS.iter().map(|m| m.version).max();
    Ok(match applied.cmp(&newest) {
        std::cmp::Ordering::Less => SetupState::Outdated,
        std::cmp::Ordering::Equal => SetupState::Current,
        std::cmp::Ordering::Greater => SetupState::Newer,
    })
}
