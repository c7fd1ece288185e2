//! One scheduling cycle: a snapshot and a pod make a decision, and nothing else does.
//!
//! Order is by node name and the tie break by the pod's UID, so that the same input gives the same
//! node; upstream leaves both to chance, and the only parity there is, is "among the best".

use crate::cache::{NodeState, Snapshot};
use crate::framework::{Code, CycleState, Framework, PreFilterResult, Status};
use crate::model::PodInfo;
use podway_flow::Micros;
use std::collections::{BTreeMap, BTreeSet};

/// A node's score and what it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeScore {
    /// The node.
    pub node: String,
    /// Sum of weight · normalised score.
    pub total: i64,
    /// (plugin, raw, normalised, weight), in run order.
    pub by_plugin: Vec<(&'static str, i64, i64, i64)>,
}

/// When the parts of a cycle ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// The cycle began.
    pub started: Micros,
    /// Filtering ended.
    pub filtered: Micros,
    /// Scoring ended.
    pub scored: Micros,
}

/// A pod has its node.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The node.
    pub node: String,
    /// The nodes that passed, by name.
    pub feasible: Vec<String>,
    /// Why each other node fell.
    pub rejected: BTreeMap<String, Status>,
    /// All feasible nodes, best first; empty when there was only one and scoring was left out.
    pub scores: Vec<NodeScore>,
    /// How far the winner is ahead of the next; `None` with one feasible node.
    pub margin: Option<i64>,
    /// How many nodes there were.
    pub nodes: usize,
    /// The snapshot's generation.
    pub generation: u64,
    /// When.
    pub times: Times,
}

/// No node fits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.message())]
pub struct FitError {
    /// How many nodes there were.
    pub nodes: usize,
    /// Set when PreFilter refused the pod everywhere.
    pub pre_filter: Option<Status>,
    /// Why each node fell.
    pub rejected: BTreeMap<String, Status>,
    /// What PostFilter (preemption) says; empty while there is none.
    pub post_filter: String,
    /// When.
    pub times: Times,
}

impl FitError {
    /// Upstream's text, byte for byte (`framework/types.go` FitError.Error).
    #[must_use]
    pub fn message(&self) -> String {
        if self.nodes == 0 {
            return "no nodes available to schedule pods".to_owned();
        }
        let mut text = format!("0/{} nodes are available:", self.nodes);
        let reasons = match &self.pre_filter {
            Some(status) => status.reasons.join(", "),
            None => counted(&self.rejected),
        };
        if !reasons.is_empty() {
            text.push_str(&format!(" {reasons}."));
        }
        if !self.post_filter.is_empty() {
            text.push_str(&format!(" {}", self.post_filter));
        }
        text
    }

    /// The plugins that refused; what the queue's hints go by.
    #[must_use]
    pub fn plugins(&self) -> BTreeSet<&'static str> {
        self.pre_filter.iter().chain(self.rejected.values()).map(|s| s.plugin).collect()
    }

    /// True when a plugin failed rather than refused.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.pre_filter.iter().chain(self.rejected.values()).any(|s| s.code == Code::Error)
    }
}

/// `count reason, count reason`, sorted as strings, as upstream does.
#[must_use]
pub fn counted(rejected: &BTreeMap<String, Status>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in rejected.values().flat_map(|s| &s.reasons) {
        *counts.entry(reason).or_insert(0) += 1;
    }
    let mut parts: Vec<String> = counts.into_iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    parts.sort();
    parts.join(", ")
}

