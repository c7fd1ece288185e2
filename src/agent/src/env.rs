//! A container's environment: envFrom, then env, then what the services add, as the kubelet's
//! `makeEnvironmentVariables` makes it (pkg/kubelet/kubelet_pods.go).
//!
//! The errors' texts are upstream's, since they are what a user reads after `CreateContainerConfigError`.

pub mod expand;
pub mod fields;
pub mod quantity;
pub mod services;

use crate::volumes::follow::Following;
use async_trait::async_trait;
use expand::expand;
use fields::{Addresses, FieldError};
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVarSource, PersistentVolume, PersistentVolumeClaim, Pod, Secret, Service,
};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::Notify;

/// Where config maps and secrets come from. A node may read those of its own pods only, by name.
#[async_trait]
pub trait Objects: Send + Sync {
    /// The config map, or `None` if it does not exist.
    ///
    /// # Errors
    /// [`ObjectError`] when the API server could not be asked or refused.
    async fn config_map(&self, namespace: &str, name: &str) -> Result<Option<ConfigMap>, ObjectError>;
    /// The secret, or `None` if it does not exist.
    ///
    /// # Errors
    /// [`ObjectError`] when the API server could not be asked or refused.
    async fn secret(&self, namespace: &str, name: &str) -> Result<Option<Secret>, ObjectError>;
    /// A claim, or `None` if it does not exist.
    ///
    /// # Errors
    /// [`ObjectError`] when the API server could not be asked or refused.
    async fn claim(
        &self,
        _namespace: &str,
        _name: &str,
    ) -> Result<Option<PersistentVolumeClaim>, ObjectError> {
        Ok(None)
    }
    /// A persistent volume, or `None` if it does not exist.
    ///
    /// # Errors
    /// [`ObjectError`] when the API server could not be asked or refused.
    async fn persistent_volume(&self, _name: &str) -> Result<Option<PersistentVolume>, ObjectError> {
        Ok(None)
    }
    /// What is known of a CSI driver, or `None` where it has no object.
    ///
    /// # Errors
    /// [`ObjectError`] when the API server could not be asked or refused.
    async fn csi_driver(&self, _name: &str) -> Result<Option<CSIDriver>, ObjectError> {
        Ok(None)
    }
    /// That a volume is attached, or `None` where nobody has attached it.
    ///
    /// # Errors
    /// [`ObjectError`] when the API server could not be asked or refused.
    async fn attachment(&self, _name: &str) -> Result<Option<VolumeAttachment>, ObjectError> {
        Ok(None)
    }
    /// Follows objects of a namespace: `notify` is woken when one changes, for as long as what is
    /// returned lives. Nothing is followed by a source whose objects do not change.
    fn follow(
        &self,
        _namespace: &str,
        _maps: &BTreeSet<String>,
        _secrets: &BTreeSet<String>,
        _notify: &Arc<Notify>,
    ) -> Following {
        Following::default()
    }
}

