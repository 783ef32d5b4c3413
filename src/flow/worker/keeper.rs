//! The keeper: what every worker does beside its jobs, so that no single one matters. It rescues the jobs of dead
//! workers, frees their slots once their sessions are gone, and mends what a death at the wrong moment left.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinSet},
};
use tracing::{debug, error, info, warn};

use super::pulse::Health;
use crate::{
    database_url::DatabaseUrl,
    domain::{
        backoff::spread,
        failure::{FailureClass, chain},
        run::RunId,
        tenant::Place,
        worker::{Errand, kept_label},
    },
    flow::{
        advance::advance,
        context::Context,
        service::{Opening, SERVERS_AT_ONCE, Service},
    },
    metrics::Metrics,
    servers::ServersError,
    session::{TenantSession, backends::Left, lock_key},
    store::{
        self, StoreError,
        job::{self, Rescued},
        run::{self, Others},
        server,
        service::{self, Abandoned},
        slot::{self, Suspect},
        worker,
    },
    tenant_error::TenantError,
};

/// How long a round may take. A connection that died without a word would hold up the next ones for ever.
const ROUND_LIMIT: Duration = Duration::from_secs(60);

/// How often the keeper looks.
pub(in crate::flow) const ROUND: Duration = Duration::from_secs(1);

/// How long a server's slots may take to be reclaimed. What is left by then is for the next round.
const RECLAIM_LIMIT: Duration = Duration::from_secs(20);

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

    async fn advance(&self, run: RunId) -> Result<(), StoreError> {
        advance(&mut *self.cx.pool.acquire().await?, run, Others::Skipped).await
    }

    /// Reclaims whenever it was judged who is lost, each server in a task of its own: one that does not answer holds up no
    /// other.
    async fn reclaims(self: Arc<Self>, judged: &Notify) {
        let (mut tasks, mut busy) = (JoinSet::new(), BTreeMap::<String, AbortHandle>::new());
        loop {
            judged.notified().await;
            while tasks.try_join_next().is_some() {}
            busy.retain(|_, task| !task.is_finished());
            let lost = match store::answered(self.lost()).await {
                Ok(lost) => lost,
                Err(error) => {
                    debug!(%error, "Cannot see which slots are lost yet");
                    continue;
                }
            };
            for (server, lost) in lost {
                if busy.len() < SERVERS_AT_ONCE && !busy.contains_key(&server) {
                    let keeper = Arc::clone(&self);
                    let name = server.clone();
                    let task = tasks.spawn(async move { keeper.reclaim(&name, lost).await });
                    busy.insert(server, task);
                }
            }
        }
    }

    /// What lost processes have left of slots, by server.
    async fn lost(&self) -> Result<BTreeMap<String, Lost>, StoreError> {
        let mut servers: BTreeMap<String, Lost> = BTreeMap::new();
        for suspect in slot::suspects(&self.cx.pool).await? {
            servers
                .entry(suspect.server.clone())
                .or_default()
                .suspects
                .push(suspect);
        }
        for abandoned in service::abandoned(&self.cx.pool).await? {
            let server = abandoned.server.clone();
            servers.entry(server).or_default().abandoned = Some(abandoned);
        }
        Ok(servers)
    }

    async fn reclaim(&self, server: &str, lost: Lost) {
        match tokio::time::timeout(RECLAIM_LIMIT, self.reclaim_by_role(server, lost)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => debug!(server, %error, "Cannot reclaim slots on `{server}` yet"),
            Err(_) => warn!(
                server,
                "Cannot reclaim slots on `{server}` yet: it took longer than {RECLAIM_LIMIT:?}"
            ),
        }
    }

    /// Frees the slots of lost attempts, role by role, once the server says that their sessions are gone.
    async fn reclaim_by_role(&self, server: &str, lost: Lost) -> Result<(), StoreError> {
        let pool = &self.cx.pool;
        // One of us is enough, and the connection that it takes is counted.
        let Some(service) = Service::try_acquire(&self.cx, server).await? else {
            return Ok(());
        };
        if let Some(abandoned) = &lost.abandoned {
            // Whoever connects in the place of a lost process frees what that has borrowed.
            match self.connect(&service, &Way::of_abandoned(abandoned)).await {
                Ok(session) => service.close(session).await,
                Err(error) => debug!(server, %error, "Cannot free what a lost process has borrowed yet"),
            }
        }
        // A tenant with a URL of its own may come as another role, whose sessions nobody else may end.
        let mut roles: BTreeMap<Option<String>, Vec<Suspect>> = BTreeMap::new();
        for suspect in lost.suspects {
            let own = suspect.own_url.then(|| suspect.tenant.clone());
            roles.entry(own).or_default().push(suspect);
        }
        for suspects in roles.into_values() {
            match self.end_sessions(&service, &suspects).await {
                Ok(ended) => match slot::free_suspects(pool, &suspects).await {
                    Ok(_) => info!(
                        server,
                        slots = suspects.len(),
                        ended,
                        "Reclaimed {} slots of lost workers on `{server}`",
                        suspects.len()
                    ),
                    Err(error) => debug!(server, %error, "Cannot free reclaimed slots yet"),
                },
                // They stay suspect, i.e. taken, until the server answers.
                Err(error) => warn!(server, %error, "Cannot reclaim slots on `{server}` yet"),
            }
        }
        service.release().await;
        Ok(())
    }

    /// Ends what is left of these attempts' sessions on their server, and returns how many there were.
    async fn end_sessions(&self, service: &Service, suspects: &[Suspect]) -> Result<usize, TenantError> {
        let mut session = self.connect(service, &Way::of_suspects(suspects)).await?;
        let ended = session.end_left(&left_by(suspects)).await;
        service.close(session).await;
        ended
    }

    /// A connection to a server. Any of its databases will do: one may have been dropped since.
    async fn connect(&self, service: &Service, way: &Way<'_>) -> Result<TenantSession, TenantError> {
        let mut refusal = TenantError::Connection("there is no way to it".into());
        for url in self.urls(way).await {
            let url = match url {
                Ok(url) => url,
                Err(error) => {
                    refusal = TenantError::Connection(chain(&error));
                    continue;
                }
            };
            let opening = Opening::of_server(&self.cx, &url, Errand::Reclaim);
            match service.open(opening).await {
                // Refused for this database's sake. If the server itself is away, or full, it is so by any other way.
                Err(error) if error.class() == FailureClass::Permanent => refusal = error,
                connected => return connected,
            }
        }
        Err(refusal)
    }

    /// The URLs of a server: of these databases, as the role that the tenant comes as, and its own.
    async fn urls(&self, way: &Way<'_>) -> Vec<Result<DatabaseUrl, ServersError>> {
        let servers = &self.cx.servers;
        let own = match way.tenant {
            Some(tenant) => self.cx.source.find(tenant).await.ok().flatten(),
            None => None,
        };
        let own = own.and_then(|tenant| tenant.url);
        let by_database = way.databases.iter().map(|database| {
            let place = Place {
                server: way.server.to_owned(),
                database: (*database).to_owned(),
                schema: None,
            };
            servers.url_for(&place, own.as_ref())
        });
        by_database.chain([servers.url(way.server, None)]).collect()
    }
}

