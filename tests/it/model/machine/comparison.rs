//! The model beside the store: whether both say the same.

use super::*;

impl Machine<'_> {
    /// The tables say what the model says: no job is lost, no two attempts at one are alive, and the slots are those of
    /// the running jobs and of what is suspect.
    pub(in crate::model) async fn compare(&self) -> Result<(), String> {
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
                hold.attempt.job,
                hold.attempt.epoch,
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
    pub(in crate::model) async fn come_to_an_end(&mut self) -> Result<(), String> {
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
