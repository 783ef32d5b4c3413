//! A run for other programs to show: JUnit for CI's test views, Markdown for comments and job pages, CSV for tables.

use std::fmt::Write as _;

use chrono::SecondsFormat;
use herder::{
    domain::{
        job::JobState,
        outcome::Outcome,
        run::{RunState, short},
    },
    store::view::{JobView, RunView, Tally},
};

use super::{
    events::why,
    summary,
    words::{between, count, duration, way_of},
};

/// How many failed tenants a page shows in full: GitHub takes 1 MiB, a person less.
const SHOWN: usize = 50;

/// One suite, and a case for each tenant. What is not settled is skipped: it neither passed nor failed.
pub(crate) fn junit(run: &RunView, jobs: &[JobView]) -> String {
    let number = |state: fn(JobState) -> bool| -> usize {
        let jobs = jobs.iter().filter(|job| state(job.state));
        jobs.map(|job| 1 + job.members.len()).sum()
    };
    let failed = number(|state| state == JobState::Failed);
    let skipped = number(|state| !matches!(state, JobState::Failed | JobState::Succeeded));
    // A run that has not ended, a halted one say, took as long as to the last tenant that did.
    let last = jobs.iter().filter_map(|job| job.settled_at).max();
    let end = run.settled_at.or(last).unwrap_or(run.created_at);
    let took = between(run.created_at, end).as_secs_f64();
    let name = xml(&format!("herder {} to {}", run.direction, run.target));
    let sums = format!(
        "tests=\"{}\" failures=\"{failed}\" skipped=\"{skipped}\"",
        number(|_| true)
    );
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(text, "<testsuites {sums} errors=\"0\" time=\"{took:.3}\">");
    let _ = writeln!(
        text,
        "  <testsuite name=\"{name}\" id=\"{}\" timestamp=\"{}\" {sums} errors=\"0\" time=\"{took:.3}\">",
        run.id,
        run.created_at.format("%Y-%m-%dT%H:%M:%S")
    );
    // Tenants of one place are one job, and each of them has a case.
    let cases = jobs.iter().flat_map(|job| {
        std::iter::once(&job.tenant)
            .chain(&job.members)
            .map(move |id| (job, id))
    });
    for (job, id) in cases {
        let class = xml(&format!("{}.{}", job.server, job.database));
        let seconds = job.seconds.unwrap_or_default();
        let case = format!(
            "    <testcase name=\"{}\" classname=\"{class}\" time=\"{seconds:.3}\"",
            xml(id)
        );
        match (job.state, &job.error) {
            (JobState::Succeeded, _) => text += &format!("{case}/>\n"),
            (JobState::Failed, Some(error)) => {
                let details = [error.statement.as_deref(), error.hint.as_deref()];
                let details: Vec<&str> = details.into_iter().flatten().collect();
                text += &format!(
                    "{case}>\n      <failure type=\"{}\" message=\"{}\">{}</failure>\n    </testcase>\n",
                    xml(&error.reason),
                    xml(&why(error)),
                    xml(&details.join("\n"))
                );
            }
            (state, error) => {
                let why = error.as_ref().map(|error| format!(": {}", xml(&why(error))));
                let why = why.unwrap_or_default();
                text += &format!("{case}>\n      <skipped message=\"{state}{why}\"/>\n    </testcase>\n");
            }
        }
    }
    text + "  </testsuite>\n</testsuites>\n"
}

/// Text and attribute values. XML has no way at all to write most control characters.
fn xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\n' | '\t' => escaped.push(c),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A line of sums, and a table of the tenants that failed.
pub(crate) fn markdown(run: &RunView, tally: &Tally, failures: &[JobView]) -> String {
    let mark = match run.state {
        RunState::Succeeded => "✅",
        RunState::Failed | RunState::Halted => "❌",
        RunState::Running | RunState::Paused | RunState::Cancelled => "⚠️",
    };
    let mut text = format!(
        "### {mark} Herder: {} to {}, run `{}` {}\n\n{}: {}",
        run.direction,
        cell(&run.target),
        short(&run.id),
        run.state,
        count(run.tenants, "tenant"),
        summary::parts(run, tally),
    );
    if let Some(at) = run.settled_at {
        text += &format!(", in {}", duration(between(run.created_at, at)));
    }
    text += ".\n";
    if let Some(reason) = &run.reason {
        text += &format!("\nIt was halted: {}.\n", cell(reason));
    }
    if !failures.is_empty() {
        text += "\n| failed tenant | from → to | tries | why |\n|---|---|---:|---|\n";
        for job in failures.iter().take(SHOWN) {
            text += &format!(
                "| {} | {} | {} | {} |\n",
                cell(&job.tenant),
                cell(&way_of(job)),
                job.attempts,
                job.error
                    .as_ref()
                    .map(|error| cell(&why(error)))
                    .unwrap_or_default()
            );
        }
        if let Some(rest) = failures.len().checked_sub(SHOWN).filter(|rest| *rest > 0) {
            text += &format!("\nand {rest} more.\n");
        }
    }
    for line in summary::next(run) {
        text += &format!("\n{line}.\n");
    }
    text
}

