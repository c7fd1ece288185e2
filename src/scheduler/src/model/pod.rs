//! A pod: what it asks for, where it may go, and what the API says of its scheduling.

use super::node::{Effect, Taint};
use super::resources::{CPU, MEMORY};
use super::{
    ModelError, NodeTerm, Original, Owner, PodAffinity, PodVolume, PreferredTerm, Resources, SpreadConstraint,
};
use k8s_openapi::api::core::v1;
use podway_flow::{Phase, stuck};
use std::collections::BTreeMap;

/// What a container without a CPU request counts as when nodes are scored (`util/pod_resources.go`).
pub const DEFAULT_MILLI_CPU: i64 = 100;
/// What a container without a memory request counts as when nodes are scored: 200 MiB.
pub const DEFAULT_MEMORY: i64 = 200 * 1024 * 1024;

/// A toleration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Toleration {
    /// Empty with Exists: every key.
    pub key: String,
    /// `true` for Exists, else Equal.
    pub exists: bool,
    /// The value for Equal.
    pub value: String,
    /// `None`: every effect.
    pub effect: Option<Effect>,
}

impl Toleration {
    /// As `Toleration.ToleratesTaint` (Lt and Gt are alpha and off in 1.36).
    #[must_use]
    pub fn tolerates(&self, taint: &Taint) -> bool {
        self.effect.is_none_or(|e| e == taint.effect)
            && (self.key.is_empty() || self.key == taint.key)
            && (self.exists || (!self.key.is_empty() && self.value == taint.value))
    }
}

/// A port on the host.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// The address; `0.0.0.0` for all.
    pub ip: String,
    /// TCP, UDP or SCTP.
    pub protocol: String,
    /// The port.
    pub port: i32,
}

impl HostPort {
    /// Same protocol and port, and same address or one of both on all addresses.
    #[must_use]
    pub fn conflicts(&self, other: &HostPort) -> bool {
        const ANY: &str = "0.0.0.0";
        self.protocol == other.protocol
            && self.port == other.port
            && (self.ip == other.ip || self.ip == ANY || other.ip == ANY)
    }
}

/// The PodScheduled condition as the API has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScheduledCondition {
    /// True, False or Unknown.
    pub status: String,
    /// Reason.
    pub reason: String,
    /// Message.
    pub message: String,
    /// The generation that it was written for.
    pub observed_generation: Option<i64>,
    /// When the status flipped last, RFC 3339.
    pub last_transition: Option<String>,
}

/// A pod as the scheduler sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodInfo {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID; the key everywhere.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: Option<i64>,
    /// `metadata.resourceVersion` as last seen.
    pub version: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// What controls it, as far as upstream's default spreading goes by it.
    pub owner: Option<Owner>,
    /// topologySpreadConstraints of its own, which take the place of the defaults.
    pub spread: Vec<SpreadConstraint>,
    /// Affinity to other pods.
    pub affinity: PodAffinity,
    /// `spec.schedulerName`.
    pub scheduler_name: String,
    /// `spec.nodeName`; empty while it is not bound.
    pub node_name: String,
    /// `spec.priority`, 0 when unset.
    pub priority: i32,
    /// Being deleted.
    pub deleting: bool,
    /// `spec.schedulingGates`.
    pub gates: Vec<String>,
    /// What it asks for.
    pub requests: Resources,
    /// The same with defaults for containers that name no CPU or memory; only for scores.
    pub non_zero: Resources,
    /// Host ports of its containers and sidecars.
    pub host_ports: Vec<HostPort>,
    /// Images of init and main containers and image volumes.
    pub images: Vec<String>,
    /// How many init and main containers it has.
    pub container_count: usize,
    /// `spec.nodeSelector`.
    pub node_selector: BTreeMap<String, String>,
    /// Required node affinity: terms are ORed; `None` when there is none.
    pub required_terms: Option<Vec<NodeTerm>>,
    /// Preferred node affinity.
    pub preferred_terms: Vec<PreferredTerm>,
    /// Tolerations.
    pub tolerations: Vec<Toleration>,
    /// Volumes that its placement goes by.
    pub volumes: Vec<PodVolume>,
    /// Features that its node must declare.
    pub needs: Vec<&'static str>,
    /// What of the spec this scheduler does not honour yet, by field name; such a pod is refused.
    pub unsupported: Vec<&'static str>,
    /// PodScheduled as last seen.
    pub condition: Option<ScheduledCondition>,
    /// It says of itself that it waits too long for a node.
    pub stuck: bool,
    /// `status.nominatedNodeName`; empty for none.
    pub nominated: String,
    /// `spec.preemptionPolicy` is Never: it waits rather than evict others.
    pub never_preempts: bool,
    /// `status.startTime` in Unix seconds; `None` until its node takes it up.
    pub started: Option<i64>,
    /// It carries DisruptionTarget with reason PreemptionByScheduler: a scheduler chose it as a victim.
    pub preempted: bool,
    /// The pod itself, where extenders are to see it.
    pub original: Original<v1::Pod>,
}

