//! A scheduling decision, read back from the evidence that the scheduler left: which nodes fell and why,
//! which scored what. The shapes are those of `podway scheduler` (`explain.rs`); what does not fit them is
//! shown as it stands.

use crate::{Flow, Phase};

/// What stands before a node's name in the evidence of `NodesScored`.
const SCORE: &str = "score/";
/// And in that of `NodesFiltered`.
const NODE: &str = "node/";

/// The last decision of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// The node it fell on.
    pub chosen: Option<String>,
    /// By how much it was ahead of the second.
    pub margin: Option<String>,
    /// How many nodes there were, and how many could have run it.
    pub nodes: Option<String>,
    /// See `nodes`.
    pub feasible: Option<String>,
    /// The best, by score.
    pub scores: Vec<Score>,
    /// Node and reason.
    pub rejected: Vec<(String, String)>,
    /// The attempt.
    pub attempt: u32,
}

/// What a node scored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Score {
    /// The node.
    pub node: String,
    /// The sum; 0 if the text has none.
    pub total: i64,
    /// Plugin and `score x weight`.
    pub plugins: Vec<(String, String)>,
}

/// The decision in a flow; `None` if its scheduler left no evidence.
#[must_use]
pub fn decision(flow: &Flow) -> Option<Decision> {
    let filtered = flow.records_of(Phase::NodesFiltered).into_iter().max_by_key(|r| r.attempt);
    let scored = flow.records_of(Phase::NodesScored).into_iter().max_by_key(|r| r.attempt);
    let mut decision = Decision { attempt: scored.or(filtered)?.attempt, ..Decision::default() };
    if let Some(record) = filtered {
        decision.nodes = record.evidence.get("nodes").cloned();
        decision.feasible = record.evidence.get("feasible").cloned();
        let of = |(key, why): (&String, &String)| Some((key.strip_prefix(NODE)?.to_owned(), why.clone()));
        decision.rejected = record.evidence.iter().filter_map(of).collect();
    }
    if let Some(record) = scored {
        decision.chosen = record.evidence.get("chosen").or(record.evidence.get("winner")).cloned();
        decision.margin = record.evidence.get("margin").cloned();
        let of = |(key, text): (&String, &String)| Some(score(key.strip_prefix(SCORE)?, text));
        decision.scores = record.evidence.iter().filter_map(of).collect();
        decision.scores.sort_by(|a, b| (b.total, &a.node).cmp(&(a.total, &b.node)));
    }
    Some(decision)
}

/// `291 (NodeResourcesFit=91x1 ImageLocality=100x2)`.
fn score(node: &str, text: &str) -> Score {
    let (total, rest) = text.split_once(' ').unwrap_or((text, ""));
    let plugins = rest.trim_start_matches('(').trim_end_matches(')').split_whitespace();
    Score {
        node: node.to_owned(),
        total: total.parse().unwrap_or(0),
        plugins: plugins
            .map(|part| part.split_once('=').unwrap_or((part, "")))
            .map(|(plugin, score)| (plugin.to_owned(), score.to_owned()))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn the_evidence_reads_back_as_the_decision() {
        let mut flow = samples::whole();
        let note = |flow: &mut Flow, phase, key: &str, value: &str| {
            let record = flow.records.iter_mut().find(|r| r.phase == phase).unwrap();
            record.evidence.insert(key.to_owned(), value.to_owned());
        };
        note(&mut flow, Phase::NodesFiltered, "node/c", "NodeUnschedulable: node(s) were unschedulable");
        note(&mut flow, Phase::NodesScored, "score/a", "9 (ImageLocality=7x1 NodeAffinity=1x2)");
        note(&mut flow, Phase::NodesScored, "score/b", "21 (ImageLocality=21x1)");
        note(&mut flow, Phase::NodesScored, "score/odd", "what");
        let decision = decision(&flow).unwrap();
        assert_eq!((decision.chosen.as_deref(), decision.margin.as_deref()), (Some("podway-0"), Some("12")));
        assert_eq!(decision.rejected[0].0, "c");
        let order: Vec<&str> = decision.scores.iter().map(|s| s.node.as_str()).collect();
        assert_eq!(order, ["b", "a", "odd"]);
        assert_eq!(decision.scores[1].plugins[1], ("NodeAffinity".to_owned(), "1x2".to_owned()));
        assert_eq!(super::decision(&samples::stuck()), None);
    }
}
