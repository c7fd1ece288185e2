//! What the runtime knows: sandboxes and containers in memory, each with its journal entry.
//!
//! An entry changes by `update_*`: memory and journal together, then the waiters are woken.

use crate::cgroup::Cgroups;
use crate::cgroup::driver::Units;
use crate::cgroup::home::Home;
use crate::cni::Network;
use crate::config::Config;
use crate::error::OpError;
use crate::features::Features;
use crate::handlers::{Handler, Handlers};
use crate::ids::Id;
use crate::journal::{Journal, JournalError};
use crate::locks::Locks;
use crate::metrics::Metrics;
use crate::names::{Name, Names};
use crate::rootfs::Layer;
use crate::spec::ImageDefaults;
use crate::stats::Collector;
use podway_cri::v1::ContainerEventResponse;
use podway_flow::{Clock, Record};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{broadcast, watch};

/// An image as containers need it.
#[derive(Clone, Debug, Default)]
pub struct ResolvedImage {
    /// Its id (config digest).
    pub id: String,
    /// What it says of the process.
    pub defaults: ImageDefaults,
    /// Its STOPSIGNAL, or empty.
    pub stop_signal: String,
    /// Layers, bottom → top.
    pub layers: Vec<Layer>,
}

/// Keeps what it was made for while it lives.
pub type Pin = Box<dyn std::any::Any + Send + Sync>;

/// Where images come from.
pub trait Images: Send + Sync + 'static {
    /// The image of a reference or id, if it is present.
    fn resolve(&self, reference: &str) -> Option<ResolvedImage>;
    /// Keeps the image's layers on disk while the pin lives; `None` if one is gone.
    fn pin(&self, layers: &[Layer]) -> Option<Pin>;
    /// Deletes the layers that neither an image nor a pin names.
    ///
    /// # Errors
    /// In words; it is tried again at the next start.
    fn collect(&self) -> Result<(), String>;
}

/// Where a sandbox stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Life {
    /// Intent only: whatever was made of it is undone after a crash.
    Creating,
    /// It stands.
    Ready,
    /// Being stopped, or stopped.
    Stopped,
}

/// A network that was asked for: DEL is owed, whatever became of the ADD.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Attached {
    /// What ADD was given.
    pub network: Network,
    /// What ADD answered; `None` if that was never heard.
    pub result: Option<serde_json::Value>,
}

/// A sandbox' journal entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sandbox {
    /// What it is asked for by.
    pub name: Name,
    /// Its CRI configuration, protobuf in hex.
    pub config: String,
    /// ns since the epoch.
    pub created_at: i64,
    /// Where it stands.
    pub life: Life,
    /// On the host's network.
    pub host_network: bool,
    /// Its addresses.
    pub ips: Vec<String>,
    /// Its network.
    pub attached: Option<Attached>,
    /// Its cgroup.
    pub cgroup: String,
    /// What was recorded, failed attempts included.
    pub records: Vec<Record>,
    /// The runtime handler it was asked with.
    pub handler: String,
}

/// Where a container stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Intent only.
    Creating,
    /// Its files stand; runc does not know it yet, or a start broke off before `runc start`.
    Created,
    /// runc start succeeded.
    Running,
    /// Ended.
    Exited,
}

/// A container's journal entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Container {
    /// What it is asked for by.
    pub name: Name,
    /// Its sandbox.
    pub sandbox: Id,
    /// Its cgroup.
    pub cgroup: String,
    /// The layers that its root filesystem stands on.
    pub layers: Vec<Layer>,
    /// The layers of its image volumes.
    #[serde(default)]
    pub volumes: Vec<Layer>,
    /// Its CRI configuration, protobuf in hex.
    pub config: String,
    /// Where it stands.
    pub stage: Stage,
    /// ns since the epoch; 0 for not yet.
    pub created_at: i64,
    /// As `created_at`.
    pub started_at: i64,
    /// As `created_at`.
    pub finished_at: i64,
    /// Meaningful when exited.
    pub exit_code: i32,
    /// Who its first process runs as; nobody knows of an entry of an older version.
    #[serde(default)]
    pub user: Option<crate::spec::user::User>,
    /// Meaningful when exited.
    pub oom_killed: bool,
    /// The unfinished archive of a checkpoint under way: the container may be frozen for it.
    #[serde(default)]
    pub checkpoint: Option<PathBuf>,
    /// Why runc did not create or start it.
    #[serde(default)]
    pub refusal: Option<String>,
    /// The image's id.
    pub image_id: String,
    /// The signal that Stop sends first.
    pub stop_signal: u8,
    /// The CRI log, absolute; empty for none.
    pub log_path: String,
    /// What was recorded.
    pub records: Vec<Record>,
}

