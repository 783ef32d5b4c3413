//! The stream of faults. A seed gives the same kinds, in the same order, at the same times, with the same choices.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use crate::args::Args;
use crate::crew::Crew;
use crate::fleet::Herder;
use crate::project::{CONTROL, TENANTS};
use crate::world::{World, locked, now, rows};

/// A kind of fault.
#[derive(Clone, Copy, Debug)]
enum Kind {
    KillWorker,
    StopWorker,
    DrainWorker,
    Resize,
    KillEnqueuer,
    CrashControl,
    CrashTenants,
    EndSession,
    CutNetwork,
    SilenceNetwork,
    Pause,
}

/// How often each comes, of all together.
const SHARES: [(Kind, u32); 11] = [
    (Kind::KillWorker, 20),
    (Kind::StopWorker, 6),
    (Kind::DrainWorker, 9),
    (Kind::Resize, 4),
    (Kind::KillEnqueuer, 4),
    (Kind::CrashControl, 2),
    (Kind::CrashTenants, 4),
    (Kind::EndSession, 32),
    (Kind::CutNetwork, 12),
    (Kind::SilenceNetwork, 4),
    (Kind::Pause, 5),
];

/// One that is to happen.
#[derive(Clone, Copy, Debug)]
struct Fault {
    after: Duration,
    kind: Kind,
    /// Which crew, of which each is as likely as it is large.
    crew: f64,
    /// Which worker, server, session or run.
    choice: usize,
    /// How long, from 0 to 1.
    length: f64,
}

/// All that can happen, and to whom.
pub(crate) struct Faults {
    world: Arc<World>,
    crews: Vec<Arc<Crew>>,
    rng: StdRng,
    /// Faults a second.
    rate: f64,
}

impl Faults {
    /// The stream of a seed.
    pub(crate) fn new(world: &Arc<World>, crews: &[Arc<Crew>], args: &Args) -> Self {
        Self {
            world: Arc::clone(world),
            crews: crews.to_vec(),
            rng: StdRng::seed_from_u64(args.seed),
            rate: args.rate / 60.0,
        }
    }

    fn next(&mut self) -> Fault {
        let all: u32 = SHARES.iter().map(|(_, share)| share).sum();
        let mut ticket = self.rng.random_range(0..all);
        let (kind, _) = SHARES
            .iter()
            .find(|(_, share)| {
                let hit = ticket < *share;
                ticket = ticket.saturating_sub(*share);
                hit
            })
            .expect("the shares add up");
        // As if each moment were as good as any other.
        let after = -(1.0 - self.rng.random::<f64>()).ln() / self.rate;
        Fault {
            after: Duration::from_secs_f64(after),
            kind: *kind,
            crew: self.rng.random(),
            choice: self.rng.random_range(0..1_000_000),
            length: self.rng.random(),
        }
    }

    /// Lets them happen, for so long, and waits until what was stopped goes on.
    pub(crate) async fn run(mut self, time: Duration) {
        let end = tokio::time::Instant::now() + time;
        let mut at = tokio::time::Instant::now();
        let mut going_on = JoinSet::new();
        loop {
            let fault = self.next();
            at += fault.after;
            if at >= end {
                break;
            }
            tokio::time::sleep_until(at).await;
            let (world, crew) = (Arc::clone(&self.world), self.crew(fault.crew));
            going_on.spawn(async move { happen(&world, &crew, fault).await });
            while going_on.try_join_next().is_some() {}
        }
        while let Some(ended) = going_on.join_next().await {
            ended.expect("no panic in a fault");
        }
    }

    fn crew(&self, choice: f64) -> Arc<Crew> {
        let sizes: Vec<usize> = self.crews.iter().map(|crew| crew.project.crew.1).collect();
        let mut at = choice * sizes.iter().sum::<usize>() as f64;
        let chosen = sizes.iter().position(|size| {
            at -= *size as f64;
            at < 0.0
        });
        Arc::clone(&self.crews[chosen.unwrap_or(0)])
    }
}

