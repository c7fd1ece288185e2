//! Required terms: of the incoming pod, and of those that are there against it.

use super::tally::{Having, Kind, Matching};
use super::{InterPodAffinity, takes};
use crate::cache::{NodeState, Snapshot, Sums};
use crate::framework::{CycleState, Filter, Plugin as _, PreFilter, PreFilterResult, Shift, Status};
use crate::model::{PodInfo, PodTerm};
use std::sync::Arc;

const AFFINITY: &str = "node(s) didn't match pod affinity rules";
const ANTI_AFFINITY: &str = "node(s) didn't match pod anti-affinity rules";
const EXISTING: &str = "node(s) didn't satisfy existing pods anti-affinity rules";

/// What is counted, by topology.
#[derive(Clone, Debug)]
struct Counts {
    /// Pods that match all of the incoming pod's affinity terms, by each of them.
    near: Vec<Arc<Sums>>,
    /// Pods that match its anti-affinity terms, by each of them.
    apart: Vec<Arc<Sums>>,
    /// Pods with an anti-affinity term that matches it, by each such term.
    existing: Vec<(Arc<PodTerm>, Arc<Sums>)>,
    /// It matches its own affinity terms, and so may be the first.
    matches_itself: bool,
}

impl Counts {
    fn of(pod: &PodInfo, snapshot: &Snapshot) -> Self {
        let of_namespace = snapshot.namespace_labels(&pod.namespace);
        let own = &pod.affinity;
        let matching = |terms: &[PodTerm]| snapshot.tally::<Matching>(&terms.to_vec()).0.clone();
        Counts {
            near: if own.required.is_empty() { Vec::new() } else { matching(&own.required) },
            apart: own.anti_required.iter().flat_map(|t| matching(std::slice::from_ref(t))).collect(),
            existing: snapshot.tally::<Having>(&Kind::AntiRequired).against(pod, snapshot),
            matches_itself: own.required.iter().all(|t| takes(t, pod, of_namespace)),
        }
    }

    /// Upstream's `updateWithPod`.
    fn shift(&mut self, shift: &Shift<'_>) {
        let (own, snapshot) = (&shift.pod.affinity, shift.snapshot);
        let labels = |pod: &PodInfo| snapshot.namespace_labels(&pod.namespace);
        let other = |t: &PodTerm| takes(t, shift.other, labels(shift.other));
        let add = |sums: &mut Arc<Sums>| {
            Arc::make_mut(sums).add(shift.at, shift.by);
        };
        if !own.required.is_empty() && own.required.iter().all(other) {
            self.near.iter_mut().for_each(add);
        }
        for (sums, _) in self.apart.iter_mut().zip(&own.anti_required).filter(|(_, t)| other(t)) {
            add(sums);
        }
        let against = shift.other.affinity.anti_required.iter();
        for term in against.filter(|t| takes(t, shift.pod, labels(shift.pod))) {
            match self.existing.iter_mut().find(|(known, _)| **known == *term) {
                Some((_, sums)) => add(sums),
                None => {
                    let mut sums = Arc::new(Sums::over(snapshot.domains(&term.topology_key)));
                    add(&mut sums);
                    self.existing.push((Arc::new(term.clone()), sums));
                }
            }
        }
    }

    /// A pod that matches its own terms may be the first where nobody matches them, if the node has the labels.
    fn affinity_holds(&self, node: &NodeState) -> bool {
        self.near.iter().all(|sums| sums.has(node.at))
            && (self.near.iter().all(|sums| sums.at(node.at) > 0)
                || (self.matches_itself && self.near.iter().all(|sums| sums.is_empty())))
    }
}

impl PreFilter for InterPodAffinity {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
    ) -> Result<PreFilterResult, Status> {
        let counts = Counts::of(pod, snapshot);
        let own = &pod.affinity;
        if counts.existing.is_empty() && own.required.is_empty() && own.anti_required.is_empty() {
            return Ok(PreFilterResult::Skip);
        }
        state.put(counts);
        Ok(PreFilterResult::All)
    }

    fn shift(&self, state: &mut CycleState, shift: &Shift<'_>) {
        state.update::<Counts>(|counts| counts.shift(shift));
    }
}

