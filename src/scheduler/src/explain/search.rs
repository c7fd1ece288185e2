//! The smallest change that would make a pod fit, found by the filters that refuse it.
//!
//! For a node, what refused it says what is to change; the change is made in a copy and the filters run
//! again, until the pod fits somewhere or nobody knows what to change. So that each answer is proved: the
//! last run of the whole cycle placed the pod. Nodes that are refused alike are tried once, the one that
//! lacks least first.

use super::change::{Change, Trial, UNSCHEDULABLE_TAINT, tolerate};
use crate::cache::{NodeState, Snapshot};
use crate::cycle::{CycleError, Decision, FitError, Trace, schedule_one};
use crate::framework::{Framework, Status};
use crate::model::PodInfo;
use podway_flow::Micros;
use serde::Serialize;
use std::collections::BTreeMap;

/// A set of changes after which the pod fits, and where it would go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// What to change, all of it.
    pub changes: Vec<Change>,
    /// The node that the same cycle chose then.
    pub node: String,
}

impl Remedy {
    fn cost(&self) -> u32 {
        self.changes.iter().map(Change::cost).sum()
    }
}

/// How many nodes are tried.
const NODES: usize = 24;
/// How many changes one set may have.
const STEPS: usize = 6;
/// How far maxSkew is raised.
const SKEW: i64 = 64;

/// Decides as the scheduler does; no clock has a say.
///
/// # Errors
/// As [`schedule_one`].
pub fn decide(framework: &Framework, snapshot: &Snapshot, pod: &PodInfo) -> Result<Decision, CycleError> {
    schedule_one(None, framework, snapshot, pod, &|| Micros(0), &mut Trace::default())
}

/// The smallest sets of changes, the smallest first, at most `most`; empty when none was found.
#[must_use]
pub fn remedies(
    framework: &Framework,
    snapshot: &Snapshot,
    pod: &PodInfo,
    error: &FitError,
    most: usize,
) -> Vec<Remedy> {
    let mut found: Vec<Remedy> = candidates(snapshot, pod, error)
        .into_iter()
        .filter_map(|node| remedy(framework, snapshot, pod, &node))
        .collect();
    found.sort_by(|a, b| a.cost().cmp(&b.cost()).then_with(|| a.changes.cmp(&b.changes)));
    found.dedup_by(|a, b| a.changes == b.changes);
    found.truncate(most);
    found
}

/// Of each group of nodes that fell alike, those that lack least.
fn candidates(snapshot: &Snapshot, pod: &PodInfo, error: &FitError) -> Vec<String> {
    let mut groups: BTreeMap<Vec<&str>, Vec<(i64, &str)>> = BTreeMap::new();
    for node in snapshot.nodes.iter() {
        let name = &*node.info.name;
        let reasons = error.pre_filter.as_ref().or_else(|| error.rejected.get(name)).map(|s| &s.reasons);
        let reasons = reasons.into_iter().flat_map(|r| r.iter()).map(|r| &**r).collect();
        groups.entry(reasons).or_default().push((lack(node, pod), name));
    }
    let each = (NODES / groups.len().max(1)).max(2);
    let mut out = Vec::new();
    for nodes in groups.values_mut() {
        nodes.sort_unstable();
        out.extend(nodes.iter().take(each).map(|(_, name)| (*name).to_owned()));
    }
    out.truncate(NODES);
    out
}

/// How much of what the pod asks for a node lacks, in thousandths of it, summed.
fn lack(node: &NodeState, pod: &PodInfo) -> i64 {
    pod.requests
        .iter()
        .filter(|(_, asked)| *asked > 0)
        .map(|(resource, asked)| {
            let free = node.info.allocatable.get(resource).saturating_sub(node.usage.requested.get(resource));
            asked.saturating_sub(free).clamp(0, asked).saturating_mul(1000) / asked
        })
        .sum()
}

