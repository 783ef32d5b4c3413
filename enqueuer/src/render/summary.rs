//! The block that a followed run ends with.

use std::time::Duration;

use herder::{
    domain::{
        job::JobState,
        run::{RunState, short},
    },
    store::view::{RunView, Tally},
};

use super::{
    style::{ERROR, GOOD, HINT, WARNING},
    words::{count, duration},
};
use crate::hint;

/// The rule above the summary.
const RULE: &str = "────────────";

/// Rule, summary line, and what to type next.
pub(crate) fn render(run: &RunView, tally: &Tally, took: Duration) -> String {
    let style = match run.state {
        RunState::Succeeded => GOOD,
        RunState::Failed | RunState::Halted => ERROR,
        RunState::Running | RunState::Paused | RunState::Cancelled => WARNING,
    };
    let mut text = format!(
        "{RULE}\n{style}{:>12}{style:#} [{:>9}] {}: {}\n",
        "Summary",
        duration(took),
        count(run.tenants, "tenant"),
        parts(run, tally),
    );
    for line in next(run) {
        text += &format!("{HINT}hint:{HINT:#} {line}\n");
    }
    text
}

/// `398 migrated (3 retried), 12 already current, 2 failed`.
pub(crate) fn parts(run: &RunView, tally: &Tally) -> String {
    let migrated = match (tally.migrated, tally.retried) {
        (0, _) => String::new(),
        (migrated, 0) => format!("{migrated} migrated"),
        (migrated, retried) => format!("{migrated} migrated ({retried} retried)"),
    };
    let others = [
        (tally.found_applied, "found applied"),
        (tally.already_current, "already current"),
        (run.count(JobState::Failed), "failed"),
        (run.count(JobState::Skipped), "skipped"),
        (run.count(JobState::Cancelled), "cancelled"),
        (run.count(JobState::Running), "running"),
        (run.count(JobState::Ready), "ready"),
        (run.count(JobState::Waiting), "waiting"),
    ];
    let others = others
        .iter()
        .filter(|(n, _)| *n > 0)
        .map(|(n, word)| format!("{n} {word}"));
    let parts: Vec<String> = std::iter::once(migrated)
        .filter(|part| !part.is_empty())
        .chain(others)
        .collect();
    match parts.as_slice() {
        [] => "nothing to do".into(),
        parts => parts.join(", "),
    }
}

/// What to type next, for a run in its state.
pub(crate) fn next(run: &RunView) -> Vec<String> {
    let id = short(&run.id);
    let failed = run.count(JobState::Failed);
    let them = if failed == 1 { "it" } else { "them" };
    let why = format!("`herder status {id} --failed`");
    let retry = format!("`herder retry {id}` tries {them} again");
    let again = match run.half_applied {
        0 => format!("{why} shows why; {retry}"),
        n => {
            format!("{why} shows why, and what to mend by hand first (half applied: {n}); only then {retry}")
        }
    };
    let lines = match run.state {
        RunState::Succeeded => vec![],
        RunState::Failed => vec![again],
        RunState::Halted => vec![
            again,
            match run.open() {
                0 => format!("`herder resume {id}` ends the run as failed: no other tenant is left"),
                _ => format!(
                    "`herder resume {id}` continues without the failed tenants; `herder cancel {id}` ends the run"
                ),
            },
        ],
        RunState::Paused => vec![format!("`herder resume {id}` continues it")],
        RunState::Running => vec![format!("`herder watch {id}` follows it")],
        RunState::Cancelled if failed > 0 => vec![format!("{why} shows why tenants failed")],
        RunState::Cancelled => vec![],
    };
    lines.iter().map(|line| hint::complete(line)).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use chrono::DateTime;
    use herder::domain::run::RunId;

    use super::*;

    /// A made-up run.
    pub(crate) fn run(state: RunState, counts: &[(JobState, i64)]) -> RunView {
        let created = DateTime::from_timestamp(1_800_000_000, 0).unwrap_or_default();
        RunView {
            id: RunId::from_u128(0x7f3a_1b2c_0000_4000_8000_0000_0000_0001),
            direction: herder::domain::revision::Direction::Upgrade,
            target: "head".into(),
            runner: "sql".into(),
            state,
            tenants: 412,
            wave: 1,
            waves: 5,
            failure_limit: Some(20),
            reason: (state == RunState::Halted).then(|| "21 tenants failed; the failure limit is 20".into()),
            created_at: created,
            settled_at: (!state.is_open()).then(|| created + chrono::TimeDelta::seconds(724)),
            counts: counts.iter().copied().collect::<BTreeMap<_, _>>(),
            half_applied: 0,
        }
    }

    const TALLY: Tally = Tally {
        migrated: 398,
        retried: 3,
        already_current: 12,
        settled_at_enqueue: 12,
        found_applied: 0,
    };

    fn summary(state: RunState, counts: &[(JobState, i64)], tally: &Tally) -> String {
        let text = render(&run(state, counts), tally, Duration::from_secs(724));
        anstream::adapter::strip_str(&text).to_string()
    }

    #[test]
    fn it_says_what_became_of_the_tenants_and_what_to_type_next() {
        let failed = [(JobState::Succeeded, 410), (JobState::Failed, 2)];
        insta::assert_snapshot!(summary(RunState::Failed, &failed, &TALLY));
        let all = [(JobState::Succeeded, 412)];
        insta::assert_snapshot!(summary(
            RunState::Succeeded,
            &all,
            &Tally {
                migrated: 400,
                found_applied: 1,
                ..TALLY
            }
        ));
        let halted = [
            (JobState::Succeeded, 100),
            (JobState::Failed, 21),
            (JobState::Waiting, 291),
        ];
        insta::assert_snapshot!(summary(
            RunState::Halted,
            &halted,
            &Tally {
                migrated: 100,
                already_current: 0,
                ..TALLY
            }
        ));
        let cancelled = [(JobState::Succeeded, 1), (JobState::Cancelled, 411)];
        insta::assert_snapshot!(summary(
            RunState::Cancelled,
            &cancelled,
            &Tally {
                migrated: 1,
                retried: 0,
                already_current: 0,
                ..TALLY
            }
        ));
        insta::assert_snapshot!(summary(RunState::Succeeded, &[], &Tally::default()));
    }
}
