//! Config maps, secrets and tokens from the API server, each asked for by name, since that is all
//! that the Node authorizer lets a node read.

use super::{TokenRequest, Tokens};
use crate::env::{ObjectError, Objects};
use async_trait::async_trait;
use k8s_openapi::api::authentication::v1 as auth;
use k8s_openapi::api::core::v1::{ConfigMap, Secret, ServiceAccount};
use kube::api::{Api, PostParams};

/// The API server as a source, under the node's identity.
#[derive(Clone)]
pub struct ApiSource(pub kube::Client);

fn failed(kind: &'static str, namespace: &str, name: &str) -> impl FnOnce(kube::Error) -> ObjectError {
    let (namespace, name) = (namespace.to_owned(), name.to_owned());
    move |source| ObjectError { kind, namespace, name, source: Box::new(source) }
}

#[async_trait]
impl Objects for ApiSource {
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<ConfigMap>, ObjectError> {
        let api: Api<ConfigMap> = Api::namespaced(self.0.clone(), namespace);
        api.get_opt(name).await.map_err(failed("configmap", namespace, name))
    }
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, ObjectError> {
        let api: Api<Secret> = Api::namespaced(self.0.clone(), namespace);
        api.get_opt(name).await.map_err(failed("secret", namespace, name))
    }
}

#[async_trait]
impl Tokens for ApiSource {
    async fn token(&self, request: &TokenRequest) -> Result<String, ObjectError> {
        let api: Api<ServiceAccount> = Api::namespaced(self.0.clone(), &request.namespace);
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
        let answer = api
            .create_token_request(&request.service_account, &PostParams::default(), &body)
            .await
            .map_err(failed("token of serviceaccount", &request.namespace, &request.service_account))?;
        answer.status.and_then(|s| s.token).filter(|t| !t.is_empty()).ok_or_else(|| ObjectError {
            kind: "token of serviceaccount",
            namespace: request.namespace.clone(),
            name: request.service_account.clone(),
            source: "the API server answered without a token".into(),
        })
    }
}
