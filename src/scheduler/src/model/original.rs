//! An object as the API server has it, beside what is parsed of it: kept where extenders are configured, which are
//! sent whole pods and nodes, and where a run is recorded.

use super::{NodeInfo, PodInfo};
use k8s_openapi::Metadata;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The object, if it is kept. Two are equal when they are the same one: another version of an object may tell an
/// extender what this scheduler does not read.
#[derive(Clone, Debug)]
pub struct Original<T>(Option<Arc<T>>);

impl<T> Default for Original<T> {
    fn default() -> Self {
        Original(None)
    }
}

impl<T> PartialEq for Original<T> {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl<T> Eq for Original<T> {}

impl<T: Serialize> Serialize for Original<T> {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.0.as_deref().serialize(to)
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Original<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Original(Option::<T>::deserialize(from)?.map(Arc::new)))
    }
}

impl<T> Original<T> {
    /// The object.
    #[must_use]
    pub fn get(&self) -> Option<&T> {
        self.0.as_deref()
    }
}

impl<T: Metadata<Ty = ObjectMeta> + Clone> Original<T> {
    /// Keeps `object`, but not who manages which field: that is nothing that an extender needs, and upstream leaves
    /// it out of its informers too.
    fn of(object: &T) -> Self {
        let mut object = object.clone();
        object.metadata_mut().managed_fields = None;
        Original(Some(Arc::new(object)))
    }

    /// What others wrote onto it, which an extender may go by.
    pub(super) fn annotations(&self) -> Option<&BTreeMap<String, String>> {
        self.get()?.metadata().annotations.as_ref()
    }
}

impl PodInfo {
    /// With the pod that it was parsed of.
    #[must_use]
    pub fn keeping(mut self, pod: &Pod) -> Self {
        self.original = Original::of(pod);
        self
    }
}

impl NodeInfo {
    /// With the node that it was parsed of.
    #[must_use]
    pub fn keeping(mut self, node: &Node) -> Self {
        self.original = Original::of(node);
        self
    }

    /// What was parsed of it, alone.
    #[must_use]
    pub(crate) fn bare(&self) -> Self {
        NodeInfo { original: Original::default(), ..self.clone() }
    }

    /// True when nothing differs that upstream would tell its queue of (`eventhandlers.go`
    /// nodeSchedulingPropertiesChange): a heartbeat alone wakes nobody.
    #[must_use]
    pub fn schedules_like(&self, other: &NodeInfo) -> bool {
        self.original == other.original && self == other
            || (self.original.annotations() == other.original.annotations()
                && self.original.conditions() == other.original.conditions()
                && self.bare() == other.bare())
    }
}

impl Original<Node> {
    fn conditions(&self) -> BTreeMap<&str, &str> {
        let status = self.get().and_then(|node| node.status.as_ref());
        let all = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
        all.map(|c| (c.type_.as_str(), c.status.as_str())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(heartbeat: &str, ready: &str, note: &str) -> NodeInfo {
        let node: Node =
            serde_json::from_value(json!({"metadata": {"name": "n", "annotations": {"note": note}},
            "status": {"conditions": [{"type": "Ready", "status": ready, "lastHeartbeatTime": heartbeat}]}}))
            .unwrap();
        NodeInfo::parse(&node).unwrap().keeping(&node)
    }

    #[test]
    fn a_heartbeat_is_another_node_to_an_extender_and_news_to_nobody() {
        let first = node("2026-01-01T00:00:00Z", "True", "a");
        let beat = node("2026-01-01T00:00:10Z", "True", "a");
        assert!(first != beat && first.schedules_like(&beat) && first == first.clone());
        assert!(!first.schedules_like(&node("2026-01-01T00:00:00Z", "False", "a")));
        assert!(!first.schedules_like(&node("2026-01-01T00:00:00Z", "True", "b")));
        assert!(!first.schedules_like(&NodeInfo { unschedulable: true, ..first.clone() }));
    }
}