impl PodInfo {
    /// Reads a pod of the API.
    ///
    /// # Errors
    /// [`ModelError`] for what does not parse; the API server refuses such pods itself.
    pub fn parse(pod: &v1::Pod) -> Result<Self, ModelError> {
        let meta = &pod.metadata;
        let spec = pod.spec.as_ref().ok_or(ModelError::Missing("spec"))?;
        let status = pod.status.as_ref();
        let affinity = spec.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
        let required_terms = affinity
            .and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref())
            .map(|s| s.node_selector_terms.iter().map(NodeTerm::parse).collect::<Result<Vec<_>, _>>())
            .transpose()?;
        let mut preferred_terms = Vec::new();
        for p in affinity
            .and_then(|a| a.preferred_during_scheduling_ignored_during_execution.as_ref())
            .into_iter()
            .flatten()
        {
            preferred_terms
                .push(PreferredTerm { weight: i64::from(p.weight), term: NodeTerm::parse(&p.preference)? });
        }
        let inits = spec.init_containers.as_deref().unwrap_or_default();
        let all = || inits.iter().chain(spec.containers.iter());
        let image_volumes = spec.volumes.iter().flatten().filter_map(|v| v.image.as_ref()?.reference.clone());
        Ok(PodInfo {
            namespace: meta.namespace.clone().ok_or(ModelError::Missing("metadata.namespace"))?,
            name: meta.name.clone().ok_or(ModelError::Missing("metadata.name"))?,
            uid: meta.uid.clone().ok_or(ModelError::Missing("metadata.uid"))?,
            generation: meta.generation,
            version: meta.resource_version.clone(),
            labels: meta.labels.clone().unwrap_or_default(),
            owner: Owner::of(pod),
            spread: spec
                .topology_spread_constraints
                .iter()
                .flatten()
                .map(|c| SpreadConstraint::parse(c, meta.labels.as_ref().unwrap_or(&BTreeMap::new())))
                .collect(),
            affinity: PodAffinity::parse(
                spec.affinity.as_ref(),
                meta.namespace.as_deref().unwrap_or_default(),
            ),
            scheduler_name: spec.scheduler_name.clone().unwrap_or_else(|| "default-scheduler".into()),
            node_name: spec.node_name.clone().unwrap_or_default(),
            priority: spec.priority.unwrap_or(0),
            deleting: meta.deletion_timestamp.is_some(),
            gates: spec.scheduling_gates.iter().flatten().map(|g| g.name.clone()).collect(),
            requests: total(pod, spec, false)?,
            non_zero: total(pod, spec, true)?,
            host_ports: host_ports(spec),
            images: all().filter_map(|c| c.image.clone()).chain(image_volumes).collect(),
            container_count: all().count(),
            node_selector: spec.node_selector.clone().unwrap_or_default(),
            required_terms,
            preferred_terms,
            tolerations: spec.tolerations.iter().flatten().filter_map(toleration).collect(),
            volumes: PodVolume::of(
                meta.name.as_deref().unwrap_or_default(),
                spec.volumes.as_deref().unwrap_or_default(),
            ),
            needs: needs(spec),
            unsupported: unsupported(spec),
            condition: condition(pod),
            stuck: is_stuck(pod),
            nominated: status.and_then(|s| s.nominated_node_name.clone()).unwrap_or_default(),
            never_preempts: spec.preemption_policy.as_deref() == Some("Never"),
            started: status.and_then(|s| Some(s.start_time.as_ref()?.0.as_second())),
            preempted: preempted(pod),
            original: Original::default(),
        })
    }

    /// True when nothing differs that could change a decision: a status write alone wakes nobody.
    #[must_use]
    pub fn decides_like(&self, other: &PodInfo) -> bool {
        (&self.name, &self.uid) == (&other.name, &other.uid) && self.same_template(other)
    }

    /// True for pods of one template that nothing tells apart but their names: what is decided of one of
    /// them on a cluster is decided of the other.
    #[must_use]
    pub fn same_template(&self, other: &PodInfo) -> bool {
        // Every field is named, so that a new one is not forgotten.
        let PodInfo {
            namespace,
            name: _,
            uid: _,
            generation: _,
            version: _,
            labels,
            owner,
            spread,
            affinity,
            scheduler_name,
            node_name,
            priority,
            deleting,
            gates,
            requests,
            non_zero,
            host_ports,
            images,
            container_count,
            node_selector,
            required_terms,
            preferred_terms,
            tolerations,
            volumes,
            needs,
            unsupported,
            condition: _,
            stuck: _,
            nominated: _,
            never_preempts,
            started,
            preempted,
            original,
        } = self;
        *namespace == other.namespace
            && *labels == other.labels
            && *owner == other.owner
            && *spread == other.spread
            && *affinity == other.affinity
            && *scheduler_name == other.scheduler_name
            && *node_name == other.node_name
            && *priority == other.priority
            && *deleting == other.deleting
            && *gates == other.gates
            && *requests == other.requests
            && *non_zero == other.non_zero
            && *host_ports == other.host_ports
            && *images == other.images
            && *container_count == other.container_count
            && *node_selector == other.node_selector
            && *required_terms == other.required_terms
            && *preferred_terms == other.preferred_terms
            && *tolerations == other.tolerations
            && *volumes == other.volumes
            && *needs == other.needs
            && *unsupported == other.unsupported
            && *never_preempts == other.never_preempts
            && *started == other.started
            && *preempted == other.preempted
            && original.annotations() == other.original.annotations()
    }

    /// `namespace/name`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A toleration; one with an operator or effect that 1.36 has switched off tolerates nothing.
