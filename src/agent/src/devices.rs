//! Device plugins: they register at a socket of the agent's, tell of their devices, and are asked when a pod wants
//! some (the kubelet's device manager, pkg/kubelet/cm/devicemanager).
//!
//! A resource: registered (its plugin is connected, the Node offers what works), left (the connection has ended:
//! nothing of it works; after [`GONE`] the Node says 0), registered again. A device: free → held by a container, from
//! the plugin's answer until the pod is over.
//!
//! Invariants: what a container holds is written down before the container is made, and is known to the next agent; of
//! one resource one allocation is made at a time, so that a plugin that hangs holds up its own pods alone. Whoever may
//! connect is root (the sockets' directory is), but what is said is checked all the same.

pub mod answer;
pub mod name;
pub mod plugin;
pub mod pool;
mod registry;

use crate::files;
use crate::metrics::Metrics;
use crate::pod::actions::chain;
use crate::sync::lock;
use answer::Gear;
use k8s_openapi::api::core::v1 as api;
use name::Resource;
use plugin::{Plugin, PluginError};
use pool::{Amounts, Held, Left, Pool, Refused};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// How long a plugin that has left is waited for (`endpointStopGracePeriod`).
const GONE: Duration = Duration::from_secs(300);

/// Why a container does not get its devices.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// There are none for it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Its plugin has gone.
    #[error("unknown Device Plugin {0}")]
    Unknown(Resource),
    /// Its plugin does not give them.
    #[error(transparent)]
    Plugin(#[from] PluginError),
    /// Who has which could not be written down.
    #[error("failed to write checkpoint file")]
    Write(#[from] std::io::Error),
    /// The thread that waited for the disk is gone.
    #[error("the disk's answer was not waited for")]
    Thread(#[from] tokio::task::JoinError),
}

/// A plugin that is connected, and the task that listens to it.
struct Connected {
    plugin: Plugin,
    /// Which registration of the resource it is.
    number: u64,
    task: AbortHandle,
}

/// The devices of this node, and their plugins.
pub struct Devices {
    dir: PathBuf,
    file: PathBuf,
    metrics: Arc<Metrics>,
    pool: Mutex<Pool>,
    plugins: Mutex<BTreeMap<Resource, Connected>>,
    /// Held while a resource is allocated.
    turns: Mutex<BTreeMap<Resource, Arc<tokio::sync::Mutex<()>>>>,
    /// Held while the file is written.
    writing: Mutex<()>,
    /// That something is free by now which the file has as somebody's.
    unwritten: AtomicBool,
    amounts: watch::Sender<Amounts>,
    /// Told whenever a plugin has said something, or a pod has given something back.
    health: watch::Sender<()>,
    /// How long a plugin that has left is waited for.
    patience: Duration,
}

impl std::fmt::Debug for Devices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Devices").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Devices {
    /// Those whose plugins register in `dir`; who has which is kept in `file`, which lies elsewhere, as plugins may
    /// write in `dir`.
    #[must_use]
    pub fn new(dir: &Path, file: &Path, metrics: Arc<Metrics>) -> Arc<Self> {
        Devices::with_patience(dir, file, metrics, GONE)
    }

    fn with_patience(dir: &Path, file: &Path, metrics: Arc<Metrics>, patience: Duration) -> Arc<Self> {
        let recalled = files::recall(file).unwrap_or_else(|error| {
            tracing::error!(%error, file = %file.display(), "which pod has which devices cannot be read");
            None
        });
        let pool = recalled.and_then(Pool::recall).unwrap_or_default();
        Arc::new(Devices {
            dir: dir.to_owned(),
            file: file.to_owned(),
            metrics,
            amounts: watch::channel(pool.amounts()).0,
            pool: Mutex::new(pool),
            plugins: Mutex::default(),
            turns: Mutex::default(),
            writing: Mutex::default(),
            unwritten: AtomicBool::new(false),
            health: watch::Sender::default(),
            patience,
        })
    }

    /// What the Node is to say of them, now and on.
    #[must_use]
    pub fn amounts(&self) -> watch::Receiver<Amounts> {
        self.amounts.subscribe()
    }

    /// Woken when what is shown of devices may have changed.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<()> {
        self.health.subscribe()
    }

    /// Whether a pod has devices.
    #[must_use]
    pub fn has(&self, uid: &str) -> bool {
        lock(&self.pool).has(uid)
    }

    /// Shows in a pod's status which devices its containers have (`UpdateAllocatedResourcesStatus`).
    pub fn show(&self, uid: &str, status: &mut api::PodStatus) {
        let pool = lock(&self.pool);
        if !pool.has(uid) {
            return;
        }
        for container in status.container_statuses.iter_mut().flatten() {
            let all = pool.of(uid, &container.name).map(|(resource, held)| {
                let health = |id: &String| api::ResourceHealth {
                    resource_id: id.clone(),
                    health: Some(pool.health(resource, id).to_owned()),
                    message: None,
                };
                let resources = Some(held.devices.iter().map(health).collect());
                api::ResourceStatus { name: resource.to_string(), resources }
            });
            let all: Vec<_> = all.collect();
            container.allocated_resources_status = (!all.is_empty()).then_some(all);
        }
    }

    /// Whether a pod wants something that a plugin has.
    #[must_use]
    pub fn wanted(&self, spec: &api::PodSpec) -> bool {
        let pool = lock(&self.pool);
        let all = spec.init_containers.iter().flatten().chain(&spec.containers);
        all.into_iter().any(|container| !pool.wants(container).is_empty())
    }

    /// Gets a pod all that it wants; what it has already it keeps. What it got before it failed goes with
    /// [`Devices::release`].
    ///
    /// # Errors
    /// [`DeviceError`], which refuses the pod.
    pub async fn allocate(self: &Arc<Self>, uid: &str, spec: &api::PodSpec) -> Result<(), DeviceError> {
        let (mut left, mut changed) = (Left::new(), false);
        for container in spec.init_containers.iter().flatten() {
            changed |= self.give(uid, container, &left).await?;
            let goes_on = container.restart_policy.as_deref() == Some("Always");
            lock(&self.pool).leave(uid, &container.name, goes_on, &mut left);
        }
        for container in &spec.containers {
            changed |= self.give(uid, container, &left).await?;
            lock(&self.pool).leave(uid, &container.name, true, &mut left);
        }
        if changed { self.write().await } else { Ok(()) }
    }

    /// What a container that is about to be made has of its devices. One that has none of what it wants, as the file
    /// was lost, gets it now.
    ///
    /// # Errors
    /// [`DeviceError`]; it is tried again, as any other start.
    pub async fn gear(self: &Arc<Self>, uid: &str, container: &api::Container) -> Result<Gear, DeviceError> {
        let name = container.name.as_str();
        let wants = lock(&self.pool).wants(container);
        if wants.is_empty() {
            return Ok(Gear::default());
        }
        let has = |resource: &Resource| lock(&self.pool).held(uid, name, resource).is_some();
        if !wants.iter().all(|(resource, _)| has(resource)) && self.give(uid, container, &Left::new()).await?
        {
            self.write().await?;
        }
        for (resource, _) in &wants {
            let held = lock(&self.pool).held(uid, name, resource).map(|held| held.devices.clone());
            // A container whose plugin is away starts again with what it has, as with a kubelet.
            if let (Some(devices), Some(mut plugin)) = (held, self.plugin(resource)) {
                plugin.pre_start(&devices).await?;
            }
        }
        Ok(lock(&self.pool).gear(uid, name))
    }

    /// Nothing of a pod runs any more, nor will: what it has is free, before anybody is told that it is over and the
    /// scheduler gives it to the next.
    pub fn free(&self, uid: &str) {
        if lock(&self.pool).release(uid) {
            self.unwritten.store(true, Ordering::Relaxed);
            self.health.send_replace(());
        }
    }

    /// The same, and written down.
    ///
    /// # Errors
    /// [`DeviceError::Write`].
    pub async fn release(self: &Arc<Self>, uid: &str) -> Result<(), DeviceError> {
        self.free(uid);
        if !self.unwritten.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let written = self.write().await;
        if written.is_err() {
            self.unwritten.store(true, Ordering::Relaxed);
        }
        written
    }

    /// The pods that have something.
    #[must_use]
    pub fn uids(&self) -> Vec<String> {
        lock(&self.pool).uids()
    }

    /// Gets a container what it wants and does not have; true where that was something.
    async fn give(&self, uid: &str, container: &api::Container, left: &Left) -> Result<bool, DeviceError> {
        let wants = lock(&self.pool).wants(container);
        let mut changed = false;
        for (resource, needed) in wants {
            let turn = Arc::clone(lock(&self.turns).entry(resource.clone()).or_default());
            let _turn = turn.lock().await;
            let choice = lock(&self.pool).choice(uid, &container.name, &resource, needed, left)?;
            let Some(choice) = choice else { continue };
            let mut plugin = self.plugin(&resource).ok_or_else(|| DeviceError::Unknown(resource.clone()))?;
            let preferred = plugin.preferred(&choice).await?;
            let devices = choice.with(&preferred);
            let begun = Instant::now();
            let answer = plugin.allocate(&devices).await;
            self.metrics.devices_allocated(resource.as_str(), begun.elapsed());
            let held = Held { devices, answer: answer? };
            tracing::info!(uid, container = container.name, %resource, devices = ?held.devices, "devices are given");
            lock(&self.pool).hold(uid, &container.name, resource, held);
            changed = true;
        }
        Ok(changed)
    }

    fn plugin(&self, resource: &Resource) -> Option<Plugin> {
        lock(&self.plugins).get(resource).map(|connected| connected.plugin.clone())
    }

    /// A plugin has registered: it is listened to until it leaves or registers again.
    fn connected(self: &Arc<Self>, resource: Resource, plugin: Plugin) {
        let mut plugins = lock(&self.plugins);
        let number = plugins.get(&resource).map_or(0, |before| before.number + 1);
        let (devices, of, client) = (Arc::clone(self), resource.clone(), plugin.clone());
        let task = tokio::spawn(async move { devices.follow(of, number, client).await }).abort_handle();
        if let Some(before) = plugins.insert(resource, Connected { plugin, number, task }) {
            before.task.abort();
        }
    }

    async fn follow(self: Arc<Self>, resource: Resource, number: u64, mut plugin: Plugin) {
        let ended = async {
            let mut lists = plugin.list().await?;
            let next = |status| PluginError::Refused("", status);
            while let Some(list) = lists.message().await.map_err(next)? {
                let works = list.devices.into_iter().map(|d| (d.id, d.health == "Healthy")).collect();
                self.listed(&resource, number, works).await;
            }
            Ok::<_, PluginError>(())
        };
        let why = ended.await.err().map_or_else(|| "it ended its list".to_owned(), |error| chain(&error));
        tracing::warn!(%resource, why, "a device plugin has left");
        self.change(&resource, number, |pool| pool.left(&resource));
        tokio::time::sleep(self.patience).await;
        self.change(&resource, number, |pool| pool.gone(&resource));
    }

    async fn listed(self: &Arc<Self>, resource: &Resource, number: u64, works: BTreeMap<String, bool>) {
        let mut new = false;
        self.change(resource, number, |pool| new = pool.listed(resource, works));
        if new && let Err(error) = self.write().await {
            tracing::error!(error = chain(&error), %resource, "that a plugin was here is not written down");
        }
    }

    /// Takes what a plugin said or did, unless another has registered in its place.
    fn change(&self, resource: &Resource, number: u64, change: impl FnOnce(&mut Pool)) {
        let plugins = lock(&self.plugins);
        if plugins.get(resource).is_some_and(|connected| connected.number == number) {
            let mut pool = lock(&self.pool);
            change(&mut pool);
            let amounts = pool.amounts();
            drop(pool);
            self.health.send_replace(());
            self.amounts.send_if_modified(|old| std::mem::replace(old, amounts.clone()) != amounts);
        }
    }

    /// Writes down who has which: the latest, whoever else writes meanwhile.
    async fn write(self: &Arc<Self>) -> Result<(), DeviceError> {
        let devices = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || {
            let _writing = lock(&devices.writing);
            let written = lock(&devices.pool).written();
            files::replace_for_good(&devices.file, 0o700, &serde_json::to_vec(&written)?)
        });
        Ok(written.await??)
    }
}

#[cfg(test)]
pub(crate) mod tests;
