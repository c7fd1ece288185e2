//! What a checkpoint says of its container beside its memory and files, in the files that checkpointctl, CRI-O and
//! containerd read.

use crate::error::OpError;
use crate::ids::Id;
use crate::spec::SpecError;
use crate::state::{Attached, Container, Runtime, Sandbox};
use crate::status::container_status;
use jiff::Timestamp;
use podway_cri::v1;
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Writes them into `work`; gives config.json, of which the rest of the checkpoint asks for mounts. Blocks.
pub(super) fn write(
    runtime: &Runtime,
    id: &Id,
    entry: &Container,
    (pod, asked): (&Sandbox, &v1::PodSandboxConfig),
    work: &Path,
) -> Result<Value, OpError> {
    let of = asked.metadata.clone().unwrap_or_default();
    let text = std::fs::read(runtime.bundle(id).join("config.json"));
    let text = text.map_err(|e| OpError::Io("read config.json", e))?;
    let spec: Value = serde_json::from_slice(&text).map_err(SpecError::Shape)?;
    let status = container_status(id, entry);
    let handler = if pod.handler.is_empty() { crate::handlers::DEFAULT } else { &pod.handler };
    put(work, "config.dump", &config(&of, entry, &status, handler))?;
    put(work, "spec.dump", &annotated(spec.clone(), &of, entry, &status))?;
    put(work, "status.dump", &shown(&status))?;
    if let Some(network) = pod.attached.as_ref().and_then(network) {
        put(work, "network.status", &network)?;
    }
    let binds = binds(&spec).map_err(|e| OpError::Io("look at what is mounted", e))?;
    if !binds.is_empty() {
        put(work, "bind.mounts", &Value::Array(binds))?;
    }
    Ok(spec)
}

/// One of them, as Go's tools write JSON for people.
pub(super) fn put(work: &Path, name: &str, document: &Value) -> Result<(), OpError> {
    let mut file = super::archive::private_file(&work.join(name)).map_err(|e| OpError::Io("dump", e))?;
    write!(file, "{document:#}").map_err(|e| OpError::Io("dump", e))
}

fn time(nanoseconds: i64) -> String {
    Timestamp::from_nanosecond(nanoseconds.into()).map_or_else(|_| String::new(), |time| time.to_string())
}

/// checkpointctl's `ContainerConfig`.
fn config(
    of: &v1::PodSandboxMetadata,
    entry: &Container,
    status: &v1::ContainerStatus,
    handler: &str,
) -> Value {
    let image = status.image.clone().unwrap_or_default();
    let asked = [image.user_specified_image, image.image].into_iter().find(|name| !name.is_empty());
    let meta = status.metadata.clone().unwrap_or_default();
    // As containerd names a container.
    let name = [&meta.name, &of.name, &of.namespace, &of.uid, &meta.attempt.to_string()]
        .map(String::as_str)
        .join("_");
    json!({
        "id": status.id,
        "name": name,
        "rootfsImage": asked,
        "rootfsImageRef": status.image_ref,
        "rootfsImageName": asked,
        "runtime": handler,
        "createdTime": time(entry.created_at),
        "checkpointedTime": Timestamp::now().to_string(),
        "restoredTime": "0001-01-01T00:00:00Z",
        "restored": false,
    })
}

/// The spec with containerd's annotations: by these a checkpoint is asked whose it is.
fn annotated(
    mut spec: Value,
    of: &v1::PodSandboxMetadata,
    entry: &Container,
    status: &v1::ContainerStatus,
) -> Value {
    let name = status.metadata.clone().unwrap_or_default().name;
    for (key, value) in [
        ("container-type", "container".to_owned()),
        ("container-name", name),
        ("sandbox-id", entry.sandbox.to_string()),
        ("sandbox-name", of.name.clone()),
        ("sandbox-namespace", of.namespace.clone()),
        ("sandbox-uid", of.uid.clone()),
    ] {
        spec["annotations"][format!("io.kubernetes.cri.{key}")] = json!(value);
    }
    spec
}

/// The CRI's status, with the names that Go gives its fields.
fn shown(status: &v1::ContainerStatus) -> Value {
    let meta = status.metadata.clone().unwrap_or_default();
    let image = status.image.clone().unwrap_or_default();
    json!({
        "id": status.id,
        "metadata": {"name": meta.name, "attempt": meta.attempt},
        "state": status.state,
        "created_at": status.created_at,
        "started_at": status.started_at,
        "image": {"image": image.image, "user_specified_image": image.user_specified_image},
        "image_ref": status.image_ref,
        "image_id": status.image_id,
        "labels": status.labels,
        "annotations": status.annotations,
        "log_path": status.log_path,
    })
}

/// podman's `network.status`: addresses and gateways by network and interface, of what CNI answered.
fn network(attached: &Attached) -> Option<Value> {
    let result = attached.result.as_ref()?;
    let mut interfaces = serde_json::Map::new();
    for address in result["ips"].as_array().into_iter().flatten() {
        let number = address["interface"].as_u64().and_then(|n| usize::try_from(n).ok());
        let interface = &result["interfaces"][number.unwrap_or(0)];
        let name = interface["name"].as_str().unwrap_or("eth0");
        let shown = interfaces.entry(name).or_insert_with(
            || json!({"subnets": [], "mac_address": interface["mac"].as_str().unwrap_or("")}),
        );
        let gateway = address["gateway"].as_str().unwrap_or("");
        if let Some(subnets) = shown["subnets"].as_array_mut() {
            subnets.push(json!({"ipnet": address["address"], "gateway": gateway}));
        }
    }
    Some(json!({ attached.network.name.clone(): {"interfaces": interfaces} }))
}

/// CRI-O's `bind.mounts`: whether what was mounted is a file or a directory, for whoever has to make it again.
fn binds(spec: &Value) -> std::io::Result<Vec<Value>> {
    use std::os::unix::fs::PermissionsExt as _;
    let binds = spec["mounts"].as_array().into_iter().flatten().filter(|mount| mount["type"] == "bind");
    let shown = binds.filter(|mount| mount["destination"] != "/dev/shm").map(|mount| {
        let source = PathBuf::from(mount["source"].as_str().unwrap_or_default());
        let meta = std::fs::metadata(&source)?;
        Ok(json!({
            "source": source,
            "destination": mount["destination"],
            "file_type": if meta.is_dir() { "directory" } else { "file" },
            "permissions": meta.permissions().mode() & 0o777,
        }))
    });
    shown.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_by_network_and_interface() {
        let network = json!({"name": "pods", "cni_version": "1.0.0", "plugins": []});
        let network: crate::cni::Network = serde_json::from_value(network).unwrap();
        let result = json!({
            "interfaces": [{"name": "br0"}, {"name": "eth0", "mac": "0a:00", "sandbox": "/x"}],
            "ips": [{"interface": 1, "address": "10.1.0.2/24", "gateway": "10.1.0.1"},
                    {"interface": 1, "address": "fd00::2/64"}],
        });
        let told = super::network(&Attached { network: network.clone(), result: Some(result) }).unwrap();
        let want = json!({"pods": {"interfaces": {"eth0": {"mac_address": "0a:00", "subnets": [
            {"ipnet": "10.1.0.2/24", "gateway": "10.1.0.1"}, {"ipnet": "fd00::2/64", "gateway": ""}]}}}});
        assert_eq!(told, want);
        assert!(super::network(&Attached { network, result: None }).is_none());
    }

    #[test]
    fn times_are_as_go_reads_them() {
        assert_eq!(time(1_000_000_001), "1970-01-01T00:00:01.000000001Z");
    }
}
