//! A file of the static pods' directory, read into a pod or refused with a reason. Whoever may write the
//! directory may run anything here; a file is nevertheless hostile until it is parsed, as half of one, a
//! device or a text of gigabytes must do no harm, and what becomes part of a path is checked.
//!
//! What a kubelet makes of a file (`pkg/kubelet/config/common.go`, `file.go`): the name gets the node's
//! appended, the UID is a hash of source and content, references to API objects are refused. The API
//! server's defaults are repeated here, as far as the agent reads them: this pod never goes through it.

use crate::pod::resources;
use k8s_openapi::api::core::v1::{self as api, Pod, PodStatus, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::collections::HashSet;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;

/// The longest file (`maxConfigLength`).
const MOST: u64 = 10 << 20;
/// Where the pod comes from: `file`.
pub const SOURCE: &str = "kubernetes.io/config.source";
/// The hash of the file, which is the pod's UID.
pub const HASH: &str = "kubernetes.io/config.hash";
/// When it was first seen.
pub const SEEN: &str = "kubernetes.io/config.seen";
/// On a mirror pod: the hash of the pod that it shows.
pub const MIRROR: &str = "kubernetes.io/config.mirror";

/// Why a file is no pod.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("cannot be read")]
    Read(#[from] io::Error),
    /// A directory, a device, a socket.
    #[error("is not a regular file")]
    Kind,
    /// More than any pod takes.
    #[error("is longer than {MOST} bytes")]
    Long,
    /// Not YAML.
    #[error("couldn't parse as pod")]
    Yaml(#[from] serde_yaml::Error),
    /// Not a pod.
    #[error("couldn't parse as pod")]
    Pod(#[from] serde_json::Error),
    /// A field that no pod may have like that.
    #[error("invalid pod: {0}")]
    Invalid(String),
    /// A pod that needs the API server.
    #[error("static pods may not reference {0}")]
    Reference(&'static str),
}

/// Reads the file at `path` for the node `node`.
///
/// # Errors
/// [`FileError`].
pub fn read(path: &Path, node: &str) -> Result<Pod, FileError> {
    // A FIFO without a writer must not hold up who opens it.
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).map_err(io::Error::other)?;
    let file = std::fs::File::options().read(true).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(FileError::Kind);
    }
    let mut text = Vec::new();
    file.take(MOST + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MOST {
        return Err(FileError::Long);
    }
    decode(&text, path, node)
}

/// The pod that `text`, read from `source`, stands for on the node `node`.
///
/// # Errors
/// [`FileError`].
pub fn decode(text: &[u8], source: &Path, node: &str) -> Result<Pod, FileError> {
    // JSON is YAML.
    let mut value: Value = serde_yaml::from_slice(text)?;
    quantities(&mut value);
    let mut pod: Pod = serde_json::from_value(value.clone())?;
    let given = pod.metadata.name.clone().filter(|n| !n.is_empty());
    let given = given.ok_or_else(|| invalid("name is needed for the pod"))?;
    if let Some(what) = referenced(&pod) {
        return Err(FileError::Reference(what));
    }
    let meta = &mut pod.metadata;
    let uid = meta.uid.clone().filter(|u| !u.is_empty()).unwrap_or_else(|| hash(&value, source, node));
    meta.name = Some(format!("{given}-{}", node.to_lowercase()));
    meta.namespace =
        Some(meta.namespace.take().filter(|n| !n.is_empty()).unwrap_or_else(|| "default".into()));
    meta.generation = Some(1);
    let now = Time(jiff::Timestamp::now());
    let annotations = meta.annotations.get_or_insert_default();
    annotations.insert(HASH.to_owned(), uid.clone());
    annotations.insert(SOURCE.to_owned(), "file".to_owned());
    annotations.insert(SEEN.to_owned(), now.0.to_string());
    meta.creation_timestamp = Some(now);
    (meta.deletion_timestamp, meta.owner_references, meta.resource_version) = (None, None, None);
    meta.uid = Some(uid);
    let spec = pod.spec.as_mut().ok_or_else(|| invalid("spec is needed for the pod"))?;
    spec.node_name = Some(node.to_owned());
    tolerate(spec);
    defaults(spec);
    validate(spec)?;
    let qos = resources::qos_class(spec);
    pod.status = Some(PodStatus {
        phase: Some("Pending".to_owned()),
        qos_class: Some(qos.to_owned()),
        ..PodStatus::default()
    });
    // What a worker would not take on is refused here, where the file is named.
    crate::pod::model::Pod::read(Arc::new(pod.clone())).map_err(|e| invalid(e.to_string()))?;
    Ok(pod)
}

fn invalid(why: impl Into<String>) -> FileError {
    FileError::Invalid(why.into())
}

/// Of the text as it is written, so that another version of the agent finds its pods again.
fn hash(value: &Value, source: &Path, node: &str) -> String {
    let mut hasher = Sha256::new();
    hasher.update(value.to_string());
    hasher.update(format!("host:{node}file:{}", source.display()));
    hasher.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Quantities may be written as numbers; the API server makes strings of them.
fn quantities(value: &mut Value) {
    let text = |value: &mut Value| {
        if let Value::Number(number) = value {
            *value = Value::String(number.to_string());
        }
    };
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                match (key.as_str(), inner) {
                    ("requests" | "limits" | "overhead", Value::Object(list)) => {
                        list.values_mut().for_each(text)
                    }
                    ("sizeLimit" | "divisor", inner) => text(inner),
                    (_, inner) => quantities(inner),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(quantities),
        _ => {}
    }
}

/// Static pods stay when the node has problems.
fn tolerate(spec: &mut api::PodSpec) {
    let all = Toleration {
        operator: Some("Exists".to_owned()),
        effect: Some("NoExecute".to_owned()),
        ..Toleration::default()
    };
    let list = spec.tolerations.get_or_insert_default();
    if !list.contains(&all) {
        list.push(all);
    }
}

/// What the API server would have filled in and the agent goes by.
fn defaults(spec: &mut api::PodSpec) {
    spec.restart_policy.get_or_insert_with(|| "Always".to_owned());
    spec.dns_policy.get_or_insert_with(|| "ClusterFirst".to_owned());
    spec.termination_grace_period_seconds.get_or_insert(30);
    spec.security_context.get_or_insert_default();
    spec.enable_service_links.get_or_insert(true);
    let host = spec.host_network == Some(true);
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        container.termination_message_path.get_or_insert_with(|| "/dev/termination-log".to_owned());
        container.termination_message_policy.get_or_insert_with(|| "File".to_owned());
        for port in container.ports.iter_mut().flatten() {
            port.protocol.get_or_insert_with(|| "TCP".to_owned());
            if host {
                port.host_port.get_or_insert(port.container_port);
            }
        }
        // What is limited is asked for, unless it is asked for otherwise.
        if let Some(resources) = &mut container.resources
            && let Some(limits) = &resources.limits
        {
            let requests = resources.requests.get_or_insert_default();
            for (name, amount) in limits {
                requests.entry(name.clone()).or_insert_with(|| amount.clone());
            }
        }
    }
}

/// A DNS label: what the API server allows, checked as it becomes part of paths.
fn label(name: &str) -> bool {
    let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !name.is_empty()
        && name.len() <= 63
        && name.bytes().all(fine)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn validate(spec: &api::PodSpec) -> Result<(), FileError> {
    let mut volumes = HashSet::new();
    for volume in spec.volumes.iter().flatten() {
        if !label(&volume.name) || !volumes.insert(volume.name.as_str()) {
            return Err(invalid(format!("spec.volumes: {:?} is no name, or there twice", volume.name)));
        }
        let path = volume.host_path.as_ref().map(|h| h.path.as_str());
        if path.is_some_and(|p| p.split('/').any(|part| part == "..")) {
            return Err(invalid(format!("spec.volumes: {:?}: hostPath must not contain '..'", volume.name)));
        }
    }
    let mut names = HashSet::new();
    for container in spec.containers.iter().chain(spec.init_containers.iter().flatten()) {
        let name = container.name.as_str();
        if !label(name) || !names.insert(name) {
            return Err(invalid(format!("spec.containers: {name:?} is no name, or there twice")));
        }
        if container.image.as_deref().unwrap_or_default().is_empty() {
            return Err(invalid(format!("spec.containers: {name}: image is needed")));
        }
        for mount in container.volume_mounts.iter().flatten() {
            if !volumes.contains(mount.name.as_str()) {
                return Err(invalid(format!("spec.containers: {name}: no volume {:?}", mount.name)));
            }
            let sub = mount.sub_path.as_deref().unwrap_or_default();
            if sub.starts_with('/') || sub.split('/').any(|part| part == "..") {
                return Err(invalid(format!("spec.containers: {name}: subPath {sub:?} leaves its volume")));
            }
        }
    }
    if spec.ephemeral_containers.iter().flatten().next().is_some() {
        return Err(invalid("spec.ephemeralContainers: not in a static pod"));
    }
    Ok(())
}

/// The kind of API object that a pod refers to, if it does (`HasAPIObjectReference`).
fn referenced(pod: &Pod) -> Option<&'static str> {
    let spec = pod.spec.as_ref()?;
    if spec.service_account_name.as_deref().is_some_and(|n| !n.is_empty()) {
        return Some("serviceaccounts");
    }
    let containers = || spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let froms = || containers().flat_map(|c| c.env_from.iter().flatten());
    let values = || containers().flat_map(|c| c.env.iter().flatten()).filter_map(|e| e.value_from.as_ref());
    let pulls = spec.image_pull_secrets.iter().flatten().next().is_some();
    if pulls || froms().any(|f| f.secret_ref.is_some()) || values().any(|v| v.secret_key_ref.is_some()) {
        return Some("secrets");
    }
    if froms().any(|f| f.config_map_ref.is_some()) || values().any(|v| v.config_map_key_ref.is_some()) {
        return Some("configmaps");
    }
    if spec.resource_claims.iter().flatten().next().is_some() {
        return Some("resourceclaims");
    }
    spec.volumes.iter().flatten().find_map(of_volume)
}

fn of_volume(volume: &api::Volume) -> Option<&'static str> {
    let of_source = |source: &api::VolumeProjection| {
        [
            (source.config_map.is_some(), "configmaps (via projected volumes)"),
            (source.secret.is_some(), "secrets (via projected volumes)"),
            (source.service_account_token.is_some(), "serviceaccounts (via projected volumes)"),
            (source.cluster_trust_bundle.is_some(), "clustertrustbundles"),
            (source.pod_certificate.is_some(), "podcertificates"),
        ]
        .into_iter()
        .find_map(|(is, what)| is.then_some(what))
    };
    [
        (volume.config_map.is_some(), "configmaps (via configmap volumes)"),
        (volume.secret.is_some(), "secrets (via secret volumes)"),
        (volume.csi.is_some(), "csidrivers (via CSI volumes)"),
        (volume.glusterfs.is_some(), "endpoints (via glusterFS volumes)"),
        (volume.persistent_volume_claim.is_some(), "persistentvolumeclaims"),
        (volume.ephemeral.is_some(), "persistentvolumeclaims (via ephemeral volumes)"),
        (volume.azure_file.is_some(), "secrets (via azureFile volumes)"),
    ]
    .into_iter()
    .find_map(|(is, what)| is.then_some(what))
    .or_else(|| volume.projected.iter().flat_map(|p| p.sources.iter().flatten()).find_map(of_source))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n  - name: c\n    \
                         image: busybox\n    resources: {limits: {cpu: 1, memory: 64Mi}}\n";

    fn of(text: &str) -> Result<Pod, FileError> {
        decode(text.as_bytes(), Path::new("/m/web.yaml"), "Node-1")
    }

    #[test]
    fn a_file_becomes_the_pod_that_a_kubelet_makes_of_it() {
        let pod = of(PLAIN).unwrap();
        let meta = &pod.metadata;
        assert_eq!((meta.name.as_deref(), meta.namespace.as_deref()), (Some("web-node-1"), Some("default")));
        let annotations = meta.annotations.as_ref().unwrap();
        assert_eq!(annotations[HASH].len(), 32);
        assert_eq!(
            (Some(annotations[HASH].as_str()), annotations[SOURCE].as_str()),
            (meta.uid.as_deref(), "file")
        );
        assert!(annotations.contains_key(SEEN) && !annotations.contains_key(MIRROR));
        let spec = pod.spec.as_ref().unwrap();
        assert_eq!(spec.node_name.as_deref(), Some("Node-1"));
        assert_eq!(spec.tolerations.as_ref().unwrap()[0].effect.as_deref(), Some("NoExecute"));
        assert_eq!(pod.status.as_ref().unwrap().qos_class.as_deref(), Some("Guaranteed"));
        assert_eq!(spec.containers[0].resources.as_ref().unwrap().requests.as_ref().unwrap()["cpu"].0, "1");
        crate::pod::model::Pod::read(std::sync::Arc::new(pod)).unwrap();
        let json = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"j","namespace":"n","uid":"u-7"},
            "spec":{"containers":[{"name":"c","image":"i"}]}}"#;
        let pod = of(json).unwrap();
        assert_eq!(
            (pod.metadata.uid.as_deref(), pod.metadata.namespace.as_deref()),
            (Some("u-7"), Some("n"))
        );
    }

    #[test]
    fn the_uid_is_that_of_content_file_and_node() {
        let uid = |text: &str, path: &str, node: &str| {
            decode(text.as_bytes(), Path::new(path), node).unwrap().metadata.uid.unwrap()
        };
        let one = uid(PLAIN, "/m/a", "n");
        assert_eq!(one, uid(PLAIN, "/m/a", "n"));
        for other in [
            uid(&PLAIN.replace("busybox", "busybox:2"), "/m/a", "n"),
            uid(PLAIN, "/m/b", "n"),
            uid(PLAIN, "/m/a", "o"),
        ] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn what_is_no_static_pod_is_refused_with_the_reason() {
        let with = |more: &str| format!("{PLAIN}{more}");
        for (text, says) in [
            ("{", "couldn't parse as pod"),
            ("apiVersion: v1\nkind: Service\nmetadata: {name: a}\n", "couldn't parse as pod"),
            (&PLAIN.replace("name: web", "a: b"), "invalid pod: name is needed for the pod"),
            (&with("---\nkind: Pod\n"), "couldn't parse as pod"),
            (&with("  serviceAccountName: x\n"), "static pods may not reference serviceaccounts"),
            (&with("    envFrom: [{secretRef: {name: s}}]\n"), "static pods may not reference secrets"),
            (
                &with("    env: [{name: A, valueFrom: {configMapKeyRef: {name: c, key: k}}}]\n"),
                "static pods may not reference configmaps",
            ),
            (
                &with("  volumes: [{name: v, secret: {secretName: s}}]\n"),
                "static pods may not reference secrets (via secret volumes)",
            ),
            (
                &with("  volumes: [{name: v, projected: {sources: [{serviceAccountToken: {path: t}}]}}]\n"),
                "static pods may not reference serviceaccounts (via projected volumes)",
            ),
            (&with("  volumes: [{name: ../v, emptyDir: {}}]\n"), "invalid pod: spec.volumes"),
            (&with("  volumes: [{name: v, hostPath: {path: /a/../b}}]\n"), "must not contain '..'"),
            (&with("    volumeMounts: [{name: v, mountPath: /v}]\n"), "no volume \"v\""),
            (
                &with(
                    "    volumeMounts: [{name: v, mountPath: /v, subPath: a/../..}]\n  volumes: [{name: v, emptyDir: {}}]\n",
                ),
                "leaves its volume",
            ),
            (&PLAIN.replace("name: c", "name: C/.."), "invalid pod: spec.containers"),
            (&PLAIN.replace("image: busybox", "tty: true"), "image is needed"),
        ] {
            let error = of(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_no_file_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read(dir.path(), "n"), Err(FileError::Kind)));
        assert!(matches!(read(&dir.path().join("absent"), "n"), Err(FileError::Read(_))));
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(read(&fifo, "n"), Err(FileError::Kind)));
        let long = dir.path().join("long");
        std::fs::File::create(&long).unwrap().set_len(MOST + 1).unwrap();
        assert!(matches!(read(&long, "n"), Err(FileError::Long)));
        let fine = dir.path().join("fine");
        std::fs::write(&fine, PLAIN).unwrap();
        assert_eq!(read(&fine, "n").unwrap().metadata.name.as_deref(), Some("web-n"));
    }
}
