//! `PodFlow` (short name `pf`): a pod's flow as an object of the API, written by the agent alone.
//!
//! One per pod, of the pod's name, owned by the pod, so that it goes when the pod goes. Its status is
//! made from a [`Flow`] and reads back as the same flow: the pictures need nothing else. The whole object, as the
//! API server stores it, is kept within [`OBJECT_LIMIT`] ([`size`]).

#![expect(clippy::duplicated_attributes, reason = "kube's printcolumn attributes repeat their keys")]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, OwnerReference, Time};
use kube::CustomResource;
use kube::api::ObjectMeta;
use podway_flow::conditions::{self, Status};
use podway_flow::{Flow, Micros, Outcome, Phase, PodRef, Record, Resolution, Writer, picture};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

mod size;

pub use size::OBJECT_LIMIT;

/// Which pod the flow is of.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "podway.dev",
    version = "v1alpha1",
    kind = "PodFlow",
    plural = "podflows",
    shortname = "pf",
    namespaced,
    status = "PodFlowStatus",
    derive = "PartialEq",
    doc = "What happened to a pod on its way from the API request to running processes.",
    printcolumn(name = "PHASE", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "TOTAL", type_ = "string", json_path = ".status.total"),
    printcolumn(name = "SLOWEST", type_ = "string", json_path = ".status.slowest"),
    printcolumn(name = "NODE", type_ = "string", json_path = ".spec.nodeName"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct PodFlowSpec {
    /// The pod's name; its namespace is the object's.
    pub pod_name: String,
    /// The pod's UID: a pod made anew under the same name is another.
    #[serde(rename = "podUID")]
    pub pod_uid: String,
    /// The node; empty before the pod is bound.
    #[serde(default)]
    pub node_name: String,
}

/// What was recorded.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodFlowStatus {
    /// `Ready`, `<Phase>Failed`, or the phase that the pod is in.
    #[serde(default)]
    pub phase: String,
    /// From the request to Ready, e.g. `84.21 ms`; until then to the last end.
    #[serde(default)]
    pub total: String,
    /// The phase that took longest, e.g. `ContainersCreated 26.10 ms`.
    #[serde(default)]
    pub slowest: String,
    /// The generation of the `PodFlow` that this status is of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The first time in the flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_time: Option<MicroTime>,
    /// When the pod was Ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end_time: Option<MicroTime>,
    /// Whether evidence or messages were cut to keep the object small.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
    /// `Succeeded` for the whole, and one per phase: True = done.
    // Atomic, and no map by type as is usual: one writer makes them all of the same records, and a map's owners
    // would take 3 KB of managedFields in each object to say so.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub conditions: Vec<Condition>,
    /// The records, by start.
    #[serde(default)]
    pub records: Vec<FlowRecord>,
}

/// One phase, of one part of the pod, at one attempt. What is usual is left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FlowRecord {
    /// The phase.
    pub phase: Phase,
    /// A container, volume or image; absent for the pod as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Who wrote it; absent where it is the one whose phase it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writer: Option<Writer>,
    /// The attempt; absent for the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// When it began, in µs after the status' startTime. A record without is an earlier agent's, and not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_micros: Option<i64>,
    /// How long it took, in µs; absent while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_micros: Option<i64>,
    /// Of that time, what was spent waiting, in µs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_micros: Option<i64>,
    /// How it ended; absent for `Succeeded`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// A CamelCase word.
    pub reason: String,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// How fine the times are; absent for `Micros`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<Resolution>,
    /// Facts that show that it happened.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub evidence: BTreeMap<String, String>,
}

impl PodFlow {
    /// The object for a pod without its status (a server drops a status on create anyway).
    #[must_use]
    pub fn for_pod(pod: &PodRef) -> Self {
        PodFlow {
            metadata: ObjectMeta {
                name: Some(pod.name.clone()),
                namespace: Some(pod.namespace.clone()),
                owner_references: Some(vec![OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Pod".to_owned(),
                    name: pod.name.clone(),
                    uid: pod.uid.clone(),
                    ..OwnerReference::default()
                }]),
                ..ObjectMeta::default()
            },
            spec: PodFlowSpec {
                pod_name: pod.name.clone(),
                pod_uid: pod.uid.clone(),
                node_name: pod.node.clone(),
            },
            status: None,
        }
    }

    /// The object with its status.
    #[must_use]
    pub fn from_flow(flow: &Flow) -> Self {
        PodFlow { status: Some(PodFlowStatus::from_flow(flow, &[], None)), ..PodFlow::for_pod(&flow.pod) }
    }

    /// The flow that it holds.
    #[must_use]
    pub fn to_flow(&self) -> Flow {
        Flow {
            pod: PodRef {
                namespace: self.metadata.namespace.clone().unwrap_or_default(),
                name: self.spec.pod_name.clone(),
                uid: self.spec.pod_uid.clone(),
                node: self.spec.node_name.clone(),
            },
            records: self.status.iter().flat_map(PodFlowStatus::to_records).collect(),
        }
    }
}

