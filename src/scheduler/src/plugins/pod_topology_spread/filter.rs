//! DoNotSchedule: a node whose domain would be too far above the emptiest refuses.

use super::PodTopologySpread;
use super::tally::{ByDomain, Question};
use crate::cache::{NodeState, Snapshot};
use crate::framework::{CycleState, Filter, Plugin as _, PreFilter, PreFilterResult, Shift, Status};
use crate::model::{PodInfo, SpreadConstraint};
use std::sync::Arc;

const REASON: &str = "node(s) didn't match pod topology spread constraints";
const NO_LABEL: &str = "node(s) didn't match pod topology spread constraints (missing required label)";

/// A constraint and what its domains have.
#[derive(Clone)]
struct Domains {
    constraint: SpreadConstraint,
    /// 1 when the constraint counts the pod itself.
    itself: i64,
    counts: Arc<ByDomain>,
    /// The highest count that a domain may have before the pod comes.
    limit: i64,
}

#[derive(Clone)]
struct All(Vec<Domains>);

impl Domains {
    fn of(
        constraint: &SpreadConstraint,
        all: &[SpreadConstraint],
        pod: &PodInfo,
        snapshot: &Snapshot,
    ) -> Self {
        let mut domains = Domains {
            constraint: constraint.clone(),
            itself: i64::from(constraint.selector.matches(&pod.labels)),
            counts: snapshot.tally(&Question::of(constraint, all, pod)),
            limit: 0,
        };
        domains.set_limit();
        domains
    }

    fn set_limit(&mut self) {
        let emptiest = self.counts.emptiest(self.constraint.min_domains);
        self.limit = self.constraint.max_skew + emptiest - self.itself;
    }

    /// Upstream's `updateWithPod`: it does not ask whether the pod is being deleted.
    fn shift(&mut self, shift: &Shift<'_>) {
        if self.constraint.selector.matches(&shift.other.labels) {
            Arc::make_mut(&mut self.counts).add(shift.at, shift.by);
            self.set_limit();
        }
    }
}

impl PreFilter for PodTopologySpread {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
    ) -> Result<PreFilterResult, Status> {
        let all = self.constraints(pod, snapshot, true);
        let domains: Vec<Domains> = all.iter().map(|c| Domains::of(c, &all, pod, snapshot)).collect();
        if domains.is_empty() {
            return Ok(PreFilterResult::Skip);
        }
        state.put(All(domains));
        Ok(PreFilterResult::All)
    }

    fn shift(&self, state: &mut CycleState, shift: &Shift<'_>) {
        if shift.other.namespace != shift.pod.namespace {
            return;
        }
        state.update::<All>(|All(all)| all.iter_mut().for_each(|domains| domains.shift(shift)));
    }
}

