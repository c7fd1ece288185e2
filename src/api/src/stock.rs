//! The flow of a pod that our agent did not run, as far as its object and its events tell it.
//!
//! Conditions, container states and `creationTimestamp` have times of a second; events that carry
//! `eventTime` have µs. What nobody wrote down stays out: a gap, not a guess.

use crate::placement;
use k8s_openapi::api::core::v1::{ContainerStatus, Event, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use podway_flow::record::bounded;
use podway_flow::{Flow, Micros, Outcome, Phase, PodRef, Record, Resolution, Writer};
use std::collections::BTreeMap;

/// The longest fact that is kept, in bytes.
const FACT_LIMIT: usize = 512;

/// Reads a pod and its events. Events of other objects, or of another pod of this name, are left out.
#[must_use]
pub fn flow(pod: &Pod, events: &[Event]) -> Flow {
    let mut flow = Flow { pod: reference(pod), records: Vec::new() };
    let Some(created) = pod.metadata.creation_timestamp.as_ref().map(micros) else { return flow };
    let events: Vec<&Event> =
        events.iter().filter(|e| e.involved_object.uid.as_deref() == Some(flow.pod.uid.as_str())).collect();
    let mut persisted = made(Phase::Persisted, None, Writer::ApiServer, created, Some(created), "Created");
    fact(&mut persisted, "uid", pod.metadata.uid.as_deref());
    fact(&mut persisted, "resourceVersion", pod.metadata.resource_version.as_deref());
    flow.records.push(persisted);
    flow.records.extend(placed(pod, bound(pod, &events, created)));
    flow.records.extend(observed(pod));
    flow.records.extend(network(pod));
    flow.records.extend(images(&events));
    flow.records.extend(containers(pod, &events));
    flow.records.extend(ready(pod, created));
    flow.records.extend(ended(pod));
    flow
}

/// The pod's reference.
#[must_use]
pub fn reference(pod: &Pod) -> PodRef {
    PodRef {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        node: pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default(),
    }
}

fn bound(pod: &Pod, events: &[&Event], created: Micros) -> Option<Record> {
    let condition = condition(pod, "PodScheduled")?;
    if condition.status != "True" {
        let at = transition(condition).unwrap_or(created);
        let reason = condition.reason.as_deref().unwrap_or("Unschedulable");
        let mut record = made(Phase::Bound, None, Writer::Scheduler, created, Some(at.max(created)), reason);
        record.outcome = Outcome::Failed;
        record.message = bounded(condition.message.as_deref().unwrap_or_default(), Record::MESSAGE_LIMIT);
        return Some(record);
    }
    let event = events.iter().find(|e| e.reason.as_deref() == Some("Scheduled"));
    let at = transition(condition)?.max(created);
    let mut record = made(Phase::Bound, None, Writer::Scheduler, created, Some(at), "Bound");
    fact(&mut record, "node", pod.spec.as_ref().and_then(|s| s.node_name.as_deref()));
    fact(&mut record, "event", event.and_then(|e| e.message.as_deref()));
    Some(record)
}

/// Where our scheduler placed it, its own records go before, and say when the binding began; its end was told to
/// nobody with more than a second's resolution.
fn placed(pod: &Pod, bound: Option<Record>) -> Vec<Record> {
    let mut told = placement::told(pod);
    let begun = told.iter().position(|r| r.phase == Phase::Bound).map(|at| told.remove(at).start);
    told.retain(|r| r.phase != Phase::Bound);
    told.extend(bound.map(|mut bound| {
        if let Some(begun) = begun.filter(|_| bound.outcome == Outcome::Succeeded) {
            (bound.start, bound.end) = (begun, bound.end.map(|end| end.max(begun)));
        }
        bound
    }));
    told
}

fn observed(pod: &Pod) -> Option<Record> {
    let at = pod.status.as_ref()?.start_time.as_ref().map(micros)?;
    Some(made(Phase::Observed, None, Writer::Agent, at, Some(at), "Observed"))
}

fn network(pod: &Pod) -> Option<Record> {
    let condition = condition(pod, "PodReadyToStartContainers").filter(|c| c.status == "True")?;
    let at = transition(condition)?;
    let start = pod.status.as_ref()?.start_time.as_ref().map_or(at, micros);
    let mut record = made(Phase::NetworkConfigured, None, Writer::Agent, start, Some(at.max(start)), "Ready");
    fact(&mut record, "ip", pod.status.as_ref().and_then(|s| s.pod_ip.as_deref()));
    Some(record)
}

/// Pairs of `Pulling` and `Pulled`; `Pulled` alone says that the image was there.
fn images(events: &[&Event]) -> Vec<Record> {
    let mut begun: BTreeMap<String, (Micros, Resolution)> = BTreeMap::new();
    let mut ordered: Vec<(&&Event, (Micros, Resolution))> =
        events.iter().filter_map(|e| Some((e, event_time(e)?))).collect();
    ordered.sort_by_key(|&(_, (at, _))| at);
    let mut records = Vec::new();
    for (event, (at, resolution)) in ordered {
        let part = container_of(event);
        match event.reason.as_deref() {
            Some("Pulling") => {
                begun.insert(part, (at, resolution));
            }
            Some("Pulled") => {
                let (start, from) = begun.remove(&part).unwrap_or((at, resolution));
                let mut record =
                    made(Phase::ImagesPulled, Some(&part), Writer::Agent, start, Some(at), "Pulled");
                record.resolution = coarser(from, resolution);
                fact(&mut record, "event", event.message.as_deref());
                records.push(record);
            }
            _ => {}
        }
    }
    for (part, (start, resolution)) in begun {
        let mut record = made(Phase::ImagesPulled, Some(&part), Writer::Agent, start, None, "Pulling");
        record.resolution = resolution;
        records.push(record);
    }
    records
}

fn containers(pod: &Pod, events: &[&Event]) -> Vec<Record> {
    let Some(status) = &pod.status else { return Vec::new() };
    let init = status.init_container_statuses.iter().flatten();
    let mut records = Vec::new();
    for container in init.chain(status.container_statuses.iter().flatten()) {
        let created = events
            .iter()
            .filter(|e| e.reason.as_deref() == Some("Created") && container_of(e) == container.name)
            .find_map(|e| event_time(e));
        if let Some((at, resolution)) = created {
            let phase = Phase::ContainersCreated;
            let mut record = made(phase, Some(&container.name), Writer::Agent, at, Some(at), "Created");
            record.resolution = resolution;
            records.push(record);
        }
        records.extend(started(container));
        records.extend(waiting(pod, container));
    }
    records
}

fn started(container: &ContainerStatus) -> Option<Record> {
    let state = container.state.as_ref()?;
    let at = match (&state.running, &state.terminated) {
        (Some(running), _) => running.started_at.as_ref(),
        (None, Some(terminated)) => terminated.started_at.as_ref(),
        _ => None,
    };
    let at = micros(at?);
    let mut record =
        made(Phase::ContainersStarted, Some(&container.name), Writer::Agent, at, Some(at), "Started");
    record.attempt = u32::try_from(container.restart_count).unwrap_or(0).saturating_add(1);
    fact(&mut record, "containerId", container.container_id.as_deref());
    fact(&mut record, "imageId", Some(&container.image_id));
    Some(record)
}

/// A container that waits for a reason other than its turn.
fn waiting(pod: &Pod, container: &ContainerStatus) -> Option<Record> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    let phase = match reason {
        "ContainerCreating" | "PodInitializing" => return None,
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => Phase::ImagesPulled,
        "CreateContainerConfigError" | "CreateContainerError" => Phase::ContainersCreated,
        _ => Phase::ContainersStarted,
    };
    let at = pod.status.as_ref()?.start_time.as_ref().map(micros)?;
    let mut record = made(phase, Some(&container.name), Writer::Agent, at, Some(at), reason);
    record.outcome = Outcome::Failed;
    record.attempt = u32::try_from(container.restart_count).unwrap_or(0).saturating_add(2);
    record.message = bounded(waiting.message.as_deref().unwrap_or_default(), Record::MESSAGE_LIMIT);
    Some(record)
}

