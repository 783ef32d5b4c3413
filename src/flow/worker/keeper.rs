//! The keeper: what every worker does beside its jobs, so that no single one matters. It rescues the jobs of dead
//! workers, frees their slots once their sessions are gone, and mends what a death at the wrong moment left.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::Notify;
use tracing::{debug, error, info, warn};

use super::pulse::Health;
use crate::{
    domain::{backoff::spread, run::RunId},
    flow::{advance::advance, context::Context},
    metrics::Metrics,
    store::{
        self, StoreError,
        job::{self, Rescued},
        run::{self, Others},
        server, slot, worker,
    },
};

/// How long a round may take. A connection that died without a word would hold up the next ones for ever.
const ROUND_LIMIT: Duration = Duration::from_secs(60);

/// How often the keeper looks.
pub(in crate::flow) const ROUND: Duration = Duration::from_secs(1);

/// What the keeper works with.
pub(super) struct Keeper {
    pub(super) cx: Arc<Context>,
    pub(super) health: Arc<Health>,
    pub(super) metrics: Metrics,
    pub(super) lease: Duration,
}

impl Keeper {
    /// Keeps for ever. A fault ends a round, not the keeper.
    pub(super) async fn run(self) {
        let (keeper, judged) = (Arc::new(self), Notify::new());
        // Apart from each other: a server of tenants' that does not answer must not hold up a rescue.
        tokio::join!(keeper.rounds(&judged), Arc::clone(&keeper).reclaims(&judged));
    }

    async fn rounds(&self, judged: &Notify) {
        let (mut rounds, mut waited_for) = (0_u64, BTreeSet::new());
        let mut rest = ROUND;
        loop {
            // With jitter, so that a hundred workers do not look at once.
            tokio::time::sleep(spread(rest, rand::random())).await;
            let since = Instant::now();
            rounds += 1;
            let round = tokio::time::timeout(ROUND_LIMIT, self.round(rounds, judged, &mut waited_for)).await;
            if let Err(error) = round.unwrap_or(Err(StoreError::Silent(ROUND_LIMIT))) {
                // The heartbeat says so where people look.
                debug!(%error, "A keeper's round failed");
            }
            // Over a slow link, claims and outcomes must not wait for the keeper all the time.
            rest = ROUND.max(since.elapsed()).min(self.lease);
        }
    }

    async fn round(
        &self,
        rounds: u64,
        judged: &Notify,
        waited_for: &mut BTreeSet<String>,
    ) -> Result<(), StoreError> {
        let pool = &self.cx.pool;
        if let Some(lost) = self.judge().await? {
            // Where that fails, the look at all running runs does it.
            for parked in lost.iter().filter(|lost| lost.parked) {
                self.advance(parked.run).await?;
            }
            if rounds.is_multiple_of(30) {
                worker::remove_lost(pool).await?;
            }
        }
        judged.notify_one();
        // Rare deaths may wait a little.
        if rounds.is_multiple_of(3) {
            let pushed = run::mend(pool).await?;
            if pushed > 0 {
                warn!(deliveries = pushed, "Queued {pushed} lost deliveries again");
            }
            for id in run::running(pool).await? {
                self.advance(id).await?;
            }
        }
        if rounds.is_multiple_of(10) {
            self.say_who_waits(waited_for).await?;
        }
        Ok(())
    }

    /// Sends back the jobs of workers that were not heard of for their whole lease, and marks their slots, where this worker may judge.
    /// All of it over one connection: the next one may lead to another server.
    async fn judge(&self) -> Result<Option<Vec<Rescued>>, StoreError> {
        let mut connection = self.cx.pool.acquire().await?;
        let since = store::server_since(&mut connection).await?;
        if !self.health.may_judge(self.lease, since) {
            return Ok(None);
        }
        let lost = job::rescue(&mut connection, self.cx.config.limits.max_starts).await?;
        self.say_who_was_lost(&lost);
        slot::suspect_lost(&mut connection).await?;
        slot::reclaim_control(&mut connection).await?;
        Ok(Some(lost))
    }

    /// Says once of each server that its tenants wait for a worker whose config names it: a run that never moves looks like one
    /// that nobody works on.
    async fn say_who_waits(&self, said: &mut BTreeSet<String>) -> Result<(), StoreError> {
        let names: Vec<String> = self.cx.servers.names().map(str::to_owned).collect();
        for server in server::waited_for(&self.cx.pool, &names).await? {
            if said.insert(server.clone()) {
                info!(
                    server,
                    "Tenants are waiting on server `{server}`, which is not in this worker's config"
                );
            }
        }
        Ok(())
    }

    /// Says whose jobs were sent back.
    fn say_who_was_lost(&self, rescued: &[Rescued]) {
        for lost in rescued {
            self.metrics.rescued();
            let (tenant, worker) = (&lost.tenant, &lost.worker);
            match lost.parked {
                false => warn!(
                    run.id = %lost.run, tenant.id = %tenant, attempt = lost.attempt.epoch, worker = %worker,
                    "Rescued tenant `{tenant}`: its worker {worker} was lost"
                ),
                true => error!(
                    run.id = %lost.run, tenant.id = %tenant, attempt = lost.attempt.epoch, worker = %worker,
                    "Parked tenant `{tenant}`: it was started too many times, and each time its worker was lost"
                ),
            }
        }
    }

    pub(super) async fn advance(&self, run: RunId) -> Result<(), StoreError> {
        advance(&mut *self.cx.pool.acquire().await?, run, Others::Skipped).await
    }
}
