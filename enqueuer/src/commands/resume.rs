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
    follow::{self, Follower},
    news::News,
    output,
    problem::Problem,
    render::words::{count, run_is},
    work,
};

pub(crate) async fn resume(setting: &Setting, args: &GoOn) -> anyhow::Result<Exit> {
    let (config, pool, id) = setting.find_run(&args.run).await?;
    let (name, run) = (short(&id), control::view_run(&pool, id).await?);
    if !run.state.is_open() {
        return over(&run, args.follow);
    }
    // Whatever is wrong for whoever is to wait, or to do the work, is found before anything is changed.
    let work = match args.follow.waits() {
        true => Some(setting.context(args.follow.local).await?),
        false => None,
    };
    let mut follower = Follower::to_stderr(pool.clone(), id);
    follower.skip_past(false).await?;
    if !store::run::resume(&pool, id).await? {
        return over(&control::view_run(&pool, id).await?, args.follow);
    }
    let left = count(run.open(), "tenant");
    output::say(&match run.state {
        RunState::Running => format!("Run {name} is already running: {left} left"),
        state => format!("Resumed run {name}, which was {state}: {left} left"),
    });
    // It may have been over with that: then nobody else tells.
    let news = News::of(&config.notify, &pool, id);
    if let Some(cx) = work {
        return work::wait_and_tell(cx, follower, id, args.follow, news).await;
    }
    if run.open() > 0 {
        let _ = follow::warn_of_unserved(&pool, id).await;
    }
    output::hint(&format!("`herder watch {name}` follows it"));
    news.told().await;
    Ok(Exit::Done)
}

/// There is nothing to resume. Whoever would have waited gets the code of the run's outcome.
fn over(run: &RunView, follow: Follow) -> anyhow::Result<Exit> {
    let name = short(&run.id);
    if run.state == RunState::Succeeded || follow.waits() {
        output::say(&format!("Nothing to do: run {name} {}", run_is(run.state)));
        for line in crate::render::summary::next(run) {
            output::hint(&line);
        }
        return Ok(Exit::of_run(run.state));
    }
    let problem = Problem::usage(format!("run {name} {}", run_is(run.state)));
    Err(match run.state {
        RunState::Failed => problem.hint(format!("`herder retry {name}` retries its failed tenants")),
        _ => problem.hint("`herder upgrade` starts a new one"),
    }
    .into())
}
