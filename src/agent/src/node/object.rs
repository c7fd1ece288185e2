//! The Node object: what it is to say, and the patch that makes it say so. Pure.
//!
//! The agent owns: five labels, the built-in resources and those of device plugins, the four conditions that the kubelet has,
//! nodeInfo, addresses, images, handlers, features, the volumes in use and the endpoint. All else (labels, annotations,
//! taints, conditions and extended resources of others) is never in a patch, so it is kept.

use super::allocatable::Reservation;
use super::machine::{Machine, Sample};
use super::pressure::{Pressures, Thresholds};
use super::runtime::{Known, joined};
use crate::devices::pool::Amounts;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeFeatures,
    NodeRuntimeHandler, NodeRuntimeHandlerFeatures, NodeSpec, NodeStatus, NodeSwapStatus, NodeSystemInfo,
    Taint,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

/// What is reported as the kubelet's version. It has to parse as Kubernetes' own: the API server and
/// the tests of conformance compare it.
pub const KUBELET_VERSION: &str = "v1.36.3+podway";
/// Declared where the runtime speaks the WebSocket protocols of kubectl: the API server hands its
/// streams through then. For all others it has them translated to SPDY, which every runtime speaks.
const WEB_SOCKETS: &str = "ExtendWebSocketsToKubelet";
/// `nodeStatusMaxImages`.
const MAX_IMAGES: usize = 50;
/// `MaxNamesPerImageInNodeStatus`.
const MAX_NAMES: usize = 5;
/// The conditions that are the agent's, Ready last, as upstream insists.
const CONDITIONS: [&str; 4] = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];

/// All that a status is made of.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The node's name.
    pub name: &'a str,
    /// The machine; none while it can't be read.
    pub machine: Option<&'a Machine>,
    /// What was free at the last look; none while it can't be read.
    pub sample: Option<&'a Sample>,
    /// What is short.
    pub pressures: Pressures,
    /// What device plugins have.
    pub devices: Amounts,
    /// The attached volumes that pods use.
    pub volumes_in_use: BTreeSet<String>,
    /// Whether the machine is about to be shut down.
    pub shutting_down: bool,
    /// The runtime.
    pub runtime: &'a Known,
    /// The addresses; none while they are not known, then the old ones stay.
    pub addresses: Option<&'a [NodeAddress]>,
    /// Where the kubelet API listens.
    pub port: u16,
    /// `--max-pods`.
    pub max_pods: u32,
    /// What is kept free from pods ...
    pub thresholds: &'a Thresholds,
    /// ... and what for others.
    pub reservation: &'a Reservation,
    /// Wall clock.
    pub now: Timestamp,
    /// Monotonic clock.
    pub instant: Instant,
}

/// `linux/amd64` as Go names it.
#[must_use]
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        "x86" => "386",
        other => other,
    }
}

/// The labels that every node has.
#[must_use]
pub fn default_labels(name: &str) -> BTreeMap<String, String> {
    let arch = architecture();
    [
        ("kubernetes.io/hostname", name),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", arch),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", arch),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into()
}

/// The labels of `--node-labels` that a node may not give itself (NodeRestriction refuses them).
#[must_use]
pub fn forbidden_labels(labels: &BTreeMap<String, String>) -> Vec<&str> {
    const ALLOWED: &[&str] = &[
        "kubernetes.io/hostname",
        "kubernetes.io/os",
        "kubernetes.io/arch",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
        "node.kubernetes.io/windows-build",
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
    ];
    let within = |domain: &str, of: &str| domain == of || domain.ends_with(&format!(".{of}"));
    let forbidden = |key: &str| {
        let Some((domain, _)) = key.split_once('/') else { return false };
        let reserved = within(domain, "kubernetes.io") || within(domain, "k8s.io");
        let own = within(domain, "kubelet.kubernetes.io") || within(domain, "node.kubernetes.io");
        reserved && !own && !ALLOWED.contains(&key)
    };
    labels.keys().map(String::as_str).filter(|key| forbidden(key)).collect()
}

