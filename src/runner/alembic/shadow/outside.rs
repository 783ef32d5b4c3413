//! Nothing but the scratch tenants may change while a plan is proven.

use super::scratch::Scratch;
use crate::{
    runner::{
        alembic::protocol::Within,
        kind::{Kind, kind, refuses_company},
        statement::{Words, tokens},
    },
    session::literal,
    tenant_error::TenantError,
};

/// Begins the message of [`Within::behind`].
pub(super) const OUTSIDE: &str = "outside: ";

/// What makes a transaction fail that changes or drops anything outside a scratch schema, or, where the scratch tenant is
/// a database, in another one or in what belongs to all of them. Reading elsewhere, and referring to it, is no change.
pub(super) fn within(scratch: &Scratch) -> Within {
    let (database, kind) = match scratch.schema {
        Some(_) => ("", "schema"),
        None => (scratch.name.as_str(), "database"),
    };
    let of = format!(", outside the tenant's {kind}");
    let about = |sql: &str| {
        sql.replace("{schema}", &literal(&scratch.name))
            .replace("{database}", &literal(database))
            .replace("{outside}", &literal(OUTSIDE))
            .replace("{of}", &literal(&of))
    };
    Within {
        before: about(include_str!("outside_before.sql")),
        behind: about(include_str!("nothing_outside.sql")),
    }
}

/// A transaction's statements, with all around them that makes it fail where they reach out of a scratch schema.
pub(super) fn kept_inside(scratch: &Scratch, sql: &str) -> String {
    let Within { before, behind } = within(scratch);
    format!("{before}\n{sql}\n{behind}")
}

/// A statement outside a transaction, with what makes it fail in the same way. None, where nothing can look at it first.
pub(super) fn kept_inside_alone(scratch: &Scratch, statement: &str) -> Option<Vec<String>> {
    let tokens = tokens(statement);
    match kind(statement) {
        // A database of its own has room for whatever commits itself.
        _ if scratch.schema.is_none() && refuses_company(statement) && !tokens.is(0, "call") => (!tokens
            .is_any(1, &["database", "tablespace", "system", "subscription"]))
        .then(|| vec![statement.to_owned()]),
        Kind::CreateIndex { table: target, .. } | Kind::DropIndex { name: target } => {
            let target = format!("set local herder.target = {};", literal(&target));
            Some(vec![kept_inside(scratch, &target), statement.to_owned()])
        }
        // What these do anew is the same as before.
        _ if tokens.is_any(0, &["vacuum", "reindex", "cluster"]) => Some(vec![statement.to_owned()]),
        // In one message with something else, a procedure cannot commit.
        _ if tokens.is(0, "call") || !refuses_company(statement) => {
            Some(vec![kept_inside(scratch, &format!("{statement}\n;"))])
        }
        _ => None,
    }
}

/// What a transaction would have changed outside its schema.
pub(super) fn about_outside(error: &TenantError) -> Option<&str> {
    match error {
        TenantError::Database { message, .. } => message.strip_prefix(OUTSIDE),
        _ => None,
    }
}