impl Filter for InterPodAffinity {
    fn filter(&self, state: &CycleState, _: &PodInfo, node: &NodeState) -> Result<(), Status> {
        let Some(counts) = state.get::<Counts>() else { return Ok(()) };
        if !counts.affinity_holds(node) {
            return Err(Status::unresolvable(self.name(), AFFINITY));
        }
        if counts.apart.iter().any(|sums| sums.at(node.at) > 0) {
            return Err(Status::unschedulable(self.name(), ANTI_AFFINITY));
        }
        if counts.existing.iter().any(|(_, sums)| sums.at(node.at) > 0) {
            return Err(Status::unschedulable(self.name(), EXISTING));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{apart, near, node, pod, snapshot, term};
    use super::*;
    use crate::cache::Cache;
    use crate::framework::Code;
    use crate::model::NodeInfo;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    fn nodes() -> Vec<NodeInfo> {
        vec![
            node("a", &[("zone", "x"), ("host", "a")]),
            node("b", &[("zone", "x"), ("host", "b")]),
            node("c", &[("zone", "y"), ("host", "c")]),
            node("bare", &[]),
        ]
    }

    /// For each node by name (a, b, bare, c) whether it passes, by a letter: `.` passes, `A` affinity,
    /// `N` anti-affinity, `E` existing pods' anti-affinity.
    fn verdicts(pod: &PodInfo, snapshot: &Snapshot) -> String {
        let mut state = CycleState::default();
        let found = InterPodAffinity::default().pre_filter(&mut state, pod, snapshot).unwrap();
        if found == PreFilterResult::Skip {
            return "skip".to_owned();
        }
        let one = |node: &NodeState| match InterPodAffinity::default().filter(&state, pod, node) {
            Ok(()) => '.',
            Err(status) => {
                let (letter, code) = match &*status.reasons[0] {
                    AFFINITY => ('A', Code::UnschedulableAndUnresolvable),
                    ANTI_AFFINITY => ('N', Code::Unschedulable),
                    _ => ('E', Code::Unschedulable),
                };
                assert_eq!(status.code, code);
                letter
            }
        };
        snapshot.nodes.iter().map(one).collect()
    }

    #[test]
    fn what_upstream_says_of_each_node() {
        let app = |app: &str| pod(app, json!({"app": app}), Value::Null);
        let on_a = [(0, app("web"))];
        let both = [(0, app("web")), (2, pod("second", json!({"app": "web"}), Value::Null))];
        let hater = |key| [(0, pod("h", json!({"app": "h"}), apart(&[term("w", key)])))];
        let w = |affinity| pod("w", json!({"app": "w"}), affinity);
        for (what, incoming, there, want) in [
            ("no terms anywhere", w(Value::Null), &on_a[..], "skip"),
            ("near, in the zone", w(near(&[term("web", "zone")])), &on_a, "..AA"),
            ("near, on the host", w(near(&[term("web", "host")])), &on_a, ".AAA"),
            ("near, nobody there", w(near(&[term("none", "zone")])), &on_a, "AAAA"),
            ("the first of its kind", w(near(&[term("w", "zone")])), &on_a, "..A."),
            (
                "two terms, one pod matches both",
                w(near(&[term("web", "zone"), term("web", "host")])),
                &on_a,
                ".AAA",
            ),
            (
                "two terms, no pod matches both",
                w(near(&[term("web", "zone"), term("w", "zone")])),
                &on_a,
                "AAAA",
            ),
            ("apart, in the zone", w(apart(&[term("web", "zone")])), &on_a, "NN.."),
            ("apart, on the host", w(apart(&[term("web", "host")])), &on_a, "N..."),
            (
                "apart, one of two terms",
                w(apart(&[term("none", "zone"), term("web", "host")])),
                &both,
                "N..N",
            ),
            ("another's anti-affinity, zone", w(Value::Null), &hater("zone"), "EE.."),
            ("another's anti-affinity, host", w(Value::Null), &hater("host"), "E..."),
            ("another's, on a label nobody has", w(Value::Null), &hater("rack"), "skip"),
        ] {
            assert_eq!(verdicts(&incoming, &snapshot(&nodes(), there)), want, "{what}");
        }
    }

    #[test]
    fn own_affinity_is_told_before_others() {
        let mut both = near(&[term("web", "zone")]);
        both["podAntiAffinity"] = apart(&[term("web", "host")])["podAntiAffinity"].clone();
        let there = [(0, pod("web", json!({"app": "web"}), Value::Null))];
        let incoming = pod("w", json!({"app": "w"}), both);
        assert_eq!(verdicts(&incoming, &snapshot(&nodes(), &there)), "N.AA");
    }

    #[test]
    fn namespaces_are_selected_by_their_labels() {
        let mut other = pod("web", json!({"app": "web"}), Value::Null);
        other.namespace = "other".into();
        let mut cache = Cache::default();
        nodes().into_iter().for_each(|n| drop(cache.set_node(Arc::new(n))));
        cache.assume(Arc::new(other), "a");
        let team = |team: &str| {
            let mut term = term("web", "host");
            term["namespaceSelector"] = json!({"matchLabels": {"team": team}});
            pod("w", json!({}), apart(&[term]))
        };
        cache.set_namespace("other", BTreeMap::from([("team".to_owned(), "red".to_owned())]));
        assert_eq!(verdicts(&team("red"), &cache.snapshot()), "N...");
        assert_eq!(verdicts(&team("blue"), &cache.snapshot()), "....");
        assert_eq!(verdicts(&pod("w", json!({}), apart(&[term("web", "host")])), &cache.snapshot()), "....");
    }

    #[test]
    fn a_pod_that_is_being_deleted_still_counts() {
        let leaving = PodInfo { deleting: true, ..pod("web", json!({"app": "web"}), Value::Null) };
        let incoming = pod("w", json!({}), apart(&[term("web", "host")]));
        assert_eq!(verdicts(&incoming, &snapshot(&nodes(), &[(0, leaving)])), "N...");
    }
}