/// The Node to register, with the taints that it is to have from the start.
#[must_use]
pub fn initial(facts: &Facts<'_>, node_labels: &BTreeMap<String, String>, taints: &[Taint]) -> Node {
    let mut labels = default_labels(facts.name);
    labels.extend(node_labels.iter().map(|(k, v)| (k.clone(), v.clone())));
    Node {
        metadata: ObjectMeta {
            name: Some(facts.name.to_owned()),
            labels: Some(labels),
            annotations: Some(
                [("volumes.kubernetes.io/controller-managed-attach-detach".to_owned(), "true".to_owned())]
                    .into(),
            ),
            ..ObjectMeta::default()
        },
        spec: (!taints.is_empty()).then(|| NodeSpec { taints: Some(taints.to_vec()), ..NodeSpec::default() }),
        status: Some(status(&NodeStatus::default(), facts)),
    }
}

/// A quantity of bytes as Kubernetes writes it: the largest power of 1024 that leaves no rest.
#[must_use]
pub fn binary(bytes: u64) -> Quantity {
    let (mut value, mut unit) = (bytes, 0);
    let units = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    while value != 0 && value % 1024 == 0 && unit + 1 < units.len() {
        (value, unit) = (value / 1024, unit + 1);
    }
    Quantity(format!("{value}{}", units[unit]))
}

/// Whether others own the resource: its name has a domain that is not Kubernetes'.
fn extended(name: &str) -> bool {
    name.split_once('/').is_some_and(|(domain, _)| !domain.ends_with("kubernetes.io"))
}

/// Thousandths of processors as Kubernetes writes them.
fn processors(milli: i128) -> Quantity {
    Quantity(if milli % 1000 == 0 { (milli / 1000).to_string() } else { format!("{milli}m") })
}

fn resources(old: &NodeStatus, facts: &Facts<'_>) -> [BTreeMap<String, Quantity>; 2] {
    let mut capacity = old.capacity.clone().unwrap_or_default();
    let mut allocatable = old.allocatable.clone().unwrap_or_default();
    let mut set = |name: &str, all: Quantity, free: Quantity| {
        capacity.insert(name.to_owned(), all);
        allocatable.insert(name.to_owned(), free);
    };
    let pods = Quantity(facts.max_pods.to_string());
    set("pods", pods.clone(), pods);
    let (kept, thresholds) = (facts.reservation, facts.thresholds);
    if let Some(machine) = facts.machine {
        let cpus = i128::from(machine.cpus) * 1000;
        set("cpu", processors(cpus), processors(kept.cpu(machine.cpus)));
        let mut free = kept.memory(machine.memory, thresholds);
        for (size, pages) in &machine.huge_pages {
            let all = binary(size * pages);
            set(&format!("hugepages-{}", binary(*size).0), all.clone(), all);
            free = free.saturating_sub(size * pages);
        }
        set("memory", binary(machine.memory), binary(free));
    }
    if let Some(sample) = facts.sample {
        let all = sample.nodefs.capacity;
        set("ephemeral-storage", binary(all), binary(kept.storage(all, thresholds)));
    }
    // What others put into capacity can be used as a whole; what they took out is gone.
    for (name, quantity) in capacity.iter().filter(|(name, _)| extended(name)) {
        allocatable.insert(name.clone(), quantity.clone());
    }
    allocatable.retain(|name, _| !extended(name) || capacity.contains_key(name));
    // A plugin that has gone leaves 0 and not nothing: so it is told from what others put there.
    for (name, amount) in &facts.devices {
        capacity.insert(name.clone(), Quantity(amount.capacity.to_string()));
        allocatable.insert(name.clone(), Quantity(amount.allocatable.to_string()));
    }
    [capacity, allocatable]
}

