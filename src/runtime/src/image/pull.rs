//! A pull: resolve, manifest, configuration, all layers at once, one entry in the store.
//!
//! Pulls of one reference with the same credentials are joined; a joined pull ends when the last
//! waiter leaves, and what it staged is deleted. Every endpoint that may answer is tried in order,
//! for the manifest and again for each blob. A blob that breaks off is taken up where it did. There is no
//! retry in time here: the caller backs off.

use super::hosts::{self, Endpoint, HostsError};
use super::keychain::{Keychain, KeychainError};
use super::progress::{LayerTrack, Progress, Track};
use super::reference::{Digest, ImageRef};
use super::registry::{
    Credentials, LayerDescriptor, Manifest, ManifestError, Platform, Registry, RegistryError, parse_config,
    parse_manifest,
};
use super::store::{Image, ImageStore, StoreError};
use super::unpack::{Limits, UnpackError, unpack};
use super::verify::{Verifiers, VerifyError};
use crate::allocator;
use crate::config;
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
/// Chunks that wait between socket and unpacker, 64 KiB at most each: unpacking is what takes, and while it has one in
/// hand and one waits, the socket is read for a third.
const CHUNKS: usize = 1;
/// How often one layer may break off in a pull, if something came each time.
const MAX_RESUMES: u32 = 20;

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
    /// The machine's credentials.
    #[error("the credentials for registry {0} are not known")]
    Keychain(String, #[source] KeychainError),
    /// A verifier refused, or could not be asked.
    #[error("the image is not accepted")]
    Verify(#[from] VerifyError),
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
    /// Where it (its end) came from; `None` for one that was present.
    pub endpoint: Option<String>,
    /// How often it broke off and was taken up.
    pub resumed: u32,
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
    /// Whose credentials were used, if any.
    pub auth: Option<String>,
    /// The verifiers that accepted it.
    pub verifiers: Vec<String>,
    /// Its layers; empty where the image was present.
    pub layers: Vec<LayerReport>,
}

impl Pulled {
    fn of(image: Arc<Image>, digest: Digest, endpoint: Option<String>, layers: Vec<LayerReport>) -> Self {
        Pulled { image, digest: Some(digest), endpoint, auth: None, verifiers: Vec::new(), layers }
    }
}

type Outcome = Result<Arc<Pulled>, Arc<PullError>>;
type Joint = BoxFuture<'static, Outcome>;
type Key = (ImageRef, Option<Credentials>);

/// Pulls images into a store.
pub struct Puller {
    store: Arc<ImageStore>,
    registry: Registry,
    config_path: Option<PathBuf>,
    keychain: Keychain,
    verifiers: Verifiers,
    limits: Limits,
    /// How far they have got.
    pub progress: Arc<Progress>,
    running: Mutex<HashMap<Key, WeakShared<Joint>>>,
}

impl std::fmt::Debug for Puller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Puller").field("config_path", &self.config_path).finish_non_exhaustive()
    }
}

