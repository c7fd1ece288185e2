//! What the volume plugins have in common: a pod's claims, found or told that they are not there.

use crate::cache::Snapshot;
use crate::model::{PersistentVolumeClaim, PodInfo, PodVolume};
use std::sync::Arc;

/// The names of a pod's claims, and whether each is an ephemeral volume's.
pub(crate) fn claims(pod: &PodInfo) -> impl Iterator<Item = (&str, bool)> {
    pod.volumes.iter().filter_map(|v| match v {
        PodVolume::Claim { name, ephemeral } => Some((name.as_str(), *ephemeral)),
        PodVolume::Disk(_) => None,
    })
}

/// True when the pod uses that claim.
pub(crate) fn uses(pod: &PodInfo, claim: &PersistentVolumeClaim) -> bool {
    claim.meta.namespace == pod.namespace && claims(pod).any(|(name, _)| name == claim.meta.name)
}

/// A claim of the pod's namespace, or upstream's words for its not being there.
pub(crate) fn claim(
    snapshot: &Snapshot,
    namespace: &str,
    name: &str,
) -> Result<Arc<PersistentVolumeClaim>, String> {
    let key = format!("{namespace}/{name}");
    let found = snapshot.objects.claims.get(key.as_str()).cloned();
    found.ok_or_else(|| format!("persistentvolumeclaim {name:?} not found"))
}

/// An ephemeral volume's claim must be the pod's own (`ephemeral.VolumeIsForPod`).
pub(crate) fn is_for(pod: &PodInfo, claim: &PersistentVolumeClaim) -> Result<(), String> {
    if claim.controller.as_deref() == Some(pod.uid.as_str()) {
        return Ok(());
    }
    Err(format!("PVC {} was not created for pod {} (pod is not owner)", claim.meta.key(), pod.key()))
}
