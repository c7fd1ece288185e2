//! Figures as rows of docs/performance.md.

use hdrhistogram::Histogram;
use std::fmt::Write as _;
use std::time::Duration;

/// The longest that is told apart, in µs.
const HOUR: u64 = 3_600_000_000;

/// Durations, kept to 3 digits.
#[derive(Clone, Debug)]
pub struct Times(Histogram<u64>);

impl Default for Times {
    fn default() -> Self {
        Times(Histogram::new_with_bounds(1, HOUR, 3).expect("the bounds and 3 digits are what it takes"))
    }
}

impl Times {
    /// Adds one.
    pub fn add(&mut self, time: Duration) {
        self.0.saturating_record(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// Milliseconds that the share `of` took at most.
    #[must_use]
    pub fn at(&self, of: f64) -> f64 {
        Duration::from_micros(self.0.value_at_quantile(of)).as_secs_f64() * 1e3
    }

    /// The median, in µs.
    #[must_use]
    pub fn median(&self) -> u64 {
        self.0.value_at_quantile(0.5)
    }

    /// `p50 / p99 ms`.
    #[must_use]
    pub fn cell(&self) -> String {
        format!("{:.0} / {:.0} ms", self.at(0.5), self.at(0.99))
    }
}

/// The table.
#[derive(Debug, Default)]
pub struct Table(Vec<[String; 4]>);

impl Table {
    /// Adds a row: what, what was measured, what is aimed at, what stock Kubernetes takes.
    pub fn row(&mut self, what: &str, measured: String, target: &str, stock: &str) {
        self.0.push([what.to_owned(), measured, target.to_owned(), stock.to_owned()]);
    }

    /// This table with what `other` measured, row by row, as its last column.
    #[must_use]
    pub fn beside(&self, other: &Table) -> Table {
        let last = |i: usize| other.0.get(i).map_or_else(String::new, |row| row[1].clone());
        let rows = self.0.iter().enumerate();
        Table(
            rows.map(|(i, [what, measured, target, _])| {
                [what, measured, target, &last(i)].map(String::clone)
            })
            .collect(),
        )
    }

    /// Markdown; `label` heads the figures, `last` the last column.
    #[must_use]
    pub fn markdown(&self, label: &str, last: &str) -> String {
        let mut out = format!("| what | {label} | aim | {last} |\n|---|---|---|---|\n");
        for [what, measured, target, stock] in &self.0 {
            // A String takes all that is written to it.
            let _ = writeln!(out, "| {what} | {measured} | {target} | {stock} |");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_markdown() {
        let mut times = Times::default();
        (1..=100).for_each(|n| times.add(Duration::from_millis(n)));
        assert_eq!(times.cell(), "50 / 99 ms");
        let mut table = Table::default();
        table.row("a", times.cell(), "b", "c");
        assert_eq!(
            table.markdown("podway", "stock 1.36.3"),
            "| what | podway | aim | stock 1.36.3 |\n|---|---|---|---|\n| a | 50 / 99 ms | b | c |\n"
        );
        let mut other = Table::default();
        other.row("a", "7 ms".to_owned(), "", "");
        let both = table.beside(&other).markdown("podway", "same run");
        assert!(both.ends_with("| a | 50 / 99 ms | b | 7 ms |\n"), "{both}");
    }
}
