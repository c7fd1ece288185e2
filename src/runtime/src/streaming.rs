//! Exec as a stream: the CRI call gives a URL with a token, an HTTP server on loopback redeems it
//! once, and the WebSocket that follows carries the process' stdio ([`channel`], [`process`]).
//!
//! A token is 256 random bits, works once and for a minute; it is the only right that is checked, so
//! it goes into no log. The process is started when the client is there, not when the URL is made.

pub mod channel;
pub mod process;

use crate::ids::Id;
use crate::state::Runtime;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, Response, StatusCode, header};
use channel::{Said, Version};
use futures::{SinkExt as _, StreamExt as _};
use hyper_util::rt::TokioIo;
use process::{Process, Wanted};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::net::unix::pipe::Receiver;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message, Utf8Bytes};
use tokio_util::sync::CancellationToken;

const TOKEN_LIFE: Duration = Duration::from_secs(60);
const TOKENS: usize = 1024;
/// The largest message of a client; kubectl's are 32 KiB.
const MESSAGE_LIMIT: usize = 1 << 20;

/// URLs that are not used yet.
#[derive(Debug)]
pub struct Streaming {
    address: SocketAddr,
    waiting: Mutex<HashMap<String, (Wanted, Instant)>>,
}

impl Streaming {
    /// Listens at a loopback address.
    ///
    /// # Errors
    /// The kernel's, or `InvalidInput` for an address that others could reach.
    pub async fn listen(address: SocketAddr) -> io::Result<(Arc<Self>, TcpListener)> {
        if !address.ip().is_loopback() {
            let text = format!("{address} is not a loopback address");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let listener = TcpListener::bind(address).await?;
        let streaming = Streaming { address: listener.local_addr()?, waiting: Mutex::default() };
        Ok((Arc::new(streaming), listener))
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, (Wanted, Instant)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A URL for one use. `None` while too many wait to be used.
    ///
    /// # Errors
    /// The kernel's, when there is no randomness.
    pub fn url(&self, wanted: Wanted) -> io::Result<Option<String>> {
        let token = Id::random()?;
        let now = Instant::now();
        let mut waiting = self.waiting();
        waiting.retain(|_, (_, until)| *until > now);
        if waiting.len() >= TOKENS {
            return Ok(None);
        }
        let url = format!("http://{}/exec/{token}", self.address);
        waiting.insert(token.to_string(), (wanted, now + TOKEN_LIFE));
        Ok(Some(url))
    }

    fn redeem(&self, token: &str) -> Option<Wanted> {
        let (wanted, until) = self.waiting().remove(token)?;
        (until > Instant::now()).then_some(wanted)
    }
}

#[derive(Clone)]
struct Shared {
    runtime: Arc<Runtime>,
    streaming: Arc<Streaming>,
}

/// Serves the URLs until `shutdown`.
///
/// # Errors
/// The listener's.
pub async fn serve(
    listener: TcpListener,
    runtime: Arc<Runtime>,
    streaming: Arc<Streaming>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let app = Router::new()
        .route("/exec/{token}", axum::routing::get(exec))
        .with_state(Shared { runtime, streaming });
    axum::serve(listener, app).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

fn plain(code: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = code;
    response
}

/// The key and the protocol of a WebSocket request.
fn handshake(headers: &HeaderMap) -> Result<(String, Version), (StatusCode, &'static str)> {
    let text = |name: header::HeaderName| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let upgrade = text(header::UPGRADE).eq_ignore_ascii_case("websocket");
    let key = text(header::SEC_WEBSOCKET_KEY);
    if !upgrade || key.is_empty() || text(header::SEC_WEBSOCKET_VERSION) != "13" {
        return Err((
            StatusCode::UPGRADE_REQUIRED,
            "not supported: this stream speaks WebSocket only, not SPDY\n",
        ));
    }
    let offered: Vec<&str> =
        headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok()).collect();
    let version = Version::choose(&offered.join(",")).ok_or((
        StatusCode::BAD_REQUEST,
        "Sec-WebSocket-Protocol needs v5.channel.k8s.io or v4.channel.k8s.io\n",
    ))?;
    Ok((key.to_owned(), version))
}

async fn exec(
    State(shared): State<Shared>,
    Path(token): Path<String>,
    mut request: Request,
) -> Response<Body> {
    // The request is looked at before the token is: one that could not be served costs no token.
    let (key, version) = match handshake(request.headers()) {
        Ok(good) => good,
        Err((code, text)) => return plain(code, text),
    };
    let Some(wanted) = shared.streaming.redeem(&token) else {
        return plain(StatusCode::NOT_FOUND, "no such stream: a URL works once and for one minute\n");
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                let config = WebSocketConfig::default()
                    .max_message_size(Some(MESSAGE_LIMIT))
                    .max_frame_size(Some(MESSAGE_LIMIT));
                let io = TokioIo::new(upgraded);
                let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await;
                if let Err(error) = session(&shared.runtime, wanted, version, &mut socket).await {
                    tracing::debug!(%error, "an exec's stream broke");
                }
            }
            Err(error) => tracing::debug!(%error, "an exec's connection was not upgraded"),
        }
    });
    let mut response = plain(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, header::HeaderValue::from_static(version.name()));
    if let Ok(accept) = header::HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

