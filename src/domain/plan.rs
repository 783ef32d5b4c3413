//! A plan: the SQL between two revisions, made once and applied to every tenant that stands at the first.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::revision::Direction;

/// Stands for the tenant's schema in a plan's SQL. It needs quotes as an identifier, and occurs in nobody's SQL.
pub const SCHEMA: &str = "Herder:Tenant";

/// The SQL between two states of a ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Which way.
    pub direction: Direction,
    /// The ledger's rows before. A tenant with other rows is not this plan's.
    pub before: BTreeSet<String>,
    /// The ledger's rows after.
    pub after: BTreeSet<String>,
    /// What to do, in order. The first begins at `before`, each at the end of the one before it.
    pub steps: Vec<PlanStep>,
}

/// A piece of a plan that is done or not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanStep {
    /// The revisions that it applies or undoes, in order. Empty where a revision takes several steps, but for its last.
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
        /// Said to the ledger before, where the tool's ledger knows such a thing.
        announce: Option<String>,
        /// The statements.
        statements: Vec<String>,
        /// Said to the ledger after.
        record: Option<String>,
    },
}

impl Plan {
    /// The plan's content as its name: the same SQL is kept once, however many runs use it.
    pub fn id(&self) -> String {
        let text = serde_json::to_vec(self).unwrap_or_default();
        Sha256::digest(text)
            .iter()
            .fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
    }

    /// Whether all of it runs in transactions: then a tenant is never found half way through a step.
    pub fn is_transactional(&self) -> bool {
        self.steps
            .iter()
            .all(|s| matches!(s.form, StepForm::Transaction { .. }))
    }
}
