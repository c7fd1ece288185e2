//! Preferred terms, of both sides; and the required affinity of those that are there.

use super::{InterPodAffinity, Topology, over_nodes, selects, takes};
use crate::cache::{NodeState, Snapshot};
use crate::classes::{Class, ClassId};
use crate::framework::{CycleState, MAX_NODE_SCORE, PreScore, Score};
use crate::model::{PodInfo, PodTerm};
use std::collections::BTreeMap;

/// The sum of the weights, by topology.
struct Sums(Topology);

/// What each pod of a class adds, by topology key; `hard` is what another's required affinity adds.
fn weights(pod: &PodInfo, class: &Class, snapshot: &Snapshot, hard: i64) -> Vec<(String, i64)> {
    let of_namespace = snapshot.namespace_labels(&pod.namespace);
    let (own, others) = (&pod.affinity, &class.affinity);
    let on = |t: &PodTerm, weight: i64| (t.topology_key.clone(), weight);
    let mine = |t: &&crate::model::WeightedPodTerm| selects(&t.term, class, snapshot);
    let theirs = |t: &&crate::model::WeightedPodTerm| takes(&t.term, pod, of_namespace);
    let required = others.required.iter().filter(|t| hard > 0 && takes(t, pod, of_namespace));
    let required = required.map(|t| on(t, hard));
    own.preferred
        .iter()
        .filter(mine)
        .chain(others.preferred.iter().filter(theirs))
        .map(|t| on(&t.term, t.weight))
        .chain(
            own.anti_preferred
                .iter()
                .filter(mine)
                .chain(others.anti_preferred.iter().filter(theirs))
                .map(|t| on(&t.term, -t.weight)),
        )
        .chain(required)
        .collect()
}

impl PreScore for InterPodAffinity {
    fn pre_score(&self, state: &mut CycleState, pod: &PodInfo, _: &[NodeState], snapshot: &Snapshot) -> bool {
        let own = &pod.affinity;
        let wishes = !own.preferred.is_empty() || !own.anti_preferred.is_empty();
        if self.0.ignore_preferred_of_existing && !wishes {
            return false;
        }
        let weighted: BTreeMap<ClassId, Vec<(String, i64)>> = snapshot
            .classes
            .iter()
            .map(|(id, class)| (*id, weights(pod, class, snapshot, self.0.hard_weight)))
            .filter(|(_, weights)| !weights.is_empty())
            .collect();
        let mut sums = Topology::default();
        over_nodes(snapshot, &weighted, |node, pods, weights| {
            weights.iter().for_each(|(key, weight)| sums.add(node, key, weight * pods));
        });
        let any = !sums.is_empty();
        state.put(Sums(sums));
        any
    }
}

impl Score for InterPodAffinity {
    fn score(&self, state: &CycleState, _: &PodInfo, node: &NodeState, _: &Snapshot) -> i64 {
        let Some(Sums(sums)) = state.get::<Sums>() else { return 0 };
        sums.0.keys().map(|key| sums.at(&node.info, key)).sum()
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "upstream computes in float64 and truncates"
    )]
    fn normalize(&self, scores: &mut [i64]) {
        let (min, max) = scores.iter().fold((i64::MAX, i64::MIN), |(lo, hi), &s| (lo.min(s), hi.max(s)));
        for score in scores {
            let share = if max > min { (*score - min) as f64 / (max - min) as f64 } else { 0.0 };
            *score = (MAX_NODE_SCORE as f64 * share) as i64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{near, node, pod, snapshot, term};
    use super::*;
    use crate::model::NodeInfo;
    use serde_json::{Value, json};

    fn nodes() -> Vec<NodeInfo> {
        vec![
            node("a", &[("zone", "x"), ("host", "a")]),
            node("b", &[("zone", "x"), ("host", "b")]),
            node("c", &[("zone", "y"), ("host", "c")]),
            node("d", &[]),
        ]
    }

    fn rather(kind: &str, weight: i64, app: &str, key: &str) -> Value {
        json!({kind: {"preferredDuringSchedulingIgnoredDuringExecution":
            [{"weight": weight, "podAffinityTerm": term(app, key)}]}})
    }

    /// Raw and normalised scores of nodes a to d; `None` when there is nothing to score.
    fn scores(pod: &PodInfo, there: &[(usize, PodInfo)]) -> Option<(Vec<i64>, Vec<i64>)> {
        let snapshot = snapshot(&nodes(), there);
        let mut state = CycleState::default();
        if !InterPodAffinity::default().pre_score(&mut state, pod, &snapshot.nodes, &snapshot) {
            return None;
        }
        let raw: Vec<i64> = snapshot
            .nodes
            .iter()
            .map(|n| InterPodAffinity::default().score(&state, pod, n, &snapshot))
            .collect();
        let mut normal = raw.clone();
        InterPodAffinity::default().normalize(&mut normal);
        Some((raw, normal))
    }

    #[test]
    fn what_upstream_scores() {
        let labelled = |uid: &str, app: &str| pod(uid, json!({"app": app}), Value::Null);
        let w = |affinity| pod("w", json!({"app": "w"}), affinity);
        let web = [(0, labelled("1", "web")), (0, labelled("2", "web")), (2, labelled("3", "web"))];
        let likes = |affinity| [(0, pod("l", json!({"app": "l"}), affinity))];
        for (what, incoming, there, want) in [
            ("no wish", w(Value::Null), &web[..], None),
            (
                "near, by zone",
                w(rather("podAffinity", 5, "web", "zone")),
                &web,
                Some((vec![10, 10, 5, 0], vec![100, 100, 50, 0])),
            ),
            (
                "apart, by host",
                w(rather("podAntiAffinity", 3, "web", "host")),
                &web,
                Some((vec![-6, 0, -3, 0], vec![0, 100, 50, 100])),
            ),
            ("nobody there", w(rather("podAffinity", 5, "none", "zone")), &web, None),
            (
                "another's wish",
                w(Value::Null),
                &likes(rather("podAffinity", 7, "w", "zone")),
                Some((vec![7, 7, 0, 0], vec![100, 100, 0, 0])),
            ),
            (
                "another's wish to be apart",
                w(Value::Null),
                &likes(rather("podAntiAffinity", 7, "w", "zone")),
                Some((vec![-7, -7, 0, 0], vec![0, 0, 100, 100])),
            ),
            (
                "another's required affinity",
                w(Value::Null),
                &likes(near(&[term("w", "zone")])),
                Some((vec![1, 1, 0, 0], vec![100, 100, 0, 0])),
            ),
        ] {
            assert_eq!(scores(&incoming, there), want, "{what}");
        }
    }

    #[test]
    fn a_third_is_truncated_and_equals_are_0() {
        let mut third = [0, 1, 3];
        InterPodAffinity::default().normalize(&mut third);
        assert_eq!(third, [0, 33, 100]);
        let mut equal = [4, 4];
        InterPodAffinity::default().normalize(&mut equal);
        assert_eq!(equal, [0, 0]);
    }
}
