//! docs/conformance.md: every spec of each set with what a stock node and what podway makes of it. It
//! is written by the driver and read back by it: a spec that the page says is passed must go on to be.

use super::report::{Outcome, Verdict};
use super::{Set, stock_fails};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A set's specs with what podway makes of them: `pass`, or why not.
pub type Rows = BTreeMap<String, String>;

/// The word for a spec that holds.
const PASS: &str = "pass";
/// What stands for a stock node that was not asked.
const NOT_RUN: &str = "not run";

/// The page's content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// By set's name.
    pub sets: BTreeMap<String, Rows>,
}

const HEAD: &str = "# Conformance\n\n\
    Kubernetes' own end-to-end suite (`e2e.test` 1.36.3) against one node of podway (two for `scheduling` and\n\
    `network`): our scheduler for all pods, our agent, our runtime; no kube-proxy, no DNS server, but for `network`,\n\
    where a stock kube-proxy 1.36 and CoreDNS run there as pods. Beside it what a stock kubelet\n\
    1.36.3 with containerd 2.4.2 and kube-scheduler makes of the same specs on a machine of the same kind, where\n\
    that was run.\n\n\
    This page is written by `just conformance --write`; a spec that it says passes must go on to do so.\n\
    Specs that are Flaky are in no set.\n\n";

/// Text in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('\\', "\\\\").replace('|', "\\|").replace('\n', " ")
}

fn uncell(text: &str) -> String {
    let mut out = String::new();
    let mut letters = text.trim().chars();
    while let Some(letter) = letters.next() {
        out.extend(if letter == '\\' { letters.next() } else { Some(letter) });
    }
    out
}

/// A row's cells: what stands between the bars that are not escaped.
fn cells(line: &str) -> Vec<String> {
    let mut cells = vec![String::new()];
    let mut escaped = false;
    for letter in line.chars() {
        if letter == '|' && !escaped {
            cells.push(String::new());
        } else if let Some(last) = cells.last_mut() {
            last.push(letter);
        }
        escaped = letter == '\\' && !escaped;
    }
    cells.iter().map(|c| uncell(c)).collect()
}

impl Page {
    /// Reads a page that [`Page::text`] wrote.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let mut page = Page::default();
        let mut set = None;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("## ") {
                set = Some(name.trim().to_owned());
            } else if let Some(set) = &set
                && line.starts_with("| [")
                && let [_, spec, _, ours, ..] = cells(line).as_slice()
            {
                page.sets.entry(set.clone()).or_default().insert(spec.clone(), ours.clone());
            }
        }
        page
    }

    /// Takes what a run of a whole set came to in the place of what was known of it.
    pub fn take(&mut self, set: Set, outcomes: &[Outcome]) {
        let rows = outcomes.iter().map(|o| {
            let ours = match &o.verdict {
                Verdict::Passed => PASS.to_owned(),
                Verdict::Skipped(why) => format!("skipped: {why}"),
                Verdict::Failed(why) => why.clone(),
            };
            (o.spec.clone(), ours)
        });
        self.sets.insert(set.name().to_owned(), rows.collect());
    }

    /// Specs that the page says pass, and that did not.
    #[must_use]
    pub fn broken<'a>(&self, set: Set, outcomes: &'a [Outcome]) -> Vec<&'a Outcome> {
        let rows = self.sets.get(set.name());
        let passed = |spec: &str| rows.and_then(|r| r.get(spec)).is_some_and(|ours| ours == PASS);
        outcomes.iter().filter(|o| matches!(o.verdict, Verdict::Failed(_)) && passed(&o.spec)).collect()
    }

    /// The page.
    ///
    /// # Errors
    /// Never: writing into a text does not fail.
    pub fn text(&self) -> Result<String, std::fmt::Error> {
        let mut out = HEAD.to_owned();
        out.push_str("| set | specs | stock passes | podway passes |\n|---|---|---|---|\n");
        let known = |set: &Set| self.sets.get(set.name()).map(|rows| (*set, rows));
        let sets: Vec<(Set, &Rows)> = Set::ALL.iter().filter_map(known).collect();
        for (set, rows) in &sets {
            let stock = rows.keys().filter(|spec| stock_fails(spec).is_none()).count();
            let stock = if set.stock_ran() { stock.to_string() } else { NOT_RUN.to_owned() };
            let ours = rows.values().filter(|ours| *ours == PASS).count();
            writeln!(out, "| {} | {} | {stock} | {ours} |", set.name(), rows.len())?;
        }
        for (set, rows) in &sets {
            writeln!(out, "\n## {}\n\n`{}`", set.name(), set.labels())?;
            if let Some(skip) = set.skip() {
                writeln!(out, "without `{skip}`")?;
            }
            out.push_str("\n| spec | stock | podway |\n|---|---|---|\n");
            for (spec, ours) in *rows {
                let stock = match stock_fails(spec) {
                    _ if !set.stock_ran() => NOT_RUN.to_owned(),
                    Some(why) => format!("fails: {why}"),
                    None => PASS.to_owned(),
                };
                writeln!(out, "| {} | {} | {} |", cell(spec), cell(&stock), cell(ours))?;
            }
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(spec: &str, verdict: Verdict) -> Outcome {
        Outcome { spec: spec.to_owned(), verdict, seconds: 1 }
    }

    #[test]
    fn a_page_is_read_back_as_it_was_written() {
        let mut page = Page::default();
        let all = [
            outcome("[sig-node] a | b \\ c", Verdict::Passed),
            outcome("[sig-node] d", Verdict::Failed("timed out | why".into())),
            outcome("[sig-node] e", Verdict::Skipped("no".into())),
        ];
        page.take(Set::Node, &all);
        let text = page.text().unwrap();
        assert!(text.contains("| node | 3 | 3 | 1 |"), "{text}");
        page.take(Set::Serial, &all);
        let text = page.text().unwrap();
        assert!(text.contains("| serial | 3 | not run | 1 |"), "{text}");
        assert_eq!(Page::read(&text), page);
    }

    #[test]
    fn what_passed_and_fails_now_is_broken_and_what_failed_before_is_not() {
        let mut page = Page::default();
        let failed = || Verdict::Failed("no".into());
        page.take(Set::Node, &[outcome("[a]", Verdict::Passed), outcome("[b]", failed())]);
        let now = [outcome("[a]", failed()), outcome("[b]", failed()), outcome("[new]", failed())];
        let broken: Vec<&str> = page.broken(Set::Node, &now).iter().map(|o| o.spec.as_str()).collect();
        assert_eq!(broken, ["[a]"]);
        assert!(page.broken(Set::Cluster, &now).is_empty());
    }
}
