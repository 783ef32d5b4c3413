//! The worker of Herder: pulls jobs and migrates tenants, any number of them together under each server's budget.

mod http;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::{Arg, CommandFactory, FromArgMatches, Parser, ValueEnum, builder::Resettable};
use herder::{
    config::Config,
    flow::{
        context::Context,
        worker::{Options, POOL, Worker},
    },
    metrics::Metrics,
    session::pooler,
    store::{self, StoreError, setup::setup_state},
    telemetry::{Log, Telemetry},
    tenant_error::POOLED_HINT,
};
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
};
use tracing::{Level, enabled, error, info, warn};
use tracing_subscriber::{EnvFilter, Layer, fmt};

/// How often the fleet's gauges are read from the control database.
///
/// Each time, one pass over the jobs of open runs: seldom enough for many workers, often enough for a scrape every 15 s.
const GAUGES: Duration = Duration::from_secs(5);

/// How often a worker that may not connect looks whether it may now: its first gauges are to be there with its first jobs.
const DOOR: Duration = Duration::from_millis(100);

/// A worker was asked to end three times, or its queue broke.
const UNEXPECTED: u8 = 1;

/// The config or the control database cannot be used.
const SETUP: u8 = 3;

/// Takes jobs and migrates tenants until it is told to stop.
///
/// Any number of workers may run: together they stay within each server's connection budget. SIGTERM or Ctrl-C drains
/// the worker: it takes no new jobs, running jobs may finish within the drain timeout, and the rest are returned. A second
/// signal returns running jobs at once. A third ends the process immediately; other workers take over its jobs when its
/// lease expires.
#[derive(Parser)]
#[command(
    name = "herder-worker",
    version,
    after_help = "Exit codes: 0 drained, 1 unexpected error, 2 usage error, 3 set-up error (config, database)."
)]
struct Args {
    /// The config file.
    #[arg(
        long,
        env = "HERDER_CONFIG",
        default_value = "herder.toml",
        value_name = "FILE"
    )]
    config: PathBuf,
    /// Number of jobs to run at a time [default: from the config, else 8].
    #[arg(long, env = "HERDER_CONCURRENCY", value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    concurrency: Option<u16>,
    /// Address on which to serve /metrics, /livez and /readyz; port 0 picks a free port. Without it, nothing is served.
    #[arg(long, env = "HERDER_LISTEN", value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    /// How long a drain waits for running jobs, e.g. 30s [default: from the config, else 30s].
    #[arg(long, env = "HERDER_DRAIN_TIMEOUT", value_name = "DURATION", value_parser = humantime::parse_duration)]
    drain_timeout: Option<Duration>,
    /// Name of this worker in logs and in `herder status` [default: the host name].
    #[arg(long, env = "HERDER_WORKER_NAME", value_name = "NAME", value_parser = name)]
    name: Option<String>,
    /// Format of the log on standard error. RUST_LOG selects what is logged.
    #[arg(long, env = "HERDER_LOG_FORMAT", default_value = "text")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// A variable that is set to nothing counts as not set: a compose file's `${X:-}` makes such.
fn unless_empty(arg: Arg) -> Arg {
    match arg.get_env().and_then(std::env::var_os) {
        Some(value) if value.is_empty() => arg.env(Resettable::Reset),
        _ => arg,
    }
}

/// A name that can stand in a line of the log.
fn name(text: &str) -> Result<String, String> {
    match text.trim().is_empty() || text.contains(char::is_control) {
        true => Err("must be text on one line".into()),
        false => Ok(text.to_owned()),
    }
}

fn main() -> ExitCode {
    let matches = Args::command().mut_args(unless_empty).get_matches();
    let args = Args::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let telemetry = Telemetry::start(log(args.log_format), filter(), "herder-worker");
    let ran = tokio::runtime::Runtime::new()
        .context("cannot start the runtime")
        .and_then(|rt| {
            let ran = rt.block_on(run(args));
            // A second signal must not wait for what hangs.
            rt.shutdown_timeout(Duration::from_secs(1));
            ran
        });
    let code = ran.unwrap_or_else(|error| {
        match enabled!(Level::ERROR) {
            true => error!("{}", one_line(&error)),
            // RUST_LOG wants to hear of others. Whoever ends says why all the same.
            false => eprintln!("{}", one_line(&error)),
        }
        ExitCode::from(SETUP)
    });
    telemetry.finish();
    code
}

fn filter() -> EnvFilter {
    EnvFilter::try_from_default_env().unwrap_or_else(|_| {
        EnvFilter::new("info,apalis=warn,apalis_core=warn,opentelemetry=warn,sqlx::postgres::notice=error,sqlx::pool=error,sqlx_core::pool=error")
    })
}

