//! What the runtime counts, and the HTTP server that tells: `/metrics` and `/livez`.
//!
//! Durations come from flow records and from nothing else, so that they agree with every other
//! picture of the same start. No label holds a name of a pod: their number must stay small.

use crate::state::{Life, Runtime, Stage};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use podway_flow::{Outcome, Record};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::io;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// The metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    phases: Family<Labels<2>, Histogram>,
    sandboxes: Family<Labels<1>, Gauge>,
    containers: Family<Labels<1>, Gauge>,
}

fn phase_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 17)) // 1 ms to 65 s
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let phases = Family::new_with_constructor(phase_histogram as fn() -> Histogram);
        let (sandboxes, containers) = (Family::default(), Family::default());
        registry.register(
            "podway_pod_phase_duration_seconds",
            "How long a phase of a pod's start took, 1 ms to 60 s",
            phases.clone(),
        );
        registry.register("podway_runtime_sandboxes", "Sandboxes by state", sandboxes.clone());
        registry.register("podway_runtime_containers", "Containers by state", containers.clone());
        Metrics { registry, phases, sandboxes, containers }
    }
}

impl Metrics {
    /// Takes the durations of what was recorded.
    pub fn observe(&self, records: &[Record]) {
        for record in records {
            let Some(micros) = record.duration() else { continue };
            let result = match record.outcome {
                Outcome::Succeeded => "succeeded",
                Outcome::Failed => "failed",
                Outcome::Skipped => "skipped",
                Outcome::Running => continue,
            };
            let labels = [("phase", record.phase.name()), ("result", result)];
            self.phases.get_or_create(&labels).observe(micros as f64 / 1e6);
        }
    }

    fn count(&self, runtime: &Runtime) {
        let sandboxes = runtime.sandboxes();
        for (state, life) in
            [("creating", Life::Creating), ("ready", Life::Ready), ("notready", Life::Stopped)]
        {
            let n = sandboxes.iter().filter(|(_, s)| s.life == life).count();
            self.sandboxes.get_or_create(&[("state", state)]).set(i64::try_from(n).unwrap_or(i64::MAX));
        }
        let containers = runtime.containers();
        for (state, stage) in [
            ("creating", Stage::Creating),
            ("created", Stage::Created),
            ("running", Stage::Running),
            ("exited", Stage::Exited),
        ] {
            let n = containers.iter().filter(|(_, c)| c.stage == stage).count();
            self.containers.get_or_create(&[("state", state)]).set(i64::try_from(n).unwrap_or(i64::MAX));
        }
    }

    /// The metrics in the OpenMetrics text format.
    ///
    /// # Errors
    /// The encoder's.
    pub fn openmetrics(&self, runtime: &Runtime) -> Result<String, std::fmt::Error> {
        self.count(runtime);
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
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
    let Ok(text) = runtime.metrics.openmetrics(&runtime) else {
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

#[cfg(test)]
mod tests {
    use super::*;
    use podway_flow::{Clock, Phase, Recorder, Writer};

    #[test]
    fn records_become_durations_by_phase_and_result() {
        let metrics = Metrics::default();
        let recorder = Recorder::new(Writer::Runtime, Clock::new());
        recorder.begin(Phase::SandboxCreated).succeed("Created");
        recorder.begin(Phase::NetworkConfigured).fail("NetworkFailed", "no");
        metrics.observe(&recorder.take());
        let mut text = String::new();
        encode(&mut text, &metrics.registry).unwrap();
        for line in [
            "podway_pod_phase_duration_seconds_count{phase=\"SandboxCreated\",result=\"succeeded\"} 1",
            "podway_pod_phase_duration_seconds_count{phase=\"NetworkConfigured\",result=\"failed\"} 1",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
