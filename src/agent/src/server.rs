//! The kubelet API on 10250: what the API server, Prometheus and nobody else may ask of a node.
//!
//! Each connection is TLS, each request is authenticated (a client certificate, else a token that
//! the API server reviews), then authorized by the API server (`nodes/proxy` and the finer ones), and
//! only then looked at. It works from memory ([`PodSource`]): no request waits for a pod's work.

pub mod authn;
pub mod authz;
pub mod cache;
pub mod checkpoint;
pub mod exec;
pub mod logs;
mod metrics;
pub mod proxy;
pub mod pulls;
mod system_logs;
pub mod tls;
mod usage;

use crate::config::Config;
use crate::node;
use crate::source::PodSource;
use crate::stats::Stats;
use authn::{Tokens, User};
use authz::Access;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Json, Response};
use axum::routing::{get, post};
use exec::{Streaming, Target};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use kube::Client;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tls::{Tls, TlsError};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// How long a client may take for its handshake and the head of its request.
const GREETING: Duration = Duration::from_secs(10);
/// The most connections at a time.
const MOST_CONNECTIONS: usize = 1024;

/// Why the server does not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The port.
    #[error("cannot listen on {0}: is another kubelet or agent running? give another --port")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// The certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What the server answers from.
#[derive(Clone)]
pub struct Parts {
    /// Reviews tokens and accesses; the node's own identity may.
    pub client: Client,
    /// The pods.
    pub pods: Arc<dyn PodSource>,
    /// Streams into containers.
    pub streaming: Arc<dyn Streaming>,
    /// How far image pulls have got.
    pub pulls: Arc<dyn pulls::Progress>,
    /// Who makes checkpoints.
    pub checkpointing: Arc<dyn checkpoint::Checkpoints>,
    /// Their directory.
    pub checkpoints: PathBuf,
    /// What is used.
    pub stats: Arc<Stats>,
    /// The configuration as it is in force: `/configz`.
    pub configz: Arc<serde_json::Value>,
    /// The directory of `/logs/`.
    pub system_logs: PathBuf,
    /// How the node stands: `/readyz`.
    pub node: watch::Receiver<node::State>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

struct Shared {
    parts: Parts,
    tokens: Tokens,
    access: Access,
}

/// The server, bound to its port: what it listens on is known before the node is registered.
pub struct Server {
    listener: TcpListener,
    tls: Arc<Tls>,
    router: Router,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl Server {
    /// Binds the address and port of `config`.
    ///
    /// # Errors
    /// [`ServerError`].
    pub async fn bind(config: &Config, parts: Parts) -> Result<Self, ServerError> {
        let addresses: Vec<IpAddr> = if config.node_ip.is_empty() {
            node::addresses::default_route().into_iter().collect()
        } else {
            config.node_ip.clone()
        };
        let tls = Arc::new(Tls::new(config, &addresses)?);
        let address = SocketAddr::new(config.address, config.port);
        let listener = TcpListener::bind(address).await.map_err(|e| ServerError::Listen(address, e))?;
        let shared = Arc::new(Shared {
            tokens: Tokens::new(parts.client.clone()),
            access: Access::new(parts.client.clone(), &config.node_name),
            parts,
        });
        Ok(Server { listener, tls, router: router(shared) })
    }

    /// The port that it listens on.
    ///
    /// # Errors
    /// The kernel's, when the socket is gone.
    pub fn port(&self) -> std::io::Result<u16> {
        Ok(self.listener.local_addr()?.port())
    }

    /// Serves until `shutdown`; then connections are ended, streams that run with them.
    pub async fn serve(self, shutdown: CancellationToken) {
        let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                () = shutdown.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors: those in use have to end first.
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
                tracing::warn!(most = MOST_CONNECTIONS, "too many connections: one was turned away");
                continue;
            };
            let (tls, router, shutdown) = (Arc::clone(&self.tls), self.router.clone(), shutdown.clone());
            tokio::spawn(async move {
                tokio::select! {
                    () = connection(stream, &tls, router) => {}
                    () = shutdown.cancelled() => {}
                }
                drop(permit);
            });
        }
    }
}

