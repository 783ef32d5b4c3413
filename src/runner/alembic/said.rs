//! What a live migration says to the server beside what its plan says. A proof's scratch schemas have no rows of a tenant's, so
//! an UPDATE that only one of them makes leaves no difference behind: it must be seen where it is said.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::{
    domain::{
        failure::cut,
        plan::{Plan, SCHEMA, StepForm},
    },
    runner::statement::{Token, split, tokens},
    session::quote,
};

/// A statement of a revision, as a live migration sent it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Said {
    /// The revision.
    pub revision: String,
    /// Its text.
    pub statement: String,
    /// Whether its values are sent beside it.
    pub has_values: bool,
    /// Whether it was sent outside a transaction.
    pub autocommit: bool,
}

/// A statement, to be compared.
struct Statement {
    text: String,
    exact: Vec<String>,
    /// With one sign for each value, or list of values, however it is written.
    masked: Vec<String>,
    is_outside: bool,
}

impl Statement {
    fn new(text: &str, is_outside: bool) -> Self {
        Self {
            text: text.to_owned(),
            exact: words(text, false),
            masked: words(text, true),
            is_outside,
        }
    }

    /// Those of a text. Rows that are inserted one by one are taken together, as the other side may have them.
    fn all<'a>(texts: impl Iterator<Item = (&'a str, bool)>) -> Vec<Self> {
        let mut all: Vec<Self> = texts
            .flat_map(|(text, is_outside)| {
                let each = split(text).into_iter().map(move |range| &text[range]);
                each.map(move |text| Self::new(text, is_outside))
            })
            .collect();
        all.dedup_by(|next, one| {
            one.masked.first().is_some_and(|w| w == "insert") && next.masked == one.masked
        });
        all
    }
}

/// The first difference between a live migration of a scratch tenant and the plan. `besides`: what env.py says outside all
/// revisions. `schema`: the scratch tenant's. `ledger`: the version table.
pub(super) fn difference(
    said: &[Said],
    besides: &[String],
    plan: &Plan,
    schema: Option<&str>,
    ledger: &str,
) -> Option<String> {
    let texts: Vec<(String, bool)> = in_schema(plan, schema.unwrap_or(SCHEMA));
    let mut planned = Statement::all(
        texts
            .iter()
            .map(|(text, is_outside)| (text.as_str(), *is_outside)),
    )
    .into_iter()
    .peekable();
    let besides: BTreeSet<Vec<String>> = besides.iter().map(|text| words(text, false)).collect();
    let is_aside = |of: &Statement| is_aside(&of.exact, ledger) || besides.contains(&of.exact);
    let live = said.iter().flat_map(|said| {
        let all = Statement::all(std::iter::once((said.statement.as_str(), said.autocommit)));
        all.into_iter().map(move |statement| (said, statement))
    });
    let mut last: Option<Vec<String>> = None;
    for (said, live) in live {
        let is_it = |planned: &Statement| match said.has_values {
            true => planned.masked == live.masked,
            false => planned.exact == live.exact,
        };
        let is_more =
            live.masked.first().is_some_and(|w| w == "insert") && last.as_ref() == Some(&live.masked);
        if live.exact.iter().any(|word| word == "version_num") {
            continue;
        }
        while planned.next_if(|each| !is_it(each) && is_aside(each)).is_some() {}
        match planned.next_if(is_it) {
            Some(same) if same.is_outside != live.is_outside => {
                let (live_is, plan_is) = match same.is_outside {
                    true => ("in", "outside"),
                    false => ("outside", "in"),
                };
                return Some(format!(
                    "`{}` runs {live_is} a transaction where Alembic is connected, and {plan_is} one in its script",
                    cut(&live.text, 120)
                ));
            }
            Some(_) => last = Some(live.masked),
            // One more of the rows that the plan inserts.
            None if is_more || is_a_look(&live.exact) => {}
            None => {
                return Some(format!(
                    "revision {}: `{}` runs only where Alembic is connected",
                    said.revision,
                    cut(&live.text, 120)
                ));
            }
        }
    }
    let more = planned.find(|each| !is_aside(each))?;
    Some(format!("`{}` is only in its script", cut(&more.text, 120)))
}

/// The texts of a plan for a schema, and whether each runs outside a transaction.
fn in_schema(plan: &Plan, schema: &str) -> Vec<(String, bool)> {
    let place = |text: &str| text.replace(SCHEMA, schema).replace(&quote(schema), schema);
    let texts = |form: &StepForm| match form {
        StepForm::Transaction { sql } => vec![(place(sql), false)],
        StepForm::Outside { statements, .. } => statements.iter().map(|s| (place(s), true)).collect(),
    };
    plan.steps.iter().flat_map(|step| texts(&step.form)).collect()
}

fn words(text: &str, masked: bool) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut tokens = tokens(text).into_iter().peekable();
    while let Some(token) = tokens.next() {
        let word = word(&token);
        let follows = |tokens: &mut std::iter::Peekable<std::vec::IntoIter<Token<'_>>>, text: &str| {
            tokens.next_if(|t| t.text == text).is_some()
        };
        if !masked {
            words.push(word);
            continue;
        }
        // `%(name)s`, `%s`, `$1`, and literals.
        let is_value = match token.text {
            "%" if follows(&mut tokens, "(") => {
                tokens.next();
                follows(&mut tokens, ")");
                follows(&mut tokens, "s")
            }
            "%" => follows(&mut tokens, "s"),
            "$" => tokens.next_if(|t| is_number(t.text)).is_some(),
            text => {
                is_number(text) || token.is_text() || ["null", "true", "false"].iter().any(|w| token.is(w))
            }
        };
        match (is_value, token.text) {
            // The decimals of a number.
            (true, _) if words.ends_with(&["?".into(), ".".into()]) => {
                words.pop();
            }
            (true, _) => {
                if words.last().is_some_and(|last| last == "-") {
                    words.pop();
                }
                match words.ends_with(&["?".into(), ",".into()]) {
                    true => drop(words.pop()),
                    false => words.push("?".into()),
                }
            }
            (_, ":") if words.last().is_some_and(|last| last == "?") && follows(&mut tokens, ":") => {
                skip_type(&mut tokens);
            }
            // The rows themselves are compared where they were inserted.
            _ if token.is("values") && words.first().is_some_and(|first| first == "insert") => break,
            _ => words.push(word),
        }
    }
    words
}