fn toleration(t: &v1::Toleration) -> Option<Toleration> {
    let exists = match t.operator.as_deref().unwrap_or("Equal") {
        "" | "Equal" => false,
        "Exists" => true,
        _ => return None,
    };
    let effect = match t.effect.as_deref().unwrap_or("") {
        "" => None,
        word => Some(Effect::parse(word)?),
    };
    Some(Toleration {
        key: t.key.clone().unwrap_or_default(),
        exists,
        value: t.value.clone().unwrap_or_default(),
        effect,
    })
}

/// Required constraints whose plugins are not built yet. Placing such a pod as if it had none
/// would be a wrong answer; it is told so instead.
fn unsupported(spec: &v1::PodSpec) -> Vec<&'static str> {
    let mut out = Vec::new();
    if spec.resource_claims.iter().flatten().count() > 0 {
        out.push("resourceClaims");
    }
    out
}

/// The features that a node must declare for such a pod (`component-helpers/nodedeclaredfeatures`).
fn needs(spec: &v1::PodSpec) -> Vec<&'static str> {
    let mut out = Vec::new();
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let mut rules = all.flat_map(|c| c.restart_policy_rules.iter().flatten());
    if rules.any(|rule| rule.action == "RestartAllContainers") {
        out.push("RestartAllContainersOnContainerExits");
    }
    if spec.host_network == Some(true) && spec.host_users == Some(false) {
        out.push("UserNamespacesHostNetworkSupport");
    }
    out
}

