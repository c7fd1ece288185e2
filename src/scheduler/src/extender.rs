//! Extenders: other programs that have a say in a decision, asked over HTTP (`pkg/scheduler/extender.go` and
//! `schedule_one.go` of Kubernetes 1.36).
//!
//! They are asked one after the other about the nodes that the profile's own filters left, each about what the one
//! before it left; about scores all at once; about victims when a preemption has found some; and one of them may
//! bind. Those that may fail without harm come last. A cycle that asks one waits for it, so it runs apart from the
//! loop (`run/place.rs`).

pub mod http;
pub mod spec;
#[cfg(test)]
mod tests;
mod wire;

use self::http::{HttpExtender, SpecError};
use crate::cache::{NodeState, Snapshot};
use crate::framework::{Bind, Candidate, ClusterEvent, Framework, Placement, Plugin, Status};
use crate::model::PodInfo;
use futures::FutureExt;
use futures::future::BoxFuture;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use spec::Spec;

/// What stands in a plugin's place where an extender refused or failed: upstream's `framework.ExtenderName`.
pub const NAME: &str = "Extender";

/// An extender's 0 to 10 in the scale of the plugins (`MaxNodeScore / MaxExtenderPriority`).
const SCALE: i64 = crate::framework::MAX_NODE_SCORE / 10;

/// Why an extender gave no answer; the texts are upstream's where it has one.
#[derive(Debug, thiserror::Error)]
pub enum ExtenderError {
    /// It was not reached, or not in time.
    #[error("Post {url:?}: {reason}")]
    Unreached {
        /// Where.
        url: String,
        /// Why.
        reason: String,
    },
    /// It answered with another code than 200.
    #[error("failed {verb} with extender at URL {url}, code {code}")]
    Code {
        /// What was asked.
        verb: String,
        /// Where.
        url: String,
        /// The code.
        code: u16,
    },
    /// Its answer is not one.
    #[error("the answer of the extender at URL {url} cannot be read: {reason}")]
    Unread {
        /// Where.
        url: String,
        /// Why.
        reason: String,
    },
    /// It says so itself.
    #[error("{0}")]
    Said(String),
    /// It lets through what it was not asked about.
    #[error("extender {url:?} claims a filtered node {node:?} which is not found in the input node list")]
    Unasked {
        /// Whose claim.
        url: String,
        /// Which node.
        node: String,
    },
    /// It would evict what is not there.
    #[error(
        "extender: {url} claims to preempt pod (UID: {uid}) on node: {node}, but the pod is not found on that node"
    )]
    NoSuchPod {
        /// Whose claim.
        url: String,
        /// The pod.
        uid: String,
        /// The node.
        node: String,
    },
    /// It would evict on a node that there is not.
    #[error("nodeinfo not found for node name {0:?}")]
    NoSuchNode(String),
    /// A node without victims.
    #[error("expected at least one victim pod on node {0:?}")]
    NoVictims(String),
    /// What it is to be sent is not known whole.
    #[error("the object of {0} is not kept")]
    NotKept(String),
}

/// What an extender says of nodes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Filtered {
    /// Those that it lets through, by name.
    pub passed: Vec<String>,
    /// Why others fell; evicting pods may help.
    pub failed: BTreeMap<String, String>,
    /// The same, and evicting cannot help.
    pub unresolvable: BTreeMap<String, String>,
}

/// A node and the UIDs of the pods to evict there.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct MetaVictims {
    /// The pods.
    pub uids: Vec<String>,
    /// How many of them a PodDisruptionBudget would keep.
    pub violations: usize,
}

/// An extender. Its answers wait for another program, so none but a thread that may block asks.
pub trait Extender: Send + Sync {
    /// Its URL.
    fn name(&self) -> &str;
    /// Whether a decision goes on without it when it fails.
    fn ignorable(&self) -> bool;
    /// Whether it has a say about this pod.
    fn interested(&self, pod: &PodInfo) -> bool;
    /// Whether it filters.
    fn filters(&self) -> bool;
    /// Its weight, if it scores.
    fn weight(&self) -> Option<i64>;
    /// Whether it has a say about victims.
    fn preempts(&self) -> bool;
    /// Whether it binds.
    fn binds(&self) -> bool;

    /// Which of these nodes take the pod.
    ///
    /// # Errors
    /// [`ExtenderError`] when it gives no answer.
    fn filter(&self, pod: &PodInfo, nodes: &[&NodeState]) -> Result<Filtered, ExtenderError>;

    /// How good these nodes are, 0 to 10 each.
    ///
    /// # Errors
    /// [`ExtenderError`] when it gives no answer.
    fn prioritize(&self, pod: &PodInfo, nodes: &[&NodeState]) -> Result<Vec<(String, i64)>, ExtenderError>;

