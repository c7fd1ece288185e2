//! What the agent writes to the API server for a pod: its status, its end, its flow, its warnings.
//! Behind a trait, so that a worker is tested without a server.

use crate::metrics::Metrics;
use crate::status::budget::Budget;
use crate::watch::lean;
use async_trait::async_trait;
use http::header::{ACCEPT, HeaderValue};
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodStatus, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Resource as _;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions, Request};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use podway_api::annotations::AGENT_MANAGER;
use podway_api::podflow::{PodFlow, PodFlowStatus};
use podway_flow::Flow;
use podway_flow::record::bounded;
use serde::Serialize;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

/// Why a write did not happen.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The pod is gone, or another one of its name is there.
    #[error("the pod is gone from the API server")]
    Gone,
    /// Its namespace is being deleted, and takes nothing new.
    #[error("the pod's namespace is being terminated")]
    Terminating,
    /// The API server or the way to it.
    #[error("the API server did not take the write")]
    Failed(#[source] Box<kube::Error>),
}

impl From<kube::Error> for ApiError {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) if matches!(status.code, 404 | 409) => ApiError::Gone,
            kube::Error::Api(status) if terminating(status) => ApiError::Terminating,
            _ => ApiError::Failed(Box::new(error)),
        }
    }
}

/// Whether it was refused by the admission plugin NamespaceLifecycle.
fn terminating(status: &kube::core::Status) -> bool {
    let mut causes = status.details.iter().flat_map(|d| &d.causes);
    status.code == 403 && causes.any(|cause| cause.reason == "NamespaceTerminating")
}

/// A flow's status, as a merge patch has it.
#[derive(Debug, Serialize)]
struct Told {
    status: PodFlowStatus,
}

/// The answer that is asked for where nobody reads it.
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";

/// The writes.
#[async_trait]
pub trait PodApi: Send + Sync {
    /// Patches `status` so that it becomes `whole`; the object as it is then.
    async fn patch_status(
        &self,
        namespace: &str,
        name: &str,
        patch: Value,
        whole: &PodStatus,
    ) -> Result<Pod, ApiError>;
    /// Deletes the object with grace 0, if it still has this UID. One that is gone is deleted.
    async fn delete(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ApiError>;
    /// Writes a flow: `create` for the first time. `told` are the phases' conditions as the pod has
    /// them: those of the flow begin where they did.
    async fn write_flow(&self, flow: &Flow, told: &[Condition], create: bool) -> Result<(), ApiError>;
    /// Tells people. A failure is logged: an event is no promise.
    async fn warn(&self, pod: &Pod, reason: &str, message: &str);
    /// Tells of a container (or, without a name, of the pod) what went as it should; a failure to do so is logged.
    async fn note(&self, pod: &Pod, container: &str, reason: &str, message: &str);
    /// The services of a namespace, and `default/kubernetes`.
    async fn services(&self, namespace: &str) -> Vec<Service>;
}

/// The real API server, under the node's identity.
#[derive(Clone)]
pub struct KubeApi {
    client: kube::Client,
    events: Recorder,
    budget: Arc<Mutex<Budget>>,
    metrics: Arc<Metrics>,
    services: kube::runtime::reflector::Store<Service>,
}

impl KubeApi {
    /// Through `client`, as `node`; `services` is kept up to date by a watch.
    #[must_use]
    pub fn new(
        client: kube::Client,
        node: &str,
        services: kube::runtime::reflector::Store<Service>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let reporter = Reporter { controller: "kubelet".to_owned(), instance: Some(node.to_owned()) };
        KubeApi {
            events: Recorder::new(client.clone(), reporter),
            budget: Arc::new(Mutex::new(Budget::new(Instant::now()))),
            metrics,
            client,
            services,
        }
    }
}

#[async_trait]
impl PodApi for KubeApi {
    async fn patch_status(
        &self,
        namespace: &str,
        name: &str,
        patch: Value,
        _: &PodStatus,
    ) -> Result<Pod, ApiError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let params = PatchParams { field_manager: Some(AGENT_MANAGER.to_owned()), ..PatchParams::default() };
        let mut patched = api.patch_status(name, &params, &Patch::Strategic(patch)).await?;
        lean(&mut patched);
        Ok(patched)
    }

