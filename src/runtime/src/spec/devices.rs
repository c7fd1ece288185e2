//! Device nodes, and the rules of the device cgroup.

use super::SpecError;
use podway_cri::v1::ContainerConfig;
use serde_json::{Value, json};
use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// What runc makes in every container by itself, and directories that hold no device of the host.
const LEFT_OUT: [&str; 6] = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd", "/dev/console", "/dev/.lxc"];
/// Deep enough for `/dev/bus/usb/001/001`.
const DEPTH: usize = 5;

/// Nodes and rules: those that are asked for, and for a privileged container every one of the host.
pub(super) fn devices(
    container: &ContainerConfig,
    privileged: bool,
) -> Result<(Vec<Value>, Vec<Value>), SpecError> {
    let mut nodes = Vec::new();
    let mut rules = vec![json!({"allow": privileged, "access": "rwm"})];
    if privileged {
        below(Path::new("/dev"), DEPTH, &mut nodes);
    }
    for device in &container.devices {
        if !device.permissions.bytes().all(|b| matches!(b, b'r' | b'w' | b'm')) {
            return Err(SpecError::Permissions(device.permissions.clone()));
        }
        let access = if device.permissions.is_empty() { "rwm" } else { device.permissions.as_str() };
        // A directory stands for the devices in it, as it does in containerd and CRI-O.
        let host = std::fs::canonicalize(&device.host_path).unwrap_or_default();
        let mut found = Vec::new();
        match std::fs::metadata(&host).ok() {
            Some(meta) if meta.is_dir() => below(&host, DEPTH, &mut found),
            Some(meta) => found.extend(node(&host, &meta)),
            None => {}
        }
        if found.is_empty() {
            return Err(SpecError::Device(device.host_path.clone()));
        }
        for mut made in found {
            let path = made["path"].as_str().unwrap_or_default();
            let rest = Path::new(path).strip_prefix(&host).unwrap_or(Path::new(""));
            let inside = Path::new(&device.container_path).join(rest);
            // `join` of nothing leaves a slash behind.
            let inside = inside.display().to_string().trim_end_matches('/').to_owned();
            made["path"] = json!(inside);
            rules.push(json!({
                "allow": true, "type": made["type"], "major": made["major"], "minor": made["minor"],
                "access": access,
            }));
            nodes.retain(|n: &Value| n["path"] != made["path"]);
            nodes.push(made);
        }
    }
    Ok((nodes, rules))
}

fn node(path: &Path, meta: &Metadata) -> Option<Value> {
    let kind = match meta.file_type() {
        t if t.is_char_device() => "c",
        t if t.is_block_device() => "b",
        _ => return None,
    };
    Some(json!({
        "path": path, "type": kind,
        "major": rustix::fs::major(meta.rdev()), "minor": rustix::fs::minor(meta.rdev()),
        "fileMode": meta.mode() & 0o777, "uid": meta.uid(), "gid": meta.gid(),
    }))
}

/// The device nodes in a directory; links are other names of what is found anyway.
fn below(dir: &Path, depth: usize, found: &mut Vec<Value>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if LEFT_OUT.iter().any(|p| path == Path::new(p)) {
            continue;
        }
        // What went between the two calls is no device.
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        if meta.is_dir() && depth > 0 {
            below(&path, depth - 1, found);
        } else {
            found.extend(node(&path, &meta));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podway_cri::v1::Device;

    #[test]
    fn a_device_a_directory_of_them_and_what_is_none() {
        let config = |host: &str, container: &str, permissions: &str| ContainerConfig {
            devices: vec![Device {
                host_path: host.to_owned(),
                container_path: container.to_owned(),
                permissions: permissions.to_owned(),
            }],
            ..Default::default()
        };
        let (nodes, rules) = devices(&config("/dev/null", "/dev/nothing", "r"), false).unwrap();
        assert_eq!(nodes[0]["path"], "/dev/nothing");
        assert_eq!((&rules[0]["allow"], &rules[1]["access"]), (&json!(false), &json!("r")));
        assert!(devices(&config("/etc", "/dev/x", ""), false).is_err());
        assert!(devices(&config("/nonexistent", "/dev/x", ""), false).is_err());
        assert!(devices(&config("/dev/null", "/dev/x", "rx"), false).is_err());
        let (nodes, _) = devices(&ContainerConfig::default(), true).unwrap();
        assert!(nodes.iter().any(|n| n["path"] == "/dev/null"), "{nodes:?}");
        assert!(nodes.iter().all(|n| n["path"] != "/dev/console"));
    }
}
