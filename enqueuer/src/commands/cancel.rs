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
    news::News,
    output,
    problem::Problem,
    render::words::{count, run_is},
};

pub(crate) async fn run(setting: &Setting, args: &args::Cancel) -> anyhow::Result<Exit> {
    let config = setting.config()?;
    let pool = control::connect(&config.control).await?;
    let id = control::find_run(&pool, args.run.run.as_deref()).await?;
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
    let of = |state: JobState| run.counts.get(&state).copied().unwrap_or_default();
    let open = of(JobState::Waiting) + of(JobState::Ready);
    let question = format!(
        "Cancelling run {name} for good: {} will not be started, {} told to stop.",
        count(open, "tenant"),
        of(JobState::Running)
    );
    if !args.yes {
        confirm::on_terminal("cancel")?;
        if !confirm::asked(&question, None)? {
            output::say("Nothing was done");
            return Ok(Exit::Done);
        }
    }
    if store::run::cancel(&pool, id).await? {
        output::say(&format!("Cancelled run {name}"));
        News::of(&config.notify, &pool, id).told().await;
    } else {
        output::say(&format!("Run {name} was over before it could be cancelled"));
    }
    Ok(Exit::Done)
}
