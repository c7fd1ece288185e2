//! `chain`: the critical path of one pod, or the paths that pods of a group took, and how often.

use super::{Quantiles, coarser, name, resolution};
use crate::{Flow, Phase, Resolution, path};
use serde::Serialize;
use std::collections::BTreeMap;

/// How many different paths are told.
const PATHS: usize = 5;

/// The paths of a group.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Chains {
    /// How many pods have a path.
    pub pods: usize,
    /// The pod, if it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The phases that lie on some path, in flow order.
    pub steps: Vec<Step>,
    /// The most frequent paths.
    pub paths: Vec<Path>,
    /// How many different paths there are.
    pub different: usize,
    /// The coarsest resolution among the pods.
    pub resolution: Resolution,
}

/// One phase on the paths.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// The phase.
    pub phase: Phase,
    /// On how many paths it lies.
    pub on_path: usize,
    /// When it began, after the first record.
    pub start: Quantiles,
    /// What it gave to the path.
    pub own: Quantiles,
    /// The time before it, of which nobody wrote a record.
    pub gap: Quantiles,
}

/// A path, and how many pods took it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Path {
    /// How many.
    pub pods: usize,
    /// One of them.
    pub example: String,
    /// The phases, first step first.
    pub phases: Vec<Phase>,
}

/// The paths of a group of pods.
#[must_use]
pub fn chains(flows: &[Flow]) -> Chains {
    let mut of_phase: BTreeMap<Phase, [Vec<u64>; 3]> = BTreeMap::new();
    let mut paths: BTreeMap<Vec<Phase>, Path> = BTreeMap::new();
    let mut pods = 0;
    for flow in flows {
        let steps = path::of_flow(flow);
        let Some(origin) = flow.records.iter().map(|r| r.start).min().filter(|_| !steps.is_empty()) else {
            continue;
        };
        pods += 1;
        for step in &steps {
            let [starts, owns, gaps] = of_phase.entry(step.phase).or_default();
            starts.push(step.start.since(origin));
            owns.push(step.own);
            gaps.push(step.gap);
        }
        let phases: Vec<Phase> = steps.iter().map(|s| s.phase).collect();
        let path =
            paths.entry(phases.clone()).or_insert_with(|| Path { pods: 0, example: name(flow), phases });
        path.pods += 1;
    }
    let different = paths.len();
    let mut paths: Vec<Path> = paths.into_values().collect();
    paths.sort_by_key(|p| std::cmp::Reverse(p.pods));
    paths.truncate(PATHS);
    let steps = of_phase.into_iter().filter_map(|(phase, [start, own, gap])| {
        let on_path = own.len();
        let [start, own, gap] = [Quantiles::of(start)?, Quantiles::of(own)?, Quantiles::of(gap)?];
        Some(Step { phase, on_path, start, own, gap })
    });
    Chains {
        pods,
        pod: flows.first().filter(|_| flows.len() == 1).map(name),
        steps: steps.collect(),
        paths,
        different,
        resolution: flows.iter().map(resolution).fold(Resolution::Micros, coarser),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn pods_of_one_path_are_counted_together() {
        let chains = chains(&[samples::whole(), samples::stuck(), samples::whole(), Flow::default()]);
        assert_eq!((chains.pods, chains.different, chains.pod.as_deref()), (3, 2, None));
        assert_eq!((chains.paths[0].pods, chains.paths[1].pods), (2, 1));
        assert_eq!(chains.paths[0].phases.last(), Some(&Phase::Ready));
        let ready = chains.steps.iter().find(|s| s.phase == Phase::Ready).unwrap();
        assert_eq!((ready.on_path, ready.start.p50_micros, ready.own.p50_micros), (2, 55_000, 29_213));
        assert_eq!(super::chains(&[samples::whole()]).pod.as_deref(), Some("default/web-0"));
    }
}
