//! What pods of one shape share.
//!
//! Some plugins look at nothing but the pod and the node as it is: what one of them says of a node to a pod, it says
//! to every other pod of the template until the node changes ([`GoesBy::Node`]), and to pods of other templates too
//! that differ only in what they are to other pods ([`PodInfo::same_shape`]). So it
//! is kept, with the generation of the cache that the node is of, and said again. The property test in `kept.rs`
//! compares with asking anew.

use super::Cluster;
use crate::cache::Snapshot;
use crate::framework::{CycleState, Filter, GoesBy, Score, Status};
use crate::model::PodInfo;
use std::sync::Arc;

/// How many templates are remembered; the one that was not asked for the longest goes.
const REMEMBERED: usize = 8;

/// What is carried from one cycle to the next, for the plugins of one set of profiles.
#[derive(Default)]
pub struct Carried {
    /// Where a profile that looks at a share of the nodes begins.
    pub start: usize,
    templates: Vec<Template>,
}

/// What the local plugins say to a template.
pub(super) struct Template {
    pod: Arc<PodInfo>,
    /// By node: the generation of the node that it was said of; 0: nothing was said.
    filtered: Vec<(u64, Option<Status>)>,
    /// Of each local Score plugin.
    scored: Vec<Column>,
    /// The snapshot's nodes and their images; other nodes, other verdicts.
    nodes: u64,
    images: u64,
}

/// What a local Score plugin gives the nodes.
struct Column {
    plugin: &'static str,
    by: GoesBy,
    /// By node: the generation of the node that it was said of, and the raw score.
    raw: Vec<(u64, i64)>,
}

impl Carried {
    /// Where to begin, and the pod's template.
    pub(super) fn of(&mut self, pod: &PodInfo, snapshot: &Snapshot) -> (&mut usize, &mut Template) {
        let known = self.templates.iter().position(|t| t.pod.same_shape(pod));
        let mut template = match known {
            Some(at) => self.templates.remove(at),
            None => {
                self.templates.truncate(REMEMBERED - 1);
                Template { pod: Arc::new(pod.clone()), filtered: vec![], scored: vec![], nodes: 0, images: 0 }
            }
        };
        if template.nodes != snapshot.nodes_generation() || template.filtered.len() != snapshot.nodes.len() {
            template.nodes = snapshot.nodes_generation();
            template.filtered = vec![(0, None); snapshot.nodes.len()];
            template.scored.clear();
        }
        if template.images != snapshot.images_generation() {
            template.images = snapshot.images_generation();
            template.scored.retain(|column| column.by != GoesBy::NodeAndImages);
        }
        self.templates.insert(0, template);
        (&mut self.start, &mut self.templates[0])
    }

    /// The profiles have changed.
    pub(crate) fn forget(&mut self) {
        self.templates.clear();
    }
}

impl Template {
    /// What these local Filter plugins say of a node.
    pub(super) fn filter(
        &mut self,
        plugins: &[&Arc<dyn Filter>],
        state: &CycleState,
        cluster: &Cluster<'_>,
        at: usize,
        calls: &mut [u64],
    ) -> Option<&Status> {
        let (node, (said, verdict)) = (cluster.snapshot.nodes.get(at)?, self.filtered.get_mut(at)?);
        if *said != node.generation {
            *said = node.generation;
            *verdict = plugins.iter().zip(calls).find_map(|(plugin, calls)| {
                *calls += 1;
                plugin.filter(state, cluster.pod, node).err()
            });
        }
        verdict.as_ref()
    }

    /// The raw scores that a local plugin gives these nodes.
    pub(super) fn score(
        &mut self,
        plugin: &dyn Score,
        state: &CycleState,
        cluster: &Cluster<'_>,
        feasible: impl Iterator<Item = usize>,
    ) -> Vec<i64> {
        let Cluster { pod, snapshot, .. } = *cluster;
        let name = plugin.name();
        let column = match self.scored.iter().position(|column| column.plugin == name) {
            Some(column) => column,
            None => {
                let raw = vec![(0, 0); snapshot.nodes.len()];
                self.scored.push(Column { plugin: name, by: plugin.goes_by(), raw });
                self.scored.len() - 1
            }
        };
        let column = &mut self.scored[column].raw;
        let one = |at: usize| {
            let (Some(node), Some((said, raw))) = (snapshot.nodes.get(at), column.get_mut(at)) else {
                return 0;
            };
            if *said != node.generation {
                (*said, *raw) = (node.generation, plugin.score(state, pod, node, snapshot));
            }
            *raw
        };
        feasible.map(one).collect()
    }
}
