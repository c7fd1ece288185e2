//! What the cluster looks like: nodes, the pods on them, and the pods assumed to be.
//!
//! Owned by one task. A [`Snapshot`] shares structure with the cache and never changes. What a pod
//! took is kept with it, so that giving back subtracts what was added, however the pod changed since.

mod index;
mod node;
mod snapshot;
mod tally;
mod whereabouts;

pub use node::{Alike, NodePod, NodeState, UNCLASSED, Usage};
pub use snapshot::Snapshot;
pub use tally::{Domains, Step, Sums, Tally};

use crate::classes::{Class, ClassId, Classes};
use crate::model::{NodeInfo, PodInfo};
use crate::objects::Objects;
use crate::record;
use index::Index;
use snapshot::{Nominated, position};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

#[derive(Debug, Default)]
struct Entry {
    /// `None` while pods name a node that has not been seen.
    info: Option<Arc<NodeInfo>>,
    usage: Arc<Usage>,
    pods: Arc<Vec<NodePod>>,
    /// When it changed last.
    generation: u64,
}

#[derive(Debug)]
struct Placed {
    pod: Arc<PodInfo>,
    id: ClassId,
    class: Arc<Class>,
    node: String,
    assumed: bool,
}

/// The cache.
#[derive(Debug, Default)]
pub struct Cache {
    generation: u64,
    nodes: BTreeMap<String, Entry>,
    pods: HashMap<String, Placed>,
    classes: Classes,
    objects: Objects,
    nominated: Nominated,
    namespaces: Arc<HashMap<String, BTreeMap<String, String>>>,
    images: Arc<HashMap<String, usize>>,
    snapshot: Snapshot,
    /// The nodes that differ from the snapshot's; `None` when it is not the same nodes any more, or not with
    /// the same labels and taints.
    changed: Option<BTreeSet<String>>,
    /// What is counted over them.
    index: Arc<Index>,
    /// When nodes came or went last.
    nodes_generation: u64,
    /// What has changed and is not fetched yet, where a run is recorded.
    tape: Option<Vec<record::Entry>>,
}

impl Cache {
    /// From now on each change is kept until it is fetched by [`Cache::recorded`].
    pub fn record(&mut self) {
        self.tape = Some(Vec::new());
    }

    /// Changes are no longer kept.
    pub fn record_no_more(&mut self) {
        self.tape = None;
    }

    /// One more, of what the cache does not know by itself.
    pub fn note_entry(&mut self, entry: impl FnOnce() -> record::Entry) {
        if let Some(tape) = &mut self.tape {
            tape.push(entry());
        }
    }

