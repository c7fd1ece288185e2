//! The node: registers it, keeps its status true, and tells the rest of the agent how it stands.
//!
//! One task owns the Node object. It looks at the machine and the runtime each 10 s (each 100 ms
//! until the node is ready for the first time, for at most 2 minutes), and whenever it is poked or
//! the API server's copy changes; a PATCH goes out only when something but a heartbeat differs, or
//! 5 minutes after the last. The copy comes from a watch on this one object: no GET is sent.
//!
//! States: unknown (create the Node), registered (patch it), deleted (somebody took the node out of
//! the cluster: as a kubelet, the agent does not put it back until it is started again).

pub mod addresses;
pub mod allocatable;
pub mod enforce;
pub mod events;
pub mod machine;
pub mod object;
pub mod oom;
pub mod pressure;
pub mod runtime;

use crate::cgroups::layout::Layout;
use crate::config::Config;
use crate::devices::pool::Amounts;
use crate::watch::lean;
use allocatable::Reservation;
use futures::StreamExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeRuntimeHandlerFeatures, NodeStatus, Taint};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use machine::{Machine, Reader, Sample};
use pressure::{Memory, Pressures, Threshold, Thresholds};
use runtime::{Known, Probe};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// How often the node is looked at (`nodeStatusUpdateFrequency`).
pub const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How often a status goes out though nothing has changed (`nodeStatusReportFrequency`).
pub const REPORT_EVERY: Duration = Duration::from_secs(300);
/// How often a node that has just started is looked at ...
const FAST: Duration = Duration::from_millis(100);
/// ... and for how long.
const FAST_FOR: Duration = Duration::from_secs(120);
/// The longest time between two tries that fail.
const MAX_BACKOFF: Duration = Duration::from_secs(7);
/// The least time between two writes, whatever changes.
const WRITE_GAP: Duration = Duration::from_secs(1);
/// How long one call to the API server may take.
const CALL: Duration = Duration::from_secs(10);

/// Why the node cannot be registered as configured.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// NodeRestriction would refuse these labels.
    #[error("--node-labels has labels that a node may not give itself: {0}; leave them out")]
    Labels(String),
    /// The name is empty.
    #[error("no node name: give --node-name")]
    Name,
}

/// A call to the API server that failed.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("no answer in {} s", CALL.as_secs())]
    Late,
}

/// How the node stands, for the rest of the agent.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The Node as the API server has it; none before it is registered.
    pub node: Option<Arc<Node>>,
    /// The Node as this machine would register it, as soon as that is known whole.
    pub local: Option<Arc<Node>>,
    /// Why it is not ready, by the last look; none when it is.
    pub not_ready: Option<String>,
    /// What is short.
    pub pressures: Pressures,
    /// That the machine is about to be shut down: the Node is not ready then, and takes no pod.
    pub leaving: Leaving,
}

/// One flag, whoever has a copy of the state.
#[derive(Clone, Debug, Default)]
pub struct Leaving(Arc<AtomicBool>);

impl Leaving {
    /// Whether it is set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sets it, or takes it back.
    pub fn set(&self, is: bool) {
        self.0.store(is, Ordering::Relaxed);
    }
}

impl State {
    /// What a handler of the runtime can do (the empty name: its default one), as the Node tells it.
    #[must_use]
    pub fn features(&self, handler: &str) -> NodeRuntimeHandlerFeatures {
        let node = self.node.as_ref().or(self.local.as_ref());
        let handlers = node.and_then(|n| n.status.as_ref()?.runtime_handlers.as_ref());
        let named = handlers.into_iter().flatten().find(|h| h.name.as_deref().unwrap_or_default() == handler);
        named.and_then(|h| h.features.clone()).unwrap_or_default()
    }
}

/// What the rest of the agent has of the node.
#[derive(Clone, Debug)]
pub struct Handle {
    state: watch::Receiver<State>,
    poke: Arc<Notify>,
    memory: Arc<Mutex<Memory>>,
}

impl Handle {
    /// Takes a sample of the machine: what is short, and which thresholds call for an eviction. Whoever
    /// looks, it is remembered in one place, so that condition and eviction cannot disagree.
    pub fn observe(&self, sample: &Sample, thresholds: &Thresholds) -> Vec<Threshold> {
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let (pressures, calling) = memory.observe(sample, thresholds, Instant::now());
        drop(memory);
        if self.state.borrow().pressures != pressures {
            self.poke();
        }
        calling
    }

