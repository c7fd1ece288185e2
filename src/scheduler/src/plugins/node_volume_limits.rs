//! How many CSI volumes a node takes, as `plugins/nodevolumelimits` of Kubernetes 1.36.
//!
//! Not built: the translation of in-tree volumes (awsElasticBlockStore and the like) to CSI; they do not count.

use super::volumes::{claim, claims, is_for, uses};
use crate::cache::{NodeState, Snapshot};
use crate::framework::{ClusterEvent, CycleState, Filter, Plugin, PreFilter, PreFilterResult, Status};
use crate::model::{PersistentVolumeClaim, PodInfo};
use crate::objects::{Object, Objects};
use std::collections::{BTreeMap, HashMap};

/// The plugin.
pub struct NodeVolumeLimits;

const EXCEEDED: &str = "node(s) exceed max volume count";

/// `driver/handle` and the driver.
type Volumes = BTreeMap<String, String>;

/// What one cycle goes by.
#[derive(Clone)]
struct Counted {
    /// The pod's own volumes, or why they cannot be told.
    own: Result<Volumes, Status>,
    /// What is attached, by node.
    attached: HashMap<String, Volumes>,
    objects: Objects,
}

/// The driver and handle of a claim's volume; a volume that is still to be made counts too.
fn volume(claim: &PersistentVolumeClaim, objects: &Objects) -> Option<(String, String)> {
    if let Some(volume) = objects.volumes.get(claim.volume.as_str()).filter(|_| !claim.volume.is_empty()) {
        return volume.csi.clone();
    }
    let class = objects.classes.get(claim.class.as_str()).filter(|_| !claim.class.is_empty())?;
    // Upstream puts a random word in front, so that it is nobody's handle.
    Some((class.provisioner.clone(), format!("\u{0}{}", claim.meta.key())))
}

fn of_pod(pod: &PodInfo, objects: &Objects, new: bool) -> Result<Volumes, String> {
    let mut out = Volumes::new();
    for (name, ephemeral) in claims(pod) {
        let key = format!("{}/{name}", pod.namespace);
        let Some(claim) = objects.claims.get(key.as_str()) else {
            if new {
                return Err(format!("looking up PVC {key}: persistentvolumeclaim {name:?} not found"));
            }
            continue;
        };
        if ephemeral {
            is_for(pod, claim)?;
        }
        if let Some((driver, handle)) = volume(claim, objects).filter(|(d, h)| !d.is_empty() && !h.is_empty())
        {
            out.insert(format!("{driver}/{handle}"), driver);
        }
    }
    Ok(out)
}

impl Plugin for NodeVolumeLimits {
    fn name(&self) -> &'static str {
        "NodeVolumeLimits"
    }

    fn may_help(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::AssignedPodDelete(gone) => claims(gone).next().is_some(),
            ClusterEvent::PodUpdate => true,
            ClusterEvent::Object(change) => match (&change.old, &change.new) {
                (None, Some(Object::CsiNode(_))) => true,
                (Some(Object::CsiNode(old)), Some(Object::CsiNode(new))) => new
                    .limits
                    .iter()
                    .any(|(driver, limit)| *limit > old.limits.get(driver).copied().unwrap_or(0)),
                (None, Some(Object::PersistentVolumeClaim(new))) => uses(pod, new),
                (Some(Object::VolumeAttachment(_)), None) => claims(pod).any(|(_, ephemeral)| !ephemeral),
                _ => false,
            },
            _ => false,
        }
    }
}

impl PreFilter for NodeVolumeLimits {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
    ) -> Result<PreFilterResult, Status> {
        if claims(pod).next().is_none() {
            return Ok(PreFilterResult::Skip);
        }
        let objects = snapshot.objects.clone();
        let missing = claims(pod).any(|(name, _)| claim(snapshot, &pod.namespace, name).is_err());
        let own = of_pod(pod, &objects, true).map_err(|reason| match missing {
            true => Status::unresolvable(self.name(), reason),
            false => Status::error(self.name(), reason),
        });
        let mut attached: HashMap<String, Volumes> = HashMap::new();
        for attachment in objects.attachments.values().filter(|a| !a.attacher.is_empty()) {
            let named = attachment.volume.as_ref().and_then(|v| objects.volumes.get(v.as_str()));
            if let Some((_, handle)) = named.and_then(|v| v.csi.as_ref()) {
                let volumes = attached.entry(attachment.node.clone()).or_default();
                volumes.insert(format!("{}/{handle}", attachment.attacher), attachment.attacher.clone());
            }
        }
        state.put(Counted { own, attached, objects });
        Ok(PreFilterResult::All)
    }
}

impl Filter for NodeVolumeLimits {
    fn filter(&self, state: &CycleState, _: &PodInfo, node: &NodeState) -> Result<(), Status> {
        let Some(counted) = state.get::<Counted>() else { return Ok(()) };
        let mut new = counted.own.clone()?;
        let limits = counted.objects.csi_nodes.get(&*node.info.name);
        let Some(limits) = limits.map(|n| &n.limits).filter(|l| !new.is_empty() && !l.is_empty()) else {
            return Ok(());
        };
        let mut there = Volumes::new();
        for pod in node.pods.iter() {
            let volumes = of_pod(&pod.pod, &counted.objects, false);
            there.extend(volumes.map_err(|reason| Status::error(self.name(), reason))?);
        }
        new.retain(|volume, _| !there.contains_key(volume));
        // A volume that an existing pod uses may be attached as well.
        there.extend(counted.attached.get(&*node.info.name).cloned().unwrap_or_default());
        let of = |volumes: &Volumes, driver: &str| {
            i64::try_from(volumes.values().filter(|d| *d == driver).count()).unwrap_or(i64::MAX)
        };
        let exceeded = limits.iter().any(|(driver, limit)| {
            let coming = of(&new, driver);
            coming > 0 && coming.saturating_add(of(&there, driver)) > *limit
        });
        if exceeded { Err(Status::unschedulable(self.name(), EXCEEDED)) } else { Ok(()) }
    }
}
