//! A volume's zone and region labels must be those of the node, as `plugins/volumezone` of Kubernetes 1.36.

use super::volumes::{claim, claims, uses};
use crate::cache::{NodeState, Snapshot};
use crate::framework::{ClusterEvent, CycleState, Filter, Plugin, PreFilter, PreFilterResult, Status};
use crate::model::{PersistentVolume, PodInfo};
use crate::objects::Object;
use std::collections::{BTreeMap, BTreeSet};

/// The plugin.
pub struct VolumeZone;

const CONFLICT: &str = "node(s) had no available volume zone";

/// The labels, and today's name of each.
const KEYS: [(&str, &str); 4] = [
    ("failure-domain.beta.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("failure-domain.beta.kubernetes.io/region", "topology.kubernetes.io/region"),
    ("topology.kubernetes.io/zone", "topology.kubernetes.io/zone"),
    ("topology.kubernetes.io/region", "topology.kubernetes.io/region"),
];

/// What the pod's volumes ask of a node: the label, its name today, and the values.
#[derive(Clone)]
struct Wanted(Vec<(&'static str, &'static str, BTreeSet<String>)>);

fn topology(labels: &BTreeMap<String, String>) -> Vec<(&'static str, &'static str, BTreeSet<String>)> {
    let read = |(key, today)| {
        // Several zones are parted by two underscores; a value with an empty one is not read.
        let zones: Vec<&str> = labels.get(key)?.split("__").map(str::trim).collect();
        let readable = zones.iter().all(|z| !z.is_empty());
        readable.then(|| (key, today, zones.into_iter().map(str::to_owned).collect()))
    };
    KEYS.into_iter().filter_map(read).collect()
}

fn wanted(pod: &PodInfo, snapshot: &Snapshot) -> Result<Wanted, String> {
    let objects = &snapshot.objects;
    let mut all = Vec::new();
    for (name, _) in claims(pod).filter(|(_, ephemeral)| !ephemeral) {
        let claim = claim(snapshot, &pod.namespace, name)?;
        if claim.volume.is_empty() {
            if claim.class.is_empty() {
                return Err("PersistentVolumeClaim had no pv name and storageClass name".to_owned());
            }
            let class = objects
                .classes
                .get(claim.class.as_str())
                .ok_or_else(|| format!("storageclass.storage.k8s.io {:?} not found", claim.class))?;
            if class.waits {
                continue;
            }
            return Err("PersistentVolume had no name".to_owned());
        }
        let volume = objects
            .volumes
            .get(claim.volume.as_str())
            .ok_or_else(|| format!("persistentvolume {:?} not found", claim.volume))?;
        all.extend(topology(&volume.labels));
    }
    Ok(Wanted(all))
}

impl Plugin for VolumeZone {
    fn name(&self) -> &'static str {
        "VolumeZone"
    }

    fn may_help(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::NodeAdd(_) | ClusterEvent::PodUpdate => true,
            ClusterEvent::NodeUpdate(old, new) => old.labels != new.labels,
            ClusterEvent::Object(change) => match (&change.old, &change.new) {
                (None, Some(Object::StorageClass(new))) => new.waits,
                (_, Some(Object::PersistentVolumeClaim(new))) => uses(pod, new),
                (old, Some(Object::PersistentVolume(new))) => {
                    let zones = |v: &PersistentVolume| topology(&v.labels);
                    !matches!(old, Some(Object::PersistentVolume(old)) if zones(old) == zones(new))
                }
                _ => false,
            },
            _ => false,
        }
    }
}

impl PreFilter for VolumeZone {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        snapshot: &Snapshot,
    ) -> Result<PreFilterResult, Status> {
        let wanted = wanted(pod, snapshot).map_err(|reason| Status::unresolvable(self.name(), reason))?;
        if wanted.0.is_empty() {
            return Ok(PreFilterResult::Skip);
        }
        state.put(wanted);
        Ok(PreFilterResult::All)
    }
}

impl Filter for VolumeZone {
    fn filter(&self, state: &CycleState, _: &PodInfo, node: &NodeState) -> Result<(), Status> {
        let labels = &node.info.labels;
        // A node without any of them is in a cluster of one zone.
        let Some(Wanted(all)) =
            state.get::<Wanted>().filter(|_| KEYS.iter().any(|(k, _)| labels.contains_key(*k)))
        else {
            return Ok(());
        };
        let holds = |(key, today, values): &(&str, &str, BTreeSet<String>)| {
            labels.get(*key).or_else(|| labels.get(*today)).is_some_and(|v| values.contains(v))
        };
        if all.iter().all(holds) { Ok(()) } else { Err(Status::unresolvable(self.name(), CONFLICT)) }
    }
}
