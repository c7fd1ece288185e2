//! Affinity and anti-affinity to other pods, as `plugins/interpodaffinity` of Kubernetes 1.36.
//!
//! Upstream walks the pods in each cycle; here the pods that a term matches and the pods that have a term are
//! [counted](crate::cache::Tally) by topology as they come and go, so that a cycle costs as much as there are terms.

mod filter;
mod score;
mod tally;

use super::args::InterPodAffinityArgs;
use crate::framework::{ClusterEvent, Plugin};
use crate::model::{NodeInfo, PodInfo, PodTerm};
use std::collections::BTreeMap;

/// The plugin, with its args.
#[derive(Default)]
pub struct InterPodAffinity(pub InterPodAffinityArgs);

/// Does a term match this pod, whose namespace has these labels?
fn takes(term: &PodTerm, pod: &PodInfo, of_namespace: &BTreeMap<String, String>) -> bool {
    term.matches(&pod.namespace, &pod.labels, of_namespace)
}

/// A pod that may let `pod` in by coming (its affinity) or by going (an anti-affinity).
///
/// A hint knows no namespace's labels: a term that selects namespaces is taken to match.
fn concerns(term: &PodTerm, pod: &PodInfo) -> bool {
    (term.namespaces.contains(&pod.namespace) || term.namespace_selector != Default::default())
        && term.selector.matches(&pod.labels)
}

fn came_helps(pod: &PodInfo, came: &PodInfo) -> bool {
    let required = &pod.affinity.required;
    !required.is_empty() && required.iter().all(|term| concerns(term, came))
}

fn gone_helps(pod: &PodInfo, gone: &PodInfo) -> bool {
    pod.affinity.anti_required.iter().any(|term| concerns(term, gone))
        || gone.affinity.anti_required.iter().any(|term| concerns(term, pod))
}

/// Whether the node has all labels that the pod's required affinity goes by.
fn has_keys(pod: &PodInfo, node: &NodeInfo) -> bool {
    pod.affinity.required.iter().all(|t| node.labels.contains_key(&t.topology_key))
}

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn may_help(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::AssignedPodAdd(came) => came_helps(pod, came),
            ClusterEvent::AssignedPodUpdate(old, new) => {
                (came_helps(pod, new) && !came_helps(pod, old))
                    || (gone_helps(pod, old) && !gone_helps(pod, new))
            }
            ClusterEvent::AssignedPodDelete(gone) => gone_helps(pod, gone),
            ClusterEvent::NodeAdd(node) => has_keys(pod, node),
            // A node that moves to another domain takes its pods along.
            ClusterEvent::NodeUpdate(old, new) => has_keys(pod, new) && old.labels != new.labels,
            ClusterEvent::NodeDelete(_) | ClusterEvent::Object(_) => false,
            ClusterEvent::PodUpdate => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Cache, Snapshot};
    use k8s_openapi::api::core::v1;
    use serde_json::{Value, json};
    use std::sync::Arc;

    /// A node with labels.
    pub(super) fn node(name: &str, labels: &[(&str, &str)]) -> NodeInfo {
        let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        NodeInfo { name: name.into(), labels, ..NodeInfo::default() }
    }

    /// A pod of namespace `d` with labels and affinity.
    pub(super) fn pod(uid: &str, labels: Value, affinity: Value) -> PodInfo {
        let pod: v1::Pod = serde_json::from_value(json!({
            "metadata": {"name": uid, "namespace": "d", "uid": uid, "labels": labels},
            "spec": {"containers": [], "affinity": affinity}}))
        .unwrap();
        PodInfo::parse(&pod).unwrap()
    }

    /// A term on label `app`.
    pub(super) fn term(app: &str, key: &str) -> Value {
        json!({"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": key})
    }

    pub(super) fn near(terms: &[Value]) -> Value {
        json!({"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}})
    }

    pub(super) fn apart(terms: &[Value]) -> Value {
        json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}})
    }

    /// A snapshot of nodes with pods on them, by the node's index.
    pub(super) fn snapshot(nodes: &[NodeInfo], pods: &[(usize, PodInfo)]) -> Snapshot {
        let mut cache = Cache::default();
        for node in nodes {
            cache.set_node(Arc::new(node.clone()));
        }
        for (at, pod) in pods {
            cache.assume(Arc::new(pod.clone()), &nodes[*at].name);
        }
        cache.snapshot()
    }

    #[test]
    fn hints() {
        let app = |app: &str| Arc::new(pod(app, json!({"app": app}), Value::Null));
        let wants = pod("w", json!({"app": "w"}), near(&[term("a", "zone")]));
        let shuns = pod("s", json!({"app": "s"}), apart(&[term("a", "zone")]));
        let plain = pod("p", json!({"app": "p"}), Value::Null);
        let hater = Arc::new(pod("h", json!({"app": "h"}), apart(&[term("p", "zone")])));
        let helps = |pod: &PodInfo, event: ClusterEvent| InterPodAffinity::default().may_help(pod, &event);
        assert!(helps(&wants, ClusterEvent::AssignedPodAdd(app("a"))));
        assert!(!helps(&wants, ClusterEvent::AssignedPodAdd(app("b"))));
        assert!(!helps(&wants, ClusterEvent::AssignedPodDelete(app("a"))));
        assert!(helps(&wants, ClusterEvent::AssignedPodUpdate(app("b"), app("a"))));
        assert!(helps(&shuns, ClusterEvent::AssignedPodDelete(app("a"))));
        assert!(!helps(&shuns, ClusterEvent::AssignedPodAdd(app("a"))));
        assert!(helps(&shuns, ClusterEvent::AssignedPodUpdate(app("a"), app("b"))));
        assert!(helps(&plain, ClusterEvent::AssignedPodDelete(hater)));
        assert!(!helps(&plain, ClusterEvent::AssignedPodDelete(app("a"))));
        let zoned = Arc::new(node("n", &[("zone", "z")]));
        assert!(helps(&wants, ClusterEvent::NodeAdd(zoned.clone())));
        assert!(!helps(&wants, ClusterEvent::NodeAdd(Arc::new(node("n", &[])))));
        assert!(helps(&wants, ClusterEvent::NodeUpdate(Arc::new(node("n", &[])), zoned.clone())));
        assert!(!helps(&wants, ClusterEvent::NodeUpdate(zoned.clone(), zoned)));
    }
}
