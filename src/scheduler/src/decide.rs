//! The loop's side of a decision: what one pod's cycle tells of the next.
//!
//! A refusal holds for every pod of a template as long as the cluster is what it was, so that ten thousand
//! replicas that fit nowhere cost one search. And a profile that looks at a share of the nodes begins where the
//! last cycle ended.

use crate::cache::Snapshot;
use crate::cycle::{Carried, CycleError, Decision, FitError, Nomination, Trace, schedule_one};
use crate::framework::Framework;
use crate::model::PodInfo;
use podway_flow::Micros;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A refusal as it is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// The condition's message.
    pub message: String,
    /// The plugins that an event is asked of.
    pub plugins: BTreeSet<&'static str>,
    /// What becomes of the pod's nomination.
    pub nomination: Nomination,
}

impl Refusal {
    /// What a search found.
    #[must_use]
    pub fn of(error: &FitError) -> Self {
        Refusal { message: error.message(), plugins: error.plugins(), nomination: error.nomination.clone() }
    }
}

/// A refusal that holds for every pod of a template, while the cluster is what it was.
struct Unfit {
    generation: u64,
    pod: Arc<PodInfo>,
    refusal: Refusal,
}

/// What is carried from one cycle to the next.
#[derive(Default)]
pub struct Decider {
    unfit: Option<Unfit>,
    carried: Carried,
}

impl Decider {
    /// What is known of such a pod already, without a cycle.
    #[must_use]
    pub fn known(&self, pod: &PodInfo, snapshot: &Snapshot) -> Option<Refusal> {
        let unfit = self.unfit.as_ref().filter(|u| u.generation == snapshot.generation)?;
        (pod.nominated.is_empty() && unfit.pod.same_template(pod)).then(|| unfit.refusal.clone())
    }

    /// Runs a cycle.
    ///
    /// # Errors
    /// As [`schedule_one`].
    pub fn decide(
        &mut self,
        framework: &Framework,
        snapshot: &Snapshot,
        pod: &Arc<PodInfo>,
        now: &dyn Fn() -> Micros,
        trace: &mut Trace,
    ) -> Result<Decision, CycleError> {
        let found = schedule_one(Some(&mut self.carried), framework, snapshot, pod, now, trace);
        // An eviction is for one pod; a refusal is for all that are like it.
        if let Err(CycleError::Unfit(error)) = &found
            && pod.nominated.is_empty()
            && !matches!(error.nomination, Nomination::Preempt(_))
        {
            let refusal = Refusal::of(error);
            self.unfit = Some(Unfit { generation: snapshot.generation, pod: pod.clone(), refusal });
        }
        found
    }

    /// A profile changed: what was refused says nothing any more.
    pub(crate) fn forget(&mut self) {
        self.unfit = None;
        self.carried.forget();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Cache, NodeState};
    use crate::framework::{ClusterEvent, CycleState, Filter, Plugin, Status};
    use crate::model::{NodeInfo, Resources};
    use crate::plugins::default_framework;
    use crate::queue::{News, Queue};
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A filter that only counts how often it is asked; it stands before all others.
    #[derive(Default)]
    struct Counting {
        filtered: AtomicUsize,
        hinted: AtomicUsize,
    }

    impl Plugin for Counting {
        fn name(&self) -> &'static str {
            "NodeName"
        }
        fn may_help(&self, _: &PodInfo, _: &ClusterEvent) -> bool {
            self.hinted.fetch_add(1, Ordering::Relaxed);
            false
        }
    }

    impl Filter for Counting {
        fn filter(&self, _: &CycleState, _: &PodInfo, _: &NodeState) -> Result<(), Status> {
            self.filtered.fetch_add(1, Ordering::Relaxed);
            Ok(())
        }
    }

    fn asking(uid: String, milli_cpu: i64) -> Arc<PodInfo> {
        let requests = Resources { milli_cpu, ..Resources::default() };
        Arc::new(PodInfo { name: uid.clone(), uid, requests, ..PodInfo::default() })
    }

    /// Work is counted, not time: 10,000 that fit nowhere cost one search of the nodes, a pod that fits is decided
    /// next and by one more, and its being bound asks none of the others.
    #[test]
    fn ten_thousand_that_fit_nowhere_do_not_slow_one_that_does() {
        const STUCK: usize = 10_000;
        const NODES: usize = 20;
        let counting = Arc::new(Counting::default());
        let mut framework = Framework { post_filter: vec![], ..default_framework() };
        framework.filter.insert(0, counting.clone());
        let mut cache = Cache::default();
        for i in 0..NODES {
            let allocatable = Resources { milli_cpu: 1000, ..Resources::default() };
            let name = format!("n{i}").into();
            cache.set_node(Arc::new(NodeInfo {
                name,
                allocatable,
                allocatable_pods: 9,
                ..NodeInfo::default()
            }));
        }
        let (mut queue, mut decider) = (Queue::default(), Decider::default());
        (0..STUCK).for_each(|i| queue.upsert(asking(format!("stuck-{i}"), 5000), Micros(0)));
        let mut searches = 0;
        while let Some(queued) = queue.pop(Micros(0)) {
            let snapshot = cache.snapshot();
            let refusal = decider.known(&queued.pod, &snapshot).unwrap_or_else(|| {
                searches += 1;
                let found =
                    decider.decide(&framework, &snapshot, &queued.pod, &|| Micros(0), &mut Trace::default());
                match found {
                    Err(CycleError::Unfit(error)) => Refusal::of(&error),
                    other => panic!("{other:?}"),
                }
            });
            assert_eq!(refusal.message, "0/20 nodes are available: 20 Insufficient cpu.");
            queue.unschedulable(queued, refusal.plugins, Micros(0));
        }
        assert_eq!((searches, counting.filtered.load(Ordering::Relaxed)), (1, NODES));

        queue.upsert(asking("fits".to_owned(), 500), Micros(1));
        let fits = queue.pop(Micros(1)).unwrap();
        assert_eq!(fits.pod.uid, "fits");
        let snapshot = cache.snapshot();
        let found = decider.decide(&framework, &snapshot, &fits.pod, &|| Micros(1), &mut Trace::default());
        assert_eq!(counting.filtered.load(Ordering::Relaxed), 2 * NODES);
        let node = found.unwrap().node;
        cache.assume(fits.pod.clone(), &node);
        let bound = ClusterEvent::AssignedPodAdd(fits.pod);
        assert_eq!(queue.event(&framework, &bound, Micros(20_000_000)), 0);
        // Room that is not enough for any of them wakes none.
        let (gone, state) =
            (ClusterEvent::AssignedPodDelete(asking("x".to_owned(), 1)), cache.state_of(&node));
        let news = News { on: state.as_ref(), ..News::from(&gone) };
        assert_eq!(queue.event(&framework, news, Micros(20_000_000)), 0);
        assert!(queue.pop(Micros(20_000_000)).is_none());
        assert_eq!(
            counting.hinted.load(Ordering::Relaxed),
            0,
            "it refused nobody, and so is asked of nobody"
        );
    }
}
