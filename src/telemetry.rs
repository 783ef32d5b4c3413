//! Logs and traces: started once by each program, and how an attempt joins the trace of whoever made its run.
//!
//! A run has a trace whether or not anybody collects spans: its id stands in the log of every attempt. Only with the
//! feature `otlp`, and where the environment names a collector, spans are sent there.

#[cfg(feature = "otlp")]
mod otlp;

use std::num::{NonZeroU64, NonZeroU128};

use tracing::{Level, Metadata, Span, level_filters::LevelFilter};
use tracing_subscriber::{
    Layer, Registry,
    filter::{FilterExt, dynamic_filter_fn, filter_fn},
    layer::{Filter, SubscriberExt},
    util::SubscriberInitExt,
};

use crate::domain::trace::TraceContext;

/// What a program logs with.
pub type Log = Box<dyn Layer<Registry> + Send + Sync>;

/// Logs and traces, until the program's end.
#[must_use = "spans that are still here are sent by `finish`"]
pub struct Telemetry {
    #[cfg(feature = "otlp")]
    exporter: Option<otlp::Exporter>,
}

impl Telemetry {
    /// Starts logging what the filter lets through, and sending spans as the service of this name if a collector is
    /// named. To be called once.
    #[cfg(feature = "otlp")]
    pub fn start(
        log: Log,
        filter: impl Filter<Registry> + Send + Sync + 'static,
        service: &'static str,
    ) -> Self {
        let (exporter, problem) = match otlp::Exporter::from_env(service) {
            Ok(exporter) => (exporter, None),
            Err(problem) => (None, Some(problem)),
        };
        let spans = exporter.as_ref().map(otlp::Exporter::layer);
        tracing_subscriber::registry()
            .with(log.with_filter(discreet(asked_each_time(filter))))
            .with(spans)
            .init();
        if let Some(problem) = problem {
            tracing::warn!("No spans are sent: {problem}");
        }
        Self { exporter }
    }

    /// Starts logging what the filter lets through. To be called once.
    #[cfg(not(feature = "otlp"))]
    pub fn start(
        log: Log,
        filter: impl Filter<Registry> + Send + Sync + 'static,
        _service: &'static str,
    ) -> Self {
        tracing_subscriber::registry()
            .with(log.with_filter(discreet(asked_each_time(filter))))
            .init();
        Self {}
    }

    /// Sends what is still here, for as long as that is worth waiting.
    pub fn finish(self) {
        #[cfg(feature = "otlp")]
        if let Some(exporter) = self.exporter {
            exporter.finish();
        }
    }
}

/// The same filter, asked for each event. An answer that is kept for good makes the event after an `enabled!` that said
/// no get lost (tokio-rs/tracing#2519), and sqlx asks that way, through `log`, about every notice of a server.
fn asked_each_time<S>(filter: impl Filter<S>) -> impl Filter<S> {
    filter.and(dynamic_filter_fn(|_, _| true).with_max_level_hint(LevelFilter::TRACE))
}

/// The same filter, but for what an HTTP client says of each request at its lowest level: a webhook's URL is a secret, and so may a
/// collector's headers be.
fn discreet<S>(filter: impl Filter<S>) -> impl Filter<S> {
    let is_fit = |event: &Metadata<'_>| !event.target().starts_with("ureq") || *event.level() <= Level::INFO;
    filter.and(filter_fn(is_fit))
}

/// The trace that the environment hands to this process in `TRACEPARENT`, as CI systems and `otel-cli` do; else a new
/// one. What makes no sense there is passed over, as the standard wants it.
pub fn incoming() -> TraceContext {
    let given = std::env::var("TRACEPARENT")
        .ok()
        .and_then(|text| text.parse().ok());
    given.unwrap_or_else(|| TraceContext {
        trace_id: rand::random::<NonZeroU128>(),
        span_id: rand::random::<NonZeroU64>(),
        sampled: true,
    })
}

/// Makes a span, which nobody has entered yet, a child of what is elsewhere.
pub fn adopt(span: &Span, parent: &TraceContext) {
    #[cfg(feature = "otlp")]
    otlp::adopt(span, parent);
    #[cfg(not(feature = "otlp"))]
    let _ = (span, parent);
}

/// Where a span stands in its trace. None: nobody sends spans.
pub fn context_of(span: &Span) -> Option<TraceContext> {
    #[cfg(feature = "otlp")]
    return otlp::context_of(span);
    #[cfg(not(feature = "otlp"))]
    {
        let _ = span;
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tracing::{Event, Level, Metadata, Subscriber, subscriber::Interest};
    use tracing_subscriber::layer::Context;

    use super::*;

    struct Counter(Arc<AtomicUsize>);

    impl<S: Subscriber> Layer<S> for Counter {
        fn on_event(&self, _: &Event<'_>, _: Context<'_, S>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Wants no notices, and has to be asked about each.
    struct NoNotices;

    impl<S> Filter<S> for NoNotices {
        fn enabled(&self, metadata: &Metadata<'_>, _: &Context<'_, S>) -> bool {
            metadata.target() != "notices"
        }

        fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
            if metadata.target() == "notices" {
                Interest::sometimes()
            } else {
                Interest::always()
            }
        }
    }

    #[test]
    fn an_event_is_not_lost_because_another_is_not_wanted() {
        let events = Arc::new(AtomicUsize::new(0));
        let counter = Counter(Arc::clone(&events)).with_filter(asked_each_time(NoNotices));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(counter), || {
            for _ in 0..2 {
                let _ = tracing::enabled!(target: "notices", Level::WARN);
                tracing::warn!("wanted");
            }
        });
        assert_eq!(events.load(Ordering::Relaxed), 2);
    }
}
