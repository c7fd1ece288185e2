//! Tells the pod and its readers: PodScheduled=False and events, on a lane of their own, so that a
//! backlog of them never holds up a binding. PodScheduled=True is the API server's to write.

use crate::explain::assigned;
use crate::model::{PodInfo, ScheduledCondition};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use podway_api::{SchedulerProfile, SchedulerProfileStatus};
use podway_flow::{Phase, stuck};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Something to tell.
#[derive(Debug)]
pub enum Notice {
    /// The pod was bound.
    Scheduled(Arc<PodInfo>, String),
    /// The pod was not: reason (`Unschedulable` or `SchedulerError`), message, and where it is nominated
    /// to now: `None` for no change, empty for nowhere.
    Failed(Arc<PodInfo>, &'static str, String, Option<String>),
    /// The pod has waited too long for a node, in a line; `None`: it has got on.
    Stuck(Arc<PodInfo>, Option<String>),
    /// A `SchedulerProfile` was read.
    Profile(Box<Verdict>),
}

/// What is said of a `SchedulerProfile`.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    name: String,
    status: SchedulerProfileStatus,
}

impl Verdict {
    /// That of the object's generation: live, or what is wrong with it.
    #[must_use]
    pub fn of(object: &SchedulerProfile, live: Option<i64>, fault: Option<String>) -> Self {
        let generation = object.metadata.generation;
        let (status, reason) = if fault.is_none() { ("True", "Live") } else { ("False", "Invalid") };
        let before = object.status.iter().flat_map(|s| &s.conditions).find(|c| c.type_ == ACCEPTED);
        // The time moves only when the status flips.
        let since = before.filter(|c| c.status == status).map(|c| c.last_transition_time.clone());
        let condition = Condition {
            type_: ACCEPTED.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: fault.map(|f| podway_flow::record::bounded(&f, 1024)).unwrap_or_default(),
            observed_generation: generation,
            last_transition_time: since.unwrap_or_else(|| Time(k8s_openapi::jiff::Timestamp::now())),
        };
        let status = SchedulerProfileStatus {
            observed_generation: generation,
            live_generation: live,
            conditions: vec![condition],
        };
        Verdict { name: object.metadata.name.clone().unwrap_or_default(), status }
    }
}

const ACCEPTED: &str = "Accepted";

/// The patch of the condition; `None` when it says so already. `now` is RFC 3339.
#[must_use]
pub fn patch(pod: &PodInfo, reason: &str, message: &str, now: &str) -> Option<serde_json::Value> {
    let before = pod.condition.as_ref();
    let wanted = ScheduledCondition {
        status: "False".to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: pod.generation,
        last_transition: before.and_then(|b| b.last_transition.clone()),
    };
    if before == Some(&wanted) {
        return None;
    }
    // The time moves only when the status flips.
    let since = before.filter(|b| b.status == "False").and_then(|b| b.last_transition.clone());
    Some(serde_json::json!({
        "metadata": {"uid": pod.uid},
        "status": {"conditions": [{
            "type": "PodScheduled",
            "status": "False",
            "reason": reason,
            "message": message,
            "observedGeneration": pod.generation,
            "lastTransitionTime": since.unwrap_or_else(|| now.to_owned()),
        }]}
    }))
}

/// The lane: runs until every sender is gone. A write that fails is logged: the pod's next
/// failure says the same again.
pub async fn lane(client: kube::Client, mut notices: mpsc::UnboundedReceiver<Notice>) {
    // An event comes from the profile of its pod, as upstream's do.
    let mut recorders: BTreeMap<String, Recorder> = BTreeMap::new();
    while let Some(notice) = notices.recv().await {
        let (pod, event) = match notice {
            Notice::Scheduled(pod, node) => {
                let note = assigned(&pod, &node);
                (pod, event(EventType::Normal, "Scheduled", note, "Binding"))
            }
            Notice::Failed(pod, reason, message, nominated) => {
                // Said once: a pod that is tried again and again must not flood the API with the same words.
                if !write_condition(&client, &pod, reason, &message, nominated.as_deref()).await {
                    continue;
                }
                (pod, event(EventType::Warning, "FailedScheduling", message, "Scheduling"))
            }
            Notice::Stuck(pod, line) => {
                write_stuck(&client, &pod, line.as_deref()).await;
                let Some(line) = line else { continue };
                (pod, event(EventType::Warning, stuck::EVENT, line, "Scheduling"))
            }
            Notice::Profile(verdict) => {
                write_verdict(&client, *verdict).await;
                continue;
            }
        };
        let recorder = recorders.entry(pod.scheduler_name.clone()).or_insert_with(|| {
            let reporter = Reporter { controller: pod.scheduler_name.clone(), instance: None };
            Recorder::new(client.clone(), reporter)
        });
        if let Err(error) = recorder.publish(&event, &reference(&pod)).await {
            tracing::warn!(pod = pod.key(), %error, "an event was not written");
        }
    }
}

/// Writes `status.nominatedNodeName`, empty for none.
pub(crate) async fn nominate(client: &kube::Client, pod: &PodInfo, node: &str) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let patch = serde_json::json!({"metadata": {"uid": pod.uid}, "status": nomination(node)});
    api.patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch)).await.map(drop)
}

/// The field as a patch has it.
fn nomination(node: &str) -> serde_json::Value {
    serde_json::json!({"nominatedNodeName": Some(node).filter(|n| !n.is_empty())})
}

