//! The extension points of upstream's scheduling framework, as traits.
//!
//! A plugin implements [`Plugin`] and any of the other traits; [`Framework`] holds them in run
//! order, which decides the reason that a node shows, since filtering stops at a node's first
//! refusal. Decision points are pure and synchronous; the binding points may wait.

mod status;

pub use status::{Code, Failure, Reason, Reasons, Refusals, Status};

use crate::cache::{NodePod, NodeState, Snapshot};
use crate::cycle::Sample;
use crate::extender::{self, Extender};
use crate::model::{NodeInfo, Part, PodInfo};
use crate::objects::Change;
use crate::plugins::volume_binding::VolumePlan;
use futures::future::BoxFuture;
use std::any::{Any, TypeId};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

/// The highest score after normalisation.
pub const MAX_NODE_SCORE: i64 = 100;

/// An extension point.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Point {
    /// Once per cycle, before filtering.
    PreFilter,
    /// Once per node.
    Filter,
    /// When no node passed.
    PostFilter,
    /// Once per cycle, over the feasible nodes.
    PreScore,
    /// Once per feasible node.
    Score,
    /// Booked in memory.
    Reserve,
    /// Held or let go.
    Permit,
    /// Before the binding.
    PreBind,
    /// The binding.
    Bind,
    /// After the binding.
    PostBind,
    /// Undone.
    Unreserve,
}

impl Point {
    /// Upstream's name, a metric label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Point::PreFilter => "PreFilter",
            Point::Filter => "Filter",
            Point::PostFilter => "PostFilter",
            Point::PreScore => "PreScore",
            Point::Score => "Score",
            Point::Reserve => "Reserve",
            Point::Permit => "Permit",
            Point::PreBind => "PreBind",
            Point::Bind => "Bind",
            Point::PostBind => "PostBind",
            Point::Unreserve => "Unreserve",
        }
    }
}

/// What plugins remember of one pod between the points of one cycle, by type.
#[derive(Clone, Default)]
pub struct CycleState {
    /// A handful, and asked for on every node: looked through, not hashed.
    values: Vec<(TypeId, Arc<dyn Any + Send + Sync>)>,
    skip_filter: HashSet<&'static str>,
    skip_score: HashSet<&'static str>,
}

impl CycleState {
    /// Keeps a value.
    pub fn put<T: Any + Send + Sync>(&mut self, value: T) {
        self.values.retain(|(id, _)| *id != TypeId::of::<T>());
        self.values.push((TypeId::of::<T>(), Arc::new(value)));
    }

    /// The value of a type.
    #[must_use]
    pub fn get<T: Any>(&self) -> Option<&T> {
        let (_, value) = self.values.iter().find(|(id, _)| *id == TypeId::of::<T>())?;
        value.downcast_ref()
    }

    /// Changes the value of a type, if there is one; another state that shares it keeps its own.
    pub fn update<T: Any + Send + Sync + Clone>(&mut self, change: impl FnOnce(&mut T)) {
        let Some(at) = self.values.iter().position(|(id, _)| *id == TypeId::of::<T>()) else { return };
        let (id, value) = self.values.swap_remove(at);
        if let Ok(mut value) = Arc::downcast::<T>(value) {
            change(Arc::make_mut(&mut value));
            self.values.push((id, value));
        }
    }

    /// Leaves out the plugin's Filter for the rest of the cycle.
    pub fn skip_filter(&mut self, plugin: &'static str) {
        self.skip_filter.insert(plugin);
    }

    /// Leaves out the plugin's Score for the rest of the cycle.
    pub fn skip_score(&mut self, plugin: &'static str) {
        self.skip_score.insert(plugin);
    }

    /// True when the plugin's Filter is left out.
    #[must_use]
    pub fn skips_filter(&self, plugin: &str) -> bool {
        self.skip_filter.contains(plugin)
    }

    /// True when the plugin's Score is left out.
    #[must_use]
    pub fn skips_score(&self, plugin: &str) -> bool {
        self.skip_score.contains(plugin)
    }
}

