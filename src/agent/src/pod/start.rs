//! The record of a pod's start, gathered from its four writers: the API server (coarse, then from the
//! audit log), the scheduler (annotation), the agent, the runtime (call metadata). Pure.
//!
//! It is open until the pod was told to be Ready, and then closed for good: what a container does
//! later (restarts) is no part of a start. Attempts are numbered here, since each call knows only its
//! own; of many attempts at one part the first and the latest two are kept.

use k8s_openapi::api::core::v1 as api;
use podway_flow::{Flow, Micros, Outcome, Phase, PodRef, Record, Resolution, Writer};
use std::collections::BTreeMap;
use std::sync::Arc;

/// How many attempts at one part are kept.
const ATTEMPTS: usize = 3;
/// Evidence: the object's revision.
const VERSION: &str = "resourceVersion";

/// A pod's start.
#[derive(Clone, Debug)]
pub struct Start {
    /// Shared with whoever is shown it: a pod that stays has one of it.
    flow: Arc<Flow>,
    closed: bool,
}

/// A finished record of the agent's own making.
#[must_use]
pub fn record(
    phase: Phase,
    subject: Option<&str>,
    start: Micros,
    end: Option<Micros>,
    reason: &str,
) -> Record {
    Record {
        phase,
        subject: subject.map(str::to_owned),
        writer: Writer::Agent,
        attempt: 1,
        start,
        end: end.map(|e| e.max(start)),
        queued_micros: 0,
        outcome: if end.is_some() { Outcome::Succeeded } else { Outcome::Running },
        reason: reason.to_owned(),
        message: String::new(),
        resolution: Resolution::Micros,
        evidence: BTreeMap::new(),
    }
}

impl Start {
    /// The start of `pod`, which the agent saw at `seen`.
    #[must_use]
    pub fn new(pod: &api::Pod, seen: Micros) -> Self {
        let mut flow = Flow { pod: podway_api::stock::reference(pod), records: Vec::new() };
        if let Some(created) = &pod.metadata.creation_timestamp {
            // In the words of the audit log, which may tell the same better later on.
            let at = Micros(created.0.as_microsecond());
            for (phase, reason) in [(Phase::Requested, "Authorized"), (Phase::Persisted, "Created")] {
                let mut coarse = record(phase, None, at, Some(at), reason);
                (coarse.writer, coarse.resolution) = (Writer::ApiServer, Resolution::Second);
                flow.records.push(coarse);
            }
        }
        // The revision that the scheduler first saw is that of the creation, if it placed the pod at
        // its first attempt and nobody changed the spec (a gate taken away) before.
        let untouched = pod.metadata.generation.is_none_or(|g| g <= 1);
        for mut told in podway_api::placement::told(pod) {
            if told.phase == Phase::Queued
                && told.attempt == 1
                && untouched
                && let Some(version) = told.evidence.get(VERSION)
                && let Some(persisted) = flow.records.iter_mut().find(|r| r.phase == Phase::Persisted)
            {
                persisted.evidence.insert(VERSION.to_owned(), version.clone());
            }
            if told.phase == Phase::Bound && told.end.is_none() {
                // The Binding was answered before the watch told of it; the audit log knows better.
                told.end = Some(seen.max(told.start));
                told.outcome = Outcome::Succeeded;
                told.reason = "Bound".to_owned();
                told.evidence.insert("end".to_owned(), "seen by the agent".to_owned());
            }
            flow.records.push(told);
        }
        let mut observed = record(Phase::Observed, None, seen, Some(seen), "Seen");
        if let Some(version) = &pod.metadata.resource_version {
            observed.evidence.insert(VERSION.to_owned(), version.clone());
        }
        flow.records.push(observed);
        Start { flow: Arc::new(flow), closed: false }
    }

    /// Whether it is over.
    #[must_use]
    pub fn closed(&self) -> bool {
        self.closed
    }

    /// It is over: nothing is added any more.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// The same, with `told` for what it has: what people were told in the pod's conditions.
    #[must_use]
    pub fn of(mut self, told: Flow) -> Self {
        self.flow = Arc::new(told);
        self
    }

    /// It is over, and it is what people were told in the pod's conditions (`told`), and `last`.
    pub fn seal(&mut self, mut told: Flow, last: Vec<Record>) {
        told.records.extend(last);
        told.records.shrink_to_fit();
        self.flow = Arc::new(told);
        self.closed = true;
    }

    /// Adds records, numbering the attempts at each part.
    pub fn absorb(&mut self, records: impl IntoIterator<Item = Record>) {
        if self.closed {
            return;
        }
        let all = &mut Arc::make_mut(&mut self.flow).records;
        for mut record in records {
            let same = |r: &Record| r.phase == record.phase && r.subject == record.subject;
            // Another container with the same image finds it present: no second attempt.
            let done = |r: &Record| matches!(r.outcome, Outcome::Succeeded | Outcome::Skipped);
            if record.outcome == Outcome::Skipped && all.iter().any(|r| same(r) && done(r)) {
                continue;
            }
            let before = all.iter().filter(|r| same(r)).map(|r| r.attempt).max();
            if let Some(before) = before {
                record.attempt = record.attempt.max(before.saturating_add(1));
            }
            let kept: Vec<usize> = (0..all.len()).filter(|&i| same(&all[i])).collect();
            if kept.len() >= ATTEMPTS {
                all.remove(kept[1]);
            }
            all.push(record);
        }
    }