/// What lost processes have left of a server's slots.
#[derive(Default)]
struct Lost {
    /// Slots that lost attempts held.
    suspects: Vec<Suspect>,
    /// Those that were borrowed.
    abandoned: Option<Abandoned>,
}

/// What leads to a server.
struct Way<'a> {
    server: &'a str,
    databases: BTreeSet<&'a str>,
    /// A tenant with a URL of its own.
    tenant: Option<&'a str>,
}

impl<'a> Way<'a> {
    /// The way to the server of these attempts, which share it and a role.
    fn of_suspects(suspects: &'a [Suspect]) -> Self {
        let first = suspects.first();
        Self {
            server: first.map_or("", |suspect| &suspect.server),
            databases: suspects.iter().map(|s| s.database.as_str()).collect(),
            tenant: first.filter(|s| s.own_url).map(|s| s.tenant.as_str()),
        }
    }

    fn of_abandoned(abandoned: &'a Abandoned) -> Self {
        let tenant = abandoned.tenant.as_deref();
        Self {
            server: &abandoned.server,
            databases: abandoned.database.as_deref().into_iter().collect(),
            tenant: tenant.filter(|_| abandoned.own_url),
        }
    }
}

/// What these attempts may have left on their server.
fn left_by(suspects: &[Suspect]) -> Left {
    let attempts: BTreeSet<String> = suspects.iter().map(|suspect| suspect.label.to_string()).collect();
    let kept: BTreeSet<String> = suspects.iter().map(|s| kept_label(&s.worker)).collect();
    let (databases, keys) = suspects
        .iter()
        .map(|suspect| (suspect.database.clone(), lock_key(&place_of(suspect))))
        .unzip();
    Left {
        attempts: attempts.into_iter().collect(),
        kept: kept.into_iter().collect(),
        databases,
        keys,
    }
}

fn place_of(suspect: &Suspect) -> Place {
    Place {
        server: suspect.server.clone(),
        database: suspect.database.clone(),
        schema: suspect.schema.clone(),
    }
}