/// The user of the connection's certificate.
#[derive(Clone)]
struct Peer(Option<Arc<User>>);

async fn connection(stream: TcpStream, tls: &Tls, router: Router) {
    let handshake = TlsAcceptor::from(tls.current()).accept(stream);
    let stream = match tokio::time::timeout(GREETING, handshake).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => return,
    };
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let peer = Peer(certificate.and_then(|der| authn::of_certificate(der)).map(Arc::new));
    let service = hyper::service::service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        router.clone().oneshot(request.map(Body::new))
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(GREETING);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(Duration::from_secs(30));
    if let Err(error) = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection ended");
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/healthz/ping", get(|| async { "ok" }))
        .route("/livez", get(|| async { "ok" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/pods", get(pods))
        .route("/pods/", get(pods))
        .route("/runningpods", get(usage::running))
        .route("/runningpods/", get(usage::running))
        .route("/stats/summary", get(usage::summary).post(usage::summary))
        .route("/metrics/resource", get(usage::resource))
        .route("/metrics/cadvisor", get(usage::cadvisor))
        .route("/metrics/probes", get(usage::probes))
        .route("/configz", get(usage::configz))
        .route(podway_flow::pulls::PATH, get(pulls::answer))
        .route("/logs/", get(system_logs_root))
        .route("/logs/{*path}", get(system_logs_below))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(container_logs))
        .route("/exec/{namespace}/{pod}/{container}", get(exec).post(exec))
        .route("/exec/{namespace}/{pod}/{uid}/{container}", get(exec).post(exec))
        .route("/attach/{namespace}/{pod}/{container}", get(attach).post(attach))
        .route("/attach/{namespace}/{pod}/{uid}/{container}", get(attach).post(attach))
        .route("/portForward/{namespace}/{pod}", get(port_forward).post(port_forward))
        .route("/portForward/{namespace}/{pod}/{uid}", get(port_forward).post(port_forward))
        .route("/run/{namespace}/{pod}/{container}", post(run))
        .route("/run/{namespace}/{pod}/{uid}/{container}", post(run))
        .route("/checkpoint/{namespace}/{pod}/{container}", post(checkpoint::answer))
        .fallback(|| async { (StatusCode::NOT_FOUND, "404: Page Not Found") })
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), guard))
        .with_state(shared)
}

/// Lets a request through when it is known who asks, and that they may.
async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let unauthorized = || (StatusCode::UNAUTHORIZED, "Unauthorized").into_response();
    let known = request.extensions().get::<Peer>().and_then(|peer| peer.0.clone());
    let user = match known {
        Some(user) => user,
        None => match shared.tokens.user(request.headers()).await {
            Ok(Some(user)) => Arc::new(user),
            Ok(None) => return unauthorized(),
            Err(error) => {
                tracing::warn!(%error, cause = ?std::error::Error::source(&error), "a token was not reviewed");
                return unauthorized();
            }
        },
    };
    let attributes = authz::attributes(request.method(), request.uri().path());
    let said = |subresources: &str| {
        format!("(user={}, verb={}, resource=nodes, {subresources})", user.name, attributes.verb)
    };
    match shared.access.allowed(&user, attributes).await {
        Ok(true) => next.run(request).await,
        Ok(false) => {
            // The kubelet's text, with Go's form of a list.
            let said = said(&format!("subresource(s)=[{}]", attributes.subresources.join(" ")));
            (StatusCode::FORBIDDEN, format!("Forbidden {said}\n")).into_response()
        }
        Err(error) => {
            tracing::warn!(%error, cause = ?std::error::Error::source(&error), "an access was not reviewed");
            let said = said(&format!("subresource={}", attributes.subresources[0]));
            (StatusCode::INTERNAL_SERVER_ERROR, format!("Authorization error {said}")).into_response()
        }
    }
}

