//! A connection to one tenant: labelled, limited, and certain of the schema it writes to.

use std::time::Duration;

use sqlx::{Connection, PgConnection};
use tokio_util::sync::CancellationToken;

use crate::{
    database_url::DatabaseUrl,
    domain::{
        plan::Session,
        tenant::{PUBLIC, Place},
    },
    tenant_error::TenantError,
};

pub mod arithmetic;
pub(crate) mod backends;
mod blockers;
mod compiled;
pub(crate) mod dial;
pub(crate) mod knock;
mod ledger;
pub(crate) mod ledgers;
mod limits;
mod lock;
pub mod pooler;
pub mod privileges;

pub use ledger::LedgerTable;
use limits::ANSWER_LIMIT;
pub use limits::Limits;
pub(crate) use limits::{CLIENT_CHECK, EXIT_GRACE, EXIT_LIMIT, LINGER, SILENCE};
pub use lock::{Holder, lock_key};
use pooler::Pooled;

/// How often a guard says something while a tool works: well within the idle limit, and often enough that a tool does
/// not go on for long without its guard.
const PING: Duration = Duration::from_secs(1);

/// The SQLSTATE of a privilege that is missing.
pub(crate) const NO_PRIVILEGE: &str = "42501";

/// The SQLSTATE of an empty `search_path`, where something is to be made.
const NO_SCHEMA_SELECTED: &str = "3F000";

/// What to say of a schema that is there, and that the role may not even look into.
pub(crate) fn no_usage(schema: &str) -> String {
    format!("the role has no USAGE on schema `{schema}`")
}

/// A name as an SQL identifier, whatever stands in it.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as an SQL literal, whatever stands in it, and whatever a migration did to `standard_conforming_strings`.
pub fn literal(text: &str) -> String {
    let escape = if text.contains('\\') { "E" } else { "" };
    format!("{escape}'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

/// What this database and this role say of the settings by which a session reads and writes values. What the server itself says
/// is the same for all of its databases.
pub(crate) const DEFAULTS: &str =
    "select coalesce(string_agg(concat_ws(' ', setdatabase <> 0, setrole <> 0, setting), ', '
    order by setdatabase <> 0, setrole <> 0, setting), '')
    from pg_catalog.pg_db_role_setting, unnest(setconfig) setting
    where setdatabase in (0, (select oid from pg_catalog.pg_database where datname = current_database()))
      and setrole in (0, (select oid from pg_catalog.pg_roles where rolname = session_user))
      and lower(split_part(setting, '=', 1)) in ('timezone', 'datestyle', 'extra_float_digits', 'standard_conforming_strings')";

/// An open connection to a tenant. It keeps no prepared statements: a migration may deallocate them.
pub struct TenantSession {
    connection: PgConnection,
    schema: Option<String>,
    search_path: Option<String>,
    lock_key: i64,
    /// What was said of [`DEFAULTS`], once it was asked.
    defaults: Option<String>,
    /// Whether its database's functions could mix up two tenants' types, once it was asked.
    mixes_types: Option<bool>,
}

impl TenantSession {
    /// Connects to a tenant's place under a label, with limits, and makes sure that unqualified names mean the
    /// tenant's schema.
    ///
    /// # Errors
    /// The server cannot be reached or refuses, or the schema does not exist.
    pub async fn open(
        url: &DatabaseUrl,
        place: &Place,
        application_name: &str,
        limits: impl Into<Limits>,
        extra_search_path: &[String],
    ) -> Result<Self, TenantError> {
        let mut session = Self::connect(url, place, application_name, limits, extra_search_path).await?;
        session.enter().await?;
        Ok(session)
    }

