//! Exec, attach and port-forward as streams: the CRI call gives a URL with a token, an HTTP server on
//! loopback redeems it once, and what follows is a WebSocket or SPDY/3.1 ([`handshake`]).
//!
//! A token is 256 random bits, works once and for a minute; it is the only right that is checked, so
//! it goes into no log. The process is started when the client is there, not when the URL is made.
//! [`client`] is the other end whichever way it came, [`session`] carries an exec ([`process`]) or an
//! attach ([`attach`]), [`forward`] and [`ports`] carry port-forward.

pub mod attach;
pub mod channel;
pub mod client;
pub mod forward;
pub mod handshake;
pub mod output;
pub mod ports;
pub mod process;
pub mod session;
mod tunnel;

use crate::error::OpError;
use crate::ids::Id;
use crate::state::Runtime;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{Response, StatusCode};
use axum::routing::get;
use channel::Protocol;
use client::{Client, Gone, Streams};
use handshake::{Offer, Refusal};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use podway_spdy::{Role, Session};
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const TOKEN_LIFE: Duration = Duration::from_secs(60);
const TOKENS: usize = 1024;
/// How long nothing may come or go (the kubelet's `streamingConnectionIdleTimeout`).
const IDLE: Duration = Duration::from_secs(4 * 3600);
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";
const FORWARD: &str = "portforward.k8s.io";

/// What a URL is for.
#[derive(Clone, Debug)]
pub enum Purpose {
    /// A process in a container.
    Exec(process::Wanted),
    /// A container's own process.
    Attach(attach::Wanted),
    /// Ports of a sandbox; those that are named are for clients without SPDY.
    PortForward(Id, Vec<u16>),
}

impl Purpose {
    fn name(&self) -> &'static str {
        match self {
            Purpose::Exec(_) => "exec",
            Purpose::Attach(_) => "attach",
            Purpose::PortForward(..) => "portforward",
        }
    }
}

/// URLs that are not used yet.
#[derive(Debug)]
pub struct Streaming {
    address: SocketAddr,
    waiting: Mutex<HashMap<String, (Purpose, Instant)>>,
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

    fn waiting(&self) -> MutexGuard<'_, HashMap<String, (Purpose, Instant)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A URL for one use.
    ///
    /// # Errors
    /// `ResourceExhausted` while too many wait to be used; no randomness.
    pub fn url(&self, purpose: Purpose) -> Result<String, tonic::Status> {
        let token = Id::random().map_err(|e| OpError::Io("draw a token", e))?;
        let now = Instant::now();
        let mut waiting = self.waiting();
        waiting.retain(|_, (_, until)| *until > now);
        if waiting.len() >= TOKENS {
            return Err(tonic::Status::resource_exhausted("too many streams wait for their client"));
        }
        let url = format!("http://{}/{}/{token}", self.address, purpose.name());
        waiting.insert(token.to_string(), (purpose, now + TOKEN_LIFE));
        Ok(url)
    }

    fn redeem(&self, kind: &str, token: &str) -> Option<Purpose> {
        let mut waiting = self.waiting();
        waiting.get(token).filter(|(purpose, _)| purpose.name() == kind)?;
        let (purpose, until) = waiting.remove(token)?;
        (until > Instant::now()).then_some(purpose)
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
        .route("/{kind}/{token}", get(redeem).post(redeem))
        .with_state(Shared { runtime, streaming });
    axum::serve(listener, app).with_graceful_shutdown(shutdown.cancelled_owned()).await
}

async fn redeem(
    State(shared): State<Shared>,
    Path((kind, token)): Path<(String, String)>,
    mut request: Request,
) -> Response<Body> {
    // The request is looked at before the token is: one that could not be served costs no token.
    let protocols = match kind.as_str() {
        "exec" | "attach" => protocol_of_command,
        _ => protocol_of_forward,
    };
    let chosen = handshake::read(request.headers()).and_then(|offer| Ok((protocols(&offer)?, offer)));
    let (protocol, offer) = match chosen {
        Ok(good) => good,
        Err(Refusal(response)) => return *response,
    };
    let Some(purpose) = shared.streaming.redeem(&kind, &token) else {
        let text = "no such stream: a URL works once and for one minute\n";
        return *Refusal::new(StatusCode::NOT_FOUND, text).0;
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let answer = handshake::accept(&offer, &protocol);
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => match serve_one(&shared.runtime, purpose, &offer, &protocol, upgraded).await {
                Ok(()) => {}
                Err(Gone) => tracing::debug!(kind, "a client left before the end of its stream"),
            },
            Err(error) => tracing::debug!(%error, kind, "a connection was not upgraded"),
        }
    });
    answer
}