/// Something that happened in the cluster and may let a refused pod in.
#[derive(Clone, Debug)]
pub enum ClusterEvent {
    /// A node came.
    NodeAdd(Arc<NodeInfo>),
    /// A node changed: before and after.
    NodeUpdate(Arc<NodeInfo>, Arc<NodeInfo>),
    /// A node went.
    NodeDelete(Arc<NodeInfo>),
    /// A pod is bound.
    AssignedPodAdd(Arc<PodInfo>),
    /// A bound pod changed its labels, or is being deleted: before and after.
    AssignedPodUpdate(Arc<PodInfo>, Arc<PodInfo>),
    /// A bound pod left its node.
    AssignedPodDelete(Arc<PodInfo>),
    /// The waiting pod itself changed.
    PodUpdate,
    /// Something else of the cluster came, changed or went.
    Object(Change),
}

impl ClusterEvent {
    /// A node came, changed or went.
    #[must_use]
    pub const fn is_of_node(&self) -> bool {
        matches!(self, ClusterEvent::NodeAdd(_) | ClusterEvent::NodeUpdate(..) | ClusterEvent::NodeDelete(_))
    }

    /// Upstream's label for metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            ClusterEvent::NodeAdd(_) => "NodeAdd",
            ClusterEvent::NodeUpdate(..) => "NodeUpdate",
            ClusterEvent::NodeDelete(_) => "NodeDelete",
            ClusterEvent::AssignedPodAdd(_) => "AssignedPodAdd",
            ClusterEvent::AssignedPodUpdate(..) => "AssignedPodUpdate",
            ClusterEvent::AssignedPodDelete(_) => "AssignedPodDelete",
            ClusterEvent::PodUpdate => "PodUpdate",
            ClusterEvent::Object(change) => change.label(),
        }
    }
}

/// What a plugin's verdict on a node and its raw score hang on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoesBy {
    /// Anything.
    Cluster,
    /// The node as it is, with the pods on it, and these parts of the pod: its Filter and Score are asked about a pod
    /// that has nothing else, without what its PreFilter and PreScore keep, and what they say holds until the node
    /// changes. Whether they are asked at all is still for PreFilter and PreScore to say.
    Node(&'static [Part]),
}

/// What every plugin has.
pub trait Plugin: Send + Sync {
    /// Upstream's plugin name.
    fn name(&self) -> &'static str;

    /// The queueing hint: could `event` make this plugin accept `pod`, which it refused?
    fn may_help(&self, pod: &PodInfo, event: &ClusterEvent) -> bool;

    /// The same for an event that changed this node and no other: is `pod` accepted there now?
    fn may_help_on(&self, pod: &PodInfo, event: &ClusterEvent, _node: &NodeState) -> bool {
        self.may_help(pod, event)
    }

    /// What its Filter and Score go by.
    fn goes_by(&self) -> GoesBy {
        GoesBy::Cluster
    }

    /// False when such an event never helps any pod, so that none need be asked.
    fn hears(&self, _event: &ClusterEvent) -> bool {
        true
    }
}

/// What PreFilter found.
#[derive(Debug, PartialEq, Eq)]
pub enum PreFilterResult {
    /// Filter runs on every node.
    All,
    /// Only these nodes can pass.
    Only(BTreeSet<String>),
    /// This plugin's Filter has nothing to say.
    Skip,
}

/// Once per cycle, before filtering.
pub trait PreFilter: Plugin {
    /// Looks at the pod.
    ///
    /// # Errors
    /// A [`Status`] refuses the pod on all nodes.
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
    ) -> Result<PreFilterResult, Status>;

    /// Upstream's AddPod (`by` = 1) and RemovePod (`by` = −1): `other` is thought onto `node` or away from
    /// it, and what [`PreFilter::pre_filter`] counted changes with it.
    fn shift(&self, _state: &mut CycleState, _shift: &Shift<'_>) {}
}

/// A pod that is thought to come to a node or to leave it.
pub struct Shift<'a> {
    /// The pod that is being decided.
    pub pod: &'a PodInfo,
    /// The one that comes or leaves.
    pub other: &'a PodInfo,
    /// 1 or −1.
    pub by: i64,
    /// The node, by its place in the snapshot.
    pub at: usize,
    /// The cluster, as it really is.
    pub snapshot: &'a Snapshot,
}

