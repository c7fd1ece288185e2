//! What only the machine's administrator may see: decisions, queue, snapshot, the shadow's disagreements.
//!
//! They name pods and nodes, so that they are served on a Unix socket of mode 0600 alone, never on a port:
//! the kernel lets nobody but the scheduler's own user and root connect. In a cluster `kubectl exec` leads
//! there, which the API server authenticates and authorizes.

use crate::cache::Snapshot;
use crate::explain::ring::Attempt;
use crate::server::{ANSWER, Probe};
use crate::shadow::Disagreement;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot};

/// A pod that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// `namespace/name`.
    pub pod: String,
    /// The profile.
    pub profile: String,
    /// active, backoff, unschedulable or gated.
    pub queue: &'static str,
    /// Its priority.
    pub priority: i32,
    /// How often it was tried.
    pub attempts: u32,
    /// When it came, in µs of Unix time.
    pub added: i64,
    /// Until when its backoff lasts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<i64>,
    /// Who refused it last.
    pub refused_by: Vec<&'static str>,
}

/// A question to the loop beyond its health.
#[derive(Debug)]
pub enum Question {
    /// The last attempts, of a pod or all.
    Decisions(Option<String>, oneshot::Sender<Vec<Arc<Attempt>>>),
    /// Who waits.
    Queue(oneshot::Sender<Vec<Waiting>>),
    /// The cluster as it is known.
    Snapshot(oneshot::Sender<Snapshot>),
    /// Where the shadow disagrees.
    Shadow(oneshot::Sender<Vec<Arc<Disagreement>>>),
}

/// The socket is not to be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on the debug socket {path}: its directory must be there, and nothing but an old socket in its place"
)]
pub struct SocketError {
    path: PathBuf,
    #[source]
    source: std::io::Error,
}

/// Listens, with mode 0600 from the first moment on; what a killed predecessor left is removed.
///
/// # Errors
/// [`SocketError`].
pub fn listen(path: &Path) -> Result<UnixListener, SocketError> {
    let wrong = |source| SocketError { path: path.to_owned(), source };
    use std::os::unix::fs::FileTypeExt as _;
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => std::fs::remove_file(path).map_err(wrong)?,
        Ok(_) => return Err(wrong(std::io::ErrorKind::AlreadyExists.into())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(wrong(error)),
    }
    // Between bind and chmod it would be open to whoever the umask allows.
    let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(before);
    bound.map_err(wrong)
}

/// Serves until it is dropped.
pub async fn serve(listener: UnixListener, probes: mpsc::Sender<Probe>) {
    if let Err(error) = axum::serve(listener, router(probes)).await {
        tracing::error!(%error, "the debug socket is no longer served");
    }
}

fn router(probes: mpsc::Sender<Probe>) -> Router {
    Router::new()
        .route("/debug/decisions", get(decisions))
        .route("/debug/queue", get(queue))
        .route("/debug/snapshot", get(snapshot))
        .route("/debug/shadow", get(shadow))
        .with_state(probes)
}

/// Asks the loop; 503 when it does not answer, as one that stands by does not.
async fn ask<T>(
    probes: &mpsc::Sender<Probe>,
    question: impl FnOnce(oneshot::Sender<T>) -> Question,
) -> Result<T, Response> {
    let (answer, answered) = oneshot::channel();
    let asked = async {
        probes.send(Probe::Question(question(answer))).await.ok()?;
        answered.await.ok()
    };
    let none = || {
        (StatusCode::SERVICE_UNAVAILABLE, "the loop does not answer: it hangs or stands by\n").into_response()
    };
    tokio::time::timeout(ANSWER, asked).await.ok().flatten().ok_or_else(none)
}

#[derive(Deserialize)]
struct Of {
    pod: Option<String>,
}

async fn decisions(
    State(probes): State<mpsc::Sender<Probe>>,
    Query(of): Query<Of>,
) -> Result<Response, Response> {
    let attempts = ask(&probes, |answer| Question::Decisions(of.pod, answer)).await?;
    Ok(Json(attempts.iter().map(|a| (**a).clone()).collect::<Vec<Attempt>>()).into_response())
}

async fn queue(State(probes): State<mpsc::Sender<Probe>>) -> Result<Response, Response> {
    Ok(Json(ask(&probes, Question::Queue).await?).into_response())
}

async fn shadow(State(probes): State<mpsc::Sender<Probe>>) -> Result<Response, Response> {
    let all = ask(&probes, Question::Shadow).await?;
    Ok(Json(all.iter().map(|d| (**d).clone()).collect::<Vec<Disagreement>>()).into_response())
}

async fn snapshot(State(probes): State<mpsc::Sender<Probe>>) -> Result<Response, Response> {
    let snapshot = ask(&probes, Question::Snapshot).await?;
    let nodes: Vec<serde_json::Value> = snapshot
        .nodes
        .iter()
        .map(|n| {
            let resources = |of: &crate::model::Resources| -> serde_json::Map<String, serde_json::Value> {
                of.iter().map(|(name, amount)| (name.to_owned(), amount.into())).collect()
            };
            let pods: Vec<String> = n.pods.iter().map(|p| p.pod.key()).collect();
            json!({"name": &*n.info.name, "unschedulable": n.info.unschedulable,
                "allocatable": resources(&n.info.allocatable), "requested": resources(&n.usage.requested),
                "allocatablePods": n.info.allocatable_pods, "pods": pods})
        })
        .collect();
    Ok(Json(json!({"generation": snapshot.generation, "nodes": nodes})).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    async fn get_of(path: &Path, what: &str) -> String {
        let mut stream = tokio::net::UnixStream::connect(path).await.unwrap();
        stream.write_all(format!("GET {what} HTTP/1.0\r\n\r\n").as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn the_socket_is_its_users_own_and_answers_what_the_loop_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(listen(&path).unwrap());
        // What was left is replaced; what is no socket is not.
        let listener = listen(&path).unwrap();
        let meta = std::fs::metadata(&path).unwrap();
        assert!(meta.file_type().is_socket());
        assert_eq!(meta.permissions().mode() & 0o777, 0o600);
        let file = dir.path().join("f");
        std::fs::write(&file, "mine").unwrap();
        assert!(listen(&file).is_err());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "mine");

        let (probes, mut asked) = mpsc::channel(1);
        tokio::spawn(serve(listener, probes));
        tokio::spawn(async move {
            while let Some(probe) = asked.recv().await {
                match probe {
                    Probe::Question(Question::Decisions(of, answer)) => {
                        assert_eq!(of.as_deref(), Some("d/p"));
                        answer.send(Vec::new()).unwrap();
                    }
                    Probe::Question(Question::Snapshot(answer)) => answer.send(Snapshot::default()).unwrap(),
                    // As one that stands by.
                    other => drop(other),
                }
            }
        });
        assert!(get_of(&path, "/debug/decisions?pod=d/p").await.ends_with("\r\n\r\n[]"));
        assert!(get_of(&path, "/debug/snapshot").await.contains("\"generation\":0"));
        assert!(get_of(&path, "/debug/queue").await.starts_with("HTTP/1.0 503"));
    }
}