async fn happen(world: &World, crew: &Crew, fault: Fault) {
    let Fault { choice, length, .. } = fault;
    let between = |least: f64, most: f64| Duration::from_secs_f64(least + (most - least) * length);
    let name = crew.project.name;
    let happened = match fault.kind {
        Kind::KillWorker => crew.kill(choice).await.map(|who| ("kill -9 of a worker", who)),
        Kind::StopWorker => {
            // Longer than its lease.
            let stopped = crew.stop(choice, between(6.0, 14.0)).await;
            stopped.then(|| ("SIGSTOP of a worker, longer than its lease", name.to_owned()))
        }
        Kind::DrainWorker => crew
            .dismiss(choice)
            .then(|| ("SIGTERM of a worker", name.to_owned())),
        Kind::Resize => {
            crew.resize(choice);
            None
        }
        Kind::KillEnqueuer => {
            // Counted when it dies.
            crew.doomed_enqueuers.fetch_add(1, Ordering::Relaxed);
            None
        }
        Kind::CrashControl => {
            let crashed = world.crash(CONTROL, between(0.0, 2.0)).await;
            crashed.then(|| {
                (
                    "immediate restart of the control database's server",
                    String::new(),
                )
            })
        }
        Kind::CrashTenants => {
            let server = TENANTS[choice % TENANTS.len()];
            let crashed = world.crash(server, between(0.0, 3.0)).await;
            crashed.then(|| {
                (
                    "immediate restart of a tenants' server",
                    world.servers[server].name.to_owned(),
                )
            })
        }
        Kind::EndSession => end_session(world, choice)
            .await
            .map(|whose| ("a session ended by its server", whose)),
        Kind::CutNetwork => crew
            .cut(choice)
            .then(|| ("all connections of a worker reset", name.to_owned())),
        Kind::SilenceNetwork => {
            let cut_off = crew
                .cut_off(choice, between(4.0, 14.0), choice.is_multiple_of(2))
                .await;
            cut_off.then(|| ("a worker cut off from its servers", name.to_owned()))
        }
        Kind::Pause => pause(world, crew, choice, between(0.2, 2.0))
            .await
            .map(|run| ("pause and resume of a run", run)),
    };
    if let Some((what, whom)) = happened {
        world.count(what, 1);
        world.note(&format!("{what}: {whom}"));
    }
}

/// Ends one of the fleet's sessions, on any server.
async fn end_session(world: &World, choice: usize) -> Option<String> {
    let server = &world.servers[choice % world.servers.len()];
    let pool = server.pool("postgres");
    let sql = format!(
        "with fleet as (
             select pid, usename || ' on {}: ' || application_name as whose, row_number() over (order by pid) - 1 as nth,
                    count(*) over () as count
             from pg_stat_activity where backend_type = 'client backend' and usename ~ '_[0-9]+$'
         )
         select whose, pg_terminate_backend(pid) from fleet where nth = {choice} % count",
        server.name
    );
    let ended: Vec<(String, bool)> = rows(&pool, &sql).await;
    pool.close().await;
    ended.into_iter().find(|(_, done)| *done).map(|(whose, _)| whose)
}

/// Pauses an open run for a while, by the command line.
async fn pause(world: &World, crew: &Crew, choice: usize, length: Duration) -> Option<String> {
    let run = {
        let open = locked(&crew.open);
        open.iter().nth(choice % open.len().max(1)).cloned()?
    };
    let herder = async |verb| {
        let args = ["--config", "group-a.toml", verb, &run];
        Herder::start(&crew.project.dir, &args).end().await.code
    };
    let from = now();
    let paused = herder("pause").await == Some(0);
    tokio::time::sleep(length).await;
    // The answer may have got lost: it is resumed in any case, until it is not paused.
    let state = format!("select state from herder.run where id = '{run}'");
    while rows::<(String,)>(&crew.project.control, &state).await == [("paused".to_owned(),)] {
        herder("resume").await;
    }
    world.stood_still(&run, from);
    paused.then_some(run)
}
