//! The two counts that affinity goes by: the pods that terms match, and the pods that have terms.

use super::takes;
use crate::cache::{Snapshot, Step, Sums, Tally};
use crate::classes::Class;
use crate::model::{PodAffinity, PodInfo, PodTerm};
use std::collections::HashMap;
use std::sync::Arc;

/// How many pods match all of some terms, for the topology of each of them.
#[derive(Clone)]
pub(super) struct Matching(pub(super) Vec<Arc<Sums>>);

impl Tally for Matching {
    type Of = Vec<PodTerm>;

    fn none(of: &Self::Of, snapshot: &Snapshot) -> Self {
        Matching(of.iter().map(|t| Arc::new(Sums::over(snapshot.domains(&t.topology_key)))).collect())
    }

    fn counts(of: &Self::Of, class: &Class, snapshot: &Snapshot) -> bool {
        let labels = snapshot.namespace_labels(&class.namespace);
        of.iter().all(|t| t.matches(&class.namespace, &class.labels, labels))
    }

    fn step(&mut self, step: &Step, _: &Snapshot) {
        for sums in &mut self.0 {
            Arc::make_mut(sums).add(step.node, step.all);
        }
    }

    fn size(&self) -> usize {
        self.0.iter().map(|s| s.domains().len()).sum()
    }
}

/// Which of a pod's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Kind {
    Required,
    AntiRequired,
    Preferred,
    AntiPreferred,
}

impl Kind {
    /// The terms, each with what it weighs; 1 for a required one.
    fn of(self, affinity: &PodAffinity) -> impl Iterator<Item = (&PodTerm, i64)> {
        let (required, preferred) = match self {
            Kind::Required => (affinity.required.as_slice(), [].as_slice()),
            Kind::AntiRequired => (affinity.anti_required.as_slice(), [].as_slice()),
            Kind::Preferred => ([].as_slice(), affinity.preferred.as_slice()),
            Kind::AntiPreferred => ([].as_slice(), affinity.anti_preferred.as_slice()),
        };
        required.iter().map(|t| (t, 1)).chain(preferred.iter().map(|t| (&t.term, t.weight)))
    }
}

/// The terms of one kind that pods have, with the sum of their weights by the term's topology.
#[derive(Clone)]
pub(super) struct Having {
    kind: Kind,
    by_term: HashMap<Arc<PodTerm>, Had>,
}

#[derive(Clone)]
struct Had {
    pods: i64,
    weights: Arc<Sums>,
}

impl Tally for Having {
    type Of = Kind;

    fn none(of: &Kind, _: &Snapshot) -> Self {
        Having { kind: *of, by_term: HashMap::new() }
    }

    fn counts(of: &Kind, class: &Class, _: &Snapshot) -> bool {
        of.of(&class.affinity).next().is_some()
    }

    fn step(&mut self, step: &Step, snapshot: &Snapshot) {
        for (term, weight) in self.kind.of(&step.class.affinity) {
            if !self.by_term.contains_key(term) {
                let weights = Arc::new(Sums::over(snapshot.domains(&term.topology_key)));
                self.by_term.insert(Arc::new(term.clone()), Had { pods: 0, weights });
            }
            let Some(had) = self.by_term.get_mut(term) else { continue };
            had.pods += step.all;
            Arc::make_mut(&mut had.weights).add(step.node, step.all * weight);
            if had.pods == 0 {
                self.by_term.remove(term);
            }
        }
    }

    fn size(&self) -> usize {
        self.by_term.values().map(|had| had.weights.domains().len()).sum()
    }
}

impl Having {
    /// The terms that match a pod.
    pub(super) fn against(&self, pod: &PodInfo, snapshot: &Snapshot) -> Vec<(Arc<PodTerm>, Arc<Sums>)> {
        let labels = snapshot.namespace_labels(&pod.namespace);
        let matching =
            self.by_term.iter().filter(|(term, had)| !had.weights.is_empty() && takes(term, pod, labels));
        matching.map(|(term, had)| (term.clone(), had.weights.clone())).collect()
    }
}
