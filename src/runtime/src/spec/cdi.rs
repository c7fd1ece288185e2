//! Devices by their CDI names (Container Device Interface): what a vendor's file in `/etc/cdi` or
//! `/var/run/cdi` says of `vendor/class=device` goes into the container's spec.
//!
//! The files are the administrator's, and are read strictly: an unknown key is an error that names the
//! file. Of two files with the same device the one in `/var/run/cdi` counts; two in one directory are a
//! conflict. (specs-go/config.go and pkg/cdi of container-device-interface.)

use super::SpecError;
use serde::Deserialize;
use serde_json::{Value, json};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Where the files are, the last one first in rank.
pub const DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];
/// The most that is read of one file, in bytes.
const LIMIT: u64 = 1 << 20;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    cdi_version: String,
    kind: String,
    #[serde(default, rename = "annotations")]
    _annotations: Value,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Device {
    name: String,
    #[serde(default, rename = "annotations")]
    _annotations: Value,
    #[serde(default)]
    container_edits: Edits,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Edits {
    env: Vec<String>,
    device_nodes: Vec<Node>,
    mounts: Vec<Mount>,
    hooks: Vec<Hook>,
    additional_gids: Vec<u32>,
    intel_rdt: Option<Value>,
    net_devices: Vec<Value>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Node {
    path: String,
    #[serde(default)]
    host_path: String,
    #[serde(default, rename = "type")]
    kind: String,
    major: Option<u32>,
    minor: Option<u32>,
    file_mode: Option<u32>,
    #[serde(default)]
    permissions: String,
    uid: Option<u32>,
    gid: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Mount {
    host_path: String,
    container_path: String,
    #[serde(default)]
    options: Vec<String>,
    #[serde(default, rename = "type")]
    kind: String,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Hook {
    hook_name: String,
    path: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    timeout: Option<u32>,
}

fn bad(what: impl Into<String>) -> SpecError {
    SpecError::Cdi(what.into())
}

/// The files of a directory, by name; one that is not there has none.
fn files(dir: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|e| e.path());
    let ours = |p: &PathBuf| p.extension().is_some_and(|e| e == "json" || e == "yaml");
    let mut found: Vec<PathBuf> = all.filter(ours).collect();
    found.sort();
    found
}

fn read(path: &Path) -> Result<Document, SpecError> {
    let err = |why: String| bad(format!("{}: {why}", path.display()));
    let meta = std::fs::metadata(path).map_err(|e| err(e.to_string()))?;
    if !meta.is_file() || meta.len() > LIMIT {
        return Err(err("it is not a file of at most 1 MiB".to_owned()));
    }
    let text = std::fs::read(path).map_err(|e| err(e.to_string()))?;
    // JSON is YAML.
    let document: Document = serde_yaml::from_slice(&text).map_err(|e| err(e.to_string()))?;
    if !document.cdi_version.starts_with("0.") && !document.cdi_version.starts_with("1.") {
        return Err(err(format!("cdiVersion {:?} is not known", document.cdi_version)));
    }
    Ok(document)
}

/// The edits of a device: its file's own, then the device's.
fn find(dirs: &[&Path], name: &str) -> Result<Vec<Edits>, SpecError> {
    let (kind, device) =
        name.split_once('=').ok_or_else(|| bad(format!("{name:?} is not vendor/class=device")))?;
    for dir in dirs.iter().rev() {
        let mut found: Option<Vec<Edits>> = None;
        for path in files(dir) {
            let document = read(&path)?;
            let Some(of) = document.devices.iter().find(|d| document.kind == kind && d.name == device) else {
                continue;
            };
            if found.is_some() {
                return Err(bad(format!("{name:?} is in two files of {}", dir.display())));
            }
            found = Some(vec![document.container_edits.clone(), of.container_edits.clone()]);
        }
        if let Some(edits) = found {
            return Ok(edits);
        }
    }
    Err(bad(format!("unresolvable CDI device {name:?}: no file in {} has it", DIRS.join(" or "))))
}

/// Puts what the devices need into a spec.
///
/// # Errors
/// [`SpecError::Cdi`].
pub(super) fn inject(spec: &mut Value, names: &[String], dirs: &[&Path]) -> Result<(), SpecError> {
    let mut shared: Vec<String> = Vec::new();
    for name in names {
        let mut edits = find(dirs, name)?.into_iter();
        // What a file says for all its devices is done once.
        let (kind, _) = name.split_once('=').unwrap_or_default();
        let common = edits.next();
        if !shared.iter().any(|k| k == kind) {
            shared.push(kind.to_owned());
            common.iter().try_for_each(|e| apply(spec, e))?;
        }
        edits.try_for_each(|e| apply(spec, &e))?;
    }
    Ok(())
}

fn push(spec: &mut Value, pointer: &str, value: Value) {
    if let Some(list) = spec.pointer_mut(pointer).and_then(Value::as_array_mut) {
        list.push(value);
    }
}

fn apply(spec: &mut Value, edits: &Edits) -> Result<(), SpecError> {
    if edits.intel_rdt.is_some() {
        return Err(SpecError::NotSupported("CDI: intelRdt".to_owned()));
    }
    if !edits.net_devices.is_empty() {
        return Err(SpecError::NotSupported("CDI: netDevices".to_owned()));
    }
    for line in &edits.env {
        let key = line.split_once('=').ok_or_else(|| bad(format!("{line:?} is not KEY=value")))?.0;
        if let Some(list) = spec.pointer_mut("/process/env").and_then(Value::as_array_mut) {
            let same =
                |v: &Value| v.as_str().is_some_and(|v| v.split_once('=').is_some_and(|(k, _)| k == key));
            list.retain(|v| !same(v));
            list.push(json!(line));
        }
    }
    for node in &edits.device_nodes {
        let (made, rule) = device(node)?;
        push(spec, "/linux/devices", made);
        push(spec, "/linux/resources/devices", rule);
    }
    for mount in &edits.mounts {
        let kind = if mount.kind.is_empty() { "bind" } else { mount.kind.as_str() };
        let options = if mount.options.is_empty() { vec!["rbind".to_owned()] } else { mount.options.clone() };
        push(
            spec,
            "/mounts",
            json!({"destination": mount.container_path, "source": mount.host_path, "type": kind, "options": options}),
        );
    }
    for hook in &edits.hooks {
        let known =
            ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
        if !known.contains(&hook.hook_name.as_str()) || !hook.path.starts_with('/') {
            return Err(bad(format!("hook {:?} at {:?} is not valid", hook.hook_name, hook.path)));
        }
        let mut value = json!({"path": hook.path, "args": hook.args, "env": hook.env});
        if let Some(seconds) = hook.timeout {
            value["timeout"] = json!(seconds);
        }
        let hooks = &mut spec["hooks"][hook.hook_name.as_str()];
        match hooks.as_array_mut() {
            Some(list) => list.push(value),
            None => *hooks = json!([value]),
        }
    }
    for gid in &edits.additional_gids {
        push(spec, "/process/user/additionalGids", json!(gid));
    }
    Ok(())
}

/// A node, and the rule that lets it be used; what the file does not say is the host's.
fn device(node: &Node) -> Result<(Value, Value), SpecError> {
    let host = if node.host_path.is_empty() { &node.path } else { &node.host_path };
    let meta = std::fs::metadata(host).ok();
    let on_host = meta.as_ref().and_then(|m| match m.file_type() {
        t if t.is_block_device() => Some("b"),
        t if t.is_char_device() => Some("c"),
        _ => None,
    });
    let kind = Some(node.kind.as_str()).filter(|k| !k.is_empty()).or(on_host);
    let kind = kind.ok_or_else(|| SpecError::Device(host.clone()))?;
    let number = |given: Option<u32>, of: fn(u64) -> u32| given.or(meta.as_ref().map(|m| of(m.rdev())));
    let (major, minor) = (number(node.major, rustix::fs::major), number(node.minor, rustix::fs::minor));
    let (Some(major), Some(minor)) = (major, minor) else { return Err(SpecError::Device(host.clone())) };
    let access = if node.permissions.is_empty() { "rwm" } else { node.permissions.as_str() };
    let mut made = json!({"path": node.path, "type": kind, "major": major, "minor": minor});
    let mode = node.file_mode.or(meta.as_ref().map(|m| m.mode() & 0o777));
    for (key, value) in [
        ("fileMode", mode),
        ("uid", node.uid.or(meta.as_ref().map(|m| m.uid()))),
        ("gid", node.gid.or(meta.as_ref().map(|m| m.gid()))),
    ] {
        if let Some(value) = value {
            made[key] = json!(value);
        }
    }
    Ok((made, json!({"allow": true, "type": kind, "major": major, "minor": minor, "access": access})))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Value {
        json!({"process": {"env": ["A=1"], "user": {"additionalGids": []}}, "mounts": [],
               "linux": {"devices": [], "resources": {"devices": []}}})
    }

    #[test]
    fn a_device_brings_what_its_file_says() {
        let (etc, run) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let file = r#"{"cdiVersion": "0.6.0", "kind": "vendor.com/gpu",
            "containerEdits": {"env": ["SHARED=1"]},
            "devices": [{"name": "0", "containerEdits": {
                "env": ["A=2"], "additionalGids": [44],
                "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/null", "permissions": "rw"}],
                "mounts": [{"hostPath": "/lib/x", "containerPath": "/usr/lib/x", "options": ["ro", "bind"]}],
                "hooks": [{"hookName": "createContainer", "path": "/bin/hook", "args": ["hook"]}]}},
              {"name": "1"}]}"#;
        std::fs::write(etc.path().join("gpu.json"), file).unwrap();
        let dirs = [etc.path(), run.path()];
        let names = |n: &[&str]| n.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let mut spec = empty();
        inject(&mut spec, &names(&["vendor.com/gpu=0", "vendor.com/gpu=1"]), &dirs).unwrap();
        assert_eq!(spec["process"]["env"], json!(["SHARED=1", "A=2"]));
        assert_eq!(spec["linux"]["devices"][0]["path"], "/dev/gpu0");
        assert_eq!(spec["linux"]["resources"]["devices"][0]["access"], "rw");
        assert_eq!(spec["mounts"][0]["destination"], "/usr/lib/x");
        assert_eq!(spec["hooks"]["createContainer"][0]["path"], "/bin/hook");
        assert_eq!(spec["process"]["user"]["additionalGids"], json!([44]));
        for unknown in ["vendor.com/gpu=2", "other/gpu=0", "nonsense"] {
            let error = inject(&mut empty(), &names(&[unknown]), &dirs).unwrap_err().to_string();
            assert!(error.contains(unknown), "{error}");
        }
        // The run directory counts before /etc; two files in one are a conflict.
        let other = "cdiVersion: 0.6.0\nkind: vendor.com/gpu\ndevices:\n- name: '0'\n  containerEdits: {env: [B=9]}\n";
        std::fs::write(run.path().join("a.yaml"), other).unwrap();
        let mut spec = empty();
        inject(&mut spec, &names(&["vendor.com/gpu=0"]), &dirs).unwrap();
        assert_eq!(spec["process"]["env"], json!(["A=1", "B=9"]));
        std::fs::write(run.path().join("b.yaml"), other).unwrap();
        assert!(inject(&mut empty(), &names(&["vendor.com/gpu=0"]), &dirs).is_err());
    }

    #[test]
    fn a_file_that_is_not_understood_is_an_error_that_names_it() {
        let dir = tempfile::tempdir().unwrap();
        let names = ["v/c=d".to_owned()];
        for (text, word) in [
            ("{", "f.json"),
            (r#"{"cdiVersion": "9.0", "kind": "v/c"}"#, "cdiVersion"),
            (r#"{"cdiVersion": "0.6.0", "kind": "v/c", "device": []}"#, "device"),
            (
                r#"{"cdiVersion": "0.6.0", "kind": "v/c", "devices": [{"name": "d", "containerEdits": {"intelRdt": {}}}]}"#,
                "intelRdt",
            ),
        ] {
            std::fs::write(dir.path().join("f.json"), text).unwrap();
            let error = inject(&mut empty(), &names, &[dir.path()]).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
