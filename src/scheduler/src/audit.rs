//! Self-audit: is what the cache has what the API server says, and does it add up?
//!
//! The cache follows watches and adds and subtracts for weeks. Now and then nodes and pods are listed anew and
//! compared with it, and each node's sums with its pods. A list and the watch are never quite at the same moment, so
//! that only what was found by two audits on end, the pod or node having the same fault, is told: by a warning and a
//! metric. Upstream compares on a signal alone (`backend/cache/debugger/comparer.go`). Nothing is repaired by it: a
//! scheduler that finds itself wrong is to be looked at, and started again.

use crate::cache::{Cache, Usage};
use crate::model::{NodeInfo, PodInfo};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// What an audit found wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The API server has the node, the cache has not.
    NodeMissing(String),
    /// The other way round.
    NodeGone(String),
    /// Both have it, and it is not the same.
    NodeDiffers(String),
    /// The API server has the pod on this node, the cache has it on none.
    PodMissing(String, String),
    /// The cache has the pod on this node, and it is bound to none.
    PodGone(String, String),
    /// The cache has it on the first node, the API server on the second.
    PodElsewhere(String, String, String),
    /// The node's sums are not those of its pods.
    Sums(String),
}

impl Fault {
    /// Every kind.
    pub const KINDS: [&'static str; 7] =
        ["node_missing", "node_gone", "node_differs", "pod_missing", "pod_gone", "pod_elsewhere", "sums"];

    /// The metric's label.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Fault::NodeMissing(_) => "node_missing",
            Fault::NodeGone(_) => "node_gone",
            Fault::NodeDiffers(_) => "node_differs",
            Fault::PodMissing(..) => "pod_missing",
            Fault::PodGone(..) => "pod_gone",
            Fault::PodElsewhere(..) => "pod_elsewhere",
            Fault::Sums(_) => "sums",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::NodeMissing(node) => write!(f, "node {node} is not known"),
            Fault::NodeGone(node) => write!(f, "node {node} is known, and there is none"),
            Fault::NodeDiffers(node) => write!(f, "node {node} is known otherwise than it is"),
            Fault::PodMissing(uid, node) => write!(f, "pod {uid} is on {node}, and not known to be"),
            Fault::PodGone(uid, node) => write!(f, "pod {uid} is known to be on {node}, and is not"),
            Fault::PodElsewhere(uid, known, node) => {
                write!(f, "pod {uid} is known on {known}, and is on {node}")
            }
            Fault::Sums(node) => write!(f, "the sums of node {node} are not those of its pods"),
        }
    }
}

/// What the API server says: the nodes, and the pods that have one and have not ended.
#[derive(Debug, Default)]
pub struct Listed {
    /// The nodes.
    pub nodes: Vec<NodeInfo>,
    /// The pods.
    pub pods: Vec<PodInfo>,
}

/// Compares. What is only assumed is not the API server's to know yet.
#[must_use]
pub fn compare(cache: &mut Cache, listed: &Listed) -> BTreeSet<Fault> {
    let mut out = BTreeSet::new();
    let nodes: BTreeMap<&str, &NodeInfo> = listed.nodes.iter().map(|n| (&*n.name, n)).collect();
    let pods: BTreeMap<&str, &PodInfo> =
        listed.pods.iter().filter(|p| !p.node_name.is_empty()).map(|p| (p.uid.as_str(), p)).collect();
    let snapshot = cache.snapshot();
    for (name, node) in &nodes {
        match snapshot.node(name) {
            None => out.insert(Fault::NodeMissing((*name).to_owned())),
            Some(known) if known.info.bare() != **node => out.insert(Fault::NodeDiffers((*name).to_owned())),
            Some(_) => false,
        };
    }
    for node in snapshot.nodes.iter() {
        let name = &*node.info.name;
        if !nodes.contains_key(name) {
            out.insert(Fault::NodeGone(name.to_owned()));
        }
        let mut sums = Usage::default();
        node.pods.iter().for_each(|p| sums.count(&p.pod));
        if !sums.counts_like(&node.usage) {
            out.insert(Fault::Sums(name.to_owned()));
        }
    }
    for (uid, pod) in &pods {
        match cache.node_of(uid) {
            None => out.insert(Fault::PodMissing((*uid).to_owned(), pod.node_name.clone())),
            Some(known) if known != pod.node_name => {
                out.insert(Fault::PodElsewhere((*uid).to_owned(), known.to_owned(), pod.node_name.clone()))
            }
            Some(_) => false,
        };
    }
    for uid in cache.uids().filter(|uid| !pods.contains_key(uid) && !cache.is_assumed(uid)) {
        let node = cache.node_of(uid).unwrap_or_default();
        out.insert(Fault::PodGone(uid.to_owned(), node.to_owned()));
    }
    out
}

