//! What every command and every worker starts with: the config, made into things that work.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sha2::{Digest, Sha256};
use sqlx::{PgPool, postgres::PgConnectOptions};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::{Config, ConfigError},
    database_url::DatabaseUrl,
    domain::{failure::chain, job::Claim},
    runner::{self, MigrationRunner},
    servers::{Servers, ServersError},
    store::{self, StoreError},
    tenant_error::TenantError,
    tenant_source::{self, TenantSource, TenantSourceError},
};

/// How long a command that was stopped waits until what it held is given back.
const TIDY_LIMIT: Duration = Duration::from_secs(2);

/// The config and all that it names.
pub struct Context {
    /// The config.
    pub config: Config,
    /// The control database. Nothing is connected before it is needed.
    pub pool: PgPool,
    /// What tells this fleet's service sessions and scratch schemas from those of others on the same server.
    pub mark: String,
    /// The servers.
    pub servers: Servers,
    /// The tenant list.
    pub source: Box<dyn TenantSource>,
    /// The migration tool.
    pub runner: Arc<dyn MigrationRunner>,
    /// Told when a command is to end early: a proof then removes what it has made.
    pub stop: CancellationToken,
    /// How many things are going on that must not be dropped in the middle.
    busy: AtomicUsize,
    /// What gives back what a work held that was dropped.
    pub(super) behind: TaskTracker,
}

/// Something that must not be dropped in the middle goes on as long as this lives.
pub(super) struct Busy<'a>(&'a AtomicUsize);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Why a config cannot be worked with.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// The file is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The control database's URL is wrong.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A server is wrong.
    #[error(transparent)]
    Servers(#[from] ServersError),
    /// The tenant source is wrong.
    #[error(transparent)]
    Source(#[from] TenantSourceError),
    /// The runner is wrong. It says of itself which section that is about.
    #[error(transparent)]
    Runner(#[from] TenantError),
}

impl Context {
    /// Makes a context. `connections` is the size of the pool to the control database.
    ///
    /// # Errors
    /// Something in the config cannot work. Nothing is connected to yet.
    pub fn new(config: Config, application_name: &str, connections: u32) -> Result<Self, ContextError> {
        let servers = Servers::from_config(&config)?;
        let pool = store::pool(&config.control.url, application_name, connections)?;
        Ok(Self {
            mark: mark_of(&pool.connect_options()),
            pool,
            source: tenant_source::build(&config.tenants, &servers)?,
            runner: runner::build(&config.runner, config.worker.concurrency)?,
            servers,
            config,
            stop: CancellationToken::new(),
            busy: AtomicUsize::new(0),
            behind: TaskTracker::new(),
        })
    }

    /// Says that what comes must not be dropped in the middle.
    pub(super) fn busy(&self) -> Busy<'_> {
        self.busy.fetch_add(1, Ordering::Relaxed);
        Busy(&self.busy)
    }

    /// Whether there is something to wait for after `stop` was told: a proof that clears up, a run that is written.
    pub fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0
    }

    /// Waits for what is still being given back of a work that was dropped, but not for long: leases do the same, only later.
    pub async fn tidy_up(&self) {
        self.behind.close();
        let _ = tokio::time::timeout(TIDY_LIMIT, self.behind.wait()).await;
    }

    /// The database of a claimed job's tenant. A URL of the tenant's own is asked of its source, now.
    ///
    /// # Errors
    /// The source does not answer, or no longer knows the tenant.
    pub async fn url_of(&self, claim: &Claim) -> Result<DatabaseUrl, TenantError> {
        let permanent = |message: String| {
            TenantError::tool(message, Some("`herder tenants` shows what the source gives"))
        };
        let own = match claim.own_url {
            false => None,
            true => {
                let listed = self
                    .source
                    .find(&claim.tenant)
                    .await
                    .map_err(|e| TenantError::TenantSource(e.to_string()))?;
                let listed = listed.ok_or(TenantError::OffTheList)?;
                if let Some(fault) = listed.fault {
                    return Err(permanent(format!("it makes no sense in its source: {fault}")));
                }
                Some(
                    listed
                        .url
                        .ok_or_else(|| permanent("its source gives no url any more".into()))?,
                )
            }
        };
        self.servers
            .url_for(&claim.place, own.as_ref())
            .map_err(|e| permanent(chain(&e)))
    }
}

/// A few letters of the control database's address: that is what a fleet is told by.
fn mark_of(control: &PgConnectOptions) -> String {
    let place = format!(
        "{}:{}/{}",
        control.get_host(),
        control.get_port(),
        control.get_database().unwrap_or_default()
    );
    let mut digest = format!("{:x}", Sha256::digest(place));
    digest.truncate(8);
    digest
}
