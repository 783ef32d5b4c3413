//! The model: what runs, jobs and slots are, in a page of plain Rust.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use herder::domain::job::{Claim, Epoch, JobId};
use herder::domain::run::RunId;
use herder::store::run::Advanced;

use super::store::{MAX_STARTS, Store, name};
use super::{Event, SERVERS, WORKERS};

/// How an attempt ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    Succeed,
    Fail,
    Retry,
    Snooze,
    Return,
    Live,
    Skip,
    Cancelled,
}

/// A run that is to be made.
pub(super) struct Plan {
    pub(super) waves: i32,
    pub(super) canary: bool,
    pub(super) failure_limit: Option<i32>,
    /// How many slots a job takes without a plan.
    pub(super) live: i16,
    /// Server, wave and slots of each.
    pub(super) jobs: Vec<(usize, i32, i16)>,
}

struct Run {
    id: RunId,
    state: &'static str,
    wave: i32,
    forgiven: usize,
    plan: Plan,
}

struct Job {
    run: usize,
    server: usize,
    wave: i32,
    state: &'static str,
    epoch: Epoch,
    worker: Option<usize>,
    starts: i32,
    failures: i32,
    connections: i16,
    delivery: Delivery,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Delivery {
    Pending,
    Done,
    /// Somebody deleted it.
    Lost,
}

/// What a slot is taken for.
struct Hold {
    job: JobId,
    epoch: Epoch,
    worker: usize,
    /// No longer for the attempt, but for the connection that its worker keeps open.
    kept: bool,
    suspect: bool,
}

/// The model, beside the store that it is a model of.
pub(super) struct Machine<'a> {
    store: &'a Store,
    runs: Vec<Run>,
    jobs: BTreeMap<JobId, Job>,
    /// By server and number. What is not in here is free.
    slots: BTreeMap<(usize, i32), Hold>,
    alive: [bool; WORKERS],
    budgets: [i64; SERVERS.len()],
    /// All attempts that were ever made, by whom.
    attempts: Vec<(usize, Claim)>,
    /// All that came about.
    pub(super) seen: BTreeSet<&'static str>,
}

/// What a step came to; or how it was wrong.
type Said = Result<&'static str, String>;

macro_rules! hold {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}

impl<'a> Machine<'a> {
    pub(super) async fn new(store: &'a Store) -> Self {
        Self {
            store,
            runs: Vec::new(),
            jobs: BTreeMap::new(),
            slots: BTreeMap::new(),
            alive: [true; WORKERS],
            budgets: [5; SERVERS.len()],
            attempts: Vec::new(),
            seen: BTreeSet::new(),
        }
    }

    /// Lets something happen, in the store and here.
    pub(super) async fn step(&mut self, event: &Event) -> Said {
        let said = self.happen(event).await?;
        self.seen.insert(said);
        Ok(said)
    }

