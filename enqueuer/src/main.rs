//! `herder`: starts, follows and mends fleet runs.

mod args;
mod commands;
mod conclude;
mod confirm;
mod control;
mod exit;
mod follow;
mod hint;
mod log;
mod news;
mod output;
mod problem;
mod queue;
mod render;
mod signals;
mod work;

use std::{io::Write, process::ExitCode};

use crate::{commands::Setting, exit::Exit};

fn main() -> ExitCode {
    let cli = args::parse();
    let telemetry = log::start(&cli.global);
    let setting = Setting::new(&cli.global);
    hint::remember(setting.config_args());
    let ended = match tokio::runtime::Runtime::new() {
        Ok(runtime) => {
            let ended = runtime.block_on(commands::run(&setting, cli.command));
            // What still blocks (a name that is being looked up) must not hold up the end.
            runtime.shutdown_background();
            ended
        }
        Err(error) => Err(error.into()),
    };
    let code = match ended {
        Ok(exit) => exit.into(),
        Err(error) if problem::is_broken_pipe(&error) => Exit::Done.into(),
        Err(error) => {
            let text = problem::render(&error);
            let _ = anstream::stderr().write_all(text.as_bytes());
            problem::exit_of(&error).into()
        }
    };
    telemetry.finish();
    code
}
