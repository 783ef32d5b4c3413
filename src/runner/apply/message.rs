//! One message to the server, of which every byte is known to be ours or a step's: so an error's place says whose it
//! is, and the statement that it is about.

use std::ops::Range;

use futures_util::StreamExt;
use sqlx::{
    AssertSqlSafe, Either, PgConnection, Row,
    postgres::{PgDatabaseError, PgErrorPosition, PgRow},
};

use super::refusal::{Refusal, is_ended, is_unexpected, refusal};
use crate::{
    domain::plan::{PlanStep, REVISION_MARK},
    runner::{
        copy::refuse_copy,
        statement::{byte_of, split},
    },
    tenant_error::TenantError,
};

/// What is sent at once. To the server, statements outside BEGIN and COMMIT are one transaction.
#[derive(Default)]
pub(super) struct Message<'a> {
    text: String,
    parts: Vec<Part<'a>>,
}

struct Part<'a> {
    range: Range<usize>,
    step: Option<&'a PlanStep>,
    whose: Whose,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// A statement of a migration.
    Step,
    /// One that Herder adds before a step.
    Before,
    /// One that Herder adds behind a step.
    Behind,
    /// One that Herder adds behind a step's COMMIT.
    Committed,
}

/// What came back of a message that went through.
#[derive(Default)]
pub(super) struct Reply {
    /// The last row of all.
    pub(super) row: Option<PgRow>,
    /// How many rows the last statement changed or gave.
    pub(super) affected: u64,
}

impl Reply {
    /// A column of the last row, if there is any.
    pub(super) fn text(&self, column: usize) -> Result<Option<String>, sqlx::Error> {
        let text = self.row.as_ref().map(|row| row.try_get(column)).transpose()?;
        Ok(text.flatten())
    }
}

impl<'a> Message<'a> {
    /// How long it is, in bytes.
    pub(super) fn len(&self) -> usize {
        self.text.len()
    }

    /// Adds statements of ours that come before a step's own.
    pub(super) fn before(&mut self, step: &'a PlanStep, sql: &str) {
        self.add(Some(step), Whose::Before, sql);
    }

    /// Adds statements of a step. A comment at their end, or a missing semicolon, does no harm.
    pub(super) fn step(&mut self, step: &'a PlanStep, sql: &str) {
        self.add(Some(step), Whose::Step, sql);
    }

    /// Adds statements of ours that come behind a step's own.
    pub(super) fn behind(&mut self, step: &'a PlanStep, sql: &str) {
        self.add(Some(step), Whose::Behind, sql);
    }

    /// Adds statements that come behind a step's COMMIT.
    pub(super) fn committed(&mut self, sql: &str) {
        self.add(None, Whose::Committed, sql);
    }

    /// Adds statements that belong to no step.
    pub(super) fn besides(&mut self, sql: &str) {
        self.add(None, Whose::Behind, sql);
    }

    fn add(&mut self, step: Option<&'a PlanStep>, whose: Whose, sql: &str) {
        let start = self.text.len();
        self.text.push_str(sql);
        let range = start..self.text.len();
        self.text.push_str("\n;\n");
        self.parts.push(Part { range, step, whose });
    }

    /// Sends it, and waits until the server is through with it.
    pub(super) async fn send(self, on: &mut PgConnection) -> Result<Reply, Refusal> {
        for part in self.parts.iter().filter(|part| part.whose == Whose::Step) {
            let revision = part.step.and_then(|step| step.revisions.last());
            refuse_copy(&self.text[part.range.clone()], None, revision.map(String::as_str))?;
        }
        let (mut reply, mut done) = (Reply::default(), 0);
        let text: std::sync::Arc<str> = self.text.as_str().into();
        let mut answers = sqlx::raw_sql(AssertSqlSafe(text)).fetch_many(on);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(Either::Left(result)) => {
                    reply.affected = result.rows_affected();
                    done += 1;
                }
                Ok(Either::Right(row)) => reply.row = Some(row),
                Err(error) => return Err(self.explain(error, done)),
            }
        }
        Ok(reply)
    }

    /// What the server said, with the revision and the statement that it said it about.
    fn explain(&self, error: sqlx::Error, done: usize) -> Refusal {
        let server = match &error {
            sqlx::Error::Database(e) => e.try_downcast_ref::<PgDatabaseError>(),
            _ => None,
        };
        let position = match server.and_then(PgDatabaseError::position) {
            Some(PgErrorPosition::Original(position)) => Some(byte_of(&self.text, position)),
            _ => None,
        };
        // The server reads all of a message before it runs any: a character that its encoding lacks is said of no statement.
        let unread = server.filter(|e| done == 0 && ["22P05", "22021"].contains(&e.code()));
        let position = match unread {
            Some(e) => match position.or_else(|| self.character(e.message())) {
                Some(position) => Some(position),
                None if self.parts.len() > 1 => return error.into(),
                None => None,
            },
            None => position,
        };
        let Some((part, statement)) = self.culprit(position, done) else {
            return error.into();
        };
        // By its words, not by its place: without a position, that is only counted.
        if server.is_some_and(|e| is_unexpected(e, part.whose == Whose::Before)) {
            return Refusal::Unexpected;
        }
        // Of a message that the server could not read, nothing was done.
        if part.whose == Whose::Committed && done > 0 {
            // The step is done all the same, and the next look at the ledger says so.
            return Refusal::Failed(TenantError::Connection(format!(
                "the session failed behind a commit: {}",
                TenantError::from(error)
            )));
        }
        let text = &self.text[part.range.clone()];
        let revision = part
            .step
            .and_then(|step| revision(step, part.whose, text, statement.as_ref()));
        if let Some(refusal) = server.and_then(|e| refusal(e, revision.as_deref())) {
            return refusal;
        }
        if part.whose == Whose::Behind && server.is_some_and(is_ended) {
            return Refusal::Failed(TenantError::Tool {
                message: "it ended the transaction that it was run in".into(),
                sqlstate: None,
                revision,
                statement: None,
                hint: Some("it must run outside a transaction if it is to commit on its own".into()),
            });
        }
        let statement = statement
            .filter(|_| part.whose == Whose::Step)
            .map(|range| &text[range]);
        let error = TenantError::from(error);
        Refusal::Failed(match &revision {
            Some(revision) => error.at(revision, statement),
            None => error,
        })
    }

    /// Where the character stands whose bytes a message of the server's names, in whatever language: 0xe2 0x82 0xac.
    fn character(&self, message: &str) -> Option<usize> {
        let bytes: Vec<u8> = message
            .split(|c: char| !c.is_ascii_alphanumeric())
            .filter_map(|word| u8::from_str_radix(word.strip_prefix("0x")?, 16).ok())
            .collect();
        self.text
            .find(std::str::from_utf8(&bytes).ok().filter(|c| !c.is_empty())?)
    }

    /// The part that an error is about, and the statement in it: the one at the server's position, else the one after
    /// those that were done.
    fn culprit(&self, position: Option<usize>, done: usize) -> Option<(&Part<'a>, Option<Range<usize>>)> {
        if let Some(at) = position {
            // An error "at end of input" points behind the last statement.
            let part = self.parts.iter().rfind(|p| p.range.start <= at)?;
            let at = at - part.range.start;
            let statements = split(&self.text[part.range.clone()]);
            return Some((part, statements.into_iter().rfind(|s| s.start <= at)));
        }
        let mut left = done;
        for part in &self.parts {
            let mut statements = split(&self.text[part.range.clone()]);
            if left < statements.len() {
                return Some((part, Some(statements.swap_remove(left))));
            }
            left -= statements.len();
        }
        None
    }
}

