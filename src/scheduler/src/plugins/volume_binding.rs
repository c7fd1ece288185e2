//! VolumeBinding: a pod's claims must have volumes that its node reaches, or get them there, as
//! `plugins/volumebinding` of Kubernetes 1.36.
//!
//! [`find`] tells, for a node, which volumes an unbound claim with WaitForFirstConsumer would get: the
//! smallest that fits, or one that is made for it. For the chosen node that is the [`VolumePlan`]: the
//! loop takes it as done in its objects, so that the next pod does not get the same volume, and the
//! binder writes it in PreBind and waits for the volume controller.

mod binder;
mod find;

pub use binder::VolumeBinder;
pub use find::{Assumed, VolumePlan};

use super::volumes::{claim, claims, is_for, uses};
use crate::cache::{NodeState, Snapshot};
use crate::framework::{ClusterEvent, CycleState, Filter, Plugin, PreFilter, PreFilterResult, Status};
use crate::model::{PersistentVolume, PersistentVolumeClaim, PodInfo};
use crate::objects::{Object, Objects};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The deciding half of the plugin.
pub struct VolumeBinding;

/// The plugin's name, of both halves.
pub(crate) const NAME: &str = "VolumeBinding";

/// A pod's claims, and what may become theirs.
#[derive(Clone, Default)]
struct PodClaims {
    bound: Vec<Arc<PersistentVolumeClaim>>,
    /// Without a volume until the pod has a node.
    waiting: Vec<Arc<PersistentVolumeClaim>>,
    /// The volumes of the waiting claims' classes.
    volumes: BTreeMap<String, Vec<Arc<PersistentVolume>>>,
    objects: Objects,
}

impl PodClaims {
    /// `None` for a pod without claims; upstream's words for what cannot be placed anywhere.
    fn of(pod: &PodInfo, snapshot: &Snapshot) -> Result<Option<Self>, String> {
        let mut out = PodClaims { objects: snapshot.objects.clone(), ..PodClaims::default() };
        let mut immediate = false;
        let mut any = false;
        for (name, ephemeral) in claims(pod) {
            any = true;
            let claim = claim(snapshot, &pod.namespace, name).map_err(|reason| match ephemeral {
                true => format!(
                    "waiting for ephemeral volume controller to create the persistentvolumeclaim {name:?}"
                ),
                false => reason,
            })?;
            if claim.lost {
                return Err(format!(
                    "persistentvolumeclaim {name:?} bound to non-existent persistentvolume {:?}",
                    claim.volume
                ));
            }
            if claim.deleting {
                return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
            }
            if ephemeral {
                is_for(pod, &claim)?;
            }
            let waits = out.objects.classes.get(claim.class.as_str()).is_some_and(|c| c.waits);
            if claim.bound() {
                out.bound.push(claim);
            } else if waits && claim.volume.is_empty() {
                out.waiting.push(claim);
            } else {
                immediate = true;
            }
        }
        if immediate {
            return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
        }
        for claim in &out.waiting {
            let of_class = out.objects.volumes.values().filter(|v| v.class == claim.class);
            out.volumes.entry(claim.class.clone()).or_insert_with(|| of_class.cloned().collect());
        }
        Ok(any.then_some(out))
    }
}

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        NAME
    }

    fn may_help(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::NodeAdd(_) | ClusterEvent::PodUpdate => true,
            ClusterEvent::NodeUpdate(old, new) => old.labels != new.labels,
            ClusterEvent::Object(change) => match (&change.old, &change.new) {
                (old, Some(Object::StorageClass(new))) => {
                    !matches!(old, Some(Object::StorageClass(old)) if old.topologies == new.topologies)
                }
                (_, Some(Object::PersistentVolumeClaim(new))) => uses(pod, new),
                (None, Some(Object::CsiNode(_))) | (_, Some(Object::PersistentVolume(_))) => true,
                // A driver that no longer publishes its capacity is no longer asked for it.
                (Some(Object::CsiDriver(old)), Some(Object::CsiDriver(new))) => old.capacity && !new.capacity,
                (old, Some(Object::StorageCapacity(new))) => {
                    !matches!(old, Some(Object::StorageCapacity(old)) if new.limit <= old.limit)
                }
                _ => false,
            },
            _ => false,
        }
    }
}

impl PreFilter for VolumeBinding {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
    ) -> Result<PreFilterResult, Status> {
        match PodClaims::of(pod, snapshot) {
            Err(reason) => Err(Status::unresolvable(NAME, reason)),
            Ok(None) => Ok(PreFilterResult::Skip),
            Ok(Some(claims)) => {
                state.put(claims);
                Ok(PreFilterResult::All)
            }
        }
    }
}

impl Filter for VolumeBinding {
    fn filter(&self, state: &CycleState, _: &PodInfo, node: &NodeState) -> Result<(), Status> {
        let Some(claims) = state.get::<PodClaims>() else { return Ok(()) };
        find::find(claims, &node.info).map(drop)
    }
}

#[cfg(test)]
mod tests;
