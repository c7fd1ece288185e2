//! A pod that names its node goes there or nowhere.

use crate::cache::NodeState;
use crate::framework::{ClusterEvent, CycleState, Filter, GoesBy, Plugin, Status};
use crate::model::{Part, PodInfo};

/// The plugin.
pub struct NodeName;

const REASON: &str = "node(s) didn't match the requested node name";

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn goes_by(&self) -> GoesBy {
        GoesBy::Node(&[Part::NodeName])
    }

    fn hears(&self, event: &ClusterEvent) -> bool {
        event.is_of_node()
    }

    fn may_help(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        matches!(event, ClusterEvent::NodeAdd(n) if *n.name == *pod.node_name)
    }
}

impl Filter for NodeName {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeState) -> Result<(), Status> {
        if pod.node_name.is_empty() || *pod.node_name == *node.info.name {
            return Ok(());
        }
        Err(Status::unresolvable(self.name(), REASON))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NodeInfo;

    #[test]
    fn only_the_named_node_passes() {
        let node = NodeState::of(NodeInfo { name: "a".into(), ..NodeInfo::default() });
        for (wanted, passes) in [("", true), ("a", true), ("b", false)] {
            let pod = PodInfo { node_name: wanted.into(), ..PodInfo::default() };
            assert_eq!(NodeName.filter(&CycleState::default(), &pod, &node).is_ok(), passes, "{wanted}");
        }
    }
}
