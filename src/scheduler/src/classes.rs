//! Pods that are alike: one namespace, the same labels and the same affinity terms.
//!
//! What a selector or a term says of one of them it says of all, so that affinity and spread ask once
//! per class and node, however many pods there are. The replicas of a template are one class; those of a
//! StatefulSet, which have a label each, are not.

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

/// The classes of the placed pods.
#[derive(Clone, Debug, Default)]
pub struct Classes {
    /// With the number, and of how many pods.
    known: HashMap<Arc<Class>, (ClassId, usize)>,
    last: ClassId,
}

impl Classes {
    /// A pod came: its class.
    pub fn enter(&mut self, pod: &PodInfo) -> (ClassId, Arc<Class>) {
        let class = Arc::new(Class::of(pod));
        if let Some((known, _)) = self.known.get_key_value(&class) {
            let known = known.clone();
            if let Some((id, pods)) = self.known.get_mut(&known) {
                *pods += 1;
                return (*id, known);
            }
        }
        self.last += 1;
        self.known.insert(class.clone(), (self.last, 1));
        (self.last, class)
    }

    /// A pod of the class went; with the last one goes the class.
    pub fn leave(&mut self, class: &Arc<Class>) {
        if let Some((_, pods)) = self.known.get_mut(class) {
            *pods -= 1;
            if *pods == 0 {
                self.known.remove(class);
            }
        }
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
        let ((a, of_a), (b, _)) = (classes.enter(&pod("a")), classes.enter(&pod("b")));
        let (again, same) = classes.enter(&pod("a"));
        assert!(again == a && a != b && Arc::ptr_eq(&same, &of_a));
        classes.leave(&of_a);
        classes.leave(&of_a);
        assert_eq!(classes.known.values().map(|(id, _)| *id).collect::<Vec<_>>(), [b]);
        assert_ne!(classes.enter(&pod("a")).0, a, "a number is not used again");
    }
}
