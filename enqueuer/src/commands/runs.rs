//! `herder runs`: all runs, the latest first.

use herder::store::{
    self,
    view::{self, RunView},
};
use serde::Serialize;

use super::Setting;
use crate::{
    args,
    exit::Exit,
    output,
    render::{self, status::complete},
};

#[derive(Serialize)]
struct Report {
    runs: Vec<RunView>,
}

pub(crate) async fn run(setting: &Setting, args: &args::Runs) -> anyhow::Result<Exit> {
    let (_, pool) = setting.control().await?;
    let mut runs = view::runs(&pool, None, i64::from(args.limit)).await?;
    for run in &mut runs {
        run.counts = complete(&run.counts);
    }
    if args.output.is_json() {
        output::json(&Report { runs })?;
    } else if runs.is_empty() {
        output::say("No run yet");
        output::hint("`herder upgrade` starts one");
    } else {
        output::data(&render::runs::render(&runs, store::now(&pool).await?))?;
    }
    Ok(Exit::Done)
}