#[derive(Debug, Default)]
struct Maps {
    sandboxes: BTreeMap<Id, Sandbox>,
    containers: BTreeMap<Id, Container>,
}

/// The runtime's state, shared by all calls.
pub struct Runtime {
    /// Its configuration.
    pub config: Config,
    /// Where images come from.
    pub images: Arc<dyn Images>,
    /// The process' clock.
    pub clock: Clock,
    /// The cgroup tree.
    pub cgroups: Cgroups,
    /// Where in it the monitors live.
    pub home: Home,
    /// Those of its cgroups that systemd has.
    pub units: Units,
    /// Container events; a slow listener loses the oldest.
    pub events: broadcast::Sender<ContainerEventResponse>,
    /// The OCI runtimes.
    pub handlers: Handlers,
    /// What the machine can do.
    pub features: Features,
    /// What it counts.
    pub metrics: Arc<Metrics>,
    /// What is known of the use of resources.
    pub stats: Arc<Collector>,
    /// What is being made.
    pub names: Names,
    /// One lock per sandbox and container.
    pub locks: Locks,
    /// One more per sandbox, for its monitor.
    pub monitors: Locks,
    pins: Mutex<BTreeMap<Id, Pin>>,
    /// By pod uid: records of attempts that left no sandbox.
    failed: Mutex<BTreeMap<String, Vec<Record>>>,
    changed: watch::Sender<u64>,
    maps: Mutex<Maps>,
    /// Held over read, journal and show of an entry; readers never wait for a disk.
    writing: [Mutex<()>; 16],
    sandbox_journal: Journal<Sandbox>,
    container_journal: Journal<Container>,
}

/// containerd's word for a handler that is not there.
#[must_use]
pub fn unknown(handler: &str) -> String {
    format!("no runtime for {handler:?} is configured: give it a path in [runtimes.{handler}]")
}

/// Pods, and records per pod, of which failed attempts are remembered.
const FAILED_LIMIT: usize = 64;