    async fn happen(&mut self, event: &Event) -> Said {
        match event {
            Event::Start {
                jobs,
                waves,
                canary,
                failure_limit,
                wide,
            } => self.start(*jobs, *waves, *canary, *failure_limit, *wide).await,
            Event::Claim { worker, limit } => {
                let free = self.store.free_slots().await;
                let claims = self.store.claim(*worker, *limit).await;
                self.claimed(*worker, *limit, &claims)?;
                self.not_idle(&[(*worker, *limit, claims.len())], &free)?;
                Ok(if claims.is_empty() {
                    "claimed nothing"
                } else {
                    "claimed"
                })
            }
            Event::Race { limit } => {
                let all = join_all((0..WORKERS).map(|worker| self.store.claim(worker, *limit))).await;
                let raced = all.iter().filter(|claims| !claims.is_empty()).count() > 1;
                for (worker, claims) in all.iter().enumerate() {
                    self.claimed(worker, *limit, claims)?;
                }
                Ok(if raced { "raced" } else { "nobody raced" })
            }
            Event::Settle { attempt, how, keep } => {
                let Some((worker, claim)) = pick(&self.attempts, *attempt).cloned() else {
                    return Ok("idle");
                };
                self.settle(worker, &[claim], *how, *keep).await
            }
            Event::SettleLive { attempt, how, keep } => {
                let alive = |(worker, claim): &&(usize, Claim)| self.is_live(*worker, claim);
                let live: Vec<_> = self.attempts.iter().filter(alive).cloned().collect();
                let Some((worker, claim)) = pick(&live, *attempt) else {
                    return Ok("idle");
                };
                self.settle(*worker, std::slice::from_ref(claim), *how, *keep)
                    .await
            }
            Event::SettleAll { worker, how, keep } => {
                let of = self.attempts.iter().rev().filter(|(w, _)| w == worker);
                let claims: Vec<Claim> = of.take(6).map(|(_, claim)| claim.clone()).collect();
                self.settle(*worker, &claims, *how, *keep).await
            }
            Event::Release { attempt } => {
                let Some((worker, claim)) = pick(&self.attempts, *attempt).cloned() else {
                    return Ok("idle");
                };
                let before = self.slots.len();
                self.slots.retain(|_, hold| {
                    !hold.kept || (hold.worker, hold.job, hold.epoch) != (worker, claim.job, claim.epoch)
                });
                let (released, gone) = (
                    self.store.release(worker, &claim).await,
                    before - self.slots.len(),
                );
                hold!(
                    released == gone as u64,
                    "{released} released, not {gone}: {claim:?}"
                );
                Ok(if gone > 0 { "released" } else { "idle" })
            }
            Event::GiveBack { attempt } => {
                let Some((worker, claim)) = pick(&self.attempts, *attempt).cloned() else {
                    return Ok("idle");
                };
                let live = self.is_live(worker, &claim);
                hold!(
                    self.store.give_back(worker, &claim).await == live,
                    "give back of {claim:?}: live {live}"
                );
                if live {
                    self.free(&claim);
                    let job = self.job(claim.job);
                    (job.state, job.worker, job.starts) = ("ready", None, job.starts - 1);
                    job.deliver();
                }
                Ok("given back")
            }
            Event::Publish { attempt } => {
                let Some((_, claim)) = pick(&self.attempts, *attempt) else {
                    return Ok("idle");
                };
                self.store.publish(claim).await;
                Ok("published")
            }
            Event::Beat { worker } => {
                self.alive[*worker] = true;
                let held = self.store.beat(*worker).await;
                let ours = self.jobs.iter().filter(|(_, job)| job.worker == Some(*worker));
                let ours: Vec<_> = ours.map(|(id, job)| (*id, job.epoch)).collect();
                hold!(held == ours, "{} holds {held:?}, not {ours:?}", name(*worker));
                Ok("beaten")
            }
            Event::Expire { worker } => {
                self.alive[*worker] = false;
                self.store.expire(*worker).await;
                Ok("expired")
            }
            Event::Rescue => self.rescue().await,
            Event::Reclaim => {
                let before = self.slots.len();
                self.slots.retain(|_, hold| !hold.suspect);
                let (freed, gone) = (self.store.reclaim().await, before - self.slots.len());
                hold!(freed == gone as u64, "{freed} reclaimed, not {gone}");
                Ok(if gone > 0 { "reclaimed" } else { "idle" })
            }
            Event::Pause(run) => self.pause(*run).await,
            Event::Resume(run) => self.resume(*run).await,
            Event::Cancel(run) => self.cancel(*run).await,
            Event::Retry(run) => self.retry(*run).await,
            Event::Advance(run) => {
                let Some(run) = self.nth_run(*run) else {
                    return Ok("idle");
                };
                self.advance(run).await
            }
            Event::Mend => self.mend().await,
            Event::LoseDelivery(nth) => {
                let jobs: Vec<JobId> = self.jobs.keys().copied().collect();
                let Some(job) = pick(&jobs, *nth) else {
                    return Ok("idle");
                };
                self.store.lose_delivery(*job).await;
                self.job(*job).delivery = Delivery::Lost;
                Ok("lost a delivery")
            }
            Event::Budget { server, budget } => {
                self.store.budget(SERVERS[*server], *budget).await;
                self.budgets[*server] = i64::from(*budget);
                Ok("changed a budget")
            }
        }
    }

