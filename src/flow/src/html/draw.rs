//! The drawings: SVG whose places are per cent, so that nothing needs a style and text is not stretched.

use super::text;
use crate::picture::{Kind, Picture, Row};
use crate::{Flow, Phase, Writer, path};
use maud::{Markup, html};

/// Hundredths of a per cent of `whole`, as `12.34%`.
pub(super) fn share(part: u64, whole: u64) -> String {
    let hundredths = u128::from(part.min(whole)) * 10_000 / u128::from(whole.max(1));
    format!("{}.{:02}%", hundredths / 100, hundredths % 100)
}

/// The table of a waterfall.
pub(super) fn waterfall(p: &Picture) -> Markup {
    let ticks = ticks(p.horizon);
    html! {
        div.scroll { table {
            caption.hidden { "Every phase with its start and duration in milliseconds" }
            thead { tr {
                th scope="col" { "Step" } th scope="col" { "Phase" }
                th.n scope="col" { "Start (ms)" } th.n scope="col" { "Took (ms)" }
                th.bar scope="col" {
                    span.hidden { "Time" }
                    svg aria-hidden="true" { @for tick in &ticks { text x=(share(*tick, p.horizon)) y="11" { (tick / 1000) } } }
                }
                th scope="col" { "Note" }
            } }
            tbody { @for row in &p.rows { (line(row, p, &ticks)) } }
        } }
        ul.legend {
            li { (swatch("work")) "work" } li { (swatch("queue")) "waiting in a queue or for a lock" }
            li { (swatch("running")) "running: its time ends in >" } li { (swatch("failed")) "failed" }
            li { b { "bold" } ": on the critical path" }
        }
    }
}

fn line(row: &Row, p: &Picture, ticks: &[u64]) -> Markup {
    let on_path = !row.part && p.critical_path.iter().any(|phase| phase.name() == row.label);
    html! {
        tr.part[row.part].path[on_path] {
            td.dim { (row.steps) } td.label { (text(&row.label)) }
            td.n { (row.start) } td.n { (row.duration) }
            td.bar { svg aria-hidden="true" {
                @for tick in ticks {
                    @let x = share(*tick, p.horizon);
                    line.grid x1=(x) x2=(x) y1="-6" y2="22" {}
                }
                @for s in &row.segments {
                    rect class=(class(s.kind)) x=(share(s.from, p.horizon)) y="3" height=(if row.part { "7" } else { "10" })
                        rx="1.5" width=(wide(s.to.saturating_sub(s.from), p.horizon)) {}
                }
            } }
            td.wrap { (text(&row.note)) }
        }
    }
}

/// A width that can be seen, however short.
fn wide(part: u64, whole: u64) -> String {
    if u128::from(part) * 400 < u128::from(whole) { "0.25%".to_owned() } else { share(part, whole) }
}

pub(super) fn swatch(class: &str) -> Markup {
    html! { svg aria-hidden="true" { rect class=(class) width="11" height="11" rx="2" {} } }
}

const fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Queue => "queue",
        Kind::Work => "work",
        Kind::Running => "running",
        Kind::Failed => "failed",
    }
}

/// Round times in µs, at most six, the first at 0.
fn ticks(horizon: u64) -> Vec<u64> {
    let mut step = 1_000_u64;
    for factor in [2, 5, 10].iter().cycle() {
        if horizon / step <= 6 {
            break;
        }
        step = 10_u64.saturating_pow(step.ilog10()).saturating_mul(*factor);
    }
    // One that ends at the edge would stand outside of it.
    let fits = |at: &u64| u128::from(*at) * 20 <= u128::from(horizon) * 19;
    (0..8).map_while(|i| step.checked_mul(i)).take_while(fits).collect()
}

/// Who has a phase in hand, as a class.
pub(super) const fn layer(phase: Phase) -> &'static str {
    match phase.writer() {
        Writer::ApiServer => "api",
        Writer::Scheduler => "sched",
        Writer::Agent => "agent",
        Writer::Runtime => "runtime",
    }
}