/// A disk that two pods of a node cannot always share (`plugins/volumerestrictions`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disk {
    /// gcePersistentDisk: name, and whether it is only read.
    Gce(String, bool),
    /// awsElasticBlockStore: volume ID.
    Ebs(String),
    /// iscsi: IQN, and whether it is only read.
    Iscsi(String, bool),
    /// rbd: monitors, pool, image, and whether it is only read.
    Rbd(Vec<String>, String, String, bool),
}

impl Disk {
    /// The disk of a volume, if it is one.
    #[must_use]
    pub fn of(volume: &v1::Volume) -> Option<Self> {
        if let Some(d) = &volume.gce_persistent_disk {
            return Some(Disk::Gce(d.pd_name.clone(), d.read_only == Some(true)));
        }
        if let Some(d) = &volume.aws_elastic_block_store {
            return Some(Disk::Ebs(d.volume_id.clone()));
        }
        if let Some(d) = &volume.iscsi {
            return Some(Disk::Iscsi(d.iqn.clone(), d.read_only == Some(true)));
        }
        let d = volume.rbd.as_ref()?;
        let pool = d.pool.clone().unwrap_or_else(|| "rbd".to_owned());
        Some(Disk::Rbd(d.monitors.clone(), pool, d.image.clone(), d.read_only == Some(true)))
    }

    /// True when both cannot be on a node.
    #[must_use]
    pub fn conflicts(&self, other: &Disk) -> bool {
        match (self, other) {
            (Disk::Gce(a, reads), Disk::Gce(b, other)) | (Disk::Iscsi(a, reads), Disk::Iscsi(b, other)) => {
                a == b && !(*reads && *other)
            }
            (Disk::Ebs(a), Disk::Ebs(b)) => a == b,
            (Disk::Rbd(monitors, pool, image, reads), Disk::Rbd(others, p, i, other)) => {
                monitors.iter().any(|m| others.contains(m)) && pool == p && image == i && !(*reads && *other)
            }
            _ => false,
        }
    }
}

/// Upstream's `podTerminatingByPreemption`, less the deletion that is told apart by `deleting`.
fn preempted(pod: &v1::Pod) -> bool {
    let all = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let mut targets = all.filter(|c| c.type_ == "DisruptionTarget");
    targets.next().is_some_and(|c| c.status == "True" && c.reason.as_deref() == Some("PreemptionByScheduler"))
}

fn is_stuck(pod: &v1::Pod) -> bool {
    let queued = Some(Phase::Queued.name());
    let is = |c: &v1::PodCondition| {
        c.type_ == stuck::CONDITION && c.status == "True" && c.reason.as_deref() == queued
    };
    pod.status.iter().flat_map(|s| s.conditions.iter().flatten()).any(is)
}

fn condition(pod: &v1::Pod) -> Option<ScheduledCondition> {
    let found = pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == "PodScheduled")?;
    Some(ScheduledCondition {
        status: found.status.clone(),
        reason: found.reason.clone().unwrap_or_default(),
        message: found.message.clone().unwrap_or_default(),
        observed_generation: found.observed_generation,
        last_transition: found.last_transition_time.as_ref().map(|t| t.0.to_string()),
    })
}

