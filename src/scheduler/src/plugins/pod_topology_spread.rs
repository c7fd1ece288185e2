//! PodTopologySpread's system defaults: the pods of one controller rather not on one node or in one zone.
//!
//! Upstream counts the pods that the controller's selector and those of the matching Services select
//! (`plugins/helper/spread.go`). The pods of a controller have one template's labels, so that counting
//! by its UID finds the same ones with one look-up a node. What this leaves out: a pod without a
//! controller that a Service selects, and a pod's own constraints, which its record names.

use super::node_affinity;
use crate::cache::{NodeState, Snapshot};
use crate::framework::{ClusterEvent, CycleState, MAX_NODE_SCORE, Plugin, PreScore, Score};
use crate::model::PodInfo;
use std::collections::BTreeMap;

/// The plugin.
pub struct PodTopologySpread;

const HOST: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";
/// The defaults' maxSkew, less 1: it waters down small differences.
const HOST_SLACK: f64 = 2.0;
const ZONE_SLACK: f64 = 4.0;

/// What one cycle's scores go by.
struct Counts {
    host_weight: f64,
    zone_weight: f64,
    /// The controller's pods by zone, for the zones of feasible nodes. A node without the label counts
    /// as in one of no name, which has a weight and is not scored.
    zones: BTreeMap<String, i64>,
}

fn zone(node: &NodeState) -> &str {
    node.info.labels.get(ZONE).map_or("", String::as_str)
}

fn owned(pod: &PodInfo, node: &NodeState) -> i64 {
    pod.owner.as_ref().and_then(|owner| node.usage.owned.get(owner)).copied().unwrap_or(0)
}

/// The fewer values a topology has, the less a pod in one of them weighs.
#[expect(clippy::cast_precision_loss, reason = "upstream computes in float64")]
fn weight(size: usize) -> f64 {
    (size as f64 + 2.0).ln()
}

#[expect(clippy::cast_precision_loss, reason = "upstream computes in float64")]
fn cost(count: i64, slack: f64, weight: f64) -> f64 {
    count as f64 * weight + slack
}

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn may_help(&self, _: &PodInfo, _: &ClusterEvent) -> bool {
        false
    }
}

impl PreScore for PodTopologySpread {
    fn pre_score(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        nodes: &[NodeState],
        snapshot: &Snapshot,
    ) -> bool {
        if pod.owner.is_none() || pod.spreads_itself {
            return false;
        }
        let mut zones: BTreeMap<String, i64> = nodes.iter().map(|n| (zone(n).to_owned(), 0)).collect();
        // A node that is full counts too, one that the pod's affinity excludes does not.
        for node in snapshot.nodes.iter().filter(|n| node_affinity::accepts(pod, &n.info)) {
            if let Some(count) = zones.get_mut(zone(node)) {
                *count += owned(pod, node);
            }
        }
        state.put(Counts { host_weight: weight(nodes.len()), zone_weight: weight(zones.len()), zones });
        true
    }
}

impl Score for PodTopologySpread {
    #[expect(clippy::cast_possible_truncation, reason = "upstream rounds its float64 into an int64")]
    fn score(&self, state: &CycleState, pod: &PodInfo, node: &NodeState, _: &Snapshot) -> i64 {
        let Some(counts) = state.get::<Counts>() else { return 0 };
        let mut sum = 0.0;
        if node.info.labels.contains_key(HOST) {
            sum += cost(owned(pod, node), HOST_SLACK, counts.host_weight);
        }
        if let Some(zone) = node.info.labels.get(ZONE) {
            let count = counts.zones.get(zone).copied().unwrap_or(0);
            sum += cost(count, ZONE_SLACK, counts.zone_weight);
        }
        sum.round() as i64
    }

