//! The numbers as text: kubectl's kind of tables, 80 columns, safe on a terminal whatever a name says.

use super::blame::Blame;
use super::chain::Chains;
use super::compare::{Comparison, Row as Pair};
use super::stats::{Row, Stats};
use crate::picture::{ms, ms_at};
use crate::waterfall::escaped;
use crate::{Phase, Resolution};
use std::fmt::Write as _;

const COARSE: &str = "~ rests on times of 1 s: conditions or creationTimestamp\n";

/// `stats`.
#[must_use]
pub fn stats(stats: &Stats) -> String {
    let mut out = format!("{}, {} Ready\n", pods(stats.pods), stats.ready);
    let _ = writeln!(
        out,
        "{:<17} {:>6} {:>10} {:>10} {:>10} {:>10} {:>9}",
        "PHASE (ms)", "PODS", "P50", "P95", "P99", "MAX", "QUEUE P50"
    );
    for row in stats.phases.iter().chain(&stats.total) {
        let name = row.phase.map_or("Ready in", Phase::name);
        let of = |micros| if row.took.count == 0 { "-".to_owned() } else { ms_at(micros, row.resolution) };
        let q = &row.took;
        let queue = if row.queued_p50_micros == 0 { String::new() } else { ms(row.queued_p50_micros) };
        let line = format!(
            "{name:<17} {:>6} {:>10} {:>10} {:>10} {:>10} {queue:>9}",
            q.count,
            of(q.p50_micros),
            of(q.p95_micros),
            of(q.p99_micros),
            of(q.max_micros)
        );
        let _ = writeln!(out, "{}", line.trim_end());
    }
    for (word, count) in [("failed", (|r| r.failed) as fn(&Row) -> usize), ("running", |r| r.running)] {
        let some = stats.phases.iter().filter(|r| count(r) > 0);
        let some: Vec<String> =
            some.map(|r| format!("{} in {}", r.phase.map_or("", Phase::name), pods(count(r)))).collect();
        if !some.is_empty() {
            let _ = writeln!(out, "{word}: {}", some.join(", "));
        }
    }
    out + if stats.coarse > 0 { COARSE } else { "" }
}

/// `blame`.
#[must_use]
pub fn blame(blame: &Blame) -> String {
    let mut out = format!("{}: what their critical paths were spent on\n", pods(blame.pods));
    let _ = writeln!(
        out,
        "{:<17} {:>5} {:>6} {:>10} {:>10}  WORST POD",
        "PHASE (ms)", "SHARE", "PATHS", "P50", "MAX"
    );
    for row in &blame.rows {
        let line = format!(
            "{:<17} {:>4}% {:>6} {:>10} {:>10}  {}",
            row.phase.name(),
            percent(row.path_micros, blame.whole_micros),
            row.on_path,
            ms_at(row.took.p50_micros, row.resolution),
            ms_at(row.took.max_micros, row.resolution),
            end_of(&row.worst, 26)
        );
        let _ = writeln!(out, "{line}");
    }
    if blame.gap_micros > 0 {
        let _ =
            writeln!(out, "{:<17} {:>4}%", "between phases", percent(blame.gap_micros, blame.whole_micros));
    }
    let coarse = blame.rows.iter().any(|r| r.resolution == Resolution::Second);
    out + if coarse { COARSE } else { "" }
}

/// `chain`.
#[must_use]
pub fn chains(chains: &Chains) -> String {
    let resolution = chains.resolution;
    let mut out = match &chains.pod {
        Some(pod) => format!("{}: its critical path\n", clean(pod, 60)),
        None => format!("{}: their critical paths, by medians\n", pods(chains.pods)),
    };
    let _ = writeln!(
        out,
        "{:<17} {:>6} {:>11} {:>11} {:>11}",
        "PHASE (ms)", "PATHS", "@START", "+OWN", "GAP BEFORE"
    );
    for step in &chains.steps {
        let gap = step.gap.p50_micros;
        let line = format!(
            "{:<17} {:>6} {:>11} {:>11} {:>11}",
            step.phase.name(),
            step.on_path,
            format!("@{}", ms_at(step.start.p50_micros, resolution)),
            format!("+{}", ms_at(step.own.p50_micros, resolution)),
            if gap == 0 { String::new() } else { ms_at(gap, resolution) }
        );
        let _ = writeln!(out, "{}", line.trim_end());
    }
    if chains.different > 1 {
        let _ = writeln!(out, "{} different paths; the most frequent:", chains.different);
        for path in &chains.paths {
            let phases: Vec<&str> = path.phases.iter().map(|p| p.name()).collect();
            let head = format!("{} (as {}): ", pods(path.pods), clean(&path.example, 40));
            wrapped(&mut out, &head, &phases);
        }
    }
    out + if resolution == Resolution::Second { COARSE } else { "" }
}

/// `compare`.
#[must_use]
pub fn comparison(c: &Comparison) -> String {
    let mut out = String::new();
    for (mark, name, count) in [("A", &c.a, c.pods[0]), ("B", &c.b, c.pods[1])] {
        let _ = writeln!(out, "{mark}  {}  {}", clean(name, 60), pods(count));
    }
    let _ = writeln!(
        out,
        "{:<17} {:>11} {:>11} {:>12} {:>7}  {:>8}",
        "PHASE (ms)", "A P50", "B P50", "B - A", "B / A", "PODS"
    );
    for row in c.phases.iter().chain([&c.total]) {
        let name = row.phase.map_or("Ready in", Phase::name);
        let of = |q: Option<super::Quantiles>| {
            q.map_or_else(|| "-".to_owned(), |q| ms_at(q.p50_micros, row.resolution))
        };
        let counts = [row.a, row.b].map(|q| q.map_or(0, |q| q.count));
        let line = format!(
            "{name:<17} {:>11} {:>11} {:>12} {:>7}  {:>8}",
            of(row.a),
            of(row.b),
            row.difference_micros.map_or_else(String::new, |d| signed(d, row.resolution)),
            ratio(row).unwrap_or_default(),
            format!("{}/{}", counts[0], counts[1])
        );
        let _ = writeln!(out, "{line}");
    }
    let _ = writeln!(out, "{}", verdict(c));
    out + if c.phases.iter().any(|r| r.resolution == Resolution::Second) { COARSE } else { "" }
}