/// What makes the pod fit on this node, or on another by the way.
fn remedy(framework: &Framework, snapshot: &Snapshot, pod: &PodInfo, node: &str) -> Option<Remedy> {
    let mut trial = Trial { pod: pod.clone(), snapshot: snapshot.clone() };
    let mut changes: Vec<Change> = Vec::new();
    for _ in 0..=STEPS {
        let error = match decide(framework, &trial.snapshot, &trial.pod) {
            Ok(decision) => return Some(Remedy { changes, node: decision.node }),
            Err(CycleError::Unfit(error)) => error,
            Err(CycleError::Failed(_)) => return None,
        };
        let status = error.pre_filter.as_ref().or_else(|| error.rejected.get(node))?;
        let next = fixes(&trial, node, status);
        if next.is_empty() || changes.len() + next.len() > STEPS {
            return None;
        }
        for change in next {
            // A relaxed constraint that is relaxed more is one change.
            if let (Some(Change::Skew { key, to, .. }), Change::Skew { key: same, to: more, .. }) =
                (changes.last_mut(), &change)
                && key == same
            {
                *to = *more;
            } else if changes.contains(&change) {
                // It was made, and did not help.
                return None;
            } else {
                changes.push(change.clone());
            }
            change.make(&mut trial);
        }
        if let Some(Change::Skew { .. }) = changes.last() {
            relax(framework, &mut trial, node, &mut changes);
        }
    }
    None
}

/// Raises the last constraint's maxSkew until this node is no longer refused by it.
fn relax(framework: &Framework, trial: &mut Trial, node: &str, changes: &mut [Change]) {
    for _ in 0..SKEW {
        let Err(CycleError::Unfit(error)) = decide(framework, &trial.snapshot, &trial.pod) else { return };
        let refused = error.rejected.get(node).is_some_and(|s| s.plugin == "PodTopologySpread");
        let Some(Change::Skew { key, from, to }) = changes.last_mut().filter(|_| refused) else { return };
        *to += 1;
        Change::Skew { key: key.clone(), from: *from, to: *to }.make(trial);
    }
}

/// What to change so that a node is not refused like this again.
fn fixes(trial: &Trial, node: &str, status: &Status) -> Vec<Change> {
    let Some(state) = trial.snapshot.nodes.iter().find(|n| *n.info.name == *node) else { return Vec::new() };
    let (pod, info) = (&trial.pod, &state.info);
    match status.plugin {
        "NodeUnschedulable" => vec![Change::Uncordon { node: node.to_owned() }],
        "TaintToleration" => info
            .taints
            .iter()
            .filter(|t| t.effect != crate::model::node::Effect::PreferNoSchedule)
            .filter(|t| !pod.tolerations.iter().any(|tolerated| tolerated.tolerates(t)))
            .map(|t| {
                if t.key == UNSCHEDULABLE_TAINT {
                    Change::Uncordon { node: node.to_owned() }
                } else {
                    tolerate(t)
                }
            })
            .collect(),
        "NodeAffinity" => {
            let missing: Vec<Change> = pod
                .node_selector
                .iter()
                .filter(|(k, v)| info.labels.get(*k) != Some(*v))
                .map(|(key, value)| {
                    // What Kubernetes says of a node is not to be changed.
                    if key.split('/').next().is_some_and(|d| d.ends_with("kubernetes.io")) {
                        Change::DropSelector { key: key.clone() }
                    } else {
                        Change::Label { node: node.to_owned(), key: key.clone(), value: value.clone() }
                    }
                })
                .collect();
            if missing.is_empty() && pod.required_terms.is_some() {
                return vec![Change::DropNodeAffinity];
            }
            missing
        }
        "NodePorts" => pod
            .host_ports
            .iter()
            .filter(|p| state.usage.host_ports.keys().any(|held| held.conflicts(p)))
            .map(|p| Change::DropHostPort { port: p.port, protocol: p.protocol.clone() })
            .collect(),
        "NodeResourcesFit" => room(state, pod),
        "PodTopologySpread" => spread(state, pod),
        "InterPodAffinity" => near(pod, status),
        _ => Vec::new(),
    }
}

