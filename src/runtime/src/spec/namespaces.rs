//! The namespaces of a container, and the id mapping of a pod with a user namespace.

use super::{Input, SpecError};
use crate::netns::pinned;
use podway_cri::v1::{NamespaceMode, NamespaceOption};
use serde_json::{Value, json};

/// One range of ids, for users and groups alike: ids of the pod from 0, ids of the host from `host`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The host's id of the pod's root.
    pub host: u32,
    /// How many.
    pub length: u32,
}

impl Mapping {
    /// As a runtime spec has it.
    #[must_use]
    pub fn oci(self) -> Value {
        json!([{"containerID": 0, "hostID": self.host, "size": self.length}])
    }

    /// As `/proc/PID/uid_map` is written.
    #[must_use]
    pub fn line(self) -> String {
        format!("0 {} {}\n", self.host, self.length)
    }
}

/// The mapping that a pod asks for, or `None` for the host's user namespace.
///
/// # Errors
/// [`SpecError::UserNamespace`] for anything but one range that begins with root.
pub fn mapping(options: &NamespaceOption) -> Result<Option<Mapping>, SpecError> {
    let Some(asked) = &options.userns_options else { return Ok(None) };
    let bad = |why: &'static str| Err(SpecError::UserNamespace(why));
    match NamespaceMode::try_from(asked.mode) {
        Ok(NamespaceMode::Node) => {
            if asked.uids.is_empty() && asked.gids.is_empty() {
                return Ok(None);
            }
            return bad("mode NODE has no mappings");
        }
        Ok(NamespaceMode::Pod) => {}
        _ => return bad("mode must be POD or NODE"),
    }
    // What a message without the field decodes to: nothing is asked for.
    if asked.uids.is_empty() && asked.gids.is_empty() {
        return Ok(None);
    }
    let ([uids], [gids]) = (asked.uids.as_slice(), asked.gids.as_slice()) else {
        return bad("one range of uids and one of gids is supported");
    };
    if uids != gids {
        return bad("uids and gids must have the same range");
    }
    if uids.container_id != 0 {
        return bad("the range must begin with the pod's id 0");
    }
    if uids.length == 0 || uids.host_id.checked_add(uids.length).is_none() {
        return bad("the range is empty or leaves 32 bits");
    }
    if uids.host_id == 0 {
        return bad("the pod's root cannot be the host's");
    }
    Ok(Some(Mapping { host: uids.host_id, length: uids.length }))
}

/// The namespaces that runc makes or joins.
pub(super) fn namespaces(input: &Input<'_>) -> Result<Vec<Value>, SpecError> {
    let context = input.container.linux.as_ref().and_then(|l| l.security_context.as_ref());
    let options = context.and_then(|c| c.namespace_options.clone()).unwrap_or_default();
    let mut list = vec![json!({"type": "mount"})];
    // On v2 it hides the machine's other cgroups. A privileged container has always seen them, and on v1 a mount of
    // each controller shows the container's own alone (containerd: internal/cri/server/container_create.go).
    if input.features.cgroup_v2 && !context.is_some_and(|c| c.privileged) {
        list.push(json!({"type": "cgroup"}));
    }
    for (kind, name) in [("user", "user"), ("net", "network"), ("ipc", "ipc"), ("uts", "uts")] {
        // What the sandbox did not pin is the host's.
        let pin = input.namespaces.join(kind);
        if pinned(&pin) {
            list.push(json!({"type": name, "path": pin}));
        }
    }
    match NamespaceMode::try_from(options.pid) {
        Ok(NamespaceMode::Container) => list.push(json!({"type": "pid"})),
        Ok(NamespaceMode::Node) => {}
        Ok(NamespaceMode::Pod) => {
            let pin = input.namespaces.join("pid");
            if !pinned(&pin) {
                return Err(SpecError::NoSharedPid);
            }
            list.push(json!({"type": "pid", "path": pin}));
        }
        Ok(NamespaceMode::Target) => {
            let Some(pid) = input.target else { return Err(SpecError::Target(options.target_id)) };
            list.push(json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")}));
        }
        Err(_) => return Err(SpecError::NotSupported(format!("PID namespace mode {}", options.pid))),
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use podway_cri::v1::{IdMapping, UserNamespace};

    #[test]
    fn one_range_that_begins_with_root() {
        let range = |container_id, host_id, length| IdMapping { host_id, container_id, length };
        let asked = |mode: NamespaceMode, uids: &[IdMapping], gids: &[IdMapping]| NamespaceOption {
            userns_options: Some(UserNamespace {
                mode: mode as i32,
                uids: uids.to_vec(),
                gids: gids.to_vec(),
            }),
            ..Default::default()
        };
        let good = range(0, 1000, 65536);
        let (pod, node) = (NamespaceMode::Pod, NamespaceMode::Node);
        assert_eq!(mapping(&NamespaceOption::default()).unwrap(), None);
        assert_eq!(mapping(&asked(node, &[], &[])).unwrap(), None);
        let got = mapping(&asked(pod, &[good], &[good])).unwrap();
        assert_eq!(got, Some(Mapping { host: 1000, length: 65536 }));
        let other = range(0, 2000, 65536);
        for bad in [
            asked(pod, &[good, other], &[good, other]),
            asked(pod, &[good], &[other]),
            asked(pod, &[good], &[]),
            asked(pod, &[range(1, 1000, 10)], &[range(1, 1000, 10)]),
            asked(pod, &[range(0, 0, 10)], &[range(0, 0, 10)]),
            asked(pod, &[range(0, 5, u32::MAX)], &[range(0, 5, u32::MAX)]),
            asked(NamespaceMode::Container, &[], &[]),
            asked(NamespaceMode::Target, &[], &[]),
            asked(node, &[good], &[good]),
        ] {
            assert!(mapping(&bad).is_err(), "{bad:?}");
        }
    }
}
