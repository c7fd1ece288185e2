//! One look at what is used: the runtime's sandboxes, the machine and the pods' disk put together.

use super::disk::{Disk, PodDisk, Used};
use super::host::{Host, Usage};
use super::types::{
    Container, Cpu, Fs, Interface, Io, Memory, Network, Node, Pod, PodRef, Processes, Psi, PsiData, Runtime,
    Summary, Swap, Time, Volume,
};
use crate::cgroups::layout::Layout;
use crate::config::Config;
use crate::cri::{CallError, Cri};
use crate::node::machine;
use crate::source::{PodSource, PodView};
use async_trait::async_trait;
use podway_cri::v1;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Two looks that are closer than this make no rate.
const RATE_OVER: i64 = 1_000_000_000;
/// The most series whose last value is kept for a rate.
const SERIES: usize = 4096;

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// The runtime.
    #[error("failed to list pod stats: {0}")]
    Runtime(#[from] CallError),
    /// A step of ours.
    #[error("the machine was not read: a defect of the agent")]
    Broke,
}

/// What the runtime tells of usage.
#[async_trait]
pub trait Source: Send + Sync {
    /// The usage of every sandbox that runs.
    async fn sandbox_stats(&self) -> Result<Vec<v1::PodSandboxStats>, CallError>;
    /// Its own metrics, and what they are called.
    async fn sandbox_metrics(
        &self,
    ) -> Result<(Vec<v1::MetricDescriptor>, Vec<v1::PodSandboxMetrics>), CallError>;
    /// Where images and writable layers lie, and what they take.
    async fn image_fs(&self) -> Result<v1::ImageFsInfoResponse, CallError>;
    /// Every sandbox and every container.
    async fn holding(&self) -> Result<(Vec<v1::PodSandbox>, Vec<v1::Container>), CallError>;
}

#[async_trait]
impl Source for Cri {
    async fn sandbox_stats(&self) -> Result<Vec<v1::PodSandboxStats>, CallError> {
        Cri::sandbox_stats(self).await
    }
    async fn sandbox_metrics(
        &self,
    ) -> Result<(Vec<v1::MetricDescriptor>, Vec<v1::PodSandboxMetrics>), CallError> {
        Cri::sandbox_metrics(self).await
    }
    async fn image_fs(&self) -> Result<v1::ImageFsInfoResponse, CallError> {
        Cri::image_fs(self).await
    }
    async fn holding(&self) -> Result<(Vec<v1::PodSandbox>, Vec<v1::Container>), CallError> {
        Cri::holding(self).await
    }
}

/// Of a series: when it was looked at, its count, and the rate that was found then.
type Counted = (i64, u64, Option<u64>);

/// Where the figures come from.
pub struct Stats {
    source: Arc<dyn Source>,
    node: String,
    host: Host,
    disk: Arc<Disk>,
    root_dir: PathBuf,
    pod_logs_dir: PathBuf,
    rates: Mutex<HashMap<String, Counted>>,
}

impl std::fmt::Debug for Stats {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stats").field("node", &self.node).finish_non_exhaustive()
    }
}

/// What was seen.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// All of it, as it is told.
    pub summary: Summary,
    /// What each pod takes of the disk, by UID; empty when it was not asked for.
    pub disk: HashMap<String, PodDisk>,
}

/// How much is to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Processors and memory only.
    Usage,
    /// The disk as well, as it was counted at most a minute ago.
    Disk,
    /// The disk as well, counted now.
    FreshDisk,
}

impl Stats {
    /// The figures of the node of `config`, whose cgroups are where `layout` has them.
    #[must_use]
    pub fn new(source: Arc<dyn Source>, config: &Config, layout: &Layout) -> Self {
        Stats {
            source,
            node: config.node_name.clone(),
            host: Host::new(Path::new("/"), layout),
            disk: Arc::default(),
            root_dir: config.root_dir.clone(),
            pod_logs_dir: config.pod_logs_dir.clone(),
            rates: Mutex::default(),
        }
    }

