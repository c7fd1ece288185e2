//! CRI's ImageService over the store and the puller.
//!
//! An image id is `sha256:<configuration digest>`, which is also what PullImage returns (as
//! containerd does). The records of a pull travel in the response's metadata.

use super::pull::{EndpointError, PullError, Puller, chain};
use super::reference::ImageRef;
use super::registry::{Credentials, RegistryError};
use super::store::{Image, ImageStore, StoreError};
use crate::metrics::Metrics;
use crate::stats::Collector;
use futures::stream::{self, BoxStream, StreamExt};
use podway_cri::v1::image_service_server::ImageService;
use podway_cri::{metadata, v1};
use podway_flow::{Clock, Recorder, Writer};
use std::sync::Arc;
use tonic::{Request, Response, Status};

/// The image server.
#[derive(Clone, Debug)]
pub struct ImageServer {
    store: Arc<ImageStore>,
    puller: Arc<Puller>,
    clock: Clock,
    metrics: Arc<Metrics>,
    containers: Option<Arc<Collector>>,
    pinned: Vec<String>,
}

impl ImageServer {
    /// A server over `store`; `clock` is the process' one.
    #[must_use]
    pub fn new(store: Arc<ImageStore>, puller: Arc<Puller>, clock: Clock) -> Self {
        ImageServer { store, puller, clock, metrics: Arc::default(), containers: None, pinned: Vec::new() }
    }

    /// The same with the process' metrics.
    #[must_use]
    pub fn counted(self, metrics: Arc<Metrics>) -> Self {
        ImageServer { metrics, ..self }
    }

    /// The same beside containers, whose writable layers are told as theirs.
    #[must_use]
    pub fn beside(self, containers: Arc<Collector>) -> Self {
        ImageServer { containers: Some(containers), ..self }
    }

    /// The same with images that garbage collection must leave, by their names.
    #[must_use]
    pub fn pinning(self, pinned: Vec<String>) -> Self {
        ImageServer { pinned, ..self }
    }

    fn to_cri(&self, image: &Image) -> v1::Image {
        let fits = |name: &String| self.pinned.iter().any(|pattern| pins(pattern, name));
        let pinned = image.repo_tags.iter().chain(&image.repo_digests).any(fits);
        v1::Image { pinned, ..to_cri(image) }
    }

    fn list(&self, filter: Option<v1::ImageFilter>) -> Vec<v1::Image> {
        let wanted = filter.and_then(|f| f.image).map(|s| s.image).filter(|i| !i.is_empty());
        match wanted {
            Some(name) => self.store.resolve(&name).iter().map(|i| self.to_cri(i)).collect(),
            None => self.store.images().iter().map(|i| self.to_cri(i)).collect(),
        }
    }
}

/// Whether a pattern of `[images] pinned` names an image; short names are those of docker.io.
pub(super) fn pins(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => {
            let full = ImageRef::parse(pattern).ok().and_then(|r| r.repo_tag());
            name == pattern || full.is_some_and(|f| f == name)
        }
    }
}

fn to_cri(image: &Image) -> v1::Image {
    v1::Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid: image.config.uid().map(|uid| v1::Int64Value { value: uid.into() }),
        username: image.config.username().to_owned(),
        spec: Some(v1::ImageSpec { image: image.id.to_string(), ..Default::default() }),
        pinned: false,
    }
}

fn named(spec: Option<v1::ImageSpec>) -> Result<v1::ImageSpec, Status> {
    spec.filter(|s| !s.image.is_empty()).ok_or_else(|| Status::invalid_argument("image.image is empty"))
}

fn store_status(error: &StoreError) -> Status {
    Status::internal(chain(error))
}

/// The status code is that of the first endpoint's error, the registry's own where no mirror is set.
fn pull_status(error: &PullError) -> Status {
    let text = chain(error);
    match error {
        PullError::Endpoints(errors) => match errors.last() {
            Some(EndpointError::Registry(RegistryError::NotFound(..))) => Status::not_found(text),
            Some(EndpointError::Registry(RegistryError::Denied(..))) => Status::permission_denied(text),
            Some(EndpointError::Registry(RegistryError::Connect(..) | RegistryError::Timeout(_))) => {
                Status::unavailable(text)
            }
            _ => Status::unknown(text),
        },
        // The CRI's own word for it (cri-api, errors.ErrSignatureValidationFailed), which the kubelet shows.
        PullError::Verify(_) => Status::unknown(format!("SignatureValidationFailed: {text}")),
        _ => Status::internal(text),
    }
}

