//! What affinity and spread count: pods, by the value that their node has of a label.

use super::node::NodeState;
use super::snapshot::Snapshot;
use crate::classes::{Class, ClassId};
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

/// The values of a node label as numbers, and which node has which.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Domains {
    /// By node; `NONE` for one without the label.
    of: Vec<u32>,
    values: usize,
}

const NONE: u32 = u32::MAX;

impl Domains {
    pub(super) fn read(key: &str, nodes: &[NodeState]) -> Self {
        let mut numbers: HashMap<&str, u32> = HashMap::new();
        let mut of = Vec::with_capacity(nodes.len());
        for node in nodes {
            let next = u32::try_from(numbers.len()).unwrap_or(NONE);
            let value = node.info.labels.get(key);
            of.push(value.map_or(NONE, |value| *numbers.entry(value).or_insert(next)));
        }
        Domains { of, values: numbers.len() }
    }

    /// The number of a node's value.
    #[must_use]
    pub fn at(&self, node: usize) -> Option<usize> {
        self.of.get(node).filter(|n| **n != NONE).and_then(|n| usize::try_from(*n).ok())
    }

    /// How many values there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.values
    }

    /// Whether no node has the label.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values == 0
    }
}

/// A sum for each value of a node label.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sums {
    domains: Arc<Domains>,
    sums: Vec<i64>,
    /// How many are not zero.
    filled: usize,
}

impl Sums {
    /// All zero.
    #[must_use]
    pub fn over(domains: Arc<Domains>) -> Self {
        Sums { sums: vec![0; domains.len()], domains, filled: 0 }
    }

    /// Adds to the node's value; a node without the label has none. Returns the sum before and after.
    pub fn add(&mut self, node: usize, n: i64) -> Option<(i64, i64)> {
        let sum = self.sums.get_mut(self.domains.at(node)?)?;
        let before = *sum;
        *sum += n;
        self.filled = self.filled + usize::from(*sum != 0) - usize::from(before != 0);
        Some((before, *sum))
    }

    /// The sum of the node's value; 0 for a node without the label.
    #[must_use]
    pub fn at(&self, node: usize) -> i64 {
        self.domains.at(node).and_then(|value| self.sums.get(value)).copied().unwrap_or(0)
    }

    /// Whether the node has the label.
    #[must_use]
    pub fn has(&self, node: usize) -> bool {
        self.domains.at(node).is_some()
    }

    /// Whether all are zero.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// The label's values.
    #[must_use]
    pub fn domains(&self) -> &Domains {
        &self.domains
    }
}

/// Pods came to a node, or left it.
#[derive(Clone, Debug)]
pub struct Step {
    /// Which node of the snapshot.
    pub node: usize,
    /// Their class' number.
    pub id: ClassId,
    /// What they have in common.
    pub class: Arc<Class>,
    /// How many came; negative: left.
    pub all: i64,
    /// How many that are not being deleted.
    pub staying: i64,
}

/// Something that is counted over all pods on nodes, and that one pod more or less changes by a step.
///
/// The order of the steps must not matter, and a step and its opposite must leave no trace.
pub trait Tally: Clone + Send + Sync + 'static {
    /// What is asked; equal questions have equal answers.
    type Of: Clone + Eq + Hash + Send + Sync + 'static;

    /// Nothing counted yet. It may depend on nothing but the nodes' names, labels and taints.
    fn none(of: &Self::Of, snapshot: &Snapshot) -> Self;

    /// Whether the pods of a class count at all. It may depend on the namespaces' labels too.
    fn counts(of: &Self::Of, class: &Class, snapshot: &Snapshot) -> bool;

    /// Takes a step with pods that count.
    fn step(&mut self, step: &Step, snapshot: &Snapshot);

    /// How many numbers it keeps, about.
    fn size(&self) -> usize;
}
