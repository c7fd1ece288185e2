//! Reaches the API server, and waits for it while it starts.
//!
//! The waits in here are of the cluster's start, before any pod is: there is nothing to be
//! notified by until the server listens, so the connection is tried again, each time later.

use std::path::Path;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::process::{self, ProcessError};
use crate::state::ProcessRecord;

/// Why the API server could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The kubeconfig is not usable.
    #[error("cannot use the kubeconfig {path}")]
    Kubeconfig {
        /// The file.
        path: String,
        /// The cause.
        #[source]
        source: kube::config::KubeconfigError,
    },
    /// No client can be made of it.
    #[error("cannot make a client of the kubeconfig {path}")]
    Client {
        /// The file.
        path: String,
        /// The cause.
        #[source]
        source: kube::Error,
    },
    /// The daemon has ended.
    #[error("{name} ended while it was starting; see {log}:\n{tail}")]
    Ended {
        /// The daemon.
        name: String,
        /// Its log.
        log: String,
        /// The last lines of the log.
        tail: String,
    },
    /// The daemon could not be watched.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// It did not become ready.
    #[error("{name} is not ready after {seconds} s; see {log}")]
    Late {
        /// The daemon.
        name: String,
        /// Its log.
        log: String,
        /// How long was waited.
        seconds: u64,
    },
}

/// A client from a kubeconfig file.
pub async fn client(path: &Path) -> Result<Client, ConnectError> {
    let name = || path.display().to_string();
    let bad = |source| ConnectError::Kubeconfig { path: name(), source };
    let file = Kubeconfig::read_from(path).map_err(bad)?;
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.map_err(bad)?;
    Client::try_from(config).map_err(|source| ConnectError::Client { path: name(), source })
}

/// Whether `GET path` answers 200.
pub async fn answers(client: &Client, path: &str) -> bool {
    let Ok(request) = http::Request::get(path).body(Vec::new()) else { return false };
    client.request_text(request).await.is_ok()
}

/// Waits until `ready` is true, or fails at once when the daemon ends.
pub async fn until_ready<F>(
    name: &str,
    record: &ProcessRecord,
    log: &Path,
    limit: Duration,
    mut ready: impl FnMut() -> F,
) -> Result<(), ConnectError>
where
    F: Future<Output = bool>,
{
    let attempts = async {
        let mut pause = Duration::from_millis(10);
        while !ready().await {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(250));
        }
    };
    tokio::select! {
        () = attempts => Ok(()),
        ended = process::ended(record) => {
            ended?;
            Err(self::ended(name, log))
        }
        () = tokio::time::sleep(limit) => Err(ConnectError::Late {
            name: name.to_owned(),
            log: log.display().to_string(),
            seconds: limit.as_secs(),
        }),
    }
}

/// What is said of a daemon that has ended.
pub(crate) fn ended(name: &str, log: &Path) -> ConnectError {
    ConnectError::Ended { name: name.to_owned(), log: log.display().to_string(), tail: tail(log) }
}

/// The last lines of a log.
fn tail(log: &Path) -> String {
    match std::fs::read(log) {
        Ok(text) => {
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(5)..].join("\n")
        }
        Err(e) => format!("(the log cannot be read: {e})"),
    }
}
