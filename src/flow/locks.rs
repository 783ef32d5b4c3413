//! How many locks a run takes on a server at once, roughly: PostgreSQL has one table for all of them, sized at its start.

use crate::domain::plan::{Plan, StepForm};

/// Locks that a statement of a migration takes, roughly: a table, its key, its sequence, its TOAST table and the index of
/// that. All of them are kept until the transaction ends.
const PER_STATEMENT: i64 = 5;

/// Locks that the reading of ledgers takes: the table and its key, for each of a batch.
pub const OF_INSPECTION: i64 = 2 * super::inspect::BATCH as i64;

/// How many locks the biggest transaction of a plan takes, roughly.
pub fn most(plan: &Plan) -> i64 {
    let of_step = |form: &StepForm| match form {
        StepForm::Transaction { sql } => sql.matches(';').count() + 1,
        StepForm::Outside { .. } => 1,
    };
    let statements = plan.steps.iter().map(|step| of_step(&step.form)).max();
    PER_STATEMENT * i64::try_from(statements.unwrap_or_default()).unwrap_or(i64::MAX / PER_STATEMENT)
}
