//! The mounts of a container: what every one has, and what is asked for.

use super::{Input, SpecError};
use podway_cri::v1::{IdMapping, Mount};
use serde_json::{Value, json};
use std::path::Path;

/// What every container has.
pub(super) fn base(input: &Input<'_>, privileged: bool) -> Vec<Value> {
    let sys = if privileged { "rw" } else { "ro" };
    let mut mounts = vec![
        json!({"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]}),
        json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]}),
        json!({"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]}),
        json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", sys]}),
        json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", sys]}),
    ];
    let shm = input.shm.unwrap_or(Path::new("/dev/shm"));
    mounts.push(json!({"destination": "/dev/shm", "type": "bind", "source": shm, "options": ["rbind", "nosuid", "noexec", "nodev", "rw"]}));
    mounts
}

/// A mount that is asked for. One of an image has its directory as `host_path` by now.
pub(super) fn asked(mount: &Mount) -> Result<Value, SpecError> {
    let bad = |why| Err(SpecError::Mount(mount.container_path.clone(), why));
    let mapped = !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty();
    if mapped && (mount.uid_mappings.is_empty() || mount.gid_mappings.is_empty()) {
        return bad("uidMappings and gidMappings must come together");
    }
    if !mount.container_path.starts_with('/') || mount.container_path == "/" {
        return bad("container_path must be absolute and not /");
    }
    if !mount.host_path.starts_with('/') {
        return bad("host_path must be absolute");
    }
    if mount.recursive_read_only && (!mount.readonly || mount.propagation != 0) {
        return bad("recursive_read_only needs readonly and private propagation");
    }
    let propagation = match mount.propagation {
        1 => "rslave",
        2 => "rshared",
        _ => "rprivate",
    };
    let mode = match (mount.readonly, mount.recursive_read_only) {
        (_, true) => "rro",
        (true, false) => "ro",
        (false, false) => "rw",
    };
    // containerd and CRI-O follow a link of the host's; so does the kernel at the mount.
    let source = std::fs::canonicalize(&mount.host_path).unwrap_or_else(|_| mount.host_path.clone().into());
    let mut value = json!({
        "destination": mount.container_path, "type": "bind", "source": source,
        "options": ["rbind", propagation, mode],
    });
    if mapped {
        // runc's own id-mapped mount, in depth as the bind is.
        value["uidMappings"] = ids(&mount.uid_mappings);
        value["gidMappings"] = ids(&mount.gid_mappings);
        value["options"] = json!(["rbind", propagation, mode, "ridmap"]);
    }
    Ok(value)
}

fn ids(list: &[IdMapping]) -> Value {
    list.iter()
        .map(|m| json!({"containerID": m.container_id, "hostID": m.host_id, "size": m.length}))
        .collect()
}