async fn write_verdict(client: &kube::Client, verdict: Verdict) {
    let Verdict { name, status } = verdict;
    let api: Api<SchedulerProfile> = Api::all(client.clone());
    let patch = serde_json::json!({"status": {
        "observedGeneration": status.observed_generation,
        // A null takes it away.
        "liveGeneration": status.live_generation,
        "conditions": status.conditions,
    }});
    if let Err(error) = api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
        tracing::warn!(profile = name, %error, "the status of a profile was not written");
    }
}

/// The condition `podway.dev/Stuck`, or that it no longer holds.
fn stuck_patch(pod: &PodInfo, line: Option<&str>, now: &str) -> serde_json::Value {
    let (status, reason) = match line {
        Some(_) => ("True", Phase::Queued.name()),
        None => ("False", stuck::GOT_ON),
    };
    serde_json::json!({
        "metadata": {"uid": pod.uid},
        "status": {"conditions": [{
            "type": stuck::CONDITION,
            "status": status,
            "reason": reason,
            "message": line,
            "observedGeneration": pod.generation,
            "lastTransitionTime": now,
        }]}
    })
}

async fn write_stuck(client: &kube::Client, pod: &PodInfo, line: Option<&str>) {
    let patch = stuck_patch(pod, line, &now());
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    if let Err(error) = api.patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
        tracing::warn!(pod = pod.key(), %error, "that the pod is stuck was not written");
    }
}

fn now() -> String {
    k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// False when the pod says so already.
async fn write_condition(
    client: &kube::Client,
    pod: &PodInfo,
    reason: &str,
    message: &str,
    nominated: Option<&str>,
) -> bool {
    let patch = match (patch(pod, reason, message, &now()), nominated) {
        (None, None) => return false,
        (Some(patch), None) => patch,
        (patch, Some(node)) => {
            let mut patch = patch.unwrap_or_else(|| serde_json::json!({"metadata": {"uid": pod.uid}}));
            patch["status"]["nominatedNodeName"] = nomination(node)["nominatedNodeName"].clone();
            patch
        }
    };
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    if let Err(error) = api.patch_status(&pod.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
        tracing::warn!(pod = pod.key(), %error, "PodScheduled was not written");
    }
    true
}

fn event(type_: EventType, reason: &str, note: String, action: &str) -> Event {
    let note = truncated(note);
    Event { type_, reason: reason.to_owned(), note: Some(note), action: action.to_owned(), secondary: None }
}

/// Upstream's `truncateMessage`: an event's note has at most 1,024 bytes.
fn truncated(note: String) -> String {
    const LIMIT: usize = 1024;
    const SUFFIX: &str = " ...";
    if note.len() <= LIMIT {
        return note;
    }
    let end = (0..=LIMIT - SUFFIX.len()).rev().find(|&i| note.is_char_boundary(i)).unwrap_or(0);
    format!("{}{SUFFIX}", &note[..end])
}

/// The pod as the subject of an event.
pub(crate) fn reference(pod: &PodInfo) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_keeps_its_time_until_it_flips() {
        let mut object = SchedulerProfile::new("p", podway_api::ProfileSpec::default());
        object.metadata.generation = Some(2);
        let first = Verdict::of(&object, Some(2), None);
        let old = Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        let mut status = first.status.clone();
        assert_eq!((status.live_generation, status.conditions[0].status.as_str()), (Some(2), "True"));
        status.conditions[0].last_transition_time = old.clone();
        object.status = Some(status);
        object.metadata.generation = Some(3);
        let same = Verdict::of(&object, Some(3), None).status;
        assert_eq!((same.observed_generation, &same.conditions[0].last_transition_time), (Some(3), &old));
        let bad = Verdict::of(&object, Some(2), Some("no".into())).status;
        let c = &bad.conditions[0];
        assert_eq!((c.status.as_str(), c.reason.as_str(), c.message.as_str()), ("False", "Invalid", "no"));
        assert!(c.last_transition_time != old && bad.live_generation == Some(2));
    }

    #[test]
    fn a_stuck_pod_says_so_and_takes_it_back() {
        let pod = PodInfo { uid: "u".into(), generation: Some(2), ..PodInfo::default() };
        let condition = |line| stuck_patch(&pod, line, "T")["status"]["conditions"][0].clone();
        assert_eq!(
            condition(Some("Queued for 61.0 s")),
            serde_json::json!({"type": "podway.dev/Stuck", "status": "True", "reason": "Queued",
                "message": "Queued for 61.0 s", "observedGeneration": 2, "lastTransitionTime": "T"})
        );
        let back = condition(None);
        // A null takes the message away.
        assert_eq!(
            (&back["status"], &back["reason"], &back["message"]),
            (&"False".into(), &"GotOn".into(), &serde_json::Value::Null)
        );
    }

    #[test]
    fn a_condition_is_patched_only_when_it_changes_and_keeps_its_time() {
        let mut pod = PodInfo { generation: Some(3), ..PodInfo::default() };
        let first = patch(&pod, "Unschedulable", "m", "T1").unwrap();
        assert_eq!(first["status"]["conditions"][0]["lastTransitionTime"], "T1");
        pod.condition = Some(ScheduledCondition {
            status: "False".into(),
            reason: "Unschedulable".into(),
            message: "m".into(),
            observed_generation: Some(3),
            last_transition: Some("T1".into()),
        });
        assert!(patch(&pod, "Unschedulable", "m", "T2").is_none());
        let other = patch(&pod, "Unschedulable", "n", "T2").unwrap();
        assert_eq!(other["status"]["conditions"][0]["lastTransitionTime"], "T1");
    }
}
