//! One pod's page: its waterfall, what it waits for, the scheduler's decision, the evidence.

use super::{Frame, Told, document, draw, pulls, text};
use crate::decision::{self, Decision};
use crate::picture::{Evidence, Picture, picture};
use crate::stuck::{self, Limits};
use crate::{Flow, Micros, Outcome};
use maud::{Markup, html};

/// Renders a pod; `now` as in [`picture`]. `told` is what its node tells of the pulls of its images.
#[must_use]
pub fn pod(flow: &Flow, now: Option<Micros>, limits: &Limits, told: Option<&Told>, frame: &Frame) -> String {
    let p = picture(flow, now);
    let title = format!("{}: {}", p.name, p.headline);
    document(
        &title,
        frame,
        &html! {
            h1 { (text(&p.name)) }
            p { b { (text(&p.headline)) } span.dim { " · node " } (text(&p.node)) span.dim { " · created " (p.created) } }
            @if let Some(now) = now { (waits(flow, limits, now)) }
            @if let Some(told) = told { (pulls::section(&[(&flow.pod.node, told)])) }
            section aria-labelledby="waterfall" {
                h2 #waterfall { "Waterfall" }
                (draw::waterfall(&p))
                @if !p.slowest.is_empty() { p { span.dim { "Slowest: " } (p.slowest.join(", ")) } }
                @for note in &p.notes { p.dim { (text(note)) } }
            }
            (path(&p))
            @if let Some(decision) = decision::decision(flow) { (decided(&decision)) }
            section aria-labelledby="evidence" {
                h2 #evidence { "Evidence" }
                @for (i, one) in p.evidence.iter().enumerate() { (evidence(i, one)) }
            }
        },
    )
}

fn waits(flow: &Flow, limits: &Limits, now: Micros) -> Markup {
    let waiting = stuck::waiting(flow, limits);
    let stuck = waiting.iter().any(|w| w.is_stuck(now));
    html! { @if !waiting.is_empty() {
        section.alert[stuck] aria-labelledby="waits" {
            h2 #waits { @if stuck { "Stuck" } @else { "Waits for" } }
            @for w in &waiting { p.bad[w.is_stuck(now)] { (text(&w.line(now))) } }
        }
    } }
}

fn path(p: &Picture) -> Markup {
    html! { @if !p.critical_path.is_empty() {
        section aria-labelledby="path" {
            h2 #path { "Critical path" }
            p.dim { "The chain of phases that decided the end; all others ran beside it." }
            ol.path { @for phase in &p.critical_path { li { (phase.name()) } } }
        }
    } }
}

fn decided(d: &Decision) -> Markup {
    let best = d.scores.iter().map(|s| s.total).max().unwrap_or(0).max(1);
    let scaled =
        |total: i64| draw::share(u64::try_from(total).unwrap_or(0), u64::try_from(best).unwrap_or(1));
    html! { section aria-labelledby="decision" {
        h2 #decision { "Decision" }
        p {
            @if let Some(node) = &d.chosen { "Node " b { (text(node)) } " was chosen" }
            @if let Some(margin) = &d.margin { ", ahead by " (text(margin)) }
            @if let (Some(feasible), Some(nodes)) = (&d.feasible, &d.nodes) { span.dim { " · " (text(feasible)) " of " (text(nodes)) " nodes were feasible" } }
            @if d.attempt > 1 { span.dim { " · attempt " (d.attempt) } }
        }
        @if !d.scores.is_empty() { div.scroll { table {
            caption.hidden { "Scores by node" }
            thead { tr { th scope="col" { "Node" } th.n scope="col" { "Score" } th.bar scope="col" { span.hidden { "Bar" } } th scope="col" { "By plugin (score × weight)" } } }
            tbody { @for s in &d.scores { tr.path[Some(&s.node) == d.chosen.as_ref()] {
                td.label { (text(&s.node)) } td.n { (s.total) }
                td.bar { svg aria-hidden="true" { rect.track x="0" y="3" width="100%" height="10" rx="2" {} rect.meter x="0" y="3" height="10" rx="2" width=(scaled(s.total)) {} } }
                td.wrap { @for (plugin, score) in &s.plugins { span.chip { (text(plugin)) " " (text(&score.replace('x', " × "))) } } }
            } } }
        } } }
        @if !d.rejected.is_empty() { div.scroll { table {
            caption { "Nodes that could not run it" }
            thead { tr { th scope="col" { "Node" } th scope="col" { "Why" } } }
            tbody { @for (node, why) in &d.rejected { tr { td.label { (text(node)) } td.wrap { (text(why)) } } } }
        } } }
    } }
}

fn evidence(i: usize, one: &Evidence) -> Markup {
    let failed = one.outcome == Outcome::Failed;
    html! {
        details id={ "evidence-" (i) } open[failed] {
            summary {
                span.steps { (one.steps) }
                span.bad[failed] { b { (text(&one.title)) } " " @if failed { "FAILED " } (text(&one.verdict)) }
            }
            @if !one.message.is_empty() || !one.facts.is_empty() {
                dl.facts {
                    @if !one.message.is_empty() { dt { "message" } dd.bad[failed] { (text(&one.message)) } }
                    @for (key, value) in &one.facts { dt { (text(key)) } dd.mono { (text(value)) } }
                }
            }
        }
    }
}
