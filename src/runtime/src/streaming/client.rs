//! The client of an exec or attach, whichever way it came: what it says, and what it is told.

use super::channel::{self, Protocol, Said, Version};
use super::tunnel::Socket;
use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use podway_spdy::{Reader, Session, Status, Stream, Writer};
use std::time::Duration;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

/// How long a client may take to open its streams (`DefaultStreamCreationTimeout`).
pub const CREATION: Duration = Duration::from_secs(30);
/// How long it may take to leave after it was told the end.
const PARTING: Duration = Duration::from_secs(10);
/// The most of a resize message that has not come whole.
const RESIZE_LIMIT: usize = 1024;

/// The protocols inside SPDY.
pub const SPDY_NAMES: &[&str] =
    &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

/// The client cannot be told any more.
#[derive(Debug, thiserror::Error)]
#[error("the client has left")]
pub struct Gone;

/// Which streams there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streams {
    /// It sends standard input.
    pub stdin: bool,
    /// It wants standard output.
    pub stdout: bool,
    /// It wants standard error.
    pub stderr: bool,
    /// It is a terminal, with a size.
    pub tty: bool,
}

/// A client.
pub enum Client {
    /// Over a WebSocket.
    WebSocket(Box<WebSocket>),
    /// Over SPDY.
    Spdy(Box<Spdy>),
}

/// Over a WebSocket.
pub struct WebSocket {
    socket: Socket,
    protocol: Protocol,
    idle: Duration,
}

/// Over SPDY.
pub struct Spdy {
    session: Session,
    version: Version,
    error: Writer,
    stdin: Option<Reader>,
    /// Ours is never written; it is kept, for its end would be told.
    stdin_writer: Option<Writer>,
    stdout: Option<Writer>,
    stderr: Option<Writer>,
    resize: Option<(Reader, Writer)>,
    size: Vec<u8>,
}

impl Client {
    /// A client whose WebSocket stands: it is told so by an empty message, as by the kubelet.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn web_socket(
        mut socket: Socket,
        protocol: Protocol,
        streams: Streams,
        idle: Duration,
    ) -> Result<Client, Gone> {
        let first = if streams.stdout {
            channel::STDOUT
        } else if streams.stderr {
            channel::STDERR
        } else {
            channel::ERROR
        };
        socket.send(protocol.write(first, b"")).await.map_err(|_| Gone)?;
        Ok(Client::WebSocket(Box::new(WebSocket { socket, protocol, idle })))
    }

    /// A client that opens its streams now, `protocol` being one of [`SPDY_NAMES`].
    ///
    /// # Errors
    /// [`Gone`] if it leaves, or does not open them in time.
    pub async fn spdy(session: Session, protocol: &str, streams: Streams) -> Result<Client, Gone> {
        let gather = gather(session, protocol, streams);
        let spdy = tokio::time::timeout(CREATION, gather).await.map_err(|_| Gone)??;
        Ok(Client::Spdy(Box::new(spdy)))
    }

    /// What it says next. May be cancelled.
    pub async fn next(&mut self) -> Said {
        match self {
            Client::WebSocket(client) => client.next().await,
            Client::Spdy(client) => client.next().await,
        }
    }

    /// Sends output.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn write(&mut self, channel: u8, data: Bytes) -> Result<(), Gone> {
        match self {
            Client::WebSocket(client) => {
                client.socket.send(client.protocol.write(channel, &data)).await.map_err(|_| Gone)
            }
            Client::Spdy(client) => {
                let writer = if channel == channel::STDERR { &client.stderr } else { &client.stdout };
                let Some(writer) = writer else { return Ok(()) };
                writer.write(data).await.map_err(|_| Gone)
            }
        }
    }

    /// Tells how it ended, after everything else, and waits until the client has left as well: a
    /// connection that is dropped early may lose what was sent last.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn end(self, result: &Result<i32, String>) -> Result<(), Gone> {
        match self {
            Client::WebSocket(client) => client.end(result).await,
            Client::Spdy(client) => client.end(result).await,
        }
    }
}

impl WebSocket {
    async fn next(&mut self) -> Said {
        loop {
            // Begun anew with each thing that happens: it runs out when nothing does.
            let Ok(message) = tokio::time::timeout(self.idle, self.socket.next()).await else {
                return Said::Left;
            };
            let data = match message {
                Some(Ok(Message::Binary(data))) => data,
                Some(Ok(Message::Text(text))) => text.into(),
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Said::Left,
                Some(Ok(_)) => continue,
            };
            if let Some(said) = self.protocol.read(&data) {
                return said;
            }
        }
    }

