//! One run, and its tenants.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use herder::{
    domain::{
        job::JobState,
        run::{RunState, short},
    },
    store::view::{JobView, RunView},
};

use super::{
    events::why,
    style::{DIM, ERROR, HINT, STRONG},
    summary,
    table::Table,
    words::{between, count, delay, duration, moment, tenants_of, way_of, worker},
};

/// Counts with a number for every state, zeros included: a program need not know which may be missing.
pub(crate) fn complete(counts: &BTreeMap<JobState, i64>) -> BTreeMap<JobState, i64> {
    let of = |state| (state, counts.get(&state).copied().unwrap_or_default());
    JobState::ALL.into_iter().map(of).collect()
}

/// The run in a line or two, its tenants in a table, and at the end (where a terminal stops scrolling) the sums.
pub(crate) fn render(run: &RunView, jobs: &[JobView], failed_only: bool, now: DateTime<Utc>) -> String {
    let mut text = heading(run, now);
    if failed_only {
        text += &failures(jobs);
    } else if !jobs.is_empty() {
        text += &format!("\n{}", table(jobs, now));
    }
    text += &format!("\n{}: {}\n", count(run.tenants, "tenant"), sums(run));
    for line in summary::next(run) {
        text += &format!("{HINT}hint:{HINT:#} {line}\n");
    }
    text
}

fn heading(run: &RunView, now: DateTime<Utc>) -> String {
    let took = duration(between(run.created_at, run.settled_at.unwrap_or(now)));
    let mut text = format!(
        "{STRONG}Run {}{STRONG:#} {} to {} with {}: {} {} {took}, since {}\n",
        short(&run.id),
        run.direction,
        run.target,
        run.runner,
        run.state,
        if run.state.is_open() { "for" } else { "after" },
        moment(run.created_at),
    );
    if let Some(reason) = &run.reason {
        text += &format!("It was halted: {reason}\n");
    }
    let mut limits = Vec::new();
    if run.waves > 1 {
        limits.push(format!("wave {} of {}", run.wave + 1, run.waves));
    }
    if let Some(limit) = run.failure_limit {
        limits.push(format!("failure limit: {}", count(limit, "tenant")));
    }
    if !limits.is_empty() && run.state != RunState::Succeeded {
        text += &format!("{DIM}{}{DIM:#}\n", limits.join(", "));
    }
    text
}

fn sums(run: &RunView) -> String {
    let sums: Vec<String> = complete(&run.counts)
        .iter()
        .filter(|(_, n)| **n > 0)
        .map(|(state, n)| format!("{n} {state}"))
        .collect();
    match sums.as_slice() {
        [] => "nothing to do".into(),
        sums => sums.join(", "),
    }
}

fn table(jobs: &[JobView], now: DateTime<Utc>) -> String {
    let mut table = Table::new(["TENANT", "SERVER", "STATE", "TRIES", "FROM → TO", "NOTE"]);
    for job in jobs {
        table.row([
            tenants_of(job),
            job.server.clone(),
            job.state.to_string(),
            job.attempts.to_string(),
            way_of(job),
            note(job, now),
        ]);
    }
    table.render()
}

/// The one thing worth knowing about a job in its state.
fn note(job: &JobView, now: DateTime<Utc>) -> String {
    let why = || job.error.as_ref().map(why).unwrap_or_default();
    match job.state {
        JobState::Waiting => format!("for wave {}", job.wave + 1),
        JobState::Ready => match job.ready_at {
            Some(at) if at > now => format!("next try {}: {}", delay(between(now, at)), why()),
            _ => why(),
        },
        JobState::Running => {
            let since = job
                .claimed_at
                .map(|at| duration(between(at, now)))
                .unwrap_or_default();
            let step = job.step.as_deref().unwrap_or_default();
            format!(
                "{step} for {since} by {}",
                job.worker.as_deref().map(worker).unwrap_or_default()
            )
        }
        JobState::Succeeded => job
            .outcome
            .map_or_else(String::new, |outcome| outcome.as_str().replace('_', " ")),
        JobState::Failed | JobState::Skipped => why(),
        JobState::Cancelled => String::new(),
    }
}