fn room(state: &NodeState, pod: &PodInfo) -> Vec<Change> {
    let node = state.info.name.to_string();
    let mut out = Vec::new();
    if state.usage.pods + 1 > state.info.allocatable_pods {
        out.push(Change::FewerPods { node: node.clone() });
    }
    for (resource, asked) in pod.requests.iter().filter(|(_, asked)| *asked > 0) {
        let has = state.info.allocatable.get(resource);
        let free = has.saturating_sub(state.usage.requested.get(resource));
        let (node, resource) = (node.clone(), resource.to_owned());
        if asked > has {
            out.push(Change::Bigger { node, resource, has, asked });
        } else if asked > free {
            out.push(Change::Room { node, resource, missing: asked - free, asked });
        }
    }
    out
}

fn spread(state: &NodeState, pod: &PodInfo) -> Vec<Change> {
    let hard = || pod.spread.iter().filter(|c| c.hard);
    // A node without the label is in no domain, whatever the skew.
    if hard().any(|c| !state.info.labels.contains_key(&c.topology_key)) {
        return Vec::new();
    }
    let one = |c: &crate::model::SpreadConstraint| Change::Skew {
        key: c.topology_key.clone(),
        from: c.max_skew,
        to: c.max_skew + 1,
    };
    hard().map(one).take(1).collect()
}

