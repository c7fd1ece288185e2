//! A claim's volume on this node: the claim is looked up, then the volume that it is bound to. Those that
//! are a directory of the node (`local`, `hostPath`) are taken as they stand: nothing is mounted for them,
//! and nothing is removed with the pod. The Node authorizer lets a node read the claims of its own pods and
//! their volumes, by name.

use super::{MountedVolume, VolumeError, host_path, io_at};
use crate::env::Objects;
use k8s_openapi::api::core::v1::{HostPathVolumeSource, PersistentVolume, PersistentVolumeClaimVolumeSource};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

/// Finds the directory behind a claim.
pub(super) async fn find(
    objects: &dyn Objects,
    namespace: &str,
    source: &PersistentVolumeClaimVolumeSource,
    group: Option<u32>,
) -> Result<MountedVolume, VolumeError> {
    let name = source.claim_name.as_str();
    let missing = |kind| VolumeError::NotFound { kind, name: name.to_owned() };
    let claim = objects.claim(namespace, name).await?.ok_or_else(|| missing("persistentvolumeclaim"))?;
    let bound = claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound");
    let volume = claim.spec.and_then(|s| s.volume_name).filter(|v| bound && !v.is_empty());
    let volume = volume.ok_or_else(|| VolumeError::Unbound(name.to_owned()))?;
    let found = objects.persistent_volume(&volume).await?;
    let found =
        found.ok_or_else(|| VolumeError::NotFound { kind: "persistentvolume", name: volume.clone() })?;
    let mode = found.spec.as_ref().and_then(|s| s.volume_mode.as_deref()).unwrap_or("Filesystem");
    if mode != "Filesystem" {
        return Err(VolumeError::Unsupported(format!("{volume}: volumeMode {mode}")));
    }
    let place = place(&found, &volume)?;
    let read_only = source.read_only == Some(true);
    let local = found.spec.as_ref().is_some_and(|s| s.local.is_some());
    super::blocking("open a claim's volume", move || {
        let path = host_path(&place)?;
        if let Some(gid) = group.filter(|_| local && !read_only) {
            give(&path, gid)?;
        }
        Ok(MountedVolume { path, read_only, image: None, managed: local })
    })
    .await
}

/// Where the volume is.
fn place(volume: &PersistentVolume, name: &str) -> Result<HostPathVolumeSource, VolumeError> {
    let spec = volume.spec.as_ref();
    if let Some(local) = spec.and_then(|s| s.local.as_ref()) {
        // A local volume is a directory that somebody made: it is never made here.
        return Ok(HostPathVolumeSource { path: local.path.clone(), type_: Some("Directory".to_owned()) });
    }
    if let Some(host) = spec.and_then(|s| s.host_path.as_ref()) {
        return Ok(host.clone());
    }
    Err(VolumeError::Unsupported(format!("{name}: persistent volumes other than local and hostPath")))
}

/// Gives a local volume to the pod's `fsGroup`, once: what stands right already is left, and a link is
/// never followed.
fn give(path: &Path, gid: u32) -> Result<(), VolumeError> {
    let stat = std::fs::symlink_metadata(path).map_err(io_at("stat", path))?;
    if stat.gid() == gid && stat.mode() & 0o2060 == 0o2060 {
        return Ok(());
    }
    let mut left: Vec<PathBuf> = vec![path.to_owned()];
    while let Some(at) = left.pop() {
        let stat = std::fs::symlink_metadata(&at).map_err(io_at("stat", &at))?;
        if stat.is_symlink() {
            continue;
        }
        chown(&at, None, Some(gid)).map_err(io_at("chown", &at))?;
        let more = if stat.is_dir() { 0o2770 } else { 0o660 };
        let mode = std::fs::Permissions::from_mode((stat.mode() | more) & 0o7777);
        std::fs::set_permissions(&at, mode).map_err(io_at("chmod", &at))?;
        if stat.is_dir() {
            for entry in std::fs::read_dir(&at).map_err(io_at("list", &at))? {
                left.push(entry.map_err(io_at("list", &at))?.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::ObjectError;
    use async_trait::async_trait;
    use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret};
    use serde_json::json;

    /// Claims `bound` and `unbound`; the volume of the first is local at the path.
    struct Claims(PathBuf);

    #[async_trait]
    impl Objects for Claims {
        async fn config_map(&self, _: &str, _: &str) -> Result<Option<ConfigMap>, ObjectError> {
            Ok(None)
        }
        async fn secret(&self, _: &str, _: &str) -> Result<Option<Secret>, ObjectError> {
            Ok(None)
        }
        async fn claim(&self, _: &str, name: &str) -> Result<Option<PersistentVolumeClaim>, ObjectError> {
            let claim = match name {
                "bound" => json!({"spec": {"volumeName": "v"}, "status": {"phase": "Bound"}}),
                "other" => json!({"spec": {"volumeName": "csi"}, "status": {"phase": "Bound"}}),
                "unbound" => json!({"spec": {}, "status": {"phase": "Pending"}}),
                _ => return Ok(None),
            };
            Ok(serde_json::from_value(claim).ok())
        }
        async fn persistent_volume(&self, name: &str) -> Result<Option<PersistentVolume>, ObjectError> {
            let spec = match name {
                "v" => json!({"local": {"path": self.0}}),
                _ => json!({"csi": {"driver": "d", "volumeHandle": "h"}}),
            };
            Ok(serde_json::from_value(json!({"spec": spec})).ok())
        }
    }

    #[tokio::test]
    async fn a_bound_claim_is_its_directory_and_any_other_says_why_not() {
        let dir = tempfile::tempdir().unwrap();
        let objects = Claims(dir.path().to_owned());
        let ask = |name: &str| PersistentVolumeClaimVolumeSource {
            claim_name: name.to_owned(),
            read_only: Some(true),
        };
        let found = find(&objects, "n", &ask("bound"), Some(7)).await.unwrap();
        assert_eq!((found.path.as_path(), found.read_only), (dir.path(), true));
        for (name, text) in [
            ("none", "persistentvolumeclaim \"none\" not found"),
            ("unbound", "claim unbound is not bound to a volume"),
            ("other", "not supported: volume csi: persistent volumes other than local and hostPath"),
        ] {
            assert_eq!(find(&objects, "n", &ask(name), None).await.unwrap_err().to_string(), text);
        }
    }

    #[test]
    fn a_local_volume_is_given_to_the_group_and_a_link_out_of_it_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (volume, outside) = (dir.path().join("v"), dir.path().join("o"));
        std::fs::create_dir(&volume).unwrap();
        std::fs::write(volume.join("f"), "x").unwrap();
        std::fs::write(&outside, "x").unwrap();
        std::fs::set_permissions(&outside, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&outside, volume.join("l")).unwrap();
        let own = std::fs::metadata(&volume).unwrap().gid();
        give(&volume, own).unwrap();
        let mode = |p: &Path| std::fs::symlink_metadata(p).unwrap().mode() & 0o7777;
        assert_eq!(mode(&volume) & 0o2770, 0o2770);
        assert_eq!((mode(&volume.join("f")) & 0o660, mode(&outside)), (0o660, 0o600));
    }
}