    async fn start(
        &mut self,
        jobs: usize,
        waves: i32,
        canary: bool,
        failure_limit: Option<i32>,
        wide: bool,
    ) -> Said {
        let jobs = (0..jobs)
            .map(|nth| {
                let wave = i32::try_from(nth).expect("few") % waves;
                (
                    nth % SERVERS.len(),
                    wave,
                    if wide && nth % 3 == 0 { 2 } else { 1 },
                )
            })
            .collect();
        let plan = Plan {
            waves,
            canary: canary && waves > 1,
            failure_limit,
            live: if wide { 2 } else { 1 },
            jobs,
        };
        let id = RunId::from_u128(self.runs.len() as u128 + 1);
        let ids = self.store.start(id, &plan).await;
        hold!(
            ids.len() == plan.jobs.len(),
            "{} jobs of {}",
            ids.len(),
            plan.jobs.len()
        );
        for (id, (server, wave, connections)) in ids.into_iter().zip(&plan.jobs) {
            let job = Job {
                run: self.runs.len(),
                server: *server,
                wave: *wave,
                state: if *wave == 0 { "ready" } else { "waiting" },
                epoch: 0,
                worker: None,
                starts: 0,
                failures: 0,
                connections: *connections,
                delivery: if *wave == 0 {
                    Delivery::Pending
                } else {
                    Delivery::Lost
                },
            };
            self.jobs.insert(id, job);
        }
        self.runs.push(Run {
            id,
            state: "running",
            wave: 0,
            forgiven: 0,
            plan,
        });
        Ok("started")
    }

    /// What a worker claimed was to be had, and it got no more than it asked for.
    fn claimed(&mut self, worker: usize, limit: usize, claims: &[Claim]) -> Result<(), String> {
        hold!(
            claims.len() <= limit,
            "{} claimed, {limit} asked for",
            claims.len()
        );
        hold!(
            self.alive[worker] || claims.is_empty(),
            "{} has no lease, and claimed",
            name(worker)
        );
        for claim in claims {
            let running = self.jobs.get(&claim.job).map(|job| self.runs[job.run].state);
            hold!(
                running == Some("running"),
                "a job of a run that is {running:?}: {claim:?}"
            );
            let job = self.job(claim.job);
            hold!(
                job.state == "ready" && job.delivery == Delivery::Pending,
                "{claim:?} was {} without a delivery",
                job.state
            );
            hold!(
                claim.epoch == job.epoch + 1,
                "{claim:?} after epoch {}",
                job.epoch
            );
            (job.state, job.epoch, job.starts) = ("running", claim.epoch, job.starts + 1);
            (job.worker, job.delivery) = (Some(worker), Delivery::Done);
            let (server, connections) = (job.server, job.connections);
            let slots = job_slots(self.budgets[server]);
            hold!(
                claim.slots.len() == usize::try_from(connections).expect("a count"),
                "{claim:?} has not its {connections} slots"
            );
            for number in &claim.slots {
                let hold = Hold {
                    job: claim.job,
                    epoch: claim.epoch,
                    worker,
                    kept: false,
                    suspect: false,
                };
                let before = self.slots.insert((server, *number), hold);
                let (fresh, taken) = (before.is_none(), self.taken(server));
                // What a lowered budget has left over may be used again, and nothing may be added to it.
                hold!(!fresh || taken <= slots, "{taken} of {slots} slots taken");
                let ours = before.is_none_or(|b| b.kept && !b.suspect && b.worker == worker);
                hold!(
                    ours && i64::from(*number) <= slots,
                    "{claim:?} took what was not to be had"
                );
            }
            self.attempts.push((worker, claim.clone()));
        }
        Ok(())
    }

    /// A worker that could have claimed something did.
    fn not_idle(&self, claims: &[(usize, usize, usize)], free: &[(String, i64)]) -> Result<(), String> {
        for (worker, limit, got) in claims {
            // At most two slots a job: with as many, any job fits.
            let fits = |job: &Job| {
                job.state == "ready"
                    && job.delivery == Delivery::Pending
                    && self.runs[job.run].state == "running"
                    && free
                        .iter()
                        .any(|(server, n)| server == SERVERS[job.server] && *n >= 2)
                    && self.taken(job.server) + 2 <= job_slots(self.budgets[job.server])
            };
            let idle = *got == 0 && *limit > 0 && self.alive[*worker];
            hold!(
                !idle || !self.jobs.values().any(fits),
                "{} was idle beside due jobs",
                name(*worker)
            );
        }
        Ok(())
    }

    fn taken(&self, server: usize) -> i64 {
        let here = self.slots.keys().filter(|(at, _)| *at == server);
        i64::try_from(here.count()).expect("a count")
    }

    fn is_live(&self, worker: usize, claim: &Claim) -> bool {
        let job = &self.jobs[&claim.job];
        job.state == "running" && job.epoch == claim.epoch && job.worker == Some(worker)
    }

    fn job(&mut self, id: JobId) -> &mut Job {
        self.jobs.get_mut(&id).expect("a job")
    }

    fn free(&mut self, claim: &Claim) {
        self.slots
            .retain(|_, hold| (hold.job, hold.epoch) != (claim.job, claim.epoch));
    }

