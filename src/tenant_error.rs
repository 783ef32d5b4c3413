//! What can go wrong in a tenant, and whether trying again can help.

use std::time::Duration;

use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::{
    domain::{
        failure::{
            CANCELLED, FailureClass, JobError, SQL_ERROR, STATEMENT_LIMIT, classify_sqlstate, cut,
            is_about_server, is_refusal, reason_of_sqlstate,
        },
        revision::{Direction, HistoryError},
    },
    handshake,
};

/// What to do about a server that takes no changes.
pub const READ_ONLY: &str = "it takes no changes now: a standby, a failover on its way, or `default_transaction_read_only` of the \
                             server, the database or the role";

/// What to do about a pooler in between.
pub const POOLED_HINT: &str =
    "give a url that leads to the server itself, or to a pooler in session mode that passes on `options`";

/// A failed look at, or change of, one tenant. Its texts read on from "failed to migrate tenant `acme`:".
#[derive(Clone, Debug, thiserror::Error)]
pub enum TenantError {
    /// The server refused a statement.
    #[error("{message}")]
    Database {
        /// The server's code.
        sqlstate: String,
        /// Its primary message.
        message: String,
        /// What it says to do about it.
        hint: Option<Box<str>>,
        /// The revision that was being applied or undone.
        revision: Option<String>,
        /// The statement.
        statement: Option<Box<str>>,
        /// Whether only the statement ended with it, and not the session: its severity is ERROR.
        session_lives: bool,
    },
    /// No connection to the tenant's server, or it broke.
    #[error("{0}")]
    Connection(String),
    /// The control database does not answer. The tenant's server has no part in it.
    #[error("{0}")]
    ControlDatabase(String),
    /// The tenant's source, which alone knows its URL, cannot be asked. The tenant's server has no part in it.
    #[error("{0}")]
    TenantSource(String),
    /// The server answered what makes no sense to Herder: a ledger without a revision in a row, an answer out of turn.
    #[error("{0}")]
    UnexpectedAnswer(String),
    /// A session did not answer for so long. It may still be there.
    #[error("the session did not answer in {0:?}")]
    Silent(Duration),
    /// A pooler in between shares sessions among its clients.
    #[error("a pooler is in between that shares sessions: {0}")]
    Pooled(String),
    /// The server is not to be trusted: its certificate is wrong, or it speaks no TLS where that is asked for.
    #[error("{message}")]
    Untrusted {
        /// What is wrong.
        message: String,
        /// What to do about it.
        hint: String,
    },
    /// The tenant's schema is not there. Without it, statements would land elsewhere.
    #[error("schema `{0}` does not exist")]
    SchemaMissing(String),
    /// Its source, which alone knows its URL, does not list the tenant any more.
    #[error("it is no longer in the tenant source")]
    OffTheList,
    /// Somebody else holds the tenant's lock.
    #[error("the tenant is locked by {0}")]
    LockedByOther(String),
    /// A newer attempt holds the tenant: this one is over.
    #[error("a newer attempt holds the tenant")]
    Superseded,
    /// A migration that was applied has other content now.
    #[error("migration {file} was edited after it had been applied")]
    Edited {
        /// The revision.
        revision: String,
        /// Its file.
        file: String,
    },
    /// A migration without a transaction broke in the middle.
    #[error("revision {0} is half applied: it ran without a transaction and failed")]
    Dirty(String),
    /// The same, where the ledger knows nothing of it: only this run does.
    #[error("revision {0} is half applied: a piece of it ran outside a transaction and broke off")]
    Torn(String),
    /// The same, where the migration tool committed a part of it, which its ledger does not know of.
    #[error(
        "{} half applied: a part was committed, or may have been, and what came behind that failed: {}",
        are(revisions),
        .cause
    )]
    Left {
        /// The revisions, in order. More than one, where all were to be in one transaction.
        revisions: Vec<String>,
        /// Which way they were going.
        direction: Direction,
        /// What failed.
        cause: Box<TenantError>,
    },
    /// There is no way down from this revision.
    #[error("revision {0} cannot be undone: it has no down migration")]
    Irreversible(String),
    /// The target or the ledger does not fit the migrations.
    #[error("{0}")]
    History(#[from] HistoryError),
    /// These migrations are not the ones that the run was made with.
    #[error("the migrations here differ from those that the run was made with")]
    OtherMigrations,
    /// The ledger moved between two looks at it.
    #[error("the tenant's ledger is at {found} now, and was at {expected}: somebody else migrates it")]
    LedgerMoved {
        /// Where it was.
        expected: String,
        /// Where it is.
        found: String,
    },
    /// The tool said that it was done, and the ledger says that it was not.
    #[error("the tool reported success, but the tenant's ledger is at {found}, not at {wanted}")]
    LedgerMismatch {
        /// The target.
        wanted: String,
        /// What the ledger says.
        found: String,
        /// What may be behind it.
        hint: Option<String>,
    },
    /// The tool ended in the middle: killed, most likely.
    #[error("{0}")]
    ToolDied(String),
    /// The tool failed in a way of its own.
    #[error("{message}")]
    Tool {
        /// What it said, in one line, without secrets.
        message: String,
        /// The server's code, where the tool passed one on.
        sqlstate: Option<String>,
        /// The revision that was being applied or undone, where it is known.
        revision: Option<String>,
        /// The statement, where it is known.
        statement: Option<String>,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The tool itself is missing or broken: no tenant can be migrated.
    #[error("{message}")]
    Setup {
        /// What is missing.
        message: String,
        /// How to get it.
        hint: String,
    },
    /// It took longer than it may.
    #[error("it took longer than {0}")]
    TimedOut(String),
    /// A program that was only asked something took too long for that.
    #[error("it gave no answer in {0}")]
    NoAnswer(String),
    /// It was told to stop.
    #[error("it was told to stop")]
    Cancelled,
}

impl TenantError {
    /// That an attempt before this one has left these half applied.
    pub(crate) fn left_before(revisions: Vec<String>, direction: Direction) -> Self {
        let cause = Self::ToolDied("an earlier attempt did not come to its end".into());
        Self::Left {
            revisions,
            direction,
            cause: Box::new(cause),
        }
    }

    /// Whether trying again can help. By variant, so that a new one does not compile until somebody has decided.
    pub fn class(&self) -> FailureClass {
        match self {
            _ if self.is_raised_refusal() => FailureClass::Transient,
            Self::Database {
                sqlstate, message, ..
            }
            | Self::Tool {
                sqlstate: Some(sqlstate),
                message,
                ..
            } => classify_sqlstate(sqlstate, message),
            // What it is about is slow, or was for a moment.
            Self::NoAnswer(_) => FailureClass::Transient,
            Self::Connection(_)
            | Self::ControlDatabase(_)
            | Self::TenantSource(_)
            | Self::Silent(_)
            // One that came in between during a run can go again.
            | Self::Pooled(_)
            | Self::LockedByOther(_)
            | Self::Superseded
            | Self::Cancelled => FailureClass::Infrastructure,
            // Another worker may have the right migrations: while an image is rolled out, both kinds are about.
            Self::OtherMigrations | Self::ToolDied(_) | Self::LedgerMoved { .. } => FailureClass::Transient,
            Self::UnexpectedAnswer(_)
            | Self::SchemaMissing(_)
            | Self::OffTheList
            | Self::Untrusted { .. }
            | Self::Edited { .. }
            | Self::Dirty(_)
            | Self::Torn(_)
            | Self::Left { .. }
            | Self::Irreversible(_)
            | Self::History(_)
            | Self::LedgerMismatch { .. }
            | Self::Tool { sqlstate: None, .. }
            | Self::Setup { .. }
            | Self::TimedOut(_) => FailureClass::Permanent,
        }
    }

    /// Whether a statement failed with the code of a server that lets nobody in or is gone, as a migration's own RAISE can: it
    /// was let in.
    fn is_raised_refusal(&self) -> bool {
        match self {
            Self::Database {
                sqlstate,
                session_lives,
                ..
            } => *session_lives && is_about_server(sqlstate),
            Self::Tool {
                sqlstate: Some(sqlstate),
                message,
                revision,
                statement,
                ..
            } => {
                // libpq's programs say how grave it is: a server that lets nobody in says FATAL.
                let said = message.contains(&format!("ERROR:  {sqlstate}")) && !message.contains("FATAL");
                is_refusal(sqlstate) && (revision.is_some() || statement.is_some() || said)
            }
            _ => false,
        }
    }

    /// A word for the kind of failure.
    pub fn reason(&self) -> &'static str {
        match self {
            _ if self.is_raised_refusal() => SQL_ERROR,
            Self::Database {
                sqlstate, message, ..
            }
            | Self::Tool {
                sqlstate: Some(sqlstate),
                message,
                ..
            } => reason_of_sqlstate(sqlstate, message),
            Self::Connection(_) | Self::Silent(_) => "connection_lost",
            Self::ControlDatabase(_) => "control_database_failed",
            Self::TenantSource(_) => "tenant_source_failed",
            Self::UnexpectedAnswer(_) => "unexpected_answer",
            Self::Pooled(_) => "pooled",
            Self::Untrusted { .. } => "untrusted_server",
            Self::SchemaMissing(_) => "schema_missing",
            Self::OffTheList => "off_the_list",
            Self::LockedByOther(_) => "locked_by_other",
            Self::Superseded => "superseded",
            Self::Edited { .. } => "edited_migration",
            Self::Dirty(_) | Self::Torn(_) | Self::Left { .. } => "half_applied",
            Self::Irreversible(_) => "irreversible",
            Self::History(HistoryError::Overlap { .. }) => "ledger_overlap",
            Self::History(_) => "unknown_revision",
            Self::OtherMigrations => "other_migrations",
            Self::LedgerMoved { .. } => "ledger_moved",
            Self::LedgerMismatch { .. } => "ledger_mismatch",
            Self::ToolDied(_) => "tool_died",
            Self::Tool { sqlstate: None, .. } => "tool_failed",
            Self::Setup { .. } => "setup",
            Self::TimedOut(_) | Self::NoAnswer(_) => "timed_out",
            Self::Cancelled => "cancelled",
        }
    }

    /// What to do about it, where that is not plain.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Tool { hint: Some(hint), .. } => Some(hint.clone()),
            Self::Database { .. } | Self::Tool { .. } if self.reason() == CANCELLED => Some(
                "somebody cancelled the statement on the server; once whatever it did harm to is well, `herder retry` \
                 tries it again"
                    .into(),
            ),
            Self::Database { hint: Some(hint), .. } => Some(hint.trim_end_matches('.').to_owned()),
            Self::LedgerMismatch { hint, .. } => Some(hint.clone().unwrap_or_else(|| {
                "the tool must work on the tenant that it is given, and commit".into()
            })),
            Self::Setup { hint, .. } | Self::Untrusted { hint, .. } => Some(hint.clone()),
            Self::TimedOut(_) => Some("[limits] `statement_timeout` is how long a command may run".into()),
            Self::NoAnswer(_) => Some("`current_command` and `history_command` only look: let them answer at once".into()),
            Self::Pooled(_) => Some(POOLED_HINT.into()),
            Self::OffTheList => Some("`herder tenants` shows what the source gives".into()),
            Self::SchemaMissing(schema) => {
                Some(format!("create it (CREATE SCHEMA \"{}\"), or take the tenant off the list", schema.replace('"', "\"\"")))
            }
            Self::Edited { file, .. } => Some(format!("restore {file} as it was applied, and make the change in a new migration")),
            Self::Dirty(revision) => Some(format!(
                "see what revision {revision} left behind, and finish or undo it by hand; then tell the tenant's ledger: where all of it \
                 is applied now, update _sqlx_migrations set success = true, execution_time = 0 where version = {revision}; \
                 where nothing of it is, delete from _sqlx_migrations where version = {revision}"
            )),
            Self::Torn(revision) => Some(format!(
                "see what revision {revision} left behind; undo it by hand, or finish it and stamp the tenant with it; then `herder retry` \
                 goes on from where the ledger is"
            )),
            Self::Left {
                revisions, direction, ..
            } => {
                let (of, last) = (named(revisions), revisions.last().map_or("", String::as_str));
                Some(match direction {
                    Direction::Upgrade => format!(
                        "undo by hand what {of} left behind: then `herder retry` applies all that the ledger lacks; or finish by hand \
                         all that it lacks up to {last}, and stamp the tenant with {last} before that"
                    ),
                    Direction::Downgrade => format!(
                        "put back by hand what undoing {of} took away: then `herder retry` undoes all from where the ledger is; or \
                         finish by hand all that is to be undone down to {last}, and stamp the tenant with what is below it before that"
                    ),
                })
            }
            Self::OtherMigrations => Some("deploy the same migrations to the workers; `herder retry` makes the run take up the ones that it finds".into()),
            Self::History(HistoryError::UnknownLedger(revision)) => {
                Some(format!("build from a commit that has revision {revision}"))
            }
            Self::History(HistoryError::Overlap { below, above }) => Some(format!(
                "delete the row of {below} from its ledger, where that of {above} is true"
            )),
            Self::History(HistoryError::NotListed(_)) => Some("name the revision in full, or list all in [runner] `revisions`, or have `history_command` print them".into()),
            Self::History(HistoryError::AmbiguousStep(..)) => {
                Some("name the revision to go to instead, with --to: steps are counted along a line only".into())
            }
            Self::Irreversible(revision) => Some(format!("write a down migration for revision {revision}")),
            Self::Database { sqlstate, message, .. } => match sqlstate.as_str() {
                "42704" if message.contains("\"plpgsql\"") => {
                    Some("create extension plpgsql in the tenant's database: Herder's own checks are written in it".into())
                }
                "42704" | "42883" => Some("search_path holds the tenant's schema only; if this is an extension's, name its schema in [runner] extra_search_path".into()),
                "3F000" if message.contains("no schema has been selected") => {
                    Some("take RESET and SET search_path out of the migration: Herder sets it, for each tenant".into())
                }
                "25006" => Some(READ_ONLY.into()),
                "42501" => Some("`herder check` prints the privileges that the role needs".into()),
                code => handshake::refused(code, message).map(str::to_owned),
            },
            _ => None,
        }
    }

    /// What is recorded of it.
    pub fn to_job_error(&self) -> JobError {
        let (sqlstate, revision, statement) = match self {
            Self::Left { revisions, cause, .. } => {
                let JobError {
                    sqlstate, statement, ..
                } = cause.to_job_error();
                (sqlstate, revisions.first().cloned(), statement)
            }
            Self::Database {
                sqlstate,
                revision,
                statement,
                ..
            } => {
                let statement = statement.as_deref().map(str::to_owned);
                (Some(sqlstate.clone()), revision.clone(), statement)
            }
            Self::Tool {
                sqlstate,
                revision,
                statement,
                ..
            } => (sqlstate.clone(), revision.clone(), statement.clone()),
            Self::SchemaMissing(_) => (Some("3F000".into()), None, None),
            Self::Edited { revision, .. }
            | Self::Dirty(revision)
            | Self::Torn(revision)
            | Self::Irreversible(revision) => (None, Some(revision.clone()), None),
            _ => (None, None, None),
        };
        JobError {
            reason: self.reason().into(),
            sqlstate,
            message: self.to_string(),
            revision,
            statement: statement.map(|s| cut(s.trim(), STATEMENT_LIMIT)),
            hint: self.hint(),
        }
        .storable()
    }

    /// The same error, saying which revision and statement were at work.
    #[must_use]
    pub fn at(self, at_revision: &str, at_statement: Option<&str>) -> Self {
        match self {
            Self::Database {
                sqlstate,
                message,
                hint,
                session_lives,
                ..
            } => Self::Database {
                sqlstate,
                message,
                hint,
                session_lives,
                revision: Some(at_revision.to_owned()),
                statement: at_statement.map(Into::into),
            },
            other => other,
        }
    }
}

