//! The series of a soak as an SVG: a small picture for each, all over the same time. Pure.

use super::Sample;
use std::fmt::Write as _;

const WIDTH: f64 = 300.0;
const HEIGHT: f64 = 70.0;
/// Room for a title above each picture, and between them.
const TITLE: f64 = 18.0;
const GAP: f64 = 16.0;
const COLUMNS: usize = 3;

/// Draws `samples`, each with its second since the beginning.
#[must_use]
pub fn svg(samples: &[(f64, Sample)], title: &str) -> String {
    let names: Vec<&String> = samples.first().map(|(_, s)| s.keys().collect()).unwrap_or_default();
    let end = samples.last().map_or(1.0, |(at, _)| at.max(1.0));
    let (columns, rows) = (count(COLUMNS), count(names.len().div_ceil(COLUMNS)));
    let (width, height) = (columns * (WIDTH + GAP) + GAP, rows * (HEIGHT + TITLE + GAP) + 2.0 * GAP + TITLE);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{GAP}\" y=\"{}\" font-size=\"13\">{}</text>\n",
        GAP + 8.0,
        text(title)
    );
    for (i, name) in names.iter().enumerate() {
        let values: Vec<(f64, f64)> =
            samples.iter().filter_map(|(at, s)| Some((*at, *s.get(*name)?))).collect();
        let most = values.iter().map(|(_, v)| *v).fold(1.0, f64::max);
        let (left, top) = (
            GAP + count(i % COLUMNS) * (WIDTH + GAP),
            2.0 * GAP + TITLE + count(i / COLUMNS) * (HEIGHT + TITLE + GAP),
        );
        let line: String = values.iter().fold(String::new(), |mut line, (at, v)| {
            let _ = write!(line, "{:.1},{:.1} ", left + at / end * WIDTH, top + HEIGHT - v / most * HEIGHT);
            line
        });
        // Writing into a String does not fail.
        let _ = writeln!(
            out,
            "<text x=\"{left}\" y=\"{:.1}\">{} (0 to {most:.0})</text>\n\
             <rect x=\"{left}\" y=\"{top}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"none\" stroke=\"#ccc\"/>\n\
             <polyline points=\"{}\" fill=\"none\" stroke=\"#06c\" stroke-width=\"1.5\"/>",
            top - 5.0,
            text(name),
            line.trim_end()
        );
    }
    out.push_str("</svg>\n");
    out
}

fn text(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[expect(clippy::cast_precision_loss, reason = "a handful of pictures")]
fn count(n: usize) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_has_its_line_within_its_frame() {
        let sample = |v: f64| Sample::from([("a <b>".to_owned(), v), ("c".to_owned(), 2.0 * v)]);
        let drawn = svg(&[(0.0, sample(1.0)), (60.0, sample(4.0))], "a & b");
        assert_eq!(drawn.matches("<polyline").count(), 2);
        assert!(drawn.contains("a &lt;b&gt; (0 to 4)") && drawn.contains("a &amp; b"), "{drawn}");
        assert!(drawn.contains("points=\"16.0,102.5 316.0,50.0\""), "{drawn}");
        assert!(svg(&[], "nothing").ends_with("</svg>\n"));
    }
}
