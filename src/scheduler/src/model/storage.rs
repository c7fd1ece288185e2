//! Volumes, claims and classes, as far as a placement goes by them.

use super::pod::Disk;
use super::{LabelSelector, Meta, NodeTerm, quantity};
use crate::objects::{Kept, Kind, Object};
use k8s_openapi::api::{core::v1, storage::v1 as storage};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The class by an old annotation, which goes before the field.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
/// Where a claim's volume is to be made: set by the scheduler, taken away when that failed.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// The volume controller has bound the claim.
const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";

fn bytes(list: Option<&BTreeMap<String, Quantity>>) -> Option<i64> {
    quantity::value(&list?.get("storage")?.0).ok()
}

fn class(annotations: Option<&BTreeMap<String, String>>, field: Option<String>) -> String {
    annotations.and_then(|a| a.get(CLASS_ANNOTATION)).cloned().or(field).unwrap_or_default()
}

/// `volumeMode: Block`; unset is Filesystem.
fn is_block(mode: Option<&String>) -> bool {
    mode.is_some_and(|m| m == "Block")
}

/// The claim that a volume is for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClaimRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID; empty when somebody has reserved the volume for a claim to come.
    pub uid: String,
}

/// A PersistentVolume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PersistentVolume {
    /// Whose.
    pub meta: Meta,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Being deleted.
    pub deleting: bool,
    /// Nodes that can use it; `None` for all.
    pub nodes: Option<Vec<NodeTerm>>,
    /// Class.
    pub class: String,
    /// Size.
    pub capacity: i64,
    /// Access modes.
    pub access: BTreeSet<String>,
    /// Block, not Filesystem.
    pub block: bool,
    /// `volumeAttributesClassName`.
    pub attributes_class: String,
    /// For whom.
    pub claim: Option<ClaimRef>,
    /// Phase Available.
    pub available: bool,
    /// CSI driver and volume handle.
    pub csi: Option<(String, String)>,
}

impl PersistentVolume {
    /// True when it is, or is to be, that claim's (`IsVolumeBoundToClaim`).
    #[must_use]
    pub fn is_for(&self, claim: &PersistentVolumeClaim) -> bool {
        self.claim.as_ref().is_some_and(|c| {
            c.name == claim.meta.name
                && c.namespace == claim.meta.namespace
                && (c.uid.is_empty() || c.uid == claim.meta.uid)
        })
    }

    /// True when a node with these labels can use it (`CheckNodeAffinity`).
    #[must_use]
    pub fn reaches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.nodes.as_ref().is_none_or(|terms| terms.iter().any(|t| t.matches("", labels)))
    }
}

impl Kept for PersistentVolume {
    type Api = v1::PersistentVolume;
    const KIND: Kind = Kind::PersistentVolume;

    fn parse(meta: Meta, api: Self::Api) -> Option<Self> {
        let spec = api.spec.unwrap_or_default();
        let required = spec.node_affinity.and_then(|a| a.required);
        let terms = required.map(|r| r.node_selector_terms.iter().map(NodeTerm::parse).collect());
        Some(PersistentVolume {
            meta,
            version: api.metadata.resource_version.unwrap_or_default(),
            labels: api.metadata.labels.unwrap_or_default(),
            deleting: api.metadata.deletion_timestamp.is_some(),
            nodes: terms.transpose().ok()?,
            class: class(api.metadata.annotations.as_ref(), spec.storage_class_name),
            capacity: bytes(spec.capacity.as_ref()).unwrap_or(0),
            access: spec.access_modes.unwrap_or_default().into_iter().collect(),
            block: is_block(spec.volume_mode.as_ref()),
            attributes_class: spec.volume_attributes_class_name.unwrap_or_default(),
            claim: spec.claim_ref.map(|c| ClaimRef {
                namespace: c.namespace.unwrap_or_default(),
                name: c.name.unwrap_or_default(),
                uid: c.uid.unwrap_or_default(),
            }),
            available: api.status.and_then(|s| s.phase).as_deref() == Some("Available"),
            csi: spec.csi.map(|c| (c.driver, c.volume_handle)),
        })
    }

