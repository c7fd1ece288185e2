//! A pod's topologySpreadConstraints, or upstream's system defaults for one that has none, as
//! `plugins/podtopologyspread` of Kubernetes 1.36.
//!
//! A constraint's selector is held against each [class](crate::classes) of pods once; counting is a
//! look-up per node. The defaults count by the controller's UID instead of by its selector and those of
//! the matching Services: the pods of a controller have one template's labels, so that the same ones
//! are found. What this leaves out is a pod without a controller that a Service selects.

mod filter;
mod score;

use super::{node_affinity, taint_toleration};
use crate::cache::{NodeState, Snapshot};
use crate::classes::ClassId;
use crate::framework::{ClusterEvent, Plugin};
use crate::model::{LabelSelector, NodeInfo, PodInfo, SpreadConstraint};

/// The plugin.
pub struct PodTopologySpread;

const HOST: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

/// The pods that a constraint counts.
enum Counted {
    /// Those of a controller.
    Owner(String),
    /// Those of these classes.
    Classes(Vec<ClassId>),
}

impl Counted {
    /// What the constraint's selector selects in the pod's namespace. An empty one selects everything,
    /// and upstream counts none then.
    fn by(selector: &LabelSelector, pod: &PodInfo, snapshot: &Snapshot) -> Self {
        let selected = snapshot.classes.iter().filter(|(_, class)| {
            !selector.is_empty() && class.namespace == pod.namespace && selector.matches(&class.labels)
        });
        Counted::Classes(selected.map(|(id, _)| *id).collect())
    }

    /// How many a node has. One that is being deleted is not counted.
    fn on(&self, node: &NodeState) -> i64 {
        let usage = &node.usage;
        match self {
            Counted::Owner(uid) => usage.owned.get(uid).copied().unwrap_or(0),
            Counted::Classes(ids) => ids.iter().filter_map(|id| Some(usage.alike.get(id)?.staying)).sum(),
        }
    }
}

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

/// Whether the pods of a node count for a constraint, by its two policies.
fn includes(constraint: &SpreadConstraint, pod: &PodInfo, node: &NodeInfo) -> bool {
    (!constraint.honor_affinity || node_affinity::accepts(pod, node))
        && (!constraint.honor_taints || taint_toleration::accepts(pod, node))
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
        for (node, count) in nodes.iter().zip(counts) {
            cache.set_node(Arc::new(node.clone()));
            for i in 0..*count {
                let uid = format!("{}-{i}", node.name);
                let there = PodInfo { uid, owner: Some("rs".into()), ..pod(json!([])) };
                cache.assume(Arc::new(there), &node.name);
            }
        }
        cache.snapshot()
    }

    #[test]
    fn hints() {
        let waits = pod(json!([constraint(ZONE, 1, "DoNotSchedule", json!({}))]));
        let helps = |event: ClusterEvent| PodTopologySpread.may_help(&waits, &event);
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
