//! The pod's monitor, asked from async code: each call is one connection on a blocking thread, so
//! that a slow `runc` of one container never holds up another's answer.

use podway_monitor::{Client, ClientError, Event, Message, Reply, Request};
use std::path::{Path, PathBuf};

/// Why the monitor did not do it.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// It could not be started.
    #[error("cannot start the pod's monitor {0}: set [monitor] path")]
    Start(PathBuf, #[source] std::io::Error),
    /// It refused or is gone.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// It answered something else than what was asked.
    #[error("the monitor gave an unexpected answer")]
    Unexpected,
    /// The blocking thread ended early.
    #[error("the call to the monitor was given up")]
    Join(#[source] tokio::task::JoinError),
}

/// Starts a monitor; it outlives this process.
///
/// # Errors
/// [`SupervisorError::Start`].
pub async fn start(binary: PathBuf, socket: PathBuf, dir: PathBuf) -> Result<u32, SupervisorError> {
    let name = binary.clone();
    tokio::task::spawn_blocking(move || podway_monitor::spawn(&binary, &socket, &dir))
        .await
        .map_err(SupervisorError::Join)?
        .map_err(|e| SupervisorError::Start(name, e))
}

/// One request, one reply.
///
/// # Errors
/// [`SupervisorError`].
pub async fn call(socket: &Path, request: Request) -> Result<Reply, SupervisorError> {
    let socket = socket.to_owned();
    tokio::task::spawn_blocking(move || Ok(Client::connect(&socket)?.call(&request)?))
        .await
        .map_err(SupervisorError::Join)?
}

/// Whether the error says that the monitor's process is gone.
#[must_use]
pub fn is_gone(error: &SupervisorError) -> bool {
    matches!(error, SupervisorError::Client(ClientError::Closed | ClientError::Socket(_)))
}

/// Whether the error says that nobody watches over the container: its monitor's process is gone, or
/// another one runs in its place that never knew the container.
#[must_use]
pub fn knows_not(error: &SupervisorError) -> bool {
    let refused =
        |e: &ClientError| matches!(e, ClientError::Refused { code: podway_monitor::ErrorCode::NotFound, .. });
    is_gone(error) || matches!(error, SupervisorError::Client(e) if refused(e))
}

/// Tells `on_event` of every event until the monitor ends, then calls `ended` once. The first
/// connection is made before this returns, so no exit after it is missed.
///
/// # Errors
/// [`SupervisorError`] when the monitor cannot be reached; `ended` is not called then.
pub async fn watch(
    socket: &Path,
    on_event: impl Fn(Event) + Send + 'static,
    ended: impl FnOnce() + Send + 'static,
) -> Result<(), SupervisorError> {
    let socket = socket.to_owned();
    let client = tokio::task::spawn_blocking(move || Client::connect(&socket))
        .await
        .map_err(SupervisorError::Join)??;
    std::thread::Builder::new()
        .name("monitor".to_owned())
        .stack_size(256 * 1024)
        .spawn(move || {
            loop {
                match client.recv() {
                    Ok(received) => {
                        if let Message::Event(event) = received.message {
                            on_event(event);
                        }
                    }
                    Err(ClientError::Closed) => break,
                    Err(error) => {
                        tracing::warn!(%error, "a monitor's events are lost");
                        break;
                    }
                }
            }
            ended();
        })
        .map_err(|e| SupervisorError::Client(ClientError::Socket(e)))?;
    Ok(())
}
