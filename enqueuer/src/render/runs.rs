//! The list of runs.

use chrono::{DateTime, Utc};
use herder::{
    domain::{job::JobState, run::short},
    store::view::RunView,
};

use super::{
    table::Table,
    words::{between, duration, moment},
};

/// One line per run. `now` ends those that are not over.
pub(crate) fn render(runs: &[RunView], now: DateTime<Utc>) -> String {
    let mut table = Table::new([
        "RUN",
        "DIRECTION",
        "TARGET",
        "STATE",
        "TENANTS",
        "DONE",
        "FAILED",
        "CREATED",
        "TOOK",
    ]);
    for run in runs {
        table.row([
            short(&run.id),
            run.direction.to_string(),
            run.target.clone(),
            run.state.to_string(),
            run.tenants.to_string(),
            (run.count(JobState::Succeeded) + run.count(JobState::Skipped)).to_string(),
            run.count(JobState::Failed).to_string(),
            moment(run.created_at),
            duration(between(run.created_at, run.settled_at.unwrap_or(now))),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use herder::domain::run::RunState;

    use super::*;
    use crate::render::summary::tests::run;

    #[test]
    fn runs_stand_in_columns() {
        let runs = [
            run(
                RunState::Running,
                &[(JobState::Succeeded, 7), (JobState::Running, 1)],
            ),
            run(
                RunState::Failed,
                &[(JobState::Succeeded, 410), (JobState::Failed, 2)],
            ),
        ];
        let now = runs[0].created_at + chrono::TimeDelta::milliseconds(1500);
        insta::assert_snapshot!(anstream::adapter::strip_str(&render(&runs, now)).to_string());
    }
}
