//! nodeSelector and node affinity, required and preferred.

use super::args::AddedAffinity;
use crate::cache::{NodeState, Snapshot};
use crate::framework::{
    ClusterEvent, CycleState, Filter, GoesBy, Plugin, PreFilter, PreFilterResult, PreScore, Score, Status,
    default_normalize,
};
use crate::model::{NodeInfo, Part, PodInfo};
use std::collections::BTreeSet;

/// The plugin, with what its profile adds.
#[derive(Default)]
pub struct NodeAffinity(pub AddedAffinity);

impl NodeAffinity {
    /// True when what the profile requires takes the node.
    fn enforced(&self, node: &NodeInfo) -> bool {
        let terms = self.0.required.as_ref();
        terms.is_none_or(|terms| terms.iter().any(|t| t.matches(&node.name, &node.labels)))
    }
}

const REASON: &str = "node(s) didn't match Pod's node affinity/selector";
const ENFORCED: &str = "node(s) didn't match scheduler-enforced node affinity";
const CONFLICT: &str = "pod affinity terms conflict";

/// True when nodeSelector and required terms take the node.
pub(crate) fn accepts(pod: &PodInfo, node: &NodeInfo) -> bool {
    pod.node_selector.iter().all(|(k, v)| node.labels.get(k) == Some(v))
        && pod
            .required_terms
            .as_ref()
            .is_none_or(|terms| terms.iter().any(|t| t.matches(&node.name, &node.labels)))
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn goes_by(&self) -> GoesBy {
        GoesBy::Node(&[Part::Selection, Part::Preferences])
    }

    fn hears(&self, event: &ClusterEvent) -> bool {
        event.is_of_node()
    }

    fn may_help(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::NodeAdd(new) => self.enforced(new) && accepts(pod, new),
            ClusterEvent::NodeUpdate(old, new) => {
                let takes = |node: &NodeInfo| self.enforced(node) && accepts(pod, node);
                takes(new) && !takes(old)
            }
            ClusterEvent::PodUpdate => true,
            _ => false,
        }
    }
}

impl PreFilter for NodeAffinity {
    fn pre_filter(&self, _: &mut CycleState, pod: &PodInfo, _: &Snapshot) -> Result<PreFilterResult, Status> {
        let Some(terms) = &pod.required_terms else {
            let nothing = pod.node_selector.is_empty() && self.0.required.is_none();
            return Ok(if nothing { PreFilterResult::Skip } else { PreFilterResult::All });
        };
        // Terms are ORed: one that names no node leaves all nodes possible.
        let mut names = BTreeSet::new();
        for term in terms {
            match term.named_nodes() {
                None => return Ok(PreFilterResult::All),
                Some(these) => names.extend(these.into_iter().map(str::to_owned)),
            }
        }
        if terms.is_empty() {
            return Ok(PreFilterResult::All);
        }
        if names.is_empty() {
            return Err(Status::unresolvable(self.name(), CONFLICT));
        }
        Ok(PreFilterResult::Only(names))
    }
}

impl Filter for NodeAffinity {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeState) -> Result<(), Status> {
        if !self.enforced(&node.info) {
            return Err(Status::unresolvable(self.name(), ENFORCED));
        }
        if accepts(pod, &node.info) { Ok(()) } else { Err(Status::unresolvable(self.name(), REASON)) }
    }
}

impl PreScore for NodeAffinity {
    fn pre_score(&self, _: &mut CycleState, pod: &PodInfo, _: &[&NodeState], _: &Snapshot) -> bool {
        !pod.preferred_terms.is_empty() || !self.0.preferred.is_empty()
    }
}

impl Score for NodeAffinity {
    fn score(&self, _: &CycleState, pod: &PodInfo, node: &NodeState, _: &Snapshot) -> i64 {
        self.0
            .preferred
            .iter()
            .chain(&pod.preferred_terms)
            .filter(|p| p.weight != 0 && p.term.matches(&node.info.name, &node.info.labels))
            .map(|p| p.weight)
            .sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        default_normalize(scores, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NodeTerm, Operator, PreferredTerm, Requirement};

    fn node(name: &str, labels: &[(&str, &str)]) -> NodeInfo {
        let labels = labels.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        NodeInfo { name: name.into(), labels, ..NodeInfo::default() }
    }

    fn by_label(key: &str, value: &str) -> NodeTerm {
        let r = Requirement { key: key.into(), operator: Operator::In(vec![value.into()]) };
        NodeTerm { expressions: vec![r], fields: vec![] }
    }

    fn by_name(names: &[&str]) -> NodeTerm {
        let fields = names
            .iter()
            .map(|&n| Requirement { key: "metadata.name".into(), operator: Operator::In(vec![n.into()]) })
            .collect();
        NodeTerm { expressions: vec![], fields }
    }

    #[test]
    fn selector_and_terms_are_anded_and_terms_are_ored() {
        let mut pod = PodInfo {
            required_terms: Some(vec![by_label("z", "1"), by_label("z", "2")]),
            ..PodInfo::default()
        };
        assert!(accepts(&pod, &node("a", &[("z", "2")])));
        assert!(!accepts(&pod, &node("a", &[("z", "3")])));
        pod.node_selector.insert("d".into(), "ssd".into());
        assert!(!accepts(&pod, &node("a", &[("z", "2")])));
        assert!(accepts(&pod, &node("a", &[("z", "2"), ("d", "ssd")])));
        pod.required_terms = Some(vec![]);
        assert!(!accepts(&pod, &node("a", &[("d", "ssd")])));
    }

    #[test]
    fn pre_filter_narrows_only_when_every_term_names_a_node() {
        let run = |terms: Option<Vec<NodeTerm>>| {
            let pod = PodInfo { required_terms: terms, ..PodInfo::default() };
            NodeAffinity::default().pre_filter(&mut CycleState::default(), &pod, &Snapshot::default())
        };
        assert_eq!(run(None), Ok(PreFilterResult::Skip));
        assert_eq!(run(Some(vec![by_name(&["a"]), by_label("z", "1")])), Ok(PreFilterResult::All));
        let both = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        assert_eq!(run(Some(vec![by_name(&["a"]), by_name(&["b"])])), Ok(PreFilterResult::Only(both)));
        let refused = run(Some(vec![by_name(&["a", "b"])])).unwrap_err();
        assert_eq!(refused.reasons, ["pod affinity terms conflict"]);
    }

    #[test]
    fn preferred_terms_add_their_weights() {
        let preferred = |w, v| PreferredTerm { weight: w, term: by_label("z", v) };
        let pod = PodInfo {
            preferred_terms: vec![
                preferred(3, "1"),
                preferred(2, "1"),
                preferred(0, "1"),
                preferred(50, "2"),
            ],
            ..PodInfo::default()
        };
        let score = |v: &str| {
            NodeAffinity::default().score(
                &CycleState::default(),
                &pod,
                &NodeState::of(node("a", &[("z", v)])),
                &Snapshot::default(),
            )
        };
        let mut scores = [score("1"), score("2"), score("3")];
        assert_eq!(scores, [5, 50, 0]);
        NodeAffinity::default().normalize(&mut scores);
        assert_eq!(scores, [10, 100, 0]);
    }
}