    async fn settle(&mut self, worker: usize, claims: &[Claim], how: How, keep: bool) -> Said {
        let live: Vec<Claim> = claims
            .iter()
            .filter(|claim| self.is_live(worker, claim))
            .cloned()
            .collect();
        let mut settled = self.store.settle(worker, claims, how, keep).await;
        let mut expected: Vec<_> = live.iter().map(|claim| (claim.job, claim.epoch)).collect();
        settled.sort_unstable();
        expected.sort_unstable();
        hold!(
            settled == expected,
            "settled {settled:?}, alive were {expected:?}"
        );
        for claim in &live {
            self.settled(claim, how, keep);
        }
        Ok(match live.len() {
            0 => "came too late",
            1 => "settled",
            _ => "settled several",
        })
    }

    fn settled(&mut self, claim: &Claim, how: How, keep: bool) {
        if keep {
            let of = self
                .slots
                .values_mut()
                .filter(|hold| (hold.job, hold.epoch) == (claim.job, claim.epoch));
            of.for_each(|hold| hold.kept = true);
        } else {
            self.free(claim);
        }
        let live_connections = self.runs[self.jobs[&claim.job].run].plan.live;
        let job = self.job(claim.job);
        (job.worker, job.starts) = (None, 0);
        if matches!(how, How::Fail | How::Retry) {
            job.failures += 1;
        }
        if how == How::Live {
            job.connections = live_connections;
        }
        job.state = match how {
            How::Succeed => "succeeded",
            How::Fail => "failed",
            How::Skip => "skipped",
            How::Cancelled => "cancelled",
            How::Retry | How::Snooze | How::Return | How::Live => "ready",
        };
        if job.state == "ready" {
            job.deliver();
        }
    }

    async fn rescue(&mut self) -> Said {
        let rescued = self.store.rescue().await;
        let mut said = "idle";
        let lost = self
            .jobs
            .iter_mut()
            .filter(|(_, job)| job.worker.is_some_and(|w| !self.alive[w]));
        let mut count = 0;
        for (id, job) in lost {
            count += 1;
            let holds = self.slots.values_mut();
            let of_it = holds.filter(|hold| (hold.job, hold.epoch) == (*id, job.epoch));
            of_it.for_each(|hold| hold.suspect = true);
            let cancelled = self.runs[job.run].state == "cancelled";
            let parked = !cancelled && job.starts >= MAX_STARTS;
            job.state = match (cancelled, parked) {
                (true, _) => "cancelled",
                (_, true) => "failed",
                _ => "ready",
            };
            job.worker = None;
            if job.state == "ready" {
                job.deliver();
            }
            let found = rescued.iter().find(|r| r.job == *id);
            hold!(
                found.is_some_and(|r| r.epoch == job.epoch && r.parked == parked),
                "{id}: {found:?}"
            );
            if said != "parked" {
                said = if parked { "parked" } else { "rescued" };
            }
        }
        hold!(rescued.len() == count, "{} rescued, {count} lost", rescued.len());
        // The connections that a lost worker kept are lost as well.
        let kept = self
            .slots
            .values_mut()
            .filter(|hold| hold.kept && !self.alive[hold.worker]);
        kept.for_each(|hold| hold.suspect = true);
        Ok(said)
    }

    fn nth_run(&self, nth: usize) -> Option<usize> {
        // The later ones are those that are still open.
        (!self.runs.is_empty()).then(|| self.runs.len() - 1 - nth % self.runs.len())
    }

    fn jobs_of(&mut self, run: usize) -> impl Iterator<Item = &mut Job> {
        self.jobs.values_mut().filter(move |job| job.run == run)
    }

    fn count(&self, run: usize, states: &[&str]) -> usize {
        let of = self.jobs.values().filter(|job| job.run == run);
        of.filter(|job| states.contains(&job.state)).count()
    }

    fn push(&mut self, run: usize) {
        for job in self.jobs_of(run).filter(|job| job.state == "ready") {
            job.delivery = Delivery::Pending;
        }
    }

    async fn pause(&mut self, nth: usize) -> Said {
        let Some(at) = self.nth_run(nth) else {
            return Ok("idle");
        };
        let run = &mut self.runs[at];
        let can = run.state == "running";
        hold!(
            self.store.pause(run.id).await == can,
            "a pause of a run that is {}",
            run.state
        );
        if can {
            run.state = "paused";
        }
        Ok("paused")
    }

