//! Revisions, the history that they form, and what a tenant's ledger says about it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

mod history;
mod position;
mod target;
#[cfg(test)]
mod tests;

pub use self::{
    history::{History, HistoryError, Standing},
    position::Position,
    target::{Direction, Target},
};

/// One revision as its tool knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// Its id: what the ledger holds.
    pub id: String,
    /// The ids that come right before it. Empty for a first one, two or more for a merge.
    pub down: Vec<String>,
    /// Ids of other branches that must be there when it comes, and that stay when it goes.
    pub depends_on: Vec<String>,
    /// What a person calls it: the message or the rest of the file name.
    pub label: String,
    /// Where it stands: a file name, relative to the history's folder.
    pub file: Option<String>,
    /// Where that stands which undoes it, if elsewhere.
    pub down_file: Option<String>,
    /// SHA-256 or SHA-384 of its content in hex, where the tool has content.
    pub checksum: Option<String>,
    /// In which directions it is taken up again where it broke off in the middle, instead of waiting for a person.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resumes: Vec<Direction>,
}

impl Revision {
    /// All that must be there right before it comes.
    pub fn before(&self) -> impl Iterator<Item = &str> {
        self.down.iter().chain(&self.depends_on).map(String::as_str)
    }
}

/// What a ledger's rows mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LedgerForm {
    /// A row per branch head (Alembic): all that comes before a head is applied too.
    Heads,
    /// A row per applied revision (sqlx).
    Applied,
}

/// What a tenant's own version table says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Ledger {
    /// The revisions in it. Empty: never migrated.
    pub revisions: BTreeSet<String>,
    /// A revision that it says is applied or undone by half, whether or not that one counts. Where nothing is left to do, it still
    /// is not done.
    pub half: Option<String>,
}

impl Ledger {
    /// What it says, for a person, where no history tells which of its rows is the newest.
    pub fn in_words(&self) -> String {
        let rows: Vec<&str> = self.revisions.iter().map(String::as_str).collect();
        match rows.as_slice() {
            [] => "base".into(),
            [.., last] if rows.len() > 5 => format!("{} rows, {last} among them", rows.len()),
            _ => rows.join(","),
        }
    }
}
