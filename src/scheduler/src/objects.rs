//! What the cluster has beside nodes and pods, as far as decisions go by it, kept whole by kind.
//!
//! [`Objects`] is part of a snapshot: cloning it is a few reference counts. A kind is listed once and
//! then followed; [`Lists`] knows which lists are complete and what a new list has left out.

use crate::model::Meta;
use crate::record::{Entry, ObjectStep};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use crate::model::{
    CsiDriver, CsiNode, DisruptionBudget, PersistentVolume, PersistentVolumeClaim, ReplicaSet,
    ReplicationController, Service, StatefulSet, StorageCapacity, StorageClass, VolumeAttachment,
};

/// Objects of a kind by key (`name`, or `namespace/name`), shared.
pub type Map<T> = Arc<BTreeMap<Arc<str>, Arc<T>>>;

/// A kind that is kept.
pub trait Kept: Sized + Send + Sync + PartialEq + 'static {
    /// The object of the API.
    type Api: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::Serialize
        + serde::de::DeserializeOwned
        + Send
        + 'static;
    /// Which.
    const KIND: Kind;

    /// What is kept of it; `None` when it cannot be read, which the API server does not let happen.
    fn parse(meta: Meta, api: Self::Api) -> Option<Self>;
    /// As one of all kinds.
    fn wrap(object: Arc<Self>) -> Object;
}

fn read<T: Kept>(value: serde_json::Value) -> Result<Option<Object>, serde_json::Error> {
    let api: T::Api = serde_json::from_value(value)?;
    Ok(T::parse(Meta::of(&api), api).map(|o| T::wrap(Arc::new(o))))
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident $field:ident),+ $(,)?) => {
        /// The kinds.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind { $($(#[$doc])* $kind),+ }

        impl Kind {
            /// All.
            pub const ALL: &'static [Kind] = &[$(Kind::$kind),+];

            /// Reads an object of the kind, with its key; `None` in the place of what is not kept of it.
            ///
            /// # Errors
            /// When it is not an object of the kind.
            pub fn read(self, value: serde_json::Value) -> Result<Option<Object>, serde_json::Error> {
                match self { $(Kind::$kind => read::<$kind>(value)),+ }
            }

            /// Its name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Kind::$kind => stringify!($kind)),+ }
            }
        }

        /// An object of any kind.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Object { $($(#[$doc])* $kind(Arc<$kind>)),+ }

        /// All objects.
        #[derive(Clone, Debug, Default)]
        pub struct Objects { $($(#[$doc])* pub $field: Map<$kind>),+ }

        impl Objects {
            /// An object is so now; returns what it was.
            pub fn put(&mut self, key: String, object: Object) -> Option<Object> {
                match object {
                    $(Object::$kind(o) => Arc::make_mut(&mut self.$field).insert(key.into(), o).map(Object::$kind)),+
                }
            }

            /// The object by kind and key.
            #[must_use]
            pub fn get(&self, kind: Kind, key: &str) -> Option<Object> {
                match kind { $(Kind::$kind => self.$field.get(key).cloned().map(Object::$kind)),+ }
            }

            fn take(&mut self, kind: Kind, key: &str) -> Option<Object> {
                match kind {
                    $(Kind::$kind => Arc::make_mut(&mut self.$field).remove(key).map(Object::$kind)),+
                }
            }

            fn keys(&self, kind: Kind) -> Vec<String> {
                match kind { $(Kind::$kind => self.$field.keys().map(|k| k.to_string()).collect()),+ }
            }
        }
    };
}

kinds! {
    /// PodDisruptionBudgets.
    DisruptionBudget budgets,
    /// PersistentVolumes.
    PersistentVolume volumes,
    /// PersistentVolumeClaims.
    PersistentVolumeClaim claims,
    /// StorageClasses.
    StorageClass classes,
    /// CSINodes.
    CsiNode csi_nodes,
    /// CSIDrivers.
    CsiDriver csi_drivers,
    /// CSIStorageCapacities.
    StorageCapacity capacities,
    /// VolumeAttachments.
    VolumeAttachment attachments,
    /// Services.
    Service services,
    /// ReplicationControllers.
    ReplicationController replication_controllers,
    /// ReplicaSets.
    ReplicaSet replica_sets,
    /// StatefulSets.
    StatefulSet stateful_sets,
}

/// An object came, changed or went.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// Of what kind.
    pub kind: Kind,
    /// As it was.
    pub old: Option<Object>,
    /// As it is.
    pub new: Option<Object>,
}