fn log(format: LogFormat) -> Log {
    let lines = fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    match format {
        LogFormat::Text => lines.with_target(false).boxed(),
        LogFormat::Json => lines.json().boxed(),
    }
}

async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut config = Config::load(&args.config)?;
    if let Some(concurrency) = args.concurrency {
        config.worker.concurrency = usize::from(concurrency);
    }
    let options = Options {
        name: args.name.unwrap_or_else(host_name),
        concurrency: config.worker.concurrency,
        drain_timeout: args.drain_timeout.unwrap_or(config.worker.drain_timeout),
        only_run: None,
    };
    let cx = Arc::new(Context::new(config, "herder-worker", POOL)?);
    // Not over its own pool: a worker that finds no room in the budget waits without a connection.
    let looking = store::pool(&cx.config.control.url, "herder-worker", 1)?;
    let explained = |error: StoreError| anyhow::anyhow!(error.explain(&cx.config.control.url));
    let examined = pooler::examine_pool(&looking).await;
    if let Some(pooled) = examined.map_err(|error| explained(error.into()))? {
        anyhow::bail!("a pooler in front of the control database shares sessions: {pooled}; {POOLED_HINT}");
    }
    let state = setup_state(&looking).await;
    looking.close().await;
    if let Some((problem, remedy)) = state.map_err(explained)?.problem() {
        anyhow::bail!("the control database {problem}: {remedy}");
    }
    let metrics = Metrics::new().context("cannot create the metrics")?;
    let worker = Worker::new(Arc::clone(&cx), options.clone(), metrics.clone());
    if let Some(address) = args.listen {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        let local = listener.local_addr()?;
        info!(listen = %local, "Serving /metrics, /livez and /readyz on http://{local}");
        tokio::spawn(http::serve(listener, worker.clone(), metrics.clone()));
    }
    let gauges = tokio::spawn(refresh(Arc::clone(&cx), worker.clone(), metrics));
    // Before it says that it is there: whoever reads that may send one.
    let signals =
        signal(SignalKind::terminate()).and_then(|term| Ok((term, signal(SignalKind::interrupt())?)));
    info!(
        worker = worker.id(),
        concurrency = options.concurrency,
        "Worker {} takes jobs, {} at a time",
        worker.id(),
        options.concurrency
    );
    let signals = tokio::spawn(obey(signals, worker.clone()));
    let ran = worker.run().await;
    gauges.abort();
    signals.abort();
    Ok(match ran {
        Ok(()) => {
            info!("Drained");
            ExitCode::SUCCESS
        }
        Err(error) => {
            error!(%error, "The worker failed");
            ExitCode::from(UNEXPECTED)
        }
    })
}

/// The whole chain. Some errors repeat their source: it is said once.
fn one_line(error: &anyhow::Error) -> String {
    let causes = error.chain().map(ToString::to_string);
    causes.fold(String::new(), |said, cause| match () {
        () if said.contains(&cause) => said,
        () if said.is_empty() => cause,
        () => format!("{said}: {cause}"),
    })
}

/// Keeps the fleet's gauges fresh. While the control database is away they keep what they said.
async fn refresh(cx: Arc<Context>, worker: Worker, metrics: Metrics) {
    loop {
        // One that was not let in yet must not connect for that: the pool would keep the connection.
        if !worker.may_connect() {
            tokio::time::sleep(DOOR).await;
            continue;
        }
        if let Err(error) = metrics.refresh(&cx.pool).await {
            tracing::debug!(%error, "Cannot refresh the gauges");
        }
        tokio::time::sleep(GAUGES).await;
    }
}

/// The first signal drains; the second gives back what runs; a third ends the process.
async fn obey(signals: std::io::Result<(Signal, Signal)>, worker: Worker) {
    let (mut term, mut int) = match signals {
        Ok(signals) => signals,
        Err(error) => {
            warn!(%error, "Cannot listen for signals");
            return;
        }
    };
    let mut count = 0;
    loop {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        count += 1;
        match count {
            1 => {
                info!("Draining: taking no new jobs, finishing running ones");
                worker.drain();
            }
            2 => {
                warn!("Ending now: returning running jobs");
                worker.hurry();
            }
            _ => std::process::exit(i32::from(UNEXPECTED)),
        }
    }
}

/// The pod's or the machine's name.
fn host_name() -> String {
    std::env::var("HOSTNAME")
        .ok()
        .filter(|name| !name.is_empty())
        .or_else(|| {
            std::fs::read_to_string("/etc/hostname")
                .ok()
                .map(|name| name.trim().to_owned())
        })
        .unwrap_or_else(|| "worker".into())
}
