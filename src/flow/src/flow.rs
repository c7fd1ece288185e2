//! A pod's whole flow: all its records, and what they add up to per phase.

use crate::{Micros, Outcome, Phase, Record, Resolution};
use serde::{Deserialize, Serialize};

/// Which pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Node; empty before it is bound.
    #[serde(default)]
    pub node: String,
}

/// All that was recorded of a pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// The pod.
    pub pod: PodRef,
    /// Its records, in no particular order.
    pub records: Vec<Record>,
}

/// What a phase's records add up to.
#[derive(Clone, Debug, PartialEq)]
pub struct PhaseSummary {
    /// The phase.
    pub phase: Phase,
    /// The earliest start.
    pub start: Micros,
    /// The latest end; `None` while a part of it runs.
    pub end: Option<Micros>,
    /// The longest wait in a queue among its parts, in µs.
    pub queued_micros: u64,
    /// Failed if the last attempt at any part failed, running if any part runs, else done.
    pub outcome: Outcome,
    /// The reason of the part that decided `outcome`.
    pub reason: String,
    /// The message of that part.
    pub message: String,
    /// The coarsest resolution among its parts.
    pub resolution: Resolution,
    /// The highest attempt.
    pub attempt: u32,
}

impl Flow {
    /// The records of one phase, by start.
    #[must_use]
    pub fn records_of(&self, phase: Phase) -> Vec<&Record> {
        let mut records: Vec<&Record> = self.records.iter().filter(|r| r.phase == phase).collect();
        records.sort_by_key(|r| (r.start, r.attempt));
        records
    }

    /// What each phase came to, in flow order; a phase that was not recorded is left out.
    #[must_use]
    pub fn phases(&self) -> Vec<PhaseSummary> {
        Phase::ALL.iter().filter_map(|&phase| self.summary(phase)).collect()
    }

    /// What one phase came to.
    #[must_use]
    pub fn summary(&self, phase: Phase) -> Option<PhaseSummary> {
        let records = self.records_of(phase);
        let first = records.first()?;
        // An earlier failed attempt at a part does not count once a later one went better.
        let last: Vec<&&Record> = records
            .iter()
            .filter(|r| !records.iter().any(|o| o.subject == r.subject && o.attempt > r.attempt))
            .collect();
        let rank = |o: Outcome| match o {
            Outcome::Failed => 3,
            Outcome::Running => 2,
            Outcome::Succeeded => 1,
            Outcome::Skipped => 0,
        };
        let decisive = last.iter().max_by_key(|r| rank(r.outcome))?;
        let ended = last.iter().all(|r| r.end.is_some());
        Some(PhaseSummary {
            phase,
            start: first.start,
            end: if ended { records.iter().filter_map(|r| r.end).max() } else { None },
            queued_micros: records.iter().map(|r| r.queued_micros).max().unwrap_or(0),
            outcome: decisive.outcome,
            reason: decisive.reason.clone(),
            message: decisive.message.clone(),
            resolution: if records.iter().any(|r| r.resolution == Resolution::Second) {
                Resolution::Second
            } else {
                Resolution::Micros
            },
            attempt: records.iter().map(|r| r.attempt).max().unwrap_or(1),
        })
    }

    /// From the first start to the end of `Ready` (or to the last end there is), in µs.
    #[must_use]
    pub fn total(&self) -> Option<u64> {
        let start = self.records.iter().map(|r| r.start).min()?;
        let ready =
            self.summary(Phase::Ready).filter(|s| s.outcome == Outcome::Succeeded).and_then(|s| s.end);
        let end = ready.or_else(|| self.records.iter().filter_map(|r| r.end).max())?;
        Some(end.since(start))
    }

    /// The phase that took longest, and its µs.
    #[must_use]
    pub fn slowest(&self) -> Option<(Phase, u64)> {
        self.phases().iter().filter_map(|s| Some((s.phase, s.end?.since(s.start)))).max_by_key(|&(_, d)| d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Clock, Recorder, Writer};

    fn record(subject: &str, attempt: u32, start: i64, end: Option<i64>, outcome: Outcome) -> Record {
        let recorder = Recorder::new(Writer::Runtime, Clock::new());
        let mut record = recorder.begin_for(Phase::ImagesPulled, subject).succeed("Pulled");
        (record.attempt, record.start, record.end) = (attempt, Micros(start), end.map(Micros));
        record.outcome = outcome;
        record
    }

    #[test]
    fn a_retry_that_went_well_heals_its_phase_and_another_part_does_not() {
        let mut flow = Flow::default();
        flow.records.push(record("a", 1, 10, Some(20), Outcome::Failed));
        assert_eq!(flow.summary(Phase::ImagesPulled).unwrap().outcome, Outcome::Failed);
        flow.records.push(record("b", 2, 20, Some(25), Outcome::Succeeded));
        assert_eq!(flow.summary(Phase::ImagesPulled).unwrap().outcome, Outcome::Failed);
        flow.records.push(record("a", 2, 30, Some(45), Outcome::Succeeded));
        let summary = flow.summary(Phase::ImagesPulled).unwrap();
        assert_eq!((summary.outcome, summary.attempt), (Outcome::Succeeded, 2));
        assert_eq!((summary.start, summary.end), (Micros(10), Some(Micros(45))));
        assert_eq!(flow.total(), Some(35));
    }

    #[test]
    fn a_phase_with_a_running_part_has_no_end() {
        let mut flow = Flow::default();
        flow.records.push(record("a", 1, 10, Some(20), Outcome::Succeeded));
        flow.records.push(record("b", 1, 12, None, Outcome::Running));
        let summary = flow.summary(Phase::ImagesPulled).unwrap();
        assert_eq!((summary.end, summary.outcome), (None, Outcome::Running));
    }
}
