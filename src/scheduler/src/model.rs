//! Pods and nodes as the scheduler needs them: narrow, validated, cheap to clone behind an `Arc`.
//!
//! What comes from the API server is parsed once, here; the rest of the crate never sees a
//! `Quantity` or an operator string. Sums follow `component-helpers/resource/helpers.go` and
//! `framework/types.go` CalculateResource of Kubernetes 1.36.

pub mod affinity;
pub mod budget;
pub mod labels;
pub mod node;
mod original;
pub mod part;
pub mod pod;
pub mod quantity;
pub mod resources;
pub mod selector;
pub mod spread;
pub mod storage;
pub mod workload;

pub use affinity::{PodAffinity, PodTerm, WeightedPodTerm};
pub use budget::DisruptionBudget;
pub use labels::LabelSelector;
pub use node::NodeInfo;
pub use original::Original;
pub use part::Part;
pub use pod::{Disk, HostPort, PodInfo, ScheduledCondition, Toleration};
pub use quantity::QuantityError;
pub use resources::Resources;
pub use selector::{NodeTerm, Operator, PreferredTerm, Requirement};
pub use spread::SpreadConstraint;
pub use storage::{
    CsiDriver, CsiNode, PersistentVolume, PersistentVolumeClaim, PodVolume, StorageCapacity, StorageClass,
    VolumeAttachment,
};
pub use workload::{Owner, ReplicaSet, ReplicationController, Service, StatefulSet};

/// Whose object it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Namespace; empty for a cluster's.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
}

impl Meta {
    /// Reads an object's metadata.
    #[must_use]
    pub fn of(object: &impl kube::Resource) -> Self {
        let meta = object.meta();
        Meta {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
        }
    }

    /// `namespace/name`, or the name of a cluster's object.
    #[must_use]
    pub fn key(&self) -> String {
        if self.namespace.is_empty() {
            self.name.clone()
        } else {
            format!("{}/{}", self.namespace, self.name)
        }
    }
}

/// Why an object from the API server cannot be scheduled with.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A field that the API server always sets is not there.
    #[error("{0} is missing: the object did not come from an API server")]
    Missing(&'static str),
    /// A quantity that does not parse.
    #[error("{field} is not a quantity: write a number with a suffix such as 500m or 64Mi")]
    Quantity {
        /// Which field.
        field: String,
        /// What is wrong with it.
        #[source]
        source: QuantityError,
    },
    /// A node selector operator that Kubernetes 1.36 does not have.
    #[error("nodeAffinity operator {0:?} is not supported: use In, NotIn, Exists, DoesNotExist, Gt or Lt")]
    Operator(String),
    /// A Gt or Lt without exactly one integer.
    #[error("nodeAffinity values of {key:?} for Gt or Lt must be exactly one integer")]
    Bound {
        /// The label key.
        key: String,
    },
    /// A field selector other than metadata.name In/NotIn one value.
    #[error(
        "nodeAffinity matchFields of {0:?} is not supported: use metadata.name In or NotIn with one value"
    )]
    Field(String),
}