/// The API server did not give an object.
#[derive(Debug, thiserror::Error)]
#[error("failed to fetch {kind} {namespace}/{name}")]
pub struct ObjectError {
    /// `configmap` or `secret`.
    pub kind: &'static str,
    /// The object's namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// What the API server or the connection answered.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// Why a container's environment cannot be made: the message of `CreateContainerConfigError`.
#[derive(Debug, thiserror::Error)]
pub enum EnvError {
    /// A config map or secret that is not optional is missing.
    #[error("{kind} \"{name}\" not found")]
    NotFound {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object is there, the key is not.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    Key {
        /// The key.
        key: String,
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// The object's namespace.
        namespace: String,
        /// The object's name.
        name: String,
    },
    /// A secret's value is not text.
    #[error("value of key {key} in {namespace}/{name} is not UTF-8: mount it as a volume")]
    NotText {
        /// The key.
        key: String,
        /// The object's namespace.
        namespace: String,
        /// The object's name.
        name: String,
    },
    /// A field cannot be given.
    #[error(transparent)]
    Field(#[from] FieldError),
    /// The API server could not be asked.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// A source that this agent does not know.
    #[error("not supported: env source of {0}")]
    Source(String),
}

/// What is known of the node and the namespace when a container is made.
#[derive(Debug, Clone, Copy)]
pub struct EnvContext<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its and the node's addresses.
    pub addresses: &'a Addresses,
    /// The node's allocatable: a missing limit's value.
    pub allocatable: &'a BTreeMap<String, Quantity>,
    /// The services of the pod's namespace, and `default/kubernetes`.
    pub services: &'a [Service],
}

/// A container's environment, and what of it was left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment {
    /// Name and value, each name once.
    pub variables: Vec<(String, String)>,
    /// Keys of envFrom that are no variable names: the event `InvalidEnvironmentVariableNames`.
    pub invalid_names: Vec<String>,
}

impl Environment {
    fn get(&self, name: &str) -> Option<&str> {
        self.variables.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    fn set(&mut self, name: &str, value: String) {
        match self.variables.iter_mut().find(|(n, _)| n == name) {
            Some((_, old)) => *old = value,
            None => self.variables.push((name.to_owned(), value)),
        }
    }

    /// `command` or `args` with this environment's variables put in.
    #[must_use]
    pub fn expand_all(&self, words: &[String]) -> Vec<String> {
        words.iter().map(|word| expand(word, |name| self.get(name))).collect()
    }

    /// One text (a `subPathExpr`) with the variables put in.
    #[must_use]
    pub fn expand(&self, text: &str) -> String {
        expand(text, |name| self.get(name))
    }
}

/// Makes the environment of `container`.
///
/// # Errors
/// [`EnvError`], with upstream's text, when a source is missing or cannot be read.
pub async fn environment(
    container: &Container,
    context: EnvContext<'_>,
    objects: &dyn Objects,
) -> Result<Environment, EnvError> {
    let namespace = context.pod.metadata.namespace.as_deref().unwrap_or("default");
    let links = context.pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    let services = services::variables(context.services, namespace, links);
    let mut env = Environment::default();
    env_from(container, namespace, objects, &mut env).await?;
    for var in container.env.iter().flatten() {
        let value = match (var.value.as_deref().filter(|v| !v.is_empty()), &var.value_from) {
            (Some(text), _) => {
                Some(expand(text, |n| env.get(n).or_else(|| services.get(n).map(String::as_str))))
            }
            (None, Some(source)) => {
                from_source(&var.name, source, container, context, namespace, objects).await?
            }
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            env.set(&var.name, value);
        }
    }
    for (name, value) in services {
        if env.get(&name).is_none() {
            env.variables.push((name, value));
        }
    }
    Ok(env)
}

async fn env_from(
    container: &Container,
    namespace: &str,
    objects: &dyn Objects,
    env: &mut Environment,
) -> Result<(), EnvError> {
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or_default();
        let (kind, name, optional, data) = if let Some(r) = &source.config_map_ref {
            let found = objects.config_map(namespace, &r.name).await?;
            ("configmap", &r.name, r.optional, found.map(|c| c.data.unwrap_or_default()))
        } else if let Some(r) = &source.secret_ref {
            let found = objects.secret(namespace, &r.name).await?;
            let data = found.map(|s| text_of(s, namespace, &r.name)).transpose()?;
            ("secret", &r.name, r.optional, data)
        } else {
            continue;
        };
        match data {
            None if optional == Some(true) => {}
            None => return Err(EnvError::NotFound { kind, name: name.clone() }),
            Some(data) => {
                for (key, value) in data {
                    let key = format!("{prefix}{key}");
                    if valid_name(&key) {
                        env.set(&key, value);
                    } else {
                        env.invalid_names.push(key);
                    }
                }
            }
        }
    }
    Ok(())
}

fn text_of(secret: Secret, namespace: &str, name: &str) -> Result<BTreeMap<String, String>, EnvError> {
    secret
        .data
        .unwrap_or_default()
        .into_iter()
        .map(|(key, value)| match String::from_utf8(value.0) {
            Ok(text) => Ok((key, text)),
            Err(_) => Err(EnvError::NotText { key, namespace: namespace.to_owned(), name: name.to_owned() }),
        })
        .collect()
}

/// Printable ASCII without `=`: upstream's relaxed rule (GA since 1.34).
fn valid_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|b| (0x20..0x7f).contains(&b) && b != b'=')
}

