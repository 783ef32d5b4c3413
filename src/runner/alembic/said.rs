//! What a live migration says to the server beside what its plan says. A proof's scratch schemas have no rows of a tenant's, so
//! an UPDATE that only one of them makes leaves no difference behind: it must be seen where it is said.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::{aside::is_aside, words::looks};
use crate::{
    domain::{
        failure::cut,
        plan::{Plan, SCHEMA, StepForm},
    },
    runner::statement::{Token, statements, tokens},
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

/// A statement of env.py's own, outside all revisions.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Beside {
    /// Its text.
    pub statement: String,
    /// The texts among the values that are sent beside it.
    pub texts: Vec<String>,
    /// What SQLAlchemy was asked (`has_table`), where the text is its own.
    pub question: Option<String>,
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

    /// The statements of texts, but for a plan's looks at what is there: live, they are SQLAlchemy's questions. Rows that are inserted one by
    /// one are taken together, as the other side may have them.
    fn all<'a>(texts: impl Iterator<Item = (&'a str, bool)>) -> Vec<Self> {
        let mut all: Vec<Self> = texts
            .flat_map(|(text, is_outside)| {
                let each = statements(text);
                let each = each.filter(|text| !looks(text));
                each.map(move |text| Self::new(text, is_outside))
            })
            .collect();
        all.dedup_by(|next, one| {
            one.masked.first().is_some_and(|w| w == "insert") && next.masked == one.masked
        });
        all
    }
}

/// Two sides that are compared: a live migration of a scratch tenant, and the plan.
pub(super) struct Sides<'a> {
    pub(super) plan: &'a Plan,
    /// The scratch tenant's.
    pub(super) schema: Option<&'a str>,
    /// The version table.
    pub(super) ledger: &'a str,
}

