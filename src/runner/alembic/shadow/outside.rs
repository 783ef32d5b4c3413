//! Nothing but the scratch tenants may change while a plan is proven.

use super::scratch::Scratch;
use crate::{
    runner::{
        RunnerError,
        kind::{Kind, kind, refuses_company},
        statement::tokens,
    },
    session::literal,
};

/// Begins the message of [`nothing_outside`].
pub(super) const OUTSIDE: &str = "outside the tenant's schema: ";

/// A statement that fails where the open transaction has changed anything outside a scratch schema, or in another
/// database than a scratch one. Reading elsewhere, and referring to it, is no change. So it does where `herder.target` is elsewhere.
pub(super) fn nothing_outside(scratch: &Scratch) -> String {
    let database = match scratch.schema {
        Some(_) => "",
        None => scratch.name.as_str(),
    };
    include_str!("nothing_outside.sql")
        .replace("{schema}", &literal(&scratch.name))
        .replace("{database}", &literal(database))
        .replace("{outside}", &literal(OUTSIDE))
}

/// A transaction's statements, with all around them that makes it fail where they change or drop anything outside a
/// scratch schema.
pub(super) fn kept_inside(scratch: &Scratch, sql: &str) -> String {
    let before = include_str!("dropped_outside.sql").replace("{schema}", &literal(&scratch.name));
    let dropped = format!(
        "do $herder$ declare seen refcursor := 'herder_outside'; what text; begin
         fetch seen into what;
         if what is not null then raise exception using message = {} || what; end if;
         end $herder$;",
        literal(OUTSIDE)
    );
    format!("{before}\n{sql}\n{dropped}\n{}", nothing_outside(scratch))
}

/// A statement outside a transaction, with what makes it fail in the same way. None, where nothing can look at it first.
pub(super) fn kept_inside_alone(scratch: &Scratch, statement: &str) -> Option<Vec<String>> {
    let tokens = tokens(statement);
    let is = |words: &[&str]| {
        tokens
            .first()
            .is_some_and(|first| words.iter().any(|word| first.is(word)))
    };
    match kind(statement) {
        Kind::CreateIndex { table: target, .. } | Kind::DropIndex { name: target } => {
            let target = format!("set local herder.target = {};", literal(&target));
            Some(vec![target + &nothing_outside(scratch), statement.to_owned()])
        }
        // What these do anew is the same as before.
        _ if is(&["vacuum", "reindex", "cluster"]) => Some(vec![statement.to_owned()]),
        // In one message with something else, a procedure cannot commit.
        _ if is(&["call"]) || !refuses_company(statement) => {
            Some(vec![kept_inside(scratch, &format!("{statement}\n;"))])
        }
        _ => None,
    }
}

/// What a transaction would have changed outside its schema.
pub(super) fn about_outside(error: &RunnerError) -> Option<String> {
    match error {
        RunnerError::Database { message, .. } => {
            let what = message.strip_prefix(OUTSIDE)?;
            Some(format!("{what}, outside the tenant's schema"))
        }
        _ => None,
    }
}
