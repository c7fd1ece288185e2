//! The two counts that spread goes by: the pods of a selector by domain, and by node.

use super::includes;
use crate::cache::{Snapshot, Step, Sums, Tally};
use crate::classes::Class;
use crate::model::{LabelSelector, NodeTerm, PodInfo, SpreadConstraint, Toleration};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The pods of a namespace that a selector selects. An empty one selects everything, and upstream counts none
/// then. One that is being deleted is not counted.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Selected {
    namespace: String,
    selector: LabelSelector,
}

impl Selected {
    pub(super) fn of(constraint: &SpreadConstraint, pod: &PodInfo) -> Self {
        Selected { namespace: pod.namespace.clone(), selector: constraint.selector.clone() }
    }

    fn has(&self, class: &Class) -> bool {
        !self.selector.is_empty() && class.namespace == self.namespace && self.selector.matches(&class.labels)
    }
}

/// A nodeSelector.
type Wanted = BTreeMap<String, String>;

/// A constraint's question: whose pods, on which nodes, by which label.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Question {
    selected: Selected,
    key: String,
    /// A node counts that has all of these labels,
    keys: Vec<String>,
    /// and that the pod's node affinity takes, if the constraint honours it,
    affinity: Option<(Wanted, Option<Vec<NodeTerm>>)>,
    /// and whose taints it tolerates, if it honours these.
    tolerations: Option<Vec<Toleration>>,
}

impl Question {
    pub(super) fn of<'a>(
        constraint: &SpreadConstraint,
        keys: impl IntoIterator<Item = &'a SpreadConstraint>,
        pod: &PodInfo,
    ) -> Self {
        let affinity = || (pod.node_selector.clone(), pod.required_terms.clone());
        Question {
            selected: Selected::of(constraint, pod),
            key: constraint.topology_key.clone(),
            keys: keys.into_iter().map(|c| c.topology_key.clone()).collect(),
            affinity: constraint.honor_affinity.then(affinity),
            tolerations: constraint.honor_taints.then(|| pod.tolerations.clone()),
        }
    }
}

/// How many selected pods each domain has.
#[derive(Clone)]
pub(super) struct ByDomain {
    /// The nodes that count.
    included: Arc<Vec<bool>>,
    counts: Sums,
    /// How many domains there are, of the nodes that count.
    domains: usize,
    /// How many of them have how many, so that the emptiest is at hand.
    by_count: BTreeMap<i64, usize>,
}

impl Tally for ByDomain {
    type Of = Question;

    fn none(of: &Question, snapshot: &Snapshot) -> Self {
        let keys: Vec<_> = of.keys.iter().map(|key| snapshot.domains(key)).collect();
        // What the policies go by, as a pod that has nothing else.
        let (selector, terms) = of.affinity.clone().unwrap_or_default();
        let asking = PodInfo {
            node_selector: selector,
            required_terms: terms,
            tolerations: of.tolerations.clone().unwrap_or_default(),
            ..PodInfo::default()
        };
        let policies = (of.affinity.is_some(), of.tolerations.is_some());
        let counts = Sums::over(snapshot.domains(&of.key));
        let mut there = vec![false; counts.domains().len()];
        let included = snapshot.nodes.iter().map(|node| {
            let yes = keys.iter().all(|k| k.at(node.at).is_some()) && includes(policies, &asking, &node.info);
            if yes && let Some(domain) = counts.domains().at(node.at).and_then(|d| there.get_mut(d)) {
                *domain = true;
            }
            yes
        });
        let included = Arc::new(included.collect());
        let domains = there.iter().filter(|there| **there).count();
        let by_count = if domains == 0 { BTreeMap::new() } else { BTreeMap::from([(0, domains)]) };
        ByDomain { included, counts, domains, by_count }
    }

    fn counts(of: &Question, class: &Class, _: &Snapshot) -> bool {
        of.selected.has(class)
    }

    fn step(&mut self, step: &Step, _: &Snapshot) {
        self.add(step.node, step.staying);
    }

    fn size(&self) -> usize {
        self.counts.domains().len() + self.included.len() / 8
    }
}

impl ByDomain {
    /// Adds to a node's domain, if the node counts.
    pub(super) fn add(&mut self, node: usize, n: i64) {
        if n == 0 || !self.included.get(node).is_some_and(|yes| *yes) {
            return;
        }
        let Some((before, after)) = self.counts.add(node, n) else { return };
        if let Some(domains) = self.by_count.get_mut(&before) {
            *domains -= 1;
            if *domains == 0 {
                self.by_count.remove(&before);
            }
        }
        *self.by_count.entry(after).or_insert(0) += 1;
    }

    /// How many there are in the node's domain; none in one that the policies leave out.
    pub(super) fn at(&self, node: usize) -> i64 {
        self.counts.at(node)
    }

    /// Whether the node has the label.
    pub(super) fn has(&self, node: usize) -> bool {
        self.counts.has(node)
    }

    /// The number of the node's domain.
    pub(super) fn domain(&self, node: usize) -> Option<usize> {
        self.counts.domains().at(node)
    }

    /// How many the label has in all.
    pub(super) fn values(&self) -> usize {
        self.counts.domains().len()
    }

    /// How many there are in the emptiest domain; none when there are too few domains.
    pub(super) fn emptiest(&self, least: usize) -> i64 {
        self.by_count.keys().next().copied().filter(|_| self.domains >= least).unwrap_or(0)
    }
}

/// How many selected pods each node has.
#[derive(Clone)]
pub(super) struct ByNode(Vec<i64>);

impl Tally for ByNode {
    type Of = Selected;

    fn none(_: &Selected, snapshot: &Snapshot) -> Self {
        ByNode(vec![0; snapshot.nodes.len()])
    }

    fn counts(of: &Selected, class: &Class, _: &Snapshot) -> bool {
        of.has(class)
    }

    fn step(&mut self, step: &Step, _: &Snapshot) {
        if let Some(count) = self.0.get_mut(step.node) {
            *count += step.staying;
        }
    }

    fn size(&self) -> usize {
        self.0.len()
    }
}

impl ByNode {
    pub(super) fn at(&self, node: usize) -> i64 {
        self.0.get(node).copied().unwrap_or(0)
    }
}
