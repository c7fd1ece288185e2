//! The metrics of ListPodSandboxMetrics: cAdvisor's names, so that dashboards of a stock node work.
//!
//! [`families::FAMILIES`] is the one table: a family's descriptor and where its values come from
//! stand in one line, so none can be described and forgotten. A value that the kernel does not give
//! (stalls on cgroup v1) is left out, not shown as 0. Values are whole numbers in CRI: seconds lose
//! their fraction, as they do with containerd and CRI-O.

mod families;

use super::{Disk, Interface, Load, Processes};
use crate::cgroup::usage::{Cpu, Device, Memory, Pressure, Usage};
use crate::ids::Id;
use crate::state::{Container, Sandbox};
use crate::status;
use families::FAMILIES;
use podway_cri::v1::{self, MetricType};
use std::path::Path;
use std::sync::Arc;

/// cAdvisor's labels as the kubelet sets them (pkg/kubelet/server, containerPrometheusLabelsFunc).
const LABELS: [&str; 6] = ["id", "name", "image", "namespace", "pod", "container"];

/// A family: what it is called and where its values come from.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    values: Values,
}

type OfUsage = fn(&Usage) -> Option<&Pressure>;

/// Where a family's values come from, and so which labels it has besides [`LABELS`].
enum Values {
    /// One.
    Cpu(fn(&Cpu) -> Option<u64>),
    /// One, for all processors together: `cpu="total"`.
    TotalCpu(fn(&Cpu) -> u64),
    /// One.
    Memory(fn(&Memory) -> Option<u64>),
    /// By `failure_type` and `scope`.
    Faults,
    /// One.
    Stall(OfUsage, fn(&Pressure) -> u64),
    /// By `device`.
    Devices(fn(&Device) -> u64),
    /// By `device`, `major`, `minor`, `operation`.
    DeviceUsage,
    /// By `device`, of the writable layer.
    Layer(fn(&Disk) -> u64),
    /// By `device`, of the file system under it.
    Filesystem(fn(&Filesystem) -> u64),
    /// By `pagesize`.
    Pages(fn(&crate::cgroup::usage::Hugetlb) -> Option<u64>),
    /// One.
    Processes(fn(&Processes) -> u64),
    /// One.
    Threads(fn(&crate::cgroup::usage::Pids) -> u64),
    /// By `ulimit`.
    Ulimits,
    /// By `interface`, of the sandbox.
    Network(fn(&Interface) -> u64),
    /// One: when it was started, in s.
    Started,
    /// One: when it was looked at, in s.
    Seen,
}

impl Values {
    fn labels(&self) -> &'static [&'static str] {
        match self {
            Values::TotalCpu(_) => &["cpu"],
            Values::Faults => &["failure_type", "scope"],
            Values::Devices(_) | Values::Layer(_) | Values::Filesystem(_) => &["device"],
            Values::DeviceUsage => &["device", "major", "minor", "operation"],
            Values::Pages(_) => &["pagesize"],
            Values::Ulimits => &["ulimit"],
            Values::Network(_) => &["interface"],
            _ => &[],
        }
    }
}

/// The file system that the writable layers are on.
#[derive(Clone, Debug)]
pub(super) struct Filesystem {
    device: String,
    bytes: u64,
    inodes: u64,
    inodes_free: u64,
}

impl Filesystem {
    pub(super) fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt as _;
        let stat = rustix::fs::statvfs(path).ok()?;
        let dev = std::fs::metadata(path).ok()?.dev();
        Some(Filesystem {
            device: device_name(rustix::fs::major(dev), rustix::fs::minor(dev)),
            bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
            inodes: stat.f_files,
            inodes_free: stat.f_ffree,
        })
    }
}

/// `/dev/<name>` of a block device, as cAdvisor shows it; its number where it has no name.
fn device_name(major: u32, minor: u32) -> String {
    let text = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("DEVNAME="));
    name.map_or_else(|| format!("{major}:{minor}"), |n| format!("/dev/{n}"))
}

/// What is known of a container.
pub(super) struct Samples<'a> {
    pub(super) load: Option<Arc<Load>>,
    pub(super) disk: Option<Arc<Disk>>,
    pub(super) processes: Option<Arc<Processes>>,
    pub(super) filesystem: Option<&'a Filesystem>,
}

/// A value with its labels besides [`LABELS`].
type Value = (Vec<String>, u64);

fn one(value: Option<u64>) -> Vec<Value> {
    value.map(|v| (Vec::new(), v)).into_iter().collect()
}

fn by_device(usage: &Usage, value: impl Fn(&Device) -> u64) -> Vec<Value> {
    usage.devices.iter().map(|d| (vec![device_name(d.major, d.minor)], value(d))).collect()
}

fn device_usage(usage: &Usage) -> Vec<Value> {
    let of = |d: &Device| {
        let labels = |operation: &str| {
            vec![
                device_name(d.major, d.minor),
                d.major.to_string(),
                d.minor.to_string(),
                operation.to_owned(),
            ]
        };
        [("Read", d.read), ("Write", d.write), ("Discard", d.discard)]
            .map(|(name, t)| (labels(name), t.bytes))
    };
    usage.devices.iter().flat_map(of).collect()
}

