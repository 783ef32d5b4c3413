//! What a worker counts, in Prometheus's terms. No label ever names a tenant.

use std::time::Duration;

use prometheus::{
    Encoder, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
use sqlx::PgPool;

use crate::{
    domain::{failure::JobError, job::JobState, outcome::Settlement},
    store::{StoreError, server, view},
};

/// From a tiny ALTER to an index on a big table, in seconds.
const BUCKETS: [f64; 15] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 1800.0,
];

/// What `herder_job_attempts_total{outcome}` can say: the words of [`Settlement::as_str`].
const OUTCOMES: [&str; 10] = [
    "migrated",
    "already_current",
    "found_applied",
    "failed",
    "retried",
    "snoozed",
    "replanned",
    "returned",
    "skipped",
    "cancelled",
];

/// The metrics of one process. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    jobs: IntGaugeVec,
    attempts: IntCounterVec,
    duration: HistogramVec,
    budget: IntGaugeVec,
    in_use: IntGaugeVec,
    suspect: IntGaugeVec,
    fenced: IntCounter,
    rescued: IntCounter,
    refused: IntCounterVec,
    lock_timeouts: IntCounter,
    run_info: GaugeVec,
}

impl Metrics {
    /// Metrics that stand at zero.
    ///
    /// # Errors
    /// Two metrics with one name: a mistake in this file.
    pub fn new() -> Result<Self, prometheus::Error> {
        let opts = |name: &str, help: &str| Opts::new(name, help);
        let metrics = Self {
            registry: Registry::new(),
            jobs: IntGaugeVec::new(opts("herder_jobs", "Jobs of open runs, by state."), &["state"])?,
            attempts: IntCounterVec::new(
                opts(
                    "herder_job_attempts_total",
                    "Attempts that this worker ended, by how they ended.",
                ),
                &["outcome"],
            )?,
            duration: HistogramVec::new(
                HistogramOpts::new(
                    "herder_job_duration_seconds",
                    "How long this worker's attempts took, from claim to settlement.",
                )
                .buckets(BUCKETS.to_vec()),
                &["outcome"],
            )?,
            budget: IntGaugeVec::new(
                opts(
                    "herder_connections_budget",
                    "Connections that all of Herder may hold to a server.",
                ),
                &["server"],
            )?,
            in_use: IntGaugeVec::new(
                opts(
                    "herder_connections_in_use",
                    "Connections to a server that slots are taken for, suspect ones included.",
                ),
                &["server"],
            )?,
            suspect: IntGaugeVec::new(
                opts(
                    "herder_slots_suspect",
                    "Slots whose worker is gone and whose session may not be.",
                ),
                &["server"],
            )?,
            fenced: IntCounter::with_opts(opts(
                "herder_fenced_total",
                "Attempts that found their job gone on without them.",
            ))?,
            rescued: IntCounter::with_opts(opts(
                "herder_rescued_total",
                "Jobs that this worker took back from lost workers.",
            ))?,
            refused: IntCounterVec::new(
                opts(
                    "herder_connection_refused_total",
                    "Connections to tenants that could not be opened or broke, by reason.",
                ),
                &["reason"],
            )?,
            lock_timeouts: IntCounter::with_opts(opts(
                "herder_lock_timeouts_total",
                "Attempts that gave up waiting for a lock (55P03).",
            ))?,
            run_info: GaugeVec::new(
                opts("herder_run_info", "Open runs: 1 for each."),
                &["run", "state"],
            )?,
        };
        for collector in [
            Box::new(metrics.jobs.clone()) as Box<dyn prometheus::core::Collector>,
            Box::new(metrics.attempts.clone()),
            Box::new(metrics.duration.clone()),
            Box::new(metrics.budget.clone()),
            Box::new(metrics.in_use.clone()),
            Box::new(metrics.suspect.clone()),
            Box::new(metrics.fenced.clone()),
            Box::new(metrics.rescued.clone()),
            Box::new(metrics.refused.clone()),
            Box::new(metrics.lock_timeouts.clone()),
            Box::new(metrics.run_info.clone()),
        ] {
            metrics.registry.register(collector)?;
        }
        for state in JobState::ALL {
            metrics.jobs.with_label_values(&[state.as_str()]).set(0);
        }
        // A counter that is not there yet has no rate when it comes.
        for outcome in OUTCOMES {
            metrics.attempts.with_label_values(&[outcome]);
        }
        Ok(metrics)
    }

    /// An attempt failed for this reason.
    pub fn failed(&self, error: &JobError) {
        match error.reason.as_str() {
            "lock_timeout" => self.lock_timeouts.inc(),
            reason @ ("connection_lost"
            | "too_many_connections"
            | "server_shutdown"
            | "wrong_credentials") => {
                self.refused.with_label_values(&[reason]).inc();
            }
            _ => {}
        }
    }

    /// An attempt ended.
    pub fn settled(&self, settlement: &Settlement, took: Duration) {
        self.attempts.with_label_values(&[settlement.as_str()]).inc();
        self.duration
            .with_label_values(&[settlement.as_str()])
            .observe(took.as_secs_f64());
    }

    /// An attempt found its job gone on without it.
    pub fn fenced(&self) {
        self.fenced.inc();
    }

    /// A job was taken back from a lost worker.
    pub fn rescued(&self) {
        self.rescued.inc();
    }

    /// Reads the fleet's gauges from the control database: the same for every worker, and zero when all is done.
    ///
    /// # Errors
    /// The control database fails. The gauges keep what they said.
    pub async fn refresh(&self, pool: &PgPool) -> Result<(), StoreError> {
        let (counts, usage, runs) = (
            view::open_counts(pool).await?,
            server::usage(pool).await?,
            view::open_runs(pool).await?,
        );
        for state in JobState::ALL {
            self.jobs
                .with_label_values(&[state.as_str()])
                .set(counts.get(&state).copied().unwrap_or_default());
        }
        for server in usage {
            self.budget
                .with_label_values(&[&server.server])
                .set(server.budget);
            self.in_use
                .with_label_values(&[&server.server])
                .set(server.in_use);
            self.suspect
                .with_label_values(&[&server.server])
                .set(server.suspect);
        }
        self.run_info.reset();
        for (run, state) in runs {
            self.run_info
                .with_label_values(&[&run.to_string(), state.as_str()])
                .set(1.0);
        }
        Ok(())
    }

    /// The page that Prometheus scrapes.
    ///
    /// # Errors
    /// A metric cannot be written as text.
    pub fn page(&self) -> Result<String, prometheus::Error> {
        let mut page = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut page)?;
        String::from_utf8(page).map_err(|e| prometheus::Error::Msg(e.to_string()))
    }
}