    /// The runtime.
    #[must_use]
    pub fn source(&self) -> &dyn Source {
        self.source.as_ref()
    }

    /// Looks.
    ///
    /// # Errors
    /// [`StatsError`].
    pub async fn look(&self, pods: &dyn PodSource, depth: Depth) -> Result<Look, StatsError> {
        self.look_at(pods, depth, |_| None).await
    }

    /// Looks; with a runtime that has no stats over CRI, at the disk alone.
    ///
    /// # Errors
    /// [`StatsError`].
    pub async fn look_anyhow(&self, pods: &dyn PodSource, depth: Depth) -> Result<Look, StatsError> {
        self.look_at(pods, depth, |views| Some(views.values().filter_map(nameless).collect())).await
    }

    async fn look_at(
        &self,
        pods: &dyn PodSource,
        depth: Depth,
        without: impl FnOnce(&HashMap<String, PodView>) -> Option<Vec<v1::PodSandboxStats>>,
    ) -> Result<Look, StatsError> {
        let views: HashMap<String, PodView> = pods
            .pods()
            .into_iter()
            .filter_map(|view| Some((view.object.metadata.uid.clone()?, view)))
            .collect();
        let (sandboxes, images) = tokio::join!(self.source.sandbox_stats(), self.image_fs(depth));
        let sandboxes = match sandboxes {
            Err(error) if error.code == tonic::Code::Unimplemented => {
                without(&views).ok_or(StatsError::Runtime(error))?
            }
            other => other?,
        };
        let (sandboxes, images) = (newest(sandboxes), images?);
        let places = views.iter().map(|(uid, view)| {
            let meta = &view.object.metadata;
            let (ns, name) = (meta.namespace.as_deref(), meta.name.as_deref());
            let logs = format!("{}_{}_{uid}", ns.unwrap_or_default(), name.unwrap_or_default());
            (uid.clone(), self.pod_logs_dir.join(logs), self.root_dir.join("pods").join(uid))
        });
        let places: Vec<_> = if depth == Depth::Usage { Vec::new() } else { places.collect() };
        let (host, disk, root, now) =
            (self.host.clone(), Arc::clone(&self.disk), self.root_dir.clone(), jiff::Timestamp::now());
        let image_dir = images.first().and_then(|fs| Some(PathBuf::from(&fs.fs_id.as_ref()?.mountpoint)));
        // A file system that hangs must not hold up a thread of the executor.
        let read = tokio::task::spawn_blocking(move || {
            let usage = host.read(now);
            let nodefs = machine::fs(&root).ok();
            let imagefs = image_dir.and_then(|dir| machine::fs(&dir).ok());
            let counted = if depth == Depth::Usage {
                HashMap::new()
            } else {
                disk.of(places, depth == Depth::FreshDisk, Instant::now())
            };
            (usage, nodefs, imagefs, counted)
        });
        let (usage, nodefs, imagefs, disk) = read.await.map_err(|_| StatsError::Broke)?;
        let time = Time::seconds(now.as_second());
        let room = Room { time, nodefs, imagefs };
        let node = self.node(usage, &room, &images, depth);
        let mut pods: Vec<Pod> = sandboxes
            .iter()
            .filter_map(|s| {
                self.pod(s, &views, disk.get(&s.attributes.as_ref()?.metadata.as_ref()?.uid), &room)
            })
            .collect();
        pods.sort_by(|a, b| {
            (&a.pod_ref.namespace, &a.pod_ref.name).cmp(&(&b.pod_ref.namespace, &b.pod_ref.name))
        });
        Ok(Look { summary: Summary { node, pods }, disk })
    }

    async fn image_fs(&self, depth: Depth) -> Result<Vec<v1::FilesystemUsage>, CallError> {
        match depth {
            Depth::Usage => Ok(Vec::new()),
            Depth::Disk | Depth::FreshDisk => Ok(self.source.image_fs().await?.image_filesystems),
        }
    }

