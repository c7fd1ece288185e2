//! The pages over HTTP. Every route is a GET, reads the [`Store`] and changes nothing.

use crate::guard::Secret;
use crate::select::Selector;
use crate::store::Store;
use axum::Router;
use axum::extract::{Path, Query, Request, State};
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, REFERRER_POLICY, SET_COOKIE,
    X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{Html, IntoResponse as _, Response};
use axum::routing::get;
use futures::{Stream, StreamExt as _};
use kube::Client;
use podway_flow::html::{self, Frame, Overview};
use podway_flow::stuck::Limits;
use podway_flow::{Clock, Flow, numbers};
use serde::Deserialize;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Changes that come within this time are one drawing.
const TOGETHER: Duration = Duration::from_millis(200);
/// How often a page with something running is drawn anew: its bars grow, and what is stuck is told.
const MOVING: Duration = Duration::from_secs(1);
/// The mark of the page: three bars of a waterfall.
const ICON: &str = "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 16 16\"><rect x=\"1\" y=\"2\" width=\"6\" \
height=\"3\" rx=\"1\" fill=\"#b97700\"/><rect x=\"5\" y=\"6.5\" width=\"7\" height=\"3\" rx=\"1\" fill=\"#2e6fd6\"/><rect \
x=\"10\" y=\"11\" width=\"5\" height=\"3\" rx=\"1\" fill=\"#12806a\"/></svg>";

/// What the page is about and where it is.
#[derive(Clone, Debug)]
pub struct Options {
    /// The address.
    pub listen: SocketAddr,
    /// The namespace; `None` for all.
    pub namespace: Option<String>,
}

