//! `herder cancel`: the end of a run.

use herder::{
    domain::{
        job::JobState,
        run::{RunState, short},
    },
    store,
};

use super::Setting;
use crate::{
    args, confirm, control,
    exit::Exit,
    follow,
    news::News,
    output,
    problem::Problem,
    render::words::{count, run_is},
};

pub(crate) async fn run(setting: &Setting, args: &args::Cancel) -> anyhow::Result<Exit> {
    let (config, pool, id) = setting.find_run(&args.run).await?;
    let (name, run) = (short(&id), control::view_run(&pool, id).await?);
    match run.state {
        RunState::Cancelled => {
            output::say(&format!("Nothing to do: run {name} is cancelled"));
            return Ok(Exit::Done);
        }
        state if !state.is_open() => {
            return Err(Problem::usage(format!("run {name} {}", run_is(state))).into());
        }
        _ => {}
    }
    let running = run.count(JobState::Running);
    let question = format!(
        "Cancel run {name}? {} will not start, {} running will be stopped. This cannot be undone.",
        count(run.open() - running, "tenant"),
        running
    );
    if !args.yes {
        confirm::on_terminal("cancel")?;
        if !confirm::asked(&question, None)? {
            output::say("Nothing was done");
            return Ok(Exit::Interrupted);
        }
    }
    if store::run::cancel(&pool, id).await? {
        output::say(&format!("Cancelled run {name}"));
        // It is cancelled: what cannot be said now must not read as if it were not.
        if let Ok(run) = control::view_run(&pool, id).await {
            let _ = follow::warn_of_unended(&pool, &run).await;
        }
        News::of(&config.notify, &pool, id).told().await;
    } else {
        output::say(&format!("Run {name} ended before it could be cancelled"));
    }
    Ok(Exit::Done)
}
