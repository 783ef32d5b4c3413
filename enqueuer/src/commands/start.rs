//! `herder upgrade` and `herder downgrade`: the start of a run.

use std::{collections::BTreeMap, ops::ControlFlow};

use herder::{
    domain::{
        job::JobState,
        revision::{Direction, Target},
        run::{RunId, RunState, short},
        trace::TraceContext,
        wave::Rollout,
    },
    flow::{
        context::Context,
        enqueue::{self, EnqueueError, Enqueued, Request},
    },
    telemetry,
};
use serde::Serialize;
use tracing::{Instrument, Span, field, info_span};

use super::{
    Setting,
    target::{cannot, found, must_lead},
};
use crate::{
    args::{Downgrade, Start, Upgrade},
    confirm,
    exit::Exit,
    follow::{self, Follower},
    news::News,
    output,
    problem::{self, Problem, is_broken_pipe},
    queue,
    render::{
        status::complete,
        words::{count, way},
    },
    signals::Interrupts,
    work,
};

const CANNOT_START: &str = "cannot start a run";

const NOT_STARTED: &str = "No run was started";

/// What a program is told of a run that was started, and of its end if that was waited for.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    enqueued: Enqueued,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<RunState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    counts: Option<BTreeMap<JobState, i64>>,
}

pub(crate) async fn upgrade(setting: &Setting, args: Upgrade) -> anyhow::Result<Exit> {
    must_lead(Direction::Upgrade, &args.to, || {
        format!("use `herder downgrade --to {}`", args.to)
    })?;
    start(setting, Direction::Upgrade, args.to, args.start).await
}

pub(crate) async fn downgrade(setting: &Setting, args: Downgrade) -> anyhow::Result<Exit> {
    must_lead(Direction::Downgrade, &args.to, || {
        format!("use `herder upgrade --to {}`", args.to)
    })?;
    if !args.start.yes {
        confirm::on_terminal("downgrade")?;
    }
    start(setting, Direction::Downgrade, args.to, args.start).await
}

async fn start(setting: &Setting, direction: Direction, target: Target, args: Start) -> anyhow::Result<Exit> {
    let cx = setting.context(args.follow.local).await?;
    let rollout = rollout(&cx, &args);
    let mut request = Request {
        direction,
        target,
        wanted: args.selection.wanted(),
        rollout,
        trace: None,
    };
    // One from here to the end: what comes between two who listen must not be lost.
    let mut interrupts = Interrupts::new()?;
    let enqueued = match make(&cx, &mut request, &args, &mut interrupts).await? {
        ControlFlow::Continue(enqueued) => enqueued,
        ControlFlow::Break(exit) => return Ok(exit),
    };
    let news = News::of(&cx.config.notify, &cx.pool, enqueued.run);
    announce(&enqueued, direction);
    // The run is made: whether its id can be told must not decide what becomes of it.
    let mut printed = match args.output.is_json() {
        true => Ok(()),
        false => output::data(&format!("{}\n", enqueued.run)),
    };
    let run = enqueued.run;
    let mut report = Report {
        enqueued,
        state: None,
        counts: None,
    };
    let mut exit = Exit::Done;
    if args.follow.waits() {
        let follower = Follower::to_stderr(cx.pool.clone(), run);
        let waited = work::wait(cx, follower, run, args.follow, &mut interrupts).await?;
        exit = waited.exit;
        report.state = waited.over.as_ref().map(|run| run.state);
        report.counts = waited.over.map(|run| complete(&run.counts));
    } else if report.enqueued.tenants > report.enqueued.current {
        // The run is made: what cannot be said now must not read as if it were not.
        let _ = follow::warn_of_unserved(&cx.pool, run).await;
        output::hint(&format!("`herder watch {}` follows it", short(&run)));
    }
    tokio::select! {
        () = news.told() => {}
        () = interrupts.next() => {}
    }
    if args.output.is_json() {
        printed = output::json(&report);
    }
    match printed {
        Err(error) if !is_broken_pipe(&error) => unprinted(run, error, exit),
        _ => Ok(exit),
    }
}

