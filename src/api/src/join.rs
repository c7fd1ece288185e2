//! The flows of many pods, from what three lists of the API tell: pods, their `PodFlow`s, their events.

use crate::{PodFlow, stock};
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::ResourceExt as _;
use podway_flow::Flow;
use std::collections::BTreeMap;

/// A flow per pod, in the order of `pods`: of its `PodFlow` where there is one of this very pod with
/// something in it, else of the pod's own object and its events.
#[must_use]
pub fn flows(pods: &[Pod], podflows: &[PodFlow], events: &[Event]) -> Vec<Flow> {
    let recorded: BTreeMap<&str, &PodFlow> =
        podflows.iter().map(|object| (object.spec.pod_uid.as_str(), object)).collect();
    let mut of: BTreeMap<&str, Vec<Event>> = BTreeMap::new();
    for event in events {
        let uid = event.involved_object.uid.as_deref();
        // Those of a recorded pod would only be copied.
        if let Some(uid) = uid.filter(|uid| !recorded.contains_key(uid)) {
            of.entry(uid).or_default().push(event.clone());
        }
    }
    pods.iter()
        .map(|pod| {
            let uid = pod.uid().unwrap_or_default();
            recorded_of(pod, recorded.get(uid.as_str()).copied())
                .unwrap_or_else(|| stock::flow(pod, of.get(uid.as_str()).map_or(&[], Vec::as_slice)))
        })
        .collect()
}

/// The flow that a `PodFlow` tells of this very pod; an object left by an earlier pod of its name, and one
/// in which nothing stands yet, tell none.
#[must_use]
pub fn recorded_of(pod: &Pod, object: Option<&PodFlow>) -> Option<Flow> {
    let object = object.filter(|o| {
        Some(&o.spec.pod_uid) == pod.metadata.uid.as_ref() && o.metadata.namespace == pod.metadata.namespace
    })?;
    Some(object.to_flow()).filter(|flow| !flow.records.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use podway_flow::{Clock, Phase, PodRef, Recorder, Resolution, Writer};
    use serde_json::json;

    fn pod(name: &str, uid: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"namespace": "d", "name": name, "uid": uid,
            "creationTimestamp": "2026-11-24T05:31:12Z"}}))
        .unwrap()
    }

    fn podflow(name: &str, uid: &str, recorder: &Recorder) -> PodFlow {
        let pod = PodRef { namespace: "d".into(), name: name.into(), uid: uid.into(), node: "n".into() };
        PodFlow::from_flow(&Flow { pod, records: recorder.snapshot() })
    }

    #[test]
    fn a_pod_is_told_by_its_own_podflow_or_by_its_own_object() {
        let recorder = Recorder::new(Writer::Agent, Clock::new());
        recorder.begin(Phase::Observed).succeed("Seen");
        let empty = Recorder::new(Writer::Agent, Clock::new());
        let pods = [pod("a", "1"), pod("b", "2"), pod("c", "3")];
        // The second is of a pod that was there before; in the third nothing stands yet.
        let podflows =
            [podflow("a", "1", &recorder), podflow("b", "old", &recorder), podflow("c", "3", &empty)];
        let pulling = |uid: &str| -> Event {
            serde_json::from_value(json!({"metadata": {"name": "e"}, "reason": "Pulling",
                "eventTime": "2026-11-24T05:31:13.000100Z",
                "involvedObject": {"uid": uid, "fieldPath": "spec.containers{web}"}}))
            .unwrap()
        };
        let flows = flows(&pods, &podflows, &[pulling("2"), pulling("9")]);
        let of = |flow: &Flow| flow.phases().iter().map(|s| s.phase).collect::<Vec<_>>();
        assert_eq!(of(&flows[0]), [Phase::Observed]);
        assert_eq!(of(&flows[1]), [Phase::Persisted, Phase::ImagesPulled]);
        assert_eq!(of(&flows[2]), [Phase::Persisted]);
        assert_eq!(flows[1].summary(Phase::Persisted).unwrap().resolution, Resolution::Second);
        assert_eq!(flows.iter().map(|f| f.pod.name.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    }
}
