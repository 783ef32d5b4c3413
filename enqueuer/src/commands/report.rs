//! `herder report`: a run in sums, with the failures in full.

use std::collections::BTreeMap;

use herder::{
    domain::job::JobState,
    store::{
        self,
        view::{self, JobView, RunView, Tally},
    },
};
use serde::Serialize;

use super::Setting;
use crate::{
    args::{self, ReportFormat},
    control,
    exit::Exit,
    output,
    render::{
        export,
        status::{complete, failures},
        summary,
        words::between,
    },
};

#[derive(Serialize)]
struct Report {
    run: RunView,
    counts: BTreeMap<JobState, i64>,
    outcomes: Tally,
    failures: Vec<JobView>,
}

pub(crate) async fn run(setting: &Setting, args: &args::Report) -> anyhow::Result<Exit> {
    let (_, pool, id) = setting.find_run(&args.run).await?;
    let run = control::view_run(&pool, id).await?;
    let counts = complete(&run.counts);
    let report = Report {
        outcomes: view::tally(&pool, id).await?,
        failures: view::jobs(&pool, id, Some(JobState::Failed), None).await?,
        run: RunView {
            counts: counts.clone(),
            ..run
        },
        counts,
    };
    match args.format {
        ReportFormat::Json => output::json(&report)?,
        ReportFormat::Junit => {
            let jobs = view::jobs(&pool, id, None, None).await?;
            output::data(&export::junit(&report.run, &jobs))?;
        }
        ReportFormat::Csv => {
            let jobs = view::jobs(&pool, id, None, None).await?;
            output::data(&export::csv(&jobs))?;
        }
        ReportFormat::Markdown => {
            output::data(&export::markdown(&report.run, &report.outcomes, &report.failures))?
        }
        ReportFormat::Text => {
            let Report { run, outcomes, .. } = &report;
            let until = match run.settled_at {
                Some(at) => at,
                None => store::now(&pool).await?,
            };
            let took = between(run.created_at, until);
            let summary = summary::render(run, outcomes, took);
            let text = failures(&report.failures) + &summary;
            output::data(text.trim_start_matches('\n'))?;
        }
    }
    Ok(Exit::Done)
}
