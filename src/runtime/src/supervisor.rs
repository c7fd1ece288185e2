//! The pod's monitor, asked from async code: each call is one connection on a blocking thread, so
//! that a slow `runc` of one container never holds up another's answer.

use podway_monitor::{Client, ClientError, Event, Message, Reply, Request};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::io::unix::AsyncFd;

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

/// Tells `on_event` of every event, one after the other, until the monitor ends, then calls `ended` once. The
/// first connection is made before this returns, so no exit after it is missed. `on_event` may block.
///
/// A task, not a thread: a hundred pods would have a hundred stacks, each with a receive buffer of 64 KiB on it.
///
/// # Errors
/// [`SupervisorError`] when the monitor cannot be reached; `ended` is not called then.
pub async fn watch(
    socket: &Path,
    on_event: impl Fn(Event) + Send + Sync + 'static,
    ended: impl FnOnce() + Send + 'static,
) -> Result<(), SupervisorError> {
    let socket = socket.to_owned();
    let mut client = tokio::task::spawn_blocking(move || Client::connect(&socket))
        .await
        .map_err(SupervisorError::Join)??;
    // What came while the greeting was waited for.
    let early: Vec<Event> = std::iter::from_fn(|| client.take_event()).collect();
    let socket = client.as_fd().try_clone_to_owned().and_then(crate::orphan::watch);
    let socket = socket.map_err(|e| SupervisorError::Client(ClientError::Socket(e)))?;
    drop(tokio::spawn(async move {
        let on_event = Arc::new(on_event);
        for event in early {
            tell(&on_event, event).await;
        }
        if let Err(error) = follow(&client, &socket, &on_event).await {
            tracing::warn!(%error, "a monitor's events are lost");
        }
        ended();
    }));
    Ok(())
}

/// Until the monitor closes the connection.
async fn follow<F>(client: &Client, socket: &AsyncFd<OwnedFd>, on_event: &Arc<F>) -> Result<(), ClientError>
where
    F: Fn(Event) + Send + Sync + 'static,
{
    loop {
        let mut ready = socket.readable().await.map_err(ClientError::Socket)?;
        match client.try_recv() {
            Ok(Some(received)) => {
                if let Message::Event(event) = received.message {
                    tell(on_event, event).await;
                }
            }
            Ok(None) => ready.clear_ready(),
            Err(ClientError::Closed) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

async fn tell<F>(on_event: &Arc<F>, event: Event)
where
    F: Fn(Event) + Send + Sync + 'static,
{
    let on_event = Arc::clone(on_event);
    if let Err(error) = tokio::task::spawn_blocking(move || on_event(event)).await {
        tracing::error!(%error, "an event of a monitor was not dealt with");
    }
}