    async fn resume(&mut self, nth: usize) -> Said {
        let Some(at) = self.nth_run(nth) else {
            return Ok("idle");
        };
        let failed = self.count(at, &["failed"]);
        let run = &mut self.runs[at];
        let can = ["running", "paused", "halted"].contains(&run.state);
        hold!(
            self.store.resume(run.id).await == can,
            "a resume of a run that is {}",
            run.state
        );
        if run.state == "halted" {
            run.forgiven = failed;
        }
        if can {
            run.state = "running";
        }
        self.push(at);
        self.advanced(at);
        Ok("resumed")
    }

    async fn cancel(&mut self, nth: usize) -> Said {
        let Some(at) = self.nth_run(nth) else {
            return Ok("idle");
        };
        let run = &mut self.runs[at];
        let can = ["running", "paused", "halted"].contains(&run.state);
        hold!(
            self.store.cancel(run.id).await == can,
            "a cancel of a run that is {}",
            run.state
        );
        if can {
            run.state = "cancelled";
        }
        self.cancel_open(at);
        Ok("cancelled")
    }

    fn cancel_open(&mut self, run: usize) {
        for job in self
            .jobs_of(run)
            .filter(|job| ["waiting", "ready"].contains(&job.state))
        {
            job.state = "cancelled";
            if job.delivery == Delivery::Pending {
                job.delivery = Delivery::Done;
            }
        }
    }

    async fn retry(&mut self, nth: usize) -> Said {
        let Some(at) = self.nth_run(nth) else {
            return Ok("idle");
        };
        let final_ = self.runs[at].state == "cancelled";
        let failed = if final_ { 0 } else { self.count(at, &["failed"]) };
        let retried = self.store.retry(self.runs[at].id).await;
        hold!(retried == failed as u64, "{retried} retried, {failed} had failed");
        if failed == 0 {
            return Ok("idle");
        }
        for job in self.jobs_of(at).filter(|job| job.state == "failed") {
            (job.state, job.starts, job.failures, job.delivery) = ("ready", 0, 0, Delivery::Pending);
        }
        (self.runs[at].state, self.runs[at].forgiven) = ("running", 0);
        Ok("retried")
    }

    async fn advance(&mut self, at: usize) -> Said {
        let said = self.store.advance(self.runs[at].id).await;
        let expected = self.advanced(at);
        let came = match said {
            Advanced::No => "nothing to advance",
            Advanced::Opened { .. } => "opened",
            Advanced::Halted(_) => "halted",
            Advanced::Settled(_) => "over",
        };
        hold!(came == expected, "advance said {said:?}, not {expected}");
        Ok(came)
    }