impl From<sqlx::Error> for TenantError {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(e) => {
                let told = e.try_downcast_ref::<PgDatabaseError>();
                Self::Database {
                    sqlstate: e.code().unwrap_or_default().into_owned(),
                    message: e.message().to_owned(),
                    hint: told.and_then(|e| e.hint()).map(Into::into),
                    revision: None,
                    statement: None,
                    session_lives: told.is_some_and(|e| e.severity() == PgSeverity::Error),
                }
            }
            sqlx::Error::RowNotFound
            | sqlx::Error::TypeNotFound { .. }
            | sqlx::Error::ColumnIndexOutOfBounds { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::Decode(_)
            // Text in another encoding than UTF-8, after a SET client_encoding.
            | sqlx::Error::Protocol(_) => {
                Self::UnexpectedAnswer(format!("cannot make sense of what the server answered: {error}"))
            }
            // Everything else that sqlx can say about a query of ours is about the connection.
            other => Self::Connection(other.to_string()),
        }
    }
}

/// `revision a`, or `revisions a, b`.
fn named(revisions: &[String]) -> String {
    let s = if revisions.len() == 1 { "" } else { "s" };
    format!("revision{s} {}", revisions.join(", "))
}

fn are(revisions: &[String]) -> String {
    let are = if revisions.len() == 1 { "is" } else { "are" };
    format!("{} {are}", named(revisions))
}
