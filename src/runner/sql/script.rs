//! One file, understood: what runs in a transaction of ours, what runs outside one, and what of that can be repeated.

use std::{ops::Range, sync::Arc};

use crate::runner::{
    kind::{Kind, controls_transaction, kind, refuses_company},
    statement::{split, tokens},
};

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

impl Script {
    /// Reads the text of a file. `no_tx`: it opts out of a transaction in sqlx's way.
    pub(super) fn new(file: String, text: &str, no_tx: bool) -> Self {
        // Some editors begin a file with a mark of its encoding, which the server takes for a word.
        let marked = text.strip_prefix('\u{feff}');
        let no_tx = no_tx || marked.is_some_and(|text| text.starts_with("-- no-transaction"));
        let text = marked.unwrap_or(text);
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
        let mut steps = self.statements.iter().map(|s| kind(&self.body[s.clone()]));
        self.form != Form::Transaction && one_by_one && steps.all(|s| s != Kind::Once)
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
    fn a_byte_order_mark_is_no_part_of_a_file() {
        let plain = script("\u{feff}create table a ()");
        assert_eq!(
            (&*plain.body, plain.form()),
            ("create table a ()", Form::Transaction)
        );
        let outside = script("\u{feff}-- no-transaction\nanalyze a");
        assert_eq!(outside.form(), Form::Message);
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
}