async fn session(
    runtime: &Arc<Runtime>,
    wanted: Wanted,
    version: Version,
    socket: &mut Socket,
) -> Result<(), WsError> {
    // An empty message tells the client that the stream stands (as the kubelet does).
    let first = if wanted.stdout || wanted.tty {
        channel::STDOUT
    } else if wanted.stderr {
        channel::STDERR
    } else {
        channel::ERROR
    };
    socket.send(Message::binary(channel::write(first, b""))).await?;
    let result = match process::start(runtime, wanted).await {
        Ok(process) => stream(process, version, socket).await?,
        Err(error) => Err(error.chain()),
    };
    socket.send(Message::binary(channel::status(result))).await?;
    // Clients take this code only as a good end: without one (1005) they drop the status just sent.
    let end = CloseFrame { code: CloseCode::Normal, reason: Utf8Bytes::from_static("") };
    socket.close(Some(end)).await?;
    // Until the client has closed as well: a connection that is dropped early may lose the status.
    let drain = async { while let Some(Ok(_)) = socket.next().await {} };
    drop(tokio::time::timeout(Duration::from_secs(10), drain).await);
    Ok(())
}

/// Reads what is there; `None` for never, when there is nothing to read from.
async fn read(pipe: &mut Option<Receiver>, buffer: &mut [u8]) -> io::Result<usize> {
    match pipe {
        Some(pipe) => pipe.read(buffer).await,
        None => std::future::pending().await,
    }
}

/// Both directions until the process has ended and its output is told. A client that does not read
/// holds back the process; a process that does not read holds back the client's input only.
async fn stream(
    mut process: Process,
    version: Version,
    socket: &mut Socket,
) -> Result<Result<i32, String>, WsError> {
    let (mut out, mut err) = (vec![0; 32 * 1024], vec![0; 32 * 1024]);
    let mut pending: Vec<u8> = Vec::new();
    let mut input_ended = false;
    let mut client_left = false;
    let result = loop {
        if input_ended && pending.is_empty() && process.terminal.is_none() {
            process.stdin = None;
        }
        tokio::select! {
            code = &mut process.exit => {
                break code.map_err(|_| "the pod's monitor has ended: the exit code is not known".to_owned());
            }
            read = read(&mut process.stdout, &mut out) => match read {
                // A terminal that its last process has closed reads as EIO.
                Ok(0) | Err(_) => process.stdout = None,
                Ok(n) => socket.send(Message::binary(channel::write(channel::STDOUT, &out[..n]))).await?,
            },
            read = read(&mut process.stderr, &mut err) => match read {
                Ok(0) | Err(_) => process.stderr = None,
                Ok(n) => socket.send(Message::binary(channel::write(channel::STDERR, &err[..n]))).await?,
            },
            wrote = async {
                match &mut process.stdin {
                    Some(stdin) => stdin.write(&pending).await,
                    None => Ok(pending.len()),
                }
            }, if !pending.is_empty() => match wrote {
                Ok(n) => drop(pending.drain(..n)),
                // It reads no more: the rest of the input has nobody to go to.
                Err(_) => {
                    pending.clear();
                    process.stdin = None;
                }
            },
            message = socket.next(), if pending.is_empty() && !client_left => match message {
                Some(Ok(Message::Binary(bytes))) => match channel::read(version, &bytes) {
                    Said::Stdin(data) => pending.extend_from_slice(data),
                    Said::EndOfStdin => input_ended = true,
                    Said::Resize(columns, rows) => resize(&process, columns, rows),
                    Said::Nothing => {}
                },
                Some(Ok(Message::Close(_))) | None => client_left = true,
                Some(Ok(_)) => {}
                Some(Err(_)) => client_left = true,
            },
        }
        if client_left {
            // With its pipes closed it reads the end of its input and may not write: most end by that.
            return Ok(Err("the client has left".to_owned()));
        }
    };
    // What was written before the end is in the pipes; a child that keeps them open is not waited for.
    for (number, pipe) in [(channel::STDOUT, &process.stdout), (channel::STDERR, &process.stderr)] {
        let Some(pipe) = pipe else { continue };
        // Straight from the kernel: the reactor may not know yet that there is something.
        while let Ok(n @ 1..) = rustix::io::read(pipe, &mut out) {
            socket.send(Message::binary(channel::write(number, &out[..n]))).await?;
        }
    }
    Ok(result)
}

fn resize(process: &Process, columns: u16, rows: u16) {
    let size = rustix::termios::Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    if let Some(terminal) = &process.terminal
        && let Err(error) = rustix::termios::tcsetwinsize(terminal, size)
    {
        tracing::debug!(%error, "a terminal's size was not set");
    }
}
