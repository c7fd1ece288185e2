//! ScheduleAnyway: the fewer pods a node's domains have, the better.

use super::tally::{ByDomain, ByNode, Question, Selected};
use super::{HOST, PodTopologySpread};
use crate::cache::{NodeState, Snapshot};
use crate::framework::{CycleState, MAX_NODE_SCORE, PreScore, Score};
use crate::model::PodInfo;
use crate::plugins::args::SpreadArgs;
use std::sync::Arc;

/// The raw score of a node that lacks a label of the pod's own constraints: it gets 0 in the end.
const IGNORED: i64 = -1;

/// What one cycle's scores go by, of a constraint.
struct Scored {
    counted: Counted,
    /// The domains of its label.
    domains: Arc<ByDomain>,
    /// The fewer domains, the less a pod in one of them weighs.
    weight: f64,
    max_skew: i64,
}

/// By the hostname the pods of the node itself count, whatever the policies say of it.
enum Counted {
    ByNode(Arc<ByNode>),
    ByDomain,
}

struct All {
    scored: Vec<Scored>,
    /// A node must have all labels; not so for the defaults.
    require_all: bool,
}

#[expect(clippy::cast_precision_loss, reason = "upstream computes in float64")]
fn weight(domains: usize) -> f64 {
    (domains as f64 + 2.0).ln()
}

/// How many domains these nodes are in. Those without the label, if there are any, are in one of their own.
fn size(domains: &ByDomain, nodes: &[usize]) -> usize {
    let mut seen = vec![false; domains.values() + 1];
    for node in nodes {
        if let Some(seen) = seen.get_mut(domains.domain(*node).unwrap_or(domains.values())) {
            *seen = true;
        }
    }
    seen.iter().filter(|seen| **seen).count()
}

impl All {
    fn of(plugin: &PodTopologySpread, pod: &PodInfo, feasible: &[&NodeState], snapshot: &Snapshot) -> Self {
        let constraints = plugin.constraints(pod, snapshot, false);
        let require_all = !pod.spread.is_empty() || plugin.0 != SpreadArgs::System;
        // A node that is full counts too, one that the policies leave out does not.
        let keys = || constraints.iter().filter(|_| require_all);
        let counts = constraints.iter().map(|c| snapshot.tally::<ByDomain>(&Question::of(c, keys(), pod)));
        let counts: Vec<Arc<ByDomain>> = counts.collect();
        let takes_part = |node: &usize| !require_all || counts.iter().all(|c| c.has(*node));
        let candidates: Vec<usize> = feasible.iter().map(|n| n.at).filter(takes_part).collect();
        let scored = constraints.iter().zip(&counts).map(|(constraint, domains)| {
            let (counted, size) = match constraint.topology_key.as_str() {
                HOST => {
                    let by_node = snapshot.tally::<ByNode>(&Selected::of(constraint, pod));
                    (Counted::ByNode(by_node), candidates.len())
                }
                _ => (Counted::ByDomain, size(domains, &candidates)),
            };
            Scored { counted, domains: domains.clone(), weight: weight(size), max_skew: constraint.max_skew }
        });
        All { scored: scored.collect(), require_all }
    }
}

impl PreScore for PodTopologySpread {
    fn pre_score(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        nodes: &[&NodeState],
        snapshot: &Snapshot,
    ) -> bool {
        let all = All::of(self, pod, nodes, snapshot);
        let any = !all.scored.is_empty();
        state.put(all);
        any
    }
}

