//! What `fieldRef` and `resourceFieldRef` stand for, in env and in downward API volumes.

use super::quantity::{ceil_div, milli};
use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;

/// A field or resource that cannot be given.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// Not a path that the downward API has.
    #[error("unsupported fieldPath: {0}")]
    Path(String),
    /// Not a resource that the downward API has.
    #[error("unsupported container resource : {0}")]
    Resource(String),
    /// The selector names a container that the pod does not have.
    #[error("container {0} not found")]
    Container(String),
    /// The quantity cannot be read.
    #[error("invalid quantity {0:?}")]
    Quantity(String),
}

/// The addresses that a pod has once its sandbox stands, as the kubelet knows them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// The node's addresses, the primary first.
    pub host_ips: Vec<String>,
    /// The pod's addresses, the primary first.
    pub pod_ips: Vec<String>,
}

/// The value of `path` of `pod`.
///
/// # Errors
/// [`FieldError::Path`] for a path that the downward API does not have.
pub fn field(pod: &Pod, path: &str, addresses: &Addresses) -> Result<String, FieldError> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let text = |s: &Option<String>| s.clone().unwrap_or_default();
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(FieldError::Path(path.to_owned())),
        };
        return Ok(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => text(&meta.name),
        "metadata.namespace" => text(&meta.namespace),
        "metadata.uid" => text(&meta.uid),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.annotations" => format_map(meta.annotations.as_ref()),
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
        "status.hostIP" => addresses.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => addresses.host_ips.join(","),
        "status.podIP" => addresses.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => addresses.pod_ips.join(","),
        other => return Err(FieldError::Path(other.to_owned())),
    })
}

fn subscript(path: &str) -> Option<(&str, &str)> {
    path.strip_suffix("']").and_then(|p| p.split_once("['"))
}

/// `key="value"` lines sorted by key, as pkg/fieldpath `FormatMap` writes them.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    map.into_iter().flatten().map(|(k, v)| format!("{k}={}", go_quote(v))).collect::<Vec<_>>().join("\n")
}

/// Go's `%q` for text.
fn go_quote(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if u32::from(c) < 0x20 || u32::from(c) == 0x7f => {
                out.push_str(&format!("\\x{:02x}", u32::from(c)));
            }
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

/// The value of a `resourceFieldRef`: in units of its divisor, rounded up; a limit that is not set
/// is the node's allocatable.
///
/// # Errors
/// [`FieldError`] for an unknown container or resource, or a quantity that cannot be read.
pub fn resource(
    pod: &Pod,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
    allocatable: &BTreeMap<String, Quantity>,
) -> Result<String, FieldError> {
    let container = match selector.container_name.as_deref().filter(|n| !n.is_empty()) {
        Some(name) => pod
            .spec
            .as_ref()
            .and_then(|s| {
                s.containers.iter().chain(s.init_containers.iter().flatten()).find(|c| c.name == name)
            })
            .ok_or_else(|| FieldError::Container(name.to_owned()))?,
        None => own.ok_or_else(|| FieldError::Container(String::new()))?,
    };
    let unknown = || FieldError::Resource(selector.resource.clone());
    let (kind, name) = selector.resource.split_once('.').ok_or_else(unknown)?;
    if !matches!(name, "cpu" | "memory" | "ephemeral-storage") && !name.starts_with("hugepages-") {
        return Err(unknown());
    }
    let resources = container.resources.as_ref();
    let set = |map: Option<&BTreeMap<String, Quantity>>| map.and_then(|m| m.get(name)).map(|q| q.0.clone());
    let quantity = match kind {
        "limits" => set(resources.and_then(|r| r.limits.as_ref())).or_else(|| set(Some(allocatable))),
        "requests" => set(resources.and_then(|r| r.requests.as_ref())),
        _ => return Err(unknown()),
    }
    .unwrap_or_else(|| "0".to_owned());
    let read = |text: &str| milli(text).ok_or_else(|| FieldError::Quantity(text.to_owned()));
    let divisor = match selector.divisor.as_ref().map(|d| read(&d.0)).transpose()? {
        None | Some(..=0) => 1000,
        Some(d) => d,
    };
    Ok(ceil_div(read(&quantity)?, divisor).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u",
                "labels": {"b": "2", "a": "x\"y"}, "annotations": {"k/x": "v"}},
            "spec": {"nodeName": "node", "serviceAccountName": "sa", "containers": [
                {"name": "c", "resources": {"limits": {"cpu": "1250m", "memory": "64Mi"}, "requests": {"cpu": "10m"}}},
                {"name": "bare"}]}
        }))
        .unwrap()
    }

    #[test]
    fn each_path_has_its_value() {
        let addresses = Addresses {
            host_ips: vec!["10.0.0.1".into()],
            pod_ips: vec!["10.1.0.2".into(), "fd00::2".into()],
        };
        for (path, expected) in [
            ("metadata.name", "p"),
            ("metadata.namespace", "n"),
            ("metadata.uid", "u"),
            ("metadata.labels['b']", "2"),
            ("metadata.labels['none']", ""),
            ("metadata.annotations['k/x']", "v"),
            ("metadata.labels", "a=\"x\\\"y\"\nb=\"2\""),
            ("spec.nodeName", "node"),
            ("spec.serviceAccountName", "sa"),
            ("status.hostIP", "10.0.0.1"),
            ("status.podIP", "10.1.0.2"),
            ("status.podIPs", "10.1.0.2,fd00::2"),
        ] {
            assert_eq!(field(&pod(), path, &addresses).unwrap(), expected, "{path}");
        }
        assert!(field(&pod(), "spec.x", &addresses).is_err());
    }

    #[test]
    fn resources_round_up_and_fall_back_to_the_node() {
        let node = BTreeMap::from([("cpu".to_owned(), Quantity("2".to_owned()))]);
        let pod = pod();
        for (container, resource_name, divisor, expected) in [
            ("c", "limits.cpu", None, "2"),
            ("c", "limits.cpu", Some("1m"), "1250"),
            ("c", "limits.memory", Some("1Mi"), "64"),
            ("c", "requests.cpu", Some("0"), "1"),
            ("bare", "limits.cpu", None, "2"),
            ("bare", "requests.cpu", None, "0"),
        ] {
            let selector = ResourceFieldSelector {
                container_name: Some(container.to_owned()),
                resource: resource_name.to_owned(),
                divisor: divisor.map(|d| Quantity(d.to_owned())),
            };
            assert_eq!(
                resource(&pod, None, &selector, &node).unwrap(),
                expected,
                "{container} {resource_name}"
            );
        }
    }
}
