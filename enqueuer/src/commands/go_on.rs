//! `herder resume` and `herder retry`: a run goes on.

use herder::{
    domain::run::{RunState, short},
    flow::{enqueue::EnqueueError, retry},
    store::{self, view::RunView},
};

use super::{Setting, start::cannot};
use crate::{
    args::{Follow, GoOn},
    control,
    exit::Exit,
    follow::{self, Follower},
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
    let waits = waits(args.follow);
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
    if !waits {
        if run.open() > 0 {
            let _ = follow::warn_of_unserved(&pool, id, &more).await;
        }
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

pub(crate) async fn retry(setting: &Setting, args: &GoOn) -> anyhow::Result<Exit> {
    let cx = setting.context(args.follow.local).await?;
    let id = control::find_run(&cx.pool, args.run.run.as_deref()).await?;
    let (name, more, run) = (short(&id), setting.more(), control::view_run(&cx.pool, id).await?);
    if run.state == RunState::Cancelled {
        return Err(
            Problem::usage(format!("run {name} was cancelled, which is final"))
                .hint(format!("`herder upgrade{more}` starts a new one"))
                .into(),
        );
    }
    let mut follower = Follower::to_stderr(cx.pool.clone(), id, more.clone());
    follower.skip_past(true).await?;
    let retried = match retry::retry(&cx, id).await {
        Ok(retried) => retried,
        Err(EnqueueError::Overlap { run, places }) => {
            let other = short(&run);
            let shared = count(places.unsigned_abs(), "tenant");
            return Err(Problem::usage(format!(
                "cannot retry: run {other} is still open and covers {shared} that failed in run {name}"
            ))
            .hint(format!(
                "`herder watch {other}{more}` waits for it; it may migrate them"
            ))
            .into());
        }
        Err(error) => return Err(cannot(&cx, "cannot retry", None, error).await),
    };
    let next = match retried {
        0 => {
            output::say(&format!("Nothing to do: no tenant of run {name} has failed"));
            if !run.state.is_open() {
                return Ok(Exit::Done);
            }
            format!("`herder resume {name}{more}` continues with the others")
        }
        _ => {
            let resumed = match run.state {
                state @ (RunState::Paused | RunState::Halted) if run.open() > 0 => {
                    format!("; it was {state}, and goes on with its other tenants, too")
                }
                _ => String::new(),
            };
            let tenants = count(retried, "tenant");
            output::say(&format!("Retrying {tenants} of run {name}{resumed}"));
            format!("`herder watch {name}{more}` follows it")
        }
    };
    if !waits(args.follow) {
        // The tenants are ready: what cannot be said now must not read as if they were not.
        if retried > 0 {
            let _ = follow::warn_of_unserved(&cx.pool, id, &more).await;
        }
        output::hint(&next);
        return Ok(Exit::Done);
    }
    let news = News::of(&cx.config.notify, &cx.pool, id);
    let exit = work::wait(cx, follower, id, args.follow, &mut Interrupts::new()?, &more)
        .await?
        .exit;
    news.told().await;
    Ok(exit)
}

fn waits(follow: Follow) -> bool {
    follow.wait || follow.local.is_some()
}

/// There is nothing to resume. Whoever would have waited gets the code of the run's outcome.
fn over(run: &RunView, follow: Follow, more: &str) -> anyhow::Result<Exit> {
    let name = short(&run.id);
    if run.state == RunState::Succeeded || waits(follow) {
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
