//! Logs, on stderr.

use std::io::{self, Write};

use herder::telemetry::Telemetry;
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::LevelFilter,
    fmt::{self, MakeWriter},
};

use crate::{
    args::{Format, Global},
    render::progress,
};

/// What is logged unless asked. A command line says what it has to say by itself: what a worker in this very process
/// logs of its tenants is said by their events, and what the server remarks on a migration is for whoever asks.
const QUIET: &str = "warn,herder::flow=off,apalis=off,apalis_core=off,sqlx::postgres::notice=error,sqlx::pool=error,sqlx_core::pool=error";

/// Starts logging.
pub(crate) fn start(global: &Global) -> Telemetry {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(directives) if global.verbose == 0 => EnvFilter::builder()
            .with_default_directive(LevelFilter::WARN.into())
            .parse_lossy(directives),
        _ => EnvFilter::new(match global.verbose {
            0 => QUIET,
            1 => {
                "warn,herder=info,apalis=warn,apalis_core=warn,sqlx::postgres::notice=error,sqlx::pool=error,sqlx_core::pool=error"
            }
            2 => "info,herder=debug",
            _ => "trace",
        }),
    };
    let lines = fmt::layer().with_writer(Stderr).with_target(global.verbose > 1);
    let log = match global.log_format {
        Format::Json => lines.json().boxed(),
        Format::Text => lines.with_ansi(colours()).boxed(),
    };
    Telemetry::start(log, filter, "herder")
}

fn colours() -> bool {
    anstream::AutoStream::choice(&io::stderr()) != anstream::ColorChoice::Never
}

/// stderr, above a progress bar if there is one.
struct Stderr;

impl<'a> MakeWriter<'a> for Stderr {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(Vec::new())
    }
}

/// One event, written at its end.
struct Line(Vec<u8>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        progress::aside(|| {
            // Nobody listening is no error.
            let _ = io::stderr().lock().write_all(&self.0);
        });
    }
}