fn faults(memory: &Memory) -> Vec<Value> {
    // A container's cgroup has none below it that would make the two scopes differ.
    let of =
        |kind: &str, n| ["container", "hierarchy"].map(|scope| (vec![kind.to_owned(), scope.to_owned()], n));
    let all = [of("pgfault", memory.faults), of("pgmajfault", memory.major_faults)];
    all.into_iter().flatten().collect()
}

/// A family's values of a container, and when they were read (ns since the epoch).
fn values(family: &Family, entry: &Container, samples: &Samples<'_>) -> Option<(i64, Vec<Value>)> {
    let load = samples.load.as_ref()?;
    let usage = &load.usage;
    let values = match &family.values {
        Values::Cpu(of) => one(of(usage.cpu.as_ref()?)),
        Values::TotalCpu(of) => vec![(vec!["total".to_owned()], of(usage.cpu.as_ref()?))],
        Values::Memory(of) => one(of(usage.memory.as_ref()?)),
        Values::Faults => faults(usage.memory.as_ref()?),
        Values::Stall(which, of) => one(which(usage).map(of)),
        Values::Devices(of) => by_device(usage, of),
        Values::DeviceUsage => device_usage(usage),
        Values::Layer(of) => {
            let disk = samples.disk.as_ref()?;
            let device = samples.filesystem.map(|f| f.device.clone()).unwrap_or_default();
            return Some((disk.at, vec![(vec![device], of(disk))]));
        }
        Values::Filesystem(of) => {
            let filesystem = samples.filesystem?;
            vec![(vec![filesystem.device.clone()], of(filesystem))]
        }
        Values::Pages(of) => {
            let pages = usage.hugetlb.iter();
            pages.filter_map(|h| Some((vec![h.page_size.clone()], of(h)?))).collect()
        }
        Values::Processes(of) => one(Some(of(samples.processes.as_ref()?))),
        Values::Threads(of) => one(usage.pids.as_ref().map(of)),
        Values::Ulimits => {
            let files = samples.processes.as_ref()?.max_open_files?;
            vec![(vec!["max_open_files".to_owned()], files)]
        }
        Values::Network(_) => return None, // the sandbox'
        Values::Started => one(u64::try_from(entry.started_at / 1_000_000_000).ok()),
        Values::Seen => one(u64::try_from(load.at / 1_000_000_000).ok()),
    };
    Some((load.at, values))
}

fn metric(family: &Family, base: &[String; 6], at: i64, (labels, value): Value) -> v1::Metric {
    v1::Metric {
        name: family.name.to_owned(),
        timestamp: at,
        metric_type: family.kind as i32,
        label_values: base.iter().cloned().chain(labels).collect(),
        value: Some(v1::UInt64Value { value }),
    }
}

/// The metrics of a running container.
pub(super) fn container(
    pod: &v1::PodSandboxMetadata,
    id: &Id,
    entry: &Container,
    samples: &Samples<'_>,
) -> v1::ContainerMetrics {
    let status = status::container_status(id, entry);
    let base = [
        entry.cgroup.clone(),
        id.to_string(),
        status.image.unwrap_or_default().image,
        pod.namespace.clone(),
        pod.name.clone(),
        status.metadata.unwrap_or_default().name,
    ];
    let metrics = FAMILIES.iter().filter_map(|family| {
        let (at, values) = values(family, entry, samples)?;
        Some(values.into_iter().map(|v| metric(family, &base, at, v)).collect::<Vec<_>>())
    });
    v1::ContainerMetrics { container_id: id.to_string(), metrics: metrics.flatten().collect() }
}

/// The metrics of a sandbox: its network. `POD` is the container that others have for it.
pub(super) fn sandbox(
    pod: &v1::PodSandboxMetadata,
    id: &Id,
    entry: &Sandbox,
    load: &Load,
) -> Vec<v1::Metric> {
    let (namespace, name) = (pod.namespace.clone(), pod.name.clone());
    let base = [entry.cgroup.clone(), id.to_string(), String::new(), namespace, name, "POD".to_owned()];
    let mut metrics = Vec::new();
    for family in FAMILIES {
        if let Values::Network(of) = &family.values {
            let values = load.network.iter().map(|i| (vec![i.name.clone()], of(i)));
            metrics.extend(values.map(|v| metric(family, &base, load.at, v)));
        }
    }
    metrics
}

/// The descriptors of all metrics.
#[must_use]
pub fn descriptors() -> Vec<v1::MetricDescriptor> {
    let descriptor = |f: &Family| v1::MetricDescriptor {
        name: f.name.to_owned(),
        help: f.help.to_owned(),
        label_keys: LABELS.iter().chain(f.values.labels()).map(|l| (*l).to_owned()).collect(),
    };
    FAMILIES.iter().map(descriptor).collect()
}
