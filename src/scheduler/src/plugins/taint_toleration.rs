//! Taints: NoSchedule and NoExecute refuse, PreferNoSchedule costs score.

use crate::cache::{NodeState, Snapshot};
use crate::framework::{ClusterEvent, CycleState, Filter, GoesBy, Plugin, Score, Status, default_normalize};
use crate::model::node::Effect;
use crate::model::{NodeInfo, Part, PodInfo};

/// The plugin.
pub struct TaintToleration;

const REASON: &str = "node(s) had untolerated taint(s)";

/// True when the pod tolerates all taints that keep pods off.
pub(crate) fn accepts(pod: &PodInfo, node: &NodeInfo) -> bool {
    node.taints
        .iter()
        .filter(|t| t.effect != Effect::PreferNoSchedule)
        .all(|taint| pod.tolerations.iter().any(|t| t.tolerates(taint)))
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn goes_by(&self) -> GoesBy {
        GoesBy::Node(&[Part::Tolerations])
    }

    fn hears(&self, event: &ClusterEvent) -> bool {
        event.is_of_node()
    }

    fn may_help(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::NodeAdd(new) => accepts(pod, new),
            ClusterEvent::NodeUpdate(old, new) => accepts(pod, new) && !accepts(pod, old),
            ClusterEvent::PodUpdate => true,
            _ => false,
        }
    }
}

impl Filter for TaintToleration {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeState) -> Result<(), Status> {
        if accepts(pod, &node.info) { Ok(()) } else { Err(Status::unresolvable(self.name(), REASON)) }
    }
}

impl Score for TaintToleration {
    fn score(&self, _: &CycleState, pod: &PodInfo, node: &NodeState, _: &Snapshot) -> i64 {
        let counted = node.info.taints.iter().filter(|taint| {
            taint.effect == Effect::PreferNoSchedule && !pod.tolerations.iter().any(|t| t.tolerates(taint))
        });
        i64::try_from(counted.count()).unwrap_or(i64::MAX)
    }

    fn normalize(&self, scores: &mut [i64]) {
        default_normalize(scores, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Toleration;
    use crate::model::node::Taint;

    fn node(effects: &[Effect]) -> NodeState {
        let taints = effects
            .iter()
            .enumerate()
            .map(|(i, &effect)| Taint { key: format!("k{i}"), value: String::new(), effect })
            .collect();
        NodeState::of(NodeInfo { taints, ..NodeInfo::default() })
    }

    fn tolerating(key: &str, effect: Option<Effect>) -> PodInfo {
        let t = Toleration { key: key.into(), exists: true, value: String::new(), effect };
        PodInfo { tolerations: vec![t], ..PodInfo::default() }
    }

    #[test]
    fn filter_table() {
        use Effect::{NoExecute, NoSchedule, PreferNoSchedule};
        let none = PodInfo::default();
        let state = CycleState::default();
        for (pod, effects, passes) in [
            (&none, &[][..], true),
            (&none, &[PreferNoSchedule][..], true),
            (&none, &[NoSchedule][..], false),
            (&none, &[NoExecute][..], false),
            (&tolerating("k0", None), &[NoSchedule][..], true),
            (&tolerating("k0", Some(NoSchedule)), &[NoExecute][..], false),
            (&tolerating("k0", None), &[NoSchedule, NoSchedule][..], false),
            (&tolerating("", None), &[NoSchedule, NoExecute][..], true),
        ] {
            assert_eq!(TaintToleration.filter(&state, pod, &node(effects)).is_ok(), passes, "{effects:?}");
        }
    }

    #[test]
    fn fewer_untolerated_soft_taints_score_higher() {
        use Effect::PreferNoSchedule as Soft;
        let state = CycleState::default();
        let pod = tolerating("k0", Some(Effect::NoSchedule));
        let snapshot = Snapshot::default();
        let mut raw: Vec<i64> = [&[][..], &[Soft], &[Soft, Soft, Soft]]
            .iter()
            .map(|e| TaintToleration.score(&state, &pod, &node(e), &snapshot))
            .collect();
        assert_eq!(raw, [0, 1, 3]);
        TaintToleration.normalize(&mut raw);
        assert_eq!(raw, [100, 67, 0]);
        let mut zeros = [0, 0];
        TaintToleration.normalize(&mut zeros);
        assert_eq!(zeros, [100, 100]);
    }
}