    async fn end(mut self, result: &Result<i32, String>) -> Result<(), Gone> {
        if let Some(status) = channel::status(self.protocol.version, result) {
            let message = self.protocol.write(channel::ERROR, status.as_bytes());
            self.socket.send(message).await.map_err(|_| Gone)?;
        }
        // Clients take this code only as a good end: without one (1005) they drop the status just sent.
        let end = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::from_static("") };
        self.socket.close(Some(end)).await.map_err(|_| Gone)?;
        let drain = async { while let Some(Ok(_)) = self.socket.next().await {} };
        tokio::time::timeout(PARTING, drain).await.map_err(|_| Gone)
    }
}

async fn gather(mut session: Session, protocol: &str, streams: Streams) -> Result<Spdy, Gone> {
    let version = if protocol == "v4.channel.k8s.io" { Version::V4 } else { Version::V1 };
    // Versions 1 and 2 know no size.
    let resize = streams.tty && matches!(protocol, "v4.channel.k8s.io" | "v3.channel.k8s.io");
    let wanted = [
        ("error", true),
        ("stdin", streams.stdin),
        ("stdout", streams.stdout),
        ("stderr", streams.stderr),
        ("resize", resize),
    ];
    let mut missing: Vec<&str> = wanted.iter().filter(|(_, wanted)| *wanted).map(|(kind, _)| *kind).collect();
    let mut found: Vec<(&str, Stream)> = Vec::new();
    while !missing.is_empty() {
        let incoming = session.accept().await.ok_or(Gone)?;
        let kind = incoming.headers().get("streamtype").unwrap_or_default();
        match missing.iter().position(|m| *m == kind) {
            Some(at) => found.push((missing.remove(at), incoming.accept().await.map_err(|_| Gone)?)),
            None => incoming.refuse(Status::REFUSED_STREAM).await,
        }
    }
    let mut take = |kind: &str| {
        let at = found.iter().position(|(k, _)| *k == kind)?;
        let stream = found.swap_remove(at).1;
        Some((stream.reader, stream.writer))
    };
    let (stdin, stdin_writer) = take("stdin").unzip();
    Ok(Spdy {
        error: take("error").ok_or(Gone)?.1,
        stdin,
        stdin_writer,
        stdout: take("stdout").map(|(_, writer)| writer),
        stderr: take("stderr").map(|(_, writer)| writer),
        resize: take("resize"),
        size: Vec::new(),
        session,
        version,
    })
}

impl Spdy {
    async fn next(&mut self) -> Said {
        loop {
            let closed = self.session.closed();
            tokio::select! {
                biased;
                // The size first: what was typed after it may be a command that asks for it.
                data = read(self.resize.as_mut().map(|(reader, _)| reader)) => match data {
                    Some(data) => self.size.extend_from_slice(&data),
                    None => self.resize = None,
                },
                data = read(self.stdin.as_mut()) => match data {
                    Some(data) => return Said::Stdin(data),
                    None => {
                        self.stdin = None;
                        return Said::EndOfStdin;
                    }
                },
                () = closed.cancelled() => return Said::Left,
            }
            if let Some(said) = self.resized() {
                return said;
            }
        }
    }

    /// The newest size of those that have come whole.
    fn resized(&mut self) -> Option<Said> {
        let mut messages = serde_json::Deserializer::from_slice(&self.size).into_iter::<serde_json::Value>();
        let mut newest = None;
        while let Some(Ok(message)) = messages.next() {
            newest = channel::size(&message).or(newest);
        }
        let read = messages.byte_offset();
        self.size.drain(..read);
        if self.size.len() > RESIZE_LIMIT {
            self.size.clear();
        }
        newest
    }

    async fn end(mut self, result: &Result<i32, String>) -> Result<(), Gone> {
        for output in [&mut self.stdout, &mut self.stderr].into_iter().flatten() {
            output.finish().await.map_err(|_| Gone)?;
        }
        if let Some(status) = channel::status(self.version, result) {
            self.error.write(status.into()).await.map_err(|_| Gone)?;
        }
        self.error.finish().await.map_err(|_| Gone)?;
        let session = self.session;
        // What the client still sends is dropped with these.
        drop((self.stdin, self.resize.map(|(reader, _)| reader)));
        if let Some(mut writer) = self.stdin_writer {
            writer.finish().await.map_err(|_| Gone)?;
        }
        session.finish(PARTING).await.map_err(|_| Gone)
    }
}

/// The next bytes; never, of a stream that is not there.
async fn read(reader: Option<&mut Reader>) -> Option<Bytes> {
    match reader {
        Some(reader) => reader.recv().await,
        None => std::future::pending().await,
    }
}
