//! What a pod says of the pods near it: inter-pod affinity and anti-affinity.

use super::LabelSelector;
use k8s_openapi::api::core::v1;
use std::collections::{BTreeMap, BTreeSet};

/// A term: pods of these namespaces with these labels, near being the same value of a node's label.
///
/// `matchLabelKeys` and `mismatchLabelKeys` are in the selector already: the API server merges them
/// when the pod is created.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodTerm {
    /// By name; the pod's own namespace when neither this nor a selector is given.
    pub namespaces: BTreeSet<String>,
    /// Or by the namespace's labels.
    pub namespace_selector: LabelSelector,
    /// The pods.
    pub selector: LabelSelector,
    /// The node label.
    pub topology_key: String,
}

impl PodTerm {
    /// True for a pod with these labels in this namespace, which has labels of its own.
    #[must_use]
    pub fn matches(
        &self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
        of_namespace: &BTreeMap<String, String>,
    ) -> bool {
        (self.namespaces.contains(namespace) || self.namespace_selector.matches(of_namespace))
            && self.selector.matches(labels)
    }

    fn parse(term: &v1::PodAffinityTerm, namespace: &str) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        if namespaces.is_empty() && term.namespace_selector.is_none() {
            namespaces.insert(namespace.to_owned());
        }
        PodTerm {
            namespaces,
            namespace_selector: LabelSelector::parse(term.namespace_selector.as_ref()),
            selector: LabelSelector::parse(term.label_selector.as_ref()),
            topology_key: term.topology_key.clone(),
        }
    }
}

/// A preferred term and its weight, 1 to 100.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WeightedPodTerm {
    /// The weight.
    pub weight: i64,
    /// The term.
    pub term: PodTerm,
}

/// All terms of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodAffinity {
    /// Must be near.
    pub required: Vec<PodTerm>,
    /// Rather near.
    pub preferred: Vec<WeightedPodTerm>,
    /// Must not be near.
    pub anti_required: Vec<PodTerm>,
    /// Rather not near.
    pub anti_preferred: Vec<WeightedPodTerm>,
}

impl PodAffinity {
    /// Reads a pod's affinity; `namespace` is the pod's.
    #[must_use]
    pub fn parse(affinity: Option<&v1::Affinity>, namespace: &str) -> Self {
        let required = |terms: &Option<Vec<v1::PodAffinityTerm>>| {
            terms.iter().flatten().map(|t| PodTerm::parse(t, namespace)).collect()
        };
        let preferred = |terms: &Option<Vec<v1::WeightedPodAffinityTerm>>| {
            let one = |t: &v1::WeightedPodAffinityTerm| WeightedPodTerm {
                weight: i64::from(t.weight),
                term: PodTerm::parse(&t.pod_affinity_term, namespace),
            };
            terms.iter().flatten().map(one).collect()
        };
        let mut out = PodAffinity::default();
        if let Some(near) = affinity.and_then(|a| a.pod_affinity.as_ref()) {
            out.required = required(&near.required_during_scheduling_ignored_during_execution);
            out.preferred = preferred(&near.preferred_during_scheduling_ignored_during_execution);
        }
        if let Some(apart) = affinity.and_then(|a| a.pod_anti_affinity.as_ref()) {
            out.anti_required = required(&apart.required_during_scheduling_ignored_during_execution);
            out.anti_preferred = preferred(&apart.preferred_during_scheduling_ignored_during_execution);
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn term(of: Value) -> PodTerm {
        let mut of = of;
        of["topologyKey"] = json!("zone");
        PodTerm::parse(&serde_json::from_value(of).unwrap(), "own")
    }

    #[test]
    fn namespaces_are_named_or_selected_or_the_pods_own() {
        let labels = BTreeMap::from([("team".to_owned(), "a".to_owned())]);
        let matches = |term: &PodTerm, namespace: &str| term.matches(namespace, &BTreeMap::new(), &labels);
        for (of, own, other) in [
            (json!({"labelSelector": {}}), true, false),
            (json!({"labelSelector": {}, "namespaces": ["other"]}), false, true),
            (json!({"labelSelector": {}, "namespaceSelector": {}}), true, true),
            (json!({"labelSelector": {}, "namespaceSelector": {"matchLabels": {"team": "b"}}}), false, false),
            (
                json!({"labelSelector": {}, "namespaces": ["other"],
                    "namespaceSelector": {"matchLabels": {"team": "b"}}}),
                false,
                true,
            ),
            (json!({}), false, false),
        ] {
            let term = term(of.clone());
            assert_eq!((matches(&term, "own"), matches(&term, "other")), (own, other), "{of}");
        }
    }
}