/// The revision at work in a step, at a statement of it.
fn revision(step: &PlanStep, whose: Whose, text: &str, statement: Option<&Range<usize>>) -> Option<String> {
    let edge = match whose {
        Whose::Before => step.revisions.first(),
        Whose::Step | Whose::Behind | Whose::Committed => step.revisions.last(),
    };
    if whose != Whose::Step || step.revisions.len() < 2 {
        return edge.cloned();
    }
    let read = &text[..statement.map_or(text.len(), |s| s.start)];
    let marked = read
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix(REVISION_MARK));
    marked
        .map(|id| id.trim().to_owned())
        .or_else(|| step.revisions.first().cloned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::plan::StepForm;

    fn step(revisions: &[&str]) -> PlanStep {
        PlanStep {
            revisions: revisions.iter().map(|r| (*r).to_owned()).collect(),
            before: Default::default(),
            after: Default::default(),
            form: StepForm::Transaction { sql: String::new() },
        }
    }

    #[test]
    fn the_culprit_is_found_by_position_or_by_count() {
        let (one, two) = (step(&["1"]), step(&["2"]));
        let mut message = Message::default();
        message.before(&one, "begin; set local a.b = 'ä;'");
        message.step(&one, "select 'ä;'; selec 2; select 3 -- more");
        message.behind(&one, "commit");
        message.step(&two, "select (");
        let found = |position: Option<usize>, done| {
            let (part, statement) = message.culprit(position, done)?;
            let text = &message.text[part.range.clone()];
            Some((part.step?.revisions[0].clone(), text[statement?].to_owned()))
        };
        let is = |revision: &str, statement: &str| Some((revision.to_owned(), statement.to_owned()));
        assert_eq!(found(message.text.find("selec 2"), 0), is("1", "selec 2"));
        assert_eq!(found(None, 4), is("1", "select 3"));
        assert_eq!(found(None, 5), is("1", "commit"));
        assert_eq!(found(Some(message.text.len() - 1), 0), is("2", "select ("));
        assert_eq!(found(None, 7), None);
    }

    #[test]
    fn a_character_that_the_server_s_encoding_lacks_is_found_by_its_bytes() {
        let (one, two) = (step(&["1"]), step(&["2"]));
        let mut message = Message::default();
        message.step(&one, "select 'ä'");
        message.step(&two, "select '€'");
        let said = "character with byte sequence 0xe2 0x82 0xac in encoding \"UTF8\" has no equivalent in encoding \"LATIN1\"";
        assert_eq!(message.character(said), message.text.find('€'));
        assert_eq!(message.character("no such bytes"), None);
        assert_eq!(message.character("0xff"), None);
    }

    #[test]
    fn a_step_of_several_revisions_says_which_one_is_at_work() {
        let several = step(&["1", "2", "3"]);
        let text = "-- revision 1\nselect 1;\n-- revision 2\nselect 2; select 3";
        let at = |statement: &str| {
            let start = text.find(statement).expect("it is there");
            revision(
                &several,
                Whose::Step,
                text,
                Some(&(start..start + statement.len())),
            )
        };
        assert_eq!(at("select 1").as_deref(), Some("1"));
        assert_eq!(at("select 3").as_deref(), Some("2"));
        assert_eq!(revision(&several, Whose::Behind, "", None).as_deref(), Some("3"));
        assert_eq!(revision(&step(&[]), Whose::Step, "", None), None);
    }
}