impl Runtime {
    /// Opens the journals and loads what they hold.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(
        config: Config,
        images: Arc<dyn Images>,
        (cgroups, home, units): (Cgroups, Home, Units),
        (handlers, features): (Handlers, Features),
        (metrics, stats): (Arc<Metrics>, Arc<Collector>),
    ) -> Result<Self, JournalError> {
        let sandbox_journal: Journal<Sandbox> = Journal::open(config.root.join("journal/sandboxes"))?;
        let container_journal: Journal<Container> = Journal::open(config.root.join("journal/containers"))?;
        let (sandboxes, lost) = sandbox_journal.load_all()?;
        let (containers, more_lost) = container_journal.load_all()?;
        for path in lost.into_iter().chain(more_lost) {
            tracing::error!(path = %path.display(), "a journal entry cannot be read; it is left in place");
        }
        let maps =
            Maps { sandboxes: sandboxes.into_iter().collect(), containers: containers.into_iter().collect() };
        Ok(Runtime {
            config,
            images,
            clock: Clock::new(),
            cgroups,
            home,
            units,
            events: broadcast::channel(1024).0,
            handlers,
            features,
            metrics,
            stats,
            names: Names::default(),
            locks: Locks::default(),
            monitors: Locks::default(),
            pins: Mutex::default(),
            failed: Mutex::default(),
            changed: watch::channel(0).0,
            maps: Mutex::new(maps),
            writing: std::array::from_fn(|_| Mutex::new(())),
            sandbox_journal,
            container_journal,
        })
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self, id: &Id) -> MutexGuard<'_, ()> {
        let shard = id.as_str().bytes().next().and_then(|b| char::from(b).to_digit(16)).unwrap_or(0);
        self.writing[shard as usize % self.writing.len()].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// ns since the epoch.
    #[must_use]
    pub fn now_ns(&self) -> i64 {
        self.clock.now().0.saturating_mul(1000)
    }

    /// A sandbox.
    #[must_use]
    pub fn sandbox(&self, id: &Id) -> Option<Sandbox> {
        self.maps().sandboxes.get(id).cloned()
    }

    /// A sandbox that has to be there.
    ///
    /// # Errors
    /// [`OpError::NotFound`].
    pub fn known_sandbox(&self, id: &Id) -> Result<Sandbox, OpError> {
        self.sandbox(id).ok_or_else(|| OpError::NotFound("sandbox", id.to_string()))
    }

    /// A container that has to be there.
    ///
    /// # Errors
    /// [`OpError::NotFound`].
    pub fn known_container(&self, id: &Id) -> Result<Container, OpError> {
        self.container(id).ok_or_else(|| OpError::NotFound("container", id.to_string()))
    }

    /// The OCI runtime of a sandbox.
    ///
    /// # Errors
    /// [`OpError::Precondition`] where it is in the configuration no more.
    pub fn oci(&self, sandbox: &Id) -> Result<&Handler, OpError> {
        let name = self.sandbox(sandbox).map(|s| s.handler).unwrap_or_default();
        self.handlers.get(&name).ok_or_else(|| OpError::Precondition(unknown(&name)))
    }

    /// Every sandbox.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<(Id, Sandbox)> {
        self.maps().sandboxes.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    /// The sandbox of a name.
    #[must_use]
    pub fn sandbox_named(&self, name: &Name) -> Option<(Id, Sandbox)> {
        self.maps().sandboxes.iter().find(|(_, s)| s.name == *name).map(|(k, v)| (k.clone(), v.clone()))
    }

    /// A container.
    #[must_use]
    pub fn container(&self, id: &Id) -> Option<Container> {
        self.maps().containers.get(id).cloned()
    }

    /// Every container.
    #[must_use]
    pub fn containers(&self) -> Vec<(Id, Container)> {
        self.maps().containers.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    /// The container of a name.
    #[must_use]
    pub fn container_named(&self, name: &Name) -> Option<(Id, Container)> {
        self.maps().containers.iter().find(|(_, c)| c.name == *name).map(|(k, v)| (k.clone(), v.clone()))
    }

    /// The containers of a sandbox.
    #[must_use]
    pub fn containers_of(&self, sandbox: &Id) -> Vec<(Id, Container)> {
        let maps = self.maps();
        let of = maps.containers.iter().filter(|(_, c)| c.sandbox == *sandbox);
        of.map(|(k, v)| (k.clone(), v.clone())).collect()
    }

    /// Writes a new sandbox' entry, then shows it. Blocks.
    ///
    /// # Errors
    /// [`JournalError`]; nothing is changed then.
    pub fn put_sandbox(&self, id: &Id, entry: Sandbox) -> Result<(), JournalError> {
        let _writing = self.writing(id);
        self.sandbox_journal.put(id, &entry)?;
        self.maps().sandboxes.insert(id.clone(), entry);
        Ok(())
    }

    /// Changes a sandbox' entry, in the journal and then in memory; `false` if it is gone. Blocks.
    ///
    /// # Errors
    /// [`JournalError`]; nothing is changed then.
    pub fn update_sandbox(&self, id: &Id, change: impl FnOnce(&mut Sandbox)) -> Result<bool, JournalError> {
        let _writing = self.writing(id);
        let Some(mut entry) = self.sandbox(id) else { return Ok(false) };
        change(&mut entry);
        let excess = entry.records.len().saturating_sub(FAILED_LIMIT);
        entry.records.drain(..excess);
        self.sandbox_journal.put(id, &entry)?;
        self.maps().sandboxes.insert(id.clone(), entry);
        Ok(true)
    }

    /// As [`Runtime::update_sandbox`] for what is being undone: it goes on even if it cannot be
    /// journalled, for a full disk must not keep what would make room. After a crash it is undone once
    /// more. Blocks.
    pub fn note_sandbox(&self, id: &Id, change: impl FnOnce(&mut Sandbox)) {
        let _writing = self.writing(id);
        let Some(mut entry) = self.sandbox(id) else { return };
        change(&mut entry);
        if let Err(error) = self.sandbox_journal.put(id, &entry) {
            tracing::error!(sandbox = %id, error = crate::image::pull::chain(&error), "a stop was not journalled");
        }
        self.maps().sandboxes.insert(id.clone(), entry);
    }

    /// Writes a new container's entry, then shows it. Blocks.
    ///
    /// # Errors
    /// [`JournalError`]; nothing is changed then.
    pub fn put_container(&self, id: &Id, entry: Container) -> Result<(), JournalError> {
        let _writing = self.writing(id);
        self.container_journal.put(id, &entry)?;
        self.maps().containers.insert(id.clone(), entry);
        Ok(())
    }

    /// As [`Runtime::update_sandbox`]; who waits for the container is woken.
    ///
    /// # Errors
    /// [`JournalError`]; nothing is changed then.
    pub fn update_container(
        &self,
        id: &Id,
        change: impl FnOnce(&mut Container),
    ) -> Result<bool, JournalError> {
        let writing = self.writing(id);
        let Some(mut entry) = self.container(id) else { return Ok(false) };
        change(&mut entry);
        self.container_journal.put(id, &entry)?;
        self.maps().containers.insert(id.clone(), entry);
        drop(writing);
        self.changed.send_modify(|n| *n += 1);
        Ok(true)
    }

    /// As [`Runtime::update_container`], but what happened is shown even if it cannot be journalled
    /// (a full disk): an exit is a fact, and its own record is on disk already. Blocks.
    pub fn note_container(&self, id: &Id, change: impl FnOnce(&mut Container)) {
        let writing = self.writing(id);
        let Some(mut entry) = self.container(id) else { return };
        change(&mut entry);
        if let Err(error) = self.container_journal.put(id, &entry) {
            tracing::error!(container = %id, error = crate::image::pull::chain(&error), "an end was not journalled");
        }
        self.maps().containers.insert(id.clone(), entry);
        drop(writing);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Forgets a sandbox. Blocks.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn forget_sandbox(&self, id: &Id) -> Result<(), JournalError> {
        let _writing = self.writing(id);
        self.sandbox_journal.forget(id)?;
        self.maps().sandboxes.remove(id);
        Ok(())
    }

    /// Forgets a container and its pin. Blocks.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn forget_container(&self, id: &Id) -> Result<(), JournalError> {
        let writing = self.writing(id);
        self.container_journal.forget(id)?;
        self.maps().containers.remove(id);
        drop(writing);
        let pin = self.pins.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        drop(pin);
        self.changed.send_modify(|n| *n += 1);
        Ok(())
    }

    /// Keeps a container's layers until it is forgotten; `false` if one is gone.
    #[must_use]
    pub fn pin(&self, id: &Id, layers: &[Layer]) -> bool {
        let Some(pin) = self.images.pin(layers) else { return false };
        self.pins.lock().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), pin);
        true
    }

    /// Remembers what an attempt recorded that left no sandbox, for the pod's next one.
    pub fn remember_failed(&self, uid: &str, records: &[Record]) {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if failed.len() >= FAILED_LIMIT && !failed.contains_key(uid) {
            failed.pop_first();
        }
        let kept = failed.entry(uid.to_owned()).or_default();
        kept.extend(records.iter().cloned());
        let excess = kept.len().saturating_sub(FAILED_LIMIT / 2);
        kept.drain(..excess);
    }

    /// What [`Runtime::remember_failed`] kept of a pod.
    #[must_use]
    pub fn take_failed(&self, uid: &str) -> Vec<Record> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).remove(uid).unwrap_or_default()
    }

    /// Waits until the container has exited or is gone.
    pub async fn exited(&self, id: &Id) {
        let mut changed = self.changed.subscribe();
        while self.container(id).is_some_and(|c| c.stage != Stage::Exited) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Where a sandbox' namespaces are pinned.
    #[must_use]
    pub fn namespaces(&self, id: &Id) -> PathBuf {
        self.config.state.join("ns").join(id.as_str())
    }

    /// A sandbox' volatile directory.
    #[must_use]
    pub fn sandbox_dir(&self, id: &Id) -> PathBuf {
        self.config.state.join("sandboxes").join(id.as_str())
    }

    /// A sandbox' monitor socket; short, because a socket's path has at most 107 bytes.
    #[must_use]
    pub fn monitor_socket(&self, id: &Id) -> PathBuf {
        self.config.state.join("m").join(id.short())
    }

    /// A container's bundle.
    #[must_use]
    pub fn bundle(&self, id: &Id) -> PathBuf {
        self.config.state.join("bundles").join(id.as_str())
    }

    /// A container's lasting directory: writable layer and exit record.
    #[must_use]
    pub fn container_dir(&self, id: &Id) -> PathBuf {
        self.config.root.join("containers").join(id.as_str())
    }
}
