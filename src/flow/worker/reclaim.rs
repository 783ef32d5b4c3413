//! The keeper's other half: frees the slots of lost attempts and processes, once their server says that their sessions are gone, and
//! gives up what waits in vain for a server that says nothing.

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

use super::keeper::Keeper;
use crate::{
    database_url::DatabaseUrl,
    domain::{
        failure::{FailureClass, JobError, chain},
        tenant::Place,
        worker::{Errand, kept_label},
    },
    flow::{
        execute::{BLOCKED_LIMIT, in_the_way_for},
        service::{Opening, SERVERS_AT_ONCE, Service},
    },
    servers::ServersError,
    session::{TenantSession, backends::Left, lock_key},
    store::{
        self, StoreError, job,
        service::{self, Abandoned},
        slot::{self, Suspect},
    },
    tenant_error::TenantError,
};

/// How long a server's slots may take to be reclaimed. What is left by then is for the next round.
const RECLAIM_LIMIT: Duration = Duration::from_secs(20);

impl Keeper {
    /// Reclaims whenever it was judged who is lost, each server in a task of its own: one that does not answer holds up no
    /// other.
    pub(super) async fn reclaims(self: Arc<Self>, judged: &Notify) {
        let (mut tasks, mut busy) = (JoinSet::new(), BTreeMap::<String, AbortHandle>::new());
        let mut silent = BTreeMap::<String, Instant>::new();
        loop {
            judged.notified().await;
            while let Some(ended) = tasks.try_join_next() {
                match ended {
                    Ok((server, Reached::Yes)) => drop(silent.remove(&server)),
                    Ok((server, Reached::No)) => drop(silent.entry(server).or_insert_with(Instant::now)),
                    Ok((_, Reached::Unasked)) | Err(_) => {}
                }
            }
            busy.retain(|_, task| !task.is_finished());
            let lost = match store::answered(self.lost()).await {
                Ok(lost) => lost,
                Err(error) => {
                    debug!(%error, "Cannot see which slots are lost yet");
                    continue;
                }
            };
            // What is not lost any more, somebody has reached.
            silent.retain(|server, _| lost.contains_key(server));
            for (server, _) in silent.iter().filter(|(_, since)| since.elapsed() > BLOCKED_LIMIT) {
                self.give_up(server).await;
            }
            for (server, lost) in lost {
                if busy.len() < SERVERS_AT_ONCE && !busy.contains_key(&server) {
                    let (keeper, name) = (Arc::clone(&self), server.clone());
                    let task = tasks.spawn(async move {
                        let reached = keeper.reclaim(&name, lost).await;
                        (name, reached)
                    });
                    busy.insert(server, task);
                }
            }
        }
    }

    /// Fails what waits on a server that has been silent for so long, where nothing else can: no attempt is made without a slot.
    async fn give_up(&self, server: &str) {
        let error = JobError {
            reason: "connection_lost".into(),
            message: format!(
                "server `{server}` does not answer, and what may be left of sessions there uses up its budget"
            ),
            hint: Some(in_the_way_for(BLOCKED_LIMIT)),
            ..JobError::default()
        };
        let failing = job::fail_out_of_reach(&self.cx.pool, server, &error, BLOCKED_LIMIT);
        let failed = match store::answered(failing).await {
            Ok(failed) => failed,
            Err(error) => return debug!(server, %error, "Cannot give up a silent server's tenants yet"),
        };
        for (run, jobs) in failed {
            error!(server, run.id = %run, "Failed {jobs} tenants on `{server}`: {}", error.message);
            // The look at all running runs does it otherwise.
            let _ = self.advance(run).await;
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

    async fn reclaim(&self, server: &str, lost: Lost) -> Reached {
        match tokio::time::timeout(RECLAIM_LIMIT, self.reclaim_by_role(server, lost)).await {
            Ok(Ok(reached)) => reached,
            Ok(Err(error)) => {
                debug!(server, %error, "Cannot reclaim slots on `{server}` yet");
                Reached::Unasked
            }
            Err(_) => {
                warn!(
                    server,
                    "Cannot reclaim slots on `{server}` yet: it took longer than {RECLAIM_LIMIT:?}"
                );
                Reached::No
            }
        }
    }

    /// Frees the slots of lost attempts, role by role, once the server says that their sessions are gone.
    async fn reclaim_by_role(&self, server: &str, lost: Lost) -> Result<Reached, StoreError> {
        let mut reached = Reached::Unasked;
        let pool = &self.cx.pool;
        // One of us is enough, and the connection that it takes is counted.
        let Some(service) = Service::try_acquire(&self.cx, server).await? else {
            return Ok(reached);
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
                Ok(ended) => {
                    reached = Reached::Yes;
                    match slot::free_suspects(pool, &suspects).await {
                        Ok(_) => info!(
                            server,
                            slots = suspects.len(),
                            ended,
                            "Reclaimed {} slots of lost attempts on `{server}`",
                            suspects.len()
                        ),
                        Err(error) => debug!(server, %error, "Cannot free reclaimed slots yet"),
                    }
                }
                // They stay suspect, i.e. taken, until the server answers.
                Err(error) => {
                    let is_known = self.cx.servers.contains(server);
                    if reached == Reached::Unasked && is_known && matches!(error, TenantError::Connection(_))
                    {
                        reached = Reached::No;
                    }
                    warn!(server, %error, "Cannot reclaim slots on `{server}` yet");
                }
            }
        }
        service.release().await;
        Ok(reached)
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

/// Whether a server was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    Yes,
    No,
    /// Somebody else was at it, or the control database did not answer.
    Unasked,
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