/// All that is known about each tenant that failed.
pub(crate) fn failures(jobs: &[JobView]) -> String {
    let mut text = String::new();
    for job in jobs.iter().filter(|job| job.state == JobState::Failed) {
        text += &format!(
            "\n{ERROR}{}{ERROR:#} on {}, {}, {}\n",
            tenants_of(job),
            place(job),
            way_of(job),
            match job.attempts {
                1 => "1 try".to_owned(),
                n => format!("{n} tries"),
            },
        );
        let Some(error) = &job.error else { continue };
        text += &format!("  {}\n", why(error));
        let details = [
            ("statement", error.statement.as_deref()),
            ("hint", error.hint.as_deref()),
        ];
        for (name, value) in details {
            for (n, line) in value.unwrap_or_default().lines().enumerate() {
                let name = if n == 0 { format!("{name}:") } else { String::new() };
                text += &format!("  {DIM}{name:10}{DIM:#} {}\n", line.trim_end());
            }
        }
    }
    text
}

fn place(job: &JobView) -> String {
    match &job.schema {
        Some(schema) => format!("{}/{}/{schema}", job.server, job.database),
        None => format!("{}/{}", job.server, job.database),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use herder::domain::{failure::JobError, outcome::Outcome, revision::Position};

    use super::*;
    use crate::render::summary::tests::run;

    /// A made-up job.
    pub(crate) fn job(tenant: &str, state: JobState) -> JobView {
        let at = DateTime::from_timestamp(1_800_000_000, 0).unwrap_or_default();
        JobView {
            tenant: tenant.into(),
            members: vec![],
            server: "main".into(),
            database: "app".into(),
            schema: Some(format!("t_{tenant}")),
            state,
            wave: 1,
            attempts: i32::from(state != JobState::Waiting),
            epoch: 1,
            from: Position::At("41".into()),
            to: Position::At("43".into()),
            outcome: (state == JobState::Succeeded).then_some(Outcome::FoundApplied),
            error: None,
            step: (state == JobState::Running).then(|| "migrating".into()),
            worker: (state == JobState::Running).then(|| "w1-5e0f".into()),
            claimed_at: (state == JobState::Running).then_some(at),
            ready_at: (state == JobState::Ready).then_some(at + chrono::TimeDelta::seconds(5)),
            settled_at: None,
            seconds: None,
            job: 1,
        }
    }

    /// A job that met an error.
    pub(crate) fn broken(tenant: &str, state: JobState) -> JobView {
        JobView {
            error: Some(JobError {
                reason: "sql_error".into(),
                sqlstate: Some("42701".into()),
                message: "column \"x\" already exists".into(),
                revision: Some("42".into()),
                statement: Some("alter table tasks\n  add column x int".into()),
                hint: Some("drop it first".into()),
            }),
            ..job(tenant, state)
        }
    }

    #[test]
    fn every_state_has_its_note() {
        let jobs = [
            JobView {
                members: ["a", "b", "c", "d"].map(|n| format!("acme-{n}")).to_vec(),
                ..job("acme", JobState::Succeeded)
            },
            job("beta", JobState::Running),
            broken("gamma", JobState::Ready),
            broken("delta", JobState::Failed),
            JobView {
                from: Position::Base,
                ..job("epsilon", JobState::Waiting)
            },
            JobView {
                from: Position::Unknown,
                ..broken("eta", JobState::Ready)
            },
            job("zeta", JobState::Cancelled),
        ];
        let run = run(RunState::Running, &JobState::ALL.map(|state| (state, 1)));
        let now = run.created_at + chrono::TimeDelta::milliseconds(1500);
        let text = render(&run, &jobs, false, now);
        insta::assert_snapshot!(anstream::adapter::strip_str(&text).to_string());
    }

    #[test]
    fn failures_tell_all_that_is_known() {
        let run = run(
            RunState::Halted,
            &[(JobState::Failed, 21), (JobState::Succeeded, 391)],
        );
        let text = render(
            &run,
            &[broken("delta", JobState::Failed)],
            true,
            run.created_at + chrono::TimeDelta::seconds(90),
        );
        insta::assert_snapshot!(anstream::adapter::strip_str(&text).to_string());
    }

    #[test]
    fn a_program_finds_every_state() {
        let counts = complete(&BTreeMap::from([(JobState::Failed, 2)]));
        assert_eq!(counts.len(), JobState::ALL.len());
        assert_eq!(counts[&JobState::Failed], 2);
        assert_eq!(counts[&JobState::Waiting], 0);
    }
}
