//! What was measured on each server, side by side.

pub use crate::figures::Times;
use std::fmt::Write as _;

/// One figure: how it is shown, and the number that is compared, less being better.
#[derive(Clone, Debug)]
struct Figure {
    what: String,
    aim: &'static str,
    shown: String,
    number: f64,
}

/// The figures of one server.
#[derive(Clone, Debug, Default)]
pub struct Figures(Vec<Figure>);

impl Figures {
    /// Adds a figure with what issue or design want of it (`aim` may be empty).
    pub fn add(&mut self, what: &str, aim: &'static str, shown: String, number: f64) {
        self.0.push(Figure { what: what.to_owned(), aim, shown, number });
    }

    /// Adds times as `p50 / p99 ms`, compared by the p50.
    pub fn times(&mut self, what: &str, aim: &'static str, times: &Times) {
        let shown = format!("{:.1} / {:.1} ms", times.at(0.5), times.at(0.99));
        self.add(what, aim, shown, times.at(0.5));
    }

    /// Adds those of another part.
    pub fn append(&mut self, mut other: Figures) {
        self.0.append(&mut other.0);
    }

    /// Adds memory.
    pub fn memory(&mut self, what: &str, aim: &'static str, kib: u64) {
        let mib = f64::from(u32::try_from(kib).unwrap_or(u32::MAX)) / 1024.0;
        self.add(what, aim, format!("{mib:.1} MiB"), mib);
    }
}

/// Markdown of both, row by row as the first has them; a server that was not measured leaves its column empty.
#[must_use]
pub fn table(ours: &Figures, theirs: &Figures) -> String {
    let mut out = "| what | podway | containerd | theirs ÷ ours | aim |\n|---|---|---|---|---|\n".to_owned();
    let one = |of: &Figures, what: &str| of.0.iter().find(|f| f.what == what).cloned();
    let rows = if ours.0.is_empty() { theirs } else { ours };
    for row in &rows.0 {
        let (left, right) = (one(ours, &row.what), one(theirs, &row.what));
        let ratio = match (&left, &right) {
            (Some(left), Some(right)) if left.number > 0.0 => format!("{:.1}", right.number / left.number),
            _ => String::new(),
        };
        let shown = |f: Option<Figure>| f.map(|f| f.shown).unwrap_or_default();
        // A String takes all that is written to it.
        let _ =
            writeln!(out, "| {} | {} | {} | {ratio} | {} |", row.what, shown(left), shown(right), row.aim);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn rows_are_matched_by_name_and_a_ratio_needs_both() {
        let mut times = Times::default();
        (1..=100).for_each(|n| times.add(Duration::from_millis(n)));
        let (mut ours, mut theirs) = (Figures::default(), Figures::default());
        ours.times("a call", "≥ 2×", &times);
        ours.memory("memory", "", 2048);
        theirs.add("a call", "", "125 ms".to_owned(), 125.0);
        let text = table(&ours, &theirs);
        assert!(text.contains("| a call | 50.0 / 99.0 ms | 125 ms | 2.5 | ≥ 2× |\n"), "{text}");
        assert!(text.ends_with("| memory | 2.0 MiB |  |  |  |\n"), "{text}");
        assert!(table(&Figures::default(), &theirs).ends_with("| a call |  | 125 ms |  |  |\n"));
    }
}
