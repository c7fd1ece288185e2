//! User namespaces of pods (`hostUsers: false`): each gets 65536 ids of the host's, which no other pod of
//! the node has (`pkg/kubelet/userns`). What a pod got lies in its directory as the kubelet writes it, and
//! is written before the runtime hears of it: an agent that starts again gives it to nobody else.
//!
//! Volumes need no other owner: every mount of such a pod is id-mapped, so that what is root's or a
//! group's on the disk is so in the pod.

use crate::{files, node};
use k8s_openapi::api::core::v1 as api;
use podway_cri::v1;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tokio::sync::watch;

/// How many ids a pod gets.
const LENGTH: u32 = 65536;
/// The last range that ends within 32 bits. The first is 1: the host's own ids are never mapped.
const LAST: u32 = u32::MAX / LENGTH;
/// The file in a pod's directory.
const FILE: &str = "userns";

/// Why a pod gets no user namespace.
#[derive(Debug, thiserror::Error)]
pub enum UserNsError {
    /// The runtime, or its handler, has none.
    #[error("can't set `spec.hostUsers: false`, {0} does not support user namespaces")]
    Unsupported(String),
    /// All are taken.
    #[error("create user namespace: could not find an empty slot to allocate a user namespace")]
    Full,
    /// What was written down of a pod is not what was written.
    #[error("user namespace: invalid mappings in {0}")]
    Mappings(PathBuf),
    /// The file.
    #[error("create user namespace: {0}")]
    File(PathBuf, #[source] io::Error),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Id {
    host_id: u32,
    container_id: u32,
    length: u32,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mappings {
    #[serde(rename = "uidMappings")]
    uids: Vec<Id>,
    #[serde(rename = "gidMappings")]
    gids: Vec<Id>,
}

impl Mappings {
    fn of(range: u32) -> Self {
        let id = Id { host_id: range * LENGTH, container_id: 0, length: LENGTH };
        Mappings { uids: vec![id.clone()], gids: vec![id] }
    }

    /// The range, if it is one of ours.
    fn range(&self) -> Option<u32> {
        let range = self.uids.first()?.host_id / LENGTH;
        ((1..=LAST).contains(&range) && *self == Mappings::of(range)).then_some(range)
    }
}

/// The ranges of the node's pods.
#[derive(Debug)]
pub struct UserNamespaces {
    pods: PathBuf,
    used: Mutex<BTreeMap<String, u32>>,
    node: watch::Receiver<node::State>,
}

fn written(file: &Path) -> Result<Option<u32>, UserNsError> {
    let text = match std::fs::read(file) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        read => read.map_err(|e| UserNsError::File(file.to_owned(), e))?,
    };
    let bad = || UserNsError::Mappings(file.to_owned());
    let mappings: Mappings = serde_json::from_slice(&text).map_err(|_| bad())?;
    mappings.range().ok_or_else(bad).map(Some)
}

impl UserNamespaces {
    /// Those of the pods whose directories lie in `pods`, on the node that stands as `node` tells.
    #[must_use]
    pub fn new(pods: &Path, node: watch::Receiver<node::State>) -> Self {
        let mut used = BTreeMap::new();
        for entry in std::fs::read_dir(pods).into_iter().flatten().filter_map(Result::ok) {
            match (entry.file_name().into_string(), written(&entry.path().join(FILE))) {
                (Ok(uid), Ok(Some(range))) => drop(used.insert(uid, range)),
                (_, Ok(_)) => {}
                (uid, Err(error)) => tracing::error!(?uid, %error, "a pod's user namespace is not known"),
            }
        }
        UserNamespaces { pods: pods.to_owned(), used: Mutex::new(used), node }
    }

    /// What `pod`, which the runtime's `handler` runs, asks for, once it is written down; none when it is in the host's user namespace.
    ///
    /// # Errors
    /// [`UserNsError`].
    pub fn of(
        &self,
        uid: &str,
        pod: &api::Pod,
        handler: &str,
    ) -> Result<Option<v1::UserNamespace>, UserNsError> {
        let spec = pod.spec.as_ref();
        if spec.and_then(|s| s.host_users) != Some(false) {
            return Ok(None);
        }
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let range = if let Some(range) = used.get(uid) {
            *range
        } else {
            self.supported(handler)?;
            let taken: std::collections::BTreeSet<u32> = used.values().copied().collect();
            let range = (1..=LAST).find(|r| !taken.contains(r)).ok_or(UserNsError::Full)?;
            let file = self.pods.join(uid).join(FILE);
            files::keep(&file, 0o750, &Mappings::of(range)).map_err(|e| UserNsError::File(file, e))?;
            used.insert(uid.to_owned(), range);
            range
        };
        let ids = vec![v1::IdMapping { host_id: range * LENGTH, container_id: 0, length: LENGTH }];
        Ok(Some(v1::UserNamespace { mode: v1::NamespaceMode::Pod as i32, uids: ids.clone(), gids: ids }))
    }

    fn supported(&self, handler: &str) -> Result<(), UserNsError> {
        match self.node.borrow().features(handler).user_namespaces {
            Some(true) => Ok(()),
            _ if handler.is_empty() => Err(UserNsError::Unsupported("runtime".to_owned())),
            _ => Err(UserNsError::Unsupported(format!("RuntimeClass handler {handler:?}"))),
        }
    }

