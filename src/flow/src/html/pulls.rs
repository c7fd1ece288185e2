//! Image pulls that run, as the nodes tell of them: a bar for each, and its layers below.

use super::{draw, text};
use crate::pulls::{LayerState, Pull, bytes, percent};
use maud::{Markup, html};

/// What a node tells of its pulls, or why it does not.
pub type Told = Result<Vec<Pull>, String>;

/// The section of `nodes`; nothing where nothing is pulled and nobody refused.
pub(super) fn section(nodes: &[(&str, &Told)]) -> Markup {
    let running: Vec<(&str, &Pull)> = nodes
        .iter()
        .flat_map(|(node, told)| told.iter().flatten().map(|pull| (*node, pull)))
        .filter(|(_, pull)| !pull.has_ended())
        .collect();
    let refusals: Vec<&str> =
        nodes.iter().filter_map(|(_, told)| told.as_ref().err().map(String::as_str)).collect();
    html! { @if !running.is_empty() || !refusals.is_empty() {
        section aria-labelledby="pulls" {
            h2 #pulls { "Image pulls" }
            @if !running.is_empty() { (table(&running)) }
            @if let [why, others @ ..] = refusals.as_slice() {
                p.dim { "Not shown: " (text(why)) @if !others.is_empty() { ", and " (others.len()) " more" } }
            }
        }
    } }
}

fn table(running: &[(&str, &Pull)]) -> Markup {
    html! { div.scroll { table {
        thead { tr {
            th scope="col" { "Node" } th scope="col" { "Image, and its layers" }
            th.bar scope="col" { span.hidden { "How much has come" } } th scope="col" { "Where it stands" }
        } }
        tbody { @for (node, pull) in running {
            tr {
                td.dim.name { (text(node)) } td.name { (text(&pull.image)) }
                td.bar { (bar(pull.received_bytes, pull.total_bytes)) } td.wrap { (pull.standing()) }
            }
            @for layer in &pull.layers { tr.part {
                td {} td.label.mono { (layer.short()) }
                td.bar { @if layer.phase == LayerState::Downloading { (bar(layer.received_bytes, layer.size_bytes)) } }
                td {
                    (layer.word()) " "
                    @if layer.phase == LayerState::Downloading { (percent(layer.received_bytes, layer.size_bytes)) "% of " }
                    (bytes(layer.size_bytes))
                }
            } }
        } }
    } } }
}

fn bar(part: u64, whole: u64) -> Markup {
    html! { svg aria-hidden="true" {
        rect.track x="0" y="3" width="100%" height="10" rx="2" {}
        rect.meter x="0" y="3" height="10" rx="2" width=(draw::share(part, whole)) {}
    } }
}
