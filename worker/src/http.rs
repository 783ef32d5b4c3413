//! /metrics, /livez and /readyz.

use axum::{Router, http::StatusCode, http::header::CONTENT_TYPE, response::IntoResponse, routing::get};
use herder::{flow::worker::Worker, metrics::Metrics};
use tokio::net::TcpListener;
use tracing::error;

/// Serves until the process ends. It needs nothing from the control database, so that a probe never waits for it.
pub(crate) async fn serve(listener: TcpListener, worker: Worker, metrics: Metrics) {
    let (alive, scraped) = (worker.clone(), worker.clone());
    let router = Router::new()
        .route(
            "/metrics",
            get(move || async move {
                metrics.worker(scraped.figures());
                page(&metrics)
            }),
        )
        // Alive: the loop turns. The control database may be away; restarting would not bring it back.
        .route(
            "/livez",
            get(move || async move { answer(alive.is_alive(), "the main loop does not respond") }),
        )
        // Ready: its lease runs, and it takes jobs.
        .route(
            "/readyz",
            get(move || async move { answer(worker.is_ready(), "no lease, or draining") }),
        );
    if let Err(error) = axum::serve(listener, router).await {
        error!(%error, "The HTTP server ended");
    }
}

fn page(metrics: &Metrics) -> impl IntoResponse + use<> {
    match metrics.page() {
        Ok(page) => (
            StatusCode::OK,
            [(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")],
            page,
        ),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(CONTENT_TYPE, "text/plain")],
            error.to_string(),
        ),
    }
}

fn answer(well: bool, otherwise: &'static str) -> (StatusCode, &'static str) {
    match well {
        true => (StatusCode::OK, "ok"),
        false => (StatusCode::SERVICE_UNAVAILABLE, otherwise),
    }
}
