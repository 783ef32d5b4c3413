//! What can go wrong in a tenant, and whether trying again can help.

mod hint;
mod record;

use std::time::Duration;

use sqlx::postgres::{PgDatabaseError, PgSeverity};

use self::hint::named;
pub use self::hint::{POOLED_HINT, READ_ONLY};
use crate::domain::{
    failure::{FailureClass, classify_sqlstate, is_about_server, is_refusal},
    revision::{Direction, HistoryError},
};

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
    /// A server gives no sign of life any more. Its sessions may still be there.
    #[error("the server at {0} gives no sign of life any more")]
    Vanished(String),
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
    /// A piece of a revision ran outside a transaction and broke off, and the ledger does not say so: only Herder knows.
    #[error("revision {0} is half applied: a piece of it ran outside a transaction and broke off")]
    Torn(String),
    /// The migration tool committed a part of a revision, or of several, which its ledger does not know of.
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
    /// What a tool, or Herder in its place, has to say against going on: of no revision, and of no statement.
    pub(crate) fn tool(message: impl Into<String>, hint: Option<&str>) -> Self {
        Self::Tool {
            message: message.into(),
            sqlstate: None,
            revision: None,
            statement: None,
            hint: hint.map(str::to_owned),
        }
    }

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
            | Self::Vanished(_)
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

    /// Adds which revision and statement were at work.
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

fn are(revisions: &[String]) -> String {
    let are = if revisions.len() == 1 { "is" } else { "are" };
    format!("{} {are}", named(revisions))
}
