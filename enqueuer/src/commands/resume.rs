//! `herder resume`: a paused or halted run goes on.

use herder::{
    domain::run::{RunState, short},
    store::{self, view::RunView},
};

use super::Setting;
use crate::{
    args::{Follow, GoOn},
    control,
    exit::Exit,
    follow::Follower,
    news::News,
    output,
    problem::Problem,
    render::words::{count, run_is},
    signals::Interrupts,
    work,
};

pub(crate) async fn resume(setting: &Setting, args: &GoOn) -> anyhow::Result<Exit> {
    let (config, pool, id) = setting.find_run(&args.run).await?;
    let (name, more, run) = (short(&id), setting.more(), control::view_run(&pool, id).await?);
    if !run.state.is_open() {
        return over(&run, args.follow, &more);
    }
    let mut follower = Follower::to_stderr(pool.clone(), id, more.clone());
    follower.skip_past(false).await?;
    if !store::run::resume(&pool, id).await? {
        return over(&control::view_run(&pool, id).await?, args.follow, &more);
    }
    let left = count(run.open(), "tenant");
    output::say(&match run.state {
        RunState::Running => format!("Run {name} is already running: {left} left"),
        state => format!("Resumed run {name}, which was {state}: {left} left"),
    });
    // It may have been over with that: then nobody else tells.
    let news = News::of(&config.notify, &pool, id);
    if !args.follow.waits() {
        output::hint(&format!("`herder watch {name}{more}` follows it"));
        news.told().await;
        return Ok(Exit::Done);
    }
    let cx = setting.context(args.follow.local).await?;
    let exit = work::wait(cx, follower, id, args.follow, &mut Interrupts::new()?, &more)
        .await?
        .exit;
    news.told().await;
    Ok(exit)
}

/// There is nothing to resume. Whoever would have waited gets the code of the run's outcome.
fn over(run: &RunView, follow: Follow, more: &str) -> anyhow::Result<Exit> {
    let name = short(&run.id);
    if run.state == RunState::Succeeded || follow.waits() {
        output::say(&format!("Nothing to do: run {name} {}", run_is(run.state)));
        for line in crate::render::summary::next(run, more) {
            output::hint(&line);
        }
        return Ok(Exit::of_run(run.state));
    }
    let problem = Problem::usage(format!("run {name} {}", run_is(run.state)));
    Err(match run.state {
        RunState::Failed => problem.hint(format!("`herder retry {name}{more}` retries its failed tenants")),
        _ => problem.hint(format!("`herder upgrade{more}` starts a new one")),
    }
    .into())
}
