//! Pods that are alike: one namespace, the same labels and the same affinity terms.
//!
//! What a selector or a term says of one of them it says of all, so that affinity and spread ask once
//! per class and count per node, however many pods there are. The replicas of a template are one class;
//! those of a StatefulSet, which have a label each, are not.

use crate::model::{PodAffinity, PodInfo};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// The number of a class; not used again while the scheduler runs.
pub type ClassId = u64;

/// What its pods have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Class {
    /// Namespace.
    pub namespace: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Affinity terms.
    pub affinity: PodAffinity,
}

impl Class {
    /// The class that a pod is of.
    #[must_use]
    pub fn of(pod: &PodInfo) -> Self {
        Class { namespace: pod.namespace.clone(), labels: pod.labels.clone(), affinity: pod.affinity.clone() }
    }
}

/// How many pods of a class a node has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alike {
    /// All.
    pub all: i64,
    /// Those that are not being deleted.
    pub staying: i64,
}

/// The classes of the placed pods.
#[derive(Clone, Debug, Default)]
pub struct Classes {
    ids: HashMap<Arc<Class>, (ClassId, usize)>,
    by_id: Arc<BTreeMap<ClassId, Arc<Class>>>,
    last: ClassId,
}

impl Classes {
    /// A pod came: its class.
    pub fn enter(&mut self, pod: &PodInfo) -> ClassId {
        let class = Class::of(pod);
        if let Some((id, pods)) = self.ids.get_mut(&class) {
            *pods += 1;
            return *id;
        }
        self.last += 1;
        let class = Arc::new(class);
        Arc::make_mut(&mut self.by_id).insert(self.last, class.clone());
        self.ids.insert(class, (self.last, 1));
        self.last
    }

    /// A pod of the class went; with the last one goes the class.
    pub fn leave(&mut self, id: ClassId) {
        let Some(class) = self.by_id.get(&id).cloned() else { return };
        let Some((_, pods)) = self.ids.get_mut(&class) else { return };
        *pods -= 1;
        if *pods == 0 {
            self.ids.remove(&class);
            Arc::make_mut(&mut self.by_id).remove(&id);
        }
    }

    /// The classes by number, shared.
    #[must_use]
    pub fn by_id(&self) -> Arc<BTreeMap<ClassId, Arc<Class>>> {
        self.by_id.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alike_is_one_class_that_goes_with_its_last_pod() {
        let pod = |app: &str| PodInfo {
            labels: BTreeMap::from([("app".to_owned(), app.to_owned())]),
            ..PodInfo::default()
        };
        let mut classes = Classes::default();
        let (a, b) = (classes.enter(&pod("a")), classes.enter(&pod("b")));
        assert_eq!((classes.enter(&pod("a")), a == b, classes.by_id().len()), (a, false, 2));
        classes.leave(a);
        assert_eq!(classes.by_id().len(), 2);
        classes.leave(a);
        assert_eq!(classes.by_id().keys().copied().collect::<Vec<_>>(), [b]);
        assert_ne!(classes.enter(&pod("a")), a, "a number is not used again");
    }
}