    /// The changes since it was last asked.
    pub fn recorded(&mut self) -> Vec<record::Entry> {
        self.tape.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// A node came or changed; returns what it was before.
    pub fn set_node(&mut self, info: Arc<NodeInfo>) -> Option<Arc<NodeInfo>> {
        self.note_entry(|| record::Entry::Node(info.original.clone()));
        let entry = self.nodes.entry(info.name.to_string()).or_default();
        let before = entry.info.replace(info.clone());
        if before.as_ref() == Some(&info) {
            return before;
        }
        self.generation += 1;
        entry.generation = self.generation;
        let same = before.as_ref().is_some_and(|b| (&b.labels, &b.taints) == (&info.labels, &info.taints));
        if same {
            self.node_changed(&info.name)
        } else {
            self.changed = None
        }
        if before.is_none() {
            self.nodes_generation = self.generation;
        }
        if before.as_ref().map(|b| &b.images) != Some(&info.images) {
            self.count_images(before.as_deref(), Some(&info));
        }
        before
    }

    /// A node went; returns what it was. Its pods stay counted until they go.
    pub fn remove_node(&mut self, name: &str) -> Option<Arc<NodeInfo>> {
        self.note_entry(|| record::Entry::NodeGone(name.to_owned()));
        let entry = self.nodes.get_mut(name)?;
        let before = entry.info.take();
        if entry.usage.pods == 0 {
            self.nodes.remove(name);
        }
        self.generation += 1;
        self.count_images(before.as_deref(), None);
        self.changed = None;
        self.nodes_generation = self.generation;
        before
    }

    /// A namespace came or changed.
    pub fn set_namespace(&mut self, name: &str, labels: BTreeMap<String, String>) {
        self.note_entry(|| record::Entry::Namespace { name: name.to_owned(), labels: Some(labels.clone()) });
        if self.namespaces.get(name) != Some(&labels) {
            Arc::make_mut(&mut self.namespaces).insert(name.to_owned(), labels);
            self.generation += 1;
            self.index = Arc::default();
        }
    }

    /// A namespace went.
    pub fn remove_namespace(&mut self, name: &str) {
        self.note_entry(|| record::Entry::Namespace { name: name.to_owned(), labels: None });
        if self.namespaces.contains_key(name) {
            Arc::make_mut(&mut self.namespaces).remove(name);
            self.generation += 1;
            self.index = Arc::default();
        }
    }

    /// The names of the known namespaces.
    pub fn namespace_names(&self) -> impl Iterator<Item = &str> {
        self.namespaces.keys().map(String::as_str)
    }

    fn count_images(&mut self, before: Option<&NodeInfo>, after: Option<&NodeInfo>) {
        let images = Arc::make_mut(&mut self.images);
        for name in before.into_iter().flat_map(|n| n.images.keys()) {
            if let Some(n) = images.get_mut(name) {
                *n -= 1;
                if *n == 0 {
                    images.remove(name);
                }
            }
        }
        for name in after.into_iter().flat_map(|n| n.images.keys()) {
            *images.entry(name.clone()).or_insert(0) += 1;
        }
    }

    /// Takes a pod as placed before its binding stands.
    pub fn assume(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.note_entry(|| record::Entry::Placed {
            pod: pod.original.clone(),
            node: node.to_owned(),
            assumed: true,
        });
        self.place(pod, node, true);
    }

    /// The API says that the pod is bound. Returns what it said before, if it did.
    pub fn confirm(&mut self, pod: Arc<PodInfo>) -> Option<Arc<PodInfo>> {
        let said = &pod.node_name;
        self.note_entry(|| record::Entry::Placed {
            pod: pod.original.clone(),
            node: said.clone(),
            assumed: false,
        });
        let known = self.pods.get(&pod.uid).filter(|p| !p.assumed).map(|p| p.pod.clone());
        let node = pod.node_name.clone();
        self.place(pod, &node, false);
        known
    }

    /// The pod is gone, or its binding failed. Returns the pod if it was placed.
    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        self.note_entry(|| record::Entry::PodGone(uid.to_owned()));
        self.take_pod(uid)
    }

