//! The parts of a pod that plugins read which go by the pod and the node alone.
//!
//! Such a plugin names its parts ([`GoesBy::Node`](crate::framework::GoesBy)) and is asked about a pod that has these
//! and nothing else, so that what it says holds for every pod which has the same in them.

use super::PodInfo;

/// A part of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `spec.nodeName`.
    NodeName,
    /// Tolerations.
    Tolerations,
    /// nodeSelector and required node affinity.
    Selection,
    /// Preferred node affinity.
    Preferences,
    /// Host ports.
    HostPorts,
    /// What it asks for.
    Requests,
    /// The same, with defaults where nothing is named.
    NonZero,
    /// Its images, and how many containers it has.
    Images,
    /// Features that its node must declare.
    Needs,
}

impl Part {
    fn same(self, a: &PodInfo, b: &PodInfo) -> bool {
        match self {
            Part::NodeName => a.node_name == b.node_name,
            Part::Tolerations => a.tolerations == b.tolerations,
            Part::Selection => a.node_selector == b.node_selector && a.required_terms == b.required_terms,
            Part::Preferences => a.preferred_terms == b.preferred_terms,
            Part::HostPorts => a.host_ports == b.host_ports,
            Part::Requests => a.requests == b.requests,
            Part::NonZero => a.non_zero == b.non_zero,
            Part::Images => a.images == b.images && a.container_count == b.container_count,
            Part::Needs => a.needs == b.needs,
        }
    }

    fn copy(self, from: &PodInfo, to: &mut PodInfo) {
        match self {
            Part::NodeName => to.node_name.clone_from(&from.node_name),
            Part::Tolerations => to.tolerations.clone_from(&from.tolerations),
            Part::Selection => {
                to.node_selector.clone_from(&from.node_selector);
                to.required_terms.clone_from(&from.required_terms);
            }
            Part::Preferences => to.preferred_terms.clone_from(&from.preferred_terms),
            Part::HostPorts => to.host_ports.clone_from(&from.host_ports),
            Part::Requests => to.requests.clone_from(&from.requests),
            Part::NonZero => to.non_zero.clone_from(&from.non_zero),
            Part::Images => {
                to.images.clone_from(&from.images);
                to.container_count = from.container_count;
            }
            Part::Needs => to.needs.clone_from(&from.needs),
        }
    }
}

impl PodInfo {
    /// A pod that has these parts of this one and nothing else.
    #[must_use]
    pub fn only(&self, parts: &[Part]) -> PodInfo {
        let mut out = PodInfo::default();
        parts.iter().for_each(|part| part.copy(self, &mut out));
        out
    }

    /// Whether [`PodInfo::only`] these parts is the same of both.
    #[must_use]
    pub fn same_in(&self, parts: &[Part], other: &PodInfo) -> bool {
        parts.iter().all(|part| part.same(self, other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1;
    use serde_json::json;

    const ALL: [Part; 9] = [
        Part::NodeName,
        Part::Tolerations,
        Part::Selection,
        Part::Preferences,
        Part::HostPorts,
        Part::Requests,
        Part::NonZero,
        Part::Images,
        Part::Needs,
    ];

    /// A pod that has something in each part.
    fn full() -> PodInfo {
        let term = json!({"matchExpressions": [{"key": "a", "operator": "Exists"}]});
        let pod: v1::Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "d", "uid": "u", "labels": {"app": "a"}},
            "spec": {"nodeName": "n", "priority": 7, "nodeSelector": {"a": "b"},
                "hostNetwork": true, "hostUsers": false,
                "tolerations": [{"operator": "Exists"}],
                "affinity": {"nodeAffinity": {
                    "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]},
                    "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": term}]}},
                "containers": [{"name": "c", "image": "i", "ports": [{"containerPort": 80, "hostPort": 80}],
                    "resources": {"requests": {"cpu": "1"}}}]}}))
        .unwrap();
        PodInfo::parse(&pod).unwrap()
    }

    #[test]
    fn each_part_is_its_own_and_all_else_is_left_out() {
        let (full, none) = (full(), PodInfo::default());
        for part in ALL {
            let only = full.only(&[part]);
            assert!(!full.same_in(&[part], &none), "the pod of this test has nothing in {part:?}");
            assert!(full.same_in(&[part], &only) && only.only(&[part]) == only);
            for other in ALL.into_iter().filter(|other| *other != part) {
                assert!(only.same_in(&[other], &none), "{part:?} has something of {other:?}");
                assert_eq!(only.only(&[other]), none);
            }
        }
        let all = full.only(&ALL);
        assert!(all.same_in(&ALL, &full) && all.labels.is_empty() && all.priority == 0 && all.uid.is_empty());
    }
}
