//! ginkgo's JSON report, as far as it is asked for: which spec came to what.

use anyhow::Context as _;
use serde::Deserialize;

/// What came of a spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It holds.
    Passed,
    /// It says itself that it does not apply here.
    Skipped(String),
    /// It does not hold; the first lines of why.
    Failed(String),
}

/// One spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its whole name.
    pub spec: String,
    /// What came of it.
    pub verdict: Verdict,
    /// How long it took, in seconds.
    pub seconds: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Suite {
    #[serde(default)]
    spec_reports: Option<Vec<Spec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Spec {
    #[serde(default)]
    container_hierarchy_texts: Option<Vec<String>>,
    leaf_node_type: String,
    leaf_node_text: String,
    state: String,
    #[serde(default)]
    run_time: u64,
    #[serde(default)]
    failure: Failure,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    #[serde(default)]
    message: String,
}

/// How much of a failure is kept.
const LIMIT: usize = 300;

/// The failure on one line, bounded.
fn line(message: &str) -> String {
    let words: Vec<&str> = message.split_whitespace().collect();
    let mut text = words.join(" ");
    if text.len() > LIMIT {
        let cut = (0..=LIMIT).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(cut);
        text.push('…');
    }
    text
}

/// Every spec that was run, by name. Those that were not chosen are left out.
///
/// # Errors
/// When it is no report.
pub fn read(text: &[u8]) -> anyhow::Result<Vec<Outcome>> {
    let suites: Vec<Suite> = serde_json::from_slice(text).context("reading ginkgo's report")?;
    let specs = suites.into_iter().flat_map(|s| s.spec_reports.unwrap_or_default());
    let mut all: Vec<Outcome> = specs
        .filter(|s| s.leaf_node_type == "It")
        .filter_map(|s| {
            let verdict = match s.state.as_str() {
                "passed" => Verdict::Passed,
                // One that was not chosen has no word of why.
                "skipped" | "pending" if s.failure.message.is_empty() => return None,
                "skipped" => Verdict::Skipped(line(&s.failure.message)),
                state => Verdict::Failed(format!("{state}: {}", line(&s.failure.message))),
            };
            let mut words = s.container_hierarchy_texts.unwrap_or_default();
            words.push(s.leaf_node_text);
            Some(Outcome { spec: words.join(" "), verdict, seconds: s.run_time / 1_000_000_000 })
        })
        .collect();
    all.sort_by(|a, b| a.spec.cmp(&b.spec));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_run_is_told_and_nothing_else() {
        let text = br#"[{"SpecReports": [
            {"LeafNodeType": "BeforeSuite", "LeafNodeText": "", "State": "passed"},
            {"ContainerHierarchyTexts": ["[sig-node] Pods"], "LeafNodeType": "It", "LeafNodeText": "b",
             "State": "failed", "RunTime": 2500000000, "Failure": {"Message": "no\n  luck"}},
            {"ContainerHierarchyTexts": ["[sig-node] Pods"], "LeafNodeType": "It", "LeafNodeText": "a", "State": "passed"},
            {"ContainerHierarchyTexts": null, "LeafNodeType": "It", "LeafNodeText": "not chosen", "State": "skipped"},
            {"LeafNodeType": "It", "LeafNodeText": "z", "State": "skipped", "Failure": {"Message": "Only on Windows"}}]}]"#;
        let found = read(text).unwrap();
        let names: Vec<&str> = found.iter().map(|o| o.spec.as_str()).collect();
        assert_eq!(names, ["[sig-node] Pods a", "[sig-node] Pods b", "z"]);
        assert_eq!(found[1].verdict, Verdict::Failed("failed: no luck".to_owned()));
        assert_eq!((found[1].seconds, &found[0].verdict), (2, &Verdict::Passed));
        assert!(read(b"{}").is_err());
    }

    #[test]
    fn a_long_failure_is_cut_between_letters() {
        let told = line(&"ä".repeat(LIMIT));
        assert!(told.len() <= LIMIT + 3 && told.ends_with('…'));
    }
}
