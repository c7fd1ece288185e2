//! The HTTP server: `/livez`, `/readyz`, `/metrics`.
//!
//! Health is asked of the loop itself, so that a loop that hangs shows as one. Plain HTTP without
//! authentication, and therefore on loopback unless the configuration says otherwise.

use crate::debug::Question;
use crate::leader::Role;
use crate::metrics::{Health, Metrics, text};
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};

/// The loop has this long to answer.
pub(crate) const ANSWER: Duration = Duration::from_secs(5);

/// Why the server does not run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is not to be had.
    #[error("cannot listen on {address} for health and metrics: give another address or none")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// A question to the loop.
#[derive(Debug)]
pub enum Probe {
    /// How it is.
    Health(oneshot::Sender<Health>),
    /// What it knows.
    Question(Question),
}

/// What the handlers share.
#[derive(Clone)]
struct Shared {
    metrics: Arc<Metrics>,
    probes: mpsc::Sender<Probe>,
}

/// Listens.
///
/// # Errors
/// [`ServeError`] when the address is taken or not ours.
pub async fn listen(address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|source| ServeError::Listen { address, source })
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>, probes: mpsc::Sender<Probe>) {
    if let Err(error) = axum::serve(listener, router(metrics, probes)).await {
        tracing::error!(%error, "health and metrics are no longer served");
    }
}

fn router(metrics: Arc<Metrics>, probes: mpsc::Sender<Probe>) -> Router {
    Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .with_state(Shared { metrics, probes })
}

impl Shared {
    /// `None` when the loop does not answer in time.
    async fn ask(&self) -> Option<Health> {
        let (answer, answered) = oneshot::channel();
        let asked = async {
            self.probes.send(Probe::Health(answer)).await.ok()?;
            answered.await.ok()
        };
        tokio::time::timeout(ANSWER, asked).await.ok().flatten()
    }
}

async fn livez(State(shared): State<Shared>) -> Response {
    let health = shared.ask().await;
    let alive = health.is_some();
    let health = health.unwrap_or_default();
    let mut all = vec![Check::of("loop", alive), Check::of("status-lane", health.status_lane)];
    all.extend(election(&health));
    answer(&all)
}

/// A replica that stands by is ready to: it holds no list that could be complete.
async fn readyz(State(shared): State<Shared>) -> Response {
    let health = shared.ask().await;
    let alive = health.is_some();
    let health = health.unwrap_or_default();
    let mut all = vec![Check::of("loop", alive), Check::of("status-lane", health.status_lane)];
    if !matches!(health.role, Role::Standby(_)) {
        all.push(Check::of("nodes-synced", health.nodes_synced));
        all.push(Check::of("pods-synced", health.pods_synced));
        all.push(Check::of("profiles-synced", health.profiles_synced));
    }
    all.extend(election(&health));
    answer(&all)
}

/// One line of a health check.
struct Check {
    name: &'static str,
    ok: bool,
    more: String,
}

impl Check {
    fn of(name: &'static str, ok: bool) -> Self {
        Check { name, ok, more: String::new() }
    }
}

/// Upstream's `leaderElection` check: a leader whose lease has run out ought to have ended.
fn election(health: &Health) -> Option<Check> {
    let more = match &health.role {
        Role::Alone => return None,
        Role::Leader => ": leader".to_owned(),
        Role::Standby(who) if who.is_empty() => ": standby".to_owned(),
        Role::Standby(who) => format!(": standby, {who} leads"),
    };
    Some(Check { name: "leaderElection", ok: health.leads, more })
}

/// Upstream's shape: one line per check, 500 when one fails.
fn answer(checks: &[Check]) -> Response {
    let mut text = String::new();
    for Check { name, ok, more } in checks {
        let (mark, word) = if *ok { ('+', "ok") } else { ('-', "failed") };
        text.push_str(&format!("[{mark}]{name} {word}{more}\n"));
    }
    let code = if checks.iter().all(|c| c.ok) { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    (code, text).into_response()
}

async fn scrape(State(shared): State<Shared>, headers: HeaderMap) -> Response {
    // A loop that does not answer leaves the gauges as they were; /livez tells of it.
    if let Some(health) = shared.ask().await {
        shared.metrics.set(&health);
    }
    let Ok(openmetrics) = shared.metrics.openmetrics() else {
        return (StatusCode::INTERNAL_SERVER_ERROR, "a metric cannot be formatted\n").into_response();
    };
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    if accept.contains("application/openmetrics-text") {
        ([(header::CONTENT_TYPE, text::OPENMETRICS)], openmetrics).into_response()
    } else {
        ([(header::CONTENT_TYPE, text::PROMETHEUS)], text::prometheus(&openmetrics)).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get_of(handler: Response) -> (StatusCode, String) {
        let code = handler.status();
        let body = axum::body::to_bytes(handler.into_body(), 1 << 20).await.unwrap();
        (code, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn health_is_what_the_loop_says() {
        let (probes, mut asked) = mpsc::channel::<Probe>(1);
        let shared = Shared { metrics: Arc::default(), probes };
        let answers = [
            Health { status_lane: true, nodes_synced: true, profiles_synced: true, ..Health::default() },
            Health { status_lane: true, nodes_synced: true, pods_synced: true, ..Health::default() },
            Health {
                status_lane: true,
                nodes_synced: true,
                pods_synced: true,
                profiles_synced: true,
                ..Health::default()
            },
            Health { status_lane: true, role: Role::Standby("b".into()), leads: true, ..Health::default() },
            Health { status_lane: true, role: Role::Leader, ..Health::default() },
        ];
        tokio::spawn(async move {
            for health in answers {
                let Some(Probe::Health(answer)) = asked.recv().await else { panic!("no probe of health") };
                answer.send(health).unwrap();
            }
        });
        let (code, body) = get_of(readyz(State(shared.clone())).await).await;
        assert_eq!(code, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(body.contains("[-]pods-synced failed"), "{body}");
        let (code, body) = get_of(readyz(State(shared.clone())).await).await;
        assert_eq!(code, StatusCode::INTERNAL_SERVER_ERROR);
        assert!(body.contains("[-]profiles-synced failed"), "{body}");
        assert_eq!(get_of(readyz(State(shared.clone())).await).await.0, StatusCode::OK);
        let standby = get_of(readyz(State(shared.clone())).await).await;
        let said = "[+]loop ok\n[+]status-lane ok\n[+]leaderElection ok: standby, b leads\n";
        assert_eq!(standby, (StatusCode::OK, said.to_owned()));
        let (code, body) = get_of(livez(State(shared.clone())).await).await;
        assert_eq!(code, StatusCode::INTERNAL_SERVER_ERROR, "a leader without its lease");
        assert!(body.contains("[-]leaderElection failed: leader"), "{body}");
        // The loop has ended: its receiver is gone.
        assert_eq!(get_of(livez(State(shared)).await).await.0, StatusCode::INTERNAL_SERVER_ERROR);
    }

    #[tokio::test]
    async fn a_scrape_gives_the_format_that_is_asked_for() {
        let (probes, _) = mpsc::channel::<Probe>(1);
        let shared = Shared { metrics: Arc::default(), probes };
        let (_, body) = get_of(scrape(State(shared.clone()), HeaderMap::new()).await).await;
        assert!(body.contains("# TYPE scheduler_preemption_attempts_total counter"));
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, "application/openmetrics-text;version=1.0.0".parse().unwrap());
        let (_, body) = get_of(scrape(State(shared), headers).await).await;
        assert!(body.ends_with("# EOF\n"));
    }
}