    /// The rate of a series, as the runtime has it, else since the last look.
    fn rate(&self, series: &str, mut cpu: Cpu) -> Cpu {
        let Some(total) = cpu.usage_core_nano_seconds.filter(|_| cpu.usage_nano_cores.is_none()) else {
            return cpu;
        };
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        if rates.len() >= SERIES {
            rates.clear();
        }
        let entry = rates.entry(series.to_owned()).or_insert((cpu.nanos, total, None));
        let over = cpu.nanos.saturating_sub(entry.0);
        if over >= RATE_OVER {
            // A count that fell is of another container.
            let grown = total.checked_sub(entry.1).map(|grown| u128::from(grown) * 1_000_000_000);
            let rate = grown.and_then(|g| u64::try_from(g / u128::from(over.unsigned_abs())).ok());
            *entry = (cpu.nanos, total, rate);
        }
        cpu.usage_nano_cores = entry.2;
        cpu
    }

    fn node(&self, usage: Usage, room: &Room, images: &[v1::FilesystemUsage], depth: Depth) -> Node {
        let system = usage.system.into_iter().map(|mut c| {
            c.cpu = c.cpu.map(|cpu| self.rate(&format!("/{}", c.name), cpu));
            c
        });
        let image_fs = images.first().map(|fs| Fs {
            used_bytes: value(fs.used_bytes.as_ref()),
            inodes_used: value(fs.inodes_used.as_ref()),
            ..room.of(room.imagefs)
        });
        let fs = room.nodefs.map(|fs| Fs {
            used_bytes: Some(fs.capacity.saturating_sub(fs.available)),
            inodes_used: Some(fs.inodes.saturating_sub(fs.inodes_free)),
            ..room.of(Some(fs))
        });
        Node {
            node_name: self.node.clone(),
            system_containers: system.collect(),
            start_time: usage.booted,
            cpu: usage.cpu.map(|cpu| self.rate("/", cpu)),
            memory: usage.memory,
            network: usage.network,
            fs,
            runtime: (depth != Depth::Usage).then_some(Runtime { image_fs, container_fs: image_fs }),
            rlimit: usage.rlimit,
            swap: usage.swap,
        }
    }