/// Decides. `now` is asked at the ends of the parts and has no say in the choice.
///
/// # Errors
/// [`FitError`] when no node fits.
pub fn schedule_one(
    framework: &Framework,
    snapshot: &Snapshot,
    pod: &PodInfo,
    now: &dyn Fn() -> Micros,
) -> Result<Decision, Box<FitError>> {
    let mut state = CycleState::default();
    let mut times = Times { started: now(), ..Times::default() };
    let fail = |pre_filter, rejected, mut times: Times| {
        times.filtered = now();
        let nodes = snapshot.nodes.len();
        Err(Box::new(FitError { nodes, pre_filter, rejected, post_filter: String::new(), times }))
    };
    if snapshot.nodes.is_empty() {
        return fail(None, BTreeMap::new(), times);
    }
    let (only, narrowed_by) = match pre_filter(framework, &mut state, pod, snapshot) {
        Ok(narrowed) => narrowed,
        Err(status) => return fail(Some(status), BTreeMap::new(), times),
    };
    let mut rejected = BTreeMap::new();
    let mut feasible: Vec<NodeState> = Vec::new();
    for node in snapshot.nodes.iter() {
        if only.as_ref().is_some_and(|names| !names.contains(&node.info.name)) {
            let reason = format!("node(s) didn't satisfy plugin(s) [{}]", narrowed_by.join(" "));
            let plugin = narrowed_by.first().copied().unwrap_or_default();
            rejected.insert(node.info.name.clone(), Status::unresolvable(plugin, reason));
            continue;
        }
        let refusal = framework
            .filter
            .iter()
            .filter(|p| !state.skips_filter(p.name()))
            .find_map(|p| p.filter(&state, pod, node).err());
        match refusal {
            Some(status) => {
                rejected.insert(node.info.name.clone(), status);
            }
            None => feasible.push(node.clone()),
        }
    }
    times.filtered = now();
    if feasible.is_empty() {
        return fail(None, rejected, times);
    }
    let scores =
        if feasible.len() == 1 { Vec::new() } else { score(framework, &mut state, pod, &feasible, snapshot) };
    let node = choose(&scores, &pod.uid).unwrap_or(&feasible[0].info.name).to_owned();
    let margin = match scores.as_slice() {
        [first, second, ..] => Some(first.total - second.total),
        _ => None,
    };
    times.scored = now();
    Ok(Decision {
        node,
        feasible: feasible.iter().map(|n| n.info.name.clone()).collect(),
        rejected,
        scores,
        margin,
        nodes: snapshot.nodes.len(),
        generation: snapshot.generation,
        times,
    })
}

