//! `herder demo`: a fleet is migrated before one's eyes. It types the commands that a person would type, and does what
//! an unlucky day would do: kills a worker, and has one tenant fail.

mod project;
mod python;
mod stage;
mod troupe;

use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use herder::{
    domain::{
        job::JobState,
        outcome::AttemptResult,
        run::{RunId, RunState},
    },
    store::{self, run::Found, view},
};
use sqlx::PgPool;

use self::{project::Project, stage::Stage, troupe::Player};
use super::Setting;
use crate::{
    args::{Cli, Demo},
    exit::Exit,
    output,
    problem::Problem,
    render::{
        progress,
        style::{DIM, STRONG},
        words::count,
    },
    signals::Interrupts,
};

/// Jobs that a worker runs at a time: few enough to be watched, enough to be caught in the middle.
const CONCURRENCY: u16 = 4;

/// How long the workers may take until they take jobs.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// How often we look, where something is waited for.
const POLL: Duration = Duration::from_millis(20);

pub(crate) async fn run(args: &Demo) -> anyhow::Result<Exit> {
    let mut interrupts = Interrupts::new()?;
    let mut stage = Stage::default();
    let told = tokio::select! {
        // The signal first: the command on stage hears it, too, and would take its time to say goodbye.
        biased;
        () = interrupts.next() => Ok(Exit::Interrupted),
        told = story(args, &mut stage) => told,
    };
    if args.keep && told.is_ok() && !matches!(told, Ok(Exit::Interrupted)) {
        narrate(&format!(
            "Everything is kept until Ctrl-C: `herder status{}`",
            super::config_args(&stage.config())
        ));
        interrupts.next().await;
    }
    if stage.clean_up().await {
        narrate("Cleaned up: all processes, databases and files of the demo are gone");
    }
    told
}

/// The demo from its first to its last step.
async fn story(args: &Demo, stage: &mut Stage) -> anyhow::Result<Exit> {
    let program = troupe::worker_program().await?;
    let project = match args.alembic {
        true => Project::alembic(&stage.python().await?),
        false => Project::sql(),
    };
    let server = stage.open(args.database_url.as_deref()).await?;
    narrate(&server);
    stage.furnish(&project)?;
    typed(stage, &["setup"], Exit::Done).await?;

    narrate(&format!(
        "Creating {} of a small product, each a schema with data, at revision {}",
        count(args.tenants, "tenant"),
        project.start
    ));
    stage.make_tenants(args.tenants, &project).await?;
    let unlucky = stage::tenant(args.tenants * 7 / 12);
    narrate(&format!(
        "One of them, {unlucky}, has a problem: {}",
        project.problem
    ));
    stage.tenant_sql(&unlucky, project.trouble).await?;

    narrate(&format!(
        "Starting two workers, {CONCURRENCY} jobs at a time each: amber and birch"
    ));
    let mut amber = stage.player(&program, "amber")?;
    let birch = stage.player(&program, "birch")?;
    workers_ready(stage, &mut [&mut amber], 2).await?;

    let pool = stage.control()?;
    let before = latest(&pool).await?;
    let (upgraded, killed) = tokio::join!(
        typed(stage, &["upgrade", "--to", "head", "--wait"], Exit::Failed),
        kill_in_the_middle(&pool, before, amber),
    );
    upgraded?;
    let run = latest(&pool).await?.context("the demo's run was not found")?;
    if let Some(held) = killed? {
        let rescued = rescued(&pool, run).await?;
        narrate(&format!(
            "amber died while it held {}; birch took over {rescued}. Each tenant's own ledger showed where to continue",
            count(held, "tenant")
        ));
    }

    typed(stage, &["status", "--failed"], Exit::Done).await?;
    narrate(&format!("Repairing {unlucky}: {}", project.mend));
    stage.tenant_sql(&unlucky, project.mend).await?;
    typed(stage, &["retry", "--wait"], Exit::Done).await?;

    narrate("Checking that every tenant's own ledger agrees");
    typed(stage, &["plan", "--check"], Exit::Done).await?;
    drop(birch);
    pool.close().await;
    Ok(Exit::Done)
}

/// Says what happens now.
fn narrate(text: &str) {
    progress::aside(|| {
        // Nobody listening is no error.
        let _ = output::data(&format!("\n{STRONG}▸ {text}{STRONG:#}\n"));
    });
}

/// Runs a command of ours as a person would type it, and makes sure that it ends as it should.
async fn typed(stage: &Stage, args: &[&str], expected: Exit) -> anyhow::Result<()> {
    progress::aside(|| {
        let _ = output::data(&format!("\n{DIM}${DIM:#} herder {}\n", args.join(" ")));
    });
    let cli = Cli::try_parse_from(std::iter::once(&"herder").chain(args))?;
    let setting = Setting {
        path: stage.config(),
        // It would only make the hints long.
        given: false,
    };
    let exit = Box::pin(super::run(&setting, cli.command)).await?;
    if exit != expected {
        anyhow::bail!(
            "`herder {}` ended with {exit:?}, not with {expected:?}",
            args.join(" ")
        );
    }
    Ok(())
}

async fn latest(pool: &PgPool) -> anyhow::Result<Option<RunId>> {
    Ok(match store::run::find(pool, None).await? {
        Found::One(run) => Some(run),
        Found::None | Found::Several(_) => None,
    })
}

/// Waits until so many workers take jobs.
async fn workers_ready(stage: &Stage, players: &mut [&mut Player], wanted: i64) -> anyhow::Result<()> {
    let pool = stage.control()?;
    let deadline = tokio::time::Instant::now() + READY_LIMIT;
    while view::workers(&pool).await?.alive() < wanted {
        let gone = players.iter_mut().find_map(|player| player.gone());
        if let Some(log) = gone {
            return Err(Problem::set_up("a worker ended before it was ready")
                .caused_by(anyhow::anyhow!(log))
                .into());
        }
        if tokio::time::Instant::now() > deadline {
            anyhow::bail!(
                "the workers were not ready after {} seconds",
                READY_LIMIT.as_secs()
            );
        }
        tokio::time::sleep(POLL).await;
    }
    pool.close().await;
    Ok(())
}

/// Waits until a quarter of the next run is done and the worker has its hands full, then kills it as a full machine or
/// a lost node would. Returns how many tenants it held. None: the run was over before that.
async fn kill_in_the_middle(
    pool: &PgPool,
    before: Option<RunId>,
    worker: Player,
) -> anyhow::Result<Option<usize>> {
    loop {
        tokio::time::sleep(POLL).await;
        let Some(run) = latest(pool).await?.filter(|run| Some(*run) != before) else {
            continue;
        };
        let Some(view) = view::runs(pool, Some(run), 1).await?.pop() else {
            continue;
        };
        if view.state != RunState::Running {
            return Ok(None);
        }
        let done = view.count(JobState::Succeeded);
        let running = view::jobs(pool, run, Some(JobState::Running), None).await?;
        let held = running
            .iter()
            .filter(|job| job.worker.as_deref().is_some_and(|id| worker.is(id)));
        let held = held.count();
        if done * 4 < i64::from(view.tenants) || held == 0 {
            continue;
        }
        worker.kill();
        narrate(&format!(
            "kill -9: amber was killed in the middle of {}",
            count(held as u64, "tenant")
        ));
        return Ok(Some(held));
    }
}

/// How many tenants were taken from a lost worker.
async fn rescued(pool: &PgPool, run: RunId) -> anyhow::Result<usize> {
    let events = view::events(pool, run, None).await?;
    Ok(events
        .iter()
        .filter(|event| event.result() == Some(AttemptResult::Rescued))
        .count())
}
