//! A pull: resolve, manifest, configuration, all layers at once, one entry in the store.
//!
//! Pulls of one reference with the same credentials are joined; a joined pull ends when the last
//! waiter leaves, and what it staged is deleted. Every endpoint that may answer is tried in order,
//! for the manifest and again for each blob. There is no retry in time here: the caller backs off.

use super::hosts::{self, Endpoint, HostsError};
use super::reference::{Digest, ImageRef};
use super::registry::{
    Credentials, LayerDescriptor, Manifest, ManifestError, Platform, Registry, RegistryError, parse_config,
    parse_manifest,
};
use super::store::{Image, ImageStore, StoreError};
use super::unpack::{Limits, UnpackError, unpack};
use crate::points::{self, Point};
use futures::future::{BoxFuture, FutureExt, Shared, WeakShared};
use futures::stream::{self, StreamExt, TryStreamExt};
use podway_flow::{Phase, Recorder};
use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;
use tokio::sync::mpsc;

/// Layers in flight per pull, as CRI-O has it.
const PARALLEL_LAYERS: usize = 6;
/// Chunks between socket and unpacker: at about 16 KiB each, 256 KiB a layer.
const CHUNKS: usize = 16;

/// Why a pull failed.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// hosts.toml.
    #[error("the endpoints of registry {registry} are not known")]
    Hosts {
        /// The registry.
        registry: String,
        /// The error.
        #[source]
        source: HostsError,
    },
    /// hosts.toml leaves nothing that may answer.
    #[error("no endpoint of {0} has the capability {1:?}; see its hosts.toml")]
    NoEndpoint(String, &'static str),
    /// Every endpoint failed; one error each.
    #[error("{}", join(.0))]
    Endpoints(Vec<EndpointError>),
    /// The store.
    #[error("the image could not be stored")]
    Store(#[from] StoreError),
    /// A worker thread ended without a result.
    #[error("the unpacking thread ended early")]
    Worker(#[source] tokio::task::JoinError),
}

/// What one endpoint failed with.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The request.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The manifest or configuration.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A layer.
    #[error("layer {0}")]
    Unpack(Digest, #[source] UnpackError),
    /// What came is not what was asked for.
    #[error("layer {want} arrived as {got} ({of})")]
    Digest {
        /// In the manifest or configuration.
        want: Digest,
        /// Computed.
        got: Digest,
        /// Compressed blob or diff.
        of: &'static str,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The thread.
    #[error("the unpacking thread ended early")]
    Worker(#[source] tokio::task::JoinError),
}

/// An error and its sources, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {error}");
        next = error.source();
    }
    text
}

fn join(errors: &[EndpointError]) -> String {
    errors.iter().map(|e| chain(e)).collect::<Vec<_>>().join("; ")
}

/// One layer of a pull.
#[derive(Clone, Debug)]
pub struct LayerReport {
    /// The blob.
    pub digest: Digest,
    /// Bytes that came over the network; 0 for one that was present.
    pub bytes: u64,
    /// µs from request to rename; 0 for one that was present.
    pub micros: u64,
    /// Where it came from; `None` for one that was present.
    pub endpoint: Option<String>,
}

/// What a pull came to.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The image.
    pub image: Arc<Image>,
    /// The digest that the reference meant.
    pub digest: Option<Digest>,
    /// Who said so; `None` where nobody needed to be asked.
    pub endpoint: Option<String>,
    /// Its layers; empty where the image was present.
    pub layers: Vec<LayerReport>,
}

type Outcome = Result<Arc<Pulled>, Arc<PullError>>;
type Joint = BoxFuture<'static, Outcome>;
type Key = (ImageRef, Option<Credentials>);

/// Pulls images into a store.
pub struct Puller {
    store: Arc<ImageStore>,
    registry: Registry,
    config_path: Option<PathBuf>,
    limits: Limits,
    running: Mutex<HashMap<Key, WeakShared<Joint>>>,
}

impl std::fmt::Debug for Puller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Puller").field("config_path", &self.config_path).finish_non_exhaustive()
    }
}

impl Puller {
    /// A puller into `store`, with mirrors from `config_path` (hosts.toml directories).
    #[must_use]
    pub fn new(store: Arc<ImageStore>, config_path: Option<PathBuf>) -> Arc<Self> {
        Arc::new(Puller {
            store,
            registry: Registry::default(),
            config_path,
            limits: Limits::default(),
            running: Mutex::default(),
        })
    }