impl PodFlowStatus {
    /// The status of a flow. `before` are the conditions that the object has: their transition times
    /// are kept unless a status flips. `generation` is the object's `metadata.generation`.
    #[must_use]
    pub fn from_flow(flow: &Flow, before: &[Condition], generation: Option<i64>) -> Self {
        let before: Vec<conditions::Condition> = before.iter().map(from_api).collect();
        let mut records: Vec<&Record> = flow.records.iter().collect();
        records.sort_by_key(|r| (r.start, r.phase, r.attempt));
        let ready = flow.summary(Phase::Ready).filter(|s| s.outcome == Outcome::Succeeded);
        let start = records.first().map(|r| micro_time(r.start));
        let mut status = PodFlowStatus {
            phase: phase(flow),
            total: flow.total().map(|total| format!("{} ms", picture::ms(total))).unwrap_or_default(),
            slowest: flow
                .slowest()
                .map(|(phase, micros)| format!("{phase} {} ms", picture::ms(micros)))
                .unwrap_or_default(),
            observed_generation: generation,
            start_time: start.clone(),
            end_time: ready.and_then(|s| s.end).map(micro_time),
            truncated: false,
            conditions: conditions::merge(&before, &conditions::for_podflow(flow))
                .iter()
                // The status says the generation once, for all of them.
                .map(|c| to_api(c, None))
                .collect(),
            records: records
                .into_iter()
                .map(|r| FlowRecord::from_record(r, micros(start.as_ref())))
                .collect(),
        };
        size::shrink(&mut status, &flow.pod);
        status
    }

    /// The records as they were.
    fn to_records(&self) -> impl Iterator<Item = Record> {
        let start = micros(self.start_time.as_ref());
        self.records.iter().filter_map(move |record| record.to_record(start))
    }
}

/// The PHASE column.
fn phase(flow: &Flow) -> String {
    let phases = flow.phases();
    if let Some(failed) = phases.iter().find(|s| s.outcome == Outcome::Failed) {
        return format!("{}Failed", failed.phase);
    }
    let running = phases.iter().find(|s| s.outcome == Outcome::Running);
    running.or(phases.last()).map(|s| s.phase.name().to_owned()).unwrap_or_default()
}

/// A time of the API's as ours; that of nothing is the beginning.
fn micros(time: Option<&MicroTime>) -> Micros {
    Micros(time.map_or(0, |time| time.0.as_microsecond()))
}

impl FlowRecord {
    fn from_record(record: &Record, start: Micros) -> Self {
        FlowRecord {
            phase: record.phase,
            subject: record.subject.clone(),
            writer: Some(record.writer).filter(|&writer| writer != record.phase.writer()),
            attempt: Some(record.attempt).filter(|&attempt| attempt != 1),
            start_micros: Some(record.start.0.saturating_sub(start.0)),
            duration_micros: record.end.map(|end| end.0.saturating_sub(record.start.0)),
            queued_micros: i64::try_from(record.queued_micros).ok().filter(|&queued| queued != 0),
            outcome: Some(record.outcome).filter(|&outcome| outcome != Outcome::Succeeded),
            reason: record.reason.clone(),
            message: record.message.clone(),
            resolution: Some(record.resolution).filter(|&r| r != Resolution::Micros),
            evidence: record.evidence.clone(),
        }
    }

    fn to_record(&self, start: Micros) -> Option<Record> {
        let start = Micros(start.0.saturating_add(self.start_micros?));
        Some(Record {
            phase: self.phase,
            subject: self.subject.clone(),
            writer: self.writer.unwrap_or(self.phase.writer()),
            attempt: self.attempt.unwrap_or(1),
            start,
            end: self.duration_micros.map(|took| Micros(start.0.saturating_add(took))),
            queued_micros: self.queued_micros.and_then(|queued| u64::try_from(queued).ok()).unwrap_or(0),
            outcome: self.outcome.unwrap_or(Outcome::Succeeded),
            reason: self.reason.clone(),
            message: self.message.clone(),
            resolution: self.resolution.unwrap_or_default(),
            evidence: self.evidence.clone(),
        })
    }
}

