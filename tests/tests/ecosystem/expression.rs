//! What a PromQL expression names: metrics and labels. Not a parser: it knows what our own expressions are made of.

use std::collections::BTreeSet;

/// Words that are no metric where no `(` follows them.
const KEYWORDS: [&str; 10] =
    ["and", "or", "unless", "bool", "offset", "inf", "nan", "group_left", "group_right", "ignoring"];

/// The metrics and the labels of `expression`.
pub fn names(expression: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut metrics, mut labels) = (BTreeSet::new(), BTreeSet::new());
    let mut rest = expression;
    while let Some(c) = rest.chars().next() {
        match c {
            '"' | '\'' => rest = rest[1..].split_once(c).map_or("", |(_, after)| after),
            '[' => rest = rest.split_once(']').map_or("", |(_, after)| after),
            '{' => {
                let (matchers, after) = rest[1..].split_once('}').unwrap_or((&rest[1..], ""));
                labels.extend(
                    matchers
                        .split(',')
                        .filter_map(|m| Some(word(m.trim()).0.to_owned()).filter(|w| !w.is_empty())),
                );
                rest = after;
            }
            _ if c.is_ascii_alphabetic() || c == '_' || c == ':' => {
                let (name, after) = word(rest);
                let list = after.trim_start().strip_prefix('(');
                rest = after;
                match (name, list) {
                    ("by" | "on" | "without" | "group_left" | "ignoring", Some(list)) => {
                        let (inside, after) = list.split_once(')').unwrap_or((list, ""));
                        labels
                            .extend(inside.split(',').map(|l| l.trim().to_owned()).filter(|l| !l.is_empty()));
                        rest = after;
                    }
                    // A function or an aggregation, with its argument or with `by` before it.
                    (_, Some(_)) => {}
                    _ if ["by", "without"].contains(&word(after.trim_start()).0) => {}
                    _ if KEYWORDS.contains(&name) => {}
                    _ => drop(metrics.insert(name.to_owned())),
                }
            }
            // A number, with its unit if it has one.
            _ if c.is_ascii_digit() => {
                rest = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '.')
            }
            _ => rest = &rest[c.len_utf8()..],
        }
    }
    (metrics, labels)
}

/// The name at the start of `text`, and what follows.
fn word(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':').unwrap_or(text.len());
    text.split_at(end)
}

#[test]
fn metrics_and_labels_are_told_apart() {
    let (metrics, labels) = names(
        "sort_desc(histogram_quantile(0.99, sum by (phase, le) (rate(a_bucket{x=\"y\",z=~\".*\"}[5m]) and on (job) b_total))) > 5 or on () vector(0)",
    );
    assert_eq!(metrics.into_iter().collect::<Vec<_>>(), ["a_bucket", "b_total"]);
    assert_eq!(labels.into_iter().collect::<Vec<_>>(), ["job", "le", "phase", "x", "z"]);
}
