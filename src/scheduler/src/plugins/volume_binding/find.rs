//! Which volumes a pod's claims get on a node (`volumebinding/binder.go` FindPodVolumes).

use super::{NAME, PodClaims};
use crate::cache::Snapshot;
use crate::framework::{Code, Status};
use crate::model::storage::ClaimRef;
use crate::model::{NodeInfo, PersistentVolume, PersistentVolumeClaim, PodInfo};
use crate::objects::{Change, Kind, Object, Objects};
use std::collections::BTreeSet;
use std::sync::Arc;

const NODE: &str = "node(s) didn't match PersistentVolume's node affinity";
const NONE: &str = "node(s) didn't find available persistent volumes to bind";
const FULL: &str = "node(s) did not have enough free storage";
const LOST: &str = "node(s) unavailable due to one or more pvc(s) bound to non-existent pv(s)";

/// What no class provisions.
const NO_PROVISIONER: &str = "kubernetes.io/no-provisioner";

/// What becomes of a pod's waiting claims on its node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VolumePlan {
    /// The node.
    pub node: String,
    /// Volumes that are there, and the claim that each is for.
    pub binds: Vec<(Arc<PersistentVolume>, Arc<PersistentVolumeClaim>)>,
    /// Claims for which a volume is to be made.
    pub makes: Vec<Arc<PersistentVolumeClaim>>,
}

impl VolumePlan {
    /// The plan for a pod on a node; `None` when all its claims have their volumes.
    #[must_use]
    pub fn of(pod: &PodInfo, node: &NodeInfo, snapshot: &Snapshot) -> Option<Self> {
        let claims = PodClaims::of(pod, snapshot).ok().flatten()?;
        let plan = find(&claims, node).ok()?;
        (!plan.binds.is_empty() || !plan.makes.is_empty()).then_some(plan)
    }

    /// Takes the plan as done in `objects`, so that nobody else gets its volumes. Returns what puts
    /// them back: each object as it was and as it is taken for.
    #[must_use]
    pub fn assume(&self, objects: &mut Objects) -> Assumed {
        let mut out = Vec::new();
        let mut set = |kind, key: String, new: Object| {
            if let Some(old) = objects.get(kind, &key) {
                objects.put(key.clone(), new.clone());
                out.push((kind, key, old, new));
            }
        };
        for (volume, claim) in &self.binds {
            let meta = &claim.meta;
            let (namespace, name, uid) = (meta.namespace.clone(), meta.name.clone(), meta.uid.clone());
            let taken =
                PersistentVolume { claim: Some(ClaimRef { namespace, name, uid }), ..(**volume).clone() };
            set(Kind::PersistentVolume, volume.meta.key(), Object::PersistentVolume(Arc::new(taken)));
        }
        for claim in &self.makes {
            let taken = PersistentVolumeClaim { selected_node: Some(self.node.clone()), ..(**claim).clone() };
            set(
                Kind::PersistentVolumeClaim,
                claim.meta.key(),
                Object::PersistentVolumeClaim(Arc::new(taken)),
            );
        }
        Assumed(out)
    }
}

/// What was taken as done.
#[derive(Clone, Debug, Default)]
pub struct Assumed(Vec<(Kind, String, Object, Object)>);

impl Assumed {
    /// Puts back what the API server has not said anything newer of; returns what that changed.
    pub fn revert(self, objects: &mut Objects) -> Vec<Change> {
        let mut changes = Vec::new();
        for (kind, key, old, taken) in self.0 {
            if objects.get(kind, &key).as_ref() == Some(&taken) {
                objects.put(key, old.clone());
                changes.push(Change { kind, old: Some(taken), new: Some(old) });
            }
        }
        changes
    }
}

