//! How full a node is, resource by resource: what Fit and BalancedAllocation score by
//! (`plugins/noderesources/resource_allocation.go` of Kubernetes 1.36).

use super::args::{Strategy, Weighted};
use crate::framework::MAX_NODE_SCORE;
use crate::model::Resources;

/// A resource of a node. All zero when the node has none, or when it is an extended one that the pod
/// does not ask for: then it is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Amount {
    /// With the pod.
    pub requested: i64,
    /// Without it.
    pub allocated: i64,
    /// What the node has.
    pub allocatable: i64,
    /// The resource's weight.
    pub weight: i64,
}

/// The amounts of each resource. CPU and memory are read from `used`, all others from what is really
/// `requested`.
pub(super) fn amounts<'a>(
    resources: &'a [Weighted],
    have: &'a Resources,
    used: &'a Resources,
    requested: &'a Resources,
    asks: &'a Resources,
) -> impl Iterator<Item = Amount> + Clone + 'a {
    let one = move |(name, weight): &Weighted| {
        let core = ["cpu", "memory"].contains(&name.as_str());
        let scalar = !core && name != "ephemeral-storage";
        let (allocatable, ask) = (have.get(name), asks.get(name));
        if allocatable == 0 || (scalar && ask == 0) {
            return Amount { weight: *weight, ..Amount::default() };
        }
        let allocated = if core { used.get(name) } else { requested.get(name) };
        Amount { requested: allocated.saturating_add(ask), allocated, allocatable, weight: *weight }
    };
    resources.iter().map(one)
}

/// `part · 100 / whole` without overflow.
fn percent(part: i64, whole: i64) -> i64 {
    if let Some(hundredfold) = part.checked_mul(MAX_NODE_SCORE) {
        return hundredfold / whole.max(1);
    }
    let n = i128::from(part) * i128::from(MAX_NODE_SCORE) / i128::from(whole.max(1));
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// The score of a strategy.
pub(super) fn score(strategy: &Strategy, amounts: impl Iterator<Item = Amount>) -> i64 {
    let (mut sum, mut weights) = (0_i64, 0_i64);
    for a in amounts.filter(|a| a.allocatable != 0) {
        let over = a.requested > a.allocatable;
        let score = match strategy {
            Strategy::LeastAllocated if over => 0,
            Strategy::LeastAllocated => percent(a.allocatable - a.requested, a.allocatable),
            Strategy::MostAllocated => percent(a.requested.min(a.allocatable), a.allocatable),
            Strategy::RequestedToCapacityRatio(shape) => {
                let used = if over { MAX_NODE_SCORE } else { percent(a.requested, a.allocatable) };
                match on_line(shape, used) {
                    // What scores nothing has no say at all here.
                    0 => continue,
                    score => score,
                }
            }
        };
        sum = sum.saturating_add(score.saturating_mul(a.weight));
        weights = weights.saturating_add(a.weight);
    }
    match strategy {
        _ if weights == 0 => 0,
        Strategy::RequestedToCapacityRatio(_) => rounded(sum, weights),
        _ => sum / weights,
    }
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "upstream rounds in float64"
)]
fn rounded(sum: i64, weights: i64) -> i64 {
    (sum as f64 / weights as f64).round() as i64
}

/// Upstream's `BuildBrokenLinearFunction`.
fn on_line(shape: &[(i64, i64)], at: i64) -> i64 {
    let mut before: Option<(i64, i64)> = None;
    for &(x, y) in shape {
        if at <= x {
            return match before {
                None => y,
                Some((x0, y0)) => y0 + (y - y0) * (at - x0) / (x - x0).max(1),
            };
        }
        before = Some((x, y));
    }
    before.map_or(0, |(_, y)| y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn of(have: (i64, i64), used: (i64, i64)) -> Vec<Amount> {
        let one = |allocatable, requested| Amount { requested, allocated: 0, allocatable, weight: 1 };
        vec![one(have.0, used.0), one(have.1, used.1)]
    }

    // The figures of upstream's most_allocated_test.go and requested_to_capacity_ratio_test.go.
    #[rstest]
    #[case((4000, 10000), (0, 0), 0)]
    #[case((4000, 10000), (3000, 5000), 62)]
    #[case((6000, 10000), (3000, 5000), 50)]
    #[case((4000, 10000), (5000, 5000), 75)]
    fn most_allocated(#[case] have: (i64, i64), #[case] used: (i64, i64), #[case] want: i64) {
        assert_eq!(score(&Strategy::MostAllocated, of(have, used).into_iter()), want);
    }

    #[rstest]
    #[case((4000, 10000), (0, 0), 100)]
    #[case((4000, 10000), (3000, 5000), 38)]
    #[case((6000, 10000), (3000, 5000), 50)]
    fn ratio(#[case] have: (i64, i64), #[case] used: (i64, i64), #[case] want: i64) {
        let strategy = Strategy::RequestedToCapacityRatio(vec![(0, 100), (100, 0)]);
        assert_eq!(score(&strategy, of(have, used).into_iter()), want);
    }

    #[test]
    fn a_line_is_flat_beyond_its_ends() {
        let shape = [(10, 10), (50, 50), (90, 20)];
        let at: Vec<i64> = [0, 10, 30, 50, 70, 100].iter().map(|&x| on_line(&shape, x)).collect();
        assert_eq!(at, [10, 10, 30, 50, 35, 20]);
    }
}
