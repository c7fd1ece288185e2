//! How long which pods have when the machine is shut down. Pure; the rules are the kubelet's
//! (`pkg/kubelet/nodeshutdown/nodeshutdown_manager.go`).

use crate::source::PodView;
use std::time::Duration;

/// Priority of what keeps the node itself going (`system-cluster-critical` and above).
const CRITICAL: i32 = 2_000_000_000;

/// What pods of a priority have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    /// The priority from which on.
    pub priority: i32,
    /// How long all of them together have.
    pub time: Duration,
}

/// The periods, by rising priority: one after the other, so that what others need goes last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Periods(Vec<Period>);

impl Periods {
    /// `shutdownGracePeriodByPodPriority`.
    #[must_use]
    pub fn by_priority(mut list: Vec<Period>) -> Self {
        list.sort_by_key(|period| period.priority);
        Periods(list)
    }

    /// `shutdownGracePeriod`, of which the end is for `shutdownGracePeriodCriticalPods` (no more than all of it).
    #[must_use]
    pub fn of(all: Duration, critical: Duration) -> Self {
        let Some(others) = all.checked_sub(critical).filter(|_| !all.is_zero()) else {
            return Periods::default();
        };
        let whole = |time: Duration| Duration::from_secs(time.as_secs());
        Periods(vec![
            Period { priority: 0, time: whole(others) },
            Period { priority: CRITICAL, time: whole(critical) },
        ])
    }

    /// The periods.
    #[must_use]
    pub fn list(&self) -> &[Period] {
        &self.0
    }

    /// Whether nothing is to be done at a shutdown.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All of it.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.0.iter().map(|period| period.time).sum()
    }

    /// The pods by the period that is theirs: a pod below all priorities has the lowest, one between two the lower.
    #[must_use]
    pub fn group(&self, pods: Vec<PodView>) -> Vec<(Period, Vec<PodView>)> {
        let mut groups: Vec<_> = self.0.iter().map(|period| (*period, Vec::new())).collect();
        for pod in pods {
            let priority = pod.object.spec.as_ref().and_then(|s| s.priority).unwrap_or_default();
            let above = self.0.partition_point(|period| period.priority <= priority);
            if let Some((_, group)) = groups.get_mut(above.saturating_sub(1)) {
                group.push(pod);
            }
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn critical_pods_have_the_end_of_the_time() {
        let periods = Periods::of(seconds(30), seconds(10));
        let list: Vec<_> = periods.list().iter().map(|p| (p.priority, p.time)).collect();
        assert_eq!(list, [(0, seconds(20)), (CRITICAL, seconds(10))]);
        assert_eq!(periods.total(), seconds(30));
        assert!(Periods::of(Duration::ZERO, Duration::ZERO).is_empty());
        assert!(Periods::of(seconds(1), seconds(2)).is_empty());
    }

    #[test]
    fn a_pod_has_the_period_of_the_priority_at_or_below_its_own() {
        let pod = |priority: Option<i32>| PodView {
            object: Arc::new(
                serde_json::from_value(serde_json::json!({"metadata": {"name": format!("{priority:?}")},
                    "spec": {"containers": [], "priority": priority}}))
                .unwrap(),
            ),
            containers: Vec::new(),
            flow: Arc::default(),
        };
        let period = |priority| Period { priority, time: seconds(1) };
        let periods = Periods::by_priority(vec![period(1000), period(10), period(100)]);
        let pods = [None, Some(-5), Some(10), Some(99), Some(100), Some(1000), Some(i32::MAX)];
        let groups = periods.group(pods.map(pod).to_vec());
        let names: Vec<(i32, usize)> = groups.iter().map(|(p, pods)| (p.priority, pods.len())).collect();
        assert_eq!(names, [(10, 4), (100, 1), (1000, 2)]);
        assert!(Periods::default().group(vec![pod(None)]).is_empty());
    }
}
