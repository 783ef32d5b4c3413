//! `herder status`: one run, and where each of its tenants stands.

use std::collections::BTreeMap;

use herder::{
    domain::{job::JobState, run::RunState},
    store::{
        self,
        view::{self, JobView, RunView},
    },
};
use serde::Serialize;
use sqlx::PgPool;

use super::Setting;
use crate::{
    args, control,
    exit::Exit,
    follow, output,
    render::{self, status::complete},
};

/// A run with its tenants. `watch` ends with the same object.
#[derive(Serialize)]
pub(crate) struct Report {
    run: RunView,
    counts: BTreeMap<JobState, i64>,
    jobs: Vec<JobView>,
}

impl Report {
    /// Reads the jobs of a run, or those that failed.
    pub(crate) async fn read(pool: &PgPool, run: RunView, failed: bool) -> anyhow::Result<Self> {
        let only = failed.then_some(JobState::Failed);
        let jobs = view::jobs(pool, run.id, only, None).await?;
        let counts = complete(&run.counts);
        let run = RunView {
            counts: counts.clone(),
            ..run
        };
        Ok(Self { run, counts, jobs })
    }
}

pub(crate) async fn run(setting: &Setting, args: &args::Status) -> anyhow::Result<Exit> {
    let (_, pool, id) = setting.find_run(&args.run).await?;
    let report = Report::read(&pool, control::view_run(&pool, id).await?, args.failed).await?;
    if args.output.is_json() {
        output::json(&report)?;
    } else {
        let Report { run, jobs, .. } = &report;
        let now = store::now(&pool).await?;
        let text = render::status::render(run, jobs, args.failed, now);
        output::data(&text)?;
        if run.state == RunState::Running {
            follow::warn_of_unserved(&pool, run.id).await?;
        }
        follow::warn_of_unended(&pool, run).await?;
    }
    Ok(Exit::Done)
}
