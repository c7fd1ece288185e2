//! The first page of `podway ui`: what is stuck and on what, pods by how long they took, phases by how
//! long they take.

use super::{Frame, Told, document, draw, link, pulls, text};
use crate::numbers::{self, stats::durations, text::percent};
use crate::picture::{ms, ms_at};
use crate::stuck::{self, Limits, Waiting};
use crate::{Flow, Micros, Resolution};
use maud::{Markup, html};
use std::collections::BTreeMap;

/// The most pods that are listed.
pub const ROWS: usize = 200;

/// A pod of the overview.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// What was recorded of it.
    pub flow: Flow,
    /// Where its object says that it stands.
    pub state: State,
}

/// Where a pod stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It should become Ready.
    Starting,
    /// It is Ready.
    Ready,
    /// It ran, and is not Ready now.
    NotReady,
    /// It has Succeeded or Failed.
    Ended,
    /// It is being deleted.
    Going,
}

impl State {
    const fn word(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::Ready => "Ready",
            State::NotReady => "not Ready",
            State::Ended => "ended",
            State::Going => "terminating",
        }
    }
}

/// What the page is made from.
#[derive(Clone, Debug, Default)]
pub struct Overview {
    /// The pods.
    pub entries: Vec<Entry>,
    /// The label selector that took them, as typed.
    pub selector: String,
    /// What the nodes of pods that start tell of their pulls, by node.
    pub pulls: BTreeMap<String, Told>,
}