    async fn delete(&self, namespace: &str, name: &str, uid: &str) -> Result<(), ApiError> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(uid.to_owned()), ..Preconditions::default() }),
            ..DeleteParams::default()
        };
        match api.delete(name, &params).await.map_err(ApiError::from) {
            Ok(_) | Err(ApiError::Gone) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn write_flow(&self, flow: &Flow, told: &[Condition], create: bool) -> Result<(), ApiError> {
        let object = PodFlow::for_pod(&flow.pod);
        let request = Request::new(PodFlow::url_path(&(), Some(&flow.pod.namespace)));
        let name = &flow.pod.name;
        let params = PatchParams { field_manager: Some(AGENT_MANAGER.to_owned()), ..PatchParams::default() };
        if create {
            let post = PostParams { field_manager: Some(AGENT_MANAGER.to_owned()), ..PostParams::default() };
            let body = serde_json::to_vec(&object).map_err(kube::Error::SerdeError)?;
            match self.send(request.create(&post, body)).await {
                // The flow of an earlier pod of this name, or our own of before a restart.
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    let own = json!({
                        "metadata": {"ownerReferences": object.metadata.owner_references},
                        "spec": object.spec,
                    });
                    self.send(request.patch(name, &params, &Patch::Merge(own))).await?;
                }
                other => other?,
            }
        }
        let status = Told { status: PodFlowStatus::from_flow(flow, told, Some(1)) };
        self.send(request.patch_subresource("status", name, &params, &Patch::Merge(status))).await?;
        Ok(())
    }

    async fn warn(&self, pod: &Pod, reason: &str, message: &str) {
        self.publish(pod, None, EventType::Warning, reason, message).await;
    }

    async fn note(&self, pod: &Pod, container: &str, reason: &str, message: &str) {
        self.publish(pod, Some(container).filter(|c| !c.is_empty()), EventType::Normal, reason, message)
            .await;
    }

    async fn services(&self, namespace: &str) -> Vec<Service> {
        if self.services.wait_until_ready().await.is_err() {
            tracing::warn!("the watch of services has ended: pods get no service variables");
        }
        let all = self.services.state();
        let own = all.iter().filter(|s| {
            let of = s.metadata.namespace.as_deref();
            of == Some(namespace)
                || (of == Some("default") && s.metadata.name.as_deref() == Some("kubernetes"))
        });
        own.map(|s| (**s).clone()).collect()
    }
}

impl KubeApi {
    /// Sends a write of which nobody reads what became of the object: its metadata are all that is asked back.
    async fn send(
        &self,
        request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<(), kube::Error> {
        let mut request = request.map_err(kube::Error::BuildRequest)?;
        request.headers_mut().insert(ACCEPT, HeaderValue::from_static(METADATA));
        self.client.request_text(request).await.map(drop)
    }

    async fn publish(
        &self,
        pod: &Pod,
        container: Option<&str>,
        type_: EventType,
        reason: &str,
        message: &str,
    ) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if !self.budget.lock().unwrap_or_else(PoisonError::into_inner).take(uid, Instant::now()) {
            self.metrics.events_discarded.inc();
            tracing::debug!(uid, reason, message, "an event is beyond the budget");
            return;
        }
        let event = Event {
            type_,
            reason: reason.to_owned(),
            // The API's limit.
            note: Some(bounded(message, 1024)),
            action: reason.to_owned(),
            secondary: None,
        };
        let reference = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: pod.metadata.name.clone(),
            namespace: pod.metadata.namespace.clone(),
            uid: pod.metadata.uid.clone(),
            resource_version: pod.metadata.resource_version.clone(),
            field_path: container.map(|name| field_path(pod, name)),
        };
        let Err(error) = self.events.publish(&event, &reference).await else { return };
        if matches!(&error, kube::Error::Api(status) if terminating(status)) {
            tracing::debug!(pod = reference.name, reason, "an event has no namespace any more");
        } else {
            tracing::warn!(pod = reference.name, reason, %error, "an event was not written");
        }
    }
}

/// Where a container stands in its pod, as upstream's `fieldPath` (pkg/kubelet/container/ref.go).
fn field_path(pod: &Pod, name: &str) -> String {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|s| s.init_containers.as_ref()).into_iter().flatten().any(|c| c.name == name);
    let debug = spec.and_then(|s| s.ephemeral_containers.as_ref());
    let list = match (init, debug.into_iter().flatten().any(|c| c.name == name)) {
        (true, _) => "initContainers",
        (_, true) => "ephemeralContainers",
        _ => "containers",
    };
    format!("spec.{list}{{{name}}}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_goes_takes_nothing_new_and_another_refusal_is_a_failure() {
        let refused = |cause: &str| {
            let status = json!({"status": "Failure", "reason": "Forbidden", "code": 403, "message": "no",
                "details": {"causes": [{"reason": cause, "message": "", "field": "metadata.namespace"}]}});
            let status: kube::core::Status = serde_json::from_value(status).unwrap();
            ApiError::from(kube::Error::Api(Box::new(status)))
        };
        assert!(matches!(refused("NamespaceTerminating"), ApiError::Terminating));
        assert!(matches!(refused("FieldValueInvalid"), ApiError::Failed(_)));
    }
}