    fn pod(
        &self,
        stats: &v1::PodSandboxStats,
        views: &HashMap<String, PodView>,
        disk: Option<&PodDisk>,
        room: &Room,
    ) -> Option<Pod> {
        let attributes = stats.attributes.as_ref()?;
        let meta = attributes.metadata.as_ref()?;
        // What no object stands for is going: nobody asks for its usage.
        let view = views.get(&meta.uid)?;
        let linux = stats.linux.clone().unwrap_or_default();
        let mut containers: Vec<Container> = Vec::new();
        let mut total = Used::default();
        for c in newest_containers(&linux.containers) {
            let Some(container) = self.container(c, view, disk, room) else { continue };
            for fs in [&container.rootfs, &container.logs].into_iter().flatten() {
                total += Used { bytes: fs.used_bytes.unwrap_or(0), inodes: fs.inodes_used.unwrap_or(0) };
            }
            containers.push(container);
        }
        let mut volumes: Vec<Volume> = Vec::new();
        for (name, (used, local)) in disk.iter().flat_map(|d| &d.volumes) {
            if *local {
                total += *used;
            }
            let fs = Fs {
                used_bytes: Some(used.bytes),
                inodes_used: Some(used.inodes),
                ..room.of(room.nodefs.filter(|_| *local))
            };
            volumes.push(Volume { fs, name: name.clone() });
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        let created = view.object.metadata.creation_timestamp.as_ref();
        Some(Pod {
            pod_ref: PodRef {
                name: meta.name.clone(),
                namespace: meta.namespace.clone(),
                uid: meta.uid.clone(),
            },
            start_time: Time::seconds(created.map_or(0, |t| t.0.as_second())),
            cpu: linux.cpu.as_ref().map(|c| self.rate(&attributes.id, cpu(c))),
            memory: linux.memory.as_ref().map(memory),
            io: linux.io.as_ref().map(io),
            network: linux.network.as_ref().and_then(network),
            process_stats: linux
                .process
                .and_then(|p| Some(Processes { process_count: p.process_count?.value })),
            ephemeral_storage: disk.map(|_| Fs {
                used_bytes: Some(total.bytes),
                inodes_used: Some(total.inodes),
                ..room.of(room.nodefs)
            }),
            swap: sum_swap(&containers),
            containers,
            volumes,
        })
    }

    fn container(
        &self,
        c: &v1::ContainerStats,
        view: &PodView,
        disk: Option<&PodDisk>,
        room: &Room,
    ) -> Option<Container> {
        let attributes = c.attributes.as_ref()?;
        let name = attributes.metadata.as_ref()?.name.clone();
        let status = view.object.status.as_ref();
        let statuses = status.into_iter().flat_map(|s| {
            [&s.container_statuses, &s.init_container_statuses, &s.ephemeral_container_statuses]
        });
        let running = statuses
            .flat_map(|list| list.iter().flatten())
            .filter(|s| s.name == name)
            .find_map(|s| s.state.as_ref()?.running.as_ref()?.started_at.clone());
        let layer = c.writable_layer.as_ref();
        let logs = disk.and_then(|d| d.logs.get(&name));
        Some(Container {
            start_time: Time::seconds(running.map_or(0, |t| t.0.as_second())),
            cpu: c.cpu.as_ref().map(|used| self.rate(&attributes.id, cpu(used))),
            memory: c.memory.as_ref().map(memory),
            io: c.io.as_ref().map(io),
            rootfs: layer.map(|fs| Fs {
                used_bytes: value(fs.used_bytes.as_ref()),
                inodes_used: value(fs.inodes_used.as_ref()),
                ..room.of(room.imagefs)
            }),
            logs: logs.map(|used| Fs {
                used_bytes: Some(used.bytes),
                inodes_used: Some(used.inodes),
                ..room.of(room.nodefs)
            }),
            swap: c.swap.as_ref().map(|s| Swap {
                time: Time::nanos(s.timestamp),
                nanos: s.timestamp,
                swap_available_bytes: value(s.swap_available_bytes.as_ref()),
                swap_usage_bytes: value(s.swap_usage_bytes.as_ref()),
            }),
            name,
        })
    }
}

/// The file systems at one moment.
struct Room {
    time: Time,
    nodefs: Option<machine::Fs>,
    imagefs: Option<machine::Fs>,
}

impl Room {
    fn of(&self, fs: Option<machine::Fs>) -> Fs {
        Fs {
            time: self.time,
            available_bytes: fs.map(|fs| fs.available),
            capacity_bytes: fs.map(|fs| fs.capacity),
            inodes_free: fs.map(|fs| fs.inodes_free),
            inodes: fs.map(|fs| fs.inodes),
            ..Fs::default()
        }
    }
}

/// A pod of which the runtime tells nothing.
fn nameless(view: &PodView) -> Option<v1::PodSandboxStats> {
    let meta = &view.object.metadata;
    let metadata = v1::PodSandboxMetadata {
        name: meta.name.clone()?,
        namespace: meta.namespace.clone()?,
        uid: meta.uid.clone()?,
        attempt: 0,
    };
    let attributes = v1::PodSandboxAttributes { metadata: Some(metadata), ..Default::default() };
    Some(v1::PodSandboxStats { attributes: Some(attributes), ..Default::default() })
}

/// Of each pod the newest sandbox.
fn newest(all: Vec<v1::PodSandboxStats>) -> Vec<v1::PodSandboxStats> {
    let mut found: HashMap<String, (u32, v1::PodSandboxStats)> = HashMap::new();
    for stats in all {
        let Some(meta) = stats.attributes.as_ref().and_then(|a| a.metadata.clone()) else { continue };
        match found.get(&meta.uid) {
            Some((attempt, _)) if *attempt >= meta.attempt => {}
            _ => drop(found.insert(meta.uid, (meta.attempt, stats))),
        }
    }
    found.into_values().map(|(_, stats)| stats).collect()
}

/// Of each container the newest instance, by name.
fn newest_containers(all: &[v1::ContainerStats]) -> Vec<&v1::ContainerStats> {
    let mut found: std::collections::BTreeMap<&str, (u32, &v1::ContainerStats)> = Default::default();
    for stats in all {
        let Some(meta) = stats.attributes.as_ref().and_then(|a| a.metadata.as_ref()) else { continue };
        match found.get(meta.name.as_str()) {
            Some((attempt, _)) if *attempt >= meta.attempt => {}
            _ => drop(found.insert(&meta.name, (meta.attempt, stats))),
        }
    }
    found.into_values().map(|(_, stats)| stats).collect()
}

fn value(v: Option<&v1::UInt64Value>) -> Option<u64> {
    v.map(|v| v.value)
}

fn psi(p: &v1::PsiStats) -> Psi {
    let line = |d: Option<&v1::PsiData>| {
        d.map_or_else(PsiData::default, |d| PsiData {
            total: d.total,
            avg10: d.avg10,
            avg60: d.avg60,
            avg300: d.avg300,
        })
    };
    Psi { full: line(p.full.as_ref()), some: line(p.some.as_ref()) }
}

fn cpu(c: &v1::CpuUsage) -> Cpu {
    Cpu {
        time: Time::nanos(c.timestamp),
        nanos: c.timestamp,
        usage_nano_cores: value(c.usage_nano_cores.as_ref()),
        usage_core_nano_seconds: value(c.usage_core_nano_seconds.as_ref()),
        psi: c.psi.as_ref().map(psi),
    }
}

fn memory(m: &v1::MemoryUsage) -> Memory {
    Memory {
        time: Time::nanos(m.timestamp),
        nanos: m.timestamp,
        available_bytes: value(m.available_bytes.as_ref()),
        usage_bytes: value(m.usage_bytes.as_ref()),
        working_set_bytes: value(m.working_set_bytes.as_ref()),
        rss_bytes: value(m.rss_bytes.as_ref()),
        page_faults: value(m.page_faults.as_ref()),
        major_page_faults: value(m.major_page_faults.as_ref()),
        psi: m.psi.as_ref().map(psi),
    }
}

fn io(i: &v1::IoUsage) -> Io {
    Io { time: Time::nanos(i.timestamp), psi: i.psi.as_ref().map(psi) }
}

fn network(n: &v1::NetworkUsage) -> Option<Network> {
    let of = |i: &v1::NetworkInterfaceUsage| Interface {
        name: i.name.clone(),
        rx_bytes: value(i.rx_bytes.as_ref()),
        rx_errors: value(i.rx_errors.as_ref()),
        tx_bytes: value(i.tx_bytes.as_ref()),
        tx_errors: value(i.tx_errors.as_ref()),
    };
    let default = n.default_interface.as_ref().map(of)?;
    let mut interfaces = vec![default.clone()];
    interfaces.extend(n.interfaces.iter().map(of));
    Some(Network { time: Time::nanos(n.timestamp), default, interfaces })
}

fn sum_swap(containers: &[Container]) -> Option<Swap> {
    let all: Vec<Swap> = containers.iter().filter_map(|c| c.swap).collect();
    let first = *all.first()?;
    let used = all.iter().filter_map(|s| s.swap_usage_bytes).sum();
    Some(Swap { swap_available_bytes: None, swap_usage_bytes: Some(used), ..first })
}

/// How long a look may take before it is given up: a runtime that hangs must not pile up requests.
pub const PATIENCE: Duration = Duration::from_secs(30);
