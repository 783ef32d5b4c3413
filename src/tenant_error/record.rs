//! What is written down of a failure.

use super::TenantError;
use crate::domain::{
    failure::{JobError, SQL_ERROR, STATEMENT_LIMIT, cut, reason_of_sqlstate},
    revision::HistoryError,
};

impl TenantError {
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
            Self::Connection(_) | Self::Silent(_) | Self::Vanished(_) => "connection_lost",
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
}
