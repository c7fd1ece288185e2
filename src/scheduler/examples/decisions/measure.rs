//! The loop's work for a pod, without the loop's I/O: pop, snapshot, cycle, record, assume, confirm, wake.
//!
//! Time is the thread's CPU time: what else runs on the machine has no say in it.

use crate::workloads::{Size, Workload};
use cpu_time::ThreadTime;
use podway_flow::Micros;
use podway_scheduler::cycle::{CycleError, Trace};
use podway_scheduler::decide::{Decider, Refusal};
use podway_scheduler::explain::ring::{Outcome, Ring};
use podway_scheduler::framework::{ClusterEvent, Point};
use podway_scheduler::model::PodInfo;
use podway_scheduler::plugins::default_framework;
use podway_scheduler::queue::Queue;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Decisions that open the way and do not count.
const WARM: usize = 5;

/// What came out.
pub(crate) struct Figures {
    /// By the wall clock, of the whole loop.
    pub(crate) per_second: f64,
    /// The snapshot and the cycle.
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
    /// The whole loop, per pod.
    pub(crate) cpu_micros: f64,
    pub(crate) placed: usize,
    pub(crate) refused: usize,
    pub(crate) filter_calls: u64,
    /// Those that fit nowhere and still wait in the end, and what it took to refuse them all.
    pub(crate) waiting: usize,
    pub(crate) stuck_ms: f64,
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub(crate) fn measure(workload: &Workload, size: Size) -> Figures {
    let framework = default_framework();
    let mut cache = workload.cluster(size);
    let (mut queue, mut ring, mut decider) = (Queue::default(), Ring::default(), Decider::default());
    for pod in workload.waiting(size) {
        queue.upsert(pod, Micros(0));
    }
    // Who fits nowhere is found out before the decisions that count.
    let before = ThreadTime::now();
    while let Some(queued) = queue.pop(Micros(0)) {
        let snapshot = cache.snapshot();
        let known = decider.known(&queued.pod, &snapshot);
        let found = known.or_else(|| {
            let mut trace = Trace::default();
            let found = decider.decide(&framework, &snapshot, &queued.pod, &|| Micros(0), &mut trace);
            match found.err()? {
                CycleError::Unfit(error) => Some(Refusal::of(&error)),
                CycleError::Failed(_) => None,
            }
        });
        let Some(refusal) = found else { continue };
        queue.unschedulable(queued, refusal.plugins, Micros(0));
    }
    let stuck = before.elapsed();
    let (mut decided, mut loops) = (Vec::with_capacity(size.measured), Duration::ZERO);
    let (mut placed, mut refused, mut filter_calls) = (0, 0, 0);
    let mut began = Instant::now();
    for i in 0..WARM + size.measured {
        if i == WARM {
            began = Instant::now();
        }
        queue.upsert(workload.pod(i), Micros(0));
        let start = ThreadTime::now();
        let Some(queued) = queue.pop(Micros(0)) else { continue };
        let mut trace = Trace { rows: Some(5), ..Trace::default() };
        let snapshot = cache.snapshot();
        let found = decider.decide(&framework, &snapshot, &queued.pod, &|| Micros(0), &mut trace);
        let decision = start.elapsed();
        match found {
            Ok(decision) => {
                let generation = Some(snapshot.generation);
                ring.push(&queued, 0, Micros(0), generation, Outcome::placed(&decision));
                drop(snapshot);
                placed += usize::from(i >= WARM);
                cache.assume(queued.pod.clone(), &decision.node);
                let bound = Arc::new(PodInfo { node_name: decision.node.clone(), ..(*queued.pod).clone() });
                cache.confirm(bound.clone());
                queue.event(&framework, &ClusterEvent::AssignedPodAdd(bound), Micros(0));
            }
            Err(CycleError::Unfit(error)) => {
                refused += usize::from(i >= WARM);
                queue.unschedulable(queued, error.plugins(), Micros(0));
            }
            Err(CycleError::Failed(failure)) => {
                eprintln!("{failure}");
                refused += usize::from(i >= WARM);
            }
        }
        if i >= WARM {
            decided.push(decision);
            loops += start.elapsed();
            filter_calls +=
                trace.evaluated.iter().filter(|((_, p), _)| *p == Point::Filter).map(|(_, n)| n).sum::<u64>();
        }
    }
    let took = began.elapsed().as_secs_f64();
    decided.sort_unstable();
    let at = |q: usize| {
        decided.get(decided.len().saturating_sub(1) * q / 100).copied().unwrap_or_default().as_secs_f64()
            * 1e3
    };
    Figures {
        per_second: size.measured as f64 / took,
        p50_ms: at(50),
        p99_ms: at(99),
        max_ms: at(100),
        cpu_micros: loops.as_secs_f64() * 1e6 / size.measured as f64,
        placed,
        refused,
        filter_calls,
        waiting: queue.lengths().unschedulable,
        stuck_ms: stuck.as_secs_f64() * 1e3,
    }
}
