//! The keeper: what every worker does beside its jobs, so that no single one matters. It rescues the jobs of dead
//! workers, frees their slots once their sessions are gone, and mends what a death at the wrong moment left.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use sqlx::{Connection, PgConnection, PgPool};
use tracing::{error, info, warn};

use super::{
    context::Context,
    pulse::Health,
    service::{RECLAIM, Service},
};
use crate::{
    domain::{tenant::Place, worker::kept_label},
    metrics::Metrics,
    runner::RunnerError,
    session::connect_error,
    store::{
        StoreError, job,
        run::{self, Advanced},
        slot::{self, Suspect},
        worker,
    },
};

/// How long a round may take. A connection that died without a word would hold up the next ones for ever.
const ROUND_LIMIT: Duration = Duration::from_secs(60);

/// How often the keeper looks.
const ROUND: Duration = Duration::from_secs(1);

/// How long the server may take to end a session that it was told to end.
const TERMINATE_MS: i64 = 3000;

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
        let mut rounds = 0_u64;
        loop {
            // With jitter, so that a hundred workers do not look at once.
            tokio::time::sleep(ROUND.mul_f64(0.75 + rand::random::<f64>() / 2.0)).await;
            rounds += 1;
            let round = tokio::time::timeout(ROUND_LIMIT, self.round(rounds)).await;
            if let Err(error) = round.unwrap_or(Err(StoreError::Silent(ROUND_LIMIT))) {
                // The heartbeat says so where people look.
                tracing::debug!(%error, "A keeper's round failed");
            }
        }
    }

    async fn round(&self, rounds: u64) -> Result<(), StoreError> {
        let pool = &self.cx.pool;
        if self.health.may_judge(self.lease) {
            self.rescue(pool).await?;
            let mut connection = pool.acquire().await?;
            slot::suspect_lost(&mut connection).await?;
            slot::reclaim_control(&mut connection).await?;
        }
        self.reclaim(pool).await?;
        // Rare deaths may wait a little.
        if rounds.is_multiple_of(3) {
            let pushed = run::mend(pool).await?;
            if pushed > 0 {
                warn!(
                    deliveries = pushed,
                    "Pushed {pushed} deliveries that had got lost"
                );
            }
            for id in run::running(pool).await? {
                say(id, &run::advance(&mut *pool.acquire().await?, id).await?);
            }
        }
        if rounds.is_multiple_of(30) {
            worker::remove_lost(pool).await?;
        }
        Ok(())
    }

    /// Sends back the jobs of workers that were not heard of for their whole lease.
    async fn rescue(&self, pool: &PgPool) -> Result<(), StoreError> {
        for lost in job::rescue(pool, self.cx.config.limits.max_starts).await? {
            self.metrics.rescued();
            let (tenant, worker) = (&lost.tenant, &lost.worker);
            match lost.parked {
                false => warn!(
                    run.id = %lost.run, tenant.id = %tenant, attempt = lost.epoch, worker = %worker,
                    "Rescued tenant `{tenant}`: its worker {worker} was lost"
                ),
                true => {
                    error!(
                        run.id = %lost.run, tenant.id = %tenant, attempt = lost.epoch, worker = %worker,
                        "Parked tenant `{tenant}`: it was started too often, and each time its worker was lost"
                    );
                    say(
                        lost.run,
                        &run::advance(&mut *pool.acquire().await?, lost.run).await?,
                    );
                }
            }
        }
        Ok(())
    }

    /// Frees the slots of lost attempts, role by role, once the server says that their sessions are gone.
    async fn reclaim(&self, pool: &PgPool) -> Result<(), StoreError> {
        // A tenant with a URL of its own may come as another role, whose sessions nobody else may end.
        let mut roles: BTreeMap<(String, Option<String>), Vec<Suspect>> = BTreeMap::new();
        for suspect in slot::suspects(pool).await? {
            let own = suspect.own_url.then(|| suspect.tenant.clone());
            roles
                .entry((suspect.server.clone(), own))
                .or_default()
                .push(suspect);
        }
        for ((server, _), suspects) in roles {
            // One of us is enough, and the connection that it takes is counted.
            let Some(service) = Service::try_acquire(pool, &server).await? else {
                continue;
            };
            let ended = self.end_sessions(&service, &suspects).await;
            service.release().await;
            match ended {
                Ok(ended) => {
                    let numbers: Vec<i32> = suspects.iter().map(|suspect| suspect.number).collect();
                    slot::free_suspects(pool, &server, &numbers).await?;
                    info!(
                        server,
                        slots = suspects.len(),
                        ended,
                        "Reclaimed {} slots of lost workers on `{server}`",
                        suspects.len()
                    );
                }
                // They stay suspect, i.e. taken, until the server answers.
                Err(error) => warn!(server, %error, "Cannot reclaim slots on `{server}` yet"),
            }
        }
        Ok(())
    }

    /// Ends what is left of these attempts' sessions on their server, and returns how many there were.
    async fn end_sessions(&self, service: &Service, suspects: &[Suspect]) -> Result<usize, RunnerError> {
        let Some(first) = suspects.first() else {
            return Ok(0);
        };
        let own = match first.own_url {
            true => self
                .cx
                .source
                .find(&first.tenant)
                .await
                .ok()
                .flatten()
                .and_then(|t| t.url),
            false => None,
        };
        let place = Place {
            server: first.server.clone(),
            database: first.database.clone(),
            schema: None,
        };
        let url = self
            .cx
            .servers
            .url_for(&place, own.as_ref())
            .map_err(|e| RunnerError::Connection(e.to_string()))?;
        let options = url
            .options()
            .map_err(|e| RunnerError::Connection(e.to_string()))?
            .application_name(RECLAIM);
        let mut connection =
            tokio::time::timeout(Duration::from_secs(5), PgConnection::connect_with(&options))
                .await
                .map_err(|_| RunnerError::Connection("no answer".into()))?
                .map_err(|e| connect_error(e, &url))?;
        let attempts: BTreeSet<String> = suspects
            .iter()
            .map(|s| format!("herder/{}/{}/{}", s.run, s.job, s.epoch))
            .collect();
        let kept: BTreeSet<String> = suspects.iter().map(|s| kept_label(&s.worker)).collect();
        service.clear(&mut connection).await?;
        let ended: Result<Vec<bool>, _> = sqlx::query_scalar(
            // The same worker may have kept connections as other roles: those are ended as such.
            "select pg_terminate_backend(pid, $2) from pg_stat_activity
             where application_name = any($1) or (application_name = any($3) and usename = current_user)",
        )
        .bind(attempts.into_iter().collect::<Vec<_>>())
        .bind(TERMINATE_MS)
        .bind(kept.into_iter().collect::<Vec<_>>())
        .fetch_all(&mut connection)
        .await;
        let _ = connection.close().await;
        let ended = ended?;
        match ended.iter().all(|gone| *gone) {
            true => Ok(ended.len()),
            false => Err(RunnerError::Connection("a session does not end".into())),
        }
    }
}

/// One line for what happened to a run.
pub(super) fn say(run: crate::domain::run::RunId, advanced: &Advanced) {
    let short = crate::domain::run::short(&run);
    match advanced {
        Advanced::No => {}
        Advanced::Opened { wave, jobs } => {
            info!(run.id = %run, wave, jobs, "Opened wave {wave} of run {short}: {jobs} tenants")
        }
        Advanced::Halted(reason) => error!(run.id = %run, %reason, "Halted run {short}: {reason}"),
        Advanced::Settled(state) => info!(run.id = %run, state = %state, "Run {short} is over: {state}"),
    }
}