    fn normalize(&self, scores: &mut [i64]) {
        let (min, max) = scores.iter().fold((i64::MAX, 0), |(min, max), &s| (s.min(min), s.max(max)));
        for score in scores {
            *score = if max == 0 { MAX_NODE_SCORE } else { MAX_NODE_SCORE * (max + min - *score) / max };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Usage;
    use crate::model::NodeInfo;
    use std::sync::Arc;

    fn node(name: &str, zone: Option<&str>, pods: i64) -> NodeState {
        let mut labels = BTreeMap::from([(HOST.to_owned(), name.to_owned())]);
        labels.extend(zone.map(|z| (ZONE.to_owned(), z.to_owned())));
        let usage = Usage { owned: BTreeMap::from([("rs".to_owned(), pods)]), ..Usage::default() };
        NodeState {
            info: Arc::new(NodeInfo { name: name.into(), labels, ..NodeInfo::default() }),
            usage: Arc::new(usage),
        }
    }

    fn replica() -> PodInfo {
        PodInfo { owner: Some("rs".into()), ..PodInfo::default() }
    }

    fn snapshot(nodes: &[NodeState]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        snapshot.nodes = Arc::new(nodes.to_vec());
        snapshot
    }

    /// Raw and normalised scores of the first `feasible` of `nodes`.
    fn scores(nodes: &[NodeState], feasible: usize) -> (Vec<i64>, Vec<i64>) {
        let (mut state, snapshot, pod) = (CycleState::default(), snapshot(nodes), replica());
        assert!(PodTopologySpread.pre_score(&mut state, &pod, &nodes[..feasible], &snapshot));
        let raw: Vec<i64> =
            nodes[..feasible].iter().map(|n| PodTopologySpread.score(&state, &pod, n, &snapshot)).collect();
        let mut normal = raw.clone();
        PodTopologySpread.normalize(&mut normal);
        (raw, normal)
    }

    // ln(4) = 1.386: two nodes in one nameless zone.
    #[test]
    fn by_node() {
        assert_eq!(scores(&[node("a", None, 0), node("b", None, 0)], 2), (vec![2, 2], vec![100, 100]));
        assert_eq!(scores(&[node("a", None, 1), node("b", None, 0)], 2), (vec![3, 2], vec![66, 100]));
        assert_eq!(scores(&[node("a", None, 5), node("b", None, 1)], 2), (vec![9, 3], vec![33, 100]));
    }

    // Three nodes in two zones: ln(5) a pod of the node, ln(4) a pod of the zone, 2 + 4 of slack.
    #[test]
    fn by_zone_too_and_a_full_node_counts_in_its_zone() {
        let nodes = [node("a", Some("x"), 0), node("b", Some("x"), 2), node("c", Some("y"), 0)];
        assert_eq!(scores(&nodes, 3), (vec![9, 12, 6], vec![75, 50, 100]));
        let nodes = [node("a", Some("x"), 0), node("c", Some("y"), 0), node("full", Some("x"), 3)];
        // Two feasible nodes: ln(4) for both topologies.
        assert_eq!(scores(&nodes, 2), (vec![10, 6], vec![60, 100]));
    }

    #[test]
    fn a_node_that_the_pods_affinity_excludes_does_not_count() {
        let nodes = [node("a", Some("x"), 0), node("out", Some("x"), 3)];
        let pod = PodInfo { node_selector: BTreeMap::from([(HOST.to_owned(), "a".to_owned())]), ..replica() };
        let mut state = CycleState::default();
        PodTopologySpread.pre_score(&mut state, &pod, &nodes[..1], &snapshot(&nodes));
        assert_eq!(PodTopologySpread.score(&state, &pod, &nodes[0], &snapshot(&nodes)), 6);
    }

    #[test]
    fn only_replicas_without_constraints_of_their_own() {
        let nodes = [node("a", None, 0)];
        for pod in [PodInfo::default(), PodInfo { spreads_itself: true, ..replica() }] {
            let says =
                PodTopologySpread.pre_score(&mut CycleState::default(), &pod, &nodes, &snapshot(&nodes));
            assert!(!says);
        }
    }

    #[test]
    fn nothing_to_tell_apart_is_all_good() {
        let mut zeros = [0, 0];
        PodTopologySpread.normalize(&mut zeros);
        assert_eq!(zeros, [100, 100]);
    }
}
