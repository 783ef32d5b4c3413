//! A plan: the SQL between two revisions, made once and applied to every tenant that stands at the first.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::revision::Direction;

/// Stands for the tenant's schema in a plan's SQL. It needs quotes as an identifier, and occurs in nobody's SQL.
pub const SCHEMA: &str = "Herder:Tenant";

/// Stands for the number of a statement, in what is said to the ledger about it.
pub const STATEMENT: &str = "Herder:Statement";

/// Begins a comment line that says which revision the statements behind it belong to: `-- revision 0007`. Where a step
/// takes several revisions, an error is laid to the last one that was named before it.
pub const REVISION_MARK: &str = "-- revision ";

/// The SQL between two states of a ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Which way.
    pub direction: Direction,
    /// The ledger's rows before. A tenant with other rows is not this plan's.
    pub before: BTreeSet<String>,
    /// The ledger's rows after.
    pub after: BTreeSet<String>,
    /// Statements that raise an error where something else than the ledger's rows is not as it must be, wherever between
    /// `before` and `after` the tenant stands. They run ahead of the first step that is run, also where there is no ledger.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub check: Option<String>,
    /// An SQL condition that is true only where the ledger's rows are exactly `before` and the check has nothing to say.
    /// It costs a fraction of both. Not true, or absent: they are asked one by one. Where `before` is empty, there is no ledger when it is
    /// asked; absent, there is nothing to check.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quick: Option<String>,
    /// What each step's session begins with, where the tool opens sessions of its own kind.
    #[serde(default, skip_serializing_if = "Session::is_ours")]
    pub session: Session,
    /// What to do, in order. The first begins at `before`, each at the end of the one before it.
    pub steps: Vec<PlanStep>,
}

/// A piece of a plan that is done or not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanStep {
    /// The revisions that it applies or undoes, in order. One that takes several steps is named in each of them.
    pub revisions: Vec<String>,
    /// The ledger's rows when it begins.
    pub before: BTreeSet<String>,
    /// The ledger's rows when it is done.
    pub after: BTreeSet<String>,
    /// How it runs.
    pub form: StepForm,
}

/// How a step runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepForm {
    /// In one transaction of ours, with the ledger's own write in it: all of it or nothing.
    Transaction {
        /// The statements, the ledger's among them, without BEGIN and COMMIT.
        sql: String,
    },
    /// Outside any transaction, statement by statement. Each is looked up in the catalog before it is done again.
    Outside {
        /// Said to the ledger before, where the tool's ledger knows such a thing. It must change a row, unless it was
        /// said before: that is how a step that broke off is known from a fresh one.
        announce: Option<String>,
        /// Takes the announcement back, where the server refused the first statement whole.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        withdraw: Option<String>,
        /// Said to the ledger where a statement is about to make what must be known again for its own: its number, from 0 on,
        /// is that of [`STATEMENT`]. The announcement then gives a row: whether it was made before, and the number that was said last.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        begin: Option<String>,
        /// The statements.
        statements: Vec<String>,
        /// Said to the ledger after.
        record: Option<String>,
    },
}

impl StepForm {
    /// All that it says to the server where nothing goes wrong, in order.
    pub fn statements(&self) -> impl Iterator<Item = &str> {
        let (first, body, last) = match self {
            Self::Transaction { sql } => (None, std::slice::from_ref(sql), None),
            Self::Outside {
                announce,
                statements,
                record,
                ..
            } => (announce.as_ref(), statements.as_slice(), record.as_ref()),
        };
        first.into_iter().chain(body).chain(last).map(String::as_str)
    }
}

/// How far an attempt got where the ledger cannot say so: between two of its revisions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// The number of the step, from 0 on: it was begun.
    pub step: i32,
    /// The transaction that the step is in, and that was just about to be committed. The server knows what became of
    /// it. None: the step is outside a transaction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transaction: Option<String>,
    /// Whether the step came to its end, where it is outside a transaction.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub done: bool,
    /// The revision of which a piece is done by then, or may be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The tenant's mark at that time: another one now, and it was changed since, so that the note says nothing about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<String>,
}

/// What the tool's own sessions begin with, where the plan was made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The settings that are not ours, by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
    /// What the database and the role say about such settings. Where they say something else, the plan does not fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defaults: Option<String>,
}

impl Session {
    /// Whether any session of ours will do.
    pub fn is_ours(&self) -> bool {
        *self == Self::default()
    }
}

impl Note {
    /// That a step was begun, in a tenant with this mark.
    pub fn of(step: usize, mark: Option<String>) -> Self {
        Self {
            step: i32::try_from(step).unwrap_or(i32::MAX),
            transaction: None,
            done: false,
            revision: None,
            mark,
        }
    }

    /// The last step that is done, or may be. None: there is none.
    pub fn done_through(&self) -> Option<usize> {
        let step = usize::try_from(self.step).ok()?;
        match self.done || self.transaction.is_some() {
            true => Some(step),
            false => step.checked_sub(1),
        }
    }
}

#[cfg(test)]
impl Plan {
    /// A plan of these steps, about no ledger in particular.
    pub(crate) fn of(forms: impl IntoIterator<Item = StepForm>) -> Self {
        let step = |form| PlanStep {
            revisions: Vec::new(),
            before: BTreeSet::new(),
            after: BTreeSet::new(),
            form,
        };
        Self {
            direction: Direction::Upgrade,
            before: BTreeSet::new(),
            after: BTreeSet::new(),
            check: None,
            quick: None,
            session: Session::default(),
            steps: forms.into_iter().map(step).collect(),
        }
    }

    /// A plan of one transaction.
    pub(crate) fn of_sql(sql: &str) -> Self {
        Self::of([StepForm::Transaction { sql: sql.into() }])
    }
}

/// Whether a step that fails leaves no revision half done: it is one transaction, and none of its revisions has a piece elsewhere.
pub fn is_whole(steps: &[PlanStep], at: usize) -> bool {
    let step = &steps[at];
    let has_piece = |other: &PlanStep| other.revisions.iter().any(|id| step.revisions.contains(id));
    let mut others = steps[..at].iter().chain(&steps[at + 1..]);
    matches!(step.form, StepForm::Transaction { .. }) && !others.any(has_piece)
}

impl Plan {
    /// Whether a failure in this revision leaves none half done.
    pub fn undoes(&self, revision: &str) -> bool {
        let named = |step: &PlanStep| step.revisions.iter().any(|id| id == revision);
        let at = self.steps.iter().position(named);
        at.is_some_and(|at| is_whole(&self.steps, at))
    }

    /// The revision that a step is a piece of.
    pub fn revision_of(&self, step: usize) -> String {
        let revision = self.steps.get(step).and_then(|s| s.revisions.last());
        revision.cloned().unwrap_or_default()
    }

    /// The plan's content as its name: the same SQL is kept once, however many runs use it.
    pub fn id(&self) -> String {
        let text = serde_json::to_vec(self).unwrap_or_default();
        format!("{:x}", Sha256::digest(text))
    }

    /// Whether every step is a transaction that moves the ledger: then a tenant's steps go to the server in messages that
    /// need nothing beside them.
    pub fn is_in_messages(&self) -> bool {
        self.is_transactional() && self.steps.iter().all(|s| s.before != s.after)
    }

    /// Whether all of it runs in transactions: then a tenant is never found half way through a step.
    pub fn is_transactional(&self) -> bool {
        self.steps
            .iter()
            .all(|s| matches!(s.form, StepForm::Transaction { .. }))
    }
}
