//! One HTTP GET of a probe or hook: a connection of its own, nothing verified, redirects followed on
//! the same host only. Errors read as Go's, since people know those.

use crate::probe::spec::HttpGet;
use http::header::{ACCEPT, CONNECTION, HOST, LOCATION, USER_AGENT};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// As which it asks.
pub const AGENT: &str = "kube-probe/1.36";
/// The most of a body that is read, in bytes.
const BODY_LIMIT: usize = 10 << 10;
/// The most redirects that are followed.
const REDIRECTS: usize = 10;

/// What a server answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Its status.
    pub status: u16,
    /// The beginning of its body.
    pub body: String,
}

/// What did not work, in Go's words.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("Get {url:?}: {why}")]
pub struct GetError {
    /// What was asked for.
    pub url: String,
    /// Why not.
    pub why: String,
    /// Whether TLS met a server that speaks plain HTTP.
    pub plain: bool,
}

/// The URL of a GET; `address` is the pod's.
///
/// # Errors
/// In words, for a path or host that cannot be in one.
pub fn url(get: &HttpGet, address: &str) -> Result<Uri, String> {
    let host = get.host.as_deref().unwrap_or(address);
    let host =
        if host.contains(':') && !host.starts_with('[') { format!("[{host}]") } else { host.to_owned() };
    let scheme = if get.tls { Scheme::HTTPS } else { Scheme::HTTP };
    Uri::builder()
        .scheme(scheme)
        .authority(format!("{host}:{}", get.port))
        .path_and_query(get.path.as_str())
        .build()
        .map_err(|e| format!("invalid URL for {:?}: {e}", get.path))
}

/// A connection's failure in Go's words.
pub(super) fn dial(address: &str, error: &io::Error) -> String {
    let why = match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "read: connection reset by peer".to_owned(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
        _ => error.to_string(),
    };
    format!("dial tcp {address}: {why}")
}

/// Asks, following redirects on the same host.
///
/// # Errors
/// [`GetError`].
pub async fn get(url: &Uri, headers: &[(String, String)]) -> Result<Response, GetError> {
    let mut at = url.clone();
    for _ in 0..=REDIRECTS {
        let (response, next) = once(&at, headers).await?;
        match next.filter(|next| next.host() == url.host()) {
            Some(next) => at = next,
            None => return Ok(response),
        }
    }
    Err(GetError { url: at.to_string(), why: format!("stopped after {REDIRECTS} redirects"), plain: false })
}

/// One request; with it where the server sends it on to.
async fn once(url: &Uri, headers: &[(String, String)]) -> Result<(Response, Option<Uri>), GetError> {
    let failed = |why: String| GetError { url: url.to_string(), why, plain: false };
    let tls = url.scheme() == Some(&Scheme::HTTPS);
    let host = url.host().unwrap_or_default();
    let port = url.port_u16().unwrap_or(if tls { 443 } else { 80 });
    let bare = host.trim_matches(['[', ']']);
    let stream =
        TcpStream::connect((bare, port)).await.map_err(|e| failed(dial(&format!("{host}:{port}"), &e)))?;
    if !tls {
        return exchange(stream, url, headers).await.map_err(failed);
    }
    let name = ServerName::try_from(bare.to_owned()).map_err(|e| failed(e.to_string()))?;
    let connected =
        TlsConnector::from(unverified().map_err(|e| failed(e.to_string()))?).connect(name, stream).await;
    let stream = connected.map_err(|e| {
        let kind = e.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>());
        let plain = matches!(kind, Some(rustls::Error::InvalidMessage(_)));
        let why =
            if plain { "http: server gave HTTP response to HTTPS client".to_owned() } else { e.to_string() };
        GetError { plain, ..failed(why) }
    })?;
    exchange(stream, url, headers).await.map_err(failed)
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    url: &Uri,
    headers: &[(String, String)],
) -> Result<(Response, Option<Uri>), String> {
    let path = url.path_and_query().map_or("/", PathAndQuery::as_str);
    let mut request =
        http::Request::get(path).body(Empty::<bytes::Bytes>::new()).map_err(|e| e.to_string())?;
    *request.headers_mut() = fields(url, headers)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| match e.is_incomplete_message() {
            true => "EOF".to_owned(),
            false => e.to_string(),
        })?;
        let status = response.status();
        let next = response
            .headers()
            .get(LOCATION)
            .filter(|_| matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308))
            .and_then(|to| resolve(url, to.to_str().ok()?));
        let mut body = response.into_body();
        let mut read = Vec::new();
        while let Some(Ok(frame)) = body.frame().await {
            read.extend_from_slice(&frame.into_data().unwrap_or_default());
            if read.len() >= BODY_LIMIT {
                read.truncate(BODY_LIMIT);
                break;
            }
        }
        Ok((Response { status: status.as_u16(), body: String::from_utf8_lossy(&read).into_owned() }, next))
    };
    tokio::pin!(exchange);
    tokio::select! {
        done = &mut exchange => done,
        // The connection ends with its exchange; what that came to is still told.
        _ = connection => exchange.await,
    }
}