/// The status to report, given the one that the API server has.
#[must_use]
pub fn status(old: &NodeStatus, facts: &Facts<'_>) -> NodeStatus {
    let [capacity, allocatable] = resources(old, facts);
    let machine = facts.machine.cloned().unwrap_or_default();
    let seen = facts.runtime.last.as_ref();
    let swap = i64::try_from(machine.swap).ok().filter(|swap| *swap > 0);
    let info = NodeSystemInfo {
        architecture: architecture().to_owned(),
        boot_id: machine.boot_id,
        container_runtime_version: seen.map_or_else(|| "Unknown".to_owned(), |s| s.version.clone()),
        kernel_version: machine.kernel,
        kube_proxy_version: String::new(),
        kubelet_version: KUBELET_VERSION.to_owned(),
        machine_id: machine.machine_id,
        operating_system: "linux".to_owned(),
        os_image: machine.os_image,
        swap: swap.map(|capacity| NodeSwapStatus { capacity: Some(capacity) }),
        system_uuid: machine.system_uuid,
    };
    let missing: Vec<&str> = ["cpu", "memory", "pods", "ephemeral-storage"]
        .into_iter()
        .filter(|r| !capacity.contains_key(*r))
        .collect();
    NodeStatus {
        conditions: Some(conditions(old.conditions.as_deref().unwrap_or_default(), facts, &missing)),
        capacity: Some(capacity),
        allocatable: Some(allocatable),
        addresses: facts.addresses.map(<[NodeAddress]>::to_vec).or_else(|| old.addresses.clone()),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(facts.port) }),
        }),
        declared_features: seen.map_or_else(
            || old.declared_features.clone(),
            |seen| {
                let ours = seen.version.starts_with("podway://");
                Some(ours.then(|| WEB_SOCKETS.to_owned()).into_iter().collect())
            },
        ),
        node_info: Some(info),
        images: seen.map_or_else(|| old.images.clone(), |seen| images(&seen.images)),
        runtime_handlers: seen.map_or_else(|| old.runtime_handlers.clone(), |seen| handlers(&seen.handlers)),
        features: seen.map_or_else(
            || old.features.clone(),
            |seen| {
                seen.features
                    .as_ref()
                    .map(|f| NodeFeatures { supplemental_groups_policy: Some(f.supplemental_groups_policy) })
            },
        ),
        volumes_in_use: (!facts.volumes_in_use.is_empty())
            .then(|| facts.volumes_in_use.iter().cloned().collect()),
        ..old.clone()
    }
}

/// The largest images, with a few names each.
fn images(all: &[podway_cri::v1::Image]) -> Option<Vec<ContainerImage>> {
    let mut sorted: Vec<_> = all.iter().collect();
    sorted.sort_by(|a, b| b.size.cmp(&a.size).then_with(|| a.id.cmp(&b.id)));
    let image = |image: &&podway_cri::v1::Image| ContainerImage {
        names: Some(image.repo_digests.iter().chain(&image.repo_tags).take(MAX_NAMES).cloned().collect()),
        size_bytes: i64::try_from(image.size).ok(),
    };
    let listed: Vec<_> = sorted.iter().take(MAX_IMAGES).map(image).collect();
    (!listed.is_empty()).then_some(listed)
}

fn handlers(all: &[podway_cri::v1::RuntimeHandler]) -> Option<Vec<NodeRuntimeHandler>> {
    let mut sorted: Vec<_> = all.iter().collect();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    let handler = |h: &&podway_cri::v1::RuntimeHandler| {
        let features = h.features.unwrap_or_default();
        NodeRuntimeHandler {
            // The default handler's name is empty, and is written: the API server gives it back so.
            name: Some(h.name.clone()),
            features: Some(NodeRuntimeHandlerFeatures {
                recursive_read_only_mounts: Some(features.recursive_read_only_mounts),
                user_namespaces: Some(features.user_namespaces),
            }),
        }
    };
    let listed: Vec<_> = sorted.iter().map(handler).collect();
    (!listed.is_empty()).then_some(listed)
}

/// The conditions: the agent's in their order and at their places, those of others as they are.
fn conditions(old: &[NodeCondition], facts: &Facts<'_>, missing: &[&str]) -> Vec<NodeCondition> {
    let [runtime, network] = facts.runtime.errors(facts.instant);
    let mut errors: Vec<String> = [runtime, network].into_iter().flatten().collect();
    if !missing.is_empty() {
        errors.push(format!("missing node capacity for resources: {}", missing.join(", ")));
    }
    if facts.shutting_down {
        errors.push("node is shutting down".to_owned());
    }
    let error = joined(&errors);
    let Pressures { memory, disk, pids } = facts.pressures;
    let said: [(bool, &str, &str); 4] = [
        if memory {
            (true, "KubeletHasInsufficientMemory", "kubelet has insufficient memory available")
        } else {
            (false, "KubeletHasSufficientMemory", "kubelet has sufficient memory available")
        },
        if disk {
            (true, "KubeletHasDiskPressure", "kubelet has disk pressure")
        } else {
            (false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure")
        },
        if pids {
            (true, "KubeletHasInsufficientPID", "kubelet has insufficient PID available")
        } else {
            (false, "KubeletHasSufficientPID", "kubelet has sufficient PID available")
        },
        match &error {
            Some(error) => (false, "KubeletNotReady", error.as_str()),
            None => (true, "KubeletReady", "kubelet is posting ready status"),
        },
    ];
    let mut all = old.to_vec();
    for (kind, (is, reason, message)) in CONDITIONS.into_iter().zip(said) {
        let status = if is { "True" } else { "False" };
        let place = all.iter().position(|c| c.type_ == kind);
        let same = place.map(|at| &all[at]).filter(|c| c.status == status);
        let new = NodeCondition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            last_heartbeat_time: Some(Time(facts.now)),
            last_transition_time: same.and_then(|c| c.last_transition_time.clone()).or(Some(Time(facts.now))),
        };
        match place {
            Some(at) => all[at] = new,
            None => all.push(new),
        }
    }
    all
}

