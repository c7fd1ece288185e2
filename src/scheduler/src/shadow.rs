//! Shadow mode: beside another scheduler, what would ours have decided?
//!
//! Each time the other one binds a pod, ours decides on the cluster as the watch showed it just before, and
//! the two are compared. Nothing is bound, and nothing is written. What the other one knew a moment earlier or
//! later than the watch shows is not known here: a pod bound in between is a difference that is none.

use crate::cache::Snapshot;
use crate::cycle::CycleError;
use crate::explain::ring::{Refusal, Row};
use crate::explain::search::decide;
use crate::framework::Framework;
use crate::model::PodInfo;
use serde::Serialize;
use std::collections::VecDeque;
use std::sync::Arc;

/// How many disagreements are kept.
const KEPT: usize = 256;

/// How the two compare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "result")]
pub enum Verdict {
    /// The same node.
    Same,
    /// Another node of the same score: which one is left to chance upstream.
    Tied,
    /// The other's node scores lower here.
    Lower {
        /// Our node's scores.
        ours: Row,
        /// Their node's.
        theirs: Row,
    },
    /// The other's node does not take the pod here.
    Refused {
        /// Our node, if there is one.
        ours: Option<String>,
        /// Its scores, if several nodes take the pod.
        #[serde(skip_serializing_if = "Option::is_none")]
        scores: Option<Row>,
        /// Why.
        theirs: Refusal,
    },
    /// No verdict: their node is not known here, or a plugin failed.
    Unknown {
        /// What is missing.
        message: String,
    },
}

impl Verdict {
    /// The metric's label.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Verdict::Same => "same",
            Verdict::Tied => "tied",
            Verdict::Lower { .. } => "lower",
            Verdict::Refused { .. } => "refused",
            Verdict::Unknown { .. } => "unknown",
        }
    }
}

/// A disagreement.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Disagreement {
    /// `namespace/name`.
    pub pod: String,
    /// The node that it was bound to.
    pub node: String,
    /// How they differ.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// What was compared.
#[derive(Debug, Default)]
pub struct Shadow {
    kept: VecDeque<Arc<Disagreement>>,
}

impl Shadow {
    /// Compares, and keeps what differs.
    pub fn compare(
        &mut self,
        framework: &Framework,
        snapshot: &Snapshot,
        pod: &PodInfo,
        node: &str,
    ) -> Verdict {
        let verdict = verdict(framework, snapshot, pod, node);
        if !matches!(verdict, Verdict::Same | Verdict::Tied) {
            if self.kept.len() == KEPT {
                self.kept.pop_front();
            }
            let (pod, node) = (pod.key(), node.to_owned());
            self.kept.push_back(Arc::new(Disagreement { pod, node, verdict: verdict.clone() }));
        }
        verdict
    }

    /// The disagreements, the newest first.
    #[must_use]
    pub fn disagreements(&self) -> Vec<Arc<Disagreement>> {
        self.kept.iter().rev().cloned().collect()
    }
}

/// Ours against a node that another scheduler chose for the pod.
#[must_use]
pub fn verdict(framework: &Framework, snapshot: &Snapshot, pod: &PodInfo, node: &str) -> Verdict {
    let pod = PodInfo { node_name: String::new(), nominated: String::new(), ..pod.clone() };
    let unknown = |message: String| Verdict::Unknown { message };
    match decide(framework, snapshot, &pod) {
        Ok(decision) if decision.node == node => Verdict::Same,
        Ok(decision) => {
            let row = |name: &str| decision.scores.iter().find(|s| s.node == name);
            if let Some(status) = decision.rejected.get(node) {
                let scores = row(&decision.node).map(Row::of);
                return Verdict::Refused {
                    ours: Some(decision.node.clone()),
                    scores,
                    theirs: Refusal::of(status),
                };
            }
            match (row(&decision.node), row(node)) {
                (Some(ours), Some(theirs)) if ours.total == theirs.total => Verdict::Tied,
                (Some(ours), Some(theirs)) => Verdict::Lower { ours: Row::of(ours), theirs: Row::of(theirs) },
                _ => unknown(format!("node {node} is not known")),
            }
        }
        Err(CycleError::Unfit(error)) => match error.pre_filter.as_ref().or(error.rejected.get(node)) {
            Some(status) => Verdict::Refused { ours: None, scores: None, theirs: Refusal::of(status) },
            None => unknown(format!("node {node} is not known")),
        },
        Err(CycleError::Failed(failure)) => unknown(failure.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Cache;
    use crate::model::{NodeInfo, Resources};
    use crate::plugins::default_framework;

    #[test]
    fn each_way_to_differ_is_told_with_both_rows() {
        let mut cache = Cache::default();
        for (name, cpu, unschedulable) in
            [("a", 1000, false), ("b", 4000, false), ("c", 4000, false), ("d", 9000, true)]
        {
            cache.set_node(Arc::new(NodeInfo {
                name: name.into(),
                unschedulable,
                allocatable: Resources { milli_cpu: cpu, memory: 1 << 34, ..Resources::default() },
                allocatable_pods: 10,
                ..NodeInfo::default()
            }));
        }
        let requests = Resources { milli_cpu: 500, ..Resources::default() };
        let pod = PodInfo { uid: "u".into(), non_zero: requests.clone(), requests, ..PodInfo::default() };
        let (framework, snapshot) = (default_framework(), cache.snapshot());
        let mut shadow = Shadow::default();
        let mut against = |node: &str| shadow.compare(&framework, &snapshot, &pod, node);
        let mut best: Vec<&str> = ["b", "c"].map(|n| against(n).label()).to_vec();
        best.sort_unstable();
        assert_eq!(best, ["same", "tied"]);
        let Verdict::Lower { ours, theirs } = against("a") else { panic!("a is as good") };
        assert!(ours.total > theirs.total && theirs.node == "a" && !theirs.plugins.is_empty());
        let Verdict::Refused { ours: Some(ours), scores: Some(scores), theirs } = against("d") else {
            panic!("d takes it")
        };
        assert!(scores.node == ours && !scores.plugins.is_empty());
        assert_eq!(theirs.plugin, "NodeUnschedulable");
        assert_eq!(against("z").label(), "unknown");
        let kept: Vec<String> = shadow.disagreements().iter().map(|d| d.node.clone()).collect();
        assert_eq!(kept, ["z", "d", "a"]);
    }
}