/// The legend of [`strip`].
pub(super) fn layers() -> Markup {
    html! { ul.legend {
        li { (swatch("api")) "API server" } li { (swatch("sched")) "scheduler" }
        li { (swatch("agent")) "agent" } li { (swatch("runtime")) "runtime" }
        li { "a gap: nobody wrote down what for" }
    } }
}

/// A pod in one line: its critical path, each step in its layer's colour, on a scale that others share.
pub(super) fn strip(flow: &Flow, scale: u64) -> Markup {
    let mut at = 0_u64;
    let mut rects = Vec::new();
    for step in path::of_flow(flow) {
        at = at.saturating_add(step.gap);
        if step.own > 0 {
            rects.push((layer(step.phase), at, step.own));
        }
        at = at.saturating_add(step.own);
    }
    html! { svg aria-hidden="true" {
        @for (class, from, own) in rects { rect class=(class) x=(share(from, scale)) y="3" height="10" width=(wide(own, scale)) {} }
    } }
}

/// Where a duration lies on an axis from 10 µs to `top` in decades.
#[expect(clippy::cast_precision_loss, reason = "a place in a drawing, not a number that is read")]
fn decades(micros: u64, top: u64) -> String {
    let log = |v: u64| (v.max(10) as f64).log10() - 1.0;
    format!("{:.2}%", (100.0 * log(micros) / log(top.max(100))).clamp(0.0, 100.0))
}

/// Every value of a sample as a stroke, the range from p50 to p99 behind, on an axis in decades.
pub(super) fn spread(sample: &[u64], p50: u64, p99: u64, top: u64) -> Markup {
    // What cannot be told apart need not be drawn.
    let every = sample.len().div_ceil(400).max(1);
    let x = |v| decades(v, top);
    html! { svg aria-hidden="true" {
        @for tick in decade_ticks(top) { line.grid x1=(x(tick)) x2=(x(tick)) y1="-6" y2="22" {} }
        @for value in sample.iter().step_by(every) { line.one x1=(x(*value)) x2=(x(*value)) y1="3" y2="13" {} }
        line.q x1=(x(p50)) x2=(x(p50)) y1="0" y2="16" {}
        line.q x1=(x(p99)) x2=(x(p99)) y1="4" y2="12" {}
    } }
}

/// The axis of [`spread`].
pub(super) fn axis(top: u64) -> Markup {
    html! { svg aria-hidden="true" {
        @for tick in decade_ticks(top) {
            text x=(decades(tick, top)) y="11" {
                @match tick { 0..1_000 => { "0." (format!("{:02}", tick / 10)) }, _ => { (tick / 1_000) } }
            }
        }
    } }
}

fn decade_ticks(top: u64) -> Vec<u64> {
    (1..19).map(|power| 10_u64.pow(power)).take_while(|&tick| tick < top).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_in_order_and_within_the_drawing() {
        let mut before = -1.0;
        for value in
            [0, 10, 11, 19, 20, 99, 100, 101, 950, 1_000, 9_999, 10_000, 123_456, 1_000_000, u64::MAX]
        {
            let at: f64 = decades(value, 1_000_000).trim_end_matches('%').parse().unwrap();
            assert!(at >= before && (0.0..=100.0).contains(&at), "{value}: {at} after {before}");
            before = at;
        }
        assert_eq!(
            (share(1, 3), share(9, 3), share(1, 0)),
            ("33.33%".into(), "100.00%".into(), "0.00%".into())
        );
        for horizon in [1, 999, 84_213, 5_000_000, u64::MAX] {
            let ticks = ticks(horizon);
            assert!(
                !ticks.is_empty() && ticks.len() <= 8 && ticks.windows(2).all(|w| w[0] < w[1]),
                "{ticks:?}"
            );
        }
    }
}
