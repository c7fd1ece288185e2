//! One scheduling cycle: a snapshot and a pod make a decision, and nothing else does.
//!
//! Order is by node name and the tie break by the pod's UID, so that the same input gives the same
//! node; upstream leaves both to chance, and the only parity there is, is "among the best".

mod columns;
mod find;
#[cfg(test)]
mod kept;
mod score;

pub use columns::Carried;
pub use find::Sample;
pub(crate) use find::passes;

use crate::cache::{NodeState, Snapshot};
use crate::extender;
use crate::framework::{
    Code, CycleState, Failure, Framework, Point, PostFilterResult, PreFilterResult, Preemption, Refusals,
    Status, Unfit,
};
use crate::model::PodInfo;
use podway_flow::Micros;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// A plugin's name, or an extender's URL.
pub type PluginName = Cow<'static, str>;

/// A node's score and what it is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeScore {
    /// The node.
    pub node: String,
    /// Sum of weight · normalised score.
    pub total: i64,
    /// (plugin, raw, normalised, weight), in run order.
    pub by_plugin: Vec<(PluginName, i64, i64, i64)>,
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

/// What the extension points of one cycle did, for metrics. It has no say in the decision.
#[derive(Debug, Default)]
pub struct Trace {
    /// Each point that ran, upstream's word for how it ended, and its µs.
    pub points: Vec<(Point, &'static str, u64)>,
    /// How often each plugin was called at a point.
    pub evaluated: BTreeMap<(&'static str, Point), u64>,
    /// How many of the best nodes are told with their scores; `None`: all.
    pub rows: Option<usize>,
}

impl Trace {
    fn point(&mut self, point: Point, status: Option<Code>, micros: u64) {
        self.points.push((point, status.map_or("Success", Code::name), micros));
    }

    fn called(&mut self, plugin: &'static str, point: Point, times: u64) {
        if times > 0 {
            *self.evaluated.entry((plugin, point)).or_insert(0) += times;
        }
    }
}

/// Why there is no decision.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CycleError {
    /// No node fits.
    #[error(transparent)]
    Unfit(Box<FitError>),
    /// A plugin failed; nothing is known of the nodes.
    #[error(transparent)]
    Failed(Failure),
}

/// A pod has its node.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The node.
    pub node: String,
    /// How many nodes passed.
    pub feasible: usize,
    /// Why each other node that was looked at fell.
    pub rejected: Refusals,
    /// The feasible nodes, best first, as many as were asked for; empty when there was only one and scoring was
    /// left out.
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

/// What becomes of a refused pod's nomination.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Nomination {
    /// It stays what it was.
    #[default]
    Keep,
    /// There is none.
    Clear,
    /// To the node whose victims are evicted for it.
    Preempt(Preemption),
}

/// No node fits.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{}", self.message())]
pub struct FitError {
    /// How many nodes there were.
    pub nodes: usize,
    /// Set when PreFilter refused the pod everywhere.
    pub pre_filter: Option<Status>,
    /// Why each node fell.
    pub rejected: Refusals,
    /// What PostFilter says; empty when it found what to evict.
    pub post_filter: String,
    /// What PostFilter found.
    pub nomination: Nomination,
    /// The plugins whose PreFilter narrowed the nodes, and the extenders, if they left nodes out.
    pub narrowed_by: Vec<&'static str>,
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
            None => counted(self.rejected.values()),
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
        let narrowed = self.narrowed_by.iter().copied();
        self.pre_filter.iter().chain(self.rejected.values()).map(|s| s.plugin).chain(narrowed).collect()
    }
}

/// `count reason, count reason`, sorted as strings, as upstream does.
#[must_use]
pub fn counted<'a>(statuses: impl IntoIterator<Item = &'a Status>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in statuses.into_iter().flat_map(|s| &*s.reasons) {
        *counts.entry(reason).or_insert(0) += 1;
    }
    let mut parts: Vec<String> = counts.into_iter().map(|(reason, n)| format!("{n} {reason}")).collect();
    parts.sort();
    parts.join(", ")
}

