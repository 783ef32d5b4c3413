//! Claims, settlements, and the rescue of what a dead worker held.

use super::*;

impl Machine<'_> {
    pub(super) async fn start(
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
                doubted: false,
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
    pub(super) fn claimed(&mut self, worker: usize, limit: usize, claims: &[Claim]) -> Result<(), String> {
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
            let running = self
                .jobs
                .get(&claim.attempt.job)
                .map(|job| self.runs[job.run].state);
            hold!(
                running == Some("running"),
                "a job of a run that is {running:?}: {claim:?}"
            );
            let job = self.job(claim.attempt.job);
            hold!(
                job.state == "ready" && job.delivery == Delivery::Pending,
                "{claim:?} was {} without a delivery",
                job.state
            );
            hold!(
                claim.attempt.epoch == job.epoch + 1,
                "{claim:?} after epoch {}",
                job.epoch
            );
            hold!(
                claim.in_doubt == job.doubted,
                "{claim:?} is in doubt: {}, not {}",
                claim.in_doubt,
                job.doubted
            );
            (job.state, job.epoch, job.starts) = ("running", claim.attempt.epoch, job.starts + 1);
            (job.worker, job.delivery) = (Some(worker), Delivery::Done);
            let (server, connections) = (job.server, job.connections);
            let slots = job_slots(self.budgets[server]);
            hold!(
                claim.slots.len() == usize::try_from(connections).expect("a count"),
                "{claim:?} has not its {connections} slots"
            );
            for number in &claim.slots {
                let hold = Hold {
                    attempt: claim.attempt,
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
    pub(super) fn not_idle(
        &self,
        claims: &[(usize, usize, usize)],
        free: &[(String, i64)],
    ) -> Result<(), String> {
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

    pub(super) fn taken(&self, server: usize) -> i64 {
        let here = self.slots.keys().filter(|(at, _)| *at == server);
        i64::try_from(here.count()).expect("a count")
    }

    pub(super) fn is_live(&self, worker: usize, claim: &Claim) -> bool {
        let job = &self.jobs[&claim.attempt.job];
        job.state == "running" && job.epoch == claim.attempt.epoch && job.worker == Some(worker)
    }

    pub(super) fn free(&mut self, claim: &Claim) {
        self.slots.retain(|_, hold| hold.attempt != claim.attempt);
    }

    pub(super) async fn settle(&mut self, worker: usize, claims: &[Claim], how: How, keep: bool) -> Said {
        let live: Vec<Claim> = claims
            .iter()
            .filter(|claim| self.is_live(worker, claim))
            .cloned()
            .collect();
        let mut settled = self.store.settle(worker, claims, how, keep).await;
        let mut expected: Vec<_> = live.iter().map(|claim| claim.attempt).collect();
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

    pub(super) fn settled(&mut self, claim: &Claim, how: How, keep: bool) {
        if keep {
            let of = self
                .slots
                .values_mut()
                .filter(|hold| hold.attempt == claim.attempt);
            of.for_each(|hold| hold.kept = true);
        } else {
            self.free(claim);
        }
        let live_connections = self.runs[self.jobs[&claim.attempt.job].run].plan.live;
        let job = self.job(claim.attempt.job);
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
        job.doubted &= how != How::Succeed;
        if job.state == "ready" {
            job.deliver();
        }
    }

    pub(super) async fn rescue(&mut self) -> Said {
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
            let of_it = holds.filter(|hold| hold.attempt == job.attempt(*id));
            of_it.for_each(|hold| hold.suspect = true);
            let cancelled = self.runs[job.run].state == "cancelled";
            let parked = !cancelled && job.starts >= MAX_STARTS;
            job.state = match (cancelled, parked) {
                (true, _) => "cancelled",
                (_, true) => "failed",
                _ => "ready",
            };
            (job.worker, job.doubted) = (None, true);
            if job.state == "ready" {
                job.deliver();
            }
            let found = rescued.iter().find(|r| r.attempt.job == *id);
            hold!(
                found.is_some_and(|r| r.attempt.epoch == job.epoch && r.parked == parked),
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
}
