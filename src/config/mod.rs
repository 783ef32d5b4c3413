//! `herder.toml`: what it may hold, what is taken where it holds nothing, and what to say where it is wrong.

mod check;
mod complaint;
mod duration;
mod expand;
mod load;
mod notify;
mod runner;
mod tenants;

use std::{collections::BTreeMap, ops::RangeInclusive, path::PathBuf, time::Duration};

use serde::Deserialize;

pub use self::{
    complaint::ConfigError,
    notify::NotifyConfig,
    runner::{AlembicConfig, CommandConfig, PlanConfig, RunnerConfig, SqlConfig},
    tenants::{
        DiscoverConfig, FastapiId, FastapiStrategy, FastapiTenancyConfig, FileConfig, SqlSourceConfig,
        TenantsConfig,
    },
};
use crate::{
    domain::{backoff::Backoff, wave::Amount},
    secret::Secret,
};

/// The commented config that `herder init` writes.
pub const TEMPLATE: &str = include_str!("template.toml");

/// A whole config. Paths in it are absolute: they were relative to its file.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from.
    pub path: PathBuf,
    /// The control database.
    pub control: ControlConfig,
    /// Where the tenants are listed.
    pub tenants: TenantsConfig,
    /// Servers by name.
    pub servers: BTreeMap<String, ServerConfig>,
    /// The migration tool.
    pub runner: RunnerConfig,
    /// Limits of an attempt.
    pub limits: LimitsConfig,
    /// How a run is released.
    pub rollout: RolloutConfig,
    /// How a worker behaves.
    pub worker: WorkerConfig,
    /// Who is told of runs.
    pub notify: NotifyConfig,
}

/// `[control]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlConfig {
    /// URL of the database that holds the schemas `herder` and `apalis`.
    pub url: Secret,
}

/// `[servers.NAME]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServerConfig {
    /// URL of the server. `{database}` in it stands for the tenant's database; without it, a tenant's database
    /// takes the place of the URL's own.
    pub url: Secret,
    /// How many connections all of Herder may hold to it: a number or a percentage of `max_connections` less the
    /// reserved ones. Default: 50 %. Too low: the fleet waits for slots. Too high: the application cannot connect.
    pub budget: Option<Amount>,
}

/// `[limits]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LimitsConfig {
    /// How long a migration waits for a lock, and with it all that queue up behind it. Default: 3 s. Too short:
    /// busy tenants are retried often. Too long: the application stands still behind a waiting ALTER TABLE. One of
    /// [`TIMEOUTS`], like the next one.
    #[serde(with = "duration")]
    pub lock_timeout: Duration,
    /// How long one statement may run. Default: 15 min. Too short: an index on a big table never gets done.
    #[serde(with = "duration")]
    pub statement_timeout: Duration,
    /// How many attempts that count a job has before it fails. Default: 5.
    pub max_attempts: i32,
    /// How many times in a row a job may be started and not be heard of again: it may be what kills the workers, so
    /// it is parked then. Default: 8. Too low: a bad night of the machines parks innocent tenants.
    pub max_starts: i32,
    /// The delay after the first failure; it doubles. Default: 1 s.
    #[serde(with = "duration")]
    pub backoff: Duration,
    /// The longest delay. Default: 1 min.
    #[serde(with = "duration")]
    pub max_backoff: Duration,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            lock_timeout: Duration::from_secs(3),
            statement_timeout: Duration::from_secs(15 * 60),
            max_attempts: 5,
            max_starts: 8,
            backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(60),
        }
    }
}

/// What PostgreSQL takes for a timeout, which it counts in milliseconds. Less would be 0, and to it that is no limit at
/// all; more it refuses, in each tenant.
pub const TIMEOUTS: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_millis(i32::MAX as u64);

/// What to say of a timeout that is not one of [`TIMEOUTS`].
pub const NO_TIMEOUT: &str = "between 1ms and 2147483647ms (24 days), the range that PostgreSQL can enforce";

/// The most connections that a PostgreSQL server can have: the upper end of `max_connections`. Each one of a budget is a row
/// of ours.
pub const MOST_CONNECTIONS: u32 = 262_143;

impl LimitsConfig {
    /// The delays between attempts.
    pub fn backoff(&self) -> Backoff {
        Backoff {
            first: self.backoff,
            max: self.max_backoff,
        }
    }
}

/// `[rollout]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RolloutConfig {
    /// The size of the first wave. Default: no canary.
    pub canary: Option<Amount>,
    /// The size of each further wave. Default: all the rest at once.
    pub wave: Option<Amount>,
    /// How many tenants may fail; one more halts the run. Default: no limit.
    pub failure_limit: Option<Amount>,
}

/// `[worker]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerConfig {
    /// How many jobs a worker runs at a time. Default: 8. The budget holds whatever is written here.
    pub concurrency: usize,
    /// How long a drain waits for what runs before it gives it back. Default: 30 s. Keep it below the time that
    /// your orchestrator waits between SIGTERM and SIGKILL.
    #[serde(with = "duration")]
    pub drain_timeout: Duration,
    /// How often a worker says that it lives. Default: 1 s.
    #[serde(with = "duration")]
    pub heartbeat: Duration,
    /// How long it is believed. Default: 5 s. Too short: a busy machine loses its jobs to others. Too long: a dead
    /// worker's tenants wait. At least three heartbeats.
    #[serde(with = "duration")]
    pub lease: Duration,
    /// How often an idle worker looks for jobs. Default: 250 ms.
    #[serde(with = "duration")]
    pub poll: Duration,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            concurrency: 8,
            drain_timeout: Duration::from_secs(30),
            heartbeat: Duration::from_secs(1),
            lease: Duration::from_secs(5),
            poll: Duration::from_millis(250),
        }
    }
}