    /// How the node stands, now and on.
    #[must_use]
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// The machine is about to be shut down, or is no longer: no pod is taken from now on, and the Node's Ready
    /// says so at once.
    pub fn shutting_down(&self, is: bool) {
        self.state.borrow().leaving.set(is);
        self.poke();
    }

    /// Has the node looked at now: an image was pulled, the runtime came back.
    pub fn poke(&self) {
        self.poke.notify_one();
    }
}

/// The task that owns the Node.
pub struct Registrar {
    api: Api<Node>,
    events: events::Writer,
    probe: Arc<dyn Probe>,
    name: String,
    labels: BTreeMap<String, String>,
    taints: Vec<Taint>,
    node_ips: Vec<IpAddr>,
    port: u16,
    max_pods: u32,
    root_dir: PathBuf,
    reader: Reader,
    thresholds: Thresholds,
    reservation: Reservation,
    state: watch::Sender<State>,
    poke: Arc<Notify>,
    machine: Option<Machine>,
    sample: Option<Sample>,
    memory: Arc<Mutex<Memory>>,
    addresses: Option<Vec<NodeAddress>>,
    devices: watch::Receiver<Amounts>,
    volumes: watch::Receiver<BTreeSet<String>>,
    runtime: Known,
    reported: Option<Instant>,
    jitter: f64,
}