/// Makes the run, once it is confirmed and, with `--queue`, nobody is in its way. Break: none was made, and the command ends.
async fn make(
    cx: &Context,
    request: &mut Request,
    args: &Start,
    interrupts: &mut Interrupts,
) -> anyhow::Result<ControlFlow<Exit, Enqueued>> {
    loop {
        // Again after each wait: the run in front may have changed what there is to undo.
        if request.direction == Direction::Downgrade
            && !args.yes
            && let Some(exit) = unconfirmed(cx, request, interrupts).await?
        {
            output::say(NOT_STARTED);
            return Ok(ControlFlow::Break(exit));
        }
        let (span, trace) = traced(request);
        request.trace = Some(trace);
        let making = enqueue::enqueue(cx, request).instrument(span.clone());
        match super::unless_interrupted(cx, interrupts, making).await {
            Ok(enqueued) => {
                span.record("run.id", field::display(enqueued.run));
                return Ok(ControlFlow::Continue(enqueued));
            }
            Err(EnqueueError::Stopped) => {
                output::say(NOT_STARTED);
                return Ok(ControlFlow::Break(Exit::Interrupted));
            }
            Err(EnqueueError::Abandoned) => {
                output::say("Stopped at once: a run may have been started all the same");
                output::hint("`herder runs` shows it");
                return Ok(ControlFlow::Break(Exit::Interrupted));
            }
            Err(EnqueueError::Overlap { run, places }) if args.queue => {
                let patience = args.follow.stall_timeout;
                let waited = queue::wait_behind(&cx.pool, (run, places), patience, interrupts);
                if let Some(exit) = waited.await? {
                    return Ok(ControlFlow::Break(exit));
                }
            }
            Err(error) => return Err(cannot(cx, CANNOT_START, Some(request.direction), error).await),
        }
    }
}

/// stdout took nothing, a full disk most likely: whoever reads it does not know the run. The code of a run that did not
/// succeed says more than that.
fn unprinted(run: RunId, error: anyhow::Error, exit: Exit) -> anyhow::Result<Exit> {
    let id = short(&run);
    let said = format!("run {id} was started, but its id could not be printed");
    if exit != Exit::Done {
        output::warning(&format!("{said}: {}", problem::one_line(&error)));
        return Ok(exit);
    }
    Err(Problem::unexpected(said)
        .caused_by(error)
        .hint(format!("`herder status {id}` shows it"))
        .into())
}

/// The span of making a run, and the trace that its attempts join: this span's where spans are sent, else that of whoever
/// called us, else a new one.
fn traced(request: &Request) -> (Span, TraceContext) {
    let caller = telemetry::incoming();
    let span = info_span!(
        "enqueue", direction = request.direction.as_str(), target = %request.target, trace_id = %caller.trace(),
        run.id = field::Empty
    );
    telemetry::adopt(&span, &caller);
    let trace = telemetry::context_of(&span).unwrap_or(caller);
    (span, trace)
}

/// What is not given on the command line is taken from the config. A canary of nobody is how a command does without that of
/// the config.
fn rollout(cx: &Context, args: &Start) -> Rollout {
    let (given, config) = (&args.rollout, &cx.config.rollout);
    Rollout {
        canary: given.canary.or(config.canary),
        wave: given.wave.or(config.wave),
        failure_limit: given.failure_limit.or(config.failure_limit),
    }
}

fn announce(enqueued: &Enqueued, direction: Direction) {
    for warning in &enqueued.warnings {
        output::warning(warning);
    }
    let target = &enqueued.target;
    let down = match direction {
        Direction::Upgrade => "",
        Direction::Downgrade => " down",
    };
    let waves = match enqueued.waves {
        ..=1 => String::new(),
        n => format!(", {n} waves"),
    };
    output::say(&format!(
        "{:>12} run {}: {}{down} to {target}{waves}",
        "Starting",
        short(&enqueued.run),
        count(enqueued.tenants as u64, "tenant"),
    ));
}

/// Says what will happen, and asks. Some: it is not to happen, and the command ends with this.
async fn unconfirmed(
    cx: &Context,
    request: &Request,
    interrupts: &mut Interrupts,
) -> anyhow::Result<Option<Exit>> {
    let survey = enqueue::survey(cx, request.direction, Some(&request.target), &request.wanted);
    let Some(plan) = found(cx, interrupts, CANNOT_START, request.direction, survey).await? else {
        return Ok(Some(Exit::Interrupted));
    };
    let mut ways: BTreeMap<String, usize> = BTreeMap::new();
    let (mut open, mut unknown) = (0, 0);
    for planned in plan.tenants.iter().filter(|planned| !planned.current) {
        open += 1;
        match planned.unknown {
            Some(_) if !planned.from.is_known() => unknown += 1,
            _ => {
                *ways
                    .entry(way(planned.from.revision(), planned.to.revision()))
                    .or_default() += 1
            }
        }
    }
    if open == 0 {
        output::say("No tenant has anything to undo");
        return Ok(Some(Exit::Done));
    }
    let mut text = format!("This undoes migrations in {}:\n", count(open as u64, "tenant"));
    for (way, tenants) in ways {
        text += &format!("  {way}  in {}\n", count(tenants as u64, "tenant"));
    }
    if unknown > 0 {
        text += &format!(
            "  from an unknown revision in {}\n",
            count(unknown as u64, "tenant")
        );
    }
    text += "Everything that those migrations added is lost, including its data.";
    let yes = confirm::asked_unless_interrupted(&text, Some(open), interrupts).await?;
    Ok((yes != Some(true)).then_some(Exit::Interrupted))
}