/// One sentence: which is slower, and where most of it comes from.
#[must_use]
pub fn verdict(c: &Comparison) -> String {
    let Some(difference) = c.total.difference_micros else {
        return "no pod of one of them is Ready: there is nothing to compare as a whole".to_owned();
    };
    let by = ms_at(difference.unsigned_abs(), c.total.resolution);
    let word = match difference {
        0 => return "A and B take the same time".to_owned(),
        d if d > 0 => "slower",
        _ => "faster",
    };
    let most = c.decisive().and_then(|row| {
        let of = signed(row.difference_micros?, row.resolution);
        Some(format!(", most by {} ({of} ms)", row.phase?.name()))
    });
    format!("B is {word} by {by} ms{}", most.unwrap_or_default())
}

/// `+1.23` or `-1.23`.
#[must_use]
pub fn signed(micros: i64, resolution: Resolution) -> String {
    let sign = if micros < 0 { '-' } else { '+' };
    format!("{sign}{}", ms_at(micros.unsigned_abs(), resolution))
}

/// `1.50x`, where there is something to divide by.
#[must_use]
pub fn ratio(row: &Pair) -> Option<String> {
    let (a, b) = (row.a?.p50_micros, row.b?.p50_micros);
    let hundredths = u128::from(b) * 100 / u128::from(Some(a).filter(|&a| a > 0)?);
    Some(if hundredths >= 100_000 {
        ">999x".to_owned()
    } else {
        format!("{}.{:02}x", hundredths / 100, hundredths % 100)
    })
}

/// A share in whole per cent.
#[must_use]
pub fn percent(part: u64, whole: u64) -> u64 {
    u64::try_from(u128::from(part) * 100 / u128::from(whole.max(1))).unwrap_or(100).min(100)
}

fn pods(count: usize) -> String {
    if count == 1 { "1 pod".to_owned() } else { format!("{count} pods") }
}

fn clean(name: &str, limit: usize) -> String {
    let name = escaped(name, false);
    if name.chars().count() <= limit { name } else { name.chars().take(limit - 1).chain(['…']).collect() }
}

/// The end of a name, where pods of one owner differ.
fn end_of(name: &str, limit: usize) -> String {
    let name = escaped(name, false);
    let over = name.chars().count().saturating_sub(limit);
    if over == 0 { name } else { ['…'].into_iter().chain(name.chars().skip(over + 1)).collect() }
}

fn wrapped(out: &mut String, head: &str, phases: &[&str]) {
    let mut line = format!("  {head}");
    for (i, phase) in phases.iter().enumerate() {
        let word = if i + 1 < phases.len() { format!("{phase} > ") } else { (*phase).to_owned() };
        if line.chars().count() + word.trim_end().len() > 80 {
            let _ = writeln!(out, "{}", line.trim_end());
            line = "    ".to_owned();
        }
        line.push_str(&word);
    }
    let _ = writeln!(out, "{}", line.trim_end());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers;
    use crate::samples;

    #[test]
    fn every_table_fits_80_columns_and_no_name_moves_the_cursor() {
        let flows = [samples::whole(), samples::stuck(), samples::coarse(), samples::hostile()];
        for text in [
            stats(&numbers::stats(&flows)),
            blame(&numbers::blame(&flows)),
            chains(&numbers::chains(&flows)),
            chains(&numbers::chains(&flows[2..3])),
            comparison(&numbers::compare(("\u{1b}[2J", &flows[..2]), ("b\n", &flows[2..]))),
        ] {
            assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
            assert!(text.lines().all(|l| l.chars().count() <= 80), "{text}");
            assert!(text.contains('~'), "{text}");
        }
        let long = end_of("a-long-name-of-a-namespace/five-5cfd5dd8dc-hdz4q", 26);
        assert!(long.starts_with('…') && long.ends_with("/five-5cfd5dd8dc-hdz4q"), "{long}");
        assert_eq!(long.chars().count(), 26);
        assert_eq!(end_of("shop/web", 26), "shop/web");
    }

    #[test]
    fn the_tables_read_as_the_numbers_say() {
        let flows = [samples::whole(), samples::whole(), samples::stuck()];
        let text = stats(&numbers::stats(&flows));
        assert!(text.starts_with("3 pods, 2 Ready\n"), "{text}");
        assert!(
            text.contains("\nReady in               2      84.21      84.21      84.21      84.21\n"),
            "{text}"
        );
        assert!(text.ends_with("running: NetworkConfigured in 1 pod\n"), "{text}");
        let text = blame(&numbers::blame(&flows[..1]));
        assert!(
            text.contains("\nReady               34%      1      29.21      29.21  default/web-0\n"),
            "{text}"
        );
        let text = chains(&numbers::chains(&flows[..1]));
        assert!(text.contains("\nNetworkConfigured      1      @10.90      +10.40\n"), "{text}");
        let text = comparison(&numbers::compare(("a", &flows[..1]), ("b", &flows[1..2])));
        assert!(text.ends_with("A and B take the same time\n"), "{text}");
    }
}
