//! What pods and containers use: sampled when somebody asks, kept, shown with its age.
//!
//! There is no tick: a node that nobody asks costs nothing. A question takes what is known if it is
//! younger than [`FRESH`]; else it has it read anew, for all pods side by side on blocking threads,
//! and waits for that at most [`PATIENCE`]. What is not there by then (a writable layer on a disk
//! that hangs) is answered with the last sample, whose timestamp tells its age; so a list is never
//! held up by one pod. Of one thing at most one reading is under way, however many ask.
//!
//! [`show`] makes CRI's statistics and [`metrics`] the cAdvisor-named metrics of the same samples.

mod cell;
mod disk;
pub mod metrics;
mod network;
mod processes;
mod service;
mod show;

pub use disk::Disk;
pub use network::Interface;
pub use processes::Processes;
pub use service::{container, containers, sandbox, sandbox_metrics, sandboxes};

use crate::cgroup::usage::Usage;
use crate::cgroup::{Cgroups, usage};
use crate::ids::Id;
use crate::orphan;
use crate::state::{Life, Runtime, Stage};
use cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// How old an answer may be without being read anew. The kubelet asks every 10 s.
pub const FRESH: Duration = Duration::from_secs(1);
/// How long a question waits for what is read anew.
pub const PATIENCE: Duration = Duration::from_millis(500);
/// A writable layer is walked at most this often, and at most a twentieth of the time.
const WALK_EVERY: Duration = Duration::from_secs(10);
const WALK_SHARE: u32 = 20;
/// Pods read, and layers walked, at a time.
const READERS: usize = 4;
const WALKERS: usize = 2;

/// A cgroup's load, and the network of a sandbox.
#[derive(Clone, Debug)]
pub struct Load {
    /// ns since the epoch.
    pub at: i64,
    taken: Instant,
    /// What its cgroup says.
    pub usage: Usage,
    /// Processor time per second since the last sample (the first one: since the start), in ns.
    pub nano_cores: Option<u64>,
    /// A sandbox' interfaces without the loopback; none on the host's network.
    pub network: Vec<Interface>,
}

#[derive(Debug, Default)]
struct Entry {
    load: Cell<Load>,
    disk: Cell<Disk>,
    processes: Cell<Processes>,
}

/// What is known, and who reads it.
#[derive(Debug)]
pub struct Collector {
    root: PathBuf,
    entries: Mutex<BTreeMap<Id, Arc<Entry>>>,
    readers: Semaphore,
    walkers: Semaphore,
}

/// Where a load is read, and since when it runs (ns since the epoch, 0 for not known).
struct Source {
    cgroups: Cgroups,
    cgroup: String,
    netns: Option<PathBuf>,
    since: i64,
    now: i64,
}

impl Source {
    /// Blocks.
    fn read(self, previous: Option<&Load>) -> Load {
        let usage = self.cgroups.usage(&self.cgroup);
        let network = self.netns.map(network::read).unwrap_or_default();
        let taken = Instant::now();
        let rate = |cpu: &usage::Cpu| {
            let window = previous.and_then(|p| Some((p.usage.cpu.as_ref()?.total_ns, taken - p.taken)));
            let lifetime = u64::try_from(self.now - self.since).ok().filter(|_| self.since > 0);
            let (before, window) = window.or_else(|| Some((0, Duration::from_nanos(lifetime?))))?;
            let used = u128::from(cpu.total_ns.checked_sub(before)?);
            u64::try_from(used.saturating_mul(1_000_000_000).checked_div(window.as_nanos())?).ok()
        };
        Load { at: self.now, taken, nano_cores: usage.cpu.as_ref().and_then(rate), usage, network }
    }
}

impl Collector {
    /// A collector for containers whose writable layers are below `root/containers`.
    #[must_use]
    pub fn new(root: PathBuf) -> Self {
        Collector {
            root,
            entries: Mutex::default(),
            readers: Semaphore::new(READERS),
            walkers: Semaphore::new(WALKERS),
        }
    }