/// The last audit, of which the next one confirms what it found.
#[derive(Debug, Default)]
pub struct Audits {
    last: BTreeSet<Fault>,
}

impl Audits {
    /// One more; what the one before it found too.
    pub fn confirm(&mut self, found: BTreeSet<Fault>) -> Vec<Fault> {
        let both = self.last.intersection(&found).cloned().collect();
        self.last = found;
        both
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Resources;
    use std::sync::Arc;

    fn node(name: &str, cpu: i64) -> NodeInfo {
        let allocatable = Resources { milli_cpu: cpu, ..Resources::default() };
        NodeInfo { name: name.into(), allocatable, allocatable_pods: 9, ..NodeInfo::default() }
    }

    fn pod(uid: &str, node: &str) -> PodInfo {
        let requests = Resources { milli_cpu: 7, ..Resources::default() };
        PodInfo { uid: uid.into(), node_name: node.into(), requests, ..PodInfo::default() }
    }

    fn cache() -> Cache {
        let mut cache = Cache::default();
        for name in ["a", "b"] {
            cache.set_node(Arc::new(node(name, 100)));
        }
        cache.confirm(Arc::new(pod("x", "a")));
        cache.confirm(Arc::new(pod("y", "b")));
        cache
    }

    fn told(listed: &Listed) -> Vec<String> {
        compare(&mut cache(), listed).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn what_is_the_same_is_no_fault_and_everything_else_is() {
        let same = || Listed {
            nodes: vec![node("a", 100), node("b", 100)],
            pods: vec![pod("x", "a"), pod("y", "b"), pod("waits", "")],
        };
        assert_eq!(told(&same()), [""; 0]);
        let mut cache = cache();
        cache.assume(Arc::new(pod("assumed", "")), "a");
        assert!(compare(&mut cache, &same()).is_empty(), "what is assumed nobody else knows");
        let listed =
            Listed { nodes: vec![node("a", 99), node("c", 100)], pods: vec![pod("x", "b"), pod("z", "b")] };
        assert_eq!(
            told(&listed),
            [
                "node c is not known",
                "node b is known, and there is none",
                "node a is known otherwise than it is",
                "pod z is on b, and not known to be",
                "pod y is known to be on b, and is not",
                "pod x is known on a, and is on b",
            ]
        );
        let kinds: BTreeSet<&str> =
            compare(&mut super::tests::cache(), &listed).iter().map(Fault::kind).collect();
        assert_eq!(kinds.len(), 6);
        assert!(kinds.iter().all(|k| Fault::KINDS.contains(k)));
    }

    #[test]
    fn sums_that_are_not_their_pods_are_found() {
        let mut sums = Usage::default();
        sums.count(&pod("x", "a"));
        let mut other = sums.clone();
        assert!(sums.counts_like(&other));
        other.requested.milli_cpu += 1;
        assert!(!sums.counts_like(&other));
    }

    #[test]
    fn only_what_two_audits_find_is_told() {
        let fault = |n: &str| Fault::Sums(n.to_owned());
        let mut audits = Audits::default();
        assert!(audits.confirm([fault("a"), fault("b")].into()).is_empty());
        assert_eq!(audits.confirm([fault("b"), fault("c")].into()), [fault("b")]);
        assert!(audits.confirm([fault("a")].into()).is_empty());
    }
}
