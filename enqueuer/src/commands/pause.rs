//! `herder pause`: nothing new is taken, what runs finishes.

use herder::{
    domain::run::{RunState, short},
    store,
};

use super::Setting;
use crate::{args::RunArg, control, exit::Exit, output, problem::Problem, render::words::run_is};

pub(crate) async fn run(setting: &Setting, args: &RunArg) -> anyhow::Result<Exit> {
    let config = setting.config()?;
    let pool = control::connect(&config.control).await?;
    let id = control::find_run(&pool, args.run.as_deref()).await?;
    let (name, more) = (short(&id), setting.more());
    if store::run::pause(&pool, id).await? {
        output::say(&format!(
            "Paused run {name}: nothing new is taken, what runs finishes"
        ));
        output::hint(&format!("`herder resume {name}{more}` goes on"));
        return Ok(Exit::Done);
    }
    match control::view_run(&pool, id).await?.state {
        // It went on in between.
        RunState::Running => Err(anyhow::anyhow!(
            "run {name} could not be paused: somebody resumed it"
        )),
        state @ (RunState::Paused | RunState::Halted) => {
            output::say(&format!("Nothing to do: run {name} {}", run_is(state)));
            output::hint(&format!("`herder resume {name}{more}` goes on"));
            Ok(Exit::Done)
        }
        state => Err(Problem::usage(format!("run {name} {}", run_is(state))).into()),
    }
}