/// Why the page does not come up.
#[derive(Debug, thiserror::Error)]
pub enum UiError {
    /// The port.
    #[error("listening on {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// The secret.
    #[error("making a secret")]
    Secret(#[source] std::io::Error),
    /// The server.
    #[error("serving the page")]
    Serve(#[source] std::io::Error),
}

#[derive(Clone)]
struct App {
    store: Store,
    secret: Secret,
    clock: Clock,
    scope: String,
    port: u16,
}

impl App {
    fn frame(&self) -> Frame {
        Frame { live: Some("/live".to_owned()), scope: self.scope.clone(), troubles: self.store.troubles() }
    }
}

/// Serves until `shutdown`; `tell` gets the address to open as soon as it is one.
///
/// # Errors
/// [`UiError`] when the address cannot be had.
pub async fn serve(
    client: Client,
    options: Options,
    tell: impl FnOnce(String),
    shutdown: CancellationToken,
) -> Result<(), UiError> {
    let failed = |error| UiError::Listen(options.listen, error);
    let listener = TcpListener::bind(options.listen).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let app = App {
        store: Store::default(),
        secret: Secret::new().map_err(UiError::Secret)?,
        clock: Clock::new(),
        scope: options
            .namespace
            .as_ref()
            .map_or_else(|| "all namespaces".to_owned(), |ns| format!("namespace {ns}")),
        port: address.port(),
    };
    let follow = tokio::spawn(app.store.clone().follow(client, options.namespace));
    tell(format!("http://{address}/?token={}", app.secret.reveal()));
    let ended = shutdown.clone();
    let served = axum::serve(listener, router(app, shutdown))
        .with_graceful_shutdown(async move { ended.cancelled().await })
        .await;
    follow.abort();
    served.map_err(UiError::Serve)
}

fn router(app: App, shutdown: CancellationToken) -> Router {
    let live = move |State(app): State<App>| {
        let shutdown = shutdown.clone();
        async move { Sse::new(ticks(app.store, shutdown)).keep_alive(KeepAlive::default()) }
    };
    Router::new()
        .route("/", get(pods))
        .route("/pod/{namespace}/{name}", get(pod))
        .route("/compare", get(compare))
        .route("/icon.svg", get(async || ([(CONTENT_TYPE, "image/svg+xml")], ICON)))
        .route("/live", get(live))
        .fallback(async |State(app): State<App>| {
            let page = html::notice("There is no such page", "", &app.frame());
            (StatusCode::NOT_FOUND, Html(page))
        })
        .layer(middleware::from_fn_with_state(app.clone(), let_in))
        .with_state(app)
}

/// Only who has the secret comes in; every answer forbids what no page of ours needs.
async fn let_in(State(app): State<App>, request: Request, next: Next) -> Response {
    let said = request.uri().query().and_then(|query| query.strip_prefix("token="));
    let mut response = if said.is_some_and(|said| app.secret.is(said)) {
        // The address without the secret: it stays out of the history and out of screenshots.
        let cookie = app.secret.set_cookie(app.port);
        (StatusCode::SEE_OTHER, [(LOCATION, "/".to_owned()), (SET_COOKIE, cookie)]).into_response()
    } else if app.secret.is_in(request.headers(), app.port) {
        next.run(request).await
    } else {
        let said = "Open the address that podway ui printed: it has the token that lets you in.";
        let page = html::notice("This page is for who started it", said, &Frame::default());
        (StatusCode::UNAUTHORIZED, Html(page)).into_response()
    };
    let policy = format!("{}; frame-ancestors 'none'", html::policy(true));
    let headers = response.headers_mut();
    for (name, value) in [
        (CONTENT_SECURITY_POLICY, policy.as_str()),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(name, value);
        }
    }
    response
}

/// A message whenever a page may look different.
fn ticks(store: Store, shutdown: CancellationToken) -> impl Stream<Item = Result<Event, Infallible>> {
    let changes = store.changes();
    let end = shutdown.cancelled_owned();
    futures::stream::unfold((store, changes), async |(store, mut changes)| {
        let moving = async {
            if store.is_moving() { tokio::time::sleep(MOVING).await } else { std::future::pending().await }
        };
        tokio::select! {
            changed = changes.changed() => {
                changed.ok()?;
                tokio::time::sleep(TOGETHER).await;
                changes.mark_unchanged();
            }
            () = moving => {}
        }
        let version = *changes.borrow();
        Some((Ok(Event::default().data(version.to_string())), (store, changes)))
    })
    .take_until(end)
}

#[derive(Deserialize)]
struct Asked {
    #[serde(default)]
    l: String,
}

async fn pods(State(app): State<App>, Query(asked): Query<Asked>) -> Response {
    let mut frame = app.frame();
    let selector = Selector::parse(&asked.l).unwrap_or_else(|error| {
        frame.troubles.push(error.to_string());
        Selector::default()
    });
    let of = Overview { entries: app.store.entries(&selector), selector: asked.l, pulls: app.store.pulls() };
    Html(html::overview(&of, app.clock.now(), &frame)).into_response()
}

async fn pod(State(app): State<App>, Path((namespace, name)): Path<(String, String)>) -> Response {
    let entries = app.store.entries(&Selector::default());
    let flows: Vec<Flow> = entries.iter().map(|e| e.flow.clone()).collect();
    let found = flows.iter().find(|f| f.pod.namespace == namespace && f.pod.name == name);
    match found {
        Some(flow) => {
            let told = app.store.pulls_of(&namespace, &name);
            let now = Some(app.clock.now());
            Html(html::pod(flow, now, &Limits::of(&flows), told.as_ref(), &app.frame())).into_response()
        }
        None => {
            let said = format!("{namespace}/{name} is not among the pods that this page is told of.");
            let page = html::notice("There is no such pod", &said, &app.frame());
            (StatusCode::NOT_FOUND, Html(page)).into_response()
        }
    }
}

/// `a` and `b`, or two of `p`, as the list's boxes send them.
async fn compare(State(app): State<App>, Query(asked): Query<Vec<(String, String)>>) -> Response {
    let mut sides: Vec<String> = Vec::new();
    for wanted in ["a", "b", "p"] {
        sides.extend(asked.iter().filter(|(key, _)| key == wanted).map(|(_, value)| value.clone()));
    }
    let side = |i: usize| sides.get(i).map_or("", String::as_str);
    let given = [side(0), side(1)];
    let frame = app.frame();
    if given.iter().all(|side| side.is_empty()) {
        return Html(html::compare(None, given, None, &frame)).into_response();
    }
    let groups: Result<Vec<Vec<Flow>>, String> = given.iter().map(|side| group(&app.store, side)).collect();
    match groups {
        Ok(groups) => {
            let compared = numbers::compare((given[0], &groups[0]), (given[1], &groups[1]));
            let more = (sides.len() > 2).then_some("Only the first two that were ticked are compared.");
            Html(html::compare(Some(&compared), given, more, &frame)).into_response()
        }
        Err(trouble) => {
            let page = html::compare(None, given, Some(&trouble), &frame);
            (StatusCode::BAD_REQUEST, Html(page)).into_response()
        }
    }
}

/// The pods that one side of a comparison names.
fn group(store: &Store, side: &str) -> Result<Vec<Flow>, String> {
    let flows: Vec<Flow> = match side.split_once('/').filter(|_| !side.contains(['=', '!'])) {
        Some((namespace, name)) => store.entry(namespace, name).map(|e| e.flow).into_iter().collect(),
        None if side.is_empty() => return Err("name two: pods or groups".to_owned()),
        None => {
            let selector = Selector::parse(side).map_err(|error| error.to_string())?;
            store.entries(&selector).into_iter().map(|e| e.flow).collect()
        }
    };
    if flows.is_empty() { Err(format!("no pod is {side}")) } else { Ok(flows) }
}