    /// Pulls `reference` and records it as [`Phase::ImagesPulled`] of `subject`.
    ///
    /// # Errors
    /// [`PullError`], shared by all that were joined.
    pub async fn pull(
        self: &Arc<Self>,
        reference: &ImageRef,
        credentials: Option<&Credentials>,
        subject: &str,
        recorder: &Recorder,
    ) -> Outcome {
        let mut span = recorder.begin_for(Phase::ImagesPulled, subject);
        span.note("image", reference);
        let (joint, joined) = self.joint(reference, credentials);
        if joined {
            span.note("joined", true);
        }
        let outcome = joint.await;
        match &outcome {
            Ok(pulled) => {
                span.note("imageId", pulled.image.id).note("size", pulled.image.size);
                span.note("layers", pulled.image.layers.len());
                if let Some(digest) = pulled.digest {
                    span.note("digest", digest);
                }
                if let Some(endpoint) = &pulled.endpoint {
                    span.note("endpoint", endpoint);
                }
                let bytes: u64 = pulled.layers.iter().map(|l| l.bytes).sum();
                span.note("bytes", bytes);
                // The document that carries the record is capped: the first layers tell enough.
                for (i, layer) in pulled.layers.iter().take(32).enumerate() {
                    let text = match &layer.endpoint {
                        Some(from) => {
                            format!("{} {} bytes {} µs from {from}", layer.digest, layer.bytes, layer.micros)
                        }
                        None => format!("{} present", layer.digest),
                    };
                    span.note(&format!("layer{i}"), text);
                }
                if pulled.layers.is_empty() {
                    span.note("state", "present");
                    span.skip("AlreadyPresent");
                } else {
                    span.note("state", "pulled");
                    span.succeed("Pulled");
                }
            }
            Err(error) => {
                span.fail("PullFailed", &chain(&**error));
            }
        }
        outcome
    }

    fn joint(
        self: &Arc<Self>,
        reference: &ImageRef,
        credentials: Option<&Credentials>,
    ) -> (Shared<Joint>, bool) {
        let key = (reference.clone(), credentials.cloned());
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(joint) = running.get(&key).and_then(WeakShared::upgrade) {
            return (joint, true);
        }
        running.retain(|_, joint| joint.upgrade().is_some());
        let puller = self.clone();
        let (reference, credentials) = key.clone();
        let joint =
            async move { puller.run(&reference, credentials.as_ref()).await.map(Arc::new).map_err(Arc::new) }
                .boxed()
                .shared();
        if let Some(weak) = joint.downgrade() {
            running.insert(key, weak);
        }
        (joint, false)
    }

    async fn run(
        &self,
        reference: &ImageRef,
        credentials: Option<&Credentials>,
    ) -> Result<Pulled, PullError> {
        let known = reference.digest().and_then(|_| self.store.find(reference));
        if let Some(image) = known {
            return Ok(Pulled { image, digest: reference.digest(), endpoint: None, layers: Vec::new() });
        }
        let endpoints = hosts::endpoints(self.config_path.as_deref(), reference)
            .map_err(|source| PullError::Hosts { registry: reference.registry().to_owned(), source })?;
        let mut errors = Vec::new();
        for (i, endpoint) in endpoints.iter().enumerate() {
            if !(endpoint.resolve || endpoint.pull && reference.digest().is_some()) {
                continue;
            }
            match self.resolve(endpoint, reference, credentials).await {
                Err(error) => errors.push(error),
                Ok(resolved) => {
                    // Whoever knew the manifest is asked for the blobs first.
                    let rest = endpoints.iter().enumerate().filter(|&(j, _)| j != i).map(|(_, e)| e);
                    let sources: Vec<&Endpoint> =
                        [endpoint].into_iter().chain(rest).filter(|e| e.pull).collect();
                    return self.fetch(reference, credentials, endpoint, &sources, resolved).await;
                }
            }
        }
        if errors.is_empty() {
            return Err(PullError::NoEndpoint(reference.registry().to_owned(), "resolve"));
        }
        Err(PullError::Endpoints(errors))
    }

    async fn resolve(
        &self,
        endpoint: &Endpoint,
        reference: &ImageRef,
        credentials: Option<&Credentials>,
    ) -> Result<Resolved, EndpointError> {
        let platform = Platform::host();
        let (body, top, kind) = self.registry.manifest(endpoint, reference, None, credentials).await?;
        let mut manifest = parse_manifest(&body, kind.as_deref(), &platform)?;
        if let Manifest::Index(digest) = manifest {
            let (body, _, kind) =
                self.registry.manifest(endpoint, reference, Some(digest), credentials).await?;
            manifest = parse_manifest(&body, kind.as_deref(), &platform)?;
        }
        match manifest {
            Manifest::Image { config, layers } => Ok(Resolved { top, config, layers }),
            Manifest::Index(_) => Err(ManifestError::Confused("an index within an index".to_owned()).into()),
        }
    }

