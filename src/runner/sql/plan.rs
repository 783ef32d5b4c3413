//! Files as the steps of a plan.

use super::{
    directory::{Directory, Migration},
    ledger,
    script::{Form, Script},
};
use crate::{
    domain::{
        plan::{Plan, PlanStep, StepForm},
        revision::{Direction, HistoryError, Ledger},
    },
    runner::{copy::refuse_copy, statement::is_closed},
    tenant_error::TenantError,
};

/// The plan from a ledger to an absolute target.
pub(super) fn plan(
    directory: &Directory,
    direction: Direction,
    before: &Ledger,
    to: Option<&str>,
) -> Result<Plan, TenantError> {
    let pending = directory.history.pending(direction, to, before)?;
    let pending: Vec<String> = pending.into_iter().map(|r| r.id.clone()).collect();
    let work = directory.work(direction, &pending)?;
    let known = known(directory, before)?;
    let quick = (!known.is_empty()).then(|| ledger::is_exactly(&known));
    let check = check(known, before, &work);
    let mut make = before.revisions.is_empty().then(ledger::make);
    let mut at = before.revisions.clone();
    let mut steps = Vec::with_capacity(work.len());
    for (migration, script) in work {
        let mut after = at.clone();
        match direction {
            Direction::Upgrade => after.insert(migration.id.clone()),
            Direction::Downgrade => after.remove(&migration.id),
        };
        steps.push(PlanStep {
            revisions: vec![migration.id.clone()],
            before: std::mem::replace(&mut at, after.clone()),
            after,
            form: form(direction, migration, script, make.take())?,
        });
    }
    Ok(Plan {
        session: Default::default(),
        direction,
        before: before.revisions.clone(),
        after: at,
        check: Some(check),
        quick,
        steps,
    })
}

/// The files of what a ledger holds.
fn known<'a>(directory: &'a Directory, before: &Ledger) -> Result<Vec<&'a Migration>, TenantError> {
    let find = |id: &String| {
        let found = id.parse().ok().and_then(|version| directory.get(version));
        found.ok_or_else(|| HistoryError::UnknownLedger(id.clone()).into())
    };
    before.revisions.iter().map(find).collect()
}

/// What the ledger must hold besides its versions: whole rows, with the checksums of these files.
fn check<'a>(mut known: Vec<&'a Migration>, before: &Ledger, work: &[(&'a Migration, &Script)]) -> String {
    // A former attempt at the same may have done some of them.
    let coming = work
        .iter()
        .map(|(m, _)| *m)
        .filter(|m| !before.revisions.contains(&m.id));
    known.extend(coming);
    let resumable = work.iter().filter(|(_, script)| script.is_resumable());
    ledger::check(&known, resumable.map(|(m, _)| *m))
}

fn form(
    direction: Direction,
    migration: &Migration,
    script: &Script,
    make: Option<String>,
) -> Result<StepForm, TenantError> {
    let upwards = direction == Direction::Upgrade;
    let first = make.map(|make| make + ";\n").unwrap_or_default();
    // Before the brackets: whatever is open in such a file is most likely open in its data.
    refuse_copy(&script.body, Some(&script.file), Some(&migration.id))?;
    let wrong = match &script.body {
        body if body.contains('\0') => Some("holds a NUL byte, which PostgreSQL cannot read"),
        body if !is_closed(body) => Some("leaves a quote, a comment or a bracket open"),
        _ => None,
    };
    if let Some(wrong) = wrong {
        return Err(TenantError::Tool {
            message: format!("{} {wrong}", script.file),
            sqlstate: None,
            revision: Some(migration.id.clone()),
            statement: None,
            hint: None,
        });
    }
    if script.form() == Form::Transaction {
        let last = if upwards {
            ledger::record(migration)
        } else {
            ledger::erase(migration)
        };
        return Ok(StepForm::Transaction {
            sql: format!("{first}{}\n;\n{last}", script.body),
        });
    }
    let (announce, withdraw, begin, record) = if upwards {
        (
            ledger::announce(migration),
            ledger::withdraw(migration),
            Some(ledger::begin(migration)),
            ledger::complete(migration),
        )
    } else {
        (
            ledger::announce_undo(migration),
            ledger::withdraw_undo(migration),
            None,
            ledger::complete_undo(migration),
        )
    };
    Ok(StepForm::Outside {
        announce: Some(first + &announce),
        withdraw: Some(withdraw),
        begin,
        statements: script.messages().iter().map(|m| m.to_string()).collect(),
        record: Some(record),
    })
}
