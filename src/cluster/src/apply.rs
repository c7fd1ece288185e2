//! Applies manifests by server-side apply, as `kubectl apply --server-side` does.

use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::discovery::Scope;
use kube::{Client, ResourceExt as _};
use serde::Deserialize as _;

/// Our own RBAC: the file that users of another cluster apply.
pub const RBAC: &str = include_str!("../../../manifests/rbac.yaml");

/// Why a manifest was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It is not a Kubernetes object in YAML.
    #[error("a manifest is not a Kubernetes object")]
    Parse(#[source] serde_yaml::Error),
    /// It has no apiVersion and kind.
    #[error("the manifest of {name:?} has no apiVersion and kind")]
    Untyped {
        /// Its name.
        name: String,
    },
    /// The API server refused it.
    #[error("cannot apply {kind} {name:?}")]
    Refused {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// The cause.
        #[source]
        source: kube::Error,
    },
}

/// Applies each document of `yaml`, in order.
pub async fn apply(client: &Client, yaml: &str) -> Result<(), ApplyError> {
    for document in serde_yaml::Deserializer::from_str(yaml) {
        let object = DynamicObject::deserialize(document).map_err(ApplyError::Parse)?;
        let name = object.name_any();
        let Some(types) = &object.types else { return Err(ApplyError::Untyped { name }) };
        let kind = types.kind.clone();
        let failed = |source| ApplyError::Refused { kind: kind.clone(), name: name.clone(), source };
        let Ok(gvk) = kube::core::GroupVersionKind::try_from(types) else {
            return Err(ApplyError::Untyped { name });
        };
        let (resource, capabilities) = kube::discovery::pinned_kind(client, &gvk).await.map_err(failed)?;
        let api: Api<DynamicObject> = match (capabilities.scope, object.namespace()) {
            (Scope::Cluster, _) => Api::all_with(client.clone(), &resource),
            (Scope::Namespaced, namespace) => {
                let namespace = namespace.unwrap_or_else(|| "default".to_owned());
                Api::namespaced_with(client.clone(), &namespace, &resource)
            }
        };
        let params = PatchParams::apply("podway-up").force();
        api.patch(&name, &params, &Patch::Apply(&object)).await.map_err(failed)?;
    }
    Ok(())
}
