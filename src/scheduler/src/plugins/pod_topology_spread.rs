//! A pod's topologySpreadConstraints, or upstream's system defaults for one that has none, as
//! `plugins/podtopologyspread` of Kubernetes 1.36.
//!
//! The pods that a constraint selects are [counted](crate::cache::Tally) as they come and go; what a node says is
//! a look-up. The defaults' selector is that of the pod's controller and of the Services that select the pod.

mod filter;
mod score;
mod tally;

use super::args::SpreadArgs;
use super::{node_affinity, taint_toleration};
use crate::cache::Snapshot;
use crate::framework::{ClusterEvent, Plugin};
use crate::model::{LabelSelector, NodeInfo, Owner, PodInfo, Requirement, SpreadConstraint};
use crate::objects::Objects;
use std::ops::Bound;

/// The plugin, with its args.
#[derive(Default)]
pub struct PodTopologySpread(pub SpreadArgs);

const HOST: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// The system defaults: rather not on one node or in one zone.
fn defaults() -> [SpreadConstraint; 2] {
    [(HOST, 3), (ZONE, 5)].map(|(key, max_skew)| SpreadConstraint {
        max_skew,
        topology_key: key.to_owned(),
        hard: false,
        selector: LabelSelector::Nothing,
        min_domains: 1,
        honor_affinity: true,
        honor_taints: false,
    })
}

impl PodTopologySpread {
    /// The pod's own constraints of one kind, or the defaults if it has none at all.
    fn constraints(&self, pod: &PodInfo, snapshot: &Snapshot, hard: bool) -> Vec<SpreadConstraint> {
        let of_kind = |all: &[SpreadConstraint]| all.iter().filter(|c| c.hard == hard).cloned().collect();
        if !pod.spread.is_empty() {
            return of_kind(&pod.spread);
        }
        let mut defaults: Vec<SpreadConstraint> = match &self.0 {
            SpreadArgs::System => of_kind(&defaults()),
            SpreadArgs::List(all) => of_kind(all),
        };
        if defaults.is_empty() {
            return defaults;
        }
        let selector = default_selector(pod, &snapshot.objects);
        if selector.is_empty() {
            return Vec::new();
        }
        for constraint in &mut defaults {
            constraint.selector = selector.clone();
        }
        defaults
    }
}

/// What the pod's controller and its Services select (`plugins/helper/spread.go` DefaultSelector). They
/// match the pod, so that their requirements do not contradict each other.
fn default_selector(pod: &PodInfo, objects: &Objects) -> LabelSelector {
    let mut all: Vec<Requirement> = Vec::new();
    let mut require = |selector: &LabelSelector| {
        if let LabelSelector::All(requirements) = selector {
            all.extend(requirements.iter().cloned());
        }
    };
    let first = format!("{}/", pod.namespace);
    let from = (Bound::Included(first.as_str()), Bound::Unbounded);
    let of_namespace = objects.services.range::<str, _>(from);
    for (_, service) in of_namespace.take_while(|(key, _)| key.starts_with(&first)) {
        if service.selector.matches(&pod.labels) {
            require(&service.selector);
        }
    }
    let key = |name: &str| format!("{first}{name}");
    let selector = match &pod.owner {
        None => None,
        Some(Owner::ReplicationController(name)) => {
            objects.replication_controllers.get(key(name).as_str()).map(|c| &c.selector)
        }
        Some(Owner::ReplicaSet(name)) => objects.replica_sets.get(key(name).as_str()).map(|c| &c.selector),
        Some(Owner::StatefulSet(name)) => objects.stateful_sets.get(key(name).as_str()).map(|c| &c.selector),
    };
    selector.into_iter().for_each(require);
    all.sort();
    all.dedup();
    LabelSelector::All(all)
}

/// Whether the pods of a node count for a constraint that honours the pod's node affinity and the node's taints
/// or does not.
fn includes((affinity, taints): (bool, bool), pod: &PodInfo, node: &NodeInfo) -> bool {
    (!affinity || node_affinity::accepts(pod, node)) && (!taints || taint_toleration::accepts(pod, node))
}

/// Whether a node has the labels of all these constraints.
fn has_keys<'a>(constraints: impl IntoIterator<Item = &'a SpreadConstraint>, node: &NodeInfo) -> bool {
    constraints.into_iter().all(|c| node.labels.contains_key(&c.topology_key))
}

/// Whether the coming or going of a pod moves a hard constraint's counts.
fn counts(pod: &PodInfo, other: &PodInfo) -> bool {
    other.namespace == pod.namespace && hard(pod).any(|c| c.selector.matches(&other.labels))
}