/// Decides. `now` is asked at the ends of the parts and has no say in the choice. `carried` is what one cycle leaves
/// to the next: what was said of nodes that have not changed, and the node at which a profile that looks at a share
/// of them begins.
///
/// # Errors
/// [`CycleError`] when no node fits, or when a plugin failed.
pub fn schedule_one(
    carried: Option<&mut Carried>,
    framework: &Framework,
    snapshot: &Snapshot,
    pod: &PodInfo,
    now: &dyn Fn() -> Micros,
    trace: &mut Trace,
) -> Result<Decision, CycleError> {
    let mut none = 0;
    let (start, mut columns) = match carried {
        None => (&mut none, None),
        Some(carried) => carried.of(snapshot),
    };
    let mut state = CycleState::default();
    let mut times = Times { started: now(), ..Times::default() };
    let unfit = |pre_filter, rejected, narrowed_by, mut times: Times| {
        times.filtered = now();
        FitError {
            nodes: snapshot.nodes.len(),
            pre_filter,
            rejected,
            post_filter: String::new(),
            nomination: Nomination::Clear,
            narrowed_by,
            times,
        }
    };
    if snapshot.nodes.is_empty() {
        return Err(CycleError::Unfit(Box::new(unfit(None, Refusals::default(), vec![], times))));
    }
    let narrowed = pre_filter(framework, &mut state, pod, snapshot, trace);
    let pre_filtered = now();
    let code = narrowed.as_ref().err().map(|s| s.code);
    trace.point(Point::PreFilter, code, pre_filtered.since(times.started));
    let cluster = Cluster { framework, pod, snapshot };
    let narrowed = match narrowed {
        Ok(narrowed) => narrowed,
        Err(status) if status.code == Code::Error => {
            return Err(CycleError::Failed(Failure::of(Point::PreFilter, &status)));
        }
        Err(status) => {
            let error = unfit(Some(status), Refusals::default(), vec![], times);
            return Err(post_filter(&cluster, &mut state, error, now, trace));
        }
    };
    let filtered = find::filter(&cluster, &state, &narrowed, (start, columns.as_deref_mut()), trace);
    times.filtered = now();
    let code = filtered.as_ref().err().map(|s| s.code);
    trace.point(Point::Filter, code, times.filtered.since(pre_filtered));
    let find::Filtered { feasible, rejected, extended } =
        filtered.map_err(|status| CycleError::Failed(Failure::of(Point::Filter, &status)))?;
    if feasible.is_empty() {
        let by_extenders = extended.then_some(extender::NAME);
        let narrowed_by = narrowed.1.into_iter().chain(by_extenders).collect();
        let error = unfit(None, rejected, narrowed_by, times);
        return Err(post_filter(&cluster, &mut state, error, now, trace));
    }
    let mut scored = score::Scored::default();
    if feasible.len() > 1 {
        pre_score(framework, &mut state, pod, &feasible, snapshot, trace);
        let pre_scored = now();
        trace.point(Point::PreScore, None, pre_scored.since(times.filtered));
        scored = score::score(&cluster, &state, &feasible, columns, trace);
        trace.point(Point::Score, None, now().since(pre_scored));
    }
    let node = scored.chosen.as_ref().unwrap_or(&feasible[0].info.name).to_string();
    times.scored = now();
    Ok(Decision {
        node,
        feasible: feasible.len(),
        rejected,
        scores: scored.rows,
        margin: scored.margin,
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
    trace: &mut Trace,
) -> Result<Narrowed, Status> {
    let (mut only, mut by): Narrowed = (None, Vec::new());
    let mut refused = None;
    for plugin in &framework.pre_filter {
        let result = plugin.pre_filter(state, pod, snapshot);
        trace.called(plugin.name(), Point::PreFilter, u64::from(result != Ok(PreFilterResult::Skip)));
        match result {
            Ok(PreFilterResult::All) => {}
            Ok(PreFilterResult::Skip) => state.skip_filter(plugin.name()),
            Ok(PreFilterResult::Only(names)) => {
                by.push(plugin.name());
                by.sort_unstable();
                let both: BTreeSet<String> = match only {
                    None => names,
                    Some(before) => before.intersection(&names).cloned().collect(),
                };
                if both.is_empty() {
                    return Err(simultaneously(&by));
                }
                only = Some(both);
            }
            // Upstream lets later PreFilters run after a refusal that preemption may lift.
            Err(status) if status.code == Code::Unschedulable => refused = Some(status),
            Err(status) => return Err(status),
        }
    }
    refused.map_or(Ok((only, by)), Err)
}

/// No node is left by these plugins' PreFilters.
fn simultaneously(by: &[&'static str]) -> Status {
    let reason = match by {
        [one] => format!("node(s) didn't satisfy plugin {one}"),
        all => format!("node(s) didn't satisfy plugin(s) [{}] simultaneously", all.join(" ")),
    };
    Status::unresolvable(by.first().copied().unwrap_or_default(), reason)
}

/// What one cycle looks at.
struct Cluster<'a> {
    framework: &'a Framework,
    pod: &'a PodInfo,
    snapshot: &'a Snapshot,
}

/// Asks each PostFilter plugin whether the pod can be let in later; the first that knows how ends it.
fn post_filter(
    cluster: &Cluster<'_>,
    state: &mut CycleState,
    mut error: FitError,
    now: &dyn Fn() -> Micros,
    trace: &mut Trace,
) -> CycleError {
    let Cluster { framework, pod, snapshot } = *cluster;
    if framework.post_filter.is_empty() {
        return CycleError::Unfit(Box::new(error));
    }
    let started = now();
    error.nomination = Nomination::Keep;
    let mut reasons = Vec::new();
    let mut code = Some(Code::Unschedulable);
    for plugin in &framework.post_filter {
        let unfit = Unfit {
            framework,
            pod,
            snapshot,
            pre_filter: error.pre_filter.as_ref(),
            rejected: &error.rejected,
        };
        match plugin.post_filter(state, &unfit) {
            PostFilterResult::Preempt(preemption) => {
                error.nomination = Nomination::Preempt(preemption);
                (code, reasons) = (None, vec![]);
                break;
            }
            PostFilterResult::Hopeless(reason) => {
                error.nomination = Nomination::Clear;
                reasons.push(reason);
            }
            PostFilterResult::Refused(reason) => reasons.push(reason),
            PostFilterResult::Failed(reason) => {
                error.nomination = Nomination::Keep;
                (code, reasons) = (Some(Code::Error), vec![reason]);
                break;
            }
        }
    }
    error.post_filter = reasons.join(", ");
    trace.point(Point::PostFilter, code, now().since(started));
    CycleError::Unfit(Box::new(error))
}

fn pre_score(
    framework: &Framework,
    state: &mut CycleState,
    pod: &PodInfo,
    feasible: &[&NodeState],
    snapshot: &Snapshot,
    trace: &mut Trace,
) {
    for plugin in &framework.pre_score {
        let says = plugin.pre_score(state, pod, feasible, snapshot);
        trace.called(plugin.name(), Point::PreScore, u64::from(says));
        if !says {
            state.skip_score(plugin.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::model::node::{Effect, Taint};
    use crate::model::{LabelSelector, NodeInfo, Owner, Resources};
    use crate::objects::{Object, ReplicaSet};
    use crate::plugins::default_framework;
    use std::sync::Arc;

    fn node(name: &str, cpu: i64) -> NodeInfo {
        NodeInfo {
            name: name.into(),
            allocatable: Resources { milli_cpu: cpu, memory: 1 << 34, ..Resources::default() },
            allocatable_pods: 10,
            labels: BTreeMap::from([("kubernetes.io/hostname".to_owned(), name.to_owned())]),
            ..NodeInfo::default()
        }
    }

    fn asking(cpu: i64) -> PodInfo {
        let requests = Resources { milli_cpu: cpu, ..Resources::default() };
        PodInfo { uid: "u".into(), non_zero: requests.clone(), requests, ..PodInfo::default() }
    }

    fn with(framework: &Framework, nodes: Vec<NodeInfo>, pod: &PodInfo) -> Result<Decision, CycleError> {
        let mut cache = Cache::default();
        for n in nodes {
            cache.set_node(Arc::new(n));
        }
        schedule_one(None, framework, &cache.snapshot(), pod, &|| Micros(1), &mut Trace::default())
    }

    fn run(nodes: Vec<NodeInfo>, pod: &PodInfo) -> Result<Decision, Box<FitError>> {
        // What PostFilter adds to a message is tested with preemption.
        let framework = Framework { post_filter: vec![], ..default_framework() };
        with(&framework, nodes, pod).map_err(|e| match e {
            CycleError::Unfit(error) => error,
            CycleError::Failed(failure) => panic!("{failure}"),
        })
    }

    struct Broken;

    impl crate::framework::Plugin for Broken {
        fn name(&self) -> &'static str {
            "Broken"
        }
        fn may_help(&self, _: &PodInfo, _: &crate::framework::ClusterEvent) -> bool {
            false
        }
    }

    impl crate::framework::Filter for Broken {
        fn filter(&self, _: &CycleState, _: &PodInfo, _: &NodeState) -> Result<(), Status> {
            Err(Status::error("Broken", "no such table"))
        }
    }

    #[test]
    fn a_plugin_that_fails_is_no_verdict_on_the_nodes() {
        let framework = Framework { filter: vec![Arc::new(Broken)], ..Framework::default() };
        let error = with(&framework, vec![node("a", 1000)], &asking(1)).unwrap_err();
        assert!(matches!(error, CycleError::Failed(_)));
        assert_eq!(error.to_string(), "running \"Broken\" filter plugin: no such table");
    }

    #[test]
    fn the_trace_counts_every_call_as_upstream_does() {
        let mut cache = Cache::default();
        for n in [node("a", 1000), node("b", 2000)] {
            cache.set_node(Arc::new(n));
        }
        let mut trace = Trace::default();
        schedule_one(None, &default_framework(), &cache.snapshot(), &asking(5), &|| Micros(1), &mut trace)
            .unwrap();
        let names: Vec<(Point, &str)> = trace.points.iter().map(|(p, s, _)| (*p, *s)).collect();
        let all = [Point::PreFilter, Point::Filter, Point::PreScore, Point::Score];
        assert_eq!(names, all.map(|p| (p, "Success")));
        assert_eq!(trace.evaluated[&("NodeResourcesFit", Point::Filter)], 2);
        assert_eq!(trace.evaluated[&("ImageLocality", Point::Score)], 2);
        assert!(!trace.evaluated.contains_key(&("NodePorts", Point::Filter)));
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
        let status = |r: &'static str| Status::unschedulable("P", r);
        let mut rejected: BTreeMap<String, Status> =
            (0..10).map(|i| (format!("x{i}"), status("x"))).collect();
        rejected.insert("y0".into(), status("y"));
        rejected.insert("y1".into(), status("y"));
        assert_eq!(counted(rejected.values()), "10 x, 2 y");
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
    fn replicas_are_spread_although_one_node_is_the_emptier() {
        let mut cache = Cache::default();
        for n in [node("a", 4000), node("b", 2000)] {
            cache.set_node(Arc::new(n));
        }
        let selector = LabelSelector::All(vec![]).and("app", "web");
        let rs = Object::ReplicaSet(Arc::new(ReplicaSet { selector }));
        cache.objects_mut().put("/rs".into(), rs);
        let mut counts = BTreeMap::new();
        for i in 0..5 {
            let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
            let owner = Some(Owner::ReplicaSet("rs".into()));
            let pod = PodInfo { uid: format!("u{i}"), owner, labels, ..asking(20) };
            let run = |snapshot: &Snapshot| {
                schedule_one(None, &default_framework(), snapshot, &pod, &|| Micros(1), &mut Trace::default())
            };
            let chosen = run(&cache.snapshot()).unwrap().node;
            *counts.entry(chosen.clone()).or_insert(0) += 1;
            cache.assume(Arc::new(pod.clone()), &chosen);
        }
        assert_eq!(counts, BTreeMap::from([("a".to_owned(), 3), ("b".to_owned(), 2)]));
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