fn ready(pod: &Pod, created: Micros) -> Option<Record> {
    let condition = condition(pod, "Ready").filter(|c| c.status == "True")?;
    let at = transition(condition)?;
    let started = pod
        .status
        .iter()
        .flat_map(|s| s.container_statuses.iter().flatten())
        .filter_map(|c| c.state.as_ref()?.running.as_ref()?.started_at.as_ref().map(micros))
        .max();
    let start = started.unwrap_or(created).min(at);
    Some(made(Phase::Ready, None, Writer::Agent, start, Some(at), "Ready"))
}

/// A pod at its end says so when its last container has ended: nothing is waited for any more.
fn ended(pod: &Pod) -> Option<Record> {
    let status = pod.status.as_ref()?;
    let phase = status.phase.as_deref().filter(|phase| matches!(*phase, "Succeeded" | "Failed"))?;
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let at =
        all.filter_map(|c| c.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(micros)).max()?;
    Some(made(Phase::StatusReported, None, Writer::Agent, at, Some(at), phase))
}

fn made(
    phase: Phase,
    subject: Option<&str>,
    writer: Writer,
    start: Micros,
    end: Option<Micros>,
    reason: &str,
) -> Record {
    Record {
        phase,
        subject: subject.map(str::to_owned),
        writer,
        attempt: 1,
        start,
        end,
        queued_micros: 0,
        outcome: if end.is_some() { Outcome::Succeeded } else { Outcome::Running },
        reason: bounded(reason, 64),
        message: String::new(),
        resolution: Resolution::Second,
        evidence: BTreeMap::new(),
    }
}

