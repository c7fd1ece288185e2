//! The critical path: the chain of phases that decided when the pod was done, and what each gave to it.
//!
//! Invariant: what the steps took and the gaps between them add up to the time from the first step's
//! start to the last step's end, to the microsecond.

use crate::{Flow, Micros, Phase, PhaseSummary};

/// One phase on the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The phase.
    pub phase: Phase,
    /// When it began.
    pub start: Micros,
    /// Its own share of the path in µs: to its end, or to where the next step went on without waiting for it.
    pub own: u64,
    /// The µs between the step before and this one, of which nobody wrote a record.
    pub gap: u64,
}

/// The path of a flow, first step first.
#[must_use]
pub fn of_flow(flow: &Flow) -> Vec<Step> {
    critical(&flow.phases())
}

/// Back from the phase that ended last: each time to the one that ended latest before this began.
#[must_use]
pub fn critical(phases: &[PhaseSummary]) -> Vec<Step> {
    let ended: Vec<(Micros, Micros, Phase)> =
        phases.iter().filter_map(|s| Some((s.start, s.end?, s.phase))).collect();
    let last = ended
        .iter()
        .find(|&&(_, _, phase)| phase == Phase::Ready)
        .or_else(|| ended.iter().max_by_key(|&&(_, end, phase)| (end, phase)));
    let mut path = Vec::new();
    let mut at = last.copied();
    while let Some((start, end, phase)) = at {
        path.push((start, end, phase));
        // (start, phase) falls strictly, so that phases of one instant cannot form a circle.
        at = ended
            .iter()
            .map(|&(s, e, p)| (s, if seen_early(p) && s <= start { e.min(start) } else { e }, p))
            .filter(|&(s, e, p)| (s, p) < (start, phase) && e <= start)
            .max_by_key(|&(_, e, p)| (e, p));
    }
    path.reverse();
    let mut before: Option<Micros> = None;
    path.into_iter()
        .map(|(start, end, phase)| {
            let gap = before.map_or(0, |before| start.since(before));
            before = Some(end.max(start));
            Step { phase, start, own: end.since(start), gap }
        })
        .collect()
}

/// Whether others may act on a phase before it ends: a write shows on watches before it is answered.
const fn seen_early(phase: Phase) -> bool {
    matches!(phase, Phase::Persisted | Phase::Bound | Phase::StatusReported)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn steps_and_gaps_add_up_to_the_whole() {
        for flow in [samples::whole(), samples::stuck(), samples::coarse()] {
            let path = of_flow(&flow);
            let sum: u64 = path.iter().map(|s| s.own + s.gap).sum();
            let last = path.last().unwrap();
            let end = Micros(last.start.0 + i64::try_from(last.own).unwrap());
            assert_eq!(sum, end.since(path[0].start), "{path:?}");
        }
    }

    #[test]
    fn a_write_that_was_seen_before_its_answer_gives_only_what_was_waited_for() {
        let path = of_flow(&samples::whole());
        let bound = path.iter().find(|s| s.phase == Phase::Bound).unwrap();
        // It was answered at 5400, and the agent saw it at 5000.
        assert_eq!(bound.own, 5_000 - 3_200);
    }
}
