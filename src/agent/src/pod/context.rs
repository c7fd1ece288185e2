//! What every worker of the node shares.

use crate::api::PodApi;
use crate::audit::AuditLog;
use crate::cgroups::Cgroups;
use crate::cri::Cri;
use crate::devices::Devices;
use crate::dns::NodeDns;
use crate::env::Objects;
use crate::metrics::Metrics;
use crate::node;
use crate::pod::classes::Classes;
use crate::pod::confinement::Modules;
use crate::pod::ledger::Ledger;
use crate::pod::model::Pod;
use crate::pod::status;
use crate::status::pace::Pace;
use crate::traces::Traces;
use crate::userns::UserNamespaces;
use crate::volumes::VolumeManager;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use podway_flow::Clock;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;

/// The node around a worker.
#[derive(Clone)]
pub struct Context {
    /// The runtime.
    pub cri: Cri,
    /// The API server, for writing.
    pub api: Arc<dyn PodApi>,
    /// Config maps and secrets.
    pub objects: Arc<dyn Objects>,
    /// Volumes.
    pub volumes: VolumeManager,
    /// What the pods hold of the node.
    pub ledger: Arc<Ledger>,
    /// Devices of plugins.
    pub devices: Arc<Devices>,
    /// The ids of pods with a user namespace of their own.
    pub userns: Arc<UserNamespaces>,
    /// Which handler of the runtime a pod is run with.
    pub classes: Classes,
    /// What the kernel can confine with.
    pub modules: Modules,
    /// Whether a container that names no seccomp profile gets the runtime's.
    pub seccomp_default: bool,
    /// How the node stands.
    pub known: watch::Receiver<node::State>,
    /// Pod cgroups.
    pub cgroups: Arc<Cgroups>,
    /// How often intermediate words of the node's pods go out.
    pub pace: Pace,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Where traces of starts go, if anywhere.
    pub traces: Option<Traces>,
    /// The process' clock.
    pub clock: Clock,
    /// The API server's audit log, where it can be read.
    pub audit: Option<AuditLog>,
    /// Whether `PodFlow` objects are written.
    pub podflow: bool,
    /// What the node adds to a status: the runtime's name and the node's addresses.
    pub node: status::Node,
    /// The machine's hostname.
    pub hostname: String,
    /// Resolver defaults.
    pub dns: NodeDns,
    /// Where logs go.
    pub pod_logs_dir: PathBuf,
    /// `status.allocatable` of the node.
    pub allocatable: BTreeMap<String, Quantity>,
    /// The machine's memory in bytes.
    pub memory_capacity: i64,
}

impl Context {
    /// Tells people of a pod, on its own: news must not hold the pod up.
    pub fn tell(&self, pod: &Pod, reason: &str, message: &str) {
        let (api, object) = (Arc::clone(&self.api), Arc::clone(&pod.object));
        let (reason, message) = (reason.to_owned(), message.to_owned());
        tokio::spawn(async move { api.warn(&object, &reason, &message).await });
    }

    /// Tells people what went well with a container, likewise.
    pub fn note(&self, pod: &Pod, container: &str, reason: &str, message: String) {
        let (api, object) = (Arc::clone(&self.api), Arc::clone(&pod.object));
        let (container, reason) = (container.to_owned(), reason.to_owned());
        tokio::spawn(async move { api.note(&object, &container, &reason, &message).await });
    }
}
