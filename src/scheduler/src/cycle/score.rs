//! What each feasible node is worth, and which one is taken.

use super::columns::Columns;
use super::{Cluster, NodeScore, PluginName, Trace};
use crate::cache::NodeState;
use crate::extender;
use crate::framework::{CycleState, Point};
use std::cmp::Reverse;
use std::sync::Arc;

/// What came of scoring.
#[derive(Default)]
pub(super) struct Scored {
    /// The node that is taken.
    pub(super) chosen: Option<Arc<str>>,
    /// How far the best is ahead of the next.
    pub(super) margin: Option<i64>,
    /// The best nodes, as many as the trace asks for.
    pub(super) rows: Vec<NodeScore>,
}

/// A plugin's scores of all feasible nodes.
struct Column {
    plugin: PluginName,
    weight: i64,
    raw: Vec<i64>,
    normal: Vec<i64>,
}

/// Scores the feasible nodes; these are in order of name.
pub(super) fn score(
    cluster: &Cluster<'_>,
    state: &CycleState,
    feasible: &[&NodeState],
    mut columns: Option<&mut Columns>,
    trace: &mut Trace,
) -> Scored {
    let Cluster { framework, pod, snapshot } = *cluster;
    let mut totals = vec![0_i64; feasible.len()];
    let mut all = Vec::new();
    for (plugin, weight) in framework.score.iter().filter(|(p, _)| !state.skips_score(p.name())) {
        let kept = columns.as_deref_mut().and_then(|c| c.score(plugin.as_ref(), cluster, feasible));
        let raw = kept.unwrap_or_else(|| {
            feasible.iter().map(|n| plugin.score(state, pod, n, snapshot)).collect::<Vec<i64>>()
        });
        trace.called(plugin.name(), Point::Score, u64::try_from(raw.len()).unwrap_or(u64::MAX));
        let mut normal = raw.clone();
        plugin.normalize(&mut normal);
        for (total, normal) in totals.iter_mut().zip(&normal) {
            *total += weight * normal;
        }
        all.push(Column { plugin: plugin.name().into(), weight: *weight, raw, normal });
    }
    for extender::Scores { name, weight, raw, normal } in extender::scores(framework, pod, feasible) {
        for (total, normal) in totals.iter_mut().zip(&normal) {
            *total = total.saturating_add(weight.saturating_mul(*normal));
        }
        all.push(Column { plugin: name.into(), weight, raw, normal });
    }
    let best = totals.iter().copied().max().unwrap_or(0);
    let ties: Vec<usize> = (0..totals.len()).filter(|i| totals[*i] == best).collect();
    let second = if ties.len() > 1 { Some(best) } else { totals.iter().copied().filter(|t| *t < best).max() };
    let chosen = choose(&ties, &pod.uid).and_then(|i| feasible.get(i)).map(|n| n.info.name.clone());
    Scored { chosen, margin: second.map(|s| best - s), rows: rows(feasible, &totals, &all, trace.rows) }
}

/// The best nodes with their scores; equals by name.
fn rows(feasible: &[&NodeState], totals: &[i64], columns: &[Column], most: Option<usize>) -> Vec<NodeScore> {
    let mut order: Vec<usize> = (0..totals.len()).collect();
    let rank = |i: &usize| (Reverse(totals[*i]), *i);
    if let Some(most) = most.filter(|most| (1..order.len()).contains(most)) {
        order.select_nth_unstable_by_key(most - 1, rank);
        order.truncate(most);
    }
    order.sort_unstable_by_key(rank);
    let row = |i: usize| NodeScore {
        node: feasible[i].info.name.to_string(),
        total: totals[i],
        by_plugin: columns.iter().map(|c| (c.plugin.clone(), c.raw[i], c.normal[i], c.weight)).collect(),
    };
    order.into_iter().map(row).collect()
}

/// One of the best, by a hash (FNV-1a) of the pod's UID, so that equals spread over equals.
fn choose(ties: &[usize], uid: &str) -> Option<usize> {
    let hash = uid
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3));
    let index = usize::try_from((hash >> 17) % u64::try_from(ties.len()).ok().filter(|n| *n > 0)?).ok()?;
    ties.get(index).copied()
}
