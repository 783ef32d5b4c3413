//! What a worker counts, in Prometheus's terms. No label ever names a tenant, and none has more values than a person
//! can look at: a worker exports fewer than 500 series, however big the fleet. `docs/METRICS.md` explains them.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::Duration,
};

use prometheus::{
    Encoder, Gauge, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
    core::{Collector, Metric, MetricVec, MetricVecBuilder},
};
use sqlx::PgPool;

use crate::{
    domain::{
        failure::JobError,
        job::JobState,
        outcome::{AttemptResult, Settlement},
        run::RunState,
    },
    locked::locked,
    store::{
        StoreError,
        server::{self, Usage},
        view::{self, OpenRun},
    },
};

/// From a tiny ALTER to an index on a big table, in seconds.
const BUCKETS: [f64; 15] = [
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 30.0, 60.0, 300.0, 900.0, 1800.0,
];

/// What `herder_connection_refused_total{reason}` can say.
const REFUSALS: [&str; 5] = [
    "connection_lost",
    "too_many_connections",
    "server_shutdown",
    "server_starting",
    "wrong_credentials",
];

/// The name of all servers that have no series of their own.
const OTHER_SERVERS: &str = "other";

/// How many servers have series of their own: the busiest. A fleet with a server per tenant must not fill Prometheus.
const SERVERS: usize = 40;

/// How many open runs have series of their own: the latest.
const RUNS: usize = 20;

/// How long the control database may take to answer all questions of a refresh.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(10);

/// What a worker says of itself at the moment of a scrape.
#[derive(Clone, Copy, Debug)]
pub struct WorkerFigures {
    /// Jobs that it runs now.
    pub running: usize,
    /// Jobs that it may run at a time.
    pub concurrency: usize,
    /// Connections to the control database that its pool has open.
    pub control_connections: u32,
    /// Those of them that nobody uses.
    pub control_idle: usize,
}

/// The metrics of one process. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    registry: Registry,
    jobs: IntGaugeVec,
    oldest_ready: Gauge,
    workers: IntGaugeVec,
    run_info: Labelled<IntGaugeVec>,
    run_idle: Labelled<GaugeVec>,
    budget: Labelled<IntGaugeVec>,
    in_use: Labelled<IntGaugeVec>,
    suspect: Labelled<IntGaugeVec>,
    attempts: IntCounterVec,
    failures: IntCounterVec,
    duration: HistogramVec,
    fenced: IntCounter,
    rescued: IntCounter,
    refused: IntCounterVec,
    lock_timeouts: IntCounter,
    control_up: IntGauge,
    control_connections: IntGaugeVec,
    worker_jobs: IntGauge,
    worker_concurrency: IntGauge,
}