/// Why the node is not ready, by its status; none when it is.
#[must_use]
pub fn not_ready(status: &NodeStatus) -> Option<String> {
    let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready");
    match ready {
        Some(c) if c.status == "True" => None,
        Some(c) => Some(c.message.clone().unwrap_or_default()),
        None => Some("the node has no Ready condition".to_owned()),
    }
}

fn without_heartbeats(status: &NodeStatus) -> NodeStatus {
    let mut status = status.clone();
    for condition in status.conditions.iter_mut().flatten() {
        condition.last_heartbeat_time = None;
    }
    status
}

/// The strategic merge patch from `old` to `status`; none when only heartbeats differ, unless
/// `report` asks for those too. Labels that every node has are put back with it.
#[must_use]
pub fn patch(old: &Node, status: &NodeStatus, name: &str, report: bool) -> Option<Value> {
    let before = old.status.clone().unwrap_or_default();
    let labels = old.metadata.labels.clone().unwrap_or_default();
    let wrong: BTreeMap<_, _> =
        default_labels(name).into_iter().filter(|(key, value)| labels.get(key) != Some(value)).collect();
    if without_heartbeats(&before) == without_heartbeats(status) && wrong.is_empty() && !report {
        return None;
    }
    let mut changes = Map::new();
    let own = |c: &&NodeCondition| CONDITIONS.contains(&c.type_.as_str());
    let conditions: Vec<_> = status.conditions.iter().flatten().filter(own).collect();
    changes.insert("conditions".to_owned(), json!(conditions));
    for (key, old, new) in [
        ("capacity", &before.capacity, &status.capacity),
        ("allocatable", &before.allocatable, &status.allocatable),
    ] {
        let (old, new) = (old.clone().unwrap_or_default(), new.clone().unwrap_or_default());
        let mut map: Map<String, Value> = Map::new();
        map.extend(new.iter().filter(|(k, v)| old.get(*k) != Some(v)).map(|(k, v)| (k.clone(), json!(v))));
        map.extend(old.keys().filter(|k| !new.contains_key(*k)).map(|k| (k.clone(), Value::Null)));
        if !map.is_empty() {
            changes.insert(key.to_owned(), map.into());
        }
    }
    if before.addresses != status.addresses {
        // The field is declared to be merged by type, which would keep a second address of the same
        // type; upstream patches it in this way too (fixupPatchForNodeStatusAddresses).
        let mut list: Vec<Value> = status.addresses.iter().flatten().map(|a| json!(a)).collect();
        list.push(json!({"$patch": "replace"}));
        changes.insert("addresses".to_owned(), list.into());
    }
    let mut field = |key: &str, old: Value, new: Value| {
        if old != new {
            changes.insert(key.to_owned(), new);
        }
    };
    field("nodeInfo", json!(before.node_info), json!(status.node_info));
    field("daemonEndpoints", json!(before.daemon_endpoints), json!(status.daemon_endpoints));
    field("images", json!(before.images), json!(status.images));
    field("runtimeHandlers", json!(before.runtime_handlers), json!(status.runtime_handlers));
    field("features", json!(before.features), json!(status.features));
    field("volumesInUse", json!(before.volumes_in_use), json!(status.volumes_in_use));
    field("declaredFeatures", json!(before.declared_features), json!(status.declared_features));
    let mut patch = json!({ "status": changes });
    if !wrong.is_empty() {
        patch["metadata"] = json!({ "labels": wrong });
    }
    Some(patch)
}

#[cfg(test)]
mod tests;
