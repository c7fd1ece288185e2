//! A node with what its pods have taken.

use crate::classes::{Class, ClassId};
use crate::model::{HostPort, NodeInfo, PodInfo, Resources};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The pods of a class that a node has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alike {
    /// What they have in common.
    pub class: Arc<Class>,
    /// How many.
    pub all: i64,
    /// How many are not being deleted.
    pub staying: i64,
}

/// What the pods of a node have taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Sum of requests.
    pub requested: Resources,
    /// Sum of requests with defaults; only for scores.
    pub non_zero: Resources,
    /// How many pods.
    pub pods: i64,
    /// Host ports, with how many pods hold each.
    pub host_ports: BTreeMap<HostPort, usize>,
    /// The pods of each class.
    pub alike: BTreeMap<ClassId, Alike>,
}

impl Usage {
    pub(super) fn add(&mut self, pod: &PodInfo, id: ClassId, class: &Arc<Class>) {
        let none = || Alike { class: class.clone(), all: 0, staying: 0 };
        let alike = self.alike.entry(id).or_insert_with(none);
        alike.all += 1;
        alike.staying += i64::from(!pod.deleting);
        self.requested.add(&pod.requests);
        self.non_zero.add(&pod.non_zero);
        self.pods += 1;
        for port in &pod.host_ports {
            *self.host_ports.entry(port.clone()).or_insert(0) += 1;
        }
    }

    /// A pod more, without its class.
    pub(crate) fn count(&mut self, pod: &PodInfo) {
        self.add(pod, UNCLASSED, &Arc::default());
    }

    /// The same sums, whatever classes they are of.
    pub(crate) fn counts_like(&self, other: &Usage) -> bool {
        let sums = |u: &Usage| (u.requested.clone(), u.non_zero.clone(), u.pods, u.host_ports.clone());
        sums(self) == sums(other)
    }

    pub(super) fn remove(&mut self, pod: &PodInfo, id: ClassId) {
        if let Some(alike) = self.alike.get_mut(&id) {
            alike.all -= 1;
            alike.staying -= i64::from(!pod.deleting);
            if alike.all == 0 {
                self.alike.remove(&id);
            }
        }
        self.requested.subtract(&pod.requests);
        self.non_zero.subtract(&pod.non_zero);
        self.pods -= 1;
        for port in &pod.host_ports {
            if let Some(n) = self.host_ports.get_mut(port) {
                *n -= 1;
                if *n == 0 {
                    self.host_ports.remove(port);
                }
            }
        }
    }
}

/// A pod on a node.
#[derive(Clone, Debug)]
pub struct NodePod {
    /// The pod, as it was when it was counted.
    pub pod: Arc<PodInfo>,
    /// Its class' number; [`UNCLASSED`] for one that is only thought to be there.
    pub class: ClassId,
}

/// No class: that of a nominated pod, which affinity and spread count one by one.
pub const UNCLASSED: ClassId = 0;

/// A node and its usage, at one moment.
#[derive(Clone, Debug)]
pub struct NodeState {
    /// Which of the snapshot's nodes it is; none of them when there are not so many.
    pub at: usize,
    /// Of the cache, when the node or its pods changed last.
    pub generation: u64,
    /// The node.
    pub info: Arc<NodeInfo>,
    /// What is taken of it.
    pub usage: Arc<Usage>,
    /// By what pods.
    pub pods: Arc<Vec<NodePod>>,
}

impl Default for NodeState {
    fn default() -> Self {
        NodeState {
            at: usize::MAX,
            generation: 0,
            info: Arc::default(),
            usage: Arc::default(),
            pods: Arc::default(),
        }
    }
}

impl NodeState {
    /// An empty node, of no snapshot.
    #[must_use]
    pub fn of(info: NodeInfo) -> Self {
        NodeState { info: Arc::new(info), ..NodeState::default() }
    }

    /// Thinks a pod onto the node.
    pub fn add(&mut self, pod: &NodePod) {
        // What is counted by class is shifted by the plugins, one by one.
        Arc::make_mut(&mut self.usage).add(&pod.pod, pod.class, &Arc::default());
        Arc::make_mut(&mut self.pods).push(pod.clone());
    }

    /// Thinks a pod away from it.
    pub fn remove(&mut self, pod: &NodePod) {
        let pods = Arc::make_mut(&mut self.pods);
        if let Some(at) = pods.iter().position(|p| p.pod.uid == pod.pod.uid) {
            pods.swap_remove(at);
            Arc::make_mut(&mut self.usage).remove(&pod.pod, pod.class);
        }
    }
}
