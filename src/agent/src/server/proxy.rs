//! An upgraded connection handed through: the request goes on to the runtime's streaming server, and
//! once both ends have changed protocols, the bytes go both ways as they are (the kubelet's
//! `proxyStream`). Which protocol is spoken in them (WebSocket or SPDY/3.1) is between the client and
//! the runtime.

use axum::body::Body;
use axum::http::header::{AUTHORIZATION, CONNECTION, HOST, UPGRADE};
use axum::http::{HeaderMap, Request, StatusCode, Uri, Version};
use axum::response::{IntoResponse as _, Response};
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio::net::TcpStream;

/// How long the runtime may take until it answers.
pub const CALL: Duration = Duration::from_secs(120);

/// A CRI error as the kubelet answers it.
#[must_use]
pub fn refused(status: &tonic::Status) -> Response {
    let code = match status.code() {
        tonic::Code::NotFound => StatusCode::NOT_FOUND,
        tonic::Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        tonic::Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    (code, status.message().to_owned()).into_response()
}

/// Takes a request to the URL that the runtime is asked for, if it wants to be upgraded.
pub async fn answer(
    url: impl Future<Output = Result<String, tonic::Status>>,
    request: Request<Body>,
) -> Response {
    if !request.headers().contains_key(UPGRADE) {
        return (StatusCode::BAD_REQUEST, "Upgrade request required").into_response();
    }
    let url = match url.await {
        Ok(url) => url,
        Err(status) => return refused(&status),
    };
    match connect(&url, request).await {
        Ok(response) => response,
        Err(error) => {
            tracing::warn!(%error, source = error.cause(), "a stream of the runtime cannot be reached");
            (StatusCode::BAD_GATEWAY, format!("{error}: {}", error.cause())).into_response()
        }
    }
}

/// Why the runtime's end of a stream could not be reached.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("the runtime's streaming URL {0:?} is not supported: have it stream on http://host:port")]
    Url(String),
    #[error("cannot connect to the runtime's streaming server at {0}")]
    Connect(String, #[source] std::io::Error),
    #[error("the runtime's streaming server did not answer")]
    Request(#[from] hyper::Error),
    #[error("the runtime's streaming server did not answer in {} s", CALL.as_secs())]
    Late,
    #[error("the request cannot be passed on")]
    Build(#[from] axum::http::Error),
}

impl StreamError {
    fn cause(&self) -> String {
        std::error::Error::source(self).map(ToString::to_string).unwrap_or_default()
    }
}

/// The headers that go on: all but who asked us, and where.
fn passed(from: &HeaderMap, host: &str) -> HeaderMap {
    let mut headers = from.clone();
    for own in [AUTHORIZATION, HOST, axum::http::HeaderName::from_static("cookie")] {
        headers.remove(own);
    }
    if let Ok(host) = host.parse() {
        headers.insert(HOST, host);
    }
    headers
}

/// Passes the request on to `url`, and once both ends have changed protocols, the bytes.
async fn connect(url: &str, mut request: Request<Body>) -> Result<Response, StreamError> {
    let bad = || StreamError::Url(url.to_owned());
    let uri: Uri = url.parse().map_err(|_| bad())?;
    let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http")).ok_or_else(bad)?;
    let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let dial =
        tokio::time::timeout(CALL, TcpStream::connect(&address)).await.map_err(|_| StreamError::Late)?;
    let stream = dial.map_err(|e| StreamError::Connect(address, e))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "the connection to the runtime's streaming server ended");
        }
    });
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let mut onward = Request::builder()
        .method(request.method().clone())
        .uri(path)
        .version(Version::HTTP_11)
        .body(http_body_util::Empty::<axum::body::Bytes>::new())?;
    *onward.headers_mut() = passed(request.headers(), authority.as_str());
    let client = hyper::upgrade::on(&mut request);
    let answer =
        tokio::time::timeout(CALL, sender.send_request(onward)).await.map_err(|_| StreamError::Late)??;
    let (mut parts, body) = answer.into_parts();
    if parts.status != StatusCode::SWITCHING_PROTOCOLS {
        // The runtime's own words; the connection is not changed.
        parts.headers.remove(CONNECTION);
        parts.headers.remove(UPGRADE);
        drop(connection);
        return Ok(Response::from_parts(parts, Body::new(body)));
    }
    let runtime = hyper::upgrade::on(Response::from_parts(parts.clone(), body));
    tokio::spawn(async move {
        // Our side of the client changes only after this answer has gone out, so both are awaited here.
        let (client, runtime) = match tokio::try_join!(client, runtime) {
            Ok(both) => both,
            Err(error) => return tracing::debug!(%error, "a stream was not upgraded"),
        };
        let (mut client, mut runtime) = (TokioIo::new(client), TokioIo::new(runtime));
        if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut runtime).await {
            tracing::debug!(%error, "a stream ended");
        }
    });
    Ok(Response::from_parts(parts, Body::empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clients_token_is_not_passed_on() {
        let from: HeaderMap = [(AUTHORIZATION, "Bearer x"), (HOST, "node"), (UPGRADE, "websocket")]
            .into_iter()
            .map(|(k, v)| (k, v.parse().unwrap()))
            .collect();
        let to = passed(&from, "127.0.0.1:1");
        assert_eq!((to.get(AUTHORIZATION), to.len()), (None, 2));
        assert_eq!(to[HOST], "127.0.0.1:1");
    }
}
