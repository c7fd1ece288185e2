//! `stats`: how long each phase took over many pods.

use super::{Quantiles, coarser, ready_in, resolution};
use crate::{Flow, Outcome, Phase, Resolution};
use serde::Serialize;

/// Quantiles of the whole start and of each phase.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stats {
    /// How many pods.
    pub pods: usize,
    /// How many of them are Ready.
    pub ready: usize,
    /// How many have times of a second only in some phase.
    pub coarse: usize,
    /// From the first record to Ready, over those that are Ready.
    pub total: Option<Row>,
    /// Each phase that some pod recorded, in flow order.
    pub phases: Vec<Row>,
}

/// One phase over all pods, or the whole.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The phase; `None` for the whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// How long it took, where it ended well.
    #[serde(flatten)]
    pub took: Quantiles,
    /// Of that time, the median of what was spent in a queue or for a lock.
    pub queued_p50_micros: u64,
    /// Pods in which it failed at last.
    pub failed: usize,
    /// Pods in which it runs still.
    pub running: usize,
    /// The coarsest resolution among the pods.
    pub resolution: Resolution,
}

/// The numbers of a group of pods.
#[must_use]
pub fn stats(flows: &[Flow]) -> Stats {
    let totals: Vec<u64> = flows.iter().filter_map(ready_in).collect();
    let coarse = flows.iter().filter(|f| resolution(f) == Resolution::Second).count();
    Stats {
        pods: flows.len(),
        ready: totals.len(),
        coarse,
        total: Quantiles::of(totals).map(|took| Row {
            phase: None,
            took,
            queued_p50_micros: 0,
            failed: 0,
            running: 0,
            resolution: if coarse > 0 { Resolution::Second } else { Resolution::Micros },
        }),
        phases: Phase::ALL.iter().filter_map(|&phase| row(flows, phase)).collect(),
    }
}

/// The µs that a phase took in each pod in which it ended well.
#[must_use]
pub fn durations(flows: &[Flow], phase: Phase) -> Vec<u64> {
    flows.iter().filter_map(|flow| duration(flow, phase)).collect()
}

/// The µs that a phase took in one pod, if it ended well.
#[must_use]
pub fn duration(flow: &Flow, phase: Phase) -> Option<u64> {
    let summary = flow.summary(phase)?;
    let well = matches!(summary.outcome, Outcome::Succeeded | Outcome::Skipped);
    Some(summary.end.filter(|_| well)?.since(summary.start))
}

fn row(flows: &[Flow], phase: Phase) -> Option<Row> {
    let summaries: Vec<_> = flows.iter().filter_map(|f| f.summary(phase)).collect();
    let of = |outcome| summaries.iter().filter(|s| s.outcome == outcome).count();
    let queued = summaries.iter().map(|s| s.queued_micros).collect();
    (!summaries.is_empty()).then(|| Row {
        phase: Some(phase),
        took: Quantiles::of(durations(flows, phase)).unwrap_or(NOTHING),
        queued_p50_micros: Quantiles::of(queued).map_or(0, |q| q.p50_micros),
        failed: of(Outcome::Failed),
        running: of(Outcome::Running),
        resolution: summaries.iter().fold(Resolution::Micros, |r, s| coarser(r, s.resolution)),
    })
}

/// A phase that ended well in no pod.
const NOTHING: Quantiles = Quantiles {
    count: 0,
    min_micros: 0,
    p50_micros: 0,
    p95_micros: 0,
    p99_micros: 0,
    max_micros: 0,
    mean_micros: 0,
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn quantiles_are_of_what_ended_well_and_failures_are_counted_apart() {
        let stats = stats(&[samples::whole(), samples::whole(), samples::stuck()]);
        assert_eq!((stats.pods, stats.ready, stats.coarse), (3, 2, 0));
        assert_eq!(stats.total.unwrap().took.p50_micros, 84_213);
        let of = |phase| stats.phases.iter().find(|r| r.phase == Some(phase)).unwrap();
        // The stuck pod's pull went well at the second try; its network is still being configured.
        assert_eq!(
            (of(Phase::ImagesPulled).took.count, of(Phase::ImagesPulled).took.max_micros),
            (3, 85_000)
        );
        let network = of(Phase::NetworkConfigured);
        assert_eq!((network.took.count, network.running, network.failed), (2, 1, 0));
        assert_eq!(of(Phase::RootfsPrepared).queued_p50_micros, 300);
    }

    #[test]
    fn one_coarse_pod_marks_what_rests_on_it() {
        let stats = stats(&[samples::whole(), samples::coarse()]);
        assert_eq!(stats.coarse, 1);
        assert_eq!(stats.total.unwrap().resolution, Resolution::Second);
        let fine = stats.phases.iter().find(|r| r.phase == Some(Phase::Queued)).unwrap();
        assert_eq!(fine.resolution, Resolution::Micros);
        assert!(super::stats(&[]).total.is_none());
    }
}