impl Change {
    /// Upstream's label for metrics, without the kind: labels must be few.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match (&self.old, &self.new) {
            (None, _) => "ObjectAdd",
            (_, None) => "ObjectDelete",
            _ => "ObjectUpdate",
        }
    }
}

/// A step of a kind's watch.
#[derive(Debug)]
pub enum Step {
    /// A list begins.
    Begin,
    /// Part of the list.
    Listed(String, Option<Object>),
    /// The list is complete.
    Done,
    /// Came or changed.
    Set(String, Option<Object>),
    /// Went.
    Gone(String),
}

impl Step {
    /// The step as it is recorded, with the object that it told of.
    pub(crate) fn entry(&self, kind: Kind, object: Option<Box<serde_json::Value>>) -> Entry {
        let (step, key) = match self {
            Step::Begin => (ObjectStep::Begin, ""),
            Step::Listed(key, _) => (ObjectStep::Listed, key.as_str()),
            Step::Done => (ObjectStep::Done, ""),
            Step::Set(key, _) => (ObjectStep::Set, key.as_str()),
            Step::Gone(key) => (ObjectStep::Gone, key.as_str()),
        };
        let (kind, key) = (kind.name().to_owned(), key.to_owned());
        Entry::Object { kind, step, key, object: object.map(|o| *o) }
    }
}

/// Which lists are complete, and what those under way have had.
#[derive(Debug, Default)]
pub struct Lists {
    under_way: BTreeMap<Kind, BTreeSet<String>>,
    complete: BTreeSet<Kind>,
}

impl Lists {
    /// True once every kind was listed.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.complete.len() == Kind::ALL.len()
    }

    /// Takes a step into `objects`; returns what it changed.
    pub fn take(&mut self, objects: &mut Objects, kind: Kind, step: Step) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut set = |objects: &mut Objects, key: String, object: Option<Object>| {
            let old = match &object {
                Some(new) => objects.put(key, new.clone()),
                None => objects.take(kind, &key),
            };
            if old != object {
                changes.push(Change { kind, old, new: object });
            }
        };
        match step {
            Step::Begin => drop(self.under_way.insert(kind, BTreeSet::new())),
            Step::Listed(key, object) => {
                self.under_way.entry(kind).or_default().insert(key.clone());
                set(objects, key, object);
            }
            Step::Done => {
                let seen = self.under_way.remove(&kind).unwrap_or_default();
                for key in objects.keys(kind).into_iter().filter(|k| !seen.contains(k)) {
                    set(objects, key, None);
                }
                self.complete.insert(kind);
            }
            Step::Set(key, object) => set(objects, key, object),
            Step::Gone(key) => set(objects, key, None),
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(allowed: i64) -> Option<Object> {
        Some(Object::DisruptionBudget(Arc::new(DisruptionBudget { allowed, ..DisruptionBudget::default() })))
    }

    #[test]
    fn a_new_list_takes_away_what_it_does_not_have() {
        let (mut lists, mut objects) = (Lists::default(), Objects::default());
        let kind = Kind::DisruptionBudget;
        let mut take = |step| lists.take(&mut objects, kind, step);
        take(Step::Begin);
        assert_eq!(take(Step::Listed("d/a".into(), budget(1))).len(), 1);
        assert_eq!(take(Step::Listed("d/b".into(), budget(1))).len(), 1);
        assert!(take(Step::Done).is_empty());
        assert!(take(Step::Set("d/a".into(), budget(1))).is_empty(), "nothing has changed");
        let changed = take(Step::Set("d/a".into(), budget(2)));
        assert_eq!((changed.len(), changed[0].label()), (1, "ObjectUpdate"));
        take(Step::Begin);
        take(Step::Listed("d/b".into(), budget(1)));
        let gone = take(Step::Done);
        assert_eq!((gone.len(), gone[0].label(), &gone[0].new), (1, "ObjectDelete", &None));
        assert_eq!(take(Step::Gone("d/b".into())).len(), 1);
        assert!(objects.budgets.is_empty() && !lists.complete());
        for kind in Kind::ALL {
            lists.take(&mut objects, *kind, Step::Done);
        }
        assert!(lists.complete());
    }
}