/// Renders the overview.
#[must_use]
pub fn overview(of: &Overview, now: Micros, frame: &Frame) -> String {
    let flows: Vec<Flow> = of.entries.iter().map(|e| e.flow.clone()).collect();
    let limits = Limits::of(&flows);
    let stats = numbers::stats(&flows);
    let waiting: Vec<(&Entry, Vec<Waiting>)> = of
        .entries
        .iter()
        .filter(|e| e.state == State::Starting)
        .map(|e| (e, stuck::waiting(&e.flow, &limits)))
        .filter(|(_, waiting)| !waiting.is_empty())
        .collect();
    let stuck = waiting.iter().filter(|(_, w)| w.iter().any(|w| w.is_stuck(now))).count();
    let title = format!("{} pods, {stuck} stuck", of.entries.len());
    document(
        &title,
        frame,
        &html! {
            h1 { "Pods, and where their starts went" }
            form.find action="/" method="get" role="search" {
                label { "Labels" input #selector name="l" value=(text(&of.selector)) placeholder="app=web,tier!=test" size="28"; }
                button type="submit" { "Select" }
            }
            dl.tiles {
                div { dt { "pods" } dd { (of.entries.len()) " " small { (stats.ready) " were Ready" } } }
                div { dt { "starting" } dd { (waiting.len()) } }
                div { dt { "stuck" } dd.bad[stuck > 0] { (stuck) } }
                @if let Some(total) = &stats.total {
                    div { dt { "Ready in, p50" } dd { (ms_at(total.took.p50_micros, total.resolution)) " " small { "ms" } } }
                    div { dt { "Ready in, p99" } dd { (ms_at(total.took.p99_micros, total.resolution)) " " small { "ms" } } }
                }
            }
            (on_the_way(&waiting, now))
            (pulls::section(&of.pulls.iter().map(|(node, told)| (node.as_str(), told)).collect::<Vec<_>>()))
            (by_time(of))
            (phases(&flows, &stats))
            @if stats.coarse > 0 { footer { "~ rests on times of a second, from conditions and creationTimestamp: pods that no podway agent ran." } }
        },
    )
}

fn on_the_way(waiting: &[(&Entry, Vec<Waiting>)], now: Micros) -> Markup {
    let mut rows: Vec<(&Entry, &Waiting)> =
        waiting.iter().flat_map(|(e, all)| all.iter().map(move |w| (*e, w))).collect();
    rows.sort_by_key(|(_, w)| (!w.is_stuck(now), w.since));
    let any = rows.iter().any(|(_, w)| w.is_stuck(now));
    html! { section.alert[any] aria-labelledby="stuck" {
        h2 #stuck { "Not Ready yet, and on what" }
        @if rows.is_empty() { p.dim { "Nothing waits." } } @else { div.scroll { table {
            thead { tr { th scope="col" { "Pod" } th scope="col" { "Phase" } th.n scope="col" { "For" } th.n scope="col" { "Limit" } th scope="col" { "Why" } } }
            tbody { @for (entry, w) in rows.iter().take(ROWS) {
                @let is_stuck = w.is_stuck(now);
                tr {
                    td.name { a href=(link(&entry.flow)) { (text(&numbers::name(&entry.flow))) } }
                    td.name { (w.phase.name()) @if let Some(subject) = &w.subject { span.dim { " of " (text(subject)) } } }
                    td.n.bad[is_stuck] { (stuck::seconds(now.since(w.since))) @if is_stuck { " stuck" } }
                    td.n.dim { (stuck::seconds(w.limit)) }
                    td.wrap { (text(&w.reason)) @if w.attempt > 1 { span.dim { ", try " (w.attempt) } } @if !w.message.is_empty() { span.dim { ": " (text(&w.message)) } } }
                }
            } }
        } } }
    } }
}

fn by_time(of: &Overview) -> Markup {
    let mut entries: Vec<(&Entry, Option<u64>)> =
        of.entries.iter().map(|e| (e, numbers::ready_in(&e.flow).or_else(|| e.flow.total()))).collect();
    entries.sort_by_key(|&(e, took)| (std::cmp::Reverse(took), numbers::name(&e.flow)));
    let scale = entries.iter().filter_map(|&(_, took)| took).max().unwrap_or(1);
    html! { section aria-labelledby="pods" {
        h2 #pods { "Pods, slowest first" }
        @if entries.is_empty() { p.dim { "No pod." } } @else {
            form action="/compare" method="get" {
                div.scroll { table {
                    thead { tr {
                        th scope="col" { span.hidden { "Compare" } } th scope="col" { "Pod" } th scope="col" { "Node" } th scope="col" { "State" }
                        th.n scope="col" { "Took (ms)" } th.bar scope="col" { "Critical path" } th scope="col" { "Slowest phase" }
                    } }
                    tbody { @for (entry, took) in entries.iter().take(ROWS) { (pod(entry, *took, scale)) } }
                } }
                @if entries.len() > ROWS { p.dim { (entries.len() - ROWS) " quicker ones are not listed" } }
                (draw::layers())
                p { button type="submit" { "Compare the two that are ticked" } }
            }
        }
    } }
}

fn pod(entry: &Entry, took: Option<u64>, scale: u64) -> Markup {
    let flow = &entry.flow;
    let name = numbers::name(flow);
    let coarse = flow.records.iter().any(|r| r.resolution == Resolution::Second);
    let resolution = if coarse { Resolution::Second } else { Resolution::Micros };
    html! { tr {
        td { input type="checkbox" name="p" value=(text(&name)) id={ "p-" (super::encoded(&flow.pod.uid)) } aria-label={ "compare " (text(&name)) }; }
        td.name { a href=(link(flow)) { (text(&name)) } }
        td.dim.name { (text(&flow.pod.node)) }
        td.good[entry.state == State::Ready] { (entry.state.word()) }
        td.n { @if let Some(took) = took { (ms_at(took, resolution)) } }
        td.bar { (draw::strip(flow, scale)) }
        td.dim { @if let Some((phase, micros)) = flow.slowest() { (phase.name()) " " (ms_at(micros, resolution)) } }
    } }
}

fn phases(flows: &[Flow], stats: &numbers::Stats) -> Markup {
    let top = stats.phases.iter().chain(&stats.total).map(|r| r.took.max_micros).max().unwrap_or(1);
    let blame = numbers::blame(flows);
    let share = |phase| {
        blame
            .rows
            .iter()
            .find(|r| Some(r.phase) == phase)
            .map_or(0, |r| percent(r.path_micros, blame.whole_micros))
    };
    html! { @if !stats.phases.is_empty() { section aria-labelledby="phases" {
        h2 #phases { "How long each phase takes" }
        div.scroll { table {
            caption { "One stroke per pod, the long one at p50, the short dark one at p99. Share: of all critical paths." }
            thead { tr {
                th scope="col" { "Phase" } th.n scope="col" { "Pods" } th.n scope="col" { "p50" } th.n scope="col" { "p95" } th.n scope="col" { "p99" } th.n scope="col" { "Max (ms)" } th.n scope="col" { "Share" }
                th.bar scope="col" { span.hidden { "Distribution, ms in decades" } (draw::axis(top)) }
            } }
            tbody { @for row in stats.phases.iter().chain(&stats.total) {
                @let of = |v| if row.took.count == 0 { "-".to_owned() } else { ms_at(v, row.resolution) };
                tr.path[row.phase.is_none()] {
                    td.label { (row.phase.map_or("Ready in", crate::Phase::name)) @if row.failed > 0 { span.bad { " " (row.failed) " failed" } } }
                    td.n { (row.took.count) } td.n { (of(row.took.p50_micros)) } td.n { (of(row.took.p95_micros)) } td.n { (of(row.took.p99_micros)) } td.n { (of(row.took.max_micros)) }
                    td.n { @if row.phase.is_some() { (share(row.phase)) "%" } }
                    td.bar { @if row.took.count > 0 { (draw::spread(&sample(flows, row.phase), row.took.p50_micros, row.took.p99_micros, top)) } }
                }
            } }
        } }
        @if let Some(queued) = stats.phases.iter().map(|r| r.queued_p50_micros).max().filter(|&q| q > 0) {
            p.dim { "Longest median wait in a queue: " (ms(queued)) " ms" }
        }
    } } }
}

fn sample(flows: &[Flow], phase: Option<crate::Phase>) -> Vec<u64> {
    match phase {
        Some(phase) => durations(flows, phase),
        None => flows.iter().filter_map(numbers::ready_in).collect(),
    }
}
