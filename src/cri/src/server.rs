//! The server side: a private unix socket, CRI's services and podway's own on it with the CRI's message limit.

use crate::MESSAGE_LIMIT;
use crate::deadline::Deadline;
use crate::runtime_v1::pulls_server::{Pulls, PullsServer};
use crate::v1::image_service_server::{ImageService, ImageServiceServer};
use crate::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use std::future::Future;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;

/// Why the socket does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket could not be made.
    #[error(
        "cannot listen on {path}: check that its directory may be written and that no other runtime serves it"
    )]
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: std::io::Error,
    },
    /// Another process serves it.
    #[error("{0} is served by another process: stop it or give another --listen")]
    InUse(PathBuf),
    /// The server ended on an error.
    #[error("the gRPC server ended")]
    Transport(#[source] tonic::transport::Error),
}

/// Listens on `path` with mode 0600. A stale socket of a dead process is replaced; a living one is not.
///
/// # Errors
/// [`ServeError`] when the socket cannot be made or is in use.
pub fn listen(path: &Path) -> Result<UnixListener, ServeError> {
    let err = |source| ServeError::Listen { path: path.to_owned(), source };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(err)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(ServeError::InUse(path.to_owned()));
            }
            std::fs::remove_file(path).map_err(err)?;
        }
        Ok(_) => return Err(err(std::io::ErrorKind::AlreadyExists.into())),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(err(e)),
    }
    // Bound under another name and renamed once private, so that nobody can connect in between.
    let mut staged = path.as_os_str().to_owned();
    staged.push(format!(".{}", std::process::id()));
    let staged = PathBuf::from(staged);
    let listener = UnixListener::bind(&staged).map_err(err)?;
    std::fs::set_permissions(&staged, std::fs::Permissions::from_mode(0o600)).map_err(err)?;
    std::fs::rename(&staged, path).map_err(err)?;
    Ok(listener)
}

/// Serves the services on `listener` until `shutdown` completes; calls in flight are finished.
///
/// # Errors
/// [`ServeError::Transport`] when the server ends otherwise.
pub async fn serve<R: RuntimeService, I: ImageService, P: Pulls>(
    listener: UnixListener,
    runtime: R,
    image: I,
    pulls: P,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    tonic::transport::Server::builder()
        .layer(tower::layer::layer_fn(Deadline))
        .add_service(
            RuntimeServiceServer::new(runtime)
                .max_decoding_message_size(MESSAGE_LIMIT)
                .max_encoding_message_size(MESSAGE_LIMIT),
        )
        .add_service(
            ImageServiceServer::new(image)
                .max_decoding_message_size(MESSAGE_LIMIT)
                .max_encoding_message_size(MESSAGE_LIMIT),
        )
        .add_service(PullsServer::new(pulls).max_encoding_message_size(MESSAGE_LIMIT))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), shutdown)
        .await
        .map_err(ServeError::Transport)
}