type Narrowed = (Option<BTreeSet<String>>, Vec<&'static str>);

fn pre_filter(
    framework: &Framework,
    state: &mut CycleState,
    pod: &PodInfo,
    snapshot: &Snapshot,
) -> Result<Narrowed, Status> {
    let (mut only, mut by): Narrowed = (None, Vec::new());
    let mut refused = None;
    for plugin in &framework.pre_filter {
        match plugin.pre_filter(state, pod, snapshot) {
            Ok(PreFilterResult::All) => {}
            Ok(PreFilterResult::Skip) => state.skip_filter(plugin.name()),
            Ok(PreFilterResult::Only(names)) => {
                by.push(plugin.name());
                only = Some(match only {
                    None => names,
                    Some(before) => before.intersection(&names).cloned().collect(),
                });
            }
            // Upstream lets later PreFilters run after a refusal that preemption may lift.
            Err(status) if status.code == Code::Unschedulable => refused = refused.or(Some(status)),
            Err(status) => return Err(status),
        }
    }
    refused.map_or(Ok((only, by)), Err)
}

fn score(
    framework: &Framework,
    state: &mut CycleState,
    pod: &PodInfo,
    feasible: &[NodeState],
    snapshot: &Snapshot,
) -> Vec<NodeScore> {
    for plugin in &framework.pre_score {
        if !plugin.pre_score(state, pod, feasible) {
            state.skip_score(plugin.name());
        }
    }
    let mut out: Vec<NodeScore> = feasible
        .iter()
        .map(|n| NodeScore { node: n.info.name.clone(), total: 0, by_plugin: Vec::new() })
        .collect();
    for (plugin, weight) in framework.score.iter().filter(|(p, _)| !state.skips_score(p.name())) {
        let raw: Vec<i64> = feasible.iter().map(|n| plugin.score(state, pod, n, snapshot)).collect();
        let mut normal = raw.clone();
        plugin.normalize(&mut normal);
        for ((node, raw), normal) in out.iter_mut().zip(raw).zip(normal) {
            node.total += weight * normal;
            node.by_plugin.push((plugin.name(), raw, normal, *weight));
        }
    }
    out.sort_by(|a, b| b.total.cmp(&a.total).then_with(|| a.node.cmp(&b.node)));
    out
}

/// One of the best, by a hash (FNV-1a) of the pod's UID, so that equals spread over equals.
fn choose<'a>(scores: &'a [NodeScore], uid: &str) -> Option<&'a str> {
    let best = scores.first()?.total;
    let ties = scores.iter().take_while(|s| s.total == best).count();
    let hash = uid
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    let index = usize::try_from((hash >> 17) % u64::try_from(ties).unwrap_or(1)).unwrap_or(0);
    scores.get(index).map(|s| s.node.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::model::node::{Effect, Taint};
    use crate::model::{NodeInfo, Resources};
    use crate::plugins::default_framework;
    use std::sync::Arc;

    fn node(name: &str, cpu: i64) -> NodeInfo {
        NodeInfo {
            name: name.into(),
            allocatable: Resources { milli_cpu: cpu, memory: 1 << 34, ..Resources::default() },
            allocatable_pods: 10,
            ..NodeInfo::default()
        }
    }

    fn asking(cpu: i64) -> PodInfo {
        let requests = Resources { milli_cpu: cpu, ..Resources::default() };
        PodInfo { uid: "u".into(), non_zero: requests.clone(), requests, ..PodInfo::default() }
    }

    fn run(nodes: Vec<NodeInfo>, pod: &PodInfo) -> Result<Decision, Box<FitError>> {
        let mut cache = Cache::default();
        for n in nodes {
            cache.set_node(Arc::new(n));
        }
        schedule_one(&default_framework(), &cache.snapshot(), pod, &|| Micros(1))
    }

    #[test]
    fn the_message_is_upstreams() {
        let tainted = |name: &str| NodeInfo {
            taints: vec![Taint { key: "k".into(), value: String::new(), effect: Effect::NoSchedule }],
            ..node(name, 1000)
        };
        let error = run(vec![node("a", 100), tainted("b"), tainted("c")], &asking(500)).unwrap_err();
        assert_eq!(
            error.message(),
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s)."
        );
        assert_eq!(error.plugins(), BTreeSet::from(["NodeResourcesFit", "TaintToleration"]));
        assert_eq!(run(vec![], &asking(1)).unwrap_err().message(), "no nodes available to schedule pods");
    }

    #[test]
    fn counts_are_sorted_as_strings() {
        let status = |r: &str| Status::unschedulable("P", r);
        let mut rejected: BTreeMap<String, Status> =
            (0..10).map(|i| (format!("x{i}"), status("x"))).collect();
        rejected.insert("y0".into(), status("y"));
        rejected.insert("y1".into(), status("y"));
        assert_eq!(counted(&rejected), "10 x, 2 y");
    }

    #[test]
    fn a_cordoned_node_is_named_as_such() {
        let cordoned = NodeInfo { unschedulable: true, ..node("a", 1000) };
        assert_eq!(
            run(vec![cordoned], &asking(1)).unwrap_err().message(),
            "0/1 nodes are available: 1 node(s) were unschedulable."
        );
    }

    #[test]
    fn nodes_outside_a_pre_filter_result_are_counted() {
        use crate::model::{NodeTerm, Operator, Requirement};
        let field = Requirement { key: "metadata.name".into(), operator: Operator::In(vec!["z".into()]) };
        let mut pod = asking(1);
        pod.required_terms = Some(vec![NodeTerm { expressions: vec![], fields: vec![field] }]);
        assert_eq!(
            run(vec![node("a", 10), node("b", 10)], &pod).unwrap_err().message(),
            "0/2 nodes are available: 2 node(s) didn't satisfy plugin(s) [NodeAffinity]."
        );
    }

    #[test]
    fn an_unsupported_constraint_refuses_the_pod() {
        let pod = PodInfo { unsupported: vec!["resourceClaims"], ..asking(1) };
        assert_eq!(
            run(vec![node("a", 10)], &pod).unwrap_err().message(),
            "0/1 nodes are available: not supported: resourceClaims."
        );
    }

    #[test]
    fn the_emptier_node_wins_with_its_margin_and_one_feasible_node_is_not_scored() {
        let decision = run(vec![node("a", 1000), node("b", 4000)], &asking(500)).unwrap();
        assert_eq!((decision.node.as_str(), decision.scores.len()), ("b", 2));
        assert_eq!(decision.margin, Some(decision.scores[0].total - decision.scores[1].total));
        assert!(decision.margin > Some(0));
        let decision = run(vec![node("a", 100), node("b", 4000)], &asking(500)).unwrap();
        assert_eq!((decision.node.as_str(), decision.scores.len(), decision.margin), ("b", 0, None));
        assert_eq!(decision.rejected["a"].reasons, ["Insufficient cpu"]);
    }

    #[test]
    fn equals_are_spread_over_equals_and_the_same_pod_gets_the_same_node() {
        let mut seen = BTreeSet::new();
        for i in 0..40 {
            let pod = PodInfo { uid: format!("uid-{i}"), ..asking(1) };
            let nodes = || vec![node("a", 1000), node("b", 1000), node("c", 1000)];
            let first = run(nodes(), &pod).unwrap().node;
            assert_eq!(first, run(nodes(), &pod).unwrap().node);
            seen.insert(first);
        }
        assert_eq!(seen.len(), 3);
    }
}
