//! Waiting for a run, with or without doing its work in this very process.

use std::{convert::Infallible, sync::Arc, time::Duration};

use anyhow::Context as _;
use herder::{
    domain::run::{RunId, short},
    flow::{
        context::Context,
        worker::{Options, Worker},
    },
    metrics::Metrics,
    store::view::RunView,
};

use crate::{
    args::Follow,
    conclude::conclude,
    exit::Exit,
    follow::{End, Follower},
    news::News,
    output,
    signals::Interrupts,
};

/// How long the second Ctrl-C lets the worker give back what it holds: a server takes more than a second to notice that
/// an attempt was broken off. Its lease does the same, only later.
const LAST_MOMENTS: Duration = Duration::from_secs(4);

/// How waiting ended.
pub(crate) struct Waited {
    /// The run at its end. None: we were told to stop before.
    pub(crate) over: Option<RunView>,
    /// The code to end with.
    pub(crate) exit: Exit,
}

/// Follows a run to its end, says how it went, and does its work meanwhile if asked to.
pub(crate) async fn wait(
    cx: Context,
    mut follower: Follower,
    run: RunId,
    follow: Follow,
    interrupts: &mut Interrupts,
) -> anyhow::Result<Waited> {
    let pool = cx.pool.clone();
    follower = follower.patience(follow.stall_timeout);
    let end = match follow.local {
        Some(concurrency) => {
            follower = follower.local();
            work(cx, &mut follower, run, concurrency, interrupts).await?
        }
        None => follower.follow(interrupts.next()).await?,
    };
    match end {
        End::Over(run) => {
            follower.sum_up(&run).await?;
            conclude(&pool, &run, follow.local).await;
            Ok(Waited {
                exit: Exit::of_run(run.state),
                over: Some(run),
            })
        }
        End::Stopped => {
            say_stopped(run, follow.local);
            Ok(Waited {
                over: None,
                exit: Exit::Interrupted,
            })
        }
        End::Stalled => {
            let limit = follow.stall_timeout.unwrap_or_default();
            output::warning(&format!(
                "no tenant was settled for {}",
                humantime::format_duration(limit)
            ));
            say_stopped(run, follow.local);
            Ok(Waited {
                over: None,
                exit: Exit::Stalled,
            })
        }
    }
}

/// The same for a run that a command has moved, whose news it tells besides. The code to end with.
pub(crate) async fn wait_and_tell(
    cx: Context,
    follower: Follower,
    run: RunId,
    follow: Follow,
    news: News,
) -> anyhow::Result<Exit> {
    let waited = wait(cx, follower, run, follow, &mut Interrupts::new()?).await?;
    news.told().await;
    Ok(waited.exit)
}

/// What Ctrl-C did not end, and how to come back to it.
pub(crate) fn say_stopped(run: RunId, local: Option<u16>) {
    let id = short(&run);
    match local {
        None => {
            output::say(&format!("Stopped watching; run {id} continues"));
            output::hint(&format!(
                "`herder watch {id}` follows it again; `herder pause {id}` or `herder cancel {id}` stops it"
            ));
        }
        Some(n) => {
            output::say(&format!("Stopped working; run {id} has not ended"));
            output::hint(&format!("`herder resume {id} --local {n}` continues it"));
        }
    }
}

/// Follows a run with a worker of its own.
async fn work(
    cx: Context,
    follower: &mut Follower,
    run: RunId,
    concurrency: u16,
    interrupts: &mut Interrupts,
) -> anyhow::Result<End> {
    let options = Options {
        name: format!("local-{}", std::process::id()),
        concurrency: usize::from(concurrency),
        drain_timeout: cx.config.worker.drain_timeout,
        only_run: Some(run),
    };
    let metrics = Metrics::new().context("cannot create the metrics")?;
    let worker = Worker::new(Arc::new(cx), options, metrics);
    let mut running = tokio::spawn({
        let worker = worker.clone();
        async move { worker.run().await }
    });
    let mut broke = None;
    let goodbye = move || say_stopped(run, Some(concurrency));
    let following = follower.follow(async {
        broke = match (&mut running).await {
            Ok(ended) => ended.err().map(anyhow::Error::from),
            Err(panicked) => Some(panicked.into()),
        };
    });
    let end = tokio::select! {
        end = following => end,
        never = drain_on_interrupt(worker.clone(), interrupts, goodbye) => match never {},
    };
    if let Some(error) = broke {
        anyhow::bail!("the worker in this process failed: {error}");
    }
    worker.drain();
    if !running.is_finished() && tokio::time::timeout(LAST_MOMENTS, &mut running).await.is_err() {
        worker.hurry();
        // What it holds now is not of this run's doing; its lease runs out by itself.
        let _ = tokio::time::timeout(LAST_MOMENTS, running).await;
    }
    end
}

/// First Ctrl-C: nothing new. Second: give back what runs, and end, whatever still hangs.
async fn drain_on_interrupt(
    worker: Worker,
    interrupts: &mut Interrupts,
    goodbye: impl FnOnce(),
) -> Infallible {
    interrupts.next().await;
    output::say("Finishing the running tenants; Ctrl-C again stops at once");
    worker.drain();
    interrupts.next().await;
    worker.hurry();
    tokio::select! {
        () = interrupts.next() => {}
        () = tokio::time::sleep(LAST_MOMENTS) => {}
    }
    goodbye();
    std::process::exit(Exit::Interrupted as i32);
}
