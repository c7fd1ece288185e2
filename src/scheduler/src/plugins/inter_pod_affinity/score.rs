//! Preferred terms, of both sides; and the required affinity of those that are there.

use super::InterPodAffinity;
use super::tally::{Having, Kind, Matching};
use crate::cache::{NodeState, Snapshot, Sums};
use crate::framework::{CycleState, MAX_NODE_SCORE, PreScore, Score};
use crate::model::{PodInfo, WeightedPodTerm};
use std::sync::Arc;

/// What a node's score is the sum of: what is counted in its topology, times a factor.
struct Parts(Vec<(i64, Arc<Sums>)>);

impl Parts {
    fn of(pod: &PodInfo, snapshot: &Snapshot, hard: i64) -> Self {
        let own = &pod.affinity;
        let mut parts = Vec::new();
        let mut mine = |terms: &[WeightedPodTerm], sign: i64| {
            for WeightedPodTerm { weight, term } in terms {
                let matching = snapshot.tally::<Matching>(&vec![term.clone()]);
                parts.extend(matching.0.iter().map(|sums| (sign * weight, sums.clone())));
            }
        };
        mine(&own.preferred, 1);
        mine(&own.anti_preferred, -1);
        // What another's required affinity adds is for the profile to say.
        for (kind, factor) in [(Kind::Preferred, 1), (Kind::AntiPreferred, -1), (Kind::Required, hard)] {
            if factor != 0 {
                let theirs = snapshot.tally::<Having>(&kind).against(pod, snapshot);
                parts.extend(theirs.into_iter().map(|(_, sums)| (factor, sums)));
            }
        }
        parts.retain(|(_, sums)| !sums.is_empty());
        Parts(parts)
    }
}

impl PreScore for InterPodAffinity {
    fn pre_score(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        _: &[&NodeState],
        snapshot: &Snapshot,
    ) -> bool {
        let own = &pod.affinity;
        let wishes = !own.preferred.is_empty() || !own.anti_preferred.is_empty();
        if self.0.ignore_preferred_of_existing && !wishes {
            return false;
        }
        let parts = Parts::of(pod, snapshot, self.0.hard_weight);
        let any = !parts.0.is_empty();
        state.put(parts);
        any
    }
}

impl Score for InterPodAffinity {
    fn score(&self, state: &CycleState, _: &PodInfo, node: &NodeState, _: &Snapshot) -> i64 {
        let Some(Parts(parts)) = state.get::<Parts>() else { return 0 };
        parts.iter().map(|(factor, sums)| factor * sums.at(node.at)).sum()
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
        if !InterPodAffinity::default().pre_score(&mut state, pod, &[], &snapshot) {
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
