//! Two pods, or two groups of pods, beside each other.

use super::{Frame, document, draw, text};
use crate::numbers::compare::Row;
use crate::numbers::text::{ratio, signed, verdict};
use crate::numbers::{Comparison, Quantiles};
use crate::picture::ms_at;
use maud::{Markup, html};

/// Renders a comparison; without one, only the form. `asked` is what stands in its fields.
#[must_use]
pub fn compare(
    compared: Option<&Comparison>,
    asked: [&str; 2],
    trouble: Option<&str>,
    frame: &Frame,
) -> String {
    let title = match compared {
        Some(c) => format!("{} and {}", c.a, c.b),
        None => "Compare".to_owned(),
    };
    document(
        &title,
        frame,
        &html! {
            h1 { (text(&title)) }
            form.find action="/compare" method="get" {
                label { "A" input #a name="a" value=(text(asked[0])) placeholder="default/web-0 or app=web" size="30"; }
                label { "B" input #b name="b" value=(text(asked[1])) placeholder="default/web-1 or app=api" size="30"; }
                button type="submit" { "Compare" }
            }
            p.dim { "A pod is NAMESPACE/NAME, a group is a label selector with = or !." }
            @if let Some(trouble) = trouble { section.alert { p.bad { (text(trouble)) } } }
            @if let Some(c) = compared { (table(c)) }
        },
    )
}

fn table(c: &Comparison) -> Markup {
    let top =
        c.phases.iter().chain([&c.total]).flat_map(|r| [r.a, r.b]).flatten().map(|q| q.p50_micros).max();
    html! { section aria-labelledby="phases" {
        h2 #phases { (text(&verdict(c))) }
        div.scroll { table {
            caption { "Medians in milliseconds over " (c.pods[0]) " and " (c.pods[1]) " pods" }
            thead { tr {
                th scope="col" { "Phase" } th.n scope="col" { "A" } th.n scope="col" { "B" } th.n scope="col" { "B − A" } th.n scope="col" { "B / A" } th.bar scope="col" { span.hidden { "Bars" } }
            } }
            tbody { @for row in c.phases.iter().chain([&c.total]) { (line(row, c, top.unwrap_or(1))) } }
        } }
        ul.legend { li { (draw::swatch("a")) "A: " (text(&c.a)) } li { (draw::swatch("b")) "B: " (text(&c.b)) } }
    } }
}

fn line(row: &Row, c: &Comparison, top: u64) -> Markup {
    let of = |q: Option<Quantiles>| q.map_or_else(|| "-".to_owned(), |q| ms_at(q.p50_micros, row.resolution));
    let decisive = row.phase.is_some() && c.decisive().is_some_and(|d| d.phase == row.phase);
    html! { tr.path[decisive || row.phase.is_none()] {
        td.label { (row.phase.map_or("Ready in", crate::Phase::name)) }
        td.n { (of(row.a)) } td.n { (of(row.b)) }
        td.n { @if let Some(d) = row.difference_micros { (signed(d, row.resolution)) } }
        td.n.dim { (ratio(row).unwrap_or_default()) }
        td.bar { svg aria-hidden="true" {
            @if let Some(a) = row.a { rect.a x="0" y="2" height="5.5" rx="1" width=(draw::share(a.p50_micros, top)) {} }
            @if let Some(b) = row.b { rect.b x="0" y="8.5" height="5.5" rx="1" width=(draw::share(b.p50_micros, top)) {} }
        } }
    } }
}
