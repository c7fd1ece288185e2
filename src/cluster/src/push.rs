//! Pushes an image to a registry, by the distribution API.

mod credentials;

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::sync::OnceCell;

use self::credentials::{Challenge, bearer, credentials};
use crate::images::{Blob, Image};

/// Why an image was not pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// A request has no valid form.
    #[error("cannot ask the registry for {url}")]
    Request {
        /// The URL.
        url: String,
        /// The cause.
        #[source]
        source: http::Error,
    },
    /// The registry cannot be reached.
    #[error("cannot reach the registry at {url}")]
    Reach {
        /// The URL.
        url: String,
        /// The cause.
        #[source]
        source: hyper_util::client::legacy::Error,
    },
    /// The registry refused.
    #[error("the registry answers {status} to {method} {url}: {body}")]
    Refused {
        /// The method.
        method: Method,
        /// The URL.
        url: String,
        /// The status.
        status: StatusCode,
        /// The start of what it said.
        body: String,
    },
    /// This machine has no certificates of authorities.
    #[error("cannot read this machine's certificate authorities; install ca-certificates")]
    Roots(#[source] std::io::Error),
    /// The registry asks for what we don't know.
    #[error("not supported: the registry's authentication {asked:?}; Basic and Bearer are")]
    Challenge {
        /// Its challenges.
        asked: String,
    },
    /// There are no credentials for it.
    #[error(
        "the registry {host} asks who pushes, and docker's config.json has nothing for it ({why}); run docker login {host}, or point DOCKER_CONFIG at a directory with one"
    )]
    Credentials {
        /// The registry.
        host: String,
        /// Why there are none.
        why: String,
    },
    /// A credential that no HTTP header can carry.
    #[error("the credentials for the registry have a control character")]
    Control,
    /// What should give a token gives none.
    #[error("{url} answers without a token")]
    Token {
        /// What was asked.
        url: String,
    },
    /// The registry does not say where to upload to.
    #[error("the registry gives no valid Location for an upload to {repository}")]
    NoLocation {
        /// The repository.
        repository: String,
    },
}

/// Where an image is pushed to, out of its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// `host[:port]`.
    host: String,
    plain_http: bool,
}

/// A name that is none of an image to push.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not REGISTRY/REPOSITORY:TAG")]
pub struct BadName(String);

impl Target {
    /// The registry of `REGISTRY/REPOSITORY:TAG`; all three must be there.
    pub fn parse(name: &str, plain_http: bool) -> Result<Self, BadName> {
        let bad = || BadName(name.to_owned());
        let (host, rest) = name.split_once('/').ok_or_else(bad)?;
        let (repository, tag) = rest.rsplit_once(':').ok_or_else(bad)?;
        let within = |text: &str, more: &[u8]| {
            let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || more.contains(&b);
            text.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric()) && text.bytes().all(plain)
        };
        let host_fits = host.contains(['.', ':']) || host == "localhost";
        let tag_fits = within(&tag.to_ascii_lowercase(), b"._-") && tag.len() <= 128;
        if host_fits && within(host, b".:-") && within(repository, b"./_-") && tag_fits {
            return Ok(Self { host: host.to_owned(), plain_http });
        }
        Err(bad())
    }
}

