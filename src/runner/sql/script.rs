//! One file, understood: what runs in a transaction of ours, what runs outside one, and what of that can be repeated.

use std::{ops::Range, sync::Arc};

use super::statement::{Token, byte_of, split, tokens};

/// A file of migrations.
#[derive(Debug)]
pub(super) struct Script {
    /// Its name.
    pub(super) file: String,
    /// What is sent. Not all of the file where that wraps itself in BEGIN and COMMIT: our transaction, which holds
    /// the ledger's row as well, takes the place of its own.
    pub(super) body: Arc<str>,
    statements: Vec<Range<usize>>,
    form: Form,
}

/// How a file runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// In one transaction with the ledger's row.
    Transaction,
    /// Outside one, in one message. To the server, that is one transaction as long as the file does not say otherwise.
    Message,
    /// Outside one, statement by statement: some of them refuse to share a message with others.
    Steps,
}

/// What a statement outside a transaction does, as far as it matters for doing it again.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
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
    /// It may be done any number of times.
    Harmless,
    /// Nobody knows what doing it twice means.
    Once,
}

impl Script {
    /// Reads the text of a file. `no_tx`: it opts out of a transaction in sqlx's way.
    pub(super) fn new(file: String, text: &str, no_tx: bool) -> Self {
        let mut body = text;
        let mut statements = split(body);
        if !no_tx && let Some(inner) = unwrapped(text, &statements) {
            body = &text[inner];
            statements = split(body);
        }
        let controlled = statements.iter().any(|s| controls_transaction(&body[s.clone()]));
        let apart = statements.iter().any(|s| refuses_company(&body[s.clone()]));
        let form = match no_tx || controlled {
            false => Form::Transaction,
            true if apart && statements.len() > 1 => Form::Steps,
            true => Form::Message,
        };
        Self {
            file,
            body: body.into(),
            statements,
            form,
        }
    }

    pub(super) fn form(&self) -> Form {
        self.form
    }

    /// What to send, one after the other.
    pub(super) fn messages(&self) -> Vec<Arc<str>> {
        match self.form {
            Form::Transaction | Form::Message => vec![Arc::clone(&self.body)],
            Form::Steps => self
                .statements
                .iter()
                .map(|s| self.body[s.clone()].into())
                .collect(),
        }
    }

    /// Whether what broke off can be taken up again by looking at the catalog.
    pub(super) fn is_resumable(&self) -> bool {
        let one_by_one = self.form == Form::Steps || self.statements.len() < 2;
        let mut steps = self.statements.iter().map(|s| step(&self.body[s.clone()]));
        self.form != Form::Transaction && one_by_one && steps.all(|s| s != Step::Once)
    }
}

/// What lies between a file's own BEGIN and COMMIT, where that is all there is.
fn unwrapped(text: &str, statements: &[Range<usize>]) -> Option<Range<usize>> {
    let [first, inner @ .., last] = statements else {
        return None;
    };
    let words = |range: &Range<usize>| -> Vec<String> {
        let words = tokens(&text[range.clone()]);
        words.iter().map(|t| t.text.to_ascii_lowercase()).collect()
    };
    let opens = match words(first).iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["begin"] | ["begin" | "start", "transaction"] | ["begin", "work"] => true,
        // With an isolation level, say. It means something: leave it alone.
        _ => false,
    };
    let closes = matches!(
        words(last).iter().map(String::as_str).collect::<Vec<_>>()[..],
        ["commit" | "end"] | ["commit" | "end", "transaction" | "work"]
    );
    let plain = !inner.iter().any(|s| controls_transaction(&text[s.clone()]));
    (opens && closes && plain).then_some(first.end..last.start)
}

fn controls_transaction(statement: &str) -> bool {
    let tokens = tokens(statement);
    let word = |i: usize, keyword: &str| tokens.get(i).is_some_and(|t| t.is(keyword));
    match tokens.first() {
        // To a savepoint: the transaction goes on.
        Some(t) if t.is("rollback") => !(word(1, "to") || word(2, "to")),
        Some(t) if t.is("prepare") || t.is("start") => word(1, "transaction"),
        Some(t) => ["begin", "commit", "end", "abort"].iter().any(|k| t.is(k)),
        None => false,
    }
}

/// Whether it commits on its own, and so refuses a transaction and a message with others in it.
fn refuses_company(statement: &str) -> bool {
    let tokens = tokens(statement);
    let word = |i: usize, keywords: &[&str]| tokens.get(i).is_some_and(|t| keywords.iter().any(|k| t.is(k)));
    let concurrently = tokens.iter().any(|t| t.is("concurrently"));
    match tokens.first() {
        Some(t) if t.is("create") || t.is("drop") => {
            (concurrently && (word(1, &["index"]) || word(2, &["index"])))
                || word(1, &["database", "tablespace", "subscription"])
        }
        Some(t) if t.is("alter") => (concurrently && word(1, &["table"])) || word(1, &["system", "database"]),
        Some(t) => ["vacuum", "reindex", "cluster", "call"].iter().any(|k| t.is(k)),
        None => false,
    }
}

/// Whether a message that the server refused left nothing behind.
pub(super) fn undoes_itself(message: &str) -> bool {
    !split(message).into_iter().any(|range| {
        let statement = &message[range];
        let block = tokens(statement).first().is_some_and(|t| t.is("do"));
        block || controls_transaction(statement) || refuses_company(statement)
    })
}