/// Text that stays in its cell, and is no markup.
fn cell(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '|' | '\\' | '`' | '*' | '_' | '[' | ']' | '#' | '~' => escaped.extend(['\\', c]),
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

/// A row for each tenant, under a row of names.
pub(crate) fn csv(jobs: &[JobView]) -> String {
    let mut text = String::from(
        "tenant,server,database,schema,state,outcome,attempts,from,to,seconds,settled_at,reason,sqlstate,revision,message,members\n",
    );
    for job in jobs {
        let error = job.error.as_ref();
        let field =
            |f: fn(&herder::domain::failure::JobError) -> Option<&str>| error.and_then(f).unwrap_or_default();
        let row = [
            job.tenant.as_str(),
            &job.server,
            &job.database,
            job.schema.as_deref().unwrap_or_default(),
            job.state.as_str(),
            job.outcome.map_or("", Outcome::as_str),
            &job.attempts.to_string(),
            job.from.revision().unwrap_or_default(),
            job.to.revision().unwrap_or_default(),
            &job.seconds.map(|s| format!("{s:.3}")).unwrap_or_default(),
            &job.settled_at
                .map(|at| at.to_rfc3339_opts(SecondsFormat::AutoSi, true))
                .unwrap_or_default(),
            field(|e| Some(&e.reason)),
            field(|e| e.sqlstate.as_deref()),
            field(|e| e.revision.as_deref()),
            field(|e| Some(&e.message)),
            &job.members.join(", "),
        ];
        let row: Vec<String> = row.into_iter().map(quoted).collect();
        text += &(row.join(",") + "\n");
    }
    text
}

fn quoted(field: &str) -> String {
    match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_owned(),
    }
}

/// An error annotation of GitHub Actions. https://docs.github.com/actions/reference/workflow-commands-for-github-actions
pub(crate) fn annotation(job: &JobView) -> String {
    let data = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |text: &str| data(text).replace(':', "%3A").replace(',', "%2C");
    let why = job.error.as_ref().map(why).unwrap_or_default();
    format!(
        "::error title={}::{}",
        property(&format!("Failed to migrate tenant {}", job.tenant)),
        data(&why)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::{
        status::tests::{broken, job},
        summary::tests::run,
    };

    fn jobs() -> Vec<JobView> {
        let mut odd = broken("d<e>l|ta, \"x\"", JobState::Failed);
        odd.seconds = Some(0.412);
        odd.settled_at = Some(chrono::DateTime::UNIX_EPOCH);
        vec![
            JobView {
                members: vec!["beta".into(), "gamma".into()],
                ..job("acme", JobState::Succeeded)
            },
            odd,
            job("zeta", JobState::Waiting),
        ]
    }

    #[test]
    fn a_run_reads_as_a_test_suite() {
        let run = run(RunState::Halted, &[(JobState::Failed, 1)]);
        insta::assert_snapshot!(junit(&run, &jobs()));
    }

    #[test]
    fn a_halted_run_took_as_long_as_to_its_last_tenant() {
        let run = run(RunState::Halted, &[(JobState::Failed, 1)]);
        let mut jobs = jobs();
        jobs[1].settled_at = Some(run.created_at + chrono::TimeDelta::seconds(7));
        let text = junit(&run, &jobs);
        assert!(text.contains("errors=\"0\" time=\"7.000\""), "{text}");
    }

    #[test]
    fn a_run_reads_as_a_page() {
        let run = run(RunState::Halted, &[(JobState::Failed, 1), (JobState::Waiting, 1)]);
        let tally = Tally {
            migrated: 1,
            ..Tally::default()
        };
        insta::assert_snapshot!(markdown(&run, &tally, &jobs()[1..2]));
    }

    #[test]
    fn a_run_reads_as_a_table() {
        insta::assert_snapshot!(csv(&jobs()));
    }

    #[test]
    fn a_cell_shows_what_it_is_given() {
        assert_eq!(
            cell("a|b ~~c~~ &lt; <i>"),
            "a\\|b \\~\\~c\\~\\~ &amp;lt; &lt;i&gt;"
        );
    }

    #[test]
    fn an_annotation_is_one_line() {
        let text = annotation(&jobs()[1]);
        assert_eq!(text.lines().count(), 1);
        assert!(
            text.starts_with("::error title=Failed to migrate tenant d<e>l|ta%2C \"x\"::42: column"),
            "{text}"
        );
    }
}