fn near(pod: &PodInfo, status: &Status) -> Vec<Change> {
    let says = |part: &str| status.reasons.iter().any(|r| r == part);
    if says("node(s) didn't match pod affinity rules") && !pod.affinity.required.is_empty() {
        vec![Change::DropPodAffinity]
    } else if says("node(s) didn't match pod anti-affinity rules") && !pod.affinity.anti_required.is_empty() {
        vec![Change::DropPodAntiAffinity]
    } else {
        // The terms are those of pods that are there.
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::model::node::{Effect, Taint};
    use crate::model::{HostPort, LabelSelector, NodeInfo, PodTerm, Resources, SpreadConstraint};
    use crate::plugins::default_framework;
    use std::sync::Arc;

    fn node(name: &str, cpu: i64) -> NodeInfo {
        NodeInfo {
            name: name.into(),
            allocatable: Resources { milli_cpu: cpu, memory: 1 << 34, ..Resources::default() },
            allocatable_pods: 10,
            labels: BTreeMap::from([("zone".to_owned(), name.to_owned())]),
            ..NodeInfo::default()
        }
    }

    fn asking(cpu: i64) -> PodInfo {
        let requests = Resources { milli_cpu: cpu, ..Resources::default() };
        let labels = BTreeMap::from([("app".to_owned(), "a".to_owned())]);
        PodInfo {
            uid: "u".into(),
            namespace: "d".into(),
            labels,
            non_zero: requests.clone(),
            requests,
            ..PodInfo::default()
        }
    }

    fn placed(cache: &mut Cache, uid: &str, node: &str, pod: PodInfo) {
        cache.confirm(Arc::new(PodInfo { uid: uid.into(), node_name: node.into(), ..pod }));
    }

    /// What is told for a pod in a cluster, each remedy on one line.
    fn told(cache: &mut Cache, pod: &PodInfo) -> Vec<String> {
        let (framework, snapshot) = (default_framework(), cache.snapshot());
        let Err(CycleError::Unfit(error)) = decide(&framework, &snapshot, pod) else { panic!("it fits") };
        let found = remedies(&framework, &snapshot, pod, &error, 3);
        for remedy in &found {
            // Made one by one in a copy, they let the same cycle place the pod.
            let mut trial = Trial { pod: pod.clone(), snapshot: snapshot.clone() };
            remedy.changes.iter().for_each(|c| c.make(&mut trial));
            let decision = decide(&framework, &trial.snapshot, &trial.pod).unwrap();
            assert_eq!(decision.node, remedy.node);
        }
        let line = |r: &Remedy| {
            let all: Vec<String> = r.changes.iter().map(ToString::to_string).collect();
            format!("{} -> {}", all.join("; "), r.node)
        };
        found.iter().map(line).collect()
    }

    fn cluster(nodes: &[(&str, i64)]) -> Cache {
        let mut cache = Cache::default();
        nodes.iter().for_each(|(name, cpu)| drop(cache.set_node(Arc::new(node(name, *cpu)))));
        cache
    }

    #[test]
    fn room_is_looked_for_where_least_is_missing() {
        let mut cache = cluster(&[("a", 1000), ("b", 2000), ("c", 2000)]);
        placed(&mut cache, "x", "b", asking(1200));
        placed(&mut cache, "y", "c", asking(1900));
        assert_eq!(
            told(&mut cache, &asking(1100)),
            [
                "free 300m of cpu on b, or ask for 800m instead of 1100m -> b",
                "free 1 of cpu on c, or ask for 100m instead of 1100m -> c",
                "add a node like a with at least 1100m of cpu: it has 1 -> a",
            ]
        );
        // All that is asked for is missing: to ask for less is no advice.
        let mut full = cluster(&[("b", 2000)]);
        placed(&mut full, "z", "b", asking(2000));
        assert_eq!(told(&mut full, &asking(50)), ["free 50m of cpu on b -> b"]);
    }

    #[test]
    fn what_stands_in_the_way_one_after_the_other_is_one_answer() {
        let taint = |key: &str| Taint { key: key.into(), value: String::new(), effect: Effect::NoSchedule };
        let mut cache = Cache::default();
        cache.set_node(Arc::new(NodeInfo {
            unschedulable: true,
            taints: vec![taint(UNSCHEDULABLE_TAINT), taint("gpu")],
            ..node("a", 1000)
        }));
        let pod = PodInfo {
            node_selector: BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]),
            host_ports: vec![HostPort { ip: "0.0.0.0".into(), protocol: "TCP".into(), port: 80 }],
            ..asking(100)
        };
        placed(&mut cache, "x", "a", pod.clone());
        let all =
            "uncordon a; let the pod tolerate gpu:NoSchedule; label a disk=ssd; do without host port 80/TCP";
        assert_eq!(told(&mut cache, &pod), [format!("{all} -> a")]);
        // Of two nodes the one with less in its way.
        cache.set_node(Arc::new(NodeInfo { taints: vec![taint("gpu")], ..node("b", 1000) }));
        let first = told(&mut cache, &asking(100));
        assert_eq!(first[0], "let the pod tolerate gpu:NoSchedule -> b");
    }

    #[test]
    fn spread_and_affinity_are_relaxed_no_further_than_needed() {
        let mut cache = cluster(&[("a", 4000)]);
        cache.set_node(Arc::new(NodeInfo { unschedulable: true, ..node("b", 4000) }));
        for i in 0..3 {
            placed(&mut cache, &format!("x{i}"), "a", asking(10));
        }
        let only_a = LabelSelector::parse(Some(&Default::default())).and("app", "a");
        let constraint = SpreadConstraint {
            max_skew: 1,
            topology_key: "zone".into(),
            hard: true,
            selector: only_a.clone(),
            min_domains: 1,
            honor_affinity: true,
            honor_taints: false,
        };
        let spread = PodInfo { spread: vec![constraint], ..asking(10) };
        assert_eq!(
            told(&mut cache, &spread),
            ["uncordon b -> b", "raise maxSkew over zone from 1 to 4 -> a"]
        );

        let mut apart = asking(10);
        apart.affinity.anti_required.push(PodTerm {
            namespaces: ["d".to_owned()].into(),
            selector: only_a,
            topology_key: "zone".into(),
            ..PodTerm::default()
        });
        assert_eq!(
            told(&mut cache, &apart),
            ["uncordon b -> b", "drop the pod's required pod anti-affinity -> a"]
        );
        let mut near = asking(10);
        near.affinity.required.push(PodTerm {
            namespaces: ["d".to_owned()].into(),
            selector: LabelSelector::parse(Some(&Default::default())).and("app", "other"),
            topology_key: "zone".into(),
            ..PodTerm::default()
        });
        assert_eq!(told(&mut cache, &near)[0], "drop the pod's required pod affinity -> a");
    }

    #[test]
    fn where_nobody_knows_there_is_no_answer() {
        let mut cache = cluster(&[("a", 1000)]);
        let pod = PodInfo { unsupported: vec!["resourceClaims"], ..asking(10) };
        assert_eq!(told(&mut cache, &pod), Vec::<String>::new());
    }
}
