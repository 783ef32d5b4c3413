//! Spans sent by OTLP over HTTP. The only file that names OpenTelemetry.

use std::{env, path::Path, sync::Arc, time::Duration};

use async_trait::async_trait;
use opentelemetry::{
    Context,
    trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider as _},
};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing::{Span, level_filters::LevelFilter};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Layer, filter::Targets, registry::LookupSpan};
use ureq::{
    Agent,
    tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem},
};

use crate::domain::trace::TraceContext;

/// How long the end of a program waits for a collector that does not answer.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// OpenTelemetry's own default for one request.
const TIMEOUT_MS: u64 = 10_000;

/// Sends spans.
pub(super) struct Exporter(SdkTracerProvider);

impl Exporter {
    /// As the standard variables want it. None: they name no collector. (The standard has a default, localhost; but a
    /// program that was built with this feature must not complain where nobody asked for traces.)
    pub(super) fn from_env(service: &'static str) -> Result<Option<Self>, String> {
        let disabled = env::var("OTEL_SDK_DISABLED").is_ok_and(|v| v.eq_ignore_ascii_case("true"));
        let off = env::var("OTEL_TRACES_EXPORTER").is_ok_and(|v| v == "none");
        if disabled || off || signal("ENDPOINT").is_none() {
            return Ok(None);
        }
        if let Some(other) = signal("PROTOCOL").filter(|p| p != "http/protobuf") {
            return Err(format!(
                "OTEL_EXPORTER_OTLP_PROTOCOL is {other}, and Herder speaks http/protobuf (port 4318)"
            ));
        }
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_http_client(Client::from_env()?)
            .build()
            .map_err(|e| e.to_string())?;
        // OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win over what is set here.
        let mut resource = Resource::builder().with_attribute(opentelemetry::KeyValue::new(
            "service.version",
            env!("CARGO_PKG_VERSION"),
        ));
        let named = env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|v| v.contains("service.name="));
        if !named && env::var("OTEL_SERVICE_NAME").is_err() {
            resource = resource.with_service_name(service);
        }
        Ok(Some(Self(
            SdkTracerProvider::builder()
                .with_batch_exporter(exporter)
                .with_resource(resource.build())
                .build(),
        )))
    }

    /// The layer that makes OpenTelemetry's spans of ours. Of ours alone: a span for each of sqlx's or apalis's doings
    /// would bury them.
    pub(super) fn layer<S>(&self) -> Box<dyn Layer<S> + Send + Sync>
    where
        S: tracing::Subscriber + for<'a> LookupSpan<'a> + Send + Sync,
    {
        let ours = Targets::new().with_target("herder", LevelFilter::INFO);
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("herder"))
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(super::asked_each_time(ours))
            .boxed()
    }

    pub(super) fn finish(self) {
        if let Err(error) = self.0.shutdown_with_timeout(LAST_WORDS) {
            tracing::warn!(%error, "Some spans could not be sent");
        }
    }
}

pub(super) fn adopt(span: &Span, parent: &TraceContext) {
    let parent = SpanContext::new(
        TraceId::from(parent.trace_id.get()),
        SpanId::from(parent.span_id.get()),
        TraceFlags::default().with_sampled(parent.sampled),
        true,
        TraceState::default(),
    );
    // It fails where no collector is named: then there is nothing to join.
    let _ = span.set_parent(Context::new().with_remote_span_context(parent));
}

pub(super) fn context_of(span: &Span) -> Option<TraceContext> {
    let context = span.context();
    let span = context.span();
    let context = span.span_context();
    Some(TraceContext {
        trace_id: u128::from_be_bytes(context.trace_id().to_bytes())
            .try_into()
            .ok()?,
        span_id: u64::from_be_bytes(context.span_id().to_bytes()).try_into().ok()?,
        sampled: context.is_sampled(),
    })
}

/// A setting for traces, or for all signals.
fn signal(name: &str) -> Option<String> {
    [
        format!("OTEL_EXPORTER_OTLP_TRACES_{name}"),
        format!("OTEL_EXPORTER_OTLP_{name}"),
    ]
    .iter()
    .find_map(|name| env::var(name).ok().filter(|value| !value.is_empty()))
}

/// The HTTP client that the webhook uses as well. It blocks, and OpenTelemetry calls it from a thread of its own.
#[derive(Debug)]
struct Client(Agent);

impl Client {
    fn from_env() -> Result<Self, String> {
        let timeout = signal("TIMEOUT")
            .and_then(|ms| ms.parse().ok())
            .unwrap_or(TIMEOUT_MS);
        let mut config = Agent::config_builder()
            .timeout_global(Some(Duration::from_millis(timeout)))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false);
        if let Some(path) = signal("CERTIFICATE") {
            let roots = RootCerts::Specific(Arc::new(certificates(Path::new(&path))?));
            config = config.tls_config(TlsConfig::builder().root_certs(roots).build());
        }
        Ok(Self(config.build().into()))
    }
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, String> {
    let wrong =
        |e: &dyn std::fmt::Display| format!("OTEL_EXPORTER_OTLP_CERTIFICATE: {}: {e}", path.display());
    let pem = std::fs::read(path).map_err(|e| wrong(&e))?;
    let mut found = Vec::new();
    for item in parse_pem(&pem) {
        if let PemItem::Certificate(certificate) = item.map_err(|e| wrong(&e))? {
            found.push(certificate);
        }
    }
    match found.is_empty() {
        true => Err(wrong(&"it holds no certificate")),
        false => Ok(found),
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let answer = self.0.run(Request::from_parts(parts, body.to_vec()))?;
        let (parts, mut body) = answer.into_parts();
        Ok(Response::from_parts(parts, Bytes::from(body.read_to_vec()?)))
    }
}
