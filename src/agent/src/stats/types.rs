//! The answer to `/stats/summary` (`k8s.io/kubelet/pkg/apis/stats/v1alpha1`), the fields that a Linux
//! node has. What is not known is left out, never 0.

use serde::Serialize;

/// `metav1.Time`: to the second; null when it is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Time(pub Option<jiff::Timestamp>);

impl Time {
    /// From nanoseconds since 1970, as CRI has times; 0 is not known.
    #[must_use]
    pub fn nanos(at: i64) -> Self {
        Time::seconds(at / 1_000_000_000)
    }

    /// From seconds since 1970; 0 is not known.
    #[must_use]
    pub fn seconds(at: i64) -> Self {
        Time((at > 0).then(|| jiff::Timestamp::from_second(at).unwrap_or_default()))
    }
}

/// All of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// The node.
    pub node: Node,
    /// Its pods.
    pub pods: Vec<Pod>,
}

/// The node's usage.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Node {
    /// Its name.
    pub node_name: String,
    /// Daemons outside of pods, and all pods together.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub system_containers: Vec<Container>,
    /// When it was booted.
    pub start_time: Time,
    /// Processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// Its interfaces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// The file system of pods' volumes and logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fs: Option<Fs>,
    /// Those of the runtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<Runtime>,
    /// Tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rlimit: Option<Rlimit>,
    /// Swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<Swap>,
}

/// The runtime's file systems.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Runtime {
    /// Of images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_fs: Option<Fs>,
    /// Of writable layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container_fs: Option<Fs>,
}

/// Tasks of the node.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Rlimit {
    /// When.
    pub time: Time,
    /// How many there may be.
    pub maxpid: u64,
    /// How many there are.
    pub curproc: u64,
}

/// A pod's usage.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// Which pod.
    pub pod_ref: PodRef,
    /// When it was made.
    pub start_time: Time,
    /// Its containers.
    pub containers: Vec<Container>,
    /// Processors, of all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Memory, of all of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// I/O pressure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<Io>,
    /// Its interfaces; none in the host's network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// Its volumes.
    #[serde(rename = "volume", skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// What it takes of the node's disk.
    #[serde(rename = "ephemeral-storage", skip_serializing_if = "Option::is_none")]
    pub ephemeral_storage: Option<Fs>,
    /// Its processes.
    #[serde(rename = "process_stats", skip_serializing_if = "Option::is_none")]
    pub process_stats: Option<Processes>,
    /// Swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<Swap>,
}

/// A pod's name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PodRef {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its UID.
    pub uid: String,
}

/// Processes.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Processes {
    /// How many.
    pub process_count: u64,
}

/// A container's usage.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// Its name.
    pub name: String,
    /// When it was started.
    pub start_time: Time,
    /// Processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Cpu>,
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// I/O pressure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io: Option<Io>,
    /// Its writable layer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rootfs: Option<Fs>,
    /// Its logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logs: Option<Fs>,
    /// Swap.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<Swap>,
}

/// Processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    /// When.
    pub time: Time,
    /// The same in nanoseconds, for metrics.
    #[serde(skip)]
    pub nanos: i64,
    /// Now, over the last while.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_nano_cores: Option<u64>,
    /// All in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_core_nano_seconds: Option<u64>,
    /// Pressure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// Memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// When.
    pub time: Time,
    /// The same in nanoseconds, for metrics.
    #[serde(skip)]
    pub nanos: i64,
    /// Left of the limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    /// All of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_bytes: Option<u64>,
    /// What cannot be given back at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_set_bytes: Option<u64>,
    /// Anonymous and swap cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rss_bytes: Option<u64>,
    /// Faults.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub page_faults: Option<u64>,
    /// Faults that read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major_page_faults: Option<u64>,
    /// Pressure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Io {
    /// When.
    pub time: Time,
    /// Pressure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Psi>,
}

/// Pressure stall information.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Psi {
    /// All tasks waited.
    pub full: PsiData,
    /// Some did.
    pub some: PsiData,
}

/// One line of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct PsiData {
    /// In nanoseconds.
    pub total: u64,
    /// In percent, over 10 s.
    pub avg10: f64,
    /// Over 60 s.
    pub avg60: f64,
    /// Over 300 s.
    pub avg300: f64,
}

/// Swap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Swap {
    /// When.
    pub time: Time,
    /// The same in nanoseconds, for metrics.
    #[serde(skip)]
    pub nanos: i64,
    /// Left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_available_bytes: Option<u64>,
    /// Used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_usage_bytes: Option<u64>,
}

/// Interfaces.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Network {
    /// When.
    pub time: Time,
    /// The default one.
    #[serde(flatten)]
    pub default: Interface,
    /// All of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
}

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Received.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_bytes: Option<u64>,
    /// Received badly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rx_errors: Option<u64>,
    /// Sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_bytes: Option<u64>,
    /// Not sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tx_errors: Option<u64>,
}

/// A file system, and what of it is used by whom this is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fs {
    /// When.
    pub time: Time,
    /// Free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    /// Its size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capacity_bytes: Option<u64>,
    /// Used by whom this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// Free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes_free: Option<u64>,
    /// All.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes: Option<u64>,
    /// Used by whom this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes_used: Option<u64>,
}

/// A volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// Its room.
    #[serde(flatten)]
    pub fs: Fs,
    /// Its name in the pod.
    pub name: String,
}