/// What a statement means for a retry.
pub(super) fn step(statement: &str) -> Step {
    let tokens = tokens(statement);
    let mut rest = tokens.as_slice();
    if take(&mut rest, &["create"]) {
        take(&mut rest, &["unique"]);
        if take(&mut rest, &["index", "concurrently"]) {
            take(&mut rest, &["if", "not", "exists"]);
            return create_index(rest).unwrap_or(Step::Once);
        }
        return Step::Once;
    }
    if take(&mut rest, &["drop", "index", "concurrently"]) {
        take(&mut rest, &["if", "exists"]);
        return path(rest).map_or(Step::Once, |name| Step::DropIndex { name });
    }
    match tokens.first() {
        Some(t) if ["set", "reset", "vacuum", "analyze"].iter().any(|k| t.is(k)) => Step::Harmless,
        _ => Step::Once,
    }
}

/// `name ON [ONLY] table …`. An index without a name cannot be found again.
fn create_index(mut rest: &[Token<'_>]) -> Option<Step> {
    let (name, behind) = rest.split_first()?;
    rest = behind;
    if name.is("on") || !take(&mut rest, &["on"]) {
        return None;
    }
    take(&mut rest, &["only"]);
    Some(Step::CreateIndex {
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

/// A COPY that waits for data which psql would send. Behind it, the server takes the data for statements.
pub(super) fn copy_from_stdin(text: &str) -> Option<&str> {
    let statements = split(text).into_iter().map(|range| &text[range]);
    statements.into_iter().find(|statement| {
        let tokens = tokens(statement);
        let mut pairs = tokens.windows(2);
        tokens.first().is_some_and(|t| t.is("copy")) && pairs.any(|p| p[0].is("from") && p[1].is("stdin"))
    })
}

/// The statement of `text` that an error is about: the one at the server's position, else the one after those that
/// were done.
pub(super) fn culprit(text: &str, position: Option<usize>, done: usize) -> Option<&str> {
    let statements = split(text);
    let by_position = position.and_then(|p| {
        let byte = byte_of(text, p);
        // An error "at end of input" points behind the last statement.
        statements.iter().rfind(|s| s.start <= byte)
    });
    let range = by_position.or_else(|| statements.get(done))?;
    Some(&text[range.clone()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(text: &str) -> Script {
        Script::new("1_x.sql".into(), text, text.starts_with("-- no-transaction"))
    }

    #[test]
    fn a_file_in_its_own_transaction_gets_ours_instead() {
        let wrapped = script("-- hello\nBEGIN;\ncreate table a (); insert into a default values;\nCOMMIT;\n");
        assert_eq!(wrapped.form(), Form::Transaction);
        assert_eq!(
            wrapped.body.trim(),
            ";\ncreate table a (); insert into a default values;"
        );
        let two = script("begin; select 1; commit; begin; select 2; commit");
        assert_eq!(two.form(), Form::Message);
        assert!(!two.is_resumable());
        assert_eq!(
            script("begin isolation level serializable; select 1; commit").form(),
            Form::Message
        );
        let savepoint = "savepoint a; rollback to a; rollback work to savepoint a";
        assert_eq!(script(savepoint).form(), Form::Transaction);
    }

    #[test]
    fn files_outside_a_transaction_are_cut_only_where_they_must() {
        let index = "-- no-transaction\ncreate index concurrently i on t (a);";
        assert_eq!(script(index).form(), Form::Message);
        assert!(script(index).is_resumable());
        let several = format!("{index}\nset lock_timeout = 0; drop index concurrently if exists j");
        assert_eq!(script(&several).form(), Form::Steps);
        assert_eq!(script(&several).messages().len(), 3);
        assert!(script(&several).is_resumable());
        assert!(!script(&format!("{index} insert into t values (1)")).is_resumable());
        let plain = script("-- no-transaction\nset a.b = 1; analyze t");
        assert_eq!((plain.form(), plain.is_resumable()), (Form::Message, false));
    }

    #[test]
    fn steps_are_told_apart() {
        let create = |name: &str, table: &str| Step::CreateIndex {
            name: name.into(),
            table: table.into(),
        };
        assert_eq!(
            step("CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS Users_Email ON ONLY \"Us er\" (email)"),
            create("users_email", "\"Us er\"")
        );
        assert_eq!(
            step("create index concurrently \"I\"\"x\" on a.b using gin (c)"),
            create("I\"x", "a.b")
        );
        assert_eq!(step("create index concurrently on t (a)"), Step::Once);
        assert_eq!(step("create index i on t (a)"), Step::Once);
        assert_eq!(
            step("drop index concurrently s.\"I\""),
            Step::DropIndex {
                name: "s.\"I\"".into()
            }
        );
        assert_eq!(step("SET statement_timeout = 0"), Step::Harmless);
        assert_eq!(step("update t set a = a + 1"), Step::Once);
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

    #[test]
    fn the_culprit_is_found_by_position_or_by_count() {
        let text = "select 'ä;'; selec 2; select 3";
        assert_eq!(culprit(text, Some(14), 0), Some("selec 2"));
        assert_eq!(culprit(text, None, 2), Some("select 3"));
        assert_eq!(culprit(text, None, 3), None);
        assert_eq!(culprit("select (", Some(9), 0), Some("select ("));
    }
}