/// The first of the client's protocols that is one of ours.
fn common(
    offer: &Offer,
    ours: &'static [&'static str],
    oldest: Option<&'static str>,
) -> Result<String, Refusal> {
    let (Offer::WebSocket { protocols, .. } | Offer::Spdy { protocols }) = offer;
    if let Some(oldest) = oldest.filter(|_| protocols.is_empty()) {
        return Ok(oldest.to_owned());
    }
    let found = protocols.iter().find(|p| ours.contains(&p.as_str()));
    found.cloned().ok_or_else(|| Refusal::protocols(offer, ours))
}

fn protocol_of_command(offer: &Offer) -> Result<String, Refusal> {
    match offer {
        Offer::WebSocket { .. } => common(offer, channel::NAMES, Some("")),
        Offer::Spdy { .. } => common(offer, client::SPDY_NAMES, None),
    }
}

fn protocol_of_forward(offer: &Offer) -> Result<String, Refusal> {
    match offer {
        Offer::WebSocket { .. } => {
            common(offer, &[TUNNEL, "v4.channel.k8s.io", "v4.base64.channel.k8s.io"], Some(""))
        }
        Offer::Spdy { .. } => common(offer, &[FORWARD], None),
    }
}

async fn serve_one(
    runtime: &Arc<Runtime>,
    purpose: Purpose,
    offer: &Offer,
    protocol: &str,
    upgraded: Upgraded,
) -> Result<(), Gone> {
    let (process, mut client, doing) = match purpose {
        Purpose::PortForward(sandbox, ports) => {
            forwarded(runtime, &sandbox, &ports, offer, protocol, upgraded).await;
            return Ok(());
        }
        Purpose::Exec(wanted) => {
            let client = command_client(offer, protocol, wanted.streams, upgraded).await?;
            (process::start(runtime, wanted).await, client, "executing command in container")
        }
        Purpose::Attach(wanted) => {
            let client = command_client(offer, protocol, wanted.streams, upgraded).await?;
            (attach::start(runtime, wanted).await, client, "attaching to container")
        }
    };
    let result = match process {
        Ok(process) => session::run(process, &mut client).await?,
        Err(error) => Err(error.chain()),
    };
    client.end(&result.map_err(|text| format!("error {doing}: {text}"))).await
}

async fn command_client(
    offer: &Offer,
    protocol: &str,
    streams: Streams,
    upgraded: Upgraded,
) -> Result<Client, Gone> {
    match offer {
        Offer::WebSocket { .. } => {
            let protocol = Protocol::named(protocol).ok_or(Gone)?;
            Client::web_socket(tunnel::socket(upgraded).await, protocol, streams, IDLE).await
        }
        Offer::Spdy { .. } => {
            let session = Session::start(TokioIo::new(upgraded), Role::Server, IDLE);
            Client::spdy(session, protocol, streams).await
        }
    }
}

async fn forwarded(
    runtime: &Arc<Runtime>,
    sandbox: &Id,
    ports: &[u16],
    offer: &Offer,
    protocol: &str,
    upgraded: Upgraded,
) {
    let session = match offer {
        Offer::Spdy { .. } => Session::start(TokioIo::new(upgraded), Role::Server, IDLE),
        Offer::WebSocket { .. } => {
            let socket = tunnel::socket(upgraded).await;
            if let Some(protocol) = Protocol::named(protocol) {
                return ports::serve(runtime, sandbox, ports, protocol, socket, IDLE).await;
            }
            Session::start(tunnel::bytes(socket), Role::Server, IDLE)
        }
    };
    forward::serve(runtime, sandbox, session).await;
}