fn fact(record: &mut Record, key: &str, value: Option<&str>) {
    if let Some(value) = value.filter(|v| !v.is_empty()) {
        record.evidence.insert(key.to_owned(), bounded(value, FACT_LIMIT));
    }
}

fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.iter().flatten().find(|c| c.type_ == type_)
}

fn transition(condition: &PodCondition) -> Option<Micros> {
    condition.last_transition_time.as_ref().map(micros)
}

fn micros(time: &Time) -> Micros {
    Micros(time.0.as_microsecond())
}

fn event_time(event: &Event) -> Option<(Micros, Resolution)> {
    if let Some(time) = &event.event_time {
        return Some((Micros(time.0.as_microsecond()), Resolution::Micros));
    }
    let time = event.first_timestamp.as_ref().or(event.last_timestamp.as_ref())?;
    Some((micros(time), Resolution::Second))
}

fn coarser(a: Resolution, b: Resolution) -> Resolution {
    if a == Resolution::Second { a } else { b }
}

/// `web` of the field path `spec.containers{web}`.
fn container_of(event: &Event) -> String {
    let path = event.involved_object.field_path.as_deref().unwrap_or_default();
    path.split_once('{').and_then(|(_, rest)| rest.strip_suffix('}')).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "d", "name": "p", "uid": "u", "resourceVersion": "9",
                "creationTimestamp": "2026-11-24T05:31:12Z"},
            "spec": {"nodeName": "n", "containers": []},
            "status": {
                "startTime": "2026-11-24T05:31:12Z", "podIP": "10.0.0.7",
                "conditions": [
                    {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-11-24T05:31:12Z"},
                    {"type": "PodReadyToStartContainers", "status": "True", "lastTransitionTime": "2026-11-24T05:31:14Z"},
                    {"type": "Ready", "status": "True", "lastTransitionTime": "2026-11-24T05:31:16Z"}],
                "containerStatuses": [
                    {"name": "web", "image": "i", "imageID": "i@sha256:0", "ready": true, "restartCount": 0,
                     "containerID": "cri://1", "state": {"running": {"startedAt": "2026-11-24T05:31:15Z"}}},
                    {"name": "bad", "image": "i", "imageID": "", "ready": false, "restartCount": 0,
                     "state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off"}}}]
            }
        }))
        .unwrap()
    }

    fn event(reason: &str, uid: &str, time: &str) -> Event {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "e"}, "reason": reason, "eventTime": time, "message": "m",
            "involvedObject": {"uid": uid, "fieldPath": "spec.containers{web}"}
        }))
        .unwrap()
    }

    #[test]
    fn what_the_object_tells_is_marked_as_coarse() {
        let events = [
            event("Pulling", "u", "2026-11-24T05:31:13.000100Z"),
            event("Pulled", "u", "2026-11-24T05:31:13.250100Z"),
            event("Pulled", "another", "2026-11-24T05:31:19.000000Z"),
        ];
        let flow = flow(&pod(), &events);
        let phases: Vec<Phase> = flow.phases().iter().map(|s| s.phase).collect();
        assert_eq!(
            phases,
            [
                Phase::Persisted,
                Phase::Bound,
                Phase::Observed,
                Phase::NetworkConfigured,
                Phase::ImagesPulled,
                Phase::ContainersStarted,
                Phase::Ready
            ]
        );
        assert_eq!(flow.total(), Some(4_000_000));
        let pulled: Vec<_> = flow.records_of(Phase::ImagesPulled).into_iter().cloned().collect();
        let web = pulled.iter().find(|r| r.subject.as_deref() == Some("web")).unwrap();
        assert_eq!((web.duration(), web.resolution), (Some(250_000), Resolution::Micros));
        let bad = pulled.iter().find(|r| r.subject.as_deref() == Some("bad")).unwrap();
        assert_eq!((bad.outcome, bad.reason.as_str()), (Outcome::Failed, "ImagePullBackOff"));
        assert!(
            flow.records
                .iter()
                .filter(|r| r.phase != Phase::ImagesPulled)
                .all(|r| r.resolution == Resolution::Second)
        );
    }

    #[test]
    fn what_our_scheduler_told_of_it_is_told() {
        let mut pod = pod();
        let created = micros(pod.metadata.creation_timestamp.as_ref().unwrap());
        let at = |ms: i64| Micros(created.0 + ms * 1000);
        let told = |phase, end| made(phase, None, Writer::Agent, at(300), end, "Told");
        let told = [
            told(Phase::NodesScored, Some(at(301))),
            told(Phase::Bound, None),
            told(Phase::Ready, Some(at(302))),
        ];
        let text = String::from_utf8(podway_flow::wire::encode(&told)).unwrap();
        let annotations = pod.metadata.annotations.get_or_insert_default();
        annotations.insert(crate::annotations::SCHEDULING_ANNOTATION.to_owned(), text);
        let flow = flow(&pod, &[]);
        let of = |phase| flow.records.iter().filter(move |r| r.phase == phase).collect::<Vec<_>>();
        assert_eq!(of(Phase::NodesScored)[0].writer, Writer::Scheduler);
        let bound = of(Phase::Bound);
        assert_eq!((bound.len(), bound[0].start, bound[0].outcome), (1, at(300), Outcome::Succeeded));
        assert_eq!(of(Phase::Ready).len(), 1, "only the scheduler's phases are taken from there");
    }

    #[test]
    fn a_pod_at_its_end_has_reported_it() {
        let mut pod = pod();
        pod.status = serde_json::from_value(serde_json::json!({"phase": "Succeeded", "containerStatuses": [
            {"name": "job", "image": "i", "imageID": "i", "ready": false, "restartCount": 0,
             "state": {"terminated": {"exitCode": 0, "startedAt": "2026-11-24T05:31:15Z",
                "finishedAt": "2026-11-24T05:31:18Z"}}}]}))
        .unwrap();
        let flow = flow(&pod, &[]);
        let reported = flow.summary(Phase::StatusReported).unwrap();
        assert_eq!((reported.reason.as_str(), reported.resolution), ("Succeeded", Resolution::Second));
        assert_eq!(podway_flow::stuck::waiting(&flow, &podway_flow::stuck::Limits::default()), vec![]);
    }

    #[test]
    fn an_unschedulable_pod_fails_at_bound_with_the_schedulers_words() {
        let mut pod = pod();
        pod.status = serde_json::from_value(serde_json::json!({"conditions": [
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}]}))
        .unwrap();
        let flow = flow(&pod, &[]);
        let bound = flow.summary(Phase::Bound).unwrap();
        assert_eq!((bound.outcome, bound.message.as_str()), (Outcome::Failed, "0/1 nodes"));
        assert!(super::flow(&Pod::default(), &[]).records.is_empty());
    }
}
