//! The HTTP server that tells what was counted: `/metrics` and `/livez`.

use crate::state::{Life, Runtime, Stage};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use std::io;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

fn count(runtime: &Runtime) {
    let sandboxes = runtime.sandboxes();
    let sandboxes = [("creating", Life::Creating), ("ready", Life::Ready), ("notready", Life::Stopped)]
        .map(|(state, life)| (state, sandboxes.iter().filter(|(_, s)| s.life == life).count()));
    let containers = runtime.containers();
    let containers = [
        ("creating", Stage::Creating),
        ("created", Stage::Created),
        ("running", Stage::Running),
        ("exited", Stage::Exited),
    ]
    .map(|(state, stage)| (state, containers.iter().filter(|(_, c)| c.stage == stage).count()));
    runtime.metrics.count(&sandboxes, &containers);
}

/// Serves `/metrics` and `/livez` until `shutdown`. Plain HTTP without authentication: give it a
/// loopback address, or one that only the monitoring can reach.
///
/// # Errors
/// The listener's.
pub async fn serve(
    listener: TcpListener,
    runtime: Arc<Runtime>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let app = Router::new()
        // It answers: the process lives and its threads are not stuck.
        .route("/livez", get(|| async { "ok\n" }))
        .route("/metrics", get(scrape))
        .with_state(runtime);
    axum::serve(listener, app).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

async fn scrape(State(runtime): State<Arc<Runtime>>, headers: HeaderMap) -> Response {
    count(&runtime);
    let Ok(text) = runtime.metrics.openmetrics() else {
        return (StatusCode::INTERNAL_SERVER_ERROR, "a metric cannot be formatted\n").into_response();
    };
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if accept.contains("application/openmetrics-text") {
        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
        return ([(header::CONTENT_TYPE, kind)], text).into_response();
    }
    // No counters here, so the older format differs by the end marker only.
    let plain = text.trim_end().trim_end_matches("# EOF").to_owned();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], plain).into_response()
}
