//! Which pods would have to go so that another can come, as `framework/preemption` and
//! `plugins/defaultpreemption` of Kubernetes 1.36. Pure: nothing is evicted here.
//!
//! Upstream copies the cycle's state for each node that it tries. Here one copy serves all: pods are
//! thought away from a node and back onto it, which leaves the counts as they were.

use crate::cache::{NodePod, NodeState, Snapshot};
use crate::cycle::{counted, passes};
use crate::extender;
use crate::framework::{
    Candidate, Code, CycleState, Filter, Framework, PostFilterResult, Preemption, Status, Unfit,
};
use crate::model::PodInfo;
use crate::objects::DisruptionBudget;
use std::cmp::Reverse;
use std::sync::Arc;

/// How many nodes are tried: upstream's `DefaultPreemptionArgs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidates {
    /// This share of those that eviction could help, in percent.
    pub percentage: usize,
    /// And no fewer than these.
    pub absolute: usize,
}

impl Default for Candidates {
    fn default() -> Self {
        Candidates { percentage: 10, absolute: 100 }
    }
}

impl Candidates {
    fn of(self, nodes: usize) -> usize {
        (nodes * self.percentage / 100).max(self.absolute).min(nodes)
    }
}

const NO_VICTIMS: &str = "No preemption victims found for incoming pod";
const NOT_HELPFUL: &str = "Preemption is not helpful for scheduling";

/// Looks for the node whose victims are missed the least.
pub fn preempt(candidates: Candidates, state: &CycleState, unfit: &Unfit<'_>) -> PostFilterResult {
    if let Some(reason) = not_eligible(unfit) {
        return PostFilterResult::Refused(format!("preemption: {reason}"));
    }
    let nodes = potential(unfit);
    let mut dry = DryRun::new(state.clone(), unfit);
    let (found, statuses) = dry.run(&nodes, candidates.of(nodes.len()));
    if !found.is_empty() {
        return match extender::preempt((unfit.framework, unfit.pod, unfit.snapshot), found).map(pick) {
            Ok(Some(best)) => PostFilterResult::Preempt(best),
            Ok(None) => PostFilterResult::Refused("preemption: no candidate node for preemption".to_owned()),
            Err(error) => PostFilterResult::Failed(format!("preemption: {error}")),
        };
    }
    if let Some(failed) = statuses.iter().find(|s| s.code == Code::Error) {
        return PostFilterResult::Failed(format!("preemption: {}", failed.reasons.join(", ")));
    }
    PostFilterResult::Hopeless(format!("preemption: {}", hopeless(&statuses, unfit.snapshot)))
}

/// The text of upstream's FitError: what each tried node said, and of the others that it cannot help.
fn hopeless(statuses: &[Status], snapshot: &Snapshot) -> String {
    let untried = Status::unresolvable("", NOT_HELPFUL);
    let others = snapshot.nodes.len().saturating_sub(statuses.len());
    let all = statuses.iter().chain(std::iter::repeat_n(&untried, others));
    format!("0/{} nodes are available: {}.", snapshot.nodes.len(), counted(all))
}

/// Why the pod may not preempt now.
fn not_eligible(unfit: &Unfit<'_>) -> Option<&'static str> {
    let Unfit { pod, snapshot, .. } = unfit;
    if pod.never_preempts {
        return Some("not eligible due to preemptionPolicy=Never.");
    }
    // Once the nominated node cannot take it however many go, it may look for another.
    let lost = status_of(unfit, &pod.nominated).is_none_or(|code| code == Code::UnschedulableAndUnresolvable);
    let node = snapshot.node(&pod.nominated).filter(|_| !pod.nominated.is_empty() && !lost)?;
    let leaves = |p: &NodePod| p.pod.priority < pod.priority && p.pod.deleting && p.pod.preempted;
    node.pods.iter().any(leaves).then_some("not eligible due to a terminating pod on the nominated node.")
}

/// What a node said; `None` when it said nothing, which upstream takes for final.
fn status_of(unfit: &Unfit<'_>, node: &str) -> Option<Code> {
    unfit.pre_filter.or_else(|| unfit.rejected.get(node)).map(|s| s.code)
}

/// The nodes that eviction may help.
fn potential<'a>(unfit: &Unfit<'a>) -> Vec<&'a NodeState> {
    let helps = |n: &&NodeState| status_of(unfit, &n.info.name) == Some(Code::Unschedulable);
    unfit.snapshot.nodes.iter().filter(helps).collect()
}

