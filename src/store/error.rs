//! What can go wrong with the control database, and what it means.

use std::time::Duration;

use super::ACQUIRE_TIMEOUT;
use crate::{
    database_url::{DatabaseUrl, DatabaseUrlError},
    handshake,
    secret::Secret,
};

/// What can go wrong with the control database.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Its URL is none.
    #[error("the control database's URL is {0}")]
    Url(#[from] DatabaseUrlError),
    /// It cannot be reached, or refused a statement.
    #[error("control database error: {}", told(.0))]
    Database(#[from] sqlx::Error),
    /// They were made by another role, which has not let this one use them.
    #[error("role `{role}` has no access to the control tables ({message})")]
    NotAllowed {
        /// This role.
        role: String,
        /// What the server said.
        message: String,
    },
    /// It does not answer.
    #[error("the control database did not answer in {0:?}")]
    Silent(Duration),
    /// The answer to a commit was lost, and nobody can be asked what became of it.
    #[error("the connection broke during the commit, and it is not known whether that was done")]
    InDoubt(#[source] sqlx::Error),
    /// Its tables cannot be made.
    #[error("cannot set up the control database: {0}")]
    Setup(String),
}

impl StoreError {
    /// In one line, for whoever cannot even begin: with the server's address, and what to do about it.
    pub fn explain(&self, url: &Secret) -> String {
        let address = DatabaseUrl::parse(url.expose()).map_or_else(|_| "?".to_owned(), |url| url.address());
        let place = format!("the control database at {address}");
        match self {
            Self::NotAllowed { role, .. } => {
                format!("{self}: run `herder setup --grant {role}` as the role that created them")
            }
            Self::Database(error) => match (handshake::untrusted(error), error) {
                (Some((why, hint)), _) => {
                    format!("cannot open a trusted connection to {place}: {why}; {hint}")
                }
                (None, sqlx::Error::Database(refusal)) => {
                    let hint = handshake::refused(&refusal.code().unwrap_or_default(), refusal.message());
                    let hint = hint.map(|hint| format!("; {hint}")).unwrap_or_default();
                    format!("{place} refused the connection: {}{hint}", refusal.message())
                }
                (None, sqlx::Error::PoolTimedOut) => {
                    format!("{place} does not answer: check that it is running, and [control] `url`")
                }
                (None, sqlx::Error::Io(error)) => format!("cannot reach {place}: {error}"),
                (None, error) => format!("cannot reach {place}: {error}"),
            },
            other => other.to_string(),
        }
    }

    /// Whether the control database takes no changes.
    pub fn is_about_read_only(&self) -> bool {
        self.is_of_class(&["25006"])
    }

    /// Whether the control database cannot answer now, but may later.
    pub fn is_away(&self) -> bool {
        let error = match self {
            Self::Database(error) => error,
            Self::Silent(_) => return true,
            _ => return false,
        };
        match error {
            // Connection failures, too many connections, a server that goes down or comes up.
            sqlx::Error::Database(_) => self.is_of_class(&["08", "53", "57"]),
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => true,
            _ => false,
        }
    }

    /// Whether a statement may have been done although it ended with this error: its answer was lost. Not so where it was
    /// never sent, or where the server rolled it back.
    pub(crate) fn may_be_done(&self) -> bool {
        match self {
            Self::Database(sqlx::Error::PoolTimedOut) => false,
            Self::Database(sqlx::Error::Database(_)) => !self.is_of_class(&["40"]),
            _ => true,
        }
    }

    /// Whether the server will not have what a statement says (data exceptions, broken constraints, limits of the
    /// program): asked again, it would say the same. Whatever is wrong with the connection or the role may be mended.
    pub(crate) fn is_final(&self) -> bool {
        self.is_of_class(&["22", "23", "54"])
    }

    /// Whether the server refused it with a code of one of these classes.
    fn is_of_class(&self, classes: &[&str]) -> bool {
        let Self::Database(sqlx::Error::Database(refusal)) = self else {
            return false;
        };
        let code = refusal.code();
        code.is_some_and(|code| classes.iter().any(|class| code.starts_with(class)))
    }
}

/// What happened, where sqlx speaks of a pool that nobody has heard of, or adds to the server's words where that is said in its source.
fn told(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::PoolTimedOut => {
            format!("no connection to it was to be had in {ACQUIRE_TIMEOUT:?}: it is away, or slow to answer")
        }
        sqlx::Error::Database(refusal) => refusal.message().to_owned(),
        error => error.to_string(),
    }
}