#[tonic::async_trait]
impl ImageService for ImageServer {
    type StreamImagesStream = BoxStream<'static, Result<v1::StreamImagesResponse, Status>>;

    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        Ok(Response::new(v1::ListImagesResponse { images: self.list(request.into_inner().filter) }))
    }

    async fn stream_images(
        &self,
        request: Request<v1::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        let images = self.list(request.into_inner().filter);
        let parts: Vec<_> =
            images.chunks(100).map(|c| Ok(v1::StreamImagesResponse { images: c.to_vec() })).collect();
        Ok(Response::new(stream::iter(parts).boxed()))
    }

    async fn image_status(
        &self,
        request: Request<v1::ImageStatusRequest>,
    ) -> Result<Response<v1::ImageStatusResponse>, Status> {
        let request = request.into_inner();
        let image = self.store.resolve(&named(request.image)?.image);
        let mut info = std::collections::HashMap::new();
        if let Some(image) = image.as_ref().filter(|_| request.verbose) {
            let value = serde_json::json!({ "config": image.config, "layers": image.layers });
            info.insert("info".to_owned(), value.to_string());
        }
        // An image that is not there is an answer without an image, not an error.
        Ok(Response::new(v1::ImageStatusResponse { image: image.map(|i| self.to_cri(&i)), info }))
    }

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<v1::PullImageResponse>, Status> {
        let request = request.into_inner();
        let spec = named(request.image)?;
        let reference = ImageRef::parse(&spec.image).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let credentials = match &request.auth {
            Some(auth) => Credentials::from_cri(auth).map_err(|e| Status::invalid_argument(e.to_string()))?,
            None => None,
        };
        let subject = match spec.user_specified_image.as_str() {
            "" => spec.image.as_str(),
            given => given,
        };
        let recorder = Recorder::new(Writer::Runtime, self.clock);
        let outcome = self.puller.pull(&reference, credentials.as_ref(), subject, &recorder).await;
        let records = recorder.take();
        self.metrics.observe(&records);
        match outcome {
            Ok(pulled) => {
                let image_ref = pulled.image.id.to_string();
                let mut response = Response::new(v1::PullImageResponse { image_ref });
                metadata::attach(&mut response, &records);
                Ok(response)
            }
            Err(error) => {
                let mut status = pull_status(&error);
                metadata::attach_to_error(&mut status, &records);
                Err(status)
            }
        }
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        let name = named(request.into_inner().image)?.image;
        let store = self.store.clone();
        // Idempotent: one that is not there is removed.
        tokio::task::spawn_blocking(move || store.remove(&name))
            .await
            .map_err(|e| Status::internal(e.to_string()))?
            .map_err(|e| store_status(&e))?;
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    async fn image_fs_info(
        &self,
        _: Request<v1::ImageFsInfoRequest>,
    ) -> Result<Response<v1::ImageFsInfoResponse>, Status> {
        let usage = self.store.usage();
        let now = self.clock.now().0.saturating_mul(1000);
        let (bytes, inodes) = match &self.containers {
            Some(containers) => containers.written(now).await,
            None => (0, 0),
        };
        // One file system for both: the kubelet takes differing mount points for a split one.
        let filesystem = |bytes, inodes| v1::FilesystemUsage {
            timestamp: now,
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: self.store.root().display().to_string() }),
            used_bytes: Some(v1::UInt64Value { value: bytes }),
            inodes_used: Some(v1::UInt64Value { value: inodes }),
        };
        Ok(Response::new(v1::ImageFsInfoResponse {
            image_filesystems: vec![filesystem(usage.bytes, usage.inodes)],
            container_filesystems: vec![filesystem(bytes, inodes)],
        }))
    }
}

#[cfg(test)]
mod tests;