    fn take_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let placed = self.pods.remove(uid)?;
        self.generation += 1;
        self.node_changed(&placed.node);
        self.note(&placed.node, (placed.id, &placed.class), &placed.pod, -1);
        self.classes.leave(&placed.class);
        if let Some(entry) = self.nodes.get_mut(&placed.node) {
            entry.generation = self.generation;
            Arc::make_mut(&mut entry.usage).remove(&placed.pod, placed.id);
            Arc::make_mut(&mut entry.pods).retain(|p| p.pod.uid != uid);
            if entry.info.is_none() && entry.usage.pods == 0 {
                self.nodes.remove(&placed.node);
            }
        }
        Some(placed.pod)
    }

    /// True while a pod is assumed and not confirmed.
    #[must_use]
    pub fn is_assumed(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|p| p.assumed)
    }

    /// True when the pod is on a node, confirmed or assumed.
    #[must_use]
    pub fn is_placed(&self, uid: &str) -> bool {
        self.pods.contains_key(uid)
    }

    fn place(&mut self, pod: Arc<PodInfo>, node: &str, assumed: bool) {
        // The new class first, so that one whose only pod is told again keeps its number.
        let (id, class) = self.classes.enter(&pod);
        self.take_pod(&pod.uid);
        self.generation += 1;
        self.node_changed(node);
        self.note(node, (id, &class), &pod, 1);
        let entry = self.nodes.entry(node.to_owned()).or_default();
        entry.generation = self.generation;
        Arc::make_mut(&mut entry.usage).add(&pod, id, &class);
        Arc::make_mut(&mut entry.pods).push(NodePod { pod: pod.clone(), class: id });
        self.take_nomination(&pod.uid);
        self.pods.insert(pod.uid.clone(), Placed { pod, id, class, node: node.to_owned(), assumed });
    }

    /// A pod that waits is nominated to a node: for pods of no higher priority it is as good as there.
    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.note_entry(|| record::Entry::Nominated { pod: pod.original.clone(), node: node.to_owned() });
        self.take_nomination(&pod.uid);
        Arc::make_mut(&mut self.nominated).entry(node.to_owned()).or_default().push(pod);
        self.generation += 1;
    }

    /// It no longer is. Returns the node that it was nominated to.
    pub fn unnominate(&mut self, uid: &str) -> Option<String> {
        self.note_entry(|| record::Entry::Unnominated(uid.to_owned()));
        self.take_nomination(uid)
    }

    fn take_nomination(&mut self, uid: &str) -> Option<String> {
        let node = self.nominated_to(uid)?.to_owned();
        let nominated = Arc::make_mut(&mut self.nominated);
        if let Some(pods) = nominated.get_mut(&node) {
            pods.retain(|p| p.uid != uid);
            if pods.is_empty() {
                nominated.remove(&node);
            }
        }
        self.generation += 1;
        Some(node)
    }

    /// Where a pod is nominated to.
    #[must_use]
    pub fn nominated_to(&self, uid: &str) -> Option<&str> {
        let mut all = self.nominated.iter();
        all.find(|(_, pods)| pods.iter().any(|p| p.uid == uid)).map(|(node, _)| node.as_str())
    }

    /// The pods that are nominated to a node.
    #[must_use]
    pub fn nominated(&self, node: &str) -> Vec<Arc<PodInfo>> {
        self.nominated.get(node).cloned().unwrap_or_default()
    }

    /// What the cluster has beside nodes and pods.
    #[must_use]
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The same, to change it.
    pub fn objects_mut(&mut self) -> &mut Objects {
        self.generation += 1;
        &mut self.objects
    }

    /// The pod as it was placed, and whether that is only assumed.
    #[must_use]
    pub fn placed(&self, uid: &str) -> Option<(&Arc<PodInfo>, bool)> {
        self.pods.get(uid).map(|p| (&p.pod, p.assumed))
    }

    /// Nodes, pods and assumed pods, for metrics.
    #[must_use]
    pub fn sizes(&self) -> (usize, usize, usize) {
        let nodes = self.nodes.values().filter(|e| e.info.is_some()).count();
        (nodes, self.pods.len(), self.pods.values().filter(|p| p.assumed).count())
    }

    /// The names of the known nodes.
    pub fn node_names(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().filter(|(_, e)| e.info.is_some()).map(|(n, _)| n.as_str())
    }

    /// The UIDs of the placed pods, assumed ones included.
    pub fn uids(&self) -> impl Iterator<Item = &str> {
        self.pods.keys().map(String::as_str)
    }

    fn node_changed(&mut self, node: &str) {
        if let Some(changed) = &mut self.changed
            && !changed.contains(node)
        {
            changed.insert(node.to_owned());
        }
    }

    /// A pod came to a node (`by` = 1) or left it (−1). What is not in the snapshot's nodes is not counted, and
    /// when these change all is counted anew.
    fn note(&self, node: &str, (id, class): (ClassId, &Arc<Class>), pod: &PodInfo, by: i64) {
        if self.changed.is_some()
            && let Some(node) = position(&self.snapshot.nodes, node)
        {
            let staying = if pod.deleting { 0 } else { by };
            self.index.note(self.generation, Step { node, id, class: class.clone(), all: by, staying });
        }
    }

    /// A node as it is now.
    #[must_use]
    pub fn state_of(&self, node: &str) -> Option<NodeState> {
        self.nodes.get(node)?.state(position(&self.snapshot.nodes, node).unwrap_or(usize::MAX))
    }

    /// Where a pod is placed.
    #[must_use]
    pub fn node_of(&self, uid: &str) -> Option<&str> {
        self.pods.get(uid).map(|p| p.node.as_str())
    }

    /// The cluster as it is now; shares all that did not change. While nobody holds an earlier one, this
    /// costs as much as has changed, not as much as there is.
    pub fn snapshot(&mut self) -> Snapshot {
        if self.snapshot.generation != self.generation {
            let mut nodes = std::mem::take(&mut self.snapshot.nodes);
            let changed = self.changed.take();
            if changed.is_none() {
                self.index = Arc::default();
            }
            match (changed, Arc::get_mut(&mut nodes)) {
                (Some(changed), Some(nodes)) => {
                    for name in changed {
                        if let Some(at) = position(nodes, &name)
                            && let Some(state) = self.nodes.get(&name).and_then(|e| e.state(at))
                        {
                            nodes[at] = state;
                        }
                    }
                }
                _ => {
                    let known = self.nodes.values().filter(|e| e.info.is_some());
                    nodes = Arc::new(known.enumerate().filter_map(|(at, e)| e.state(at)).collect());
                }
            }
            self.changed = Some(BTreeSet::new());
            self.snapshot = Snapshot {
                generation: self.generation,
                nodes,
                objects: self.objects.clone(),
                nominated: self.nominated.clone(),
                namespaces: self.namespaces.clone(),
                images: self.images.clone(),
                index: self.index.clone(),
                nodes_generation: self.nodes_generation,
            };
        }
        self.snapshot.clone()
    }
}

