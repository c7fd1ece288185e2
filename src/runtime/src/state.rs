//! What the runtime knows: sandboxes and containers in memory, each with its journal entry.
//!
//! An entry changes by `update_*`: memory and journal together, then the waiters are woken.

use crate::cgroup::Cgroups;
use crate::config::Config;
use crate::ids::Id;
use crate::journal::{Journal, JournalError};
use crate::spec::ImageDefaults;
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
    /// Layer directories, bottom → top.
    pub layers: Vec<PathBuf>,
}

/// Where images come from.
pub trait Images: Send + Sync + 'static {
    /// The image of a reference or id, if it is present.
    fn resolve(&self, reference: &str) -> Option<ResolvedImage>;
}

/// A sandbox' journal entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sandbox {
    /// Its CRI configuration, protobuf in hex.
    pub config: String,
    /// ns since the epoch.
    pub created_at: i64,
    /// It stands and was not stopped.
    pub ready: bool,
    /// On the host's network.
    pub host_network: bool,
    /// Its addresses.
    pub ips: Vec<String>,
    /// The cached CNI result; there once ADD was tried, so that DEL is owed.
    pub cni: Option<serde_json::Value>,
    /// Its cgroup.
    pub cgroup: String,
    /// What was recorded.
    pub records: Vec<Record>,
    /// The runtime handler it was asked with.
    pub handler: String,
}

/// Where a container stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Intent only.
    Creating,
    /// runc create succeeded.
    Created,
    /// runc start succeeded.
    Running,
    /// Ended.
    Exited,
}

/// A container's journal entry.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Container {
    /// Its sandbox.
    pub sandbox: Id,
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
    /// Meaningful when exited.
    pub oom_killed: bool,
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
    /// Container events; a slow listener loses the oldest.
    pub events: broadcast::Sender<ContainerEventResponse>,
    /// `runc --version`'s first line.
    pub runc_version: String,
    changed: watch::Sender<u64>,
    maps: Mutex<Maps>,
    sandbox_journal: Journal<Sandbox>,
    container_journal: Journal<Container>,
}

impl Runtime {
    /// Opens the journals and loads what they hold.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(config: Config, images: Arc<dyn Images>, runc_version: String) -> Result<Self, JournalError> {
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
            cgroups: Cgroups::at(std::path::Path::new("/sys/fs/cgroup")),
            events: broadcast::channel(1024).0,
            runc_version,
            changed: watch::channel(0).0,
            maps: Mutex::new(maps),
            sandbox_journal,
            container_journal,
        })
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
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

    /// Every sandbox.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<(Id, Sandbox)> {
        self.maps().sandboxes.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
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

    /// Writes a sandbox' entry, then shows it.
    ///
    /// # Errors
    /// [`JournalError`]; nothing is changed then.
    pub fn put_sandbox(&self, id: &Id, entry: Sandbox) -> Result<(), JournalError> {
        self.sandbox_journal.put(id, &entry)?;
        self.maps().sandboxes.insert(id.clone(), entry);
        Ok(())
    }

    /// Changes a container's entry under the lock, in memory and in the journal; `false` if it is gone.
    ///
    /// # Errors
    /// [`JournalError`]; nothing is changed then.
    pub fn update_container(
        &self,
        id: &Id,
        change: impl FnOnce(&mut Container),
    ) -> Result<bool, JournalError> {
        let mut maps = self.maps();
        let Some(current) = maps.containers.get(id) else { return Ok(false) };
        let mut next = current.clone();
        change(&mut next);
        self.container_journal.put(id, &next)?;
        maps.containers.insert(id.clone(), next);
        drop(maps);
        self.changed.send_modify(|n| *n += 1);
        Ok(true)
    }

    /// Writes a new container's entry, then shows it.
    ///
    /// # Errors
    /// [`JournalError`]; nothing is changed then.
    pub fn put_container(&self, id: &Id, entry: Container) -> Result<(), JournalError> {
        self.container_journal.put(id, &entry)?;
        self.maps().containers.insert(id.clone(), entry);
        Ok(())
    }

    /// Forgets a sandbox.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn forget_sandbox(&self, id: &Id) -> Result<(), JournalError> {
        self.sandbox_journal.forget(id)?;
        self.maps().sandboxes.remove(id);
        Ok(())
    }

    /// Forgets a container.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn forget_container(&self, id: &Id) -> Result<(), JournalError> {
        self.container_journal.forget(id)?;
        self.maps().containers.remove(id);
        self.changed.send_modify(|n| *n += 1);
        Ok(())
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
