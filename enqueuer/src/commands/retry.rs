//! `herder retry`: the failed tenants of a run are tried again.

use herder::{
    domain::run::{RunState, short},
    flow::{enqueue::EnqueueError, retry},
};

use super::{Setting, target::cannot};
use crate::{
    args::GoOn,
    control,
    exit::Exit,
    follow::{self, Follower},
    news::News,
    output,
    problem::Problem,
    render::words::count,
    work,
};

pub(crate) async fn retry(setting: &Setting, args: &GoOn) -> anyhow::Result<Exit> {
    let cx = setting.context(args.follow.local).await?;
    let id = control::find_run(&cx.pool, args.run.run.as_deref()).await?;
    let (name, run) = (short(&id), control::view_run(&cx.pool, id).await?);
    if run.state == RunState::Cancelled {
        return Err(
            Problem::usage(format!("run {name} was cancelled, which is final"))
                .hint("`herder upgrade` starts a new one")
                .into(),
        );
    }
    let mut follower = Follower::to_stderr(cx.pool.clone(), id);
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
                "`herder watch {other}` waits for it; it may migrate them"
            ))
            .into());
        }
        Err(error) => return Err(cannot(&cx, "cannot retry", None, error).await),
    };
    let next = match retried.tenants {
        0 => {
            output::say(&format!("Nothing to do: no tenant of run {name} has failed"));
            if !run.state.is_open() {
                return Ok(Exit::Done);
            }
            format!("`herder resume {name}` continues with the others")
        }
        _ => {
            let resumed = match run.state {
                state @ (RunState::Paused | RunState::Halted) if run.open() > 0 => {
                    format!("; it was {state}, and goes on with its other tenants, too")
                }
                _ => String::new(),
            };
            let tenants = count(retried.tenants, "tenant");
            let mended = match retried.mended {
                0 => String::new(),
                n => format!(", {n} of them half applied, which counts as mended by hand"),
            };
            output::say(&format!("Retrying {tenants} of run {name}{mended}{resumed}"));
            format!("`herder watch {name}` follows it")
        }
    };
    if !args.follow.waits() {
        // The tenants are ready: what cannot be said now must not read as if they were not.
        if retried.tenants > 0 {
            let _ = follow::warn_of_unserved(&cx.pool, id).await;
        }
        output::hint(&next);
        return Ok(Exit::Done);
    }
    let news = News::of(&cx.config.notify, &cx.pool, id);
    work::wait_and_tell(cx, follower, id, args.follow, news).await
}