fn hard(pod: &PodInfo) -> impl Iterator<Item = &SpreadConstraint> {
    pod.spread.iter().filter(|c| c.hard)
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn may_help(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        if pod.spread.is_empty() {
            // A profile's own hard defaults: what they select is not known here.
            return true;
        }
        match event {
            // One that comes may raise the emptiest domain's count.
            ClusterEvent::AssignedPodAdd(other) | ClusterEvent::AssignedPodDelete(other) => {
                counts(pod, other)
            }
            ClusterEvent::AssignedPodUpdate(old, new) => counts(pod, old) || counts(pod, new),
            ClusterEvent::NodeAdd(node) | ClusterEvent::NodeDelete(node) => has_keys(hard(pod), node),
            ClusterEvent::NodeUpdate(old, new) => {
                (old.labels != new.labels || old.taints != new.taints)
                    && (has_keys(hard(pod), old) || has_keys(hard(pod), new))
            }
            ClusterEvent::PodUpdate => true,
            ClusterEvent::Object(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::objects::{Object, ReplicaSet};
    use k8s_openapi::api::core::v1;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;
    use std::sync::Arc;

    /// A node in a zone (none for an empty name) with a hostname.
    pub(super) fn node(name: &str, zone: &str) -> NodeInfo {
        let mut labels = BTreeMap::from([(HOST.to_owned(), name.to_owned())]);
        if !zone.is_empty() {
            labels.insert(ZONE.to_owned(), zone.to_owned());
        }
        NodeInfo { name: name.into(), labels, ..NodeInfo::default() }
    }

    /// A pod with `app: web` and constraints.
    pub(super) fn pod(constraints: Value) -> PodInfo {
        let pod: v1::Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "p", "labels": {"app": "web"}},
            "spec": {"containers": [], "topologySpreadConstraints": constraints}}))
        .unwrap();
        PodInfo::parse(&pod).unwrap()
    }

    /// A constraint that counts `app: web`; `more` is laid over it.
    pub(super) fn constraint(key: &str, max_skew: i64, when: &str, more: Value) -> Value {
        let mut constraint = json!({"topologyKey": key, "maxSkew": max_skew, "whenUnsatisfiable": when,
            "labelSelector": {"matchLabels": {"app": "web"}}});
        for (key, value) in more.as_object().into_iter().flatten() {
            constraint[key] = value.clone();
        }
        constraint
    }

    /// The nodes, and on each so many pods with `app: web` of controller `rs`.
    pub(super) fn snapshot(nodes: &[NodeInfo], counts: &[usize]) -> Snapshot {
        let mut cache = Cache::default();
        let web = crate::model::LabelSelector::All(vec![]).and("app", "web");
        let rs = Object::ReplicaSet(Arc::new(ReplicaSet { selector: web }));
        cache.objects_mut().put("d/rs".into(), rs);
        for (node, count) in nodes.iter().zip(counts) {
            cache.set_node(Arc::new(node.clone()));
            for i in 0..*count {
                let uid = format!("{}-{i}", node.name);
                let there = PodInfo { uid, ..pod(json!([])) };
                cache.assume(Arc::new(there), &node.name);
            }
        }
        cache.snapshot()
    }

    #[test]
    fn hints() {
        let waits = pod(json!([constraint(ZONE, 1, "DoNotSchedule", json!({}))]));
        let helps = |event: ClusterEvent| PodTopologySpread::default().may_help(&waits, &event);
        let (web, other) =
            (Arc::new(pod(json!([]))), Arc::new(PodInfo { namespace: "d".into(), ..Default::default() }));
        assert!(helps(ClusterEvent::AssignedPodAdd(web.clone())));
        assert!(helps(ClusterEvent::AssignedPodDelete(web.clone())));
        assert!(helps(ClusterEvent::AssignedPodUpdate(other.clone(), web.clone())));
        assert!(!helps(ClusterEvent::AssignedPodAdd(other)));
        let elsewhere = PodInfo { namespace: "e".into(), ..(*web).clone() };
        assert!(!helps(ClusterEvent::AssignedPodAdd(Arc::new(elsewhere))));
        let (zoned, bare) = (Arc::new(node("n", "z")), Arc::new(node("n", "")));
        assert!(helps(ClusterEvent::NodeAdd(zoned.clone())) && !helps(ClusterEvent::NodeAdd(bare.clone())));
        assert!(helps(ClusterEvent::NodeDelete(zoned.clone())));
        assert!(helps(ClusterEvent::NodeUpdate(bare, zoned.clone())));
        assert!(!helps(ClusterEvent::NodeUpdate(zoned.clone(), zoned)));
    }
}
