//! Which nodes take the pod, and why each other one does not.
//!
//! All are looked at, unless the profile asks for a share of them. Then it is upstream's search
//! (`pkg/scheduler/schedule_one.go` findNodesThatPassFilters and numFeasibleNodesToFind of 1.36): it ends with so
//! many nodes that pass, and the next cycle begins where this one ended.

use super::columns::{Columns, Say};
use super::{Cluster, Narrowed, Trace};
use crate::cache::{NodePod, NodeState, Snapshot, UNCLASSED};
use crate::extender;
use crate::framework::{Code, CycleState, Filter, Framework, Point, Refusals, Status};
use crate::model::PodInfo;
use std::sync::Arc;

/// How many nodes that take a pod are enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sample {
    /// All that do.
    #[default]
    All,
    /// This share of all nodes, in percent; 0: the fewer the more nodes there are.
    Percent(usize),
}

/// Fewer than these are not worth it.
const LEAST: usize = 100;
/// The share does not fall below this, in percent.
const LEAST_PERCENT: usize = 5;

impl Sample {
    /// Upstream's numFeasibleNodesToFind. Without scores the first one is as good as any.
    fn enough(self, nodes: usize, scores: bool) -> usize {
        let percent = match self {
            Sample::All => return nodes,
            Sample::Percent(_) if !scores => return 1,
            Sample::Percent(_) if nodes < LEAST => return nodes,
            Sample::Percent(0) => 50_usize.saturating_sub(nodes / 125).max(LEAST_PERCENT),
            Sample::Percent(percent) => percent,
        };
        (nodes * percent / 100).max(LEAST).min(nodes)
    }
}

/// Filters a node, twice when pods of at least the pod's priority are nominated to it: with them, since
/// they were promised their room, and without, since they may not come (upstream's
/// `RunFilterPluginsWithNominatedPods`).
pub(crate) fn passes(
    plugins: &[&Arc<dyn Filter>],
    (framework, snapshot): (&Framework, &Snapshot),
    state: &CycleState,
    pod: &PodInfo,
    node: &NodeState,
    calls: &mut [u64],
) -> Result<(), Status> {
    let there = if snapshot.any_nominated() { snapshot.nominated(&node.info.name) } else { &[] };
    let nominated: Vec<NodePod> = there
        .iter()
        .filter(|n| n.priority >= pod.priority && n.uid != pod.uid)
        .map(|n| NodePod { pod: n.clone(), class: UNCLASSED })
        .collect();
    if !nominated.is_empty() {
        let (mut state, mut node) = (state.clone(), node.clone());
        for other in &nominated {
            framework.shift(&mut state, pod, &mut node, (other, 1), snapshot);
        }
        run(plugins, &state, pod, &node, calls)?;
    }
    run(plugins, state, pod, node, calls)
}

/// What the first plugin says that refuses.
fn run(
    plugins: &[&Arc<dyn Filter>],
    state: &CycleState,
    pod: &PodInfo,
    node: &NodeState,
    calls: &mut [u64],
) -> Result<(), Status> {
    let refusal = plugins.iter().zip(calls).find_map(|(plugin, calls)| {
        *calls += 1;
        plugin.filter(state, pod, node).err()
    });
    refusal.map_or(Ok(()), Err)
}

/// What the plugins that go by the node alone have said.
struct Known<'a> {
    columns: &'a mut Columns,
    /// The plugins that may refuse a node, by their place, each with its column if it has one.
    steps: Vec<(usize, Option<usize>)>,
    none: CycleState,
}

impl<'a> Known<'a> {
    fn of(
        columns: &'a mut Columns,
        plugins: &[&Arc<dyn Filter>],
        cluster: &Cluster<'_>,
        calls: &mut [u64],
    ) -> Self {
        let says = columns.filters(plugins, cluster, calls).into_iter().enumerate();
        let steps = says.filter_map(|(at, say)| match say {
            Say::Passes => None,
            Say::Kept(column) => Some((at, Some(column))),
            Say::Asked => Some((at, None)),
        });
        Known { steps: steps.collect(), columns, none: CycleState::default() }
    }