/// What PostFilter has to go by.
pub struct Unfit<'a> {
    /// The profile.
    pub framework: &'a Framework,
    /// The pod that no node takes.
    pub pod: &'a PodInfo,
    /// The cluster.
    pub snapshot: &'a Snapshot,
    /// Set when PreFilter refused the pod everywhere.
    pub pre_filter: Option<&'a Status>,
    /// Why each node fell.
    pub rejected: &'a Refusals,
}

/// A node, and which pods would go from it so that another can come.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The node.
    pub node: String,
    /// The pods to evict, the most important first.
    pub victims: Vec<Arc<PodInfo>>,
    /// How many of them a PodDisruptionBudget would keep.
    pub violations: usize,
}

impl Candidate {
    /// The smaller, the better: upstream's `pickOneNodeForPreemption`.
    #[must_use]
    pub fn rank(&self) -> impl Ord + use<> {
        let highest = self.victims.first().map_or(i32::MIN, |p| p.priority);
        // So that every summand counts, also a negative one.
        let sum: i64 = self.victims.iter().map(|p| i64::from(p.priority) + i64::from(i32::MAX) + 1).sum();
        let top = self.victims.iter().filter(|p| p.priority == highest);
        let earliest = top.map(|p| p.started.unwrap_or(i64::MAX)).min().unwrap_or(i64::MAX);
        (self.violations, highest, sum, self.victims.len(), Reverse(earliest))
    }
}

/// The candidate that is taken, and those that were not.
#[derive(Clone, Debug, PartialEq)]
pub struct Preemption {
    /// Taken.
    pub best: Candidate,
    /// Not taken, the better first.
    pub others: Vec<Candidate>,
}

/// What PostFilter found.
#[derive(Clone, Debug, PartialEq)]
pub enum PostFilterResult {
    /// Evicting these makes room.
    Preempt(Preemption),
    /// It cannot help, for this reason; the pod's nomination is cleared.
    Hopeless(String),
    /// It does nothing, for this reason; the nomination stays.
    Refused(String),
    /// It failed; the nomination stays.
    Failed(String),
}

/// Once per cycle, when no node passed.
pub trait PostFilter: Plugin {
    /// Looks for a way to let the pod in later.
    fn post_filter(&self, state: &mut CycleState, unfit: &Unfit<'_>) -> PostFilterResult;
}

/// Once per node.
pub trait Filter: Plugin {
    /// May the pod run on the node?
    ///
    /// # Errors
    /// A [`Status`] with the reasons when it may not.
    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeState) -> Result<(), Status>;
}

/// Once per cycle, over the feasible nodes.
pub trait PreScore: Plugin {
    /// Prepares; `nodes` are the feasible ones of `snapshot`. `false` leaves out this plugin's Score.
    fn pre_score(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        nodes: &[&NodeState],
        snapshot: &Snapshot,
    ) -> bool;
}

/// Once per feasible node; [`Score::normalize`] once over all.
pub trait Score: Plugin {
    /// The raw score.
    fn score(&self, state: &CycleState, pod: &PodInfo, node: &NodeState, snapshot: &Snapshot) -> i64;

    /// What the raw score goes by of other nodes, if the plugin goes by the node otherwise: as long as these numbers
    /// and the nodes' names stay, so does the score of a node that did not change.
    fn beside(&self, _pod: &PodInfo, _snapshot: &Snapshot) -> Vec<usize> {
        Vec::new()
    }

    /// Brings the scores into 0..=100, in place.
    fn normalize(&self, _scores: &mut [i64]) {}
}

/// A pod that has a node, on its way to being bound.
#[derive(Clone, Debug)]
pub struct Placement {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// The node's name.
    pub node: String,
    /// The flow document for the Binding's annotation.
    pub annotation: Option<String>,
    /// What is to become of its claims before it is bound.
    pub volumes: Option<Arc<VolumePlan>>,
}

/// Books what the node gives the pod, in memory.
pub trait Reserve: Plugin {
    /// Books.
    ///
    /// # Errors
    /// A [`Status`] undoes the placement.
    fn reserve(&self, placement: &Placement) -> Result<(), Status>;