impl Metrics {
    /// Metrics that stand at zero.
    ///
    /// # Errors
    /// Two metrics with one name: a mistake in this file.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let r = &registry;
        let metrics = Self {
            jobs: gauges(r, "herder_jobs", "Jobs of open runs, by state.", &["state"])?,
            oldest_ready: add(
                r,
                Gauge::new(
                    "herder_oldest_ready_job_seconds",
                    "How long the job that is due the longest in a running run has waited for a worker and a slot.",
                )?,
            )?,
            workers: gauges(
                r,
                "herder_workers",
                "Workers whose lease runs, by whether they take jobs or drain.",
                &["state"],
            )?,
            run_info: Labelled::new(gauges(
                r,
                "herder_run_info",
                "Open runs, the latest 20: 1 for each.",
                &["run", "state"],
            )?),
            run_idle: Labelled::new(add(
                r,
                GaugeVec::new(
                    Opts::new(
                        "herder_run_idle_seconds",
                        "For runs in state running: since when no tenant was settled.",
                    ),
                    &["run"],
                )?,
            )?),
            budget: Labelled::new(gauges(
                r,
                "herder_connections_budget",
                "Connections that all of Herder may hold to a server, as `herder budget` has it.",
                &["server"],
            )?),
            in_use: Labelled::new(gauges(
                r,
                "herder_connections_in_use",
                "Connections to a server that slots are taken for, suspect ones included.",
                &["server"],
            )?),
            suspect: Labelled::new(gauges(
                r,
                "herder_slots_suspect",
                "Slots whose worker is gone and whose session may not be.",
                &["server"],
            )?),
            attempts: counters(
                r,
                "herder_job_attempts_total",
                "Attempts that this worker ended, by how they ended.",
                &["outcome"],
            )?,
            failures: counters(
                r,
                "herder_job_failures_total",
                "Attempts of this worker that met an error, by its reason: those that are tried again included.",
                &["reason"],
            )?,
            duration: add(
                r,
                HistogramVec::new(
                    HistogramOpts::new(
                        "herder_job_duration_seconds",
                        "How long this worker's attempts took, from claim to settlement.",
                    )
                    .buckets(BUCKETS.to_vec()),
                    &["outcome"],
                )?,
            )?,
            fenced: add(
                r,
                IntCounter::new(
                    "herder_fenced_total",
                    "Attempts that found their job gone on without them.",
                )?,
            )?,
            rescued: add(
                r,
                IntCounter::new(
                    "herder_rescued_total",
                    "Jobs that this worker took back from lost workers.",
                )?,
            )?,
            refused: counters(
                r,
                "herder_connection_refused_total",
                "Connections to tenants that could not be opened or broke, by reason.",
                &["reason"],
            )?,
            lock_timeouts: add(
                r,
                IntCounter::new(
                    "herder_lock_timeouts_total",
                    "Attempts that gave up waiting for a lock (55P03).",
                )?,
            )?,
            control_up: add(
                r,
                IntGauge::new(
                    "herder_control_database_up",
                    "Whether the control database answered this worker's last question. At 0, the fleet's gauges are old.",
                )?,
            )?,
            control_connections: gauges(
                r,
                "herder_control_connections",
                "Connections of this worker's pool to the control database, by whether they are in use.",
                &["state"],
            )?,
            worker_jobs: add(
                r,
                IntGauge::new("herder_worker_jobs", "Jobs that this worker runs now.")?,
            )?,
            worker_concurrency: add(
                r,
                IntGauge::new(
                    "herder_worker_concurrency",
                    "Jobs that this worker may run at a time.",
                )?,
            )?,
            registry: registry.clone(),
        };
        gauges(
            r,
            "herder_build_info",
            "The version of this worker: always 1.",
            &["version"],
        )?
        .with_label_values(&[env!("CARGO_PKG_VERSION")])
        .set(1);
        metrics.begin_at_zero();
        Ok(metrics)
    }

    /// A counter that is not there yet has no rate when it comes, and a gauge that goes away looks like no answer.
    fn begin_at_zero(&self) {
        for state in JobState::ALL {
            self.jobs.with_label_values(&[state.as_str()]).set(0);
        }
        // A rescue is counted by whoever makes it: the attempt's own worker is not there to say how it ended.
        let results = AttemptResult::ALL.into_iter();
        for result in results.filter(|result| *result != AttemptResult::Rescued) {
            self.attempts.with_label_values(&[result.as_str()]);
            self.duration.with_label_values(&[result.as_str()]);
        }
        for reason in REFUSALS {
            self.refused.with_label_values(&[reason]);
        }
        for reason in REFUSALS
            .into_iter()
            .chain(["lock_timeout", "deadlock", "sql_error"])
        {
            self.failures.with_label_values(&[reason]);
        }
        for state in ["working", "draining"] {
            self.workers.with_label_values(&[state]);
        }
    }

    /// An attempt failed for this reason.
    pub fn failed(&self, error: &JobError) {
        let reason = error.reason.as_str();
        self.failures.with_label_values(&[reason]).inc();
        if reason == "lock_timeout" {
            self.lock_timeouts.inc();
        }
        if REFUSALS.contains(&reason) {
            self.refused.with_label_values(&[reason]).inc();
        }
    }

    /// An attempt ended.
    pub fn settled(&self, settlement: &Settlement, took: Duration) {
        self.attempts
            .with_label_values(&[settlement.result().as_str()])
            .inc();
        self.duration
            .with_label_values(&[settlement.result().as_str()])
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

    /// What the worker is at, at the moment of a scrape.
    pub fn worker(&self, figures: WorkerFigures) {
        self.worker_jobs.set(whole(figures.running));
        self.worker_concurrency.set(whole(figures.concurrency));
        let (open, idle) = (
            i64::from(figures.control_connections),
            whole(figures.control_idle),
        );
        self.control_connections.with_label_values(&["idle"]).set(idle);
        self.control_connections
            .with_label_values(&["used"])
            .set((open - idle).max(0));
    }

    /// The control database answered, or did not.
    pub(crate) fn control_answers(&self, answers: bool) {
        self.control_up.set(i64::from(answers));
    }

    /// Reads the fleet's gauges from the control database: the same for every worker, and zero when all is done.
    ///
    /// # Errors
    /// The control database fails. The gauges keep what they said, and `herder_control_database_up` says so.
    pub async fn refresh(&self, pool: &PgPool) -> Result<(), StoreError> {
        let asked = async {
            Ok((
                view::open_runs(pool).await?,
                server::usage(pool).await?,
                view::workers(pool).await?,
            ))
        };
        // A database that swallows questions must not look like one that answers.
        let answered = match tokio::time::timeout(REFRESH_TIMEOUT, asked).await {
            Ok(answered) => answered,
            Err(_) => Err(StoreError::Silent(REFRESH_TIMEOUT)),
        };
        self.control_answers(answered.is_ok());
        let (runs, usage, workers) = answered?;
        self.workers.with_label_values(&["working"]).set(workers.working);
        self.workers
            .with_label_values(&["draining"])
            .set(workers.draining);
        self.show_runs(&runs);
        self.show_servers(usage);
        Ok(())
    }

    fn show_runs(&self, runs: &[OpenRun]) {
        for state in JobState::ALL {
            let jobs = runs.iter().filter_map(|run| run.counts.get(&state)).sum();
            self.jobs.with_label_values(&[state.as_str()]).set(jobs);
        }
        let running = || runs.iter().filter(|run| run.state == RunState::Running);
        self.oldest_ready
            .set(running().map(|run| run.oldest_ready).fold(0.0, f64::max));
        let runs = &runs[..runs.len().min(RUNS)];
        self.run_info.show(runs.iter().map(|run| {
            let labels = vec![run.id.to_string(), run.state.as_str().to_owned()];
            (labels, 1)
        }));
        let running = runs.iter().filter(|run| run.state == RunState::Running);
        self.run_idle
            .show(running.map(|run| (vec![run.id.to_string()], run.idle)));
    }

    fn show_servers(&self, mut usage: Vec<Usage>) {
        if usage.len() > SERVERS {
            // A server of trouble is worth a line before one that is merely busy.
            usage.sort_by_key(|u| std::cmp::Reverse((u.suspect, u.in_use, u.budget)));
            let sum = usage.split_off(SERVERS).into_iter().fold(
                Usage {
                    server: OTHER_SERVERS.into(),
                    budget: 0,
                    in_use: 0,
                    suspect: 0,
                },
                |sum, one| Usage {
                    server: sum.server,
                    budget: sum.budget + one.budget,
                    in_use: sum.in_use + one.in_use,
                    suspect: sum.suspect + one.suspect,
                },
            );
            usage.push(sum);
        }
        let label = |u: &Usage| vec![u.server.clone()];
        self.budget.show(usage.iter().map(|u| (label(u), u.budget)));
        self.in_use.show(usage.iter().map(|u| (label(u), u.in_use)));
        self.suspect.show(usage.iter().map(|u| (label(u), u.suspect)));
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

/// A gauge whose label values come and go. Those that are gone are taken off after the others were set: a scrape in
/// between never finds a run missing that is still open.
#[derive(Clone)]
struct Labelled<V> {
    gauges: V,
    shown: Arc<Mutex<BTreeSet<Vec<String>>>>,
}

impl<V> Labelled<V> {
    fn new(gauges: V) -> Self {
        Self {
            gauges,
            shown: Arc::default(),
        }
    }
}

/// One thing that takes a number.
trait SetTo<T>: Metric {
    fn set_to(&self, value: T);
}

impl<P: prometheus::core::Atomic + 'static> SetTo<P::T> for prometheus::core::GenericGauge<P>
where
    Self: Metric,
{
    fn set_to(&self, value: P::T) {
        self.set(value);
    }
}

impl<B: MetricVecBuilder> Labelled<MetricVec<B>> {
    fn show<T>(&self, values: impl Iterator<Item = (Vec<String>, T)>)
    where
        B::M: SetTo<T>,
    {
        let mut shown = locked(&self.shown);
        let mut gone = std::mem::take(&mut *shown);
        for (labels, value) in values {
            self.gauges.with_label_values(&labels).set_to(value);
            gone.remove(&labels);
            shown.insert(labels);
        }
        for labels in gone {
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            // It was there, or was never shown: both is well.
            let _ = self.gauges.remove_label_values(&labels);
        }
    }
}

fn add<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntGaugeVec, prometheus::Error> {
    add(registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    add(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_and_servers_that_are_gone_leave_the_page() {
        let metrics = Metrics::new().expect("metrics");
        let usage = |server: &str| Usage {
            server: server.into(),
            budget: 10,
            in_use: 1,
            suspect: 0,
        };
        metrics.show_servers(vec![usage("a"), usage("b")]);
        metrics.show_servers(vec![usage("b")]);
        let page = metrics.page().expect("a page");
        assert!(!page.contains("server=\"a\""), "{page}");
        assert!(
            page.contains("herder_connections_budget{server=\"b\"} 10"),
            "{page}"
        );
    }

    #[test]
    fn servers_beyond_the_busiest_share_a_series() {
        let metrics = Metrics::new().expect("metrics");
        let usage = (0..100).map(|n| Usage {
            server: format!("s{n}"),
            budget: 2,
            in_use: i64::from(n >= 60),
            suspect: 0,
        });
        metrics.show_servers(usage.collect());
        let page = metrics.page().expect("a page");
        assert!(
            page.contains("herder_connections_budget{server=\"other\"} 120"),
            "{page}"
        );
        assert!(
            page.contains("herder_connections_in_use{server=\"other\"} 0"),
            "{page}"
        );
    }
}