impl Puller {
    /// A puller into `store`, with mirrors, credentials and verifiers as configured.
    #[must_use]
    pub fn new(store: Arc<ImageStore>, registry: &config::Registry, images: &config::Images) -> Arc<Self> {
        Arc::new(Puller {
            store,
            registry: Registry::default(),
            config_path: registry.config_path.clone(),
            keychain: Keychain::of(registry),
            verifiers: Verifiers { dir: images.verifiers.clone(), timeout: images.verifier_timeout_seconds },
            limits: Limits::default(),
            progress: Arc::default(),
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
                if let Some(auth) = &pulled.auth {
                    span.note("auth", auth);
                }
                if !pulled.verifiers.is_empty() {
                    span.note("verifiers", pulled.verifiers.join(","));
                }
                let bytes: u64 = pulled.layers.iter().map(|l| l.bytes).sum();
                span.note("bytes", bytes);
                // The document that carries the record is capped: the first layers tell enough.
                for (i, layer) in pulled.layers.iter().take(32).enumerate() {
                    let text = match &layer.endpoint {
                        Some(from) => {
                            let resumed = match layer.resumed {
                                0 => String::new(),
                                n => format!(", taken up {n} times"),
                            };
                            let (digest, bytes, micros) = (layer.digest, layer.bytes, layer.micros);
                            format!("{digest} {bytes} bytes {micros} µs from {from}{resumed}")
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
        let joint = async move {
            let track = puller.progress.begin(&reference, now_ns());
            let outcome = puller.run(&reference, credentials.as_ref(), &track).await;
            track.end(outcome.as_ref().err());
            if outcome.as_ref().is_ok_and(|pulled| !pulled.layers.is_empty()) {
                // Nobody waits for it.
                drop(tokio::task::spawn_blocking(allocator::give_back));
            }
            outcome.map(Arc::new).map_err(Arc::new)
        };
        let joint = joint.boxed().shared();
        if let Some(weak) = joint.downgrade() {
            running.insert(key, weak);
        }
        (joint, false)
    }

    async fn run(
        &self,
        reference: &ImageRef,
        credentials: Option<&Credentials>,
        track: &Track,
    ) -> Result<Pulled, PullError> {
        let known = reference.digest().and_then(|d| Some((d, self.store.find(reference)?)));
        if let Some((digest, image)) = known {
            let verifiers = self.verifiers.accept(reference, digest).await?;
            let (digest, layers) = (Some(digest), Vec::new());
            return Ok(Pulled { image, digest, endpoint: None, auth: None, verifiers, layers });
        }
        let endpoints = hosts::endpoints(self.config_path.as_deref(), reference)
            .map_err(|source| PullError::Hosts { registry: reference.registry().to_owned(), source })?;
        let mut auth = credentials.map(|_| "request".to_owned());
        let mut own = None;
        if credentials.is_none() {
            let found = self.keychain.find(reference).await;
            let found = found.map_err(|e| PullError::Keychain(reference.registry().to_owned(), e))?;
            (own, auth) = found.map(|(c, source)| (c, source.to_string())).unzip();
        }
        let credentials = credentials.or(own.as_ref());
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
                    let verifiers = self.verifiers.accept(reference, resolved.top).await?;
                    let pulled =
                        self.fetch(reference, credentials, (endpoint, &sources), resolved, track).await?;
                    return Ok(Pulled { auth, verifiers, ..pulled });
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
        (resolver, sources): (&Endpoint, &[&Endpoint]),
        resolved: Resolved,
        track: &Track,
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
            return Ok(Pulled::of(image, top, from, Vec::new()));
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
        track.layers(layers.iter().map(|layer| (layer.digest, layer.size)));
        // Boxed: a closure over borrowed descriptors is not general enough for a 'static joint.
        let mut jobs = Vec::with_capacity(layers.len());
        for (i, (layer, diff)) in layers.iter().zip(&diff_ids).enumerate() {
            let track = track.layer(i);
            let job = async move {
                let report = self.layer(reference, credentials, sources, (*layer, *diff), track).await?;
                track.done(&report);
                Ok::<_, PullError>(report)
            };
            jobs.push(job.boxed());
        }
        let reports: Vec<LayerReport> = stream::iter(jobs).buffered(PARALLEL_LAYERS).try_collect().await?;
        track.storing();
        let image = self.put(id, names, config, config_bytes, diff_ids).await?;
        Ok(Pulled::of(image, top, from, reports))
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
        (layer, diff): (LayerDescriptor, Digest),
        track: LayerTrack<'_>,
    ) -> Result<LayerReport, PullError> {
        if self.store.has_layer(diff) {
            let digest = layer.digest;
            return Ok(LayerReport { digest, bytes: 0, micros: 0, endpoint: None, resumed: 0 });
        }
        let mut errors = Vec::new();
        for first in 0..sources.len() {
            let start = Instant::now();
            track.begins();
            let from = &sources[first..];
            match self.layer_from(from, reference, credentials, (layer, diff), track).await {
                Ok(fed) => {
                    let micros = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
                    let endpoint = Some(fed.endpoint);
                    let (bytes, resumed) = (fed.bytes, fed.resumed);
                    return Ok(LayerReport { digest: layer.digest, bytes, micros, endpoint, resumed });
                }
                Err(error) => errors.extend(error),
            }
        }
        Err(PullError::Endpoints(errors))
    }

    /// One layer, unpacked while it arrives from the first of `sources`. Where the stream breaks off
    /// it is taken up at the next byte, by the same endpoint or by the next one: what came is hashed
    /// and unpacked already, and both digests are over the whole.
    async fn layer_from<'a>(
        &self,
        sources: &[&Endpoint],
        reference: &ImageRef,
        credentials: Option<&Credentials>,
        (layer, diff): (LayerDescriptor, Digest),
        track: LayerTrack<'a>,
    ) -> Result<Fed<'a>, Vec<EndpointError>> {
        let (sender, receiver) = mpsc::channel(CHUNKS);
        let worker = self.unpacker(layer, diff, receiver);
        let mut fed = Fed { bytes: 0, resumed: 0, endpoint: String::new(), track };
        let mut errors: Vec<EndpointError> = Vec::new();
        let mut whole = false;
        for endpoint in sources {
            fed.endpoint = endpoint.to_string();
            loop {
                let before = fed.bytes;
                match self.feed(endpoint, reference, credentials, layer, &sender, &mut fed).await {
                    Ok(()) => {
                        whole = true;
                        break;
                    }
                    Err(error) if fed.bytes > before && fed.resumed < MAX_RESUMES => {
                        fed.resumed += 1;
                        tracing::info!(
                            layer = %layer.digest, at = fed.bytes, error = chain(&error),
                            "a layer broke off and is taken up"
                        );
                    }
                    Err(error) => {
                        errors.push(error.into());
                        break;
                    }
                }
            }
            if whole {
                break;
            }
        }
        drop(sender);
        let result = worker.await.map_err(EndpointError::Worker).flatten();
        match result {
            Ok(_) if whole => Ok(fed),
            // Nobody had the rest; that the archive ends early follows from it.
            _ if !whole && !errors.is_empty() => Err(errors),
            Ok(_) => Ok(fed),
            Err(error) => {
                errors.push(error);
                Err(errors)
            }
        }
    }

    /// The thread that unpacks a layer and puts it in its place. It ends by itself when the channel does.
    fn unpacker(
        &self,
        layer: LayerDescriptor,
        diff: Digest,
        receiver: mpsc::Receiver<bytes::Bytes>,
    ) -> tokio::task::JoinHandle<Result<(), EndpointError>> {
        let (store, limits) = (self.store.clone(), self.limits);
        tokio::task::spawn_blocking(move || {
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
            Ok(())
        })
    }

    /// Passes a blob on from byte `fed.bytes`, to its end or until the unpacker has ended (its error then
    /// says why).
    async fn feed(
        &self,
        endpoint: &Endpoint,
        reference: &ImageRef,
        credentials: Option<&Credentials>,
        layer: LayerDescriptor,
        sender: &mpsc::Sender<bytes::Bytes>,
        fed: &mut Fed<'_>,
    ) -> Result<(), RegistryError> {
        let from = (layer.digest, fed.bytes);
        let mut blob = self.registry.blob(endpoint, reference, from, credentials).await?;
        while let Some(chunk) = blob.chunk().await? {
            let length = chunk.len() as u64;
            if sender.send(chunk).await.is_err() {
                return Ok(());
            }
            fed.bytes += length;
            fed.track.received(length);
        }
        if fed.bytes < layer.size {
            return Err(RegistryError::Short(endpoint.to_string(), fed.bytes, layer.size));
        }
        Ok(())
    }
}

/// What came of a layer.
struct Fed<'a> {
    bytes: u64,
    resumed: u32,
    endpoint: String,
    track: LayerTrack<'a>,
}

fn now_ns() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.ok().and_then(|t| i64::try_from(t.as_nanos()).ok()).unwrap_or_default()
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

#[cfg(test)]
mod tests;
