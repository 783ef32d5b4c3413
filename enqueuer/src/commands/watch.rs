//! `herder watch`: a run to its end.

use super::{Setting, status};
use crate::{
    args, control,
    exit::Exit,
    follow::{End, Follower},
    output,
    signals::Interrupts,
    work,
};

pub(crate) async fn run(setting: &Setting, args: &args::Watch) -> anyhow::Result<Exit> {
    let config = setting.config()?;
    let pool = control::connect(&config.control).await?;
    let id = control::find_run(&pool, args.run.run.as_deref()).await?;
    // As JSON, the data is one object at the end, and the lines are talk.
    let mut follower = match args.output.is_json() {
        true => Follower::to_stderr(pool.clone(), id, setting.more()),
        false => Follower::to_stdout(pool.clone(), id, setting.more()),
    };
    let mut interrupts = Interrupts::new()?;
    match follower.follow(interrupts.next()).await? {
        End::Over(run) => {
            let exit = Exit::of_run(run.state);
            follower.sum_up(&run)?;
            if args.output.is_json() {
                output::json(&status::Report::read(&pool, run, false).await?)?;
            }
            Ok(exit)
        }
        End::Stopped => {
            work::say_stopped(id, None, &setting.more());
            Ok(Exit::Interrupted)
        }
    }
}
