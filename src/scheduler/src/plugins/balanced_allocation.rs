//! BalancedAllocation as of 1.35: how much the pod changes the balance of the node's resources.

use super::allocation::amounts;
use super::args::BalancedArgs;
use crate::cache::{NodeState, Snapshot};
use crate::framework::{ClusterEvent, CycleState, GoesBy, MAX_NODE_SCORE, Plugin, PreScore, Score};
use crate::model::{Part, PodInfo};

/// The plugin, with its args.
#[derive(Default)]
pub struct BalancedAllocation(pub BalancedArgs);

impl Plugin for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn goes_by(&self) -> GoesBy {
        GoesBy::Node(&[Part::Requests])
    }

    fn may_help(&self, _: &PodInfo, _: &ClusterEvent) -> bool {
        false
    }
}

impl PreScore for BalancedAllocation {
    fn pre_score(&self, _: &mut CycleState, pod: &PodInfo, _: &[&NodeState], _: &Snapshot) -> bool {
        self.0.resources.iter().any(|(resource, _)| pod.requests.get(resource) != 0)
    }
}

/// `(1 − std of the used fractions) · 100`, truncated; (requested, allocatable) per resource.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "upstream computes in float64 and truncates; parity needs the same order of operations"
)]
fn balance(pairs: impl Iterator<Item = (i64, i64)> + Clone) -> i64 {
    let fractions = pairs
        .filter(|(_, allocatable)| *allocatable != 0)
        .map(|(requested, allocatable)| (requested as f64 / allocatable as f64).min(1.0));
    let mut first = fractions.clone();
    let std = match (first.next(), first.next(), first.next()) {
        (_, None, _) | (None, ..) => 0.0,
        (Some(a), Some(b), None) => ((a - b) / 2.0).abs(),
        _ => {
            let count = fractions.clone().count() as f64;
            let mean = fractions.clone().sum::<f64>() / count;
            (fractions.fold(0.0, |sum, f| sum + (f - mean) * (f - mean)) / count).sqrt()
        }
    };
    ((1.0 - std) * MAX_NODE_SCORE as f64) as i64
}

impl Score for BalancedAllocation {
    fn score(&self, _: &CycleState, pod: &PodInfo, node: &NodeState, _: &Snapshot) -> i64 {
        let (have, used) = (&node.info.allocatable, &node.usage.requested);
        let amounts = amounts(&self.0.resources, have, used, used, &pod.requests);
        let with = balance(amounts.clone().map(|a| (a.requested, a.allocatable)));
        let without = balance(amounts.map(|a| (a.allocated, a.allocatable)));
        MAX_NODE_SCORE / 2 + (MAX_NODE_SCORE / 2 + with - without) / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Usage;
    use crate::model::{NodeInfo, Resources};
    use rstest::rstest;
    use std::sync::Arc;

    #[rstest]
    #[case::no_change((4000, 10000), (0, 0), (2000, 5000), 75)]
    #[case::worse((4000, 10000), (0, 0), (3000, 5000), 68)]
    #[case::better((10000, 10000), (5000, 0), (0, 5000), 87)]
    #[case::over_is_capped((1000, 1000), (0, 0), (5000, 5000), 75)]
    #[case::one_resource((0, 1000), (0, 0), (1, 500), 75)]
    fn table(
        #[case] have: (i64, i64),
        #[case] used: (i64, i64),
        #[case] asks: (i64, i64),
        #[case] want: i64,
    ) {
        let amounts = |(milli_cpu, memory)| Resources { milli_cpu, memory, ..Resources::default() };
        let node = NodeState {
            info: Arc::new(NodeInfo { allocatable: amounts(have), ..NodeInfo::default() }),
            usage: Arc::new(Usage { requested: amounts(used), ..Usage::default() }),
            ..NodeState::default()
        };
        let pod = PodInfo { requests: amounts(asks), ..PodInfo::default() };
        let got =
            BalancedAllocation::default().score(&CycleState::default(), &pod, &node, &Snapshot::default());
        assert_eq!(got, want);
    }

    #[test]
    fn a_pod_that_asks_for_nothing_is_not_scored() {
        assert!(!BalancedAllocation::default().pre_score(
            &mut CycleState::default(),
            &PodInfo::default(),
            &[],
            &Snapshot::default()
        ));
    }
}