    fn entry(&self, id: &Id) -> Arc<Entry> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(entries.entry(id.clone()).or_default())
    }

    fn forget(&self, known: &BTreeSet<Id>) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|id, _| known.contains(id));
    }

    /// Has a load read anew if it is not fresh.
    fn load(self: &Arc<Self>, id: &Id, source: Source) -> Arc<Entry> {
        let entry = self.entry(id);
        let fresh = |l: &Load| l.taken.elapsed() < FRESH;
        if let Some(claim) = entry.load.claim(fresh) {
            let collector = Arc::clone(self);
            drop(tokio::spawn(async move {
                let Ok(_permit) = collector.readers.acquire().await else { return };
                let read = move || claim.settle(|previous| source.read(previous));
                drop(tokio::task::spawn_blocking(read).await);
            }));
        }
        entry
    }

    /// Has a writable layer walked if it was not lately.
    fn disk(self: &Arc<Self>, id: &Id, now: i64) -> Arc<Entry> {
        let entry = self.entry(id);
        let fresh = |d: &Disk| d.taken.elapsed() < WALK_EVERY.max(d.took * WALK_SHARE);
        if let Some(claim) = entry.disk.claim(fresh) {
            let collector = Arc::clone(self);
            let dir = self.root.join("containers").join(id.as_str()).join("upper");
            drop(tokio::spawn(async move {
                let Ok(_permit) = collector.walkers.acquire().await else { return };
                let walk = move || claim.settle(|_| Disk::walk(&dir, now));
                drop(tokio::task::spawn_blocking(walk).await);
            }));
        }
        entry
    }

    /// Has the processes of a container counted if they were not lately.
    fn processes(self: &Arc<Self>, id: &Id, cgroups: Cgroups, cgroup: String, runc: PathBuf) -> Arc<Entry> {
        let entry = self.entry(id);
        let fresh = |p: &Processes| p.taken.elapsed() < FRESH;
        if let Some(claim) = entry.processes.claim(fresh) {
            let (collector, id) = (Arc::clone(self), id.clone());
            drop(tokio::spawn(async move {
                let Ok(_permit) = collector.readers.acquire().await else { return };
                let count = move || {
                    let init = orphan::init(&runc, &id).map(|p| p.pid);
                    claim.settle(|_| Processes::count(&cgroups.processes(&cgroup), init));
                };
                drop(tokio::task::spawn_blocking(count).await);
            }));
        }
        entry
    }

    /// What all writable layers take, as far as it is known by the end of [`PATIENCE`].
    pub async fn written(self: &Arc<Self>, now: i64) -> (u64, u64) {
        let dirs = std::fs::read_dir(self.root.join("containers")).into_iter().flatten().flatten();
        let ids = dirs.filter_map(|d| Id::try_from(d.file_name().to_string_lossy().into_owned()).ok());
        let entries: Vec<Arc<Entry>> = ids.map(|id| self.disk(&id, now)).collect();
        patient(entries.iter().map(|e| e.disk.settled())).await;
        let known = entries.iter().filter_map(|e| e.disk.latest());
        known.fold((0, 0), |(bytes, inodes), d| (bytes + d.bytes, inodes + d.inodes))
    }
}

/// Waits for all, but not for ever.
async fn patient(all: impl IntoIterator<Item = impl Future<Output = ()>>) {
    // What is late is answered with what was known before.
    drop(tokio::time::timeout(PATIENCE, futures::future::join_all(all)).await);
}

/// What to sample.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    /// What CRI's statistics show.
    Statistics,
    /// Processes and descriptors as well.
    Metrics,
}

/// Sees to it that what is known of these sandboxes and containers is fresh, if that can be had
/// soon; gives nothing, for [`Entry`]s are read afterwards.
async fn sample(runtime: &Runtime, sandboxes: &[Id], containers: &[Id], depth: Depth) {
    let collector = &runtime.stats;
    let known = runtime.sandboxes().into_iter().map(|(id, _)| id);
    collector.forget(&known.chain(runtime.containers().into_iter().map(|(id, _)| id)).collect());
    let now = runtime.now_ns();
    let source =
        |cgroup: String, netns, since| Source { cgroups: runtime.cgroups.clone(), cgroup, netns, since, now };
    let (mut loads, mut disks, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    for id in sandboxes {
        let Some(sandbox) = runtime.sandbox(id).filter(|s| s.life == Life::Ready) else { continue };
        let netns = (!sandbox.host_network).then(|| runtime.namespaces(id).join("net"));
        loads.push(collector.load(id, source(sandbox.cgroup, netns, sandbox.created_at)));
    }
    for id in containers {
        let Some(container) = runtime.container(id) else { continue };
        disks.push(collector.disk(id, now));
        if container.stage != Stage::Running {
            continue;
        }
        if depth == Depth::Metrics {
            let runc = runtime.config.state.join("runc");
            let cgroup = container.cgroup.clone();
            counts.push(collector.processes(id, runtime.cgroups.clone(), cgroup, runc));
        }
        loads.push(collector.load(id, source(container.cgroup, None, container.started_at)));
    }
    let loads = async { patient(loads.iter().map(|e| e.load.settled())).await };
    let disks = async { patient(disks.iter().map(|e| e.disk.settled())).await };
    let counts = async { patient(counts.iter().map(|e| e.processes.settled())).await };
    tokio::join!(loads, disks, counts);
}

#[cfg(test)]
mod tests;
