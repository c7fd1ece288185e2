//! Writes a binding: POST pods/{name}/binding, with the decision as an annotation.

use crate::framework::Placement;
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PostParams};
use podway_flow::wire;
use std::collections::BTreeMap;

/// Why a binding does not stand.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The API server refused; 409 when another scheduler was first or the pod is another one now.
    #[error("the API server refused to bind {pod} to {node}")]
    Refused {
        /// namespace/name.
        pod: String,
        /// The node.
        node: String,
        /// What it said.
        #[source]
        source: Box<kube::Error>,
    },
}

/// The object that is posted. The UID makes the API server refuse a pod of the same name.
#[must_use]
pub fn binding(placement: &Placement) -> Binding {
    let pod = &placement.pod;
    let annotations = placement
        .annotation
        .clone()
        .map(|document| BTreeMap::from([(wire::SCHEDULING_ANNOTATION.to_owned(), document)]));
    Binding {
        metadata: ObjectMeta {
            name: Some(pod.name.clone()),
            namespace: Some(pod.namespace.clone()),
            uid: Some(pod.uid.clone()),
            annotations,
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(placement.node.clone()),
            ..ObjectReference::default()
        },
    }
}

/// Binds. A call that broke off may have been done all the same, so it is read back before it is
/// called a failure: forgetting a pod that is bound would give its room away twice.
///
/// # Errors
/// [`BindError`] when the pod is not bound to this node.
pub async fn bind(client: &kube::Client, placement: &Placement) -> Result<(), BindError> {
    let pod = &placement.pod;
    let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace);
    let object = binding(placement);
    let answer: Result<serde_json::Value, kube::Error> =
        api.create_subresource("binding", &pod.name, &PostParams::default(), &object).await;
    let Err(source) = answer else { return Ok(()) };
    let refused =
        || BindError::Refused { pod: pod.key(), node: placement.node.clone(), source: Box::new(source) };
    match api.get_opt(&pod.name).await {
        Ok(Some(seen))
            if seen.metadata.uid.as_deref() == Some(&pod.uid)
                && seen.spec.as_ref().is_some_and(|s| s.node_name.as_deref() == Some(&placement.node)) =>
        {
            Ok(())
        }
        _ => Err(refused()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::PodInfo;
    use std::sync::Arc;

    #[test]
    fn the_binding_carries_the_uid_the_node_and_the_decision() {
        let pod = PodInfo { namespace: "d".into(), name: "p".into(), uid: "u".into(), ..PodInfo::default() };
        let placement =
            Placement { pod: Arc::new(pod), node: "n".into(), annotation: Some("[]".into()), volumes: None };
        let object = binding(&placement);
        assert_eq!(object.metadata.uid.as_deref(), Some("u"));
        assert_eq!(object.target.name.as_deref(), Some("n"));
        assert_eq!(object.metadata.annotations.unwrap()["podway.dev/scheduling"], "[]");
    }
}
