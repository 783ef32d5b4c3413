//! The model: what runs, jobs and slots are, in a page of plain Rust.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use herder::domain::job::{AttemptId, Claim, Epoch, JobId};
use herder::domain::run::RunId;
use herder::store::run::Advanced;

use super::store::{MAX_STARTS, Store, name};
use super::{Event, SERVERS, WORKERS};

macro_rules! hold {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}

mod attempts;
mod comparison;
mod steering;

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
    /// Whether an attempt ended without a word: it may have committed.
    doubted: bool,
    connections: i16,
    delivery: Delivery,
}

impl Job {
    /// Its newest attempt.
    fn attempt(&self, id: JobId) -> AttemptId {
        AttemptId {
            job: id,
            epoch: self.epoch,
        }
    }
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
    attempt: AttemptId,
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
                self.slots
                    .retain(|_, hold| !hold.kept || (hold.worker, hold.attempt) != (worker, claim.attempt));
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
                    let job = self.job(claim.attempt.job);
                    (job.state, job.worker, job.starts) = ("ready", None, job.starts - 1);
                    job.doubted = true;
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
                let ours: Vec<_> = ours.map(|(id, job)| job.attempt(*id)).collect();
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

    fn job(&mut self, id: JobId) -> &mut Job {
        self.jobs.get_mut(&id).expect("a job")
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