fn is_sidecar(container: &v1::Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn host_ports(spec: &v1::PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten().filter(|c| is_sidecar(c));
    sidecars
        .chain(spec.containers.iter())
        .flat_map(|c| c.ports.iter().flatten())
        .filter_map(|p| {
            let port = p.host_port.filter(|&n| n > 0)?;
            let ip = p.host_ip.clone().filter(|s| !s.is_empty()).unwrap_or_else(|| "0.0.0.0".into());
            let protocol = p.protocol.clone().filter(|s| !s.is_empty()).unwrap_or_else(|| "TCP".into());
            Some(HostPort { ip, protocol, port })
        })
        .collect()
}

/// `max(Σ containers + Σ sidecars, max over init containers)`, pod-level requests in place of
/// cpu, memory and hugepages, then overhead (reference/scheduler.md 2.1).
fn total(pod: &v1::Pod, spec: &v1::PodSpec, non_zero: bool) -> Result<Resources, ModelError> {
    let infeasible = pod.status.as_ref().is_some_and(|s| {
        s.conditions
            .iter()
            .flatten()
            .any(|c| c.type_ == "PodResizePending" && c.reason.as_deref() == Some("Infeasible"))
    });
    let status_of = |name: &str, init: bool| {
        let status = pod.status.as_ref()?;
        let list = if init { &status.init_container_statuses } else { &status.container_statuses };
        list.as_ref()?.iter().find(|c| c.name == name)
    };
    let request = |c: &v1::Container, init: bool| -> Result<Resources, ModelError> {
        let list = c.resources.as_ref().and_then(|r| r.requests.clone()).unwrap_or_default();
        let mut out = Resources::parse(&list, &format!("containers[{:?}].resources.requests", c.name))?;
        if let Some(status) = status_of(&c.name, init).filter(|s| s.resources.is_some()) {
            let actuated = status.resources.as_ref().and_then(|r| r.requests.clone()).unwrap_or_default();
            let mut seen = Resources::parse(&actuated, "status.resources.requests")?;
            if let Some(allocated) = &status.allocated_resources {
                seen.raise_to(&Resources::parse(allocated, "status.allocatedResources")?);
            }
            if infeasible {
                out = seen;
            } else {
                out.raise_to(&seen);
            }
        }
        if non_zero && !list.contains_key(CPU) {
            out.milli_cpu = out.milli_cpu.max(DEFAULT_MILLI_CPU);
        }
        if non_zero && !list.contains_key(MEMORY) {
            out.memory = out.memory.max(DEFAULT_MEMORY);
        }
        Ok(out)
    };
    let mut sum = Resources::default();
    for c in &spec.containers {
        sum.add(&request(c, false)?);
    }
    let (mut sidecars, mut peak) = (Resources::default(), Resources::default());
    for c in spec.init_containers.iter().flatten() {
        let own = request(c, true)?;
        if is_sidecar(c) {
            sidecars.add(&own);
            peak.raise_to(&sidecars);
        } else {
            let mut at = sidecars.clone();
            at.add(&own);
            peak.raise_to(&at);
        }
    }
    sum.add(&sidecars);
    sum.raise_to(&peak);
    if let Some(list) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        let pod_level = Resources::parse(list, "spec.resources.requests")?;
        for name in list.keys().filter(|n| *n == CPU || *n == MEMORY || n.starts_with("hugepages-")) {
            sum.set(name, pod_level.get(name));
        }
    }
    if let Some(overhead) = &spec.overhead {
        sum.add(&Resources::parse(overhead, "spec.overhead")?);
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn pod(spec: serde_json::Value) -> PodInfo {
        let pod: v1::Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u"}, "spec": spec
        }))
        .unwrap();
        PodInfo::parse(&pod).unwrap()
    }

    #[rstest]
    #[case::sum(serde_json::json!({"containers": [
        {"name": "a", "resources": {"requests": {"cpu": "100m", "memory": "10"}}},
        {"name": "b", "resources": {"requests": {"cpu": "0.2"}}}]}), 300, 10)]
    #[case::init_peak(serde_json::json!({"containers": [
        {"name": "a", "resources": {"requests": {"cpu": "100m"}}}],
        "initContainers": [{"name": "i", "resources": {"requests": {"cpu": "1", "memory": "5"}}}]}), 1000, 5)]
    #[case::sidecar_before_init(serde_json::json!({"containers": [
        {"name": "a", "resources": {"requests": {"cpu": "100m"}}}],
        "initContainers": [
          {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "50m", "memory": "7"}}},
          {"name": "i", "resources": {"requests": {"cpu": "80m"}}}]}), 150, 7)]
    #[case::sidecar_counts_in_init_peak(serde_json::json!({"containers": [{"name": "a"}],
        "initContainers": [
          {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}},
          {"name": "i", "resources": {"requests": {"cpu": "80m"}}}]}), 130, 0)]
    #[case::overhead_and_pod_level(serde_json::json!({"containers": [
        {"name": "a", "resources": {"requests": {"cpu": "1"}}}],
        "resources": {"requests": {"cpu": "300m"}}, "overhead": {"cpu": "10m", "memory": "3"}}), 310, 3)]
    fn requests(#[case] spec: serde_json::Value, #[case] cpu: i64, #[case] memory: i64) {
        let p = pod(spec);
        assert_eq!((p.requests.milli_cpu, p.requests.memory), (cpu, memory));
    }

    #[test]
    fn scores_count_a_default_for_what_a_container_omits_but_not_for_an_explicit_zero() {
        let p = pod(serde_json::json!({"containers": [
            {"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "0", "memory": "0"}}}]}));
        assert!(p.requests.is_zero());
        assert_eq!((p.non_zero.milli_cpu, p.non_zero.memory), (100, 209_715_200));
    }

    #[rstest]
    #[case("", true, "", None, true)]
    #[case("k", true, "", None, true)]
    #[case("k", false, "v", None, true)]
    #[case("k", false, "w", None, false)]
    #[case("k", true, "", Some(Effect::NoExecute), false)]
    #[case("x", true, "", None, false)]
    #[case("", false, "v", None, false)]
    fn tolerations(
        #[case] key: &str,
        #[case] exists: bool,
        #[case] value: &str,
        #[case] effect: Option<Effect>,
        #[case] want: bool,
    ) {
        let taint = Taint { key: "k".into(), value: "v".into(), effect: Effect::NoSchedule };
        let t = Toleration { key: key.into(), exists, value: value.into(), effect };
        assert_eq!(t.tolerates(&taint), want);
    }

    #[test]
    fn a_status_write_does_not_count_as_a_change() {
        let a = pod(serde_json::json!({"containers": []}));
        let b = PodInfo { condition: Some(ScheduledCondition::default()), ..a.clone() };
        assert!(a.decides_like(&b));
        assert!(!a.decides_like(&PodInfo { priority: 1, ..a.clone() }));
    }

    #[rstest]
    #[case("apps/v1", "ReplicaSet", true, true)]
    #[case("apps/v1", "StatefulSet", true, true)]
    #[case("v1", "ReplicationController", true, true)]
    #[case("apps/v1", "DaemonSet", true, false)]
    #[case("batch/v1", "Job", true, false)]
    #[case("example.dev/v1", "ReplicaSet", true, false)]
    #[case("apps/v1", "ReplicaSet", false, false)]
    fn owners(#[case] version: &str, #[case] kind: &str, #[case] controls: bool, #[case] spread: bool) {
        let pod: v1::Pod = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u", "ownerReferences": [
                {"apiVersion": version, "kind": kind, "name": "o", "uid": "o-1", "controller": controls}]},
            "spec": {"containers": []}}))
        .unwrap();
        assert_eq!(PodInfo::parse(&pod).unwrap().owner.is_some(), spread);
    }

    #[test]
    fn a_constraint_that_is_not_built_is_named() {
        let p = pod(serde_json::json!({"containers": [], "resourceClaims": [{"name": "gpu"}]}));
        assert_eq!(p.unsupported, ["resourceClaims"]);
    }
}
