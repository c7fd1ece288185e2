//! Which nodes the pods of each class are on: what is counted anew asks once for each class, not for each pod.

use super::node::{Alike, NodeState};
use super::snapshot::Snapshot;
use super::tally::{Step, Tally};
use crate::classes::{Class, ClassId};
use std::collections::HashMap;
use std::sync::Arc;

/// All classes that have pods on nodes.
#[derive(Debug, Default)]
pub(super) struct Whereabouts(HashMap<ClassId, OfClass>);

#[derive(Debug)]
struct OfClass {
    class: Arc<Class>,
    /// In order of the nodes; one where none is left is not among them.
    on: Vec<On>,
}

/// How many of a class a node has.
#[derive(Debug, PartialEq, Eq)]
struct On {
    node: usize,
    all: i64,
    staying: i64,
}

impl Whereabouts {
    /// Of these nodes.
    pub(super) fn read(nodes: &[NodeState]) -> Self {
        let mut out = Whereabouts::default();
        for node in nodes {
            for (id, Alike { class, all, staying }) in &node.usage.alike {
                let step =
                    Step { node: node.at, id: *id, class: class.clone(), all: *all, staying: *staying };
                out.step(&step);
            }
        }
        out
    }

    /// Pods came or went.
    pub(super) fn step(&mut self, step: &Step) {
        let none = || OfClass { class: step.class.clone(), on: Vec::with_capacity(1) };
        let OfClass { on, .. } = self.0.entry(step.id).or_insert_with(none);
        match on.binary_search_by_key(&step.node, |on| on.node) {
            Err(at) => on.insert(at, On { node: step.node, all: step.all, staying: step.staying }),
            Ok(at) => {
                on[at].all += step.all;
                on[at].staying += step.staying;
                if (on[at].all, on[at].staying) == (0, 0) {
                    on.remove(at);
                }
            }
        }
        if on.is_empty() {
            self.0.remove(&step.id);
        }
    }

    /// Counts over all pods.
    pub(super) fn count<T: Tally>(&self, of: &T::Of, snapshot: &Snapshot) -> T {
        let mut tally = T::none(of, snapshot);
        for (id, OfClass { class, on }) in &self.0 {
            if T::counts(of, class, snapshot) {
                for &On { node, all, staying } in on {
                    tally.step(&Step { node, id: *id, class: class.clone(), all, staying }, snapshot);
                }
            }
        }
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_that_came_and_went_leave_no_trace() {
        let class = Arc::new(Class::default());
        let step = |node, id, all, staying| Step { node, id, class: class.clone(), all, staying };
        let mut whereabouts = Whereabouts::default();
        [step(3, 1, 1, 1), step(0, 1, 2, 1), step(3, 2, 1, 1), step(0, 1, -1, 0)]
            .iter()
            .for_each(|s| whereabouts.step(s));
        assert_eq!(
            whereabouts.0[&1].on,
            [On { node: 0, all: 1, staying: 1 }, On { node: 3, all: 1, staying: 1 }]
        );
        // One begins to go, and has gone.
        [step(3, 1, -1, -1), step(3, 1, 1, 0), step(3, 1, -1, 0), step(0, 1, -1, -1), step(3, 2, -1, -1)]
            .iter()
            .for_each(|s| whereabouts.step(s));
        assert!(whereabouts.0.is_empty(), "{whereabouts:?}");
    }
}
