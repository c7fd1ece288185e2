//! A pod's own topologySpreadConstraints.

use super::LabelSelector;
use k8s_openapi::api::core::v1;
use std::collections::BTreeMap;

/// One constraint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpreadConstraint {
    /// How far the fullest domain may be above the emptiest.
    pub max_skew: i64,
    /// The node label whose values are the domains.
    pub topology_key: String,
    /// DoNotSchedule; otherwise ScheduleAnyway.
    pub hard: bool,
    /// The pods that are counted, `matchLabelKeys` merged.
    pub selector: LabelSelector,
    /// With fewer domains the emptiest counts as having none.
    pub min_domains: usize,
    /// Nodes that the pod's node affinity excludes are left out; the default.
    pub honor_affinity: bool,
    /// Nodes with a taint that the pod does not tolerate are left out.
    pub honor_taints: bool,
}

impl SpreadConstraint {
    /// Reads a constraint of a pod with these labels.
    #[must_use]
    pub fn parse(of: &v1::TopologySpreadConstraint, labels: &BTreeMap<String, String>) -> Self {
        let keys = of.match_label_keys.iter().flatten();
        let selector = keys
            .filter_map(|key| Some((key, labels.get(key)?)))
            .fold(LabelSelector::parse(of.label_selector.as_ref()), |s, (key, value)| s.and(key, value));
        SpreadConstraint {
            max_skew: i64::from(of.max_skew),
            topology_key: of.topology_key.clone(),
            hard: of.when_unsatisfiable == "DoNotSchedule",
            selector,
            min_domains: of.min_domains.and_then(|n| usize::try_from(n).ok()).unwrap_or(1),
            honor_affinity: of.node_affinity_policy.as_deref() != Some("Ignore"),
            honor_taints: of.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_are_upstreams_and_keys_that_the_pod_lacks_are_dropped() {
        let labels = BTreeMap::from([("app", "a"), ("hash", "1")].map(|(k, v)| (k.to_owned(), v.to_owned())));
        let of = json!({"maxSkew": 2, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {"app": "a"}}, "matchLabelKeys": ["hash", "none"]});
        let parsed = SpreadConstraint::parse(&serde_json::from_value(of).unwrap(), &labels);
        assert!(parsed.hard && parsed.honor_affinity && !parsed.honor_taints);
        assert_eq!((parsed.max_skew, parsed.min_domains), (2, 1));
        assert!(parsed.selector.matches(&labels));
        let other = BTreeMap::from([("app".to_owned(), "a".to_owned()), ("hash".to_owned(), "2".to_owned())]);
        assert!(!parsed.selector.matches(&other));
    }
}
