//! What a statement of a rendering does, by its words, as far as it matters for where a plan may have it.

use crate::runner::{
    kind::OF_TRANSACTIONS,
    statement::{Token, Words, tokens},
};

/// The word by which a statement begins or ends a transaction.
pub(super) fn transaction_word(statement: &str) -> Option<String> {
    let tokens = tokens(statement);
    let found = OF_TRANSACTIONS.into_iter().find(|word| tokens.is(0, word));
    found.map(str::to_ascii_uppercase)
}

/// Whether it only changes a setting: `SET …`, or `SELECT set_config(…)`.
pub(super) fn is_setting(statement: &str) -> bool {
    let tokens = tokens(statement);
    let other_set = tokens.is_any(1, &["transaction", "constraints", "characteristics"]);
    (tokens.is(0, "set") && !other_set)
        || (tokens.is(0, "select")
            && (tokens.is(1, "set_config") || (tokens.is(1, "pg_catalog") && tokens.is(3, "set_config"))))
}

/// Whether it changes a setting beyond its transaction, and not a limit.
pub(super) fn is_lasting(statement: &str) -> bool {
    let tokens = tokens(statement);
    let is_called = says(&tokens, "set_config");
    is_called && (!says(&tokens, "true") || tokens.is(0, "do") && says(&tokens, "false"))
        || tokens.is(0, "reset")
        || is_setting(statement) && tokens.is(0, "set") && !tokens.is(1, "local") && !is_limit(&tokens)
}

/// Whether a word stands in it, or in the body of a DO.
fn says(tokens: &[Token<'_>], word: &str) -> bool {
    let is_block = tokens.is(0, "do");
    let in_body = |t: &Token<'_>| is_block && t.text.to_ascii_lowercase().contains(word);
    tokens.iter().any(|t| t.is(word) || in_body(t))
}

/// Whether it sets one of the limits, of which nothing hangs but how long something may take.
fn is_limit(set: &[Token<'_>]) -> bool {
    let name = set.iter().skip(1).find(|t| !t.is_any(&["local", "session"]));
    name.is_some_and(|t| t.text.to_ascii_lowercase().ends_with("_timeout"))
}

/// Whether it is not a revision's, but what `warm/looks.py` says in place of the look of a revision's at what is there.
pub(super) fn looks(statement: &str) -> bool {
    let tokens = tokens(statement);
    let is_body = |token: &Token<'_>| token.text.starts_with("$herder_checkfirst$");
    tokens.is(0, "do") && tokens.get(1).is_some_and(is_body)
}

/// Whether what it does is over when its transaction is: a local setting, deferred constraints, a table's lock.
pub(super) fn ends_with_its_transaction(statement: &str) -> bool {
    let tokens = tokens(statement);
    tokens.is(0, "set") && tokens.is_any(1, &["local", "constraints", "transaction"]) && !is_limit(&tokens)
        || tokens.is(0, "lock")
        || says(&tokens, "set_config")
        || tokens.windows(2).any(|pair| {
            pair[0].is("on") && pair[1].is("commit") || pair[0].is("initially") && pair[1].is("deferred")
        })
}

/// The setting where there is no transaction that it could be local to.
pub(super) fn for_session(setting: &str) -> Option<String> {
    let tokens = tokens(setting);
    let second = tokens.get(1)?;
    match (tokens.is(0, "set"), second.is("local")) {
        (true, true) => Some(format!("SET {}", rest_after(setting, second.text)?)),
        (true, false) => Some(setting.to_owned()),
        (false, _) => None,
    }
}

/// What comes behind a word of a text that the word is a part of.
fn rest_after<'a>(text: &'a str, word: &str) -> Option<&'a str> {
    let end = (word.as_ptr() as usize).checked_sub(text.as_ptr() as usize)? + word.len();
    text.get(end..).map(str::trim_start)
}

/// Whether the schema's name stands somewhere without quotes: there, a tenant's name would be read as SQL.
pub(super) fn names_schema_without_quotes(text: &str) -> bool {
    let tokens = tokens(text);
    tokens
        .windows(3)
        .any(|t| t[0].text.ends_with("Herder") && t[1].text == ":" && t[2].text.starts_with("Tenant"))
}
