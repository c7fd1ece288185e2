//! What a pod needs of its node's software must be among what the node declares, as
//! `plugins/nodedeclaredfeatures` of Kubernetes 1.36. Which wishes need which feature is read in
//! [`PodInfo::parse`](crate::model::PodInfo::parse).

use crate::cache::{NodeState, Snapshot};
use crate::framework::{
    ClusterEvent, CycleState, Filter, GoesBy, Plugin, PreFilter, PreFilterResult, Status,
};
use crate::model::{NodeInfo, Part, PodInfo};

/// The plugin.
pub struct NodeDeclaredFeatures;

const REASON: &str = "node(s) didn't match Pod's required features";

fn accepts(pod: &PodInfo, node: &NodeInfo) -> bool {
    pod.needs.iter().all(|feature| node.features.contains(*feature))
}

impl Plugin for NodeDeclaredFeatures {
    fn name(&self) -> &'static str {
        "NodeDeclaredFeatures"
    }

    fn goes_by(&self) -> GoesBy {
        GoesBy::Node(&[Part::Needs])
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

impl PreFilter for NodeDeclaredFeatures {
    fn pre_filter(&self, _: &mut CycleState, pod: &PodInfo, _: &Snapshot) -> Result<PreFilterResult, Status> {
        Ok(if pod.needs.is_empty() { PreFilterResult::Skip } else { PreFilterResult::All })
    }
}

impl Filter for NodeDeclaredFeatures {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeState) -> Result<(), Status> {
        if accepts(pod, &node.info) { Ok(()) } else { Err(Status::unresolvable(self.name(), REASON)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_must_declare_all() {
        let pod = PodInfo { needs: vec!["A", "B"], ..PodInfo::default() };
        let node = |features: &[&str]| NodeInfo {
            features: features.iter().map(|&f| f.to_owned()).collect(),
            ..NodeInfo::default()
        };
        let filter = |features: &[&str]| {
            NodeDeclaredFeatures.filter(&CycleState::default(), &pod, &NodeState::of(node(features)))
        };
        assert_eq!(filter(&["A", "B", "C"]), Ok(()));
        assert_eq!(filter(&["A"]).unwrap_err().reasons, [REASON]);
    }
}
