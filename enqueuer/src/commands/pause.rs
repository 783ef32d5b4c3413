//! `herder pause`: nothing new is taken, what runs finishes.

use herder::{
    domain::run::{RunState, short},
    store,
};

use super::Setting;
use crate::{args::RunArg, control, exit::Exit, output, problem::Problem, render::words::run_is};

pub(crate) async fn run(setting: &Setting, args: &RunArg) -> anyhow::Result<Exit> {
    let (_, pool, id) = setting.find_run(args).await?;
    let name = short(&id);
    if store::run::pause(&pool, id).await? {
        output::say(&format!(
            "Paused run {name}: no new tenants start, running ones finish"
        ));
        output::hint(&format!("`herder resume {name}` continues it"));
        return Ok(Exit::Done);
    }
    match control::view_run(&pool, id).await?.state {
        // It went on in between.
        RunState::Running => Err(anyhow::anyhow!(
            "run {name} could not be paused: it was resumed at the same time"
        )),
        state @ (RunState::Paused | RunState::Halted) => {
            output::say(&format!("Nothing to do: run {name} {}", run_is(state)));
            output::hint(&format!("`herder resume {name}` continues it"));
            Ok(Exit::Done)
        }
        state => Err(Problem::usage(format!("run {name} {}", run_is(state))).into()),
    }
}