    /// Which of these candidates may be, and with which victims.
    ///
    /// # Errors
    /// [`ExtenderError`] when it gives no answer.
    fn preempt(
        &self,
        pod: &PodInfo,
        candidates: &[Candidate],
    ) -> Result<BTreeMap<String, MetaVictims>, ExtenderError>;

    /// Binds the pod.
    fn bind<'a>(&'a self, placement: &'a Placement) -> BoxFuture<'a, Result<(), ExtenderError>>;
}

/// The extenders, those that may fail without harm last, and what NodeResourcesFit leaves to them.
type Made = (Vec<Arc<dyn Extender>>, BTreeSet<String>);

pub(crate) fn made(specs: &[Spec]) -> Result<Made, (String, SpecError)> {
    let ignored = specs.iter().flat_map(|spec| spec.ignored.iter().cloned()).collect();
    let (last, first): (Vec<&Spec>, Vec<&Spec>) = specs.iter().partition(|spec| spec.ignorable);
    let mut out: Vec<Arc<dyn Extender>> = Vec::new();
    for spec in first.into_iter().chain(last) {
        let made = HttpExtender::new(spec.clone());
        out.push(Arc::new(made.map_err(|error| (spec.url.clone(), error))?));
    }
    Ok((out, ignored))
}

/// Whether any of them has a say about the pod.
pub(crate) fn asked(framework: &Framework, pod: &PodInfo) -> bool {
    framework.extenders.iter().any(|e| e.interested(pod))
}

/// findNodesThatPassExtenders: what they leave of the feasible nodes. Why others fell goes to `rejected`.
pub(crate) fn filter<'a>(
    (framework, pod, snapshot): (&Framework, &PodInfo, &'a Snapshot),
    mut feasible: Vec<&'a NodeState>,
    rejected: &mut Vec<(usize, Status)>,
) -> Result<Vec<&'a NodeState>, Status> {
    for extender in framework.extenders.iter().filter(|e| e.filters() && e.interested(pod)) {
        if feasible.is_empty() {
            break;
        }
        let passed = extender
            .filter(pod, &feasible)
            .and_then(|said| Ok((passed(&**extender, &said, &feasible)?, said)));
        let (passed, said) = match passed {
            Ok(both) => both,
            Err(error) if extender.ignorable() => {
                skipped(&**extender, &error);
                continue;
            }
            Err(error) => return Err(Status::error(NAME, error.to_string())),
        };
        let resolvable = said.failed.iter().filter(|(node, _)| !said.unresolvable.contains_key(*node));
        let all = (resolvable.map(|(node, why)| (node, Status::unschedulable(NAME, why.clone())))).chain(
            said.unresolvable.iter().map(|(node, why)| (node, Status::unresolvable(NAME, why.clone()))),
        );
        for (node, status) in all {
            // What it says of a node that it lets through, or that there is not, is of no use to anybody.
            let Some(node) = snapshot.node(node).filter(|n| passed.iter().all(|p| p.at != n.at)) else {
                continue;
            };
            rejected.retain(|(at, _)| *at != node.at);
            rejected.push((node.at, status));
        }
        feasible = passed;
    }
    Ok(feasible)
}

fn passed<'a>(
    extender: &dyn Extender,
    said: &Filtered,
    asked: &[&'a NodeState],
) -> Result<Vec<&'a NodeState>, ExtenderError> {
    let of: BTreeMap<&str, &'a NodeState> = asked.iter().map(|n| (&*n.info.name, *n)).collect();
    let one = |node: &String| {
        let unasked = || ExtenderError::Unasked { url: extender.name().to_owned(), node: node.clone() };
        of.get(node.as_str()).copied().ok_or_else(unasked)
    };
    let mut passed = said.passed.iter().map(one).collect::<Result<Vec<_>, _>>()?;
    passed.sort_unstable_by_key(|n| n.at);
    passed.dedup_by_key(|n| n.at);
    Ok(passed)
}

fn skipped(extender: &dyn Extender, error: &ExtenderError) {
    let extender = extender.name();
    tracing::info!(extender, %error, "Skipping extender as it returned error and has ignorable flag set");
}

/// An extender's scores of the feasible nodes, in their order.
pub(crate) struct Scores {
    /// Whose.
    pub(crate) name: String,
    /// What they count.
    pub(crate) weight: i64,
    /// As they came, 0 to 10.
    pub(crate) raw: Vec<i64>,
    /// In the plugins' scale.
    pub(crate) normal: Vec<i64>,
}

