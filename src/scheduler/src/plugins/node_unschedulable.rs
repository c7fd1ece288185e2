//! A cordoned node takes only pods that tolerate `node.kubernetes.io/unschedulable:NoSchedule`.

use crate::cache::NodeState;
use crate::framework::{ClusterEvent, CycleState, Filter, GoesBy, Plugin, Status};
use crate::model::node::{Effect, Taint};
use crate::model::{NodeInfo, Part, PodInfo};

/// The plugin.
pub struct NodeUnschedulable;

const REASON: &str = "node(s) were unschedulable";

/// The taint by which the node controller repeats a cordon.
const TAINT: &str = "node.kubernetes.io/unschedulable";

fn accepts(pod: &PodInfo, node: &NodeInfo) -> bool {
    let cordon = Taint { key: TAINT.into(), value: String::new(), effect: Effect::NoSchedule };
    !node.unschedulable || pod.tolerations.iter().any(|t| t.tolerates(&cordon))
}

/// The cordon is over and its taint too. The controller takes the taint away a moment after the
/// cordon ends; a pod that is woken between the two only fails again and owes a longer backoff.
fn open(pod: &PodInfo, node: &NodeInfo) -> bool {
    let tainted = node.taints.iter().any(|t| t.key == TAINT && t.effect == Effect::NoSchedule);
    accepts(pod, &NodeInfo { unschedulable: node.unschedulable || tainted, ..NodeInfo::default() })
}

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn goes_by(&self) -> GoesBy {
        GoesBy::Node(&[Part::Tolerations])
    }

    fn hears(&self, event: &ClusterEvent) -> bool {
        event.is_of_node()
    }

    fn may_help(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::NodeAdd(new) => open(pod, new),
            ClusterEvent::NodeUpdate(old, new) => open(pod, new) && !open(pod, old),
            ClusterEvent::PodUpdate => true,
            _ => false,
        }
    }
}

impl Filter for NodeUnschedulable {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeState) -> Result<(), Status> {
        if accepts(pod, &node.info) { Ok(()) } else { Err(Status::unresolvable(self.name(), REASON)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Toleration;
    use std::sync::Arc;

    #[test]
    fn a_cordoned_node_refuses_all_but_who_tolerates_it_and_an_uncordon_wakes() {
        let open = NodeInfo::default();
        let cordoned = NodeInfo { unschedulable: true, ..open.clone() };
        let plain = PodInfo::default();
        let tolerant = PodInfo {
            tolerations: vec![Toleration {
                key: String::new(),
                exists: true,
                value: String::new(),
                effect: None,
            }],
            ..PodInfo::default()
        };
        assert!(accepts(&plain, &open) && accepts(&tolerant, &cordoned));
        let refusal = NodeUnschedulable
            .filter(&CycleState::default(), &plain, &NodeState::of(cordoned.clone()))
            .unwrap_err();
        assert_eq!(refusal, Status::unresolvable("NodeUnschedulable", "node(s) were unschedulable"));
        let uncordon = ClusterEvent::NodeUpdate(Arc::new(cordoned.clone()), Arc::new(open.clone()));
        let nothing = ClusterEvent::NodeUpdate(Arc::new(cordoned.clone()), Arc::new(cordoned.clone()));
        let taint = Taint { key: TAINT.into(), value: String::new(), effect: Effect::NoSchedule };
        let tainted = NodeInfo { taints: vec![taint], ..open.clone() };
        let half = ClusterEvent::NodeUpdate(Arc::new(cordoned), Arc::new(tainted.clone()));
        let rest = ClusterEvent::NodeUpdate(Arc::new(tainted), Arc::new(open));
        assert!(!NodeUnschedulable.may_help(&plain, &half), "its taint is still there");
        assert!(NodeUnschedulable.may_help(&plain, &rest));
        assert!(NodeUnschedulable.may_help(&plain, &uncordon));
        assert!(!NodeUnschedulable.may_help(&plain, &nothing));
    }
}
