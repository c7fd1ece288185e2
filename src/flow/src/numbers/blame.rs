//! `blame`: which phases the time went to, by what they gave to the critical paths, and the worst pod of
//! each. A phase that only ran beside a longer one is not to blame, however long it took.

use super::{Quantiles, coarser, name, ready_in};
use crate::numbers::stats::duration;
use crate::{Flow, Phase, Resolution, path};
use serde::Serialize;
use std::collections::BTreeMap;

/// The phases, the guiltiest first.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Blame {
    /// How many pods.
    pub pods: usize,
    /// The length of all critical paths, in µs.
    pub whole_micros: u64,
    /// Of that, between two recorded phases: nobody wrote down what for.
    pub gap_micros: u64,
    /// The phases, by share.
    pub rows: Vec<Row>,
}

/// One phase.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// The phase.
    pub phase: Phase,
    /// Its share of all critical paths, in µs.
    pub path_micros: u64,
    /// On how many pods' paths it lies.
    pub on_path: usize,
    /// How long it took, on a path or beside it.
    pub took: Quantiles,
    /// The pod in which it took longest.
    pub worst: String,
    /// The coarsest resolution among the pods.
    pub resolution: Resolution,
}

/// What to blame in a group of pods.
#[must_use]
pub fn blame(flows: &[Flow]) -> Blame {
    let mut on_path: BTreeMap<Phase, (u64, usize)> = BTreeMap::new();
    let mut gap_micros = 0_u64;
    for step in flows.iter().flat_map(path::of_flow) {
        let (sum, count) = on_path.entry(step.phase).or_default();
        *sum = sum.saturating_add(step.own);
        *count += 1;
        gap_micros = gap_micros.saturating_add(step.gap);
    }
    let whole = on_path.values().fold(gap_micros, |sum, &(own, _)| sum.saturating_add(own));
    let mut rows: Vec<Row> = Phase::ALL
        .iter()
        .filter_map(|&phase| {
            let took: Vec<(u64, &Flow)> =
                flows.iter().filter_map(|f| Some((duration(f, phase)?, f))).collect();
            // Of equals the one that was Ready last, so that a point in time blames a slow pod too.
            let worst = took.iter().max_by_key(|(d, f)| (*d, ready_in(f)))?.1;
            let (path_micros, on_path) = on_path.get(&phase).copied().unwrap_or_default();
            let resolutions = flows.iter().filter_map(|f| Some(f.summary(phase)?.resolution));
            Some(Row {
                phase,
                path_micros,
                on_path,
                worst: name(worst),
                resolution: resolutions.fold(Resolution::Micros, coarser),
                took: Quantiles::of(took.iter().map(|&(d, _)| d).collect())?,
            })
        })
        .collect();
    rows.sort_by_key(|r| (std::cmp::Reverse((r.path_micros, r.took.p50_micros)), r.phase));
    Blame { pods: flows.len(), whole_micros: whole, gap_micros, rows }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn what_ran_beside_a_longer_phase_is_not_to_blame() {
        let mut slow = samples::whole();
        slow.pod.name = "slow".to_owned();
        // The pull ends before the network does: on no path, though it is long.
        let pull = slow.records.iter_mut().find(|r| r.phase == Phase::ImagesPulled).unwrap();
        pull.end = Some(crate::Micros(pull.start.0 + 13_000));
        let blame = blame(&[samples::whole(), slow]);
        assert_eq!(blame.rows[0].phase, Phase::Ready);
        let pull = blame.rows.iter().find(|r| r.phase == Phase::ImagesPulled).unwrap();
        assert_eq!((pull.path_micros, pull.on_path, pull.worst.as_str()), (0, 0, "default/slow"));
        let sum: u64 = blame.rows.iter().map(|r| r.path_micros).sum();
        assert_eq!(sum + blame.gap_micros, blame.whole_micros);
        assert_eq!(blame.whole_micros, 2 * 84_213);
    }
}
