//! A claim's volume on this node: the claim is looked up, then the volume that it is bound to. Those that
//! are a directory of the node (`local`, `hostPath`) are taken as they stand: nothing is mounted for them,
//! and nothing is removed with the pod; a CSI driver's is for `csi`. The Node authorizer lets a node read the claims of its own pods and
//! their volumes, by name.

use super::{MountedVolume, VolumeError, host_path, ownership};
use crate::env::Objects;
use k8s_openapi::api::core::v1::{HostPathVolumeSource, PersistentVolume, PersistentVolumeClaimVolumeSource};

/// What is behind a claim.
#[derive(Debug)]
pub(super) enum Found {
    /// A directory of the node.
    Here(MountedVolume),
    /// A volume of a CSI driver.
    Driver(Box<PersistentVolume>),
}

/// Finds the volume behind a claim.
pub(super) async fn find(
    objects: &dyn Objects,
    namespace: &str,
    source: &PersistentVolumeClaimVolumeSource,
    group: Option<u32>,
) -> Result<Found, VolumeError> {
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
    if found.spec.as_ref().is_some_and(|s| s.csi.is_some()) {
        return Ok(Found::Driver(Box::new(found)));
    }
    let place = place(&found, &volume)?;
    let read_only = source.read_only == Some(true);
    let local = found.spec.as_ref().is_some_and(|s| s.local.is_some());
    super::blocking("open a claim's volume", move || {
        let path = host_path(&place)?;
        if let Some(gid) = group.filter(|_| local && !read_only) {
            ownership::give(&path, gid, false)?;
        }
        Ok(Found::Here(MountedVolume { path, read_only, image: None, managed: local }))
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
    Err(VolumeError::Unsupported(format!("{name}: persistent volumes other than CSI, local and hostPath")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::ObjectError;
    use async_trait::async_trait;
    use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Secret};
    use serde_json::json;
    use std::path::PathBuf;

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
                "csi" | "nfs" | "raw" => json!({"spec": {"volumeName": name}, "status": {"phase": "Bound"}}),
                "unbound" => json!({"spec": {}, "status": {"phase": "Pending"}}),
                _ => return Ok(None),
            };
            Ok(serde_json::from_value(claim).ok())
        }
        async fn persistent_volume(&self, name: &str) -> Result<Option<PersistentVolume>, ObjectError> {
            let spec = match name {
                "v" => json!({"local": {"path": self.0}}),
                "nfs" => json!({"nfs": {"server": "s", "path": "/"}}),
                "raw" => json!({"csi": {"driver": "d", "volumeHandle": "h"}, "volumeMode": "Block"}),
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
        let Found::Here(found) = find(&objects, "n", &ask("bound"), Some(7)).await.unwrap() else {
            panic!("it is local")
        };
        assert_eq!((found.path.as_path(), found.read_only), (dir.path(), true));
        for (name, text) in [
            ("none", "persistentvolumeclaim \"none\" not found"),
            ("unbound", "claim unbound is not bound to a volume"),
            ("nfs", "not supported: volume nfs: persistent volumes other than CSI, local and hostPath"),
            ("raw", "not supported: volume raw: volumeMode Block"),
        ] {
            assert_eq!(find(&objects, "n", &ask(name), None).await.unwrap_err().to_string(), text);
        }
        let found = find(&objects, "n", &ask("csi"), None).await.unwrap();
        assert!(
            matches!(found, Found::Driver(volume) if volume.spec.as_ref().is_some_and(|s| s.csi.is_some()))
        );
    }
}
