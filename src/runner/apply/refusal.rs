//! What the statements that Herder adds to a plan say where a tenant is not as the plan wants it: SQLSTATEs of our own,
//! in a class that PostgreSQL and the standard leave to others.

use serde::Deserialize;
use sqlx::postgres::PgDatabaseError;

use crate::{domain::revision::Ledger, session::literal, tenant_error::TenantError};

/// Somebody else holds the tenant's lock.
pub(super) const LOCKED: &str = "YH001";

/// The tenant's schema is not where unqualified names lead. The detail is its name.
pub(super) const NO_SCHEMA: &str = "YH002";

/// The ledger is not where the step begins. The detail is a JSON list of what stands in it.
pub(super) const MOVED: &str = "YH003";

/// The step led unqualified names to another schema. The detail is that schema's name.
pub(super) const WANDERED: &str = "YH004";

/// A migration that was applied has other content now. The detail is an object with `revision` and `file`.
pub(crate) const EDITED: &str = "YH005";

/// A migration outside a transaction broke in the middle. The detail is the revision.
pub(crate) const DIRTY: &str = "YH006";

/// The plan is not for this tenant, whatever its ledger says. The detail is where that is.
pub(crate) const UNFIT: &str = "YH007";

/// Why a message did not go through. The tenant is as it was before the transaction that refused.
#[derive(Debug)]
pub(super) enum Refusal {
    /// Somebody else holds the tenant's lock.
    Locked,
    /// The ledger stands elsewhere.
    Moved(Ledger),
    /// The plan is not for this tenant: that is at such a place.
    Unfit(String),
    /// Something is not as the plan wants it. The careful form of the same statements says what.
    Unexpected,
    /// All else.
    Failed(TenantError),
}

impl From<TenantError> for Refusal {
    fn from(error: TenantError) -> Self {
        Self::Failed(error)
    }
}

impl From<sqlx::Error> for Refusal {
    fn from(error: sqlx::Error) -> Self {
        Self::Failed(error.into())
    }
}

#[derive(Deserialize)]
struct Edited {
    revision: String,
    file: String,
}

/// What a statement of ours said. None: the server said it.
pub(super) fn refusal(error: &PgDatabaseError, revision: Option<&str>) -> Option<Refusal> {
    let detail = error.detail().unwrap_or_default();
    Some(match error.code() {
        LOCKED => Refusal::Locked,
        NO_SCHEMA => TenantError::SchemaMissing(detail.to_owned()).into(),
        MOVED => Refusal::Moved(Ledger {
            revisions: serde_json::from_str(detail).ok()?,
            half: None,
        }),
        WANDERED => TenantError::Tool {
            message: format!(
                "search_path was set to schema `{detail}`: what was made there is not the tenant's"
            ),
            sqlstate: None,
            revision: revision.map(str::to_owned),
            statement: None,
            hint: Some("take SET search_path out of the migration: Herder sets it, for each tenant".into()),
        }
        .into(),
        EDITED => {
            let Edited { revision, file } = serde_json::from_str(detail).ok()?;
            TenantError::Edited { revision, file }.into()
        }
        DIRTY => TenantError::Dirty(detail.to_owned()).into(),
        UNFIT => Refusal::Unfit(detail.to_owned()),
        _ => return None,
    })
}

/// What stands in the error of a quick check.
const UNEXPECTED: &str = "herder: not as the plan wants it";

/// What stands in the error of a step that ended its transaction.
const ENDED: &str = "herder: it ended its transaction";

/// A statement that fails unless `condition` is true, so that its careful form is asked.
pub(super) fn expect(condition: &str) -> String {
    unless(condition, UNEXPECTED)
}

/// A statement that fails unless its transaction is the one that a step began with.
pub(super) fn unended() -> String {
    unless(
        "pg_catalog.current_setting('transaction_deferrable') = 'on'",
        ENDED,
    )
}

/// Without PL/pgSQL, which is compiled anew each time; it can only say that something is wrong: by a cast that fails, of a text that
/// nobody knows before it runs.
fn unless(condition: &str, words: &str) -> String {
    format!(
        "select case when ({condition}) is not true \
         then pg_catalog.concat(pg_catalog.current_schema(), ' {words}')::pg_catalog.int4 end"
    )
}

/// Whether a statement of ours found that a step had ended its transaction.
pub(super) fn is_ended(error: &PgDatabaseError) -> bool {
    says(error, ENDED)
}

fn says(error: &PgDatabaseError, words: &str) -> bool {
    error.code() == "22P02" && error.message().contains(words)
}

/// Whether a statement of ours that came `before` a step, or behind it, failed for being a quick one.
pub(super) fn is_unexpected(error: &PgDatabaseError, before: bool) -> bool {
    // A ledger that is not there cannot be locked.
    let missing = before && error.code() == "42P01";
    missing || says(error, UNEXPECTED)
}

/// The PL/pgSQL that refuses, with a detail that is an SQL expression.
pub(crate) fn raise(code: &str, message: &str, detail: &str) -> String {
    format!(
        "raise exception using errcode = '{code}', message = {}, detail = {detail}",
        literal(message)
    )
}

/// An anonymous block with this declaration and body, whatever names stand in them.
pub(crate) fn block(declare: &str, body: &str) -> String {
    let mut tag = "$herder$".to_owned();
    while declare.contains(&tag) || body.contains(&tag) {
        tag.insert(tag.len() - 1, '_');
    }
    format!("do {tag} declare {declare} begin {body} end {tag}")
}