    /// Undoes; must not fail and may come more than once.
    fn unreserve(&self, placement: &Placement);
}

/// Holds or lets go a placed pod.
pub trait Permit: Plugin {
    /// Resolves when the pod may be bound.
    fn permit<'a>(&'a self, placement: &'a Placement) -> BoxFuture<'a, Result<(), Status>>;
}

/// Work that must be done before binding.
pub trait PreBind: Plugin {
    /// Does it.
    fn pre_bind<'a>(&'a self, placement: &'a Placement) -> BoxFuture<'a, Result<(), Status>>;
}

/// Binds; the first plugin that does not pass on ends the point.
pub trait Bind: Plugin {
    /// Writes the binding; `Ok(false)` passes on to the next.
    fn bind<'a>(&'a self, placement: &'a Placement) -> BoxFuture<'a, Result<bool, Status>>;
}

/// Told after the binding stands.
pub trait PostBind: Plugin {
    /// Takes note.
    fn post_bind(&self, placement: &Placement);
}

/// The plugins of a profile, in run order.
#[derive(Clone, Default)]
pub struct Framework {
    /// PreFilter.
    pub pre_filter: Vec<Arc<dyn PreFilter>>,
    /// Filter.
    pub filter: Vec<Arc<dyn Filter>>,
    /// PostFilter.
    pub post_filter: Vec<Arc<dyn PostFilter>>,
    /// PreScore.
    pub pre_score: Vec<Arc<dyn PreScore>>,
    /// Score, with weights.
    pub score: Vec<(Arc<dyn Score>, i64)>,
    /// Reserve.
    pub reserve: Vec<Arc<dyn Reserve>>,
    /// Permit.
    pub permit: Vec<Arc<dyn Permit>>,
    /// PreBind.
    pub pre_bind: Vec<Arc<dyn PreBind>>,
    /// Bind.
    pub bind: Vec<Arc<dyn Bind>>,
    /// PostBind.
    pub post_bind: Vec<Arc<dyn PostBind>>,
    /// How many nodes that take a pod are enough.
    pub sample: Sample,
    /// Who else is asked; those that may fail without harm last.
    pub extenders: Vec<Arc<dyn Extender>>,
}

impl Framework {
    /// Thinks a pod onto a node (`by` = 1) or away from it (−1), in the node and in what was counted.
    pub fn shift(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        node: &mut NodeState,
        (other, by): (&NodePod, i64),
        snapshot: &Snapshot,
    ) {
        if by > 0 {
            node.add(other);
        } else {
            node.remove(other);
        }
        let shift = Shift { pod, other: &other.pod, by, at: node.at, snapshot };
        for plugin in &self.pre_filter {
            plugin.shift(state, &shift);
        }
    }

    /// The plugins that may refuse a pod, by name.
    #[must_use]
    pub fn refusing(&self) -> BTreeMap<&'static str, &dyn Plugin> {
        let mut out: BTreeMap<&'static str, &dyn Plugin> = BTreeMap::new();
        out.extend(self.pre_filter.iter().map(|p| (p.name(), p.as_ref() as &dyn Plugin)));
        out.extend(self.filter.iter().map(|p| (p.name(), p.as_ref() as &dyn Plugin)));
        out.extend(self.post_filter.iter().map(|p| (p.name(), p.as_ref() as &dyn Plugin)));
        out.extend(self.reserve.iter().map(|p| (p.name(), p.as_ref() as &dyn Plugin)));
        out.extend(self.permit.iter().map(|p| (p.name(), p.as_ref() as &dyn Plugin)));
        if !self.extenders.is_empty() {
            out.insert(extender::NAME, &extender::Hints);
        }
        out
    }
}

/// Upstream's DefaultNormalize: to 0..=100 by the largest, reversed where little is good.
pub fn default_normalize(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        *score = match (max, reverse) {
            (0, true) => MAX_NODE_SCORE,
            (0, false) => *score,
            (_, true) => MAX_NODE_SCORE - MAX_NODE_SCORE * *score / max,
            (_, false) => MAX_NODE_SCORE * *score / max,
        };
    }
}