    /// Whether a plan that was made for sessions like that one means the same here.
    ///
    /// # Errors
    /// The connection breaks.
    pub(crate) async fn suits(&mut self, session: &Session) -> Result<bool, TenantError> {
        let Some(wanted) = &session.defaults else {
            return Ok(true);
        };
        if self.defaults.is_none() {
            let asked = sqlx::query_scalar(DEFAULTS).persistent(false);
            self.defaults = Some(asked.fetch_one(&mut self.connection).await?);
        }
        Ok(self.defaults.as_ref() == Some(wanted))
    }

    /// Connects like [`open`](Self::open), but unqualified names mean nothing yet: each message must say for itself which schema it is
    /// about.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub(crate) async fn connect(
        url: &DatabaseUrl,
        place: &Place,
        application_name: &str,
        limits: impl Into<Limits>,
        extra_search_path: &[String],
    ) -> Result<Self, TenantError> {
        let mut options = dial::options(url, application_name, limits.into())?;
        if place.schema.is_some() {
            // What a migration resets, or a transaction's end takes back, must not be `public`.
            options = options.options([("search_path", "")]);
        }
        let connected = async {
            let mut connection = PgConnection::connect_with(&options).await?;
            let is_direct = pooler::is_passed_on(&mut connection).await?;
            Ok((connection, is_direct))
        };
        let (connection, is_direct) = dial::opened(url, connected).await?;
        if !is_direct {
            let _ = tokio::time::timeout(ANSWER_LIMIT, connection.close()).await;
            return Err(TenantError::Pooled(Pooled::Stripped.to_string()));
        }
        let mut session = Self {
            connection,
            schema: None,
            search_path: None,
            lock_key: 0,
            defaults: None,
            mixes_types: None,
        };
        session.turn_to(place, extra_search_path);
        Ok(session)
    }

    /// Makes it the session of another tenant of the same database. Asks the server nothing.
    pub(crate) fn turn_to(&mut self, place: &Place, extra_search_path: &[String]) {
        self.lock_key = lock_key(place);
        self.search_path = place.schema.as_ref().map(|schema| {
            let path = std::iter::once(schema).chain(extra_search_path);
            path.map(|s| quote(s)).collect::<Vec<_>>().join(", ")
        });
        self.schema.clone_from(&place.schema);
    }

    /// Makes unqualified names mean the tenant's schema, and proves it: with a schema that does not exist, the first
    /// writable schema of the path would silently take its place.
    pub(crate) async fn enter(&mut self) -> Result<(), TenantError> {
        let (Some(schema), Some(path)) = (&self.schema, &self.search_path) else {
            return Ok(());
        };
        sqlx::query("select set_config('search_path', $1, false)")
            .bind(path)
            .persistent(false)
            .execute(&mut self.connection)
            .await?;
        let current: Option<String> = sqlx::query_scalar("select current_schema()::text")
            .persistent(false)
            .fetch_one(&mut self.connection)
            .await?;
        match current {
            Some(current) if current == *schema => Ok(()),
            _ => {
                let schema = schema.clone();
                Err(self.without(schema).await?)
            }
        }
    }

    /// Why unqualified names do not lead to a schema. PostgreSQL passes over one that this role has no USAGE on, as if it
    /// were not there.
    async fn without(&mut self, schema: String) -> Result<TenantError, TenantError> {
        // None: it is not there.
        let may_look: Option<bool> = sqlx::query_scalar(
            "select has_schema_privilege(oid, 'usage') from pg_namespace where nspname = $1",
        )
        .bind(&schema)
        .persistent(false)
        .fetch_optional(&mut self.connection)
        .await?;
        let (sqlstate, message, hint) = match may_look {
            None => return Ok(TenantError::SchemaMissing(schema)),
            Some(false) => (NO_PRIVILEGE, no_usage(&schema), None),
            Some(true) => (
                NO_SCHEMA_SELECTED,
                "no schema has been selected to create in".to_owned(),
                Some("`search_path` of the database or the role is empty: ALTER DATABASE … SET search_path names one".into()),
            ),
        };
        Ok(TenantError::Database {
            sqlstate: sqlstate.into(),
            message,
            hint,
            revision: None,
            statement: None,
            session_lives: true,
        })
    }

    /// Goes by this name from now on, until it [forgets](Self::forget).
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn call_itself(&mut self, application_name: &str) -> Result<(), TenantError> {
        let call = sqlx::query("select set_config('application_name', $1, false)")
            .bind(application_name)
            .persistent(false);
        answered(call.execute(&mut self.connection)).await?;
        Ok(())
    }

    /// Lets go of the tenant's lock, its schema and its name: as it was opened, where nobody has spoken over it but us.
    ///
    /// # Errors
    /// The connection broke.
    pub(crate) async fn forget(&mut self) -> Result<(), TenantError> {
        let forget = sqlx::raw_sql("select pg_catalog.pg_advisory_unlock_all(); reset all");
        answered(forget.execute(&mut self.connection)).await?;
        Ok(())
    }

    /// The connection, for the runner's own statements.
    pub fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// The tenant's schema, where it has one.
    pub fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// What unqualified names are looked up in, where the tenant is a schema.
    pub(crate) fn search_path(&self) -> Option<&str> {
        self.search_path.as_deref()
    }

    /// Waits for a tool's work while this session keeps the tenant's lock. Ends with an error, and drops the work, as
    /// soon as the lock is lost or the attempt is told to stop.
    ///
    /// # Errors
    /// Told to stop, or the connection broke.
    pub async fn guarded<T>(
        &mut self,
        cancel: &CancellationToken,
        work: impl Future<Output = T>,
    ) -> Result<T, TenantError> {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return Ok(done),
                () = cancel.cancelled() => return Err(TenantError::Cancelled),
                () = tokio::time::sleep(PING) => {}
            }
            tokio::select! {
                pinged = self.ping() => pinged?,
                () = cancel.cancelled() => return Err(TenantError::Cancelled),
            }
        }
    }

    /// The schema that unqualified names are made in: the tenant's own, or the first of its database's search path.
    ///
    /// # Errors
    /// The connection broke, or no schema of the path exists.
    pub async fn home(&mut self) -> Result<String, TenantError> {
        if let Some(schema) = &self.schema {
            return Ok(schema.clone());
        }
        let current: Option<String> = sqlx::query_scalar("select current_schema()::text")
            .persistent(false)
            .fetch_one(&mut self.connection)
            .await?;
        match current {
            Some(current) => Ok(current),
            None => Err(self.without(PUBLIC.into()).await?),
        }
    }

    /// The process that serves this session, on a server that takes changes: to a standby an attempt is in vain, and
    /// before long it may be none any more.
    ///
    /// # Errors
    /// The connection broke, or it leads to a standby.
    pub(crate) async fn backend(&mut self) -> Result<i32, TenantError> {
        let ask = sqlx::query_as("select pg_backend_pid(), pg_is_in_recovery()").persistent(false);
        match answered(ask.fetch_one(&mut self.connection)).await? {
            (backend, false) => Ok(backend),
            (_, true) => Err(TenantError::Connection(
                "its server is a standby, which takes no changes".into(),
            )),
        }
    }

    /// Says that we are still here, which keeps the idle limit away. Fails where the server ended the session.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn ping(&mut self) -> Result<(), TenantError> {
        let ping = sqlx::query("select 1").persistent(false);
        answered(ping.execute(&mut self.connection)).await?;
        Ok(())
    }

    /// Ends the session. Its locks go with it.
    pub async fn close(self) {
        // A connection that is broken already is closed, too; one whose link is dead is let go.
        let _ = tokio::time::timeout(ANSWER_LIMIT, self.connection.close()).await;
    }
}

/// What an idle session answers to a small question.
async fn answered<T>(answer: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, TenantError> {
    let answer = tokio::time::timeout(ANSWER_LIMIT, answer).await;
    Ok(answer.map_err(|_| TenantError::Silent(ANSWER_LIMIT))??)
}