/// What a name or a keyword is, in quotes or not; anything else as it stands.
fn word(token: &Token<'_>) -> String {
    token.name().unwrap_or_else(|| token.text.to_owned())
}

fn is_number(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_digit())
}

/// The type behind `::`.
fn skip_type(tokens: &mut std::iter::Peekable<std::vec::IntoIter<Token<'_>>>) {
    const MORE: [&str; 6] = ["varying", "precision", "with", "without", "time", "zone"];
    tokens.next();
    while tokens.next_if(|t| t.text == ".").is_some() {
        tokens.next();
    }
    loop {
        while tokens.next_if(|t| MORE.iter().any(|word| t.is(word))).is_some() {}
        if tokens.next_if(|t| t.text == "(").is_some() {
            while tokens.next_if(|t| t.text != ")").is_some() {}
            tokens.next();
        } else if tokens.next_if(|t| t.text == "[").is_some() {
            tokens.next_if(|t| t.text == "]");
        } else {
            break;
        }
    }
}

/// What a plan may say without a revision having said it: settings, savepoints, and the ledger.
fn is_aside(words: &[String], ledger: &str) -> bool {
    const ASIDE: [&str; 11] = [
        "set",
        "reset",
        "begin",
        "start",
        "commit",
        "end",
        "savepoint",
        "release",
        "rollback",
        "select",
        "show",
    ];
    let makes_schema = ["create", "schema", "if"];
    words.iter().any(|word| word == ledger)
        || words.starts_with(&makes_schema.map(str::to_owned))
        || words.first().is_some_and(|word| ASIDE.contains(&word.as_str()))
}

/// What Alembic and SQLAlchemy ask of the server before they say something: whether a type is there, for one.
fn is_a_look(words: &[String]) -> bool {
    const LOOKS: [&str; 3] = ["information_schema", "current_schema", "version"];
    let first = words.first().map_or("", String::as_str);
    let of_catalogs = words
        .iter()
        .any(|word| word.starts_with("pg_") || LOOKS.contains(&word.as_str()));
    ["select", "with", "show"].contains(&first) && of_catalogs
        || ["savepoint", "release", "rollback"].contains(&first)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(statement: &str, has_values: bool) -> Said {
        Said {
            revision: "a".into(),
            statement: statement.into(),
            has_values,
            autocommit: false,
        }
    }

    fn differ(live: &[Said], plan: &Plan) -> Option<String> {
        difference(live, &[], plan, Some("t_1"), "alembic_version")
    }

    #[test]
    fn values_are_the_same_however_they_are_sent() {
        let sql = "SET LOCAL search_path TO \"Herder:Tenant\";\n\
                   UPDATE \"Herder:Tenant\".t SET a=-1.50, b='it''s'::VARCHAR(9), c=NULL WHERE t.d IN (1, 2);\n\
                   INSERT INTO t (a) VALUES (1);\nINSERT INTO t (a) VALUES (2);\n\
                   ALTER TABLE t ADD COLUMN e INTEGER DEFAULT 3;\n\
                   UPDATE alembic_version SET version_num='a' WHERE alembic_version.version_num = 'b';";
        let live = [
            said(
                "UPDATE t_1.t SET a=%(a)s::NUMERIC(9, 2), b=%(b)s::VARCHAR, c=%(c)s WHERE t.d IN (%(d_1)s, %(d_2)s)",
                true,
            ),
            said("INSERT INTO t (a) VALUES ($1::INTEGER)", true),
            said("SELECT pg_catalog.pg_type.typname FROM pg_catalog.pg_type", false),
            said("alter table t add column e integer default 3", false),
            said(
                "UPDATE alembic_version SET version_num=$1 WHERE alembic_version.version_num = $2",
                true,
            ),
        ];
        assert_eq!(differ(&live, &Plan::of_sql(sql)), None);
    }

    #[test]
    fn what_only_one_of_them_says_is_a_difference() {
        let (update, other) = ("update t set n = 9", "update t set n = 8");
        let of = |live: &str, plan: &str| differ(&[said(live, false)], &Plan::of_sql(plan));
        assert_eq!(of(update, update), None);
        assert_eq!(
            of(update, other).as_deref(),
            Some("revision a: `update t set n = 9` runs only where Alembic is connected")
        );
        assert_eq!(
            of(update, &format!("{update}; {other}")).as_deref(),
            Some("`update t set n = 8` is only in its script")
        );
        assert!(of("select count(*) from t", "").is_some());
        assert!(of("set session_replication_role = replica", "").is_some());
    }

    #[test]
    fn a_transaction_on_one_side_only_is_a_difference() {
        let outside = Plan::of([StepForm::Outside {
            announce: None,
            withdraw: None,
            statements: vec!["create table t (a int)".into()],
            record: None,
        }]);
        assert_eq!(
            differ(&[said("create table t (a int)", false)], &outside).as_deref(),
            Some(
                "`create table t (a int)` runs in a transaction where Alembic is connected, and outside one in its script"
            )
        );
    }
}