/// The plan for a node, or why there is none.
pub(super) fn find(claims: &PodClaims, node: &NodeInfo) -> Result<VolumePlan, Status> {
    let mut reasons = Vec::new();
    let mut plan = VolumePlan { node: node.name.to_string(), ..VolumePlan::default() };
    for claim in &claims.bound {
        match claims.objects.volumes.get(claim.volume.as_str()) {
            None => reasons.push(LOST),
            Some(volume) if !volume.reaches(&node.labels) => reasons.push(NODE),
            Some(_) => continue,
        }
        break;
    }
    let reason = waiting(claims, node, &mut plan)?;
    // Upstream's order: NODE, NONE, FULL, LOST.
    match reason {
        Some(reason) if reasons == [LOST] => reasons.insert(0, reason),
        Some(reason) => reasons.push(reason),
        None => {}
    }
    if reasons.is_empty() {
        return Ok(plan);
    }
    let reasons = reasons.into_iter().collect();
    Err(Status { plugin: NAME, code: Code::UnschedulableAndUnresolvable, reasons })
}

fn waiting(
    claims: &PodClaims,
    node: &NodeInfo,
    plan: &mut VolumePlan,
) -> Result<Option<&'static str>, Status> {
    let mut unmatched = Vec::new();
    for claim in &claims.waiting {
        match &claim.selected_node {
            Some(selected) if **selected != *node.name => return Ok(Some(NONE)),
            Some(_) => plan.makes.push(claim.clone()),
            None => unmatched.push(claim.clone()),
        }
    }
    // The smallest claims first, so that each gets the smallest volume that does.
    unmatched.sort_by_key(|c| c.request.unwrap_or(0));
    let mut chosen = BTreeSet::new();
    for claim in unmatched {
        let all = claims.volumes.get(&claim.class).map_or(&[][..], Vec::as_slice);
        match smallest(&claim, all, node, &chosen) {
            Some(volume) => {
                chosen.insert(volume.meta.name.clone());
                plan.binds.push((volume, claim));
            }
            None => plan.makes.push(claim),
        }
    }
    for claim in &plan.makes {
        if let Some(reason) = makeable(claim, &claims.objects, node)? {
            return Ok(Some(reason));
        }
    }
    Ok(None)
}

/// `FindMatchingVolume`: one that is meant for the claim, else the smallest that is free and fits.
fn smallest(
    claim: &PersistentVolumeClaim,
    volumes: &[Arc<PersistentVolume>],
    node: &NodeInfo,
    chosen: &BTreeSet<String>,
) -> Option<Arc<PersistentVolume>> {
    let mut best: Option<&Arc<PersistentVolume>> = None;
    for volume in volumes {
        let meant = volume.is_for(claim);
        if chosen.contains(&volume.meta.name)
            || (volume.claim.is_some() && !meant)
            || volume.capacity < claim.request.unwrap_or(0)
            || volume.block != claim.block
            || volume.attributes_class != claim.attributes_class
            || volume.deleting
        {
            continue;
        }
        let reaches = volume.reaches(&node.labels);
        if meant {
            return reaches.then(|| volume.clone());
        }
        if volume.available
            && claim.selector.as_ref().is_none_or(|s| s.matches(&volume.labels))
            && volume.class == claim.class
            && reaches
            && claim.access.is_subset(&volume.access)
            && best.is_none_or(|b| volume.capacity < b.capacity)
        {
            best = Some(volume);
        }
    }
    best.cloned()
}

/// Can a volume be made for the claim where the node reaches it?
fn makeable(
    claim: &PersistentVolumeClaim,
    objects: &Objects,
    node: &NodeInfo,
) -> Result<Option<&'static str>, Status> {
    let class = objects.classes.get(claim.class.as_str());
    let missing = || Status::error(NAME, format!("failed to find storage class {:?}", claim.class));
    let class = class.ok_or_else(missing)?;
    if class.provisioner.is_empty() || class.provisioner == NO_PROVISIONER || !class.reaches(&node.labels) {
        return Ok(Some(NONE));
    }
    let (Some(size), Some(driver)) = (claim.request, objects.csi_drivers.get(class.provisioner.as_str()))
    else {
        return Ok(None);
    };
    let room = driver.capacity.then(|| {
        objects.capacities.values().any(|c| {
            c.class == claim.class && c.limit.is_some_and(|l| l >= size) && c.nodes.matches(&node.labels)
        })
    });
    Ok((room == Some(false)).then_some(FULL))
}