/// The extenders' part of prioritizeNodes: all are asked at once, and one that fails gives no score.
pub(crate) fn scores(framework: &Framework, pod: &PodInfo, feasible: &[&NodeState]) -> Vec<Scores> {
    let interested = framework.extenders.iter().filter(|e| e.interested(pod));
    let scoring: Vec<_> = interested.filter_map(|e| Some((e, e.weight()?))).collect();
    if scoring.is_empty() {
        return vec![];
    }
    let ask = |extender: &Arc<dyn Extender>| extender.prioritize(pod, feasible);
    let answers: Vec<_> = match &*scoring {
        [(one, _)] => vec![ask(one)],
        several => std::thread::scope(|scope| {
            let threads: Vec<_> = several.iter().map(|(one, _)| scope.spawn(move || ask(one))).collect();
            let gone = |_| Err(ExtenderError::Said("the thread that asked ended".to_owned()));
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(gone)).collect()
        }),
    };
    let mut out = Vec::new();
    for ((extender, weight), answer) in scoring.into_iter().zip(answers) {
        let name = extender.name().to_owned();
        match answer {
            Ok(given) => {
                let mut by_node: BTreeMap<&str, i64> = BTreeMap::new();
                for (node, score) in &given {
                    let sum = by_node.entry(node).or_insert(0);
                    *sum = sum.saturating_add(*score);
                }
                let score = |n: &&NodeState| by_node.get(&*n.info.name).copied().unwrap_or(0);
                let raw: Vec<i64> = feasible.iter().map(score).collect();
                let normal = raw.iter().map(|raw| raw.saturating_mul(SCALE)).collect();
                out.push(Scores { name, weight, raw, normal });
            }
            Err(error) => tracing::info!(
                extender = name,
                %error,
                pod = pod.key(),
                "Failed to run extender's priority function. No score given by this extender."
            ),
        }
    }
    out
}

/// callExtenders: what they leave of a preemption's candidates.
pub(crate) fn preempt(
    (framework, pod, snapshot): (&Framework, &PodInfo, &Snapshot),
    mut candidates: Vec<Candidate>,
) -> Result<Vec<Candidate>, ExtenderError> {
    for extender in framework.extenders.iter().filter(|e| e.preempts() && e.interested(pod)) {
        if candidates.is_empty() {
            break;
        }
        let answer = extender.preempt(pod, &candidates);
        match answer.and_then(|said| chosen(&**extender, said, snapshot)) {
            Ok(chosen) => candidates = chosen,
            Err(error) if extender.ignorable() => skipped(&**extender, &error),
            Err(error) => return Err(error),
        }
    }
    Ok(candidates)
}

fn chosen(
    extender: &dyn Extender,
    said: BTreeMap<String, MetaVictims>,
    snapshot: &Snapshot,
) -> Result<Vec<Candidate>, ExtenderError> {
    let mut out = Vec::new();
    for (name, MetaVictims { uids, violations }) in said {
        let Some(node) = snapshot.node(&name) else { return Err(ExtenderError::NoSuchNode(name)) };
        let pod = |uid: String| {
            let found = node.pods.iter().find(|p| p.pod.uid == uid).map(|p| p.pod.clone());
            found.ok_or_else(|| ExtenderError::NoSuchPod {
                url: extender.name().to_owned(),
                uid,
                node: name.clone(),
            })
        };
        let victims = uids.into_iter().map(pod).collect::<Result<Vec<_>, _>>()?;
        if victims.is_empty() {
            if extender.ignorable() {
                continue;
            }
            return Err(ExtenderError::NoVictims(name));
        }
        out.push(Candidate { node: name, victims, violations });
    }
    Ok(out)
}

/// In the queue: whom an extender refused, any event may help, since nobody knows what it goes by.
pub(crate) struct Hints;

impl Plugin for Hints {
    fn name(&self) -> &'static str {
        NAME
    }

    fn may_help(&self, _: &PodInfo, _: &ClusterEvent) -> bool {
        true
    }
}

/// The extenders as the first of a profile's Bind plugins (extendersBinding). Who binds so writes no scheduling
/// annotation: the Binding is the extender's.
pub(crate) struct ExtenderBinder(pub(crate) Vec<Arc<dyn Extender>>);

impl Plugin for ExtenderBinder {
    fn name(&self) -> &'static str {
        NAME
    }

    fn may_help(&self, _: &PodInfo, _: &ClusterEvent) -> bool {
        false
    }
}

impl Bind for ExtenderBinder {
    fn bind<'a>(&'a self, placement: &'a Placement) -> BoxFuture<'a, Result<bool, Status>> {
        async move {
            for extender in self.0.iter().filter(|e| e.binds() && e.interested(&placement.pod)) {
                match extender.bind(placement).await {
                    Ok(()) => return Ok(true),
                    Err(error) if extender.ignorable() => skipped(&**extender, &error),
                    Err(error) => return Err(Status::error(NAME, error.to_string())),
                }
            }
            Ok(false)
        }
        .boxed()
    }
}
