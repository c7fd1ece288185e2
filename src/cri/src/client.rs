//! The client side: a channel to a CRI endpoint on a unix socket.

use crate::MESSAGE_LIMIT;
use crate::runtime_v1::pulls_client::PullsClient;
use crate::v1::image_service_client::ImageServiceClient;
use crate::v1::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use std::io;
use std::path::PathBuf;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// Why an endpoint could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Not a unix socket with an absolute path.
    #[error("endpoint {0:?} is not supported: give unix:///absolute/path")]
    Endpoint(String),
    /// Nobody answers.
    #[error("cannot connect to {endpoint}: is the runtime running?")]
    Connect {
        /// The endpoint as given.
        endpoint: String,
        /// The transport's reason.
        #[source]
        source: tonic::transport::Error,
    },
}

/// The socket path of an endpoint: `unix:///path`, or a bare absolute path as crictl takes it.
///
/// # Errors
/// [`ConnectError::Endpoint`] for anything else.
pub fn socket_path(endpoint: &str) -> Result<PathBuf, ConnectError> {
    let path = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
    if path.starts_with('/') && !path.contains('\0') {
        Ok(PathBuf::from(path))
    } else {
        Err(ConnectError::Endpoint(endpoint.to_owned()))
    }
}

/// Connects to `endpoint`. One channel carries both services and may be cloned.
///
/// # Errors
/// [`ConnectError`] when the endpoint is not a unix socket or nobody answers on it.
pub async fn connect(endpoint: &str) -> Result<Channel, ConnectError> {
    let path = socket_path(endpoint)?;
    authority()
        .connect_with_connector(to(path))
        .await
        .map_err(|source| ConnectError::Connect { endpoint: endpoint.to_owned(), source })
}

/// A channel to the socket `path` that connects with its first call, and again after the connection has ended.
#[must_use]
pub fn lazy(path: PathBuf) -> Channel {
    authority().connect_with_connector_lazy(to(path))
}

/// Whom HTTP/2 is told that it talks to; where it really goes is [`to`].
fn authority() -> Endpoint {
    Endpoint::from_static("http://localhost")
}

fn to(
    path: PathBuf,
) -> impl tower::Service<Uri, Response = TokioIo<UnixStream>, Error = io::Error, Future: Send> + Send + 'static
{
    tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    })
}

/// A `RuntimeService` client with the CRI's message limit.
#[must_use]
pub fn runtime(channel: Channel) -> RuntimeServiceClient<Channel> {
    RuntimeServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT)
}

/// An `ImageService` client with the CRI's message limit.
#[must_use]
pub fn image(channel: Channel) -> ImageServiceClient<Channel> {
    ImageServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT)
}

/// A client of podway's own `Pulls`.
#[must_use]
pub fn pulls(channel: Channel) -> PullsClient<Channel> {
    PullsClient::new(channel).max_decoding_message_size(MESSAGE_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unix_endpoints_are_taken() {
        assert_eq!(socket_path("unix:///run/x.sock").unwrap(), PathBuf::from("/run/x.sock"));
        assert_eq!(socket_path("/run/x.sock").unwrap(), PathBuf::from("/run/x.sock"));
        for bad in ["tcp://1.2.3.4:5", "unix://x", "", "npipe://x"] {
            assert!(matches!(socket_path(bad), Err(ConnectError::Endpoint(_))), "{bad}");
        }
    }
}
