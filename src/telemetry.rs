//! How an attempt joins the trace of whoever made its run. A run has a trace whether or not anybody collects spans: its
//! id stands in the log of every attempt.

use std::num::{NonZeroU64, NonZeroU128};

use crate::domain::trace::TraceContext;

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
