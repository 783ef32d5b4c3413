//! The last words about a run that was waited for: to GitHub, if it listens, and on the last line to whoever reads the log.

use std::{fs::OpenOptions, io::Write as _};

use herder::{
    domain::{
        job::JobState,
        run::{RunState, short},
    },
    store::{
        StoreError,
        view::{self, JobView, RunView},
    },
};
use sqlx::PgPool;

use crate::{
    hint, output,
    render::{export, words::count},
};

/// How many failed tenants are annotated: GitHub shows ten of a kind.
const ANNOTATED: usize = 10;

/// How many the last line names.
const NAMED: usize = 3;

/// Says it. That it cannot be said must not change how the command ends.
/// `local`: how many jobs at a time this process did itself.
pub(crate) async fn conclude(pool: &PgPool, run: &RunView, local: Option<u16>) {
    if let Err(error) = say(pool, run, local).await {
        output::warning(&format!("cannot say which tenants failed: {error}"));
    }
}

async fn say(pool: &PgPool, run: &RunView, local: Option<u16>) -> Result<(), StoreError> {
    let failed = run.count(JobState::Failed);
    let github = std::env::var("GITHUB_ACTIONS").is_ok_and(|value| value == "true");
    let wanted = if github { None } else { Some(NAMED as i64) };
    let failures = match failed {
        0 => vec![],
        _ => view::jobs(pool, run.id, Some(JobState::Failed), wanted).await?,
    };
    if github {
        for job in failures.iter().take(ANNOTATED) {
            output::say(&export::annotation(job));
        }
        let tally = view::tally(pool, run.id).await?;
        summarize(&export::markdown(run, &tally, &failures));
    }
    if let Some(line) = last_line(run, failed, &failures, local) {
        output::say(&line);
    }
    Ok(())
}

/// The page of the job in GitHub Actions.
fn summarize(text: &str) {
    let Some(path) = std::env::var_os("GITHUB_STEP_SUMMARY") else {
        return;
    };
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(format!("{text}\n").as_bytes()));
    if let Err(error) = written {
        output::warning(&format!("cannot write GITHUB_STEP_SUMMARY: {error}"));
    }
}

/// Who failed first, and what to type next.
fn last_line(run: &RunView, failed: i64, failures: &[JobView], local: Option<u16>) -> Option<String> {
    if failed == 0 {
        return None;
    }
    let names: Vec<&str> = failures
        .iter()
        .take(NAMED)
        .map(|job| job.tenant.as_str())
        .collect();
    let rest = match usize::try_from(failed)
        .unwrap_or_default()
        .saturating_sub(names.len())
    {
        0 => String::new(),
        n => format!(" and {n} more"),
    };
    let id = short(&run.id);
    let why = format!("`herder status {id} --failed`");
    // Whoever did the work without workers has none that a retry could wait for.
    let next = match (run.state, local) {
        (RunState::Cancelled, _) => why,
        // Not by reflex: it would do again what is there.
        _ if run.half_applied > 0 => why,
        (_, Some(n)) => format!("`herder retry {id} --local {n}`"),
        (_, None) => format!("`herder retry {id} --wait`"),
    };
    Some(format!(
        "{:>12} {}: {}{rest}; next: {next}",
        "Failed",
        count(failed, "tenant"),
        names.join(", "),
        next = hint::complete(&next),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::{status::tests::broken, summary::tests::run};

    #[test]
    fn the_last_line_names_the_first_failures_and_the_next_command() {
        let failures = ["acme", "beta", "gamma"].map(|tenant| broken(tenant, JobState::Failed));
        let run = run(RunState::Failed, &[(JobState::Failed, 5)]);
        for (local, how) in [(None, "--wait"), (Some(4), "--local 4")] {
            assert_eq!(
                last_line(&run, 5, &failures, local),
                Some(format!(
                    "      Failed 5 tenants: acme, beta, gamma and 2 more; next: `herder retry 7f3a1b2c {how}`"
                ))
            );
        }
        let half = RunView {
            half_applied: 1,
            ..run.clone()
        };
        let line = last_line(&half, 5, &failures, None).unwrap_or_default();
        assert!(
            line.ends_with("next: `herder status 7f3a1b2c --failed`"),
            "{line}"
        );
        assert_eq!(last_line(&run, 0, &[], None), None);
    }
}
