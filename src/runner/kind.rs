//! What a statement does, as far as it matters for running it outside a transaction, and for running it again.

use super::statement::{Token, Words, statements, tokens};

/// What a statement outside a transaction does, as far as it matters for doing it again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// CREATE INDEX CONCURRENTLY. Broken off, it leaves an invalid index behind.
    CreateIndex {
        /// The index, without quotes.
        name: String,
        /// Its table as written.
        table: String,
    },
    /// DROP INDEX CONCURRENTLY. Broken off, it leaves an invalid index behind.
    DropIndex {
        /// The index as written.
        name: String,
    },
    /// ALTER TYPE … ADD VALUE.
    AddValue {
        /// The type as written.
        name: String,
        /// The new value.
        value: String,
    },
    /// It may be done any number of times.
    Harmless,
    /// Nobody knows what doing it twice means.
    Once,
}

/// The words that statements about a transaction begin with.
pub(crate) const OF_TRANSACTIONS: [&str; 8] = [
    "begin",
    "start",
    "commit",
    "end",
    "rollback",
    "abort",
    "savepoint",
    "release",
];

/// Whether it begins or ends a transaction.
pub(crate) fn controls_transaction(statement: &str) -> bool {
    let tokens = tokens(statement);
    match tokens.first() {
        // To a savepoint: the transaction goes on.
        Some(t) if t.is("rollback") => !(tokens.is(1, "to") || tokens.is(2, "to")),
        Some(t) if t.is_any(&["prepare", "start"]) => tokens.is(1, "transaction"),
        Some(t) => t.is_any(&["begin", "commit", "end", "abort"]),
        None => false,
    }
}

/// Whether it commits on its own, and so refuses a transaction and a message with others in it.
pub(crate) fn refuses_company(statement: &str) -> bool {
    let tokens = tokens(statement);
    let concurrently = tokens.iter().any(|t| t.is("concurrently"));
    match tokens.first() {
        Some(t) if t.is_any(&["create", "drop"]) => {
            (concurrently && (tokens.is(1, "index") || tokens.is(2, "index")))
                || tokens.is_any(1, &["database", "tablespace", "subscription"])
        }
        Some(t) if t.is("alter") => {
            (concurrently && tokens.is(1, "table")) || tokens.is_any(1, &["system", "database"])
        }
        Some(t) => t.is_any(&["vacuum", "reindex", "cluster", "call"]),
        None => false,
    }
}

/// Whether a message that the server refused left nothing behind.
pub(crate) fn undoes_itself(message: &str) -> bool {
    !statements(message).any(|statement| {
        let block = tokens(statement).is(0, "do");
        block || controls_transaction(statement) || refuses_company(statement)
    })
}

/// What a statement means for a retry.
pub(crate) fn kind(statement: &str) -> Kind {
    let tokens = tokens(statement);
    let mut rest = tokens.as_slice();
    if take(&mut rest, &["create"]) {
        take(&mut rest, &["unique"]);
        if take(&mut rest, &["index", "concurrently"]) {
            take(&mut rest, &["if", "not", "exists"]);
            return create_index(rest).unwrap_or(Kind::Once);
        }
        return Kind::Once;
    }
    if take(&mut rest, &["drop", "index", "concurrently"]) {
        take(&mut rest, &["if", "exists"]);
        return path(rest).map_or(Kind::Once, |name| Kind::DropIndex { name });
    }
    if take(&mut rest, &["alter", "type"]) {
        return add_value(rest).unwrap_or(Kind::Once);
    }
    match tokens.first() {
        Some(t) if t.is_any(&["set", "reset", "vacuum", "analyze"]) => Kind::Harmless,
        _ => Kind::Once,
    }
}

/// `type ADD VALUE [IF NOT EXISTS] 'value' …`
fn add_value(mut rest: &[Token<'_>]) -> Option<Kind> {
    let name = path(rest)?;
    while !take(&mut rest, &["add", "value"]) {
        rest = rest.get(1..)?;
    }
    take(&mut rest, &["if", "not", "exists"]);
    let value = rest.first()?.string()?;
    Some(Kind::AddValue { name, value })
}

/// `name ON [ONLY] table …`. An index without a name cannot be found again.
fn create_index(mut rest: &[Token<'_>]) -> Option<Kind> {
    let (name, behind) = rest.split_first()?;
    rest = behind;
    if name.is("on") || !take(&mut rest, &["on"]) {
        return None;
    }
    take(&mut rest, &["only"]);
    Some(Kind::CreateIndex {
        name: name.name()?,
        table: path(rest)?,
    })
}

/// `a`, `a.b`, with quotes as they stand.
fn path(tokens: &[Token<'_>]) -> Option<String> {
    let (first, mut rest) = tokens.split_first()?;
    first.name()?;
    let mut path = first.text.to_owned();
    while let [dot, next, behind @ ..] = rest
        && dot.text == "."
    {
        next.name()?;
        path = format!("{path}.{}", next.text);
        rest = behind;
    }
    Some(path)
}

fn take(rest: &mut &[Token<'_>], keywords: &[&str]) -> bool {
    let found = rest.len() >= keywords.len() && keywords.iter().zip(rest.iter()).all(|(k, t)| t.is(k));
    if found {
        *rest = &rest[keywords.len()..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_apart() {
        let create = |name: &str, table: &str| Kind::CreateIndex {
            name: name.into(),
            table: table.into(),
        };
        assert_eq!(
            kind("CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS Users_Email ON ONLY \"Us er\" (email)"),
            create("users_email", "\"Us er\"")
        );
        assert_eq!(
            kind("create index concurrently \"I\"\"x\" on a.b using gin (c)"),
            create("I\"x", "a.b")
        );
        assert_eq!(kind("create index concurrently on t (a)"), Kind::Once);
        assert_eq!(kind("create index i on t (a)"), Kind::Once);
        assert_eq!(
            kind("drop index concurrently s.\"I\""),
            Kind::DropIndex {
                name: "s.\"I\"".into()
            }
        );
        let value = |name: &str, value: &str| Kind::AddValue {
            name: name.into(),
            value: value.into(),
        };
        assert_eq!(
            kind("alter type a.\"B\" add value if not exists 'it''s' before 'x'"),
            value("a.\"B\"", "it's")
        );
        assert_eq!(kind("alter type a rename value 'x' to 'y'"), Kind::Once);
        assert_eq!(kind("alter type a add value E'x'"), Kind::Once);
        assert_eq!(kind("SET statement_timeout = 0"), Kind::Harmless);
        assert_eq!(kind("update t set a = a + 1"), Kind::Once);
    }

    #[test]
    fn what_the_server_refused_is_undone_unless_it_commits_itself() {
        assert!(undoes_itself("-- no-transaction\nalter type t add value 'x'"));
        assert!(undoes_itself(
            "insert into a values (1); insert into b values (1)"
        ));
        assert!(!undoes_itself("create index concurrently i on t (a)"));
        assert!(!undoes_itself("do $$ begin commit; end $$"));
        assert!(!undoes_itself("begin; select 1; commit"));
    }
}
