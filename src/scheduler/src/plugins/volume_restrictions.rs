//! Disks that two pods of a node cannot share, and claims that one pod only may use, as
//! `plugins/volumerestrictions` of Kubernetes 1.36.

use super::volumes::{claim, claims, uses};
use crate::cache::{NodeState, Snapshot};
use crate::framework::{ClusterEvent, CycleState, Filter, Plugin, PreFilter, PreFilterResult, Shift, Status};
use crate::model::{Disk, PodInfo, PodVolume};
use crate::objects::Object;
use std::collections::BTreeSet;

/// The plugin.
pub struct VolumeRestrictions;

const DISK: &str = "node(s) had no available disk";
const READ_WRITE_ONCE_POD: &str = "node(s) unavailable due to PersistentVolumeClaim with ReadWriteOncePod access \
                                   mode already in-use by another pod";

/// The pod's ReadWriteOncePod claims, and how many uses of them there are.
#[derive(Clone)]
struct Once {
    claims: BTreeSet<String>,
    used: i64,
}

impl Once {
    fn uses_by(&self, pod: &PodInfo) -> i64 {
        let used = claims(pod).filter(|(name, ephemeral)| !ephemeral && self.claims.contains(*name));
        i64::try_from(used.count()).unwrap_or(i64::MAX)
    }
}

fn disks(pod: &PodInfo) -> impl Iterator<Item = &Disk> {
    pod.volumes.iter().filter_map(|v| match v {
        PodVolume::Disk(disk) => Some(disk),
        PodVolume::Claim { .. } => None,
    })
}

fn conflict(pod: &PodInfo, other: &PodInfo) -> bool {
    disks(pod).any(|disk| disks(other).any(|there| disk.conflicts(there)))
}

impl Plugin for VolumeRestrictions {
    fn name(&self) -> &'static str {
        "VolumeRestrictions"
    }

    fn may_help(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::AssignedPodDelete(gone) => {
                let shared = |(name, _)| claims(pod).any(|(own, _)| own == name);
                gone.namespace == pod.namespace && (conflict(pod, gone) || claims(gone).any(shared))
            }
            ClusterEvent::NodeAdd(_) | ClusterEvent::PodUpdate => true,
            ClusterEvent::Object(change) => match (&change.old, &change.new) {
                (None, Some(Object::PersistentVolumeClaim(new))) => uses(pod, new),
                _ => false,
            },
            _ => false,
        }
    }
}

impl PreFilter for VolumeRestrictions {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
    ) -> Result<PreFilterResult, Status> {
        let mut once = Once { claims: BTreeSet::new(), used: 0 };
        for (name, _) in claims(pod).filter(|(_, ephemeral)| !ephemeral) {
            let claim = claim(snapshot, &pod.namespace, name)
                .map_err(|reason| Status::unresolvable(self.name(), reason))?;
            if claim.access.contains("ReadWriteOncePod") {
                once.claims.insert(name.to_owned());
            }
        }
        // Upstream keeps a set of the claims in use; they are so few that looking at the pods will do.
        for name in &once.claims {
            let there =
                snapshot.nodes.iter().flat_map(|n| n.pods.iter()).any(|p| {
                    p.pod.namespace == pod.namespace && claims(&p.pod).any(|(n, e)| n == name && !e)
                });
            once.used += i64::from(there);
        }
        if once.used == 0 && disks(pod).next().is_none() {
            return Ok(PreFilterResult::Skip);
        }
        state.put(once);
        Ok(PreFilterResult::All)
    }

    /// As upstream, a pod of any namespace counts here.
    fn shift(&self, state: &mut CycleState, shift: &Shift<'_>) {
        state.update::<Once>(|once| once.used += shift.by * once.uses_by(shift.other));
    }
}

impl Filter for VolumeRestrictions {
    fn filter(&self, state: &CycleState, pod: &PodInfo, node: &NodeState) -> Result<(), Status> {
        if disks(pod).next().is_some() && node.pods.iter().any(|p| conflict(pod, &p.pod)) {
            return Err(Status::unschedulable(self.name(), DISK));
        }
        match state.get::<Once>() {
            Some(once) if once.used > 0 => Err(Status::unschedulable(self.name(), READ_WRITE_ONCE_POD)),
            _ => Ok(()),
        }
    }
}
