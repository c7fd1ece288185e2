//! The flow as one HTML page: no script, no other file, every text escaped, the terminal's numbers.

use crate::picture::{Evidence, Kind, Picture, Row, picture};
use crate::waterfall::escaped;
use crate::{Flow, Micros, Outcome};
use maud::{DOCTYPE, Markup, PreEscaped, html};

/// Nothing is loaded, whatever the page might be made to say; only its own style applies.
const CSP: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self'";

/// Units of the time axis in the drawing's own coordinates.
const AXIS: u64 = 10_000;

const STYLE: &str = "body{font:14px/1.4 system-ui,sans-serif;margin:1.5rem;color:#222;background:#fff}\
table{border-collapse:collapse;width:100%}td,th{padding:1px 8px;text-align:left;white-space:nowrap}\
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}td.bar{width:60%}svg{width:100%;height:14px;\
display:block;background:#f4f4f4}.part td{color:#555}.part td.l{padding-left:2em}.queue{fill:#e0a800}\
.work{fill:#2a8f4f}.running{fill:#2a7fb8}.failed{fill:#c62828}dl{display:grid;grid-template-columns:\
max-content 1fr;gap:0 1em;margin:.2em 0 1em 2em}dd{margin:0;font-family:monospace;overflow-wrap:anywhere}\
.bad{color:#c62828}@media print{svg{print-color-adjust:exact}}";

/// Renders a flow; `now` as in [`picture`].
#[must_use]
pub fn page(flow: &Flow, now: Option<Micros>) -> String {
    let p = picture(flow, now);
    let path: Vec<&str> = p.critical_path.iter().map(|phase| phase.name()).collect();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(CSP);
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (text(&p.name)) ": " (text(&p.headline)) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (text(&p.name)) }
                p { "node " b { (text(&p.node)) } ", created " (p.created) ", " b { (text(&p.headline)) } }
                (table(&p))
                @if !p.slowest.is_empty() { p { "slowest: " (p.slowest.join(", ")) } }
                @if !path.is_empty() { p { "critical path: " (path.join(" > ")) } }
                @for note in &p.notes { p { (text(note)) } }
                p { "queue yellow, work green, running blue (its duration ends in >), failed red; every failure is also named in words." }
                h2 { "evidence" }
                @for one in &p.evidence { (evidence(one)) }
            }
        }
    }
    .into_string()
}

fn text(text: &str) -> String {
    escaped(text, false)
}

fn table(p: &Picture) -> Markup {
    html! {
        table {
            thead { tr {
                th { "step" } th { "phase" } th.n { "start (ms)" } th.n { "duration (ms)" } th { "time" } th { "note" }
            } }
            tbody { @for row in &p.rows { (line(row, p.horizon)) } }
        }
    }
}

fn line(row: &Row, horizon: u64) -> Markup {
    html! {
        tr.part[row.part] {
            td { (row.steps) } td.l { (text(&row.label)) } td.n { (row.start) } td.n { (row.duration) }
            td.bar {
                svg viewBox={ "0 0 " (AXIS) " 10" } preserveAspectRatio="none" role="img" {
                    @for segment in &row.segments {
                        @let x = scaled(segment.from, horizon);
                        rect class=(class(segment.kind)) x=(x) y="1" height="8"
                            width=(scaled(segment.to, horizon).saturating_sub(x).max(15)) {}
                    }
                }
            }
            td { (text(&row.note)) }
        }
    }
}

fn evidence(one: &Evidence) -> Markup {
    html! {
        div {
            span.bad[one.outcome == Outcome::Failed] {
                b { (one.steps) " " (text(&one.title)) } " "
                @if one.outcome == Outcome::Failed { "FAILED " }
                (text(&one.verdict))
            }
            @if !one.message.is_empty() { p { (text(&one.message)) } }
            dl { @for (key, value) in &one.facts { dt { (text(key)) } dd { (text(value)) } } }
        }
    }
}

fn scaled(at: u64, horizon: u64) -> u64 {
    let scaled = u128::from(at.min(horizon)) * u128::from(AXIS) / u128::from(horizon.max(1));
    u64::try_from(scaled).unwrap_or(AXIS)
}

const fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Queue => "queue",
        Kind::Work => "work",
        Kind::Running => "running",
        Kind::Failed => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;
    use crate::waterfall::{Options, waterfall};

    #[test]
    fn the_page_has_the_terminals_numbers_to_the_digit() {
        for flow in [samples::whole(), samples::stuck(), samples::coarse()] {
            let page = page(&flow, None);
            for row in &picture(&flow, None).rows {
                let duration = row.duration.replace('>', "&gt;");
                let cells = format!("<td class=\"n\">{}</td><td class=\"n\">{duration}</td>", row.start);
                assert!(page.contains(&cells), "{cells}");
                assert!(waterfall(&flow, &Options::default()).contains(&row.duration));
            }
        }
    }

    #[test]
    fn hostile_text_is_only_text() {
        let page = page(&samples::hostile(), None);
        assert!(!page.contains("<script") && !page.contains('\u{1b}') && !page.contains('\u{202e}'));
        assert!(page.contains("&lt;script&gt;"));
        assert!(page.contains("Content-Security-Policy"));
    }
}