impl Score for PodTopologySpread {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "upstream computes in float64 and rounds into an int64"
    )]
    fn score(&self, state: &CycleState, _: &PodInfo, node: &NodeState, _: &Snapshot) -> i64 {
        let Some(All { scored, require_all }) = state.get::<All>() else { return 0 };
        if *require_all && !scored.iter().all(|s| s.domains.has(node.at)) {
            return IGNORED;
        }
        let mut sum = 0.0;
        for Scored { counted, domains, weight, max_skew } in scored.iter().filter(|s| s.domains.has(node.at))
        {
            let count = match counted {
                Counted::ByNode(by_node) => by_node.at(node.at),
                Counted::ByDomain => domains.at(node.at),
            };
            // maxSkew waters down small differences.
            sum += count as f64 * weight + (max_skew - 1) as f64;
        }
        sum.round() as i64
    }

    fn normalize(&self, scores: &mut [i64]) {
        let taken = scores.iter().filter(|&&s| s != IGNORED);
        let (min, max) = taken.fold((i64::MAX, 0), |(min, max), &s| (s.min(min), s.max(max)));
        for score in scores {
            *score = match *score {
                IGNORED => 0,
                _ if max == 0 => MAX_NODE_SCORE,
                s => MAX_NODE_SCORE * (max + min - s) / max,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ZONE;
    use super::super::tests::{constraint, node, pod, snapshot};
    use super::*;
    use crate::model::{NodeInfo, Owner};
    use serde_json::json;

    fn replica() -> PodInfo {
        PodInfo { owner: Some(Owner::ReplicaSet("rs".into())), ..pod(json!([])) }
    }

    /// Raw and normalised scores of the first `feasible` of `nodes`.
    fn scores(pod: &PodInfo, nodes: &[NodeInfo], counts: &[usize], feasible: usize) -> (Vec<i64>, Vec<i64>) {
        let (mut state, snapshot) = (CycleState::default(), snapshot(nodes, counts));
        let nodes: Vec<&NodeState> = snapshot.nodes[..feasible].iter().collect();
        assert!(PodTopologySpread::default().pre_score(&mut state, pod, &nodes, &snapshot));
        let raw: Vec<i64> =
            nodes.iter().map(|n| PodTopologySpread::default().score(&state, pod, n, &snapshot)).collect();
        let mut normal = raw.clone();
        PodTopologySpread::default().normalize(&mut normal);
        (raw, normal)
    }

    // ln(4) = 1.386: two nodes in one nameless zone.
    #[test]
    fn by_default_by_node() {
        let nodes = [node("a", ""), node("b", "")];
        assert_eq!(scores(&replica(), &nodes, &[0, 0], 2), (vec![2, 2], vec![100, 100]));
        assert_eq!(scores(&replica(), &nodes, &[1, 0], 2), (vec![3, 2], vec![66, 100]));
        assert_eq!(scores(&replica(), &nodes, &[5, 1], 2), (vec![9, 3], vec![33, 100]));
    }

    // Three nodes in two zones: ln(5) a pod of the node, ln(4) a pod of the zone, 2 + 4 of slack.
    #[test]
    fn by_default_by_zone_too_and_a_full_node_counts_in_its_zone() {
        let nodes = [node("a", "x"), node("b", "x"), node("c", "y")];
        assert_eq!(scores(&replica(), &nodes, &[0, 2, 0], 3), (vec![9, 12, 6], vec![75, 50, 100]));
        let nodes = [node("a", "x"), node("c", "y"), node("full", "x")];
        // Two feasible nodes: ln(4) for both topologies.
        assert_eq!(scores(&replica(), &nodes, &[0, 0, 3], 2), (vec![10, 6], vec![60, 100]));
    }

    #[test]
    fn a_node_that_the_pods_affinity_excludes_does_not_count() {
        let nodes = [node("a", "x"), node("out", "x")];
        let mut pod = replica();
        pod.node_selector.insert(HOST.into(), "a".into());
        assert_eq!(scores(&pod, &nodes, &[0, 3], 1).0, [6]);
    }

    #[test]
    fn own_constraints_take_the_place_of_the_defaults() {
        let soft = |key: &str| constraint(key, 1, "ScheduleAnyway", json!({}));
        let nodes = [node("a", "x"), node("b", "x"), node("c", "y"), node("d", "")];
        // Two zones: ln(4); d has no zone and is worth nothing.
        let by_zone = PodInfo { owner: Some(Owner::ReplicaSet("rs".into())), ..pod(json!([soft(ZONE)])) };
        let want = (vec![3, 3, 1, -1], vec![33, 33, 100, 0]);
        assert_eq!(scores(&by_zone, &nodes, &[2, 0, 1, 9], 4), want);
        // By host too: a, b and c are candidates, ln(5) a pod. a: 2·ln4 + 2·ln5 = 5.99.
        let both = pod(json!([soft(ZONE), soft(HOST)]));
        let want = (vec![6, 3, 3, -1], vec![50, 100, 100, 0]);
        assert_eq!(scores(&both, &nodes, &[2, 0, 1, 9], 4), want);
    }

    #[test]
    fn a_pod_without_controller_or_soft_constraints_is_not_scored() {
        let snapshot = snapshot(&[node("a", "")], &[0]);
        for pod in [pod(json!([])), pod(json!([constraint(HOST, 1, "DoNotSchedule", json!({}))]))] {
            let says = PodTopologySpread::default().pre_score(
                &mut CycleState::default(),
                &pod,
                &[&snapshot.nodes[0]],
                &snapshot,
            );
            assert!(!says);
        }
    }

    #[test]
    fn nothing_to_tell_apart_is_all_good() {
        let mut zeros = [0, 0];
        PodTopologySpread::default().normalize(&mut zeros);
        assert_eq!(zeros, [100, 100]);
    }
}