async fn ready(State(shared): State<Arc<Shared>>) -> Response {
    let state = shared.parts.node.borrow().clone();
    match (state.node, state.not_ready) {
        (None, None) => (StatusCode::SERVICE_UNAVAILABLE, "the node is not registered").into_response(),
        (_, Some(why)) => (StatusCode::SERVICE_UNAVAILABLE, why).into_response(),
        (Some(_), None) => "ok".into_response(),
    }
}

async fn metrics(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    metrics::answer(shared.parts.pods.metrics(), &headers)
}

async fn system_logs_root(State(shared): State<Arc<Shared>>) -> Response {
    system_logs::answer(shared.parts.system_logs.clone(), String::new()).await
}

async fn system_logs_below(State(shared): State<Arc<Shared>>, Path(path): Path<String>) -> Response {
    system_logs::answer(shared.parts.system_logs.clone(), path).await
}

async fn pods(State(shared): State<Arc<Shared>>) -> Response {
    let pods: Vec<_> = shared.parts.pods.pods().into_iter().map(|view| view.object).collect();
    let items: Vec<_> = pods.iter().map(AsRef::as_ref).collect();
    Json(serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items}))
        .into_response()
}

/// The query's pairs, decoded, in order, a name possibly more than once.
fn pairs(query: Option<&str>) -> Result<Vec<(String, String)>, Box<Response>> {
    let uri = format!("/?{}", query.unwrap_or_default());
    let bad = || Box::new((StatusCode::BAD_REQUEST, "the query cannot be decoded").into_response());
    let uri = uri.parse().map_err(|_| bad())?;
    axum::extract::Query::try_from_uri(&uri).map(|query| query.0).map_err(|_| bad())
}

type Names = Path<BTreeMap<String, String>>;

fn name<'a>(names: &'a Names, key: &str) -> &'a str {
    names.0.get(key).map_or("", String::as_str)
}

async fn container_logs(
    State(shared): State<Arc<Shared>>,
    names: Names,
    RawQuery(query): RawQuery,
) -> Response {
    let query = match pairs(query.as_deref()) {
        Ok(query) => query,
        Err(refusal) => return *refusal,
    };
    let [namespace, pod, container] = ["namespace", "pod", "container"].map(|key| name(&names, key));
    logs::answer(Arc::clone(&shared.parts.pods), namespace, pod, container, &query).await
}

/// What a request of a stream has in its path and query.
struct Wish {
    shared: Arc<Shared>,
    names: Names,
    query: Vec<(String, String)>,
}

impl Wish {
    fn new(shared: Arc<Shared>, names: Names, query: Option<&str>) -> Result<Self, Box<Response>> {
        Ok(Wish { shared, names, query: pairs(query)? })
    }

    fn target(&self) -> Target<'_> {
        Target {
            source: &self.shared.parts.pods,
            streaming: &self.shared.parts.streaming,
            names: ["namespace", "pod", "container"].map(|key| name(&self.names, key)),
            uid: self.names.0.get("uid").map(String::as_str),
        }
    }
}

async fn exec(shared: State<Arc<Shared>>, names: Names, query: RawQuery, request: Request) -> Response {
    match Wish::new(shared.0, names, query.0.as_deref()) {
        Ok(wish) => wish.target().exec(&wish.query, request).await,
        Err(refusal) => *refusal,
    }
}

async fn attach(shared: State<Arc<Shared>>, names: Names, query: RawQuery, request: Request) -> Response {
    match Wish::new(shared.0, names, query.0.as_deref()) {
        Ok(wish) => wish.target().attach(&wish.query, request).await,
        Err(refusal) => *refusal,
    }
}

async fn port_forward(
    shared: State<Arc<Shared>>,
    names: Names,
    query: RawQuery,
    request: Request,
) -> Response {
    match Wish::new(shared.0, names, query.0.as_deref()) {
        Ok(wish) => wish.target().port_forward(&wish.query, request).await,
        Err(refusal) => *refusal,
    }
}

async fn run(shared: State<Arc<Shared>>, names: Names, query: RawQuery) -> Response {
    match Wish::new(shared.0, names, query.0.as_deref()) {
        Ok(wish) => wish.target().run(&wish.query).await,
        Err(refusal) => *refusal,
    }
}
