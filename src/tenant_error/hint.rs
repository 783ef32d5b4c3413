//! What a person can do about a failure.

use super::TenantError;
use crate::{
    domain::{
        failure::CANCELLED,
        revision::{Direction, HistoryError},
    },
    handshake,
    session::quote,
};

/// What to do about a server that takes no changes.
pub const READ_ONLY: &str = "it takes no changes now: a standby, a failover on its way, or `default_transaction_read_only` of the \
                             server, the database or the role";

/// What to do about a pooler in between.
pub const POOLED_HINT: &str =
    "give a url that leads to the server itself, or to a pooler in session mode that passes on `options`";

impl TenantError {
    /// What to do about it, where that is not plain.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Tool { hint: Some(hint), .. } => hint.clone(),
            Self::Database { .. } | Self::Tool { .. } if self.reason() == CANCELLED => {
                "somebody cancelled the statement on the server; once whatever it did harm to is well, `herder retry` \
                 tries it again"
                    .into()
            }
            Self::Database { hint: Some(hint), .. } => hint.trim_end_matches('.').to_owned(),
            Self::Database { sqlstate, message, .. } => return by_sqlstate(sqlstate, message).map(str::to_owned),
            Self::History(error) => return of_history(error),
            Self::LedgerMismatch { hint: Some(hint), .. } => hint.clone(),
            Self::LedgerMismatch { hint: None, .. } => {
                "the tool must work on the tenant that it is given, and commit".into()
            }
            Self::Setup { hint, .. } | Self::Untrusted { hint, .. } => hint.clone(),
            Self::TimedOut(_) => "[limits] `statement_timeout` is how long a command may run".into(),
            Self::NoAnswer(_) => {
                "`current_command` and `history_command` only look: let them answer at once".into()
            }
            Self::Pooled(_) => POOLED_HINT.into(),
            Self::OffTheList => "`herder tenants` shows what the source gives".into(),
            Self::SchemaMissing(schema) => {
                format!("create it (CREATE SCHEMA {}), or take the tenant off the list", quote(schema))
            }
            Self::Edited { file, .. } => {
                format!("restore {file} as it was applied, and make the change in a new migration")
            }
            Self::Dirty(revision) => of_dirty(revision),
            Self::Torn(revision) => format!(
                "see what revision {revision} left behind; undo it by hand, or finish it and stamp the tenant with it; then \
                 `herder retry` goes on from where the ledger is"
            ),
            Self::Left {
                revisions, direction, ..
            } => of_left(revisions, *direction),
            Self::OtherMigrations => {
                "deploy the same migrations to the workers; `herder retry` makes the run take up the ones that it finds".into()
            }
            Self::Irreversible(revision) => format!("write a down migration for revision {revision}"),
            Self::Tool { hint: None, .. }
            | Self::Connection(_)
            | Self::ControlDatabase(_)
            | Self::TenantSource(_)
            | Self::UnexpectedAnswer(_)
            | Self::Silent(_)
            | Self::Vanished(_)
            | Self::LockedByOther(_)
            | Self::Superseded
            | Self::LedgerMoved { .. }
            | Self::ToolDied(_)
            | Self::Cancelled => return None,
        };
        Some(hint)
    }
}

/// By what the server said that has no word of its own about it.
fn by_sqlstate(sqlstate: &str, message: &str) -> Option<&'static str> {
    match sqlstate {
        "42704" if message.contains("\"plpgsql\"") => {
            Some("create extension plpgsql in the tenant's database: Herder's own checks are written in it")
        }
        "42704" | "42883" => Some(
            "search_path holds the tenant's schema only; if this is an extension's, name its schema in [runner] \
             extra_search_path",
        ),
        "3F000" if message.contains("no schema has been selected") => {
            Some("take RESET and SET search_path out of the migration: Herder sets it, for each tenant")
        }
        "25006" => Some(READ_ONLY),
        "42501" => Some("`herder check` prints the privileges that the role needs"),
        code => handshake::refused(code, message),
    }
}

fn of_history(error: &HistoryError) -> Option<String> {
    Some(match error {
        HistoryError::UnknownLedger(revision) => format!("build from a commit that has revision {revision}"),
        HistoryError::Overlap { below, above } => {
            format!("delete the row of {below} from its ledger, where that of {above} is true")
        }
        HistoryError::NotListed(_) => {
            "name the revision in full, or list all in [runner] `revisions`, or have `history_command` print them".into()
        }
        HistoryError::AmbiguousStep(..) => {
            "name the revision to go to instead, with --to: steps are counted along a line only".into()
        }
        _ => return None,
    })
}

/// A revision that ran without a transaction, as the `sql` runner's ledger knows.
fn of_dirty(revision: &str) -> String {
    format!(
        "see what revision {revision} left behind, and finish or undo it by hand; then tell the tenant's ledger: where all of it \
         is applied now, update _sqlx_migrations set success = true, execution_time = 0 where version = {revision}; \
         where nothing of it is, delete from _sqlx_migrations where version = {revision}"
    )
}

/// Revisions of which a tool has committed a part.
fn of_left(revisions: &[String], direction: Direction) -> String {
    let (of, last) = (named(revisions), revisions.last().map_or("", String::as_str));
    match direction {
        Direction::Upgrade => format!(
            "undo by hand what {of} left behind: then `herder retry` applies all that the ledger lacks; or finish by hand \
             all that it lacks up to {last}, and stamp the tenant with {last} before that"
        ),
        Direction::Downgrade => format!(
            "put back by hand what undoing {of} took away: then `herder retry` undoes all from where the ledger is; or \
             finish by hand all that is to be undone down to {last}, and stamp the tenant with what is below it before that"
        ),
    }
}

/// `revision a`, or `revisions a, b`.
pub(super) fn named(revisions: &[String]) -> String {
    let s = if revisions.len() == 1 { "" } else { "s" };
    format!("revision{s} {}", revisions.join(", "))
}
