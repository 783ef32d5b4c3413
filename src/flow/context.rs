//! What every command and every worker starts with: the config, made into things that work.

use std::sync::Arc;

use sqlx::PgPool;

use crate::{
    config::{Config, ConfigError},
    database_url::DatabaseUrl,
    domain::job::Claim,
    runner::{self, MigrationRunner, RunnerError},
    servers::{Servers, ServersError},
    store::{self, StoreError},
    tenant_source::{self, TenantSource, TenantSourceError},
};

/// The config and all that it names.
pub struct Context {
    /// The config.
    pub config: Config,
    /// The control database. Nothing is connected before it is needed.
    pub pool: PgPool,
    /// The servers.
    pub servers: Servers,
    /// The tenant list.
    pub source: Box<dyn TenantSource>,
    /// The migration tool.
    pub runner: Arc<dyn MigrationRunner>,
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
    /// The runner is wrong.
    #[error("[runner] {0}")]
    Runner(#[from] RunnerError),
}

impl Context {
    /// Makes a context. `connections` is the size of the pool to the control database.
    ///
    /// # Errors
    /// Something in the config cannot work. Nothing is connected to yet.
    pub fn new(config: Config, application_name: &str, connections: u32) -> Result<Self, ContextError> {
        let servers = Servers::from_config(&config)?;
        Ok(Self {
            pool: store::pool(&config.control.url, application_name, connections)?,
            source: tenant_source::build(&config.tenants, &servers)?,
            runner: runner::build(&config.runner, config.worker.concurrency)?,
            servers,
            config,
        })
    }

    /// The database of a claimed job's tenant. A URL of the tenant's own is asked of its source, now.
    ///
    /// # Errors
    /// The source does not answer, or no longer knows the tenant.
    pub async fn url_of(&self, claim: &Claim) -> Result<DatabaseUrl, RunnerError> {
        let permanent = |message: String| RunnerError::Tool {
            message,
            sqlstate: None,
            revision: None,
            statement: None,
            hint: Some("`herder tenants` shows what the source gives".into()),
        };
        let own = match claim.own_url {
            false => None,
            true => {
                let listed = self
                    .source
                    .find(&claim.tenant)
                    .await
                    .map_err(|e| RunnerError::Connection(e.to_string()))?;
                let listed =
                    listed.ok_or_else(|| permanent("it is no longer in the tenant source".into()))?;
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

/// An error with its sources, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}