async fn from_source(
    variable: &str,
    source: &EnvVarSource,
    container: &Container,
    context: EnvContext<'_>,
    namespace: &str,
    objects: &dyn Objects,
) -> Result<Option<String>, EnvError> {
    if let Some(r) = &source.field_ref {
        return Ok(Some(fields::field(context.pod, &r.field_path, context.addresses)?));
    }
    if let Some(r) = &source.resource_field_ref {
        return Ok(Some(fields::resource(context.pod, Some(container), r, context.allocatable)?));
    }
    let (kind, title, name, key, optional, found) = if let Some(r) = &source.config_map_key_ref {
        let found = objects.config_map(namespace, &r.name).await?;
        let value = found.map(|c| c.data.unwrap_or_default().remove(&r.key).map(String::into_bytes));
        ("configmap", "ConfigMap", &r.name, &r.key, r.optional, value)
    } else if let Some(r) = &source.secret_key_ref {
        let found = objects.secret(namespace, &r.name).await?;
        let value = found.map(|s| s.data.unwrap_or_default().remove(&r.key).map(|v| v.0));
        ("secret", "Secret", &r.name, &r.key, r.optional, value)
    } else {
        return Err(EnvError::Source(variable.to_owned()));
    };
    let own = || (namespace.to_owned(), name.clone(), key.clone());
    match found {
        None | Some(None) if optional == Some(true) => Ok(None),
        None => Err(EnvError::NotFound { kind, name: name.clone() }),
        Some(None) => {
            let (namespace, name, key) = own();
            Err(EnvError::Key { key, kind: title, namespace, name })
        }
        Some(Some(bytes)) => String::from_utf8(bytes).map(Some).map_err(|_| {
            let (namespace, name, key) = own();
            EnvError::NotText { key, namespace, name }
        }),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    /// Config map `cm` {a: 1, "b=": 2} and secret `s` {k: v}.
    pub(crate) struct Fake;

    #[async_trait]
    impl Objects for Fake {
        async fn config_map(&self, _: &str, name: &str) -> Result<Option<ConfigMap>, ObjectError> {
            let map = json!({"data": {"a": "1", "b=": "2"}, "binaryData": {"bin": "AAE="}});
            Ok((name == "cm").then(|| serde_json::from_value(map).unwrap()))
        }
        async fn secret(&self, _: &str, name: &str) -> Result<Option<Secret>, ObjectError> {
            Ok((name == "s").then(|| serde_json::from_value(json!({"data": {"k": "dg=="}})).unwrap()))
        }
    }

    async fn make(container: serde_json::Value) -> Result<Environment, EnvError> {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": []}}),
        )
        .unwrap();
        let service: Service =
            serde_json::from_value(json!({"metadata": {"namespace": "default", "name": "kubernetes"},
            "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 443}]}}))
            .unwrap();
        let (addresses, allocatable) = (Addresses::default(), BTreeMap::new());
        let context = EnvContext {
            pod: &pod,
            addresses: &addresses,
            allocatable: &allocatable,
            services: std::slice::from_ref(&service),
        };
        environment(&serde_json::from_value(container).unwrap(), context, &Fake).await
    }

    #[tokio::test]
    async fn env_from_comes_first_and_env_sees_what_stands_before_it() {
        let env = make(json!({"name": "c",
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "none", "optional": true}}],
            "env": [
                {"name": "X", "value": "$(P_a)-$(LATER)-$(KUBERNETES_SERVICE_HOST)"},
                {"name": "LATER", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                {"name": "NO", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "zz", "optional": true}}},
                {"name": "EMPTY"}]}))
        .await
        .unwrap();
        assert_eq!(env.invalid_names, ["P_b="]);
        for (name, value) in
            [("P_a", "1"), ("X", "1-$(LATER)-10.0.0.1"), ("LATER", "v"), ("NAME", "p"), ("EMPTY", "")]
        {
            assert_eq!(env.get(name), Some(value), "{name}");
        }
        assert_eq!(env.get("NO"), None);
        assert_eq!(env.expand_all(&["$(X)".into(), "$$(X)".into()])[1], "$(X)");
    }

    #[tokio::test]
    async fn errors_have_upstreams_text() {
        for (env, text) in [
            (json!({"configMapKeyRef": {"name": "x", "key": "k"}}), "configmap \"x\" not found"),
            (json!({"secretKeyRef": {"name": "x", "key": "k"}}), "secret \"x\" not found"),
            (json!({"configMapKeyRef": {"name": "cm", "key": "k"}}), "couldn't find key k in ConfigMap n/cm"),
            (json!({"secretKeyRef": {"name": "s", "key": "q"}}), "couldn't find key q in Secret n/s"),
        ] {
            let error =
                make(json!({"name": "c", "env": [{"name": "E", "valueFrom": env}]})).await.unwrap_err();
            assert_eq!(error.to_string(), text);
        }
    }
}
