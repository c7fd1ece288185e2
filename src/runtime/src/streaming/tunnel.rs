//! SPDY inside a WebSocket: the bytes of the one are the binary messages of the other
//! (`SPDY/3.1+portforward.k8s.io`, `k8s.io/apiserver/pkg/util/proxy`, `streamtunnel.go`).

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _, future};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_util::io::{CopyToBytes, SinkWriter, StreamReader};

/// The largest message of a client; kubectl's are 32 KiB.
const MESSAGE_LIMIT: usize = 1 << 20;

/// A WebSocket on an upgraded connection.
pub type Socket = WebSocketStream<TokioIo<Upgraded>>;

/// Takes an upgraded connection for a WebSocket's.
pub async fn socket(upgraded: Upgraded) -> Socket {
    let config =
        WebSocketConfig::default().max_message_size(Some(MESSAGE_LIMIT)).max_frame_size(Some(MESSAGE_LIMIT));
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(config)).await
}

/// The bytes in a WebSocket; its close is their end.
pub fn bytes(socket: Socket) -> impl AsyncRead + AsyncWrite + Send + 'static {
    let (sink, stream) = socket.split();
    let stream = stream.filter_map(|message| {
        future::ready(match message {
            Ok(Message::Binary(data)) => Some(Ok(data)),
            Ok(_) => None,
            Err(error) => Some(Err(io::Error::other(error))),
        })
    });
    let sink = sink
        .with(|data: Bytes| {
            future::ready(Ok::<_, tokio_tungstenite::tungstenite::Error>(Message::Binary(data)))
        })
        .sink_map_err(io::Error::other);
    tokio::io::join(StreamReader::new(stream), SinkWriter::new(CopyToBytes::new(sink)))
}