impl Sides<'_> {
    /// What env.py says outside all revisions (a setting that triggers read, a refresh behind them) where a plan does not, or asks
    /// where tenants may answer one thing or another.
    pub(super) fn missing(&self, besides: &[Beside]) -> Option<String> {
        self.missing_among(besides, &self.planned())
    }

    fn missing_among(&self, besides: &[Beside], planned: &[Statement]) -> Option<String> {
        besides.iter().find_map(|beside| {
            let all = Statement::all(std::iter::once((beside.statement.as_str(), false)));
            let is_said = |said: &Statement| {
                let mut planned = planned.iter();
                planned.any(|planned| bare(&planned.exact) == bare(&said.exact))
            };
            let is_repeated = |said: &Statement| self.plan.steps.len() > 1 && is_local(&said.exact);
            let mut candidates = all.iter().filter(|said| !self.is_aside(beside, said));
            let missing = candidates.find(|said| is_repeated(said) || !is_said(said))?;
            Some(match &beside.question {
                None if is_said(missing) => format!(
                    "env.py says `{}` for one transaction, and a plan in each of its {} steps",
                    cut(&missing.text, 120),
                    self.plan.steps.len()
                ),
                Some(question) => format!(
                    "env.py asks the database (`{question}`), which may give another answer in each tenant, or tomorrow"
                ),
                None => format!(
                    "env.py says `{}` only where it is connected",
                    cut(&missing.text, 120)
                ),
            })
        })
    }

    fn is_aside(&self, beside: &Beside, said: &Statement) -> bool {
        beside.question.is_none() && is_aside(&said.text, &beside.texts, self.schema, self.ledger)
    }

    fn planned(&self) -> Vec<Statement> {
        let texts = in_schema(self.plan, self.schema.unwrap_or(SCHEMA));
        Statement::all(
            texts
                .iter()
                .map(|(text, is_outside)| (text.as_str(), *is_outside)),
        )
    }

    /// The first difference.
    pub(super) fn difference(&self, said: &[Said], besides: &[Beside]) -> Option<String> {
        let mut planned = self.planned().into_iter().peekable();
        let aside: BTreeSet<Vec<String>> =
            Statement::all(besides.iter().map(|said| (said.statement.as_str(), false)))
                .iter()
                .map(|said| bare(&said.exact))
                .collect();
        let is_aside = |of: &Statement| {
            is_aside(&of.text, &[], self.schema, self.ledger)
                || is_ledgers(&of.exact, self.ledger)
                || aside.contains(&bare(&of.exact))
        };
        // What the plan says besides its revisions.
        let mut others = Vec::new();
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
            while let Some(other) = planned.next_if(|each| !is_it(each) && is_aside(each)) {
                others.push(other);
            }
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
                None if is_more => {}
                None => {
                    return Some(format!(
                        "revision {}: `{}` runs only where Alembic is connected",
                        said.revision,
                        cut(&live.text, 120)
                    ));
                }
            }
        }
        for more in planned {
            if !is_aside(&more) {
                return Some(format!("`{}` is only in its script", cut(&more.text, 120)));
            }
            others.push(more);
        }
        self.missing_among(besides, &others)
    }
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
            text => is_number(text) || token.is_text() || token.is_any(&["null", "true", "false"]),
        };
        match (is_value, token.text) {
            // The decimals of a number.
            (true, _) if words.ends_with(&["?".into(), ".".into()]) => {
                words.pop();
            }
            (true, _) => push_value(&mut words),
            // A plan has negative numbers in brackets.
            (_, ")") if words.ends_with(&["(".into(), "?".into()]) => {
                words.truncate(words.len() - 2);
                push_value(&mut words);
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

/// A value, whatever its sign: one for all of a list.
fn push_value(words: &mut Vec<String>) {
    if words.last().is_some_and(|last| last == "-") {
        words.pop();
    }
    match words.ends_with(&["?".into(), ",".into()]) {
        true => drop(words.pop()),
        false => words.push("?".into()),
    }
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
        while tokens.next_if(|t| t.is_any(&MORE)).is_some() {}
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

/// Whether it is a setting until its transaction ends.
fn is_local(words: &[String]) -> bool {
    let is = |i: usize, word: &str| words.get(i).is_some_and(|w| w == word);
    let has = |word: &str| words.iter().any(|w| w == word);
    is(0, "set") && is(1, "local") || has("set_config") && !has("false")
}

/// A setting without saying how long it lasts: a plan's are local to its steps.
fn bare(words: &[String]) -> Vec<String> {
    let mut words = words.to_vec();
    if words.first().is_some_and(|first| first == "set")
        && words.len() > 2
        && ["local", "session"].contains(&words[1].as_str())
    {
        words.remove(1);
    }
    words
}

/// Whether it is what Alembic says to its version table.
fn is_ledgers(words: &[String], ledger: &str) -> bool {
    const FORMS: [&[&str]; 6] = [
        &["create", "table", "if", "not", "exists"],
        &["insert", "into"],
        &["update"],
        &["delete", "from"],
        &["drop", "table", "if", "exists"],
        &["drop", "table"],
    ];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    FORMS.iter().any(|form| match words.strip_prefix(*form) {
        Some([table, ".", name, ..]) if *table != ledger => *name == ledger,
        Some([name, ..]) => *name == ledger,
        _ => false,
    })
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
        let sides = Sides {
            plan,
            schema: Some("t_1"),
            ledger: "alembic_version",
        };
        sides.difference(live, &[])
    }

    #[test]
    fn values_are_the_same_however_they_are_sent() {
        let sql = "SET LOCAL search_path TO \"Herder:Tenant\";\n\
                   UPDATE \"Herder:Tenant\".t SET a=(-1.50)::NUMERIC, b='it''s'::VARCHAR(9), c=NULL, d=t.d - (-3) WHERE t.d IN (1, (-2), 3);\n\
                   INSERT INTO t (a) VALUES (1);\nINSERT INTO t (a) VALUES (2);\n\
                   ALTER TABLE t ADD COLUMN e INTEGER DEFAULT 3;\n\
                   UPDATE alembic_version SET version_num='a' WHERE alembic_version.version_num = 'b';";
        let live = [
            said(
                "UPDATE t_1.t SET a=%(a)s::NUMERIC(9, 2), b=%(b)s::VARCHAR, c=%(c)s, d=t.d - %(d)s WHERE t.d IN (%(d_1)s, %(d_2)s, %(d_3)s)",
                true,
            ),
            said("INSERT INTO t (a) VALUES ($1::INTEGER)", true),
            said("alter table t add column e integer default 3", false),
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
        for only in [
            "set local app.x = 'y'",
            "select tidy()",
            "update info set v = (select max(version_num) from alembic_version)",
        ] {
            assert_eq!(of(only, only), None);
            assert!(
                of(only, "").is_some_and(|why| why.contains("only where Alembic is connected")),
                "{only}"
            );
            assert!(of(update, &format!("{only}; {update}")).is_some(), "{only}");
        }
    }

    #[test]
    fn a_transaction_on_one_side_only_is_a_difference() {
        let outside = Plan::of([StepForm::Outside {
            announce: None,
            withdraw: None,
            begin: None,
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
