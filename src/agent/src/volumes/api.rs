//! Config maps, secrets, tokens and what is known of volumes, from the API server: each asked for by name, since that is all
//! that the Node authorizer lets a node read.

use super::follow::{Following, Table};
use super::{Token, TokenRequest, Tokens};
use crate::env::{ObjectError, Objects};
use async_trait::async_trait;
use k8s_openapi::api::authentication::v1 as auth;
use k8s_openapi::api::core::v1::{
    ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret, ServiceAccount,
};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use kube::api::{Api, PostParams};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// The API server as a source, under the node's identity. What pods follow is known already; all
/// else is asked for.
#[derive(Clone)]
pub struct ApiSource {
    client: kube::Client,
    maps: Arc<Table<ConfigMap>>,
    secrets: Arc<Table<Secret>>,
}

impl ApiSource {
    /// Through `client`.
    #[must_use]
    pub fn new(client: kube::Client) -> Self {
        ApiSource { client, maps: Arc::default(), secrets: Arc::default() }
    }
}

/// The first delay after a refusal of the Node authorizer, and how long it is asked in all.
const REFUSED: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(300));

/// What the Node authorizer and the NodeRestriction admission say of a pod that they know unbound.
const NOT_YET: [&str; 2] = ["no relationship found", "token bound to a pod scheduled on a different node"];

/// The Node authorizer and NodeRestriction learn of a pod's binding by watches of their own. For a
/// moment they may refuse what they are about to allow, and the next attempt at the volume would
/// come only after 500 ms.
pub(super) async fn allowed<T, F>(ask: impl Fn() -> F) -> Result<T, kube::Error>
where
    F: Future<Output = Result<T, kube::Error>>,
{
    let mut delay = REFUSED.0;
    loop {
        match ask().await {
            Err(kube::Error::Api(status))
                if status.code == 403
                    && NOT_YET.iter().any(|words| status.message.contains(words))
                    && delay < REFUSED.1 =>
            {
                tokio::time::sleep(delay).await;
                delay *= 2;
            }
            other => return other,
        }
    }
}

fn failed<E: std::error::Error + Send + Sync + 'static>(
    kind: &'static str,
    namespace: &str,
    name: &str,
) -> impl FnOnce(E) -> ObjectError {
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    move |source| ObjectError { kind, namespace, name, source: Box::new(source) }
}

#[async_trait]
impl Objects for ApiSource {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<ConfigMap>, ObjectError> {
        if let Some(topic) = self.maps.find(namespace, name) {
            match topic.get().await {
                Ok(Some(object)) => return Ok(Some((*object).clone())),
                // It may have been made just now, and the watch be a moment behind: asked below.
                Ok(None) => {}
                Err(error) => return Err(failed("configmap", namespace, name)(error)),
            }
        }
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        allowed(|| api.get_opt(name)).await.map_err(failed("configmap", namespace, name))
    }
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, ObjectError> {
        if let Some(topic) = self.secrets.find(namespace, name) {
            match topic.get().await {
                Ok(Some(object)) => return Ok(Some((*object).clone())),
                Ok(None) => {}
                Err(error) => return Err(failed("secret", namespace, name)(error)),
            }
        }
        let api: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        allowed(|| api.get_opt(name)).await.map_err(failed("secret", namespace, name))
    }

    async fn claim(&self, namespace: &str, name: &str) -> Result<Option<PersistentVolumeClaim>, ObjectError> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), namespace);
        allowed(|| api.get_opt(name)).await.map_err(failed("persistentvolumeclaim", namespace, name))
    }

    async fn persistent_volume(&self, name: &str) -> Result<Option<PersistentVolume>, ObjectError> {
        let api: Api<PersistentVolume> = Api::all(self.client.clone());
        allowed(|| api.get_opt(name)).await.map_err(failed("persistentvolume", "", name))
    }

    async fn csi_driver(&self, name: &str) -> Result<Option<CSIDriver>, ObjectError> {
        let api: Api<CSIDriver> = Api::all(self.client.clone());
        api.get_opt(name).await.map_err(failed("csidriver", "", name))
    }

    async fn attachment(&self, name: &str) -> Result<Option<VolumeAttachment>, ObjectError> {
        let api: Api<VolumeAttachment> = Api::all(self.client.clone());
        allowed(|| api.get_opt(name)).await.map_err(failed("volumeattachment", "", name))
    }

    fn follow(
        &self,
        namespace: &str,
        maps: &BTreeSet<String>,
        secrets: &BTreeSet<String>,
        notify: &Arc<Notify>,
    ) -> Following {
        let mut following = Following::default();
        for name in maps {
            self.maps.follow(&self.client, namespace, name, notify, &mut following);
        }
        for name in secrets {
            self.secrets.follow(&self.client, namespace, name, notify, &mut following);
        }
        following
    }
}

#[async_trait]
impl Tokens for ApiSource {
    async fn token(&self, request: &TokenRequest) -> Result<Token, ObjectError> {
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &request.namespace);
        let body = auth::TokenRequest {
            spec: Some(auth::TokenRequestSpec {
                audiences: request.audience.clone().map(|a| vec![a]),
                expiration_seconds: Some(request.seconds),
                bound_object_ref: Some(auth::BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: Some(request.pod_name.clone()),
                    uid: Some(request.pod_uid.clone()),
                }),
            }),
            ..auth::TokenRequest::default()
        };
        let post = PostParams::default();
        let answer = allowed(|| api.create_token_request(&request.service_account, &post, &body))
            .await
            .map_err(failed("token of serviceaccount", &request.namespace, &request.service_account))?;
        let status = answer.status.unwrap_or_default();
        let text = status.token.filter(|t| !t.is_empty());
        let given = text.zip(status.expiration_timestamp);
        given.map(|(text, expires)| Token { text, expires: expires.0 }).ok_or_else(|| ObjectError {
            kind: "token of serviceaccount",
            namespace: request.namespace.clone(),
            name: request.service_account.clone(),
            source: "the API server answered without a token".into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn refused(message: &str) -> kube::Error {
        let status = kube::core::Status::failure(message, "Forbidden").with_code(403);
        kube::Error::Api(Box::new(status))
    }

    #[tokio::test]
    async fn a_refusal_of_the_node_authorizer_is_asked_again_for_a_moment_and_another_is_not() {
        for (message, allowed_after, asked) in [
            ("no relationship found between node 'n' and this object", 3, Some(4)),
            ("node requested token bound to a pod scheduled on a different node", 2, Some(3)),
            ("no relationship found between node 'n' and this object", 99, None),
            ("forbidden", 1, None),
        ] {
            let calls = AtomicU32::new(0);
            let begun = tokio::time::Instant::now();
            let result = allowed(|| async {
                let n = calls.fetch_add(1, Ordering::Relaxed);
                if n < allowed_after { Err(refused(message)) } else { Ok(n + 1) }
            })
            .await;
            assert_eq!(result.ok(), asked, "{message}");
            assert!(begun.elapsed() < Duration::from_millis(700));
        }
    }
}
