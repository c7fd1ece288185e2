//! Has the victims of a preemption go, as upstream's asynchronous one (`framework/preemption/executor.go`):
//! each is told by the condition DisruptionTarget, deleted, and an event says for whom.
//!
//! Nothing of it is kept here: what a restart leaves half done shows in the pods themselves, and the
//! preemptor's next attempt finds it.

use crate::model::PodInfo;
use crate::status::{nominate, reference};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use std::sync::Arc;

/// How many API calls at once, upstream's parallelism.
const AT_ONCE: usize = 16;

/// What is to be done.
pub(crate) struct Eviction {
    /// Whom it is for.
    pub(crate) preemptor: Arc<PodInfo>,
    /// Where.
    pub(crate) node: String,
    /// The pods to delete; those that are being deleted already are left out.
    pub(crate) victims: Vec<Arc<PodInfo>>,
    /// Pods of lower priority that were nominated to the node and no longer are.
    pub(crate) demoted: Vec<Arc<PodInfo>>,
}

/// Does it; true when every victim is deleted or gone.
pub(crate) async fn evict(client: kube::Client, reporter: String, eviction: Eviction) -> bool {
    let recorder = Recorder::new(client.clone(), Reporter { controller: reporter, instance: None });
    for pod in &eviction.demoted {
        if let Err(error) = nominate(&client, pod, "").await {
            // Not critical: the pod's next attempt says it again.
            tracing::warn!(pod = pod.key(), %error, "a nomination was not cleared");
        }
    }
    let eviction = Arc::new(eviction);
    let all: Vec<_> = eviction
        .victims
        .iter()
        .map(|victim| one(client.clone(), recorder.clone(), eviction.clone(), victim.clone()))
        .collect();
    let gone: Vec<bool> = futures::stream::iter(all).buffer_unordered(AT_ONCE).collect().await;
    gone.into_iter().all(|gone| gone)
}

async fn one(
    client: kube::Client,
    recorder: Recorder,
    eviction: Arc<Eviction>,
    victim: Arc<PodInfo>,
) -> bool {
    match delete(&client, &eviction, &victim).await {
        Ok(()) => {}
        Err(kube::Error::Api(status)) if status.code == 404 => return true,
        Err(error) => {
            tracing::warn!(pod = victim.key(), %error, "a victim was not evicted");
            return false;
        }
    }
    if let Err(error) = recorder.publish(&preempted(&eviction), &reference(&victim)).await {
        tracing::warn!(pod = victim.key(), %error, "an event was not written");
    }
    true
}

async fn delete(client: &kube::Client, eviction: &Eviction, victim: &PodInfo) -> Result<(), kube::Error> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &victim.namespace);
    if !victim.preempted {
        let patch = condition(&eviction.preemptor, victim);
        api.patch_status(&victim.name, &PatchParams::default(), &Patch::Strategic(patch)).await?;
    }
    let preconditions = Preconditions { uid: Some(victim.uid.clone()), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    api.delete(&victim.name, &params).await.map(drop)
}

/// DisruptionTarget with upstream's words.
fn condition(preemptor: &PodInfo, victim: &PodInfo) -> serde_json::Value {
    let now = k8s_openapi::jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    serde_json::json!({
        "metadata": {"uid": victim.uid},
        "status": {"conditions": [{
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "PreemptionByScheduler",
            "message": format!("{}: preempting to accommodate a higher priority pod", preemptor.scheduler_name),
            "observedGeneration": victim.generation,
            "lastTransitionTime": now,
        }]}
    })
}

fn preempted(eviction: &Eviction) -> Event {
    Event {
        type_: EventType::Normal,
        reason: "Preempted".to_owned(),
        note: Some(format!("Preempted by pod {} on node {}", eviction.preemptor.uid, eviction.node)),
        action: "Preempting".to_owned(),
        secondary: Some(reference(&eviction.preemptor)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_upstreams() {
        let preemptor = PodInfo { uid: "high".into(), scheduler_name: "podway".into(), ..PodInfo::default() };
        let victim = PodInfo { uid: "low".into(), generation: Some(1), ..PodInfo::default() };
        let patch = condition(&preemptor, &victim);
        let one = &patch["status"]["conditions"][0];
        assert_eq!(
            (&patch["metadata"]["uid"], &one["reason"]),
            (&"low".into(), &"PreemptionByScheduler".into())
        );
        assert_eq!(one["message"], "podway: preempting to accommodate a higher priority pod");
        let (preemptor, node) = (Arc::new(preemptor), "n".to_owned());
        let event = preempted(&Eviction { preemptor, node, victims: vec![], demoted: vec![] });
        assert_eq!(event.note.as_deref(), Some("Preempted by pod high on node n"));
    }
}