/// A registry that takes pushes.
pub struct Registry {
    base: String,
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    /// What it asked for in a challenge, and was given.
    authorization: OnceCell<Option<HeaderValue>>,
    /// Whose name the credentials have in docker's configuration; none are looked for without.
    host: Option<String>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Registry {
    /// The registry at `host:port` that asks for no credentials, over plain HTTP.
    pub fn new(endpoint: &str) -> Self {
        let http = HttpsConnector::from((HttpConnector::new(), no_roots()));
        let client = Client::builder(TokioExecutor::new()).build(http);
        let (base, host) = (format!("http://{endpoint}"), None);
        Self { base, client, authorization: OnceCell::new(), host }
    }

    /// Any registry, with the credentials that docker's `config.json` has for it if it asks for some.
    pub fn open(target: &Target) -> Result<Self, PushError> {
        if target.plain_http {
            return Ok(Self { host: Some(target.host.clone()), ..Self::new(&target.host) });
        }
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_native_roots()
            .map_err(PushError::Roots)?
            .https_only()
            .enable_http1()
            .build();
        // Docker Hub's API has a host of its own.
        let api = if target.host == "docker.io" { "registry-1.docker.io" } else { &target.host };
        Ok(Self {
            base: format!("https://{api}"),
            client: Client::builder(TokioExecutor::new()).build(connector),
            authorization: OnceCell::new(),
            host: Some(target.host.clone()),
        })
    }

    async fn send(
        &self,
        method: Method,
        url: &str,
        kind: &str,
        body: Bytes,
    ) -> Result<Response<hyper::body::Incoming>, PushError> {
        let authorization = self.authorization.get().cloned().flatten();
        self.request(method, url, kind, body, authorization).await
    }

    async fn request(
        &self,
        method: Method,
        url: &str,
        kind: &str,
        body: Bytes,
        authorization: Option<HeaderValue>,
    ) -> Result<Response<hyper::body::Incoming>, PushError> {
        let mut request = Request::builder()
            .method(method)
            .uri(url)
            .header(header::CONTENT_TYPE, kind)
            .header(header::ACCEPT, "*/*")
            .body(Full::new(body))
            .map_err(|source| PushError::Request { url: url.to_owned(), source })?;
        if let Some(value) = authorization {
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        self.client.request(request).await.map_err(|source| PushError::Reach { url: url.to_owned(), source })
    }

    /// Asks whether the registry wants to know who pushes, and finds what it wants; once.
    async fn authorize(&self, repository: &str) -> Result<(), PushError> {
        let Some(host) = &self.host else { return Ok(()) };
        let find = || async {
            let url = format!("{}/v2/", self.base);
            let response = self.request(Method::GET, &url, "*/*", Bytes::new(), None).await?;
            if response.status() != StatusCode::UNAUTHORIZED {
                return Ok(None);
            }
            let asked = response.headers().get_all(header::WWW_AUTHENTICATE).iter();
            let asked: Vec<&str> = asked.filter_map(|value| value.to_str().ok()).collect();
            match Challenge::choose(&asked).ok_or_else(|| PushError::Challenge { asked: asked.join(", ") })? {
                Challenge::Basic => Ok(Some(credentials(host)?.header()?)),
                Challenge::Bearer(token) => {
                    let url = token.url(repository);
                    let secret = credentials(host)?.header()?;
                    let response = self.request(Method::GET, &url, "*/*", Bytes::new(), Some(secret)).await?;
                    let response = accepted(Method::GET, &url, response).await?;
                    let body = Limited::new(response.into_body(), 1 << 20).collect().await;
                    let body = body.map_err(|_| PushError::Token { url: url.clone() })?.to_bytes();
                    Ok(Some(bearer(&body).ok_or(PushError::Token { url })?))
                }
            }
        };
        self.authorization.get_or_try_init(find).await?;
        Ok(())
    }

    /// Whether the registry answers.
    pub async fn answers(&self) -> bool {
        let sent = self.send(Method::GET, &format!("{}/v2/", self.base), "*/*", Bytes::new()).await;
        sent.is_ok_and(|r| r.status().is_success())
    }

    /// The digest of what `repository:tag` names; `None` where there is no such thing.
    pub async fn digest(&self, repository: &str, tag: &str) -> Result<Option<String>, PushError> {
        let url = format!("{}/v2/{repository}/manifests/{tag}", self.base);
        let response = self.send(Method::HEAD, &url, "*/*", Bytes::new()).await?;
        if response.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let response = accepted(Method::HEAD, &url, response).await?;
        let digest = response.headers().get("docker-content-digest").and_then(|v| v.to_str().ok());
        Ok(digest.map(str::to_owned))
    }

    /// Pushes an image, unless its tag names these very bytes already; says whether it did.
    pub async fn push(&self, image: &Image) -> Result<bool, PushError> {
        let (repository, tag) = (&image.repository, &image.tag);
        self.authorize(repository).await?;
        if self.digest(repository, tag).await?.as_deref() == Some(image.index.digest.as_str()) {
            return Ok(false);
        }
        for blob in &image.blobs {
            self.blob(repository, blob).await?;
        }
        for (manifest, reference) in [(&image.manifest, &image.manifest.digest), (&image.index, tag)] {
            let url = format!("{}/v2/{repository}/manifests/{reference}", self.base);
            let body = Bytes::copy_from_slice(&manifest.bytes);
            let response = self.send(Method::PUT, &url, manifest.media_type, body).await?;
            accepted(Method::PUT, &url, response).await?;
        }
        Ok(true)
    }

    async fn blob(&self, repository: &str, blob: &Blob) -> Result<(), PushError> {
        let url = format!("{}/v2/{repository}/blobs/{}", self.base, blob.digest);
        if self.send(Method::HEAD, &url, "*/*", Bytes::new()).await?.status().is_success() {
            return Ok(());
        }
        let url = format!("{}/v2/{repository}/blobs/uploads/", self.base);
        let octets = "application/octet-stream";
        let response = self.send(Method::POST, &url, octets, Bytes::new()).await?;
        let response = accepted(Method::POST, &url, response).await?;
        let location = response.headers().get(header::LOCATION).and_then(|v| v.to_str().ok());
        let none = || PushError::NoLocation { repository: repository.to_owned() };
        let location = location.ok_or_else(none)?;
        // It may be relative, and it may have a query already.
        let mut target =
            if location.starts_with('/') { format!("{}{location}", self.base) } else { location.to_owned() };
        target.push(if target.contains('?') { '&' } else { '?' });
        target.push_str(&format!("digest={}", blob.digest));
        let response = self.send(Method::PUT, &target, octets, Bytes::copy_from_slice(&blob.bytes)).await?;
        accepted(Method::PUT, &target, response).await?;
        Ok(())
    }
}

/// The response where it is a success, else an error with the start of its body.
async fn accepted(
    method: Method,
    url: &str,
    response: Response<hyper::body::Incoming>,
) -> Result<Response<hyper::body::Incoming>, PushError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = match Limited::new(response.into_body(), 4096).collect().await {
        Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        Err(e) => format!("(unreadable: {e})"),
    };
    Err(PushError::Refused { method, url: url.to_owned(), status, body })
}

/// For a client that never speaks TLS.
fn no_roots() -> Arc<rustls::ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let versions =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let versions = versions.expect("the provider has the default protocol versions");
    Arc::new(versions.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_all_three_parts() {
        for (name, host) in [
            ("registry.example/team/podway:0.1.0", "registry.example"),
            ("localhost:5000/podway:V1", "localhost:5000"),
            ("docker.io/me/podway:latest", "docker.io"),
        ] {
            assert_eq!(Target::parse(name, false).unwrap().host, host);
        }
        for name in [
            "podway",
            "podway:1",
            "team/podway:1",
            "r.io/podway",
            "r.io/Pod:1",
            "r.io/../x y:1",
            "r.io/p:",
            "r.io/:1",
        ] {
            Target::parse(name, false).unwrap_err();
        }
    }
}