struct DryRun<'a> {
    framework: &'a Framework,
    plugins: Vec<&'a Arc<dyn Filter>>,
    state: CycleState,
    pod: &'a PodInfo,
    snapshot: &'a Snapshot,
    budgets: Vec<Arc<DisruptionBudget>>,
    calls: Vec<u64>,
}

impl<'a> DryRun<'a> {
    fn new(state: CycleState, unfit: &Unfit<'a>) -> Self {
        let plugins: Vec<_> =
            unfit.framework.filter.iter().filter(|p| !state.skips_filter(p.name())).collect();
        DryRun {
            framework: unfit.framework,
            calls: vec![0; plugins.len()],
            plugins,
            state,
            pod: unfit.pod,
            snapshot: unfit.snapshot,
            budgets: unfit.snapshot.objects.budgets.values().cloned().collect(),
        }
    }

    /// Tries nodes, from one that differs by pod, until there are enough candidates with one among them
    /// that breaks no budget.
    fn run(&mut self, nodes: &[&NodeState], enough: usize) -> (Vec<Candidate>, Vec<Status>) {
        let (mut found, mut statuses) = (Vec::new(), Vec::new());
        let mut kept = 0;
        let offset = self.pod.uid.bytes().fold(0_usize, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
        for i in 0..nodes.len() {
            let Some(node) = nodes.get((offset % nodes.len() + i) % nodes.len()) else { break };
            match self.victims(node) {
                Ok(candidate) => {
                    kept += usize::from(candidate.violations == 0);
                    found.push(candidate);
                }
                Err(status) => statuses.push(status),
            }
            if kept > 0 && found.len() >= enough {
                break;
            }
        }
        (found, statuses)
    }

    fn shift(&mut self, node: &mut NodeState, other: &NodePod, by: i64) {
        self.framework.shift(&mut self.state, self.pod, node, (other, by), self.snapshot);
    }

    fn fits(&mut self, node: &NodeState) -> Result<(), Status> {
        let cluster = (self.framework, self.snapshot);
        passes(&self.plugins, cluster, &self.state, self.pod, node, &mut self.calls)
    }

    /// The fewest pods that have to leave a node, or why that is no use. Leaves the state as it was.
    fn victims(&mut self, real: &NodeState) -> Result<Candidate, Status> {
        let mut lower: Vec<NodePod> =
            real.pods.iter().filter(|p| p.pod.priority < self.pod.priority).cloned().collect();
        if lower.is_empty() {
            return Err(Status::unresolvable("", NO_VICTIMS));
        }
        let mut node = real.clone();
        for other in &lower {
            self.shift(&mut node, other, -1);
        }
        let empty = self.fits(&node);
        if empty.is_err() {
            for other in &lower {
                self.shift(&mut node, other, 1);
            }
            empty?;
        }
        lower.sort_by_key(|p| importance(&p.pod));
        let (violating, others) = by_budget(lower, &self.budgets);
        let (mut victims, mut violations) = (Vec::new(), 0);
        for (other, violates) in
            violating.into_iter().map(|p| (p, true)).chain(others.into_iter().map(|p| (p, false)))
        {
            self.shift(&mut node, &other, 1);
            if self.fits(&node).is_err() {
                self.shift(&mut node, &other, -1);
                violations += usize::from(violates);
                victims.push(other);
            }
        }
        for other in &victims {
            self.shift(&mut node, other, 1);
        }
        if victims.is_empty() {
            let detail = format!("expected at least one victim pod on node {:?}", real.info.name);
            return Err(Status::error("", detail));
        }
        victims.sort_by_key(|p| importance(&p.pod));
        let victims = victims.into_iter().map(|p| p.pod).collect();
        Ok(Candidate { node: real.info.name.to_string(), victims, violations })
    }
}

/// Orders pods, the most important first: by priority, then by how long they run. One that has not
/// started counts as just starting.
fn importance(pod: &PodInfo) -> (Reverse<i32>, i64) {
    (Reverse(pod.priority), pod.started.unwrap_or(i64::MAX))
}

/// Parts the pods whose going a budget forbids from the others; both keep their order.
fn by_budget(pods: Vec<NodePod>, budgets: &[Arc<DisruptionBudget>]) -> (Vec<NodePod>, Vec<NodePod>) {
    let mut allowed: Vec<i64> = budgets.iter().map(|b| b.allowed).collect();
    pods.into_iter().partition(|NodePod { pod, .. }| {
        let mut violates = false;
        for (budget, allowed) in budgets.iter().zip(&mut allowed) {
            if budget.counts(pod) {
                *allowed -= 1;
                violates |= *allowed < 0;
            }
        }
        violates
    })
}

/// The best first. What is equal in all goes by name; upstream leaves it to chance.
fn pick(mut found: Vec<Candidate>) -> Option<Preemption> {
    found.sort_by(|a, b| a.rank().cmp(&b.rank()).then_with(|| a.node.cmp(&b.node)));
    let mut all = found.into_iter();
    Some(Preemption { best: all.next()?, others: all.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::cycle::{CycleError, FitError, Nomination, Trace, schedule_one};
    use crate::model::{NodeInfo, Resources};
    use crate::objects::{Kind, Lists, Object, Step};
    use crate::plugins::default_framework;
    use k8s_openapi::api::core::v1;
    use podway_flow::Micros;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    fn node(name: &str, cpu: i64) -> Arc<NodeInfo> {
        let labels = [("kubernetes.io/hostname", name), ("zone", &name[..1])];
        Arc::new(NodeInfo {
            name: name.into(),
            allocatable: Resources { milli_cpu: cpu, memory: 1 << 30, ..Resources::default() },
            allocatable_pods: 10,
            labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).into(),
            ..NodeInfo::default()
        })
    }

    fn pod(name: &str, priority: i32, cpu: i64) -> PodInfo {
        let requests = Resources { milli_cpu: cpu, ..Resources::default() };
        PodInfo {
            name: name.into(),
            uid: name.into(),
            namespace: "d".into(),
            priority,
            requests,
            labels: BTreeMap::from([("app".to_owned(), name.trim_end_matches(char::is_numeric).to_owned())]),
            started: Some(0),
            ..PodInfo::default()
        }
    }

    fn cluster(nodes: &[(&str, i64)], pods: &[(&str, PodInfo)]) -> Cache {
        let mut cache = Cache::default();
        for (name, cpu) in nodes {
            cache.set_node(node(name, *cpu));
        }
        for (node, pod) in pods {
            cache.assume(Arc::new(pod.clone()), node);
        }
        cache
    }

    fn refused(cache: &mut Cache, pod: &PodInfo) -> FitError {
        let found = schedule_one(
            None,
            &default_framework(),
            &cache.snapshot(),
            pod,
            &|| Micros(1),
            &mut Trace::default(),
        );
        match found.unwrap_err() {
            CycleError::Unfit(error) => *error,
            CycleError::Failed(failure) => panic!("{failure}"),
        }
    }

    /// `node: victims`, or the message.
    fn outcome(cache: &mut Cache, pod: &PodInfo) -> String {
        let error = refused(cache, pod);
        match &error.nomination {
            Nomination::Preempt(p) => {
                let names: Vec<&str> = p.best.victims.iter().map(|v| v.name.as_str()).collect();
                format!("{}: {}", p.best.node, names.join(" "))
            }
            Nomination::Keep | Nomination::Clear => error.message(),
        }
    }

    #[test]
    fn as_few_as_make_room_and_the_least_important() {
        for (what, pods, want) in [
            ("one is enough", vec![("a", pod("low1", 1, 500)), ("a", pod("low2", 2, 500))], "a: low1"),
            (
                "the later started goes first",
                vec![("a", pod("low1", 1, 500)), ("a", PodInfo { started: Some(9), ..pod("low2", 1, 500) })],
                "a: low2",
            ),
            (
                "the lower priority, also when there are more of them",
                vec![("a", pod("mid", 5, 1000)), ("b", pod("low1", 1, 600)), ("b", pod("low2", 1, 400))],
                "b: low1",
            ),
            (
                "equal priorities by their sum",
                vec![
                    ("a", pod("low1", 1, 700)),
                    ("a", pod("low2", 1, 300)),
                    ("b", pod("low3", 1, 900)),
                    ("b", pod("no", 50, 100)),
                ],
                "a: low1",
            ),
        ] {
            let mut cache = cluster(&[("a", 1000), ("b", 1000)], &pods);
            if pods.iter().all(|(n, _)| *n == "a") {
                cache.remove_node("b");
            }
            assert_eq!(outcome(&mut cache, &pod("high", 10, 500)), want, "{what}");
        }
    }

    #[test]
    fn where_it_cannot_help_the_message_is_upstreams() {
        let mut cache = cluster(&[("a", 1000), ("b", 1000), ("c", 100)], &[("a", pod("x", 10, 900))]);
        cache.assume(Arc::new(pod("y", 1, 900)), "b");
        let mut big = pod("high", 10, 500);
        big.node_selector.insert("zone".into(), "a".into());
        assert_eq!(
            outcome(&mut cache, &big),
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't match Pod's node affinity/selector. \
             no new claims to deallocate, preemption: 0/3 nodes are available: \
             1 No preemption victims found for incoming pod, 2 Preemption is not helpful for scheduling."
        );
        assert_eq!(refused(&mut cache, &big).nomination, Nomination::Clear);
        let never = PodInfo { never_preempts: true, ..pod("high", 10, 500) };
        let mut cache = cluster(&[("a", 1000)], &[("a", pod("low", 1, 900))]);
        let error = refused(&mut cache, &never);
        assert_eq!(
            error.post_filter,
            "no new claims to deallocate, preemption: not eligible due to preemptionPolicy=Never."
        );
        assert_eq!(error.nomination, Nomination::Keep);
    }

    #[test]
    fn a_budget_is_kept_where_it_can_be() {
        let pods = [("a", pod("kept1", 1, 1000)), ("b", pod("low1", 5, 1000))];
        let mut cache = cluster(&[("a", 1000), ("b", 1000)], &pods);
        let budget = |allowed: i64| DisruptionBudget {
            namespace: "d".into(),
            selector: crate::model::LabelSelector::parse(
                serde_json::from_value(json!({"matchLabels": {"app": "kept"}})).ok().as_ref(),
            ),
            allowed,
            ..DisruptionBudget::default()
        };
        let mut lists = Lists::default();
        let mut set = |cache: &mut Cache, allowed| {
            let object = Object::DisruptionBudget(Arc::new(budget(allowed)));
            lists.take(cache.objects_mut(), Kind::DisruptionBudget, Step::Set("d/b".into(), Some(object)));
        };
        let high = pod("high", 10, 500);
        assert_eq!(outcome(&mut cache, &high), "a: kept1");
        set(&mut cache, 0);
        assert_eq!(outcome(&mut cache, &high), "b: low1", "although of higher priority");
        cache.remove_pod("low1");
        cache.assume(Arc::new(pod("same", 10, 1000)), "b");
        let Nomination::Preempt(p) = refused(&mut cache, &high).nomination else { panic!("it must") };
        assert_eq!((p.best.node.as_str(), p.best.violations), ("a", 1), "rather than wait for ever");
        set(&mut cache, 1);
        let Nomination::Preempt(p) = refused(&mut cache, &high).nomination else { panic!("it must") };
        assert_eq!(p.best.violations, 0);
    }

    fn with(mut pod: PodInfo, spec: Value) -> PodInfo {
        let mut whole = json!({"metadata": {"name": "p", "namespace": "d", "uid": "p", "labels": pod.labels},
            "spec": {"containers": []}});
        for (key, value) in spec.as_object().into_iter().flatten() {
            whole["spec"][key] = value.clone();
        }
        let parsed = PodInfo::parse(&serde_json::from_value::<v1::Pod>(whole).unwrap()).unwrap();
        (pod.affinity, pod.spread) = (parsed.affinity, parsed.spread);
        pod
    }

    #[test]
    fn affinity_and_spread_are_counted_without_the_victims() {
        let term = |app: &str| {
            json!({"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
                [{"labelSelector": {"matchLabels": {"app": app}}, "topologyKey": "zone"}]}}})
        };
        // Of the two in zone a one is not wanted; the other stays.
        let pods = [("a1", pod("low", 1, 1)), ("a1", pod("other", 1, 1)), ("b1", pod("low2", 50, 1))];
        let mut cache = cluster(&[("a1", 1000), ("a2", 1000), ("b1", 1000)], &pods);
        assert_eq!(outcome(&mut cache, &with(pod("high", 10, 1), term("low"))), "a1: low");
        // And one that does not want the preemptor.
        let mut cache = cluster(&[("a1", 1000)], &[("a1", with(pod("low", 1, 1), term("high")))]);
        assert_eq!(outcome(&mut cache, &pod("high", 10, 1)), "a1: low");
        let spread = json!({"topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": {"matchLabels": {"app": "web"}}}]});
        let full = [("a1", pod("web1", 1, 1)), ("a1", pod("web2", 1, 1)), ("b1", pod("web3", 1, 900))];
        let mut cache = cluster(&[("a1", 1000), ("b1", 1000)], &full);
        assert_eq!(outcome(&mut cache, &with(pod("web9", 10, 500), spread)), "a1: web2");
    }

    #[test]
    fn a_nominated_pods_room_is_kept_from_others_of_no_higher_priority() {
        let mut cache = cluster(&[("a", 1000)], &[]);
        cache.nominate(Arc::new(pod("high", 10, 800)), "a");
        let run = |cache: &mut Cache, pod: &PodInfo| {
            let mut trace = Trace::default();
            schedule_one(None, &default_framework(), &cache.snapshot(), pod, &|| Micros(1), &mut trace)
                .map(|d| d.node)
                .map_err(|e| e.to_string())
        };
        let error = run(&mut cache, &pod("equal", 10, 500)).unwrap_err();
        assert!(error.starts_with("0/1 nodes are available: 1 Insufficient cpu."), "{error}");
        assert_eq!(run(&mut cache, &pod("higher", 11, 500)).unwrap(), "a");
        assert_eq!(
            run(&mut cache, &pod("high", 10, 800)).unwrap(),
            "a",
            "its own nomination is no hindrance"
        );
        cache.unnominate("high");
        assert_eq!(run(&mut cache, &pod("equal", 10, 500)).unwrap(), "a");
    }

    #[test]
    fn while_victims_leave_nobody_else_is_evicted_unless_the_node_is_lost() {
        let leaving = PodInfo { deleting: true, preempted: true, ..pod("low1", 1, 900) };
        let pods = [("a", leaving), ("b", pod("low2", 1, 900))];
        let mut cache = cluster(&[("a", 1000), ("b", 1000)], &pods);
        let high = PodInfo { nominated: "a".into(), ..pod("high", 10, 500) };
        let error = refused(&mut cache, &high);
        assert_eq!(
            error.post_filter,
            "no new claims to deallocate, preemption: not eligible due to a terminating pod on the nominated node."
        );
        cache.set_node(Arc::new(NodeInfo { unschedulable: true, ..(*node("a", 1000)).clone() }));
        assert_eq!(outcome(&mut cache, &high), "b: low2");
    }
}
