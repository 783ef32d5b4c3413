//! A fleet under faults: `just chaos --minutes 20 --seed 7`. See docs/RELIABILITY.md for what it holds Herder to.
//!
//! Real servers, real workers, real migrations, and a random stream of faults that a seed gives again. A [`Project`] is a
//! control database with its tenants and its [`Crew`] of workers; [`tracks`](track) take groups of tenants up and down,
//! round after round, and compare what each tenant shows with what it must show. Meanwhile a [`sampler`] on each server counts
//! sessions, and [`faults`] break things. At the end the [`report`] says which promises were kept; one that broke is exit
//! code 1.

mod args;
mod crew;
mod faults;
mod project;
mod proxy;
mod report;
mod sampler;
mod track;
mod world;

/// The harness of the integration tests: servers, programs and projects are the same here.
#[path = "../it"]
mod it {
    #![expect(dead_code, reason = "the integration tests use all of it")]
    #![expect(unused_imports, reason = "the integration tests use all of it")]
    pub(crate) mod fleet;
    pub(crate) mod server;
    pub(crate) mod venv;
}

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use it::{fleet, server, venv};

use self::args::Args;
use self::crew::Crew;
use self::faults::Faults;
use self::project::Project;
use self::report::Report;
use self::sampler::Samplers;
use self::track::Track;
use self::world::World;

fn main() -> ExitCode {
    let args = match Args::parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(usage) => {
            eprintln!("{usage}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let kept = runtime.block_on(run(args));
    // What still hangs, hangs; the report is written.
    runtime.shutdown_timeout(Duration::from_secs(2));
    match kept {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

async fn run(args: Args) -> bool {
    let world = World::start(&args).await;
    let projects = Project::all(&world, &args).await;
    let samplers = Samplers::start(&world, &projects);
    let crews: Vec<Arc<Crew>> = projects.iter().map(|p| Crew::start(&world, p)).collect();
    let faults = Faults::new(&world, &crews, &args);
    let mut tracks = Vec::new();
    for (project, crew) in projects.iter().zip(&crews) {
        for group in 0..project.groups.len() {
            let track = Track::new(&world, project, crew, group);
            tracks.push(tokio::spawn(track.run()));
        }
    }
    faults.run(Duration::from_secs_f64(args.minutes * 60.0)).await;
    world.say("no more faults; the runs that are open come to their end");
    world.finish();
    for track in tracks {
        track.await.expect("no panic in a track");
    }
    let mut leftovers = Vec::new();
    for (project, crew) in projects.iter().zip(&crews) {
        crew.end().await;
        leftovers.extend(project.leftovers(&world).await);
    }
    let sampled = samplers.end();
    let report = Report::new(&world, &args, &crews, sampled, leftovers).await;
    report.write(&world);
    report.print(&world);
    report.is_kept()
}