    /// Nothing is left of the pod: its ids may be another's.
    pub fn release(&self, uid: &str) {
        self.used.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

/// Puts a sandbox' user namespace into a container of it, and into what is mounted there.
pub fn adopt(container: &mut v1::ContainerConfig, sandbox: &v1::PodSandboxConfig) {
    let of_sandbox = || {
        let context = sandbox.linux.as_ref()?.security_context.as_ref()?;
        context.namespace_options.as_ref()?.userns_options.clone()
    };
    let Some(userns) = of_sandbox() else { return };
    for mount in &mut container.mounts {
        mount.uid_mappings.clone_from(&userns.uids);
        mount.gid_mappings.clone_from(&userns.gids);
    }
    let context = container.linux.as_mut().and_then(|l| l.security_context.as_mut());
    if let Some(options) = context.and_then(|c| c.namespace_options.as_mut()) {
        options.userns_options = Some(userns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn pod(host_users: Option<bool>) -> api::Pod {
        serde_json::from_value(json!({"spec": {"containers": [], "hostUsers": host_users}})).unwrap()
    }

    fn node(supports: bool) -> watch::Receiver<node::State> {
        let node = serde_json::from_value(json!({"status": {"runtimeHandlers": [
            {"name": "", "features": {"userNamespaces": supports}}]}}));
        watch::channel(node::State { local: Some(Arc::new(node.unwrap())), ..node::State::default() }).1
    }

    fn first(got: Option<v1::UserNamespace>) -> u32 {
        let got = got.unwrap();
        assert_eq!((got.mode, &got.uids), (v1::NamespaceMode::Pod as i32, &got.gids));
        assert_eq!((got.uids[0].container_id, got.uids[0].length), (0, 65536));
        got.uids[0].host_id
    }

    #[test]
    fn each_pod_has_ids_of_its_own_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let all = UserNamespaces::new(dir.path(), node(true));
        assert_eq!(all.of("x", &pod(None), "").unwrap(), None);
        assert_eq!(all.of("x", &pod(Some(true)), "").unwrap(), None);
        assert_eq!(first(all.of("a", &pod(Some(false)), "").unwrap()), 65536);
        assert_eq!(first(all.of("b", &pod(Some(false)), "").unwrap()), 2 * 65536);
        assert_eq!(first(all.of("a", &pod(Some(false)), "").unwrap()), 65536, "asked again");
        let again = UserNamespaces::new(dir.path(), node(true));
        assert_eq!(first(again.of("c", &pod(Some(false)), "").unwrap()), 3 * 65536);
        again.release("a");
        assert_eq!(first(again.of("d", &pod(Some(false)), "").unwrap()), 65536);
        let text = std::fs::read_to_string(dir.path().join("b/userns")).unwrap();
        let ids = r#"[{"hostId":131072,"containerId":0,"length":65536}]"#;
        assert_eq!(text, format!(r#"{{"uidMappings":{ids},"gidMappings":{ids}}}"#), "as a kubelet's");
    }

    #[test]
    fn who_cannot_have_one_is_told_why() {
        let dir = tempfile::tempdir().unwrap();
        let none = UserNamespaces::new(dir.path(), node(false));
        assert_eq!(
            none.of("a", &pod(Some(false)), "").unwrap_err().to_string(),
            "can't set `spec.hostUsers: false`, runtime does not support user namespaces"
        );
        let other = none.of("a", &pod(Some(false)), "kata");
        assert!(other.unwrap_err().to_string().contains("RuntimeClass handler \"kata\""));
        std::fs::create_dir_all(dir.path().join("a")).unwrap();
        for bad in ["{", "{}", r#"{"uidMappings":[],"gidMappings":[]}"#] {
            std::fs::write(dir.path().join("a/userns"), bad).unwrap();
            assert!(matches!(written(&dir.path().join("a/userns")), Err(UserNsError::Mappings(_))), "{bad}");
        }
        let host = serde_json::to_string(&Mappings::of(0)).unwrap();
        std::fs::write(dir.path().join("a/userns"), host).unwrap();
        written(&dir.path().join("a/userns")).unwrap_err();
    }

    #[test]
    fn a_container_has_its_sandboxs_ids_on_every_mount() {
        let ids = vec![v1::IdMapping { host_id: 65536, container_id: 0, length: 65536 }];
        let userns = v1::UserNamespace { mode: 0, uids: ids.clone(), gids: ids.clone() };
        let options = |userns_options| v1::NamespaceOption { userns_options, ..Default::default() };
        let sandbox = |userns| v1::PodSandboxConfig {
            linux: Some(v1::LinuxPodSandboxConfig {
                security_context: Some(v1::LinuxSandboxSecurityContext {
                    namespace_options: Some(options(userns)),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let plain = v1::ContainerConfig {
            mounts: vec![v1::Mount::default()],
            linux: Some(v1::LinuxContainerConfig {
                security_context: Some(v1::LinuxContainerSecurityContext {
                    namespace_options: Some(options(None)),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let mut container = plain.clone();
        adopt(&mut container, &sandbox(None));
        assert_eq!(container, plain);
        adopt(&mut container, &sandbox(Some(userns.clone())));
        assert_eq!((&container.mounts[0].uid_mappings, &container.mounts[0].gid_mappings), (&ids, &ids));
        let context = container.linux.unwrap().security_context.unwrap();
        assert_eq!(context.namespace_options.unwrap().userns_options, Some(userns));
    }
}
