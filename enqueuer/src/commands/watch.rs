//! `herder watch`: a run to its end.

use super::{Setting, status};
use crate::{
    args,
    conclude::conclude,
    control,
    exit::Exit,
    follow::{End, Follower},
    output,
    problem::is_broken_pipe,
    signals::Interrupts,
    work,
};

pub(crate) async fn run(setting: &Setting, args: &args::Watch) -> anyhow::Result<Exit> {
    let (_, pool, id) = setting.find_run(&args.run).await?;
    // As JSON, the data is one object at the end, and the lines are talk.
    let mut follower = match args.output.is_json() {
        true => Follower::to_stderr(pool.clone(), id),
        false => Follower::to_stdout(pool.clone(), id),
    };
    let mut interrupts = Interrupts::new()?;
    let end = match follower.follow(interrupts.next()).await {
        // Whoever read the lines has gone, most likely before the run was over.
        Err(error) if is_broken_pipe(&error) => {
            return Ok(Exit::of_run(control::view_run(&pool, id).await?.state));
        }
        end => end?,
    };
    match end {
        End::Over(run) => {
            let exit = Exit::of_run(run.state);
            output::answer(follower.sum_up(&run).await)?;
            conclude(&pool, &run, None).await;
            if args.output.is_json() {
                output::answer(output::json(&status::Report::read(&pool, run, false).await?))?;
            }
            Ok(exit)
        }
        // It waits for ever: stalled is for those who were given a limit.
        End::Stopped | End::Stalled => {
            work::say_stopped(id, None);
            Ok(Exit::Interrupted)
        }
    }
}