    /// What an advance does, and what it is called.
    fn advanced(&mut self, at: usize) -> &'static str {
        let (all_failed, waiting) = (self.count(at, &["failed"]), self.count(at, &["waiting"]));
        let open = self.count(at, &["ready", "running"]);
        let next = self
            .jobs_of(at)
            .filter(|job| job.state == "waiting")
            .map(|job| job.wave)
            .min();
        let run = &mut self.runs[at];
        let failed = all_failed.saturating_sub(run.forgiven);
        let over = run
            .plan
            .failure_limit
            .is_some_and(|limit| failed > usize::try_from(limit).expect("a count"));
        let canary = run.plan.canary && run.wave == 0 && failed > 0 && open == 0 && waiting > 0;
        if run.state != "running" {
            return "nothing to advance";
        }
        if (over && open + waiting > 0) || canary {
            run.state = "halted";
            return "halted";
        }
        if open > 0 {
            return "nothing to advance";
        }
        let Some(next) = next else {
            run.state = if all_failed > 0 { "failed" } else { "succeeded" };
            return "over";
        };
        run.wave = next;
        for job in self
            .jobs_of(at)
            .filter(|job| job.state == "waiting" && job.wave == next)
        {
            job.state = "ready";
        }
        self.push(at);
        "opened"
    }

    async fn mend(&mut self) -> Said {
        let pushed = self.store.mend().await;
        let mut missing = 0;
        for at in 0..self.runs.len() {
            match self.runs[at].state {
                "cancelled" => self.cancel_open(at),
                "running" => {
                    let lost = self
                        .jobs_of(at)
                        .filter(|j| j.state == "ready" && j.delivery != Delivery::Pending);
                    missing += lost.count() as u64;
                    self.push(at);
                }
                _ => {}
            }
        }
        hold!(pushed == missing, "{pushed} pushed again, {missing} were missing");
        Ok(if missing > 0 { "mended" } else { "idle" })
    }

    /// The tables say what the model says: no job is lost, no two attempts at one are alive, and the slots are those of
    /// the running jobs and of what is suspect.
    pub(super) async fn compare(&self) -> Result<(), String> {
        let mut expected = Vec::new();
        for (id, job) in &self.jobs {
            expected.push(format!(
                "job {id} {} epoch {} worker {} starts {} failures {} connections {} delivery {}",
                job.state,
                job.epoch,
                job.worker.map_or("-".into(), name),
                job.starts,
                job.failures,
                job.connections,
                if job.delivery == Delivery::Pending {
                    't'
                } else {
                    'f'
                },
            ));
            if job.state == "running" {
                expected.push(format!("attempt {id}/{} is open", job.epoch));
            }
        }
        for ((server, number), hold) in &self.slots {
            expected.push(format!(
                "slot {}/{number} of {}/{} by {}, {}, suspect {}",
                SERVERS[*server],
                hold.job,
                hold.epoch,
                name(hold.worker),
                if hold.kept { "kept" } else { "attempt" },
                if hold.suspect { 't' } else { 'f' },
            ));
        }
        for run in &self.runs {
            expected.push(format!(
                "run {} {} wave {} forgiven {}",
                run.id, run.state, run.wave, run.forgiven
            ));
        }
        let mut found = self.store.lines().await;
        found.sort_unstable();
        expected.sort_unstable();
        let missing: Vec<_> = expected.iter().filter(|line| !found.contains(line)).collect();
        let surplus: Vec<_> = found.iter().filter(|line| !expected.contains(line)).collect();
        hold!(
            found == expected,
            "the model says\n  {missing:#?}\nand the tables say\n  {surplus:#?}"
        );
        Ok(())
    }

    /// However it stands, honest workers bring it to an end: nothing is stranded.
    pub(super) async fn come_to_an_end(&mut self) -> Result<(), String> {
        for server in 0..SERVERS.len() {
            self.step(&Event::Budget { server, budget: 5 }).await?;
        }
        for worker in 0..WORKERS {
            self.step(&Event::Expire { worker }).await?;
        }
        for event in [Event::Rescue, Event::Reclaim, Event::Beat { worker: 0 }] {
            self.step(&event).await?;
        }
        for run in 0..self.runs.len() {
            self.step(&Event::Resume(run)).await?;
        }
        // Each round brings at least one job to its end, or opens a wave.
        for _ in 0..2 * self.jobs.len() + self.runs.len() {
            self.step(&Event::Mend).await?;
            self.step(&Event::Claim { worker: 0, limit: 10 }).await?;
            let done = Event::SettleLive {
                attempt: 0,
                how: How::Succeed,
                keep: false,
            };
            while self.step(&done).await? == "settled" {}
            for run in 0..self.runs.len() {
                self.step(&Event::Advance(run)).await?;
                if self.runs[run].state == "halted" {
                    let nth = self.runs.len() - 1 - run;
                    self.step(&Event::Resume(nth)).await?;
                }
            }
        }
        self.compare().await?;
        let open = |job: &Job| ["waiting", "ready", "running"].contains(&job.state);
        let stranded: Vec<_> = self
            .jobs
            .iter()
            .filter(|(_, job)| open(job))
            .map(|(id, _)| id)
            .collect();
        hold!(stranded.is_empty(), "stranded: {stranded:?}");
        let unsettled: Vec<_> = self
            .runs
            .iter()
            .filter(|r| ["running", "halted", "paused"].contains(&r.state))
            .map(|r| r.id)
            .collect();
        hold!(unsettled.is_empty(), "not over: {unsettled:?}");
        let expire = Event::Expire { worker: 0 };
        for event in [expire, Event::Rescue, Event::Reclaim] {
            self.step(&event).await?;
        }
        self.compare().await?;
        hold!(self.slots.is_empty(), "slots are left");
        Ok(())
    }
}

impl Job {
    /// Its delivery is to be had again, where there is one.
    fn deliver(&mut self) {
        if self.delivery == Delivery::Done {
            self.delivery = Delivery::Pending;
        }
    }
}

/// All but one where there are three: that one is for inspection.
fn job_slots(budget: i64) -> i64 {
    if budget >= 3 { budget - 1 } else { budget }
}

/// One of them, whatever the number.
fn pick<T>(list: &[T], nth: usize) -> Option<&T> {
    list.get(nth % list.len().max(1))
}