    /// Lays the audit log's records over: its times where the flow has none in µs, and the Binding's end.
    pub fn audit(&mut self, records: Vec<Record>) {
        let bound = records.iter().find(|r| r.phase == Phase::Bound).and_then(|r| r.end);
        let flow = Arc::make_mut(&mut self.flow);
        let own = flow.records.iter_mut().find(|r| r.phase == Phase::Bound);
        if let (Some(end), Some(own)) = (bound, own)
            && own.evidence.remove("end").is_some()
        {
            own.end = Some(end.max(own.start));
        }
        podway_flow::audit::overlay(flow, records);
        // The watch's lag: from the Binding's answer to the agent's sight of it.
        if let Some(end) = bound
            && let Some(observed) = flow.records.iter_mut().find(|r| r.phase == Phase::Observed)
        {
            observed.evidence.insert("watchLagMicros".to_owned(), observed.start.since(end).to_string());
        }
    }

    /// The flow with what runs now.
    #[must_use]
    pub fn flow(&self, open: impl IntoIterator<Item = Record>) -> Flow {
        let mut flow = (*self.flow).clone();
        for mut record in open {
            let before =
                flow.records.iter().filter(|r| r.phase == record.phase && r.subject == record.subject);
            record.attempt = before.map(|r| r.attempt).max().unwrap_or(0) + 1;
            flow.records.push(record);
        }
        flow
    }

    /// The same, to be shown: the one that there is while nothing runs.
    #[must_use]
    pub fn shown(&self, open: Vec<Record>) -> Arc<Flow> {
        if open.is_empty() { Arc::clone(&self.flow) } else { Arc::new(self.flow(open)) }
    }

    /// Which pod.
    #[must_use]
    pub fn pod(&self) -> &PodRef {
        &self.flow.pod
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podway_flow::wire;
    use serde_json::json;

    #[test]
    fn a_start_is_gathered_from_its_writers() {
        let mut bound = record(Phase::Bound, None, Micros(10), None, "Binding");
        bound.writer = Writer::ApiServer;
        let mut queued = record(Phase::Queued, None, Micros(8), Some(Micros(9)), "Popped");
        queued.evidence.insert(VERSION.to_owned(), "7".to_owned());
        let forged = record(Phase::Ready, None, Micros(1), Some(Micros(2)), "Ready");
        let text = String::from_utf8(wire::encode(&[queued, bound, forged])).unwrap();
        let pod: api::Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u",
            "resourceVersion": "9", "creationTimestamp": "1970-01-01T00:00:00Z",
            "annotations": {wire::SCHEDULING_ANNOTATION: text}}}))
            .unwrap();
        let mut start = Start::new(&pod, Micros(30));
        let flow = start.flow([record(Phase::ImagesPulled, Some("i"), Micros(40), None, "Running")]);
        assert!(flow.summary(Phase::Ready).is_none(), "the annotation is the scheduler's only");
        assert_eq!(flow.summary(Phase::Bound).unwrap().end, Some(Micros(30)));
        assert_eq!(flow.summary(Phase::ImagesPulled).unwrap().outcome, Outcome::Running);
        let before = podway_flow::conditions::for_pod(&start.flow([]));
        let mut requested = record(Phase::Requested, None, Micros(5), Some(Micros(5)), "Authorized");
        requested.writer = Writer::ApiServer;
        let persisted = record(Phase::Persisted, None, Micros(5), Some(Micros(8)), "Created");
        let bound = record(Phase::Bound, None, Micros(11), Some(Micros(20)), "Bound");
        start.audit(vec![requested, persisted, bound]);
        let after = podway_flow::conditions::for_pod(&start.flow([]));
        let words = |all: &[podway_flow::conditions::Condition]| -> Vec<_> {
            all.iter().map(|c| (c.status, c.reason.clone(), c.message.clone())).collect()
        };
        assert_eq!(words(&before), words(&after), "the audit log only says it finer");
        let flow = start.flow([]);
        assert_eq!(flow.summary(Phase::Bound).unwrap().end, Some(Micros(20)));
        assert_eq!(flow.summary(Phase::Requested).unwrap().start, Micros(5));
        assert_eq!(flow.records_of(Phase::Persisted)[0].evidence[VERSION], "7");
        assert_eq!(flow.records_of(Phase::Observed)[0].evidence["watchLagMicros"], "10");
    }

    #[test]
    fn attempts_are_numbered_and_bounded() {
        let pod = api::Pod::default();
        let mut start = Start::new(&pod, Micros(1));
        for at in 0..10 {
            let mut failed = record(Phase::ImagesPulled, Some("i"), Micros(at), Some(Micros(at)), "Failed");
            failed.outcome = Outcome::Failed;
            start.absorb([failed]);
        }
        let flow = start.flow([]);
        let attempts: Vec<u32> = flow.records_of(Phase::ImagesPulled).iter().map(|r| r.attempt).collect();
        assert_eq!(attempts, [1, 9, 10]);
        start.close();
        start.absorb([record(Phase::ImagesPulled, Some("i"), Micros(99), Some(Micros(99)), "Pulled")]);
        assert_eq!(start.flow([]), flow);
    }
}