impl Entry {
    fn state(&self, at: usize) -> Option<NodeState> {
        let (usage, pods) = (self.usage.clone(), self.pods.clone());
        Some(NodeState { at, generation: self.generation, info: self.info.clone()?, usage, pods })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{HostPort, Resources};

    fn pod(uid: &str, node: &str, cpu: i64) -> Arc<PodInfo> {
        Arc::new(PodInfo {
            uid: uid.into(),
            node_name: node.into(),
            requests: Resources { milli_cpu: cpu, ..Resources::default() },
            host_ports: vec![HostPort { ip: "0.0.0.0".into(), protocol: "TCP".into(), port: 80 }],
            ..PodInfo::default()
        })
    }

    fn node(name: &str, image: &str) -> Arc<NodeInfo> {
        Arc::new(NodeInfo {
            name: name.into(),
            images: BTreeMap::from([(image.to_owned(), 1)]),
            ..NodeInfo::default()
        })
    }

    #[test]
    fn assumed_then_confirmed_counts_once_and_a_changed_pod_gives_back_what_it_took() {
        let mut cache = Cache::default();
        cache.set_node(node("n", "i"));
        cache.assume(pod("u", "", 100), "n");
        assert!(cache.is_assumed("u"));
        assert_eq!(cache.confirm(pod("u", "n", 150)), None);
        let snapshot = cache.snapshot();
        assert_eq!((snapshot.nodes[0].usage.pods, snapshot.nodes[0].usage.requested.milli_cpu), (1, 150));
        let leaving = PodInfo { deleting: true, ..(*pod("u", "n", 150)).clone() };
        cache.confirm(Arc::new(PodInfo { deleting: false, ..leaving.clone() }));
        let staying = |cache: &mut Cache| -> i64 {
            cache.snapshot().nodes[0].usage.alike.values().map(|a| a.staying).sum()
        };
        assert_eq!(staying(&mut cache), 1);
        cache.confirm(Arc::new(leaving));
        assert_eq!(staying(&mut cache), 0, "one that leaves is no longer counted");
        cache.remove_pod("u");
        assert_eq!(*cache.snapshot().nodes[0].usage, Usage::default());
        assert_eq!(snapshot.nodes[0].usage.pods, 1, "a snapshot never changes");
    }

    #[test]
    fn pods_of_an_unknown_node_count_once_it_comes() {
        let mut cache = Cache::default();
        assert_eq!(cache.confirm(pod("u", "n", 100)), None);
        assert!(cache.snapshot().nodes.is_empty());
        cache.set_node(node("n", "i"));
        assert_eq!(cache.snapshot().nodes[0].usage.pods, 1);
        cache.remove_node("n");
        cache.remove_pod("u");
        assert_eq!(cache.sizes(), (0, 0, 0));
    }

    #[test]
    fn images_are_counted_over_nodes() {
        let mut cache = Cache::default();
        cache.set_node(node("a", "i"));
        cache.set_node(node("b", "i"));
        assert_eq!(cache.snapshot().nodes_with_image("i"), 2);
        cache.set_node(node("a", "j"));
        cache.remove_node("b");
        assert_eq!((cache.snapshot().nodes_with_image("i"), cache.snapshot().nodes_with_image("j")), (0, 1));
    }
}
