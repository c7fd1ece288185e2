//! Fit: the node has what the pod asks for; by LeastAllocated, the default, the emptier the better.

use super::allocation::{amounts, score};
use super::args::FitArgs;
use crate::cache::{NodeState, Snapshot};
use crate::framework::{ClusterEvent, Code, CycleState, Filter, GoesBy, Plugin, Reason, Score, Status};
use crate::model::{NodeInfo, Part, PodInfo};

/// The plugin, with its args.
#[derive(Default)]
pub struct NodeResourcesFit(pub FitArgs);

impl NodeResourcesFit {
    /// An extended resource that the profile leaves to others.
    fn ignores(&self, resource: &str) -> bool {
        let group = resource.split_once('/').map(|(group, _)| group);
        // Only extended resources can be: no native one has a group, or it is kubernetes.io's.
        group.is_some_and(|g| {
            !g.ends_with("kubernetes.io")
                && (self.0.ignored.contains(resource) || self.0.ignored_groups.contains(g))
        })
    }
}

/// Could the node, were it empty, hold the pod?
fn fits_empty(pod: &PodInfo, node: &NodeInfo) -> bool {
    node.allocatable_pods >= 1 && pod.requests.iter().all(|(r, n)| n <= 0 || n <= node.allocatable.get(r))
}

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn goes_by(&self) -> GoesBy {
        GoesBy::Node(&[Part::Requests, Part::NonZero])
    }

    fn hears(&self, event: &ClusterEvent) -> bool {
        matches!(event, ClusterEvent::AssignedPodDelete(_)) || event.is_of_node()
    }

    fn may_help_on(&self, pod: &PodInfo, event: &ClusterEvent, node: &NodeState) -> bool {
        self.may_help(pod, event) && self.short_of(pod, node).is_ok()
    }

    fn may_help(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::NodeAdd(new) => fits_empty(pod, new),
            ClusterEvent::NodeUpdate(old, new) => {
                let more = |r: &str| new.allocatable.get(r) > old.allocatable.get(r);
                let grown = new.allocatable_pods > old.allocatable_pods
                    || pod.requests.iter().any(|(r, n)| n > 0 && more(r));
                grown && fits_empty(pod, new)
            }
            // A pod that leaves always gives back its place in the count of pods.
            ClusterEvent::AssignedPodDelete(_) | ClusterEvent::PodUpdate => true,
            _ => false,
        }
    }
}

impl Filter for NodeResourcesFit {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeState) -> Result<(), Status> {
        self.short_of(pod, node)
    }
}

impl NodeResourcesFit {
    fn short_of(&self, pod: &PodInfo, node: &NodeState) -> Result<(), Status> {
        let mut code = Code::Unschedulable;
        let mut reasons = Vec::new();
        if node.usage.pods.saturating_add(1) > node.info.allocatable_pods {
            reasons.push(Reason::Borrowed("Too many pods"));
        }
        for (name, wanted) in pod.requests.iter().filter(|&(r, n)| n > 0 && !self.ignores(r)) {
            let allocatable = node.info.allocatable.get(name);
            if wanted > allocatable.saturating_sub(node.usage.requested.get(name)) {
                reasons.push(insufficient(name));
            }
            if wanted > allocatable {
                code = Code::UnschedulableAndUnresolvable;
            }
        }
        match reasons.len() {
            0 => Ok(()),
            _ => Err(Status { plugin: self.name(), code, reasons: reasons.into_iter().collect() }),
        }
    }
}

fn insufficient(resource: &str) -> Reason {
    match resource {
        "cpu" => Reason::Borrowed("Insufficient cpu"),
        "memory" => Reason::Borrowed("Insufficient memory"),
        other => Reason::Owned(format!("Insufficient {other}")),
    }
}

impl Score for NodeResourcesFit {
    fn score(&self, _: &CycleState, pod: &PodInfo, node: &NodeState, _: &Snapshot) -> i64 {
        let (have, usage) = (&node.info.allocatable, &node.usage);
        let amounts = amounts(&self.0.resources, have, &usage.non_zero, &usage.requested, &pod.non_zero);
        score(&self.0.strategy, amounts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Usage;
    use crate::model::Resources;
    use rstest::rstest;
    use std::sync::Arc;

    fn amounts(milli_cpu: i64, memory: i64) -> Resources {
        Resources { milli_cpu, memory, ..Resources::default() }
    }

    fn node(have: (i64, i64), used: (i64, i64), pods: i64) -> NodeState {
        let info =
            NodeInfo { allocatable: amounts(have.0, have.1), allocatable_pods: 2, ..NodeInfo::default() };
        let used = amounts(used.0, used.1);
        let usage = Usage { requested: used.clone(), non_zero: used, pods, ..Usage::default() };
        NodeState { info: Arc::new(info), usage: Arc::new(usage), ..NodeState::default() }
    }

    fn pod(cpu: i64, memory: i64) -> PodInfo {
        PodInfo { requests: amounts(cpu, memory), non_zero: amounts(cpu, memory), ..PodInfo::default() }
    }

    #[rstest]
    #[case(node((10, 20), (9, 19), 1), pod(1, 1), &[], None)]
    #[case(node((10, 20), (10, 19), 1), pod(1, 1), &["Insufficient cpu"], Some(Code::Unschedulable))]
    #[case(node((10, 20), (10, 20), 1), pod(1, 1), &["Insufficient cpu", "Insufficient memory"], Some(Code::Unschedulable))]
    #[case(node((10, 20), (0, 0), 1), pod(11, 1), &["Insufficient cpu"], Some(Code::UnschedulableAndUnresolvable))]
    #[case(node((10, 20), (20, 20), 1), pod(0, 0), &[], None)]
    #[case(node((10, 20), (0, 0), 2), pod(0, 0), &["Too many pods"], Some(Code::Unschedulable))]
    #[case(node((10, 20), (10, 0), 2), pod(1, 0), &["Too many pods", "Insufficient cpu"], Some(Code::Unschedulable))]
    fn filter_table(
        #[case] node: NodeState,
        #[case] pod: PodInfo,
        #[case] reasons: &[&str],
        #[case] code: Option<Code>,
    ) {
        match NodeResourcesFit::default().filter(&CycleState::default(), &pod, &node) {
            Ok(()) => assert_eq!(code, None),
            Err(s) => {
                assert_eq!(&s.reasons[..], reasons);
                assert_eq!(Some(s.code), code);
            }
        }
    }

    // The figures of upstream's least_allocated_test.go.
    #[rstest]
    #[case(node((4000, 10000), (0, 0), 0), pod(0, 0), 100)]
    #[case(node((4000, 10000), (0, 0), 0), pod(3000, 5000), 37)]
    #[case(node((6000, 10000), (0, 0), 0), pod(3000, 5000), 50)]
    #[case(node((4000, 10000), (5000, 0), 0), pod(0, 0), 50)]
    #[case(node((0, 0), (0, 0), 0), pod(1, 1), 0)]
    #[case(node((0, 10000), (0, 0), 0), pod(1, 5000), 50)]
    fn least_allocated_table(#[case] node: NodeState, #[case] pod: PodInfo, #[case] want: i64) {
        let state = CycleState::default();
        assert_eq!(NodeResourcesFit::default().score(&state, &pod, &node, &Snapshot::default()), want);
    }
}
