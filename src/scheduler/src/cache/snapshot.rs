//! The cluster at one moment.

use super::index::Index;
use super::node::NodeState;
use super::tally::{Domains, Tally};
use crate::model::PodInfo;
use crate::objects::Objects;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The cluster at one moment; nodes by name.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Rises with every change of the cache.
    pub generation: u64,
    /// The nodes, by name.
    pub nodes: Arc<Vec<NodeState>>,
    /// What else there is: budgets, volumes, classes.
    pub objects: Objects,
    pub(super) nominated: Nominated,
    pub(super) namespaces: Arc<HashMap<String, BTreeMap<String, String>>>,
    pub(super) images: Arc<HashMap<String, usize>>,
    pub(super) index: Arc<Index>,
    pub(super) nodes_generation: u64,
}

/// The pods that are nominated to a node, by its name.
pub(super) type Nominated = Arc<BTreeMap<String, Vec<Arc<PodInfo>>>>;

static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

impl Snapshot {
    /// The labels of a namespace; none for one that has not been seen.
    #[must_use]
    pub fn namespace_labels(&self, namespace: &str) -> &BTreeMap<String, String> {
        self.namespaces.get(namespace).unwrap_or(&NO_LABELS)
    }

    /// The pods that are nominated to a node: for whom victims were evicted there.
    #[must_use]
    pub fn nominated(&self, node: &str) -> &[Arc<PodInfo>] {
        self.nominated.get(node).map_or(&[], Vec::as_slice)
    }

    /// Whether any pod is nominated anywhere.
    #[must_use]
    pub fn any_nominated(&self) -> bool {
        !self.nominated.is_empty()
    }

    /// A node by name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeState> {
        self.nodes.get(position(&self.nodes, name)?)
    }

    /// How many nodes have an image of this name.
    #[must_use]
    pub fn nodes_with_image(&self, name: &str) -> usize {
        self.images.get(name).copied().unwrap_or(0)
    }

    /// When nodes came or went last: until then each was at its place. 0 when they are only thought to be so.
    #[must_use]
    pub fn nodes_generation(&self) -> u64 {
        self.nodes_generation
    }

    /// The values of a node label, and which node has which.
    #[must_use]
    pub fn domains(&self, key: &str) -> Arc<Domains> {
        self.index.domains(key, &self.nodes)
    }

    /// What is counted over the pods on the nodes; kept, and the next time only brought up to date.
    #[must_use]
    pub fn tally<T: Tally>(&self, of: &T::Of) -> Arc<T> {
        self.index.tally(of, self)
    }

    /// Thinks the nodes to be others than they are. What was counted holds no more.
    pub fn think<T>(&mut self, edit: impl FnOnce(&mut [NodeState]) -> T) -> T {
        self.index = Arc::default();
        self.nodes_generation = 0;
        let nodes: &mut Vec<NodeState> = Arc::make_mut(&mut self.nodes);
        edit(nodes)
    }
}

/// Where a node stands among nodes that are in order of name.
pub(super) fn position(nodes: &[NodeState], name: &str) -> Option<usize> {
    nodes.binary_search_by(|n| (*n.info.name).cmp(name)).ok()
}
