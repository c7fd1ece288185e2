//! One request after another to one endpoint: challenge, token, redirect, body.

use super::auth::{Challenge, Credentials, Secret, encode};
use super::manifest::{ACCEPT, CONFIG_LIMIT, MANIFEST_LIMIT};
use crate::image::hosts::{Endpoint, Scheme, Tls};
use crate::image::reference::{Digest, ImageRef};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a registry may take to answer, and between two chunks of a body.
const PATIENCE: Duration = Duration::from_secs(60);
/// The most bytes that are read at once, and so the longest chunk of a blob.
const CHUNK: usize = 64 * 1024;
const MAX_REDIRECTS: usize = 5;
const TOKEN_LIMIT: usize = 64 * 1024;

/// Why a request to an endpoint failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No connection, or it broke.
    #[error("{0} could not be reached")]
    Connect(String, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// No answer in time.
    #[error("{0} did not answer within 60 s")]
    Timeout(String),
    /// It does not have the image.
    #[error("{0} does not have {1}")]
    NotFound(String, String),
    /// It wants credentials, or others.
    #[error("{0} denies access to {1}: check the imagePullSecrets")]
    Denied(String, String),
    /// It went on with another part of a blob than it was asked for.
    #[error("{0} does not go on at byte {1} of a blob that broke off")]
    Range(String, u64),
    /// It ended a blob before its end.
    #[error("{0} ended after {1} of {2} bytes")]
    Short(String, u64, u64),
    /// Another status.
    #[error("{0} answers status {1}")]
    Status(String, StatusCode),
    /// Longer than allowed, or broken off.
    #[error("the answer of {0} could not be read, or is longer than {1} bytes")]
    Body(String, usize, #[source] Box<dyn std::error::Error + Send + Sync>),
    /// What came is not what the digest says.
    #[error("{endpoint} sent content with digest {got} for {want}")]
    Digest {
        /// Who.
        endpoint: String,
        /// Asked for.
        want: Digest,
        /// Computed.
        got: Digest,
    },
    /// A redirect or token realm that we do not follow.
    #[error("{0} sends us on in a way that is refused: {1}")]
    Redirect(String, &'static str),
    /// A certificate file is not usable.
    #[error("the certificate authorities for {0} could not be loaded")]
    Authorities(String, #[source] Box<dyn std::error::Error + Send + Sync>),
}

/// By endpoint, repository and credentials.
type Tokens = HashMap<(String, String, Option<Credentials>), Secret>;
type Http = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// What a request asks for.
#[derive(Clone, Copy)]
enum Ask<'a> {
    /// All of it.
    Whole,
    /// What follows the first so many bytes.
    From(u64),
    /// A form is posted.
    Form(&'a str),
}

/// A blob that is arriving.
#[derive(Debug)]
pub struct Blob {
    body: Incoming,
    endpoint: String,
    /// Bytes that came before and come again, for the registry does not know ranges.
    again: u64,
}

impl Blob {
    /// The next chunk; `None` at the end.
    ///
    /// # Errors
    /// [`RegistryError::Timeout`] when nothing came for 60 s, [`RegistryError::Body`] when it broke.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            let frame = tokio::time::timeout(PATIENCE, self.body.frame())
                .await
                .map_err(|_| RegistryError::Timeout(self.endpoint.clone()))?;
            match frame {
                None => return Ok(None),
                Some(Err(e)) => return Err(RegistryError::Body(self.endpoint.clone(), 0, Box::new(e))),
                Some(Ok(frame)) => {
                    let Ok(mut data) = frame.into_data() else { continue };
                    let known = usize::try_from(self.again).unwrap_or(usize::MAX).min(data.len());
                    self.again -= data.split_to(known).len() as u64;
                    if !data.is_empty() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }
}

/// Connections and tokens, shared by all pulls.
#[derive(Debug, Default)]
pub struct Registry {
    clients: Mutex<HashMap<(Scheme, Tls), Http>>,
    tokens: Mutex<Tokens>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("redacted")
    }
}

impl Registry {
    /// A manifest by tag or digest: its bytes, digest and content type.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn manifest(
        &self,
        endpoint: &Endpoint,
        reference: &ImageRef,
        digest: Option<Digest>,
        credentials: Option<&Credentials>,
    ) -> Result<(Bytes, Digest, Option<String>), RegistryError> {
        let what = match digest.or_else(|| reference.digest()) {
            Some(digest) => digest.to_string(),
            None => reference.tag().unwrap_or("latest").to_owned(),
        };
        let path = format!("manifests/{what}");
        let response = self.get(endpoint, reference, &path, Ask::Whole, credentials).await?;
        let header =
            |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (kind, claimed) = (header("content-type"), header("docker-content-digest"));
        let body = whole(endpoint, response, MANIFEST_LIMIT).await?;
        let got = Digest::of(&body);
        let claimed = claimed.and_then(|c| Digest::parse(&c).ok());
        for want in [digest.or_else(|| reference.digest()), claimed].into_iter().flatten() {
            if want != got {
                return Err(RegistryError::Digest { endpoint: endpoint.to_string(), want, got });
            }
        }
        Ok((body, got, kind))
    }

    /// An image configuration, its digest checked.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn config(
        &self,
        endpoint: &Endpoint,
        reference: &ImageRef,
        want: Digest,
        credentials: Option<&Credentials>,
    ) -> Result<Bytes, RegistryError> {
        let path = format!("blobs/{want}");
        let response = self.get(endpoint, reference, &path, Ask::Whole, credentials).await?;
        let body = whole(endpoint, response, CONFIG_LIMIT).await?;
        let got = Digest::of(&body);
        if got != want {
            return Err(RegistryError::Digest { endpoint: endpoint.to_string(), want, got });
        }
        Ok(body)
    }

    /// A blob as it comes, after its first `from` bytes; whoever reads it checks the digest.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub async fn blob(
        &self,
        endpoint: &Endpoint,
        reference: &ImageRef,
        (digest, from): (Digest, u64),
        credentials: Option<&Credentials>,
    ) -> Result<Blob, RegistryError> {
        let ask = if from == 0 { Ask::Whole } else { Ask::From(from) };
        let response = self.get(endpoint, reference, &format!("blobs/{digest}"), ask, credentials).await?;
        let again = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(header::CONTENT_RANGE).and_then(|v| v.to_str().ok());
                let start = range.and_then(|r| r.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
                if start != Some(from) {
                    return Err(RegistryError::Range(endpoint.to_string(), from));
                }
                0
            }
            // It does not know ranges: what is here already is passed over.
            _ => from,
        };
        Ok(Blob { body: response.into_body(), endpoint: endpoint.to_string(), again })
    }

    async fn get(
        &self,
        endpoint: &Endpoint,
        reference: &ImageRef,
        what: &str,
        ask: Ask<'_>,
        credentials: Option<&Credentials>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let credentials = credentials.filter(|c| c.are_for(endpoint, reference.registry()));
        let mut url = format!("{endpoint}{}/{}/{what}", endpoint.path, reference.repository());
        if endpoint.mirror {
            url = format!("{url}?ns={}", encode(reference.registry()));
        }
        let key = (endpoint.to_string(), reference.repository().to_owned(), credentials.cloned());
        let token = self.lock_tokens().get(&key).cloned();
        let mut response = self.send(endpoint, &url, ask, token.as_ref()).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let challenges: Vec<Challenge> = response
                .headers()
                .get_all(header::WWW_AUTHENTICATE)
                .iter()
                .filter_map(|v| Challenge::parse(v.to_str().ok()?))
                .collect();
            drop(response);
            let denied = || RegistryError::Denied(endpoint.to_string(), reference.to_string());
            let secret = match challenges.into_iter().next().ok_or_else(denied)? {
                Challenge::Basic => {
                    let usable = credentials.filter(|c| !matches!(c.secret, Secret::Identity(_)));
                    usable.map(|c| c.secret.clone()).ok_or_else(denied)?
                }
                Challenge::Bearer { realm, service, scope } => match credentials.map(|c| &c.secret) {
                    Some(given @ Secret::Bearer(_)) => given.clone(),
                    basic => {
                        let scope =
                            scope.unwrap_or_else(|| format!("repository:{}:pull", reference.repository()));
                        self.token(endpoint, &realm, service.as_deref(), &scope, basic)
                            .await?
                            .ok_or_else(denied)?
                    }
                },
            };
            response = self.send(endpoint, &url, ask, Some(&secret)).await?;
            if response.status().is_success() {
                let mut tokens = self.lock_tokens();
                if tokens.len() > 1000 {
                    tokens.clear();
                }
                tokens.insert(key, secret);
            }
        }
        match response.status() {
            StatusCode::OK => Ok(response),
            StatusCode::PARTIAL_CONTENT if matches!(ask, Ask::From(_)) => Ok(response),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(RegistryError::Denied(endpoint.to_string(), reference.to_string()))
            }
            StatusCode::NOT_FOUND => {
                Err(RegistryError::NotFound(endpoint.to_string(), format!("{reference} ({what})")))
            }
            other => Err(RegistryError::Status(endpoint.to_string(), other)),
        }
    }

    /// A token from the realm; `None` where it refuses.
    async fn token(
        &self,
        endpoint: &Endpoint,
        realm: &str,
        service: Option<&str>,
        scope: &str,
        secret: Option<&Secret>,
    ) -> Result<Option<Secret>, RegistryError> {
        let mut url =
            format!("{realm}{}scope={}", if realm.contains('?') { '&' } else { '?' }, encode(scope));
        if let Some(service) = service {
            url = format!("{url}&service={}", encode(service));
        }
        let response = match secret {
            // An OAuth2 refresh token is posted, never put into a URL (distribution's oauth.md).
            Some(Secret::Identity(refresh)) => {
                let service = service.unwrap_or_default();
                let form = format!(
                    "grant_type=refresh_token&client_id=podway&service={}&scope={}&refresh_token={}",
                    encode(service),
                    encode(scope),
                    encode(refresh)
                );
                self.send(endpoint, realm, Ask::Form(&form), None).await?
            }
            secret => self.send(endpoint, &url, Ask::Whole, secret).await?,
        };
        if matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Ok(None);
        }
        if response.status() != StatusCode::OK {
            return Err(RegistryError::Status(realm.chars().take(200).collect(), response.status()));
        }
        #[derive(serde::Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
        }
        let body = whole(endpoint, response, TOKEN_LIMIT).await?;
        // The error is not kept as a source: it could quote the token.
        let answer: Answer = serde_json::from_slice(&body)
            .map_err(|_| RegistryError::Redirect(endpoint.to_string(), "its token answer is not valid"))?;
        Ok(answer.token.or(answer.access_token).map(Secret::Bearer))
    }

    /// Sends, and goes along redirects. `Authorization` stays with the host that it was made for.
    async fn send(
        &self,
        endpoint: &Endpoint,
        url: &str,
        ask: Ask<'_>,
        secret: Option<&Secret>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let refuse = |why| RegistryError::Redirect(endpoint.to_string(), why);
        let mut uri: Uri = url.parse().map_err(|_| refuse("not a URL"))?;
        let first = uri.clone();
        for _ in 0..=MAX_REDIRECTS {
            let scheme = match uri.scheme_str() {
                Some("https") => Scheme::Https,
                Some("http") if endpoint.scheme == Scheme::Http && first.scheme_str() == Some("http") => {
                    Scheme::Http
                }
                _ => return Err(refuse("to something other than https")),
            };
            let mut request = Request::get(uri.clone())
                .header(header::ACCEPT, ACCEPT)
                .header(header::USER_AGENT, concat!("podway/", env!("CARGO_PKG_VERSION")));
            let mut body = Full::default();
            match ask {
                Ask::Whole => {}
                Ask::From(byte) => request = request.header(header::RANGE, format!("bytes={byte}-")),
                Ask::Form(form) => {
                    // A secret is in it: it goes to whom it was meant for, and along no redirect.
                    if uri != first {
                        return Err(refuse("with a token request"));
                    }
                    request = request
                        .method(http::Method::POST)
                        .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded");
                    body = Full::from(form.to_owned());
                }
            }
            let mut request = request.body(body).map_err(|_| refuse("not a URL"))?;
            if let Some(secret) =
                secret.filter(|_| uri.authority() == first.authority() && uri.scheme() == first.scheme())
            {
                let mut value = HeaderValue::from_str(&secret.header())
                    .map_err(|_| refuse("a token that is no header"))?;
                value.set_sensitive(true);
                request.headers_mut().insert(header::AUTHORIZATION, value);
            }
            let host = uri.authority().map(ToString::to_string).unwrap_or_default();
            let client = self.client(endpoint, scheme)?;
            let response = tokio::time::timeout(PATIENCE, client.request(request))
                .await
                .map_err(|_| RegistryError::Timeout(host.clone()))?
                .map_err(|e| RegistryError::Connect(host, Box::new(e)))?;
            let moved = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            if !moved {
                return Ok(response);
            }
            let to = response
                .headers()
                .get(header::LOCATION)
                .and_then(|l| l.to_str().ok())
                .ok_or_else(|| refuse("without a Location"))?;
            uri = if to.starts_with('/') && !to.starts_with("//") {
                let scheme = uri.scheme_str().unwrap_or("https");
                let host = uri.authority().map_or("", http::uri::Authority::as_str);
                format!("{scheme}://{host}{to}").parse()
            } else {
                to.parse()
            }
            .map_err(|_| refuse("to something that is not a URL"))?;
        }
        Err(refuse("in more than 5 redirects"))
    }

    fn client(&self, endpoint: &Endpoint, scheme: Scheme) -> Result<Http, RegistryError> {
        let key = (scheme, endpoint.tls.clone());
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let config = tls_config(endpoint, scheme)
            .map_err(|source| RegistryError::Authorities(endpoint.to_string(), source))?;
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_connect_timeout(Some(Duration::from_secs(10)));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        let client = Client::builder(hyper_util::rt::TokioExecutor::new())
            .pool_timer(hyper_util::rt::TokioTimer::new())
            // hyper's own 400 KiB would be a chunk's size on a fast network, and a layer has several in flight.
            .http1_max_buf_size(CHUNK)
            .pool_idle_timeout(Duration::from_secs(30))
            .build(connector);
        clients.insert(key, client.clone());
        Ok(client)
    }

    fn lock_tokens(&self) -> std::sync::MutexGuard<'_, Tokens> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

fn tls_config(endpoint: &Endpoint, scheme: Scheme) -> Result<rustls::ClientConfig, BoxError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let mut roots = rustls::RootCertStore::empty();
    match &endpoint.tls {
        // Plain text must work on a machine without any certificate authority.
        _ if scheme == Scheme::Http => {}
        Tls::Native => return Ok(builder.with_native_roots()?.with_no_client_auth()),
        Tls::Authorities(paths) => {
            for path in paths {
                for certificate in CertificateDer::pem_file_iter(path)? {
                    roots.add(certificate?)?;
                }
            }
        }
        Tls::Unverified => {
            let verifier = Arc::new(AnyCertificate(provider));
            return Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
        }
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// `skip_verify`: any certificate, but the handshake is still checked against it.
#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

async fn whole(
    endpoint: &Endpoint,
    response: Response<Incoming>,
    limit: usize,
) -> Result<Bytes, RegistryError> {
    let body = Limited::new(response.into_body(), limit).collect();
    let collected = tokio::time::timeout(PATIENCE, body)
        .await
        .map_err(|_| RegistryError::Timeout(endpoint.to_string()))?
        .map_err(|e| RegistryError::Body(endpoint.to_string(), limit, e))?;
    Ok(collected.to_bytes())
}