    async fn fetch(
        &self,
        reference: &ImageRef,
        credentials: Option<&Credentials>,
        resolver: &Endpoint,
        sources: &[&Endpoint],
        resolved: Resolved,
    ) -> Result<Pulled, PullError> {
        if sources.is_empty() {
            return Err(PullError::NoEndpoint(reference.registry().to_owned(), "pull"));
        }
        let Resolved { top, config: id, layers } = resolved;
        let names = (reference.repo_tag(), reference.repo_digest(top));
        let from = Some(resolver.to_string());
        let named = reference.repo_digest(top);
        if let Some(image) = self.store.resolve(&named).filter(|i| i.id == id) {
            let known = names.0.as_ref().is_none_or(|t| image.repo_tags.contains(t));
            let image = if known {
                image
            } else {
                let (config, layers) = (image.config.clone(), image.layers.clone());
                self.put(id, names, config, 0, layers).await?
            };
            return Ok(Pulled { image, digest: Some(top), endpoint: from, layers: Vec::new() });
        }
        let mut errors = Vec::new();
        let mut config = None;
        for endpoint in sources {
            match self.registry.config(endpoint, reference, id, credentials).await {
                Ok(body) => {
                    let parsed = parse_config(&body, layers.len())
                        .map_err(|e| PullError::Endpoints(vec![EndpointError::Manifest(e)]))?;
                    config = Some((parsed, body.len() as u64));
                    break;
                }
                Err(error) => errors.push(error.into()),
            }
        }
        let Some(((config, diff_ids), config_bytes)) = config else {
            return Err(PullError::Endpoints(errors));
        };
        let _pin = self.store.pin(&diff_ids);
        // Boxed: a closure over borrowed descriptors is not general enough for a 'static joint.
        let mut jobs = Vec::with_capacity(layers.len());
        for (layer, diff) in layers.iter().zip(&diff_ids) {
            jobs.push(self.layer(reference, credentials, sources, *layer, *diff).boxed());
        }
        let reports: Vec<LayerReport> = stream::iter(jobs).buffered(PARALLEL_LAYERS).try_collect().await?;
        let image = self.put(id, names, config, config_bytes, diff_ids).await?;
        Ok(Pulled { image, digest: Some(top), endpoint: from, layers: reports })
    }

    async fn put(
        &self,
        id: Digest,
        names: (Option<String>, String),
        config: super::registry::ImageConfig,
        config_bytes: u64,
        layers: Vec<Digest>,
    ) -> Result<Arc<Image>, PullError> {
        let store = self.store.clone();
        let put = move || store.put(id, names, config, config_bytes, layers);
        Ok(tokio::task::spawn_blocking(put).await.map_err(PullError::Worker)??)
    }

    async fn layer(
        &self,
        reference: &ImageRef,
        credentials: Option<&Credentials>,
        sources: &[&Endpoint],
        layer: LayerDescriptor,
        diff: Digest,
    ) -> Result<LayerReport, PullError> {
        if self.store.has_layer(diff) {
            return Ok(LayerReport { digest: layer.digest, bytes: 0, micros: 0, endpoint: None });
        }
        let mut errors = Vec::new();
        for endpoint in sources {
            let start = Instant::now();
            match self.layer_from(endpoint, reference, credentials, layer, diff).await {
                Ok(bytes) => {
                    let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
                    let endpoint = Some(endpoint.to_string());
                    return Ok(LayerReport { digest: layer.digest, bytes, micros, endpoint });
                }
                Err(error) => errors.push(error),
            }
        }
        Err(PullError::Endpoints(errors))
    }

    async fn layer_from(
        &self,
        endpoint: &Endpoint,
        reference: &ImageRef,
        credentials: Option<&Credentials>,
        layer: LayerDescriptor,
        diff: Digest,
    ) -> Result<u64, EndpointError> {
        let mut blob = self.registry.blob(endpoint, reference, layer.digest, credentials).await?;
        let (sender, receiver) = mpsc::channel(CHUNKS);
        let (store, limits) = (self.store.clone(), self.limits);
        // Once started it ends by itself: this future's end is the channel's end.
        let worker = tokio::task::spawn_blocking(move || {
            let staging = Staging(store.staging()?);
            points::at(Point::LayerStaged);
            let root = std::fs::File::open(&staging.0)
                .map_err(|e| EndpointError::Unpack(layer.digest, UnpackError::Read(e)))?;
            let done = unpack(receiver, layer.size, root.into(), limits)
                .map_err(|e| EndpointError::Unpack(layer.digest, e))?;
            if done.compressed != layer.digest {
                return Err(EndpointError::Digest { want: layer.digest, got: done.compressed, of: "blob" });
            }
            if done.diff != diff {
                return Err(EndpointError::Digest { want: diff, got: done.diff, of: "diff" });
            }
            points::at(Point::LayerUnpacked);
            store.commit_layer(&staging.0, diff, done.unpacked)?;
            points::at(Point::LayerCommitted);
            Ok(done.compressed_bytes)
        });
        let mut broken = None;
        loop {
            match blob.chunk().await {
                Ok(Some(chunk)) => {
                    // A closed channel is a worker that failed: its error says why.
                    if sender.send(chunk).await.is_err() {
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    broken = Some(error);
                    break;
                }
            }
        }
        drop(sender);
        let result = worker.await.map_err(EndpointError::Worker)?;
        match broken {
            Some(error) => Err(error.into()),
            None => result,
        }
    }
}

struct Resolved {
    top: Digest,
    config: Digest,
    layers: Vec<LayerDescriptor>,
}

/// A directory that is deleted unless it was renamed away.
struct Staging(PathBuf);

impl Drop for Staging {
    fn drop(&mut self) {
        match std::fs::remove_dir_all(&self.0) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), error = %e, "a staging directory stays until the next start");
            }
            _ => {}
        }
    }
}