    fn wrap(object: Arc<Self>) -> Object {
        Object::PersistentVolume(object)
    }
}

/// A PersistentVolumeClaim.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PersistentVolumeClaim {
    /// Whose.
    pub meta: Meta,
    /// `metadata.resourceVersion`.
    pub version: String,
    /// Being deleted.
    pub deleting: bool,
    /// UID of its controller: the pod of an ephemeral volume.
    pub controller: Option<String>,
    /// Class; empty for none.
    pub class: String,
    /// The volume it has or wants; empty for none.
    pub volume: String,
    /// The volume controller has bound it.
    pub completed: bool,
    /// Phase Lost.
    pub lost: bool,
    /// Where its volume is to be made.
    pub selected_node: Option<String>,
    /// Size; `None` when it asks for none.
    pub request: Option<i64>,
    /// Access modes.
    pub access: BTreeSet<String>,
    /// Block, not Filesystem.
    pub block: bool,
    /// `volumeAttributesClassName`.
    pub attributes_class: String,
    /// What volumes it takes; `None` for all.
    pub selector: Option<LabelSelector>,
}

impl PersistentVolumeClaim {
    /// It has a volume, and both know.
    #[must_use]
    pub fn bound(&self) -> bool {
        !self.volume.is_empty() && self.completed
    }
}

impl Kept for PersistentVolumeClaim {
    type Api = v1::PersistentVolumeClaim;
    const KIND: Kind = Kind::PersistentVolumeClaim;

    fn parse(meta: Meta, api: Self::Api) -> Option<Self> {
        let spec = api.spec.unwrap_or_default();
        let annotations = api.metadata.annotations.unwrap_or_default();
        let owners = api.metadata.owner_references.unwrap_or_default();
        let requests = spec.resources.and_then(|r| r.requests);
        Some(PersistentVolumeClaim {
            meta,
            version: api.metadata.resource_version.unwrap_or_default(),
            deleting: api.metadata.deletion_timestamp.is_some(),
            controller: owners.into_iter().find(|o| o.controller == Some(true)).map(|o| o.uid),
            class: class(Some(&annotations), spec.storage_class_name),
            volume: spec.volume_name.unwrap_or_default(),
            completed: annotations.contains_key(BIND_COMPLETED),
            lost: api.status.and_then(|s| s.phase).as_deref() == Some("Lost"),
            selected_node: annotations.get(SELECTED_NODE).cloned(),
            request: bytes(requests.as_ref()),
            access: spec.access_modes.unwrap_or_default().into_iter().collect(),
            block: is_block(spec.volume_mode.as_ref()),
            attributes_class: spec.volume_attributes_class_name.unwrap_or_default(),
            selector: spec.selector.as_ref().map(|s| LabelSelector::parse(Some(s))),
        })
    }

    fn wrap(object: Arc<Self>) -> Object {
        Object::PersistentVolumeClaim(object)
    }
}

/// A StorageClass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StorageClass {
    /// Who makes its volumes.
    pub provisioner: String,
    /// WaitForFirstConsumer.
    pub waits: bool,
    /// Where volumes can be made: terms are ORed, each a list of (label, values) that are ANDed.
    pub topologies: Vec<Vec<(String, Vec<String>)>>,
}

impl StorageClass {
    /// True when a volume can be made for a node with these labels (`MatchTopologySelectorTerms`).
    #[must_use]
    pub fn reaches(&self, labels: &BTreeMap<String, String>) -> bool {
        let holds =
            |(key, values): &(String, Vec<String>)| labels.get(key).is_some_and(|v| values.contains(v));
        self.topologies.is_empty()
            || self.topologies.iter().any(|term| !term.is_empty() && term.iter().all(holds))
    }
}

impl Kept for StorageClass {
    type Api = storage::StorageClass;
    const KIND: Kind = Kind::StorageClass;

    fn parse(_: Meta, api: Self::Api) -> Option<Self> {
        let terms = api.allowed_topologies.unwrap_or_default().into_iter();
        let term = |t: v1::TopologySelectorTerm| {
            let all = t.match_label_expressions.unwrap_or_default();
            all.into_iter().map(|e| (e.key, e.values)).collect()
        };
        Some(StorageClass {
            provisioner: api.provisioner,
            waits: api.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer"),
            topologies: terms.map(term).collect(),
        })
    }

