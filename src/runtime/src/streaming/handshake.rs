//! The first request of a stream: what it is to be upgraded to, and the answer. Pure.
//!
//! Kubelets and older clients ask for SPDY/3.1 and name the protocols inside it in
//! `X-Stream-Protocol-Version`; newer ones open a WebSocket with subprotocols
//! (`k8s.io/streaming`, `httpstream.Handshake`; `k8s.io/cri-streaming`, `wsstream`).

use axum::body::Body;
use axum::http::header::{
    CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use axum::http::{HeaderMap, Response, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const ACCEPTED_VERSIONS: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
const SPDY: &str = "SPDY/3.1";

/// What a client offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Offer {
    /// A WebSocket with this key, in which one of the protocols is spoken.
    WebSocket {
        /// `Sec-WebSocket-Key`.
        key: String,
        /// The subprotocols, the preferred one first; none is the oldest.
        protocols: Vec<String>,
    },
    /// SPDY/3.1, in which one of the protocols is spoken.
    Spdy {
        /// The protocols, the preferred one first.
        protocols: Vec<String>,
    },
}

/// The answer to a request that is not one.
#[derive(Debug)]
pub struct Refusal(pub Box<Response<Body>>);

impl Refusal {
    /// A status and a line of text.
    #[must_use]
    pub fn new(code: StatusCode, text: impl Into<String>) -> Self {
        let mut response = Response::new(Body::from(text.into()));
        *response.status_mut() = code;
        Refusal(Box::new(response))
    }

    /// No protocol is common.
    #[must_use]
    pub fn protocols(offer: &Offer, ours: &[&str]) -> Self {
        let (code, theirs) = match offer {
            Offer::WebSocket { protocols, .. } => (StatusCode::BAD_REQUEST, protocols),
            Offer::Spdy { protocols } => (StatusCode::FORBIDDEN, protocols),
        };
        let text = format!(
            "unable to upgrade: unable to negotiate protocol: client supports {theirs:?}, server accepts {ours:?}\n"
        );
        let mut refusal = Refusal::new(code, text);
        for name in ours {
            if let Ok(value) = HeaderValue::from_str(name) {
                refusal.0.headers_mut().append(ACCEPTED_VERSIONS, value);
            }
        }
        refusal
    }
}

/// The words of a header that may be repeated and has commas.
fn words(headers: &HeaderMap, name: &HeaderName) -> Vec<String> {
    let all = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    all.flat_map(|value| value.split(',')).map(|w| w.trim().to_owned()).filter(|w| !w.is_empty()).collect()
}

/// Reads the request's headers.
///
/// # Errors
/// [`Refusal`] for what is no upgrade that we know.
pub fn read(headers: &HeaderMap) -> Result<Offer, Refusal> {
    let has =
        |name: &HeaderName, word: &str| words(headers, name).iter().any(|w| w.eq_ignore_ascii_case(word));
    let bad = |text: &str| Refusal::new(StatusCode::BAD_REQUEST, format!("unable to upgrade: {text}\n"));
    if !has(&CONNECTION, "upgrade") {
        return Err(bad("missing upgrade headers in request"));
    }
    if has(&UPGRADE, "websocket") {
        let key = headers.get(SEC_WEBSOCKET_KEY).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if key.is_empty() || !has(&SEC_WEBSOCKET_VERSION, "13") {
            return Err(bad("a WebSocket needs a key and version 13"));
        }
        let protocols = words(headers, &SEC_WEBSOCKET_PROTOCOL);
        return Ok(Offer::WebSocket { key: key.to_owned(), protocols });
    }
    if has(&UPGRADE, SPDY) {
        let protocols = words(headers, &PROTOCOL_VERSION);
        if protocols.is_empty() {
            return Err(bad("header X-Stream-Protocol-Version does not exist in request"));
        }
        return Ok(Offer::Spdy { protocols });
    }
    Err(bad("Upgrade must be websocket or SPDY/3.1"))
}

/// The answer after which `protocol` is spoken; an empty one is not named.
#[must_use]
pub fn accept(offer: &Offer, protocol: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    let named = HeaderValue::from_str(protocol).ok().filter(|_| !protocol.is_empty());
    match offer {
        Offer::WebSocket { key, .. } => {
            headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
            if let Ok(value) = HeaderValue::from_str(&derive_accept_key(key.as_bytes())) {
                headers.insert(SEC_WEBSOCKET_ACCEPT, value);
            }
            named.map(|value| headers.insert(SEC_WEBSOCKET_PROTOCOL, value));
        }
        Offer::Spdy { .. } => {
            headers.insert(UPGRADE, HeaderValue::from_static(SPDY));
            named.map(|value| headers.insert(PROTOCOL_VERSION, value));
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn an_upgrade_is_read_and_answered() {
        let spdy = headers(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "SPDY/3.1"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
            ("x-stream-protocol-version", "v3.channel.k8s.io, channel.k8s.io"),
        ]);
        let offer = read(&spdy).unwrap();
        let protocols =
            ["v4.channel.k8s.io", "v3.channel.k8s.io", "channel.k8s.io"].map(str::to_owned).to_vec();
        assert_eq!(offer, Offer::Spdy { protocols });
        let answer = accept(&offer, "v4.channel.k8s.io");
        assert_eq!(
            (answer.status(), &answer.headers()[UPGRADE]),
            (StatusCode::SWITCHING_PROTOCOLS, &HeaderValue::from_static(SPDY))
        );
        assert_eq!(answer.headers()[PROTOCOL_VERSION], "v4.channel.k8s.io");

        let socket = headers(&[
            ("connection", "upgrade"),
            ("upgrade", "WebSocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ]);
        let offer = read(&socket).unwrap();
        let answer = accept(&offer, "");
        // The example of RFC 6455.
        assert_eq!(answer.headers()[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert!(!answer.headers().contains_key(SEC_WEBSOCKET_PROTOCOL));
    }

    #[test]
    fn what_is_no_upgrade_is_refused() {
        for pairs in [
            &[][..],
            &[("connection", "upgrade")],
            &[("upgrade", "SPDY/3.1")],
            &[("connection", "upgrade"), ("upgrade", "SPDY/3.1")],
            &[("connection", "upgrade"), ("upgrade", "h2c")],
            &[("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-key", "x")],
        ] {
            let refusal = read(&headers(pairs)).unwrap_err();
            assert_eq!(refusal.0.status(), StatusCode::BAD_REQUEST, "{pairs:?}");
        }
        let offer = Offer::Spdy { protocols: vec!["v9".to_owned()] };
        assert_eq!(Refusal::protocols(&offer, &["v4"]).0.status(), StatusCode::FORBIDDEN);
    }
}