    /// What the first plugin says that refuses.
    fn run(
        &mut self,
        plugins: &[&Arc<dyn Filter>],
        state: &CycleState,
        pod: &PodInfo,
        node: &NodeState,
        calls: &mut [u64],
    ) -> Result<(), Status> {
        for (at, column) in &self.steps {
            let (plugin, calls) = (&**plugins[*at], &mut calls[*at]);
            match column {
                Some(column) => self.columns.filter(*column, plugin, (node, &self.none), calls)?,
                None => {
                    *calls += 1;
                    plugin.filter(state, pod, node)?;
                }
            }
        }
        Ok(())
    }
}

/// What came of filtering.
pub(super) struct Filtered<'a> {
    /// The nodes that take the pod.
    pub(super) feasible: Vec<&'a NodeState>,
    /// Why others fell.
    pub(super) rejected: Refusals,
    /// Extenders left some out.
    pub(super) extended: bool,
}

/// The nodes that pass, and why each other fell. A plugin that fails ends the cycle. The node that the
/// pod is nominated to is looked at first, and if it passes is the only one.
pub(super) fn filter<'a>(
    cluster: &Cluster<'a>,
    state: &CycleState,
    (only, narrowed_by): &Narrowed,
    (start, columns): (&mut usize, Option<&mut Columns>),
    trace: &mut Trace,
) -> Result<Filtered<'a>, Status> {
    let Cluster { framework, pod, snapshot } = *cluster;
    let plugins: Vec<_> = framework.filter.iter().filter(|p| !state.skips_filter(p.name())).collect();
    let mut calls = vec![0; plugins.len()];
    let (mut feasible, mut rejected) = (Vec::new(), Vec::new());
    let nominated = snapshot.node(&pod.nominated).filter(|_| !pod.nominated.is_empty());
    if let Some(node) = nominated
        && passes(&plugins, (framework, snapshot), state, pod, node, &mut calls).is_ok()
    {
        // Upstream only logs the error here, and looks at all nodes.
        feasible =
            extender::filter((framework, pod, snapshot), vec![node], &mut Vec::new()).unwrap_or_default();
    }
    let nodes = if feasible.is_empty() { snapshot.nodes.as_slice() } else { &[] };
    let first = if *start < nodes.len() { *start } else { 0 };
    let named = |node: &NodeState| only.as_ref().is_none_or(|names| names.contains(&*node.info.name));
    let among = if only.is_some() { nodes.iter().filter(|n| named(n)).count() } else { nodes.len() };
    let asks = framework.extenders.iter().any(|e| e.filters() || e.weight().is_some());
    let enough = framework.sample.enough(among, asks || !framework.score.is_empty());
    // A pod that is for a few nodes only has no column that another will ask for.
    let columns = columns.filter(|_| only.is_none() && !nodes.is_empty());
    let mut known = columns.map(|columns| Known::of(columns, &plugins, cluster, &mut calls));
    let mut looked_at = 0;
    let (before, after) = nodes.split_at(first);
    for node in after.iter().chain(before) {
        if !named(node) {
            continue;
        }
        if !feasible.is_empty() && feasible.len() >= enough {
            break;
        }
        looked_at += 1;
        let promised = snapshot.any_nominated() && !snapshot.nominated(&node.info.name).is_empty();
        let verdict = match known.as_mut().filter(|_| !promised) {
            None => passes(&plugins, (framework, snapshot), state, pod, node, &mut calls),
            Some(known) => known.run(&plugins, state, pod, node, &mut calls),
        };
        match verdict {
            Err(status) if status.code == Code::Error => return Err(status),
            Err(status) => rejected.push((node.at, status)),
            Ok(()) => feasible.push(node),
        }
    }
    if framework.sample != Sample::All && !nodes.is_empty() {
        *start = (first + looked_at) % nodes.len();
    }
    for (plugin, calls) in plugins.iter().zip(calls) {
        trace.called(plugin.name(), Point::Filter, calls);
    }
    let passed = feasible.len();
    if !nodes.is_empty() && !framework.extenders.is_empty() {
        feasible = extender::filter((framework, pod, snapshot), feasible, &mut rejected)?;
    }
    let extended = feasible.len() < passed;
    if let Some(names) = only {
        let reason = format!("node(s) didn't satisfy plugin(s) [{}]", narrowed_by.join(" "));
        let plugin = narrowed_by.first().copied().unwrap_or_default();
        let others = nodes.iter().filter(|n| !names.contains(&*n.info.name));
        rejected.extend(others.map(|n| (n.at, Status::unresolvable(plugin, reason.clone()))));
    }
    if first != 0 || only.is_some() || extended {
        // Whatever was looked at first: what is told, and who wins among equals, goes by name.
        feasible.sort_unstable_by_key(|n| n.at);
        rejected.sort_unstable_by_key(|(at, _)| *at);
    }
    let mut refusals = Refusals::default();
    for (at, status) in rejected {
        if let Some(node) = nodes.get(at) {
            refusals.push(node.info.name.clone(), status);
        }
    }
    Ok(Filtered { feasible, rejected: refusals, extended })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::cycle::{Carried, schedule_one};
    use crate::model::NodeInfo;
    use crate::plugins::default_framework;
    use podway_flow::Micros;

    fn percent(n: usize) -> Sample {
        Sample::Percent(n)
    }

    // The figures of upstream's Test_numFeasibleNodesToFind.
    #[test]
    fn enough_is_what_upstream_takes_for_enough() {
        for (sample, nodes, want) in [
            (percent(0), 10, 10),
            (percent(40), 10, 10),
            (percent(0), 1000, 420),
            (percent(40), 1000, 400),
            (percent(0), 6000, 300),
            (percent(40), 6000, 2400),
            (percent(1), 5000, 100),
            (percent(100), 5000, 5000),
            (Sample::All, 5000, 5000),
        ] {
            assert_eq!(sample.enough(nodes, true), want, "{sample:?} of {nodes}");
        }
        assert_eq!((percent(40).enough(1000, false), Sample::All.enough(1000, false)), (1, 1000));
    }

    // Upstream's nextStartNodeIndex: what was looked at, whether it passed or not, is not looked at first again.
    #[test]
    fn the_next_cycle_begins_where_the_last_one_ended() {
        let mut cache = Cache::default();
        for i in 0..250 {
            let info = NodeInfo {
                name: format!("n{i:03}").into(),
                unschedulable: i < 10,
                allocatable_pods: 9,
                ..NodeInfo::default()
            };
            cache.set_node(Arc::new(info));
        }
        let framework = Framework { sample: percent(40), ..default_framework() };
        let (mut carried, snapshot) = (Carried::default(), cache.snapshot());
        let mut run = |nominated: &str| {
            let pod = PodInfo { uid: "u".into(), nominated: nominated.into(), ..PodInfo::default() };
            let mut trace = Trace { rows: None, ..Trace::default() };
            let found =
                schedule_one(Some(&mut carried), &framework, &snapshot, &pod, &|| Micros(0), &mut trace)
                    .unwrap();
            let mut nodes: Vec<String> = found.scores.iter().map(|s| s.node.clone()).collect();
            nodes.sort();
            let ends = nodes.first().cloned().zip(nodes.last().cloned());
            (found.feasible, found.rejected.len(), ends, carried.start)
        };
        let ends = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(run(""), (100, 10, ends("n010", "n109"), 110));
        assert_eq!(run("n200"), (1, 0, None, 110), "a nominated node is no search");
        assert_eq!(run(""), (100, 0, ends("n110", "n209"), 210));
        // Over the end: 40 there, the cordoned ten again, and 60.
        assert_eq!(run(""), (100, 10, ends("n010", "n249"), 70));
    }
}
