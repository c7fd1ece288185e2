//! Pushes an image to a registry over plain HTTP, by the distribution API.

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

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
    /// The registry does not say where to upload to.
    #[error("the registry gives no valid Location for an upload to {repository}")]
    NoLocation {
        /// The repository.
        repository: String,
    },
}

/// A registry that takes pushes.
pub struct Registry {
    base: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Registry {
    /// The registry at `host:port`.
    pub fn new(endpoint: &str) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { base: format!("http://{endpoint}"), client }
    }

    async fn send(
        &self,
        method: Method,
        url: &str,
        kind: &str,
        body: Bytes,
    ) -> Result<Response<hyper::body::Incoming>, PushError> {
        let request = Request::builder()
            .method(method)
            .uri(url)
            .header(header::CONTENT_TYPE, kind)
            .header(header::ACCEPT, "*/*")
            .body(Full::new(body))
            .map_err(|source| PushError::Request { url: url.to_owned(), source })?;
        self.client.request(request).await.map_err(|source| PushError::Reach { url: url.to_owned(), source })
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