/// A time of ours as the API's, held to the years that RFC 3339 can write.
#[must_use]
pub fn micro_time(at: Micros) -> MicroTime {
    const YEAR_9999: i64 = 253_370_764_800_000_000;
    MicroTime(jiff::Timestamp::from_microsecond(at.0.clamp(0, YEAR_9999)).unwrap_or_default())
}

/// A condition of ours as the API's.
#[must_use]
pub fn to_api(condition: &conditions::Condition, generation: Option<i64>) -> Condition {
    Condition {
        type_: condition.type_.clone(),
        status: condition.status.as_str().to_owned(),
        reason: condition.reason.clone(),
        message: condition.message.clone(),
        last_transition_time: Time(micro_time(condition.last_transition).0),
        observed_generation: generation,
    }
}

/// A condition of the API as ours; a status that is neither True nor False reads as Unknown.
#[must_use]
pub fn from_api(condition: &Condition) -> conditions::Condition {
    conditions::Condition {
        type_: condition.type_.clone(),
        status: match condition.status.as_str() {
            "True" => Status::True,
            "False" => Status::False,
            _ => Status::Unknown,
        },
        reason: condition.reason.clone(),
        message: condition.message.clone(),
        last_transition: Micros(condition.last_transition_time.0.as_microsecond()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(phase: Phase, subject: Option<&str>, start: i64, end: Option<i64>) -> Record {
        const T0: i64 = 1_795_498_272_104_123;
        Record {
            phase,
            subject: subject.map(str::to_owned),
            writer: Writer::Runtime,
            attempt: 1,
            start: Micros(T0 + start),
            end: end.map(|end| Micros(T0 + end)),
            queued_micros: 7,
            outcome: if end.is_some() { Outcome::Succeeded } else { Outcome::Running },
            reason: "Done".to_owned(),
            message: String::new(),
            resolution: Resolution::Micros,
            evidence: [("key".to_owned(), "value".to_owned())].into(),
        }
    }

    fn flow(records: Vec<Record>) -> Flow {
        let pod = PodRef { namespace: "d".into(), name: "p".into(), uid: "u".into(), node: "n".into() };
        Flow { pod, records }
    }

    fn through_json(object: &PodFlow) -> PodFlow {
        serde_json::from_slice(&serde_json::to_vec(object).unwrap()).unwrap()
    }

    #[test]
    fn a_flow_survives_the_api_to_the_microsecond() {
        let mut failed = record(Phase::ImagesPulled, Some("i"), 10, Some(20));
        (failed.outcome, failed.attempt, failed.message) = (Outcome::Failed, 3, "no route".to_owned());
        let mut coarse = record(Phase::Ready, None, 1_000_000, None);
        coarse.resolution = Resolution::Second;
        let flow = flow(vec![record(Phase::Bound, None, 1, Some(9)), failed, coarse]);
        let object = PodFlow::from_flow(&flow);
        assert_eq!(through_json(&object).to_flow(), flow);
        let status = object.status.unwrap();
        assert_eq!(status.phase, "ImagesPulledFailed");
        // The runtime writes them all here: only the scheduler's phase and the agent's have to say so.
        let writers: Vec<_> = status.records.iter().map(|r| r.writer).collect();
        assert_eq!(writers, [Some(Writer::Runtime), None, Some(Writer::Runtime)]);
        assert!(through_json(&PodFlow::for_pod(&flow.pod)).to_flow().records.is_empty());
        // As the API server gives out what an earlier agent wrote: what the schema does not know is pruned.
        let mut before = serde_json::to_value(PodFlow::from_flow(&flow)).unwrap();
        for record in before["status"]["records"].as_array_mut().unwrap() {
            record.as_object_mut().unwrap().retain(|key, _| !key.ends_with("Micros"));
        }
        let read: PodFlow = serde_json::from_value(before).unwrap();
        assert!(read.to_flow().records.is_empty());
    }

    #[test]
    fn transition_times_are_kept_and_the_generation_is_said_once() {
        let before =
            PodFlowStatus::from_flow(&flow(vec![record(Phase::Bound, None, 0, Some(9))]), &[], Some(1));
        let later = flow(vec![record(Phase::Bound, None, 0, Some(5_000_000))]);
        let after = PodFlowStatus::from_flow(&later, &before.conditions, Some(2));
        let bound = |s: &PodFlowStatus| s.conditions.iter().find(|c| c.type_ == "Bound").unwrap().clone();
        assert_eq!(bound(&after).last_transition_time, bound(&before).last_transition_time);
        assert_eq!(after.observed_generation, Some(2));
        assert!(after.conditions.iter().all(|c| c.observed_generation.is_none()));
    }
}
