//! The service connection of a server: the one of its budget that belongs to no job. Inspection, proofs,
//! rehearsals and reclaim take turns at it; whoever holds it may connect once.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};
use sqlx::{Connection, PgConnection, PgPool};
use tokio::task::JoinHandle;
use tracing::{info, warn};
use uuid::Uuid;

use super::context::Context;
use crate::{
    database_url::DatabaseUrl,
    domain::{backoff::Backoff, worker::Errand},
    runner::RunnerError,
    session::{EXIT_LIMIT, asking_settings, connect_error},
    store::{StoreError, service},
};

/// How long a holder is believed that says nothing: as long as a worker.
const LEASE: Duration = Duration::from_secs(5);

/// How often it says something.
const RENEWAL: Duration = Duration::from_secs(1);

/// How often somebody who waits for it asks: soon at first, because it may have been given back just now.
const POLL: Backoff = Backoff {
    first: Duration::from_millis(25),
    max: Duration::from_millis(200),
};

/// How long the server may take to let its holder in.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How many servers one process works with at a time: a fleet may have a server for each tenant, and each takes sockets.
pub(super) const SERVERS_AT_ONCE: usize = 32;

/// Waits for what is done on each of many servers, some of them at a time. The answers come in the order of the questions.
pub(super) async fn on_each_server<T>(tasks: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let numbered = tasks
        .into_iter()
        .enumerate()
        .map(|(n, task)| async move { (n, task.await) });
    let mut answers: Vec<(usize, T)> = stream::iter(numbered)
        .buffer_unordered(SERVERS_AT_ONCE)
        .collect()
        .await;
    answers.sort_by_key(|(n, _)| *n);
    answers.into_iter().map(|(_, answer)| answer).collect()
}

/// The service connection of one server, held. Dropped without [`release`](Self::release), it is free when the lease has
/// run out.
pub struct Service {
    pool: PgPool,
    mark: String,
    server: String,
    holder: String,
    /// Whether the one before was lost, and its session may still be there.
    inherited: bool,
    renewal: JoinHandle<()>,
}

impl Service {
    /// Waits until nobody else holds it.
    ///
    /// # Errors
    /// The control database fails.
    pub async fn acquire(cx: &Context, server: &str) -> Result<Self, StoreError> {
        let since = Instant::now();
        let (mut said, mut asked) = (false, 0);
        loop {
            if let Some(service) = Self::try_acquire(cx, server).await? {
                return Ok(service);
            }
            if !said && since.elapsed() > LEASE {
                said = true;
                info!(
                    server,
                    "Waiting for the service connection of `{server}`: another process is using it"
                );
            }
            asked += 1;
            tokio::time::sleep(POLL.delay(asked, rand::random())).await;
        }
    }

    /// Takes it if nobody else holds it.
    ///
    /// # Errors
    /// The control database fails.
    pub async fn try_acquire(cx: &Context, server: &str) -> Result<Option<Self>, StoreError> {
        let pool = &cx.pool;
        let holder = Uuid::new_v4().simple().to_string();
        let inherited = match service::hold(pool, server, &holder, LEASE).await? {
            service::Service::Taken => return Ok(None),
            service::Service::Held { lost } => lost,
            service::Service::Unknown => false,
        };
        let renewal = tokio::spawn(renew(pool.clone(), server.to_owned(), holder.clone()));
        Ok(Some(Self {
            pool: pool.clone(),
            mark: cx.mark.clone(),
            server: server.to_owned(),
            holder,
            inherited,
            renewal,
        }))
    }

    /// Opens the one session that its holder may have.
    ///
    /// # Errors
    /// The server cannot be reached or refuses.
    pub(super) async fn connect(
        &self,
        url: &DatabaseUrl,
        errand: Errand,
    ) -> Result<PgConnection, RunnerError> {
        let options = url
            .options()
            .map_err(|e| RunnerError::Connection(e.to_string()))?
            .application_name(&errand.label(&self.mark))
            .options(asking_settings());
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(&options)).await;
        let mut connection = connected
            .map_err(|_| {
                RunnerError::Connection(format!("{} did not answer in {CONNECT_TIMEOUT:?}", url.address()))
            })?
            .map_err(|e| connect_error(e, url))?;
        self.clear(&mut connection).await?;
        Ok(connection)
    }

    /// Ends the session of a holder that was lost, on a connection to that server: ours took its place in the budget. Only one
    /// with this fleet's mark: sessions without it are another's, or those of an older Herder, which their own limits end.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn clear(&self, connection: &mut PgConnection) -> Result<(), RunnerError> {
        if !self.inherited {
            return Ok(());
        }
        sqlx::query(
            "select pg_terminate_backend(pid, 3000) from pg_stat_activity
             where application_name = any($1) and usename = current_user and pid <> pg_backend_pid()",
        )
        .bind(Errand::ALL.map(|errand| errand.label(&self.mark)))
        .persistent(false)
        .execute(connection)
        .await?;
        Ok(())
    }

    /// Gives it back. Its session must be closed, and has a moment to go before anybody gets it.
    pub async fn release(self) {
        self.renewal.abort();
        if let Err(error) = service::release(&self.pool, &self.server, &self.holder, EXIT_LIMIT).await {
            tracing::debug!(%error, "Cannot give back a service connection; its lease will expire");
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

async fn renew(pool: PgPool, server: String, holder: String) {
    loop {
        tokio::time::sleep(RENEWAL).await;
        match service::hold(&pool, &server, &holder, LEASE).await {
            Ok(service::Service::Taken) => {
                warn!(
                    server,
                    "Lost the service connection of `{server}`: this process did not renew it in time"
                );
                return;
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "Cannot renew the hold of a service connection yet"),
        }
    }
}