impl Filter for PodTopologySpread {
    fn filter(&self, state: &CycleState, _: &PodInfo, node: &NodeState) -> Result<(), Status> {
        for domains in state.get::<All>().into_iter().flat_map(|All(all)| all) {
            if !domains.counts.has(node.at) {
                return Err(Status::unresolvable(self.name(), NO_LABEL));
            }
            if domains.counts.at(node.at) > domains.limit {
                return Err(Status::unschedulable(self.name(), REASON));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{constraint, node, pod, snapshot};
    use super::super::{HOST, ZONE};
    use super::*;
    use crate::framework::Code;
    use crate::model::node::{Effect, Taint};
    use serde_json::{Value, json};

    const HARD: &str = "DoNotSchedule";

    /// By node: `.` passes, `S` skew, `L` no label.
    fn verdicts(pod: &PodInfo, snapshot: &Snapshot) -> String {
        let mut state = CycleState::default();
        if PodTopologySpread::default().pre_filter(&mut state, pod, snapshot) == Ok(PreFilterResult::Skip) {
            return "skip".to_owned();
        }
        let one = |node: &NodeState| match PodTopologySpread::default().filter(&state, pod, node) {
            Ok(()) => '.',
            Err(status) if status.reasons == [REASON] && status.code == Code::Unschedulable => 'S',
            Err(status) if status.reasons == [NO_LABEL] => {
                assert_eq!(status.code, Code::UnschedulableAndUnresolvable);
                'L'
            }
            Err(other) => panic!("{other:?}"),
        };
        snapshot.nodes.iter().map(one).collect()
    }

    /// Nodes a and b in zone x, c and d in y, e without a zone.
    fn nodes() -> [crate::model::NodeInfo; 5] {
        [node("a", "x"), node("b", "x"), node("c", "y"), node("d", "y"), node("e", "")]
    }

    #[test]
    fn what_upstream_says_of_each_node() {
        let c = |key: &str, skew: i64, more: Value| constraint(key, skew, HARD, more);
        let none = || json!({});
        for (what, constraints, counts, want) in [
            ("no constraint", json!([]), [3, 0, 0, 0, 0], "skip"),
            ("soft only", json!([constraint(ZONE, 1, "ScheduleAnyway", none())]), [3, 0, 0, 0, 0], "skip"),
            ("even", json!([c(ZONE, 1, none())]), [1, 0, 1, 0, 0], "....L"),
            ("skew by zone", json!([c(ZONE, 1, none())]), [1, 1, 1, 0, 0], "SS..L"),
            ("more skew is allowed", json!([c(ZONE, 2, none())]), [1, 1, 1, 0, 0], "....L"),
            ("by host, the emptiest has none", json!([c(HOST, 1, none())]), [1, 0, 2, 0, 0], "S.S.."),
            ("by host, all have one", json!([c(HOST, 1, none())]), [1, 1, 2, 1, 1], "..S.."),
            (
                "both, e is in no zone and does not count as a host",
                json!([c(ZONE, 1, none()), c(HOST, 1, none())]),
                [2, 1, 1, 1, 0],
                "SS..L",
            ),
            ("too few domains", json!([c(ZONE, 1, json!({"minDomains": 3}))]), [1, 0, 1, 0, 0], "SSSSL"),
            ("enough domains", json!([c(ZONE, 1, json!({"minDomains": 2}))]), [1, 0, 1, 0, 0], "....L"),
            (
                "the pod itself is not selected",
                json!([c(ZONE, 1, json!({"labelSelector": {"matchLabels": {"app": "other"}}}))]),
                [5, 0, 0, 0, 0],
                "....L",
            ),
            (
                "an empty selector counts nothing",
                json!([c(ZONE, 1, json!({"labelSelector": {}}))]),
                [5, 0, 0, 0, 0],
                "....L",
            ),
        ] {
            assert_eq!(verdicts(&pod(constraints), &snapshot(&nodes(), &counts)), want, "{what}");
        }
    }

    #[test]
    fn the_policies_leave_nodes_out() {
        let mut nodes = nodes();
        // Zone y is out of the pod's reach: with Honor (the default) only x is a domain.
        let selects = |policy: Value| {
            let mut pod = pod(json!([constraint(ZONE, 1, HARD, policy)]));
            pod.node_selector.insert(ZONE.into(), "x".into());
            pod
        };
        let counts = [1, 1, 0, 0, 0];
        assert_eq!(verdicts(&selects(json!({})), &snapshot(&nodes, &counts)), "....L");
        let ignore = json!({"nodeAffinityPolicy": "Ignore"});
        assert_eq!(verdicts(&selects(ignore), &snapshot(&nodes, &counts)), "SS..L");
        let taint = Taint { key: "k".into(), value: String::new(), effect: Effect::NoSchedule };
        for at in [2, 3] {
            nodes[at].taints.push(taint.clone());
        }
        let taints = |policy: Value| pod(json!([constraint(ZONE, 1, HARD, policy)]));
        assert_eq!(verdicts(&taints(json!({})), &snapshot(&nodes, &counts)), "SS..L");
        let honor = json!({"nodeTaintsPolicy": "Honor"});
        assert_eq!(verdicts(&taints(honor), &snapshot(&nodes, &counts)), "....L");
    }

    #[test]
    fn match_label_keys_tell_revisions_apart() {
        let mut pod = pod(json!([constraint(ZONE, 1, HARD, json!({}))]));
        let snapshot = snapshot(&nodes(), &[3, 0, 0, 0, 0]);
        assert_eq!(verdicts(&pod, &snapshot), "SS..L");
        // The pods that are there have no such label.
        pod.labels.insert("hash".into(), "2".into());
        pod.spread[0].selector = pod.spread[0].selector.clone().and("hash", "2");
        assert_eq!(verdicts(&pod, &snapshot), "....L");
    }
}