impl std::fmt::Debug for Registrar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registrar").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Registrar {
    /// The node of `config`. `thresholds` say when a resource is short and what is kept from pods.
    ///
    /// # Errors
    /// [`NodeError`] when the API server would refuse such a node.
    pub fn new(
        client: Client,
        probe: Arc<dyn Probe>,
        config: &Config,
        layout: &Layout,
        thresholds: Thresholds,
    ) -> Result<Self, NodeError> {
        if config.node_name.is_empty() {
            return Err(NodeError::Name);
        }
        let forbidden = object::forbidden_labels(&config.node_labels);
        if !forbidden.is_empty() {
            return Err(NodeError::Labels(forbidden.join(", ")));
        }
        Ok(Registrar {
            events: events::Writer::new(client.clone(), &config.node_name),
            api: Api::all(client),
            probe,
            name: config.node_name.clone(),
            labels: config.node_labels.clone(),
            taints: config.register_with_taints.clone(),
            node_ips: config.node_ip.clone(),
            port: config.port,
            max_pods: config.max_pods,
            root_dir: config.root_dir.clone(),
            reader: Reader::new(Path::new("/"), layout),
            thresholds,
            reservation: config.reservation.clone(),
            state: watch::Sender::new(State::default()),
            poke: Arc::new(Notify::new()),
            machine: None,
            sample: None,
            memory: Arc::default(),
            addresses: None,
            devices: watch::channel(Amounts::new()).1,
            volumes: watch::channel(BTreeSet::new()).1,
            runtime: Known::default(),
            reported: None,
            jitter: 0.0,
        })
    }

    /// Reports another port than the configured one: that on which the server really listens.
    #[must_use]
    pub fn with_port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Has the node offer these devices, as they come and go.
    #[must_use]
    pub fn with_devices(mut self, devices: watch::Receiver<Amounts>) -> Self {
        self.devices = devices;
        self
    }

    /// Has the node say that these volumes are in use, so that nobody detaches them.
    #[must_use]
    pub fn with_volumes(mut self, in_use: watch::Receiver<BTreeSet<String>>) -> Self {
        self.volumes = in_use;
        self
    }

    /// What the rest of the agent has of the node.
    #[must_use]
    pub fn handle(&self) -> Handle {
        let memory = Arc::clone(&self.memory);
        Handle { state: self.state.subscribe(), poke: Arc::clone(&self.poke), memory }
    }

    /// Keeps the node until `shutdown`.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let started = Instant::now();
        let selector = format!("metadata.name={}", self.name);
        // The watch begins when there is something to watch, so that nothing old is taken for new.
        let mut copies = None;
        let mut listed = false;
        let mut known = Copy::Unknown;
        let mut backoff = FAST;
        let mut was_ready = false;
        loop {
            self.look().await;
            let result = self.sync(&mut known).await;
            was_ready |= self.state.borrow().not_ready.is_none();
            let mut pause = if was_ready || started.elapsed() > FAST_FOR { LOOK_EVERY } else { FAST };
            match result {
                Ok(()) => backoff = FAST,
                Err(error) => {
                    tracing::warn!(node = self.name, %error, "the node's status was not written");
                    pause = pause.min(backoff);
                    backoff = (backoff * 2).min(MAX_BACKOFF);
                }
            }
            if copies.is_none() && !matches!(known, Copy::Unknown) {
                let config = watcher::Config::default().fields(&selector);
                copies = Some(watcher(self.api.clone(), config).default_backoff().modify(lean).boxed());
            }
            let until = tokio::time::Instant::now() + pause;
            loop {
                let copy = async {
                    match &mut copies {
                        Some(stream) => stream.next().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    () = tokio::time::sleep_until(until) => break,
                    () = self.poke.notified() => break,
                    Ok(()) = self.devices.changed() => break,
                    Ok(()) = self.volumes.changed() => break,
                    event = copy => match event {
                        Some(Ok(event)) => {
                            if self.seen(event, &mut known, &mut listed) {
                                break;
                            }
                        }
                        Some(Err(error)) => tracing::debug!(%error, "the watch on the node was broken"),
                        None => copies = None,
                    },
                }
            }
        }
    }

    /// Takes an event of the watch; true when it calls for a write.
    fn seen(&self, event: watcher::Event<Node>, known: &mut Copy, listed: &mut bool) -> bool {
        match event {
            watcher::Event::Apply(node) | watcher::Event::InitApply(node) => {
                *listed = true;
                // The answer to a write of ours may have told of a later state already.
                if let Copy::Is(old) = known
                    && version(old).zip(version(&node)).is_some_and(|(old, new)| new < old)
                {
                    return false;
                }
                let old = node.status.clone().unwrap_or_default();
                let new = object::status(&old, &self.facts());
                let differs = object::patch(&node, &new, &self.name, false).is_some();
                self.publish(Some(&node));
                *known = Copy::Is(Box::new(node));
                differs
            }
            watcher::Event::Init => {
                *listed = false;
                false
            }
            watcher::Event::InitDone if *listed => false,
            watcher::Event::InitDone | watcher::Event::Delete(_) => {
                self.deleted(known);
                false
            }
        }
    }

    fn deleted(&self, known: &mut Copy) {
        if !matches!(known, Copy::Deleted) {
            tracing::error!(node = self.name, "the Node was deleted: restart the agent to register it again");
        }
        *known = Copy::Deleted;
        self.publish(None);
        self.state.send_modify(|state| state.not_ready = Some("the Node was deleted".to_owned()));
    }

    /// Looks at the machine and the runtime.
    async fn look(&mut self) {
        let seen = self.probe.observe().await;
        let now = Instant::now();
        self.runtime.take(seen, now);
        let images = self.runtime.last.as_ref().and_then(|seen| seen.image_dir.clone());
        let (reader, root, known) = (self.reader.clone(), self.root_dir.clone(), self.machine.clone());
        let images = images.unwrap_or_else(|| root.clone());
        let (ips, name) = (self.node_ips.clone(), self.name.clone());
        // A file system that hangs must not hold up a thread of the executor.
        let read = tokio::task::spawn_blocking(move || {
            let machine = known.map_or_else(|| reader.machine(), Ok);
            (machine, reader.sample(&root, &images), addresses::addresses(&name, &ips))
        });
        let Ok((machine, sample, addresses)) = read.await else { return };
        match machine {
            Ok(machine) => self.machine = Some(machine),
            Err(error) => tracing::warn!(%error, "the machine cannot be read"),
        }
        match sample {
            Ok(sample) => self.sample = Some(sample),
            Err(error) => tracing::warn!(%error, "the free resources cannot be read"),
        }
        match addresses {
            Ok(addresses) => self.addresses = Some(addresses),
            Err(error) => tracing::warn!(%error, "the node has no valid address"),
        }
        if let Some(sample) = &self.sample {
            let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
            let (pressures, _) = memory.observe(sample, &self.thresholds, now);
            drop(memory);
            self.state
                .send_if_modified(|state| std::mem::replace(&mut state.pressures, pressures) != pressures);
        }
    }

    fn facts(&self) -> object::Facts<'_> {
        object::Facts {
            name: &self.name,
            machine: self.machine.as_ref(),
            sample: self.sample.as_ref(),
            pressures: self.state.borrow().pressures,
            devices: self.devices.borrow().clone(),
            volumes_in_use: self.volumes.borrow().clone(),
            shutting_down: self.state.borrow().leaving.is_set(),
            runtime: &self.runtime,
            addresses: self.addresses.as_deref(),
            port: self.port,
            max_pods: self.max_pods,
            thresholds: &self.thresholds,
            reservation: &self.reservation,
            // As metav1.Time has it: to the second.
            now: Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH),
            instant: Instant::now(),
        }
    }

    /// Makes the API server's copy say what was seen.
    async fn sync(&mut self, known: &mut Copy) -> Result<(), CallError> {
        if matches!(known, Copy::Unknown) {
            let node = object::initial(&self.facts(), &self.labels, &self.taints);
            self.publish_ready(node.status.as_ref());
            if self.machine.is_some() && self.sample.is_some() && self.addresses.is_some() {
                let local = Arc::new(node.clone());
                self.state.send_if_modified(|state| state.local.replace(local).is_none());
            }
            *known = Copy::Is(Box::new(self.register(&node).await?));
            self.events.write(vec![events::starting()]);
        }
        let Copy::Is(old) = known else { return Ok(()) };
        let before = old.status.clone().unwrap_or_default();
        let new = object::status(&before, &self.facts());
        self.publish_ready(Some(&new));
        let due = self.reported.is_none_or(|at| at.elapsed() >= REPORT_EVERY.mul_f64(1.0 + self.jitter));
        let Some(changed) = object::patch(old, &new, &self.name, due) else {
            self.publish(Some(old));
            return Ok(());
        };
        tracing::debug!(node = self.name, patch = %changed, due, "the node's status is written");
        // Two writers who do not agree must not flood the API server; becoming ready does not wait.
        let flips = old.status.as_ref().is_none_or(|s| object::not_ready(s) != object::not_ready(&new));
        if let Some(at) = self.reported.filter(|_| !flips) {
            tokio::time::sleep(WRITE_GAP.saturating_sub(at.elapsed())).await;
        }
        let params = PatchParams::default();
        match timed(self.api.patch_status(&self.name, &params, &Patch::Strategic(changed))).await {
            Ok(node) => {
                self.wrote(!due);
                self.events.write(events::between(&self.name, &before, &new));
                self.publish(Some(&node));
                *known = Copy::Is(Box::new(node));
                Ok(())
            }
            Err(CallError::Api(kube::Error::Api(status))) if status.code == 404 => {
                self.deleted(known);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Creates the node, or finds the one that is there.
    async fn register(&mut self, node: &Node) -> Result<Node, CallError> {
        match timed(self.api.create(&PostParams::default(), node)).await {
            Ok(node) => {
                tracing::info!(node = self.name, "registered");
                self.wrote(true);
                let status = node.status.clone().unwrap_or_default();
                self.events.write(events::between(&self.name, &NodeStatus::default(), &status));
                Ok(node)
            }
            Err(CallError::Api(kube::Error::Api(status))) if status.reason == "AlreadyExists" => {
                tracing::info!(node = self.name, "was registered before");
                timed(self.api.get(&self.name)).await
            }
            Err(error) => Err(error),
        }
    }

    /// After a change the next report is at a random time, so that not all nodes report at once.
    #[expect(clippy::cast_precision_loss, reason = "any number will do")]
    fn wrote(&mut self, changed: bool) {
        self.reported = Some(Instant::now());
        let random = RandomState::new().hash_one(0) as f64 / u64::MAX as f64;
        self.jitter = if changed { random - 0.5 } else { 0.0 };
    }

    fn publish(&self, node: Option<&Node>) {
        let version = |node: &Node| (node.uid(), node.resource_version());
        self.state.send_if_modified(|state| {
            if state.node.as_deref().map(version) == node.map(version) {
                return false;
            }
            state.node = node.cloned().map(Arc::new);
            true
        });
    }

    fn publish_ready(&self, status: Option<&NodeStatus>) {
        let why = status.map_or_else(|| Some("no status".to_owned()), object::not_ready);
        let changed = self.state.send_if_modified(|state| {
            let changed = state.not_ready != why;
            state.not_ready.clone_from(&why);
            changed
        });
        if changed {
            match why {
                None => tracing::info!(node = self.name, "the node is ready"),
                Some(why) => tracing::info!(node = self.name, why, "the node is not ready"),
            }
        }
    }
}

/// What is known of the API server's copy.
enum Copy {
    Unknown,
    Is(Box<Node>),
    Deleted,
}

/// Resource versions of one kind can be compared since Kubernetes 1.35 (KEP-5504).
fn version(node: &Node) -> Option<u64> {
    node.resource_version()?.parse().ok()
}

async fn timed<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, CallError> {
    match tokio::time::timeout(CALL, call).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(CallError::Late),
    }
}
