//! Metrics by family, read from the Prometheus text format: to compare ours with the stock scheduler's.

use std::collections::{BTreeMap, BTreeSet};

/// A family of metrics.
#[derive(Debug, Default, PartialEq)]
pub struct Family {
    /// counter, gauge or histogram.
    pub kind: String,
    /// STABLE, BETA or ALPHA, where the help says so.
    pub stability: String,
    /// The labels' names, without `le`.
    pub labels: BTreeSet<String>,
    /// The upper bounds of a histogram's buckets, as numbers in text.
    pub bounds: BTreeSet<String>,
}

/// The families of a text, by name.
#[must_use]
pub fn families(text: &str) -> BTreeMap<String, Family> {
    let mut out: BTreeMap<String, Family> = BTreeMap::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, words) = help.split_once(' ').unwrap_or((help, ""));
            let stability = words.strip_prefix('[').and_then(|w| w.split_once(']')).map_or("", |(s, _)| s);
            out.entry(name.to_owned()).or_default().stability = stability.to_owned();
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap_or((kind, ""));
            out.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else if !line.starts_with('#') {
            sample(&mut out, line);
        }
    }
    out
}

fn sample(out: &mut BTreeMap<String, Family>, line: &str) {
    let end = line.find(['{', ' ']).unwrap_or(line.len());
    let name = &line[..end];
    let base = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s));
    let key = if out.contains_key(name) { name } else { base.unwrap_or(name) };
    let Some(family) = out.get_mut(key) else { return };
    let labels = line[end..].strip_prefix('{').and_then(|rest| rest.rsplit_once('}')).map_or("", |(l, _)| l);
    let mut rest = labels;
    // The values have no quotes in them here.
    while let Some((label, after)) = rest.split_once("=\"") {
        let Some((value, next)) = after.split_once('"') else { return };
        if label == "le" {
            let bound = value.parse::<f64>().map_or_else(|_| value.to_owned(), |n| format!("{n:.6}"));
            family.bounds.insert(bound);
        } else {
            family.labels.insert(label.to_owned());
        }
        rest = next.trim_start_matches(',');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_read_by_family() {
        let read = families(
            "# HELP a_seconds [STABLE] How long\n# TYPE a_seconds histogram\n\
             a_seconds_bucket{profile=\"x\",le=\"0.5\"} 1\na_seconds_bucket{le=\"+Inf\",profile=\"x\"} 1\n\
             a_seconds_sum{profile=\"x\"} 1\n# TYPE b_total counter\nb_total 3\n",
        );
        let a = &read["a_seconds"];
        assert_eq!((a.kind.as_str(), a.stability.as_str()), ("histogram", "STABLE"));
        assert_eq!(a.labels, ["profile".to_owned()].into());
        assert_eq!(a.bounds, ["0.500000".to_owned(), "inf".to_owned()].into());
        assert_eq!((read["b_total"].kind.as_str(), read["b_total"].labels.len()), ("counter", 0));
    }
}
