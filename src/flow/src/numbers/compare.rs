//! `compare`: two pods, or two groups of pods, phase by phase, by their medians.

use super::stats::{self, Stats, stats};
use super::{Quantiles, coarser};
use crate::{Flow, Phase, Resolution};
use serde::Serialize;

/// Two groups beside each other.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Comparison {
    /// What the first is called.
    pub a: String,
    /// What the second is called.
    pub b: String,
    /// How many pods each has.
    pub pods: [usize; 2],
    /// The whole start.
    pub total: Row,
    /// Each phase that one of them recorded, in flow order.
    pub phases: Vec<Row>,
}

/// One phase in both, or the whole.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The phase; `None` for the whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// In the first; `None` if it ended well in no pod of it.
    pub a: Option<Quantiles>,
    /// In the second.
    pub b: Option<Quantiles>,
    /// The median of the second less that of the first, in µs.
    pub difference_micros: Option<i64>,
    /// The coarser resolution of the two.
    pub resolution: Resolution,
}

/// Compares two named groups.
#[must_use]
pub fn compare(a: (&str, &[Flow]), b: (&str, &[Flow])) -> Comparison {
    let stats = [stats(a.1), stats(b.1)];
    let total = |s: &Stats| s.total.clone();
    let of = |phase: Phase| move |s: &Stats| s.phases.iter().find(|r| r.phase == Some(phase)).cloned();
    let seen = |phase: &Phase| stats.iter().any(|s| s.phases.iter().any(|r| r.phase == Some(*phase)));
    Comparison {
        a: a.0.to_owned(),
        b: b.0.to_owned(),
        pods: [a.1.len(), b.1.len()],
        total: row(None, total(&stats[0]), total(&stats[1])),
        phases: Phase::ALL
            .into_iter()
            .filter(seen)
            .map(|phase| row(Some(phase), of(phase)(&stats[0]), of(phase)(&stats[1])))
            .collect(),
    }
}

fn row(phase: Option<Phase>, a: Option<stats::Row>, b: Option<stats::Row>) -> Row {
    let resolution = |row: &Option<stats::Row>| row.as_ref().map_or(Resolution::Micros, |r| r.resolution);
    let resolution = coarser(resolution(&a), resolution(&b));
    let took = |row: Option<stats::Row>| row.map(|r| r.took).filter(|took| took.count > 0);
    let (a, b) = (took(a), took(b));
    let signed = |q: Quantiles| i64::try_from(q.p50_micros).unwrap_or(i64::MAX);
    let difference_micros = a.zip(b).map(|(a, b)| signed(b) - signed(a));
    Row { phase, a, b, difference_micros, resolution }
}

impl Comparison {
    /// The phase whose median grew most from the first to the second, in the direction of the whole.
    #[must_use]
    pub fn decisive(&self) -> Option<&Row> {
        let whole = self.total.difference_micros?;
        let along = |r: &&Row| r.difference_micros.is_some_and(|d| d.signum() == whole.signum() && d != 0);
        self.phases.iter().filter(along).max_by_key(|r| r.difference_micros.map(i64::unsigned_abs))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Micros, samples};

    #[test]
    fn the_phase_that_made_the_difference_is_named() {
        let mut slow = samples::whole();
        for record in slow.records.iter_mut().filter(|r| r.phase >= Phase::StatusReported) {
            record.start.0 += 40_000;
            record.end = record.end.map(|end| Micros(end.0 + 40_000));
        }
        let started = slow.records.iter_mut().find(|r| r.phase == Phase::ContainersStarted).unwrap();
        started.end = started.end.map(|end| Micros(end.0 + 40_000));
        let comparison = compare(("fast", &[samples::whole()]), ("slow", &[slow]));
        assert_eq!(comparison.total.difference_micros, Some(40_000));
        assert_eq!(comparison.decisive().unwrap().phase, Some(Phase::ContainersStarted));
    }

    #[test]
    fn what_one_of_them_lacks_has_no_difference() {
        let comparison = compare(("a", &[samples::whole()]), ("b", &[samples::stuck()]));
        assert_eq!((comparison.total.difference_micros, comparison.decisive()), (None, None));
        let network = comparison.phases.iter().find(|r| r.phase == Some(Phase::NetworkConfigured)).unwrap();
        assert!(network.a.is_some() && network.b.is_none() && network.difference_micros.is_none());
    }
}
