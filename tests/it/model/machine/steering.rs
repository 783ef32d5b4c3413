//! What people and keepers do to runs.

use super::*;

impl Machine<'_> {
    pub(super) async fn pause(&mut self, nth: usize) -> Said {
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

    pub(super) async fn resume(&mut self, nth: usize) -> Said {
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

    pub(super) async fn cancel(&mut self, nth: usize) -> Said {
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

    pub(super) fn cancel_open(&mut self, run: usize) {
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

    pub(super) async fn retry(&mut self, nth: usize) -> Said {
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

    pub(super) async fn advance(&mut self, at: usize) -> Said {
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
    pub(super) fn advanced(&mut self, at: usize) -> &'static str {
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

    pub(super) async fn mend(&mut self) -> Said {
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
}
