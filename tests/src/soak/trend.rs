//! Whether a series grows: pure.
//!
//! A process fills its caches and its heap for a while, so only the second half of a run counts: its last quarter is
//! held against the one before, median against median. A leak of one thing per pod shows at 5 pods/s as 300 a minute.

use super::Sample;
use std::fmt::Write as _;

/// By how much of itself a series may be higher in the last quarter than in the third.
const SHARE: f64 = 0.05;
/// And by how much in any case: pods come and go in between two looks.
const SLACK: f64 = 8.0;

/// What became of a series.
#[derive(Clone, Debug, PartialEq)]
pub struct Trend {
    /// Its name.
    pub name: String,
    /// The first value.
    pub first: f64,
    /// The median of the third quarter.
    pub third: f64,
    /// The median of the last quarter.
    pub last: f64,
    /// The highest value.
    pub most: f64,
}

impl Trend {
    /// Whether it does.
    #[must_use]
    pub fn grows(&self) -> bool {
        self.last - self.third > (self.third * SHARE).max(SLACK)
    }
}

/// The trend of each series that every sample has.
#[must_use]
pub fn trends(samples: &[(f64, Sample)]) -> Vec<Trend> {
    let Some((_, first)) = samples.first() else { return Vec::new() };
    let of = |name: &String| {
        let values: Vec<f64> = samples.iter().filter_map(|(_, s)| s.get(name).copied()).collect();
        let quarter = values.len() / 4;
        if values.len() != samples.len() || quarter == 0 {
            return None;
        }
        let from = values.len() - 2 * quarter;
        let (third, last) = values[from..].split_at(quarter);
        Some(Trend {
            name: name.clone(),
            first: values[0],
            third: median(third),
            last: median(last),
            most: values.iter().copied().fold(f64::MIN, f64::max),
        })
    };
    first.keys().filter_map(of).collect()
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}

/// A table of them.
#[must_use]
pub fn markdown(trends: &[Trend]) -> String {
    let mut out = String::from(
        "| series | first | third quarter | last quarter | most | grows |\n|---|---|---|---|---|---|\n",
    );
    for t in trends {
        let grows = if t.grows() { "YES" } else { "no" };
        let (first, third, last, most) = (t.first, t.third, t.last, t.most);
        // Writing into a String does not fail.
        let _ = writeln!(out, "| {} | {first:.1} | {third:.1} | {last:.1} | {most:.1} | {grows} |", t.name);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(of: impl Fn(f64) -> f64) -> Vec<(f64, Sample)> {
        (0..40).map(|i| (f64::from(i), Sample::from([("x".to_owned(), of(f64::from(i)))]))).collect()
    }

    #[test]
    fn what_grows_is_told_from_what_only_fills_up_or_swings() {
        for (what, of, grows) in [
            ("a leak", (|i| 10.0 + 3.0 * i) as fn(f64) -> f64, true),
            ("a small leak in something large", |i| 1000.0 + 10.0 * i, true),
            ("still", |_| 40.0, false),
            ("filled up in the first half", |i| 100.0 + 10.0 * i.min(15.0), false),
            ("it swings", |i| 100.0 + if (i as u32).is_multiple_of(2) { 30.0 } else { 0.0 }, false),
            ("it falls", |i| 500.0 - 5.0 * i, false),
        ] {
            let trends = trends(&samples(of));
            assert_eq!(trends[0].grows(), grows, "{what}: {trends:?}");
            assert_eq!(markdown(&trends).contains("YES"), grows);
        }
        assert_eq!(trends(&[]), []);
        assert_eq!(trends(&samples(|_| 1.0)[..3]), [], "too short to tell");
    }
}