    fn wrap(object: Arc<Self>) -> Object {
        Object::StorageClass(object)
    }
}

/// A CSINode: how many volumes of each driver a node takes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CsiNode {
    /// By driver; one without a limit is not listed.
    pub limits: BTreeMap<String, i64>,
}

impl Kept for CsiNode {
    type Api = storage::CSINode;
    const KIND: Kind = Kind::CsiNode;

    fn parse(_: Meta, api: Self::Api) -> Option<Self> {
        let limit = |d: storage::CSINodeDriver| Some((d.name, i64::from(d.allocatable?.count?)));
        Some(CsiNode { limits: api.spec.drivers.into_iter().filter_map(limit).collect() })
    }

    fn wrap(object: Arc<Self>) -> Object {
        Object::CsiNode(object)
    }
}

/// A CSIDriver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CsiDriver {
    /// It publishes its capacity, which then counts.
    pub capacity: bool,
}

impl Kept for CsiDriver {
    type Api = storage::CSIDriver;
    const KIND: Kind = Kind::CsiDriver;

    fn parse(_: Meta, api: Self::Api) -> Option<Self> {
        Some(CsiDriver { capacity: api.spec.storage_capacity == Some(true) })
    }

    fn wrap(object: Arc<Self>) -> Object {
        Object::CsiDriver(object)
    }
}

/// A CSIStorageCapacity: room for volumes of a class in a part of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StorageCapacity {
    /// Class.
    pub class: String,
    /// The nodes that reach it.
    pub nodes: LabelSelector,
    /// The largest volume that can be made; `None` when that is not known.
    pub limit: Option<i64>,
}

impl Kept for StorageCapacity {
    type Api = storage::CSIStorageCapacity;
    const KIND: Kind = Kind::StorageCapacity;

    fn parse(_: Meta, api: Self::Api) -> Option<Self> {
        let limit = api.maximum_volume_size.or(api.capacity);
        Some(StorageCapacity {
            class: api.storage_class_name,
            nodes: LabelSelector::parse(api.node_topology.as_ref()),
            limit: limit.and_then(|q| quantity::value(&q.0).ok()),
        })
    }

    fn wrap(object: Arc<Self>) -> Object {
        Object::StorageCapacity(object)
    }
}

/// A VolumeAttachment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeAttachment {
    /// The driver.
    pub attacher: String,
    /// The node.
    pub node: String,
    /// The PersistentVolume; `None` for an inline one.
    pub volume: Option<String>,
}

impl Kept for VolumeAttachment {
    type Api = storage::VolumeAttachment;
    const KIND: Kind = Kind::VolumeAttachment;

    fn parse(_: Meta, api: Self::Api) -> Option<Self> {
        Some(VolumeAttachment {
            attacher: api.spec.attacher,
            node: api.spec.node_name,
            volume: api.spec.source.persistent_volume_name,
        })
    }

    fn wrap(object: Arc<Self>) -> Object {
        Object::VolumeAttachment(object)
    }
}

/// A pod's volume that a placement goes by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodVolume {
    /// By a claim.
    Claim {
        /// The claim's name.
        name: String,
        /// It is made for this pod, and goes with it.
        ephemeral: bool,
    },
    /// A disk that pods of a node cannot always share.
    Disk(Disk),
}

impl PodVolume {
    /// The volumes of a pod of this name.
    #[must_use]
    pub fn of(pod: &str, volumes: &[v1::Volume]) -> Vec<Self> {
        let one = |v: &v1::Volume| {
            if let Some(claim) = &v.persistent_volume_claim {
                return Some(PodVolume::Claim { name: claim.claim_name.clone(), ephemeral: false });
            }
            if v.ephemeral.is_some() {
                return Some(PodVolume::Claim { name: format!("{pod}-{}", v.name), ephemeral: true });
            }
            Disk::of(v).map(PodVolume::Disk)
        };
        volumes.iter().filter_map(one).collect()
    }
}