fn fields(url: &Uri, headers: &[(String, String)]) -> Result<HeaderMap, String> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let name =
            HeaderName::try_from(name.as_str()).map_err(|_| format!("invalid header name {name:?}"))?;
        let value =
            HeaderValue::try_from(value.as_str()).map_err(|_| format!("invalid value of header {name:?}"))?;
        if name == HOST {
            map.insert(name, value);
        } else {
            map.append(name, value);
        }
    }
    let own = url.authority().map_or("", Authority::as_str);
    for (name, value) in [(HOST, own), (USER_AGENT, AGENT), (ACCEPT, "*/*"), (CONNECTION, "close")] {
        if !map.contains_key(&name) {
            map.insert(name, HeaderValue::try_from(value).map_err(|e| e.to_string())?);
        }
    }
    // Given empty, they are left out.
    for name in [USER_AGENT, ACCEPT] {
        if map.get(&name).is_some_and(HeaderValue::is_empty) {
            map.remove(name);
        }
    }
    Ok(map)
}

/// Where a `Location` leads to from `base`.
fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let scheme = base.scheme_str()?;
    let text = if location.contains("://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{}{location}", base.authority()?)
    } else {
        let dir = base.path().rsplit_once('/').map_or("", |(dir, _)| dir);
        format!("{scheme}://{}{dir}/{location}", base.authority()?)
    };
    let text = text.split('#').next()?;
    text.parse::<Uri>().ok().filter(|u| matches!(u.scheme_str(), Some("http" | "https")))
}

/// The probes of a node verify nobody: what they ask is whether it answers.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn unverified() -> Result<Arc<rustls::ClientConfig>, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// Answers each connection by what `answer` makes of its request.
    async fn server(answer: fn(&str, u16) -> String) -> u16 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = vec![0; 4096];
                let n = stream.read(&mut request).await.unwrap();
                let text = String::from_utf8_lossy(&request[..n]).into_owned();
                stream.write_all(answer(&text, port).as_bytes()).await.unwrap();
            }
        });
        port
    }

    fn asked(port: u16, path: &str) -> HttpGet {
        HttpGet { tls: false, host: None, port, path: path.into(), headers: vec![] }
    }

    async fn ask(get: &HttpGet) -> Result<Response, GetError> {
        super::get(&url(get, "127.0.0.1").unwrap(), &get.headers).await
    }

    #[tokio::test]
    async fn asks_as_the_kubelet_and_follows_on_the_same_host_only() {
        let port = server(|request, port| {
            let path = request.split(' ').nth(1).unwrap();
            let to = |to: &str| format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
            match path {
                "/rel" => to("echo"),
                "/abs" => to(&format!("http://127.0.0.1:{port}/echo")),
                "/away" => to("http://elsewhere.invalid/"),
                "/loop" => to("/loop"),
                _ => format!("HTTP/1.1 404 Not Found\r\nContent-Length: {}\r\n\r\n{request}", request.len()),
            }
        })
        .await;
        let mut get = asked(port, "/echo?x=1");
        get.headers =
            vec![("X-A".into(), "1".into()), ("Host".into(), "me".into()), ("Accept".into(), String::new())];
        let answer = ask(&get).await.unwrap();
        assert_eq!(answer.status, 404);
        let lines: Vec<&str> = answer.body.trim().lines().collect();
        assert_eq!(lines[0], "GET /echo?x=1 HTTP/1.1");
        for line in ["x-a: 1", "host: me", "user-agent: kube-probe/1.36", "connection: close"] {
            assert!(lines.contains(&line), "{line}: {lines:?}");
        }
        assert!(!answer.body.contains("accept"), "{}", answer.body);
        for (path, status) in [("/rel", 404), ("/abs", 404), ("/away", 302)] {
            assert_eq!(ask(&asked(port, path)).await.unwrap().status, status, "{path}");
        }
        let error = ask(&asked(port, "/loop")).await.unwrap_err();
        assert!(error.to_string().ends_with("stopped after 10 redirects"), "{error}");
        let tls = HttpGet { tls: true, ..asked(port, "/echo") };
        let error = ask(&tls).await.unwrap_err();
        assert!(error.plain, "{error}");
    }

    #[tokio::test]
    async fn a_refused_connection_reads_as_in_go() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        assert_eq!(
            ask(&asked(port, "/x")).await.unwrap_err().to_string(),
            format!(
                "Get \"http://127.0.0.1:{port}/x\": dial tcp 127.0.0.1:{port}: connect: connection refused"
            )
        );
        assert_eq!(url(&asked(1, "/"), "fd00::1").unwrap().to_string(), "http://[fd00::1]:1/");
    }
}
