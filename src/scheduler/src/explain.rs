//! A decision as flow records: what the pod waited for, why nodes fell, who scored what. Below it, the questions:
//! [`world`] is a cluster to ask them of, [`search`] finds the smallest [`change`] that lets a pod in.

pub mod change;
pub mod ring;
pub mod search;
pub mod world;

use crate::cycle::{Decision, counted};
use crate::model::PodInfo;
use crate::queue::QueuedPod;
use podway_flow::{Micros, Outcome, Phase, Record, Recorder, wire};

/// How many nodes are named with their reason; the rest are in the counts.
const NAMED_NODES: usize = 16;
/// How many of the best are kept with their scores.
pub(crate) const TOP: usize = 5;

/// The document for the Binding's annotation.
#[must_use]
pub fn annotation_of(records: &[Record]) -> String {
    String::from_utf8_lossy(&wire::encode(records)).into_owned()
}

/// A decision as far as it is told of. Hundreds may wait for their binding, each with what every node of thousands
/// said to it: that is counted and let go.
#[derive(Clone, Debug)]
pub struct Told {
    decision: Decision,
    /// All refusals, counted; `decision` has the first of them.
    rejected: String,
}

impl From<Decision> for Told {
    fn from(mut decision: Decision) -> Self {
        let rejected = counted(decision.rejected.values());
        decision.rejected.keep(NAMED_NODES);
        Told { decision, rejected }
    }
}

/// Queued, NodesFiltered, NodesScored, and Bound as begun.
#[must_use]
pub fn records(recorder: &Recorder, queued: &QueuedPod, told: &Told, bind_start: Micros) -> Vec<Record> {
    let Told { decision, rejected } = told;
    let times = decision.times;
    let attempt = queued.attempts.max(1);
    let ended = |mut record: Record, end: Micros| {
        record.end = Some(end.max(record.start));
        record
    };

    let mut span = recorder.begin_at(Phase::Queued, None, queued.added);
    span.attempt(attempt).queued(times.started.since(queued.added));
    span.note("priority", queued.pod.priority).note("readyMicros", times.started.since(queued.ready_since));
    // Until somebody writes to it, a pod has the revision that it was created with.
    if let Some(version) = queued.pod.version.as_ref().filter(|_| queued.pod.condition.is_none()) {
        span.note("resourceVersion", version);
    }
    let waited = ended(span.succeed("Popped"), times.started);

    let mut span = recorder.begin_at(Phase::NodesFiltered, None, times.started);
    span.attempt(attempt).note("nodes", decision.nodes).note("feasible", decision.feasible);
    span.note("snapshotGeneration", decision.generation);
    if !rejected.is_empty() {
        span.note("rejected", rejected);
    }
    for (node, status) in decision.rejected.iter() {
        span.note(&format!("node/{node}"), format!("{}: {}", status.plugin, status.reasons.join(", ")));
    }
    let filtered = ended(span.succeed("Filtered"), times.filtered);

    let mut span = recorder.begin_at(Phase::NodesScored, None, times.filtered);
    span.attempt(attempt).note("chosen", &decision.node);
    if let Some(margin) = decision.margin {
        span.note("margin", margin);
    }
    for score in decision.scores.iter().take(TOP) {
        let parts: Vec<String> = score
            .by_plugin
            .iter()
            .map(|(plugin, _, normal, weight)| format!("{plugin}={normal}x{weight}"))
            .collect();
        span.note(&format!("score/{}", score.node), format!("{} ({})", score.total, parts.join(" ")));
    }
    let scored = if decision.scores.is_empty() { span.skip("OneFeasible") } else { span.succeed("Scored") };
    let scored = ended(scored, times.scored);

    // The Binding carries its own start only: its end is not known before it is answered.
    let mut span = recorder.begin_at(Phase::Bound, None, bind_start);
    span.attempt(attempt).note("node", &decision.node).note("scheduler", &queued.pod.scheduler_name);
    let mut bound = span.succeed("Binding");
    (bound.end, bound.outcome) = (None, Outcome::Running);
    // They travel in the return value; the recorder would only grow.
    drop(recorder.take());
    vec![waited, filtered, scored, bound]
}

/// What upstream's `Scheduled` event says.
#[must_use]
pub fn assigned(pod: &PodInfo, node: &str) -> String {
    format!("Successfully assigned {} to {node}", pod.key())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cycle::{NodeScore, Times};
    use crate::framework::Status;
    use podway_flow::{Clock, Writer};
    use std::collections::BTreeSet;
    use std::sync::Arc;

    #[test]
    fn a_decision_reads_back_as_four_records_with_their_evidence() {
        let queued = QueuedPod {
            pod: Arc::new(PodInfo {
                scheduler_name: "podway".into(),
                version: Some("7".into()),
                ..PodInfo::default()
            }),
            added: Micros(10),
            since: Micros(10),
            attempts: 2,
            failures: 0,
            rejecting: BTreeSet::new(),
            ready_since: Micros(12),
            hold: crate::queue::Hold::No,
            waits_since: Micros(10),
            stuck: false,
        };
        let score = |node: &str, total| NodeScore {
            node: node.into(),
            total,
            by_plugin: vec![("ImageLocality".into(), 7, 7, 1)],
        };
        let decision = Decision {
            node: "b".into(),
            feasible: 2,
            rejected: [("c", Status::unresolvable("NodeUnschedulable", "node(s) were unschedulable"))]
                .into_iter()
                .collect(),
            scores: vec![score("b", 9), score("a", 4)],
            margin: Some(5),
            nodes: 3,
            generation: 8,
            times: Times { started: Micros(20), filtered: Micros(30), scored: Micros(45) },
        };
        let recorder = Recorder::new(Writer::Scheduler, Clock::new());
        let text = annotation_of(&super::records(&recorder, &queued, &decision.into(), Micros(50)));
        let records = wire::decode(text.as_bytes()).unwrap();
        let phases: Vec<Phase> = records.iter().map(|r| r.phase).collect();
        assert_eq!(phases, [Phase::Queued, Phase::NodesFiltered, Phase::NodesScored, Phase::Bound]);
        let durations: Vec<Option<u64>> = records.iter().map(Record::duration).collect();
        assert_eq!(durations, [Some(10), Some(10), Some(15), None]);
        assert_eq!(records[0].evidence["resourceVersion"], "7");
        assert_eq!(records[1].evidence["rejected"], "1 node(s) were unschedulable");
        assert_eq!(records[2].evidence["margin"], "5");
        assert_eq!(records[2].evidence["score/b"], "9 (ImageLocality=7x1)");
        assert_eq!((records[3].start, records[3].outcome), (Micros(50), Outcome::Running));
        assert!(records.iter().all(|r| r.attempt == 2));
        assert!(recorder.snapshot().is_empty());
    }
}
