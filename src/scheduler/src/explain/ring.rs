//! The last decisions, kept in memory: a bounded ring, the oldest goes first.

use super::TOP;
use crate::cycle::{Decision, FitError, NodeScore, PluginName};
use crate::framework::{Reasons, Refusals, Status};
use crate::queue::QueuedPod;
use podway_flow::Micros;
use serde::Serialize;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// How many decisions are kept.
pub const KEPT: usize = 1024;
/// How many of the nodes that fell are kept with their reasons.
const REFUSED: usize = 32;

/// One attempt to place a pod.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// `namespace/name`.
    pub pod: String,
    /// The pod's UID, by which equals are told apart: the seed.
    pub uid: String,
    /// The profile.
    pub profile: String,
    /// The generation of the profile's object; 0 for one of the configuration.
    pub profile_generation: i64,
    /// Which attempt of the pod it was.
    pub attempt: u32,
    /// When, in µs of Unix time.
    pub at: i64,
    /// Of the snapshot; absent when there was no decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_generation: Option<u64>,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What came of an attempt.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase", tag = "outcome")]
pub enum Outcome {
    /// A node was chosen.
    #[serde(rename_all = "camelCase")]
    Placed {
        /// Which.
        node: String,
        /// How many there were.
        nodes: usize,
        /// How many took it.
        feasible: usize,
        /// How far it was ahead of the next.
        margin: Option<i64>,
        /// The best, with raw, normalised and weighted scores.
        best: Vec<Row>,
        /// Why others fell, up to a number of them.
        refused: BTreeMap<Arc<str>, Refusal>,
    },
    /// No node fits.
    #[serde(rename_all = "camelCase")]
    Unfit {
        /// As the condition says it.
        message: String,
        /// How many nodes there were.
        nodes: usize,
        /// Why, up to a number of them.
        refused: BTreeMap<Arc<str>, Refusal>,
    },
    /// A plugin failed.
    Failed {
        /// How.
        message: String,
    },
}

/// A node's scores.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The node.
    pub node: String,
    /// The sum.
    pub total: i64,
    /// By plugin.
    pub plugins: Vec<PluginScore>,
}

/// What a plugin gave a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PluginScore {
    /// The plugin, or the extender.
    pub plugin: PluginName,
    /// As it came.
    pub raw: i64,
    /// In 0..=100.
    pub normalized: i64,
    /// Times the weight.
    pub weighted: i64,
}

impl Row {
    /// Of a node's scores.
    #[must_use]
    pub fn of(score: &NodeScore) -> Self {
        let plugins = score.by_plugin.iter().map(|(plugin, raw, normalized, weight)| PluginScore {
            plugin: plugin.clone(),
            raw: *raw,
            normalized: *normalized,
            weighted: normalized.saturating_mul(*weight),
        });
        Row { node: score.node.clone(), total: score.total, plugins: plugins.collect() }
    }
}

/// Why a node fell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// By which plugin.
    pub plugin: &'static str,
    /// Its reasons.
    pub reasons: Reasons,
}

impl Refusal {
    /// Of what a plugin said.
    #[must_use]
    pub fn of(status: &Status) -> Self {
        Refusal { plugin: status.plugin, reasons: status.reasons.clone() }
    }
}

fn refused(rejected: &Refusals) -> BTreeMap<Arc<str>, Refusal> {
    rejected.first(REFUSED).map(|(node, status)| (node, Refusal::of(status))).collect()
}

impl Outcome {
    /// Of a decision.
    #[must_use]
    pub fn placed(decision: &Decision) -> Self {
        Outcome::Placed {
            node: decision.node.clone(),
            nodes: decision.nodes,
            feasible: decision.feasible,
            margin: decision.margin,
            best: decision.scores.iter().take(TOP).map(Row::of).collect(),
            refused: refused(&decision.rejected),
        }
    }

    /// Of a refusal.
    #[must_use]
    pub fn unfit(error: &FitError) -> Self {
        Outcome::Unfit { message: error.message(), nodes: error.nodes, refused: refused(&error.rejected) }
    }
}

/// The ring.
#[derive(Debug, Default)]
pub struct Ring {
    kept: VecDeque<Arc<Attempt>>,
}

impl Ring {
    /// Keeps an attempt.
    pub fn push(
        &mut self,
        queued: &QueuedPod,
        profile_generation: i64,
        at: Micros,
        snapshot_generation: Option<u64>,
        outcome: Outcome,
    ) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(Arc::new(Attempt {
            pod: queued.pod.key(),
            uid: queued.pod.uid.clone(),
            profile: queued.pod.scheduler_name.clone(),
            profile_generation,
            attempt: queued.attempts,
            at: at.0,
            snapshot_generation,
            outcome,
        }));
    }

    /// The attempts of a pod, or all, the newest first.
    #[must_use]
    pub fn of(&self, pod: Option<&str>) -> Vec<Arc<Attempt>> {
        self.kept.iter().rev().filter(|a| pod.is_none_or(|p| p == a.pod || p == a.uid)).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PodInfo;

    fn queued(name: &str) -> QueuedPod {
        let pod = PodInfo {
            namespace: "d".into(),
            name: name.into(),
            uid: format!("u-{name}"),
            ..PodInfo::default()
        };
        let mut queue = crate::queue::Queue::default();
        queue.upsert(Arc::new(pod), Micros(0));
        queue.pop(Micros(0)).unwrap()
    }

    #[test]
    fn the_ring_keeps_the_newest_and_finds_by_name_or_uid() {
        let mut ring = Ring::default();
        let failed = |n: usize| Outcome::Failed { message: n.to_string() };
        ring.push(&queued("old"), 0, Micros(1), None, failed(0));
        for i in 0..KEPT - 1 {
            ring.push(&queued("a"), 0, Micros(2), None, failed(i));
        }
        assert_eq!((ring.of(None).len(), ring.of(Some("d/old")).len()), (KEPT, 1));
        let score =
            NodeScore { node: "n".into(), total: 6, by_plugin: vec![("ImageLocality".into(), 7, 2, 3)] };
        let placed = Outcome::Placed {
            node: "n".into(),
            nodes: 2,
            feasible: 1,
            margin: None,
            best: vec![Row::of(&score)],
            refused: refused(&[("m", Status::unschedulable("P", "why"))].into_iter().collect()),
        };
        ring.push(&queued("b"), 4, Micros(3), Some(9), placed);
        assert!(ring.of(Some("d/old")).is_empty(), "the oldest went");
        let json = serde_json::to_value(&*ring.of(Some("u-b"))[0]).unwrap();
        assert_eq!((&json["outcome"], &json["snapshotGeneration"]), (&"placed".into(), &9.into()));
        let plugin = serde_json::json!({"plugin": "ImageLocality", "raw": 7, "normalized": 2, "weighted": 6});
        assert_eq!((&json["best"][0]["plugins"][0], &json["profileGeneration"]), (&plugin, &4.into()));
        assert_eq!(json["refused"]["m"]["reasons"][0], "why");
    }
}
