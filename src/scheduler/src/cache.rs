//! What the cluster looks like: nodes, the pods on them, and the pods assumed to be.
//!
//! Owned by one task. A [`Snapshot`] shares structure with the cache and never changes. What a pod
//! took is kept with it, so that giving back subtracts what was added, however the pod changed since.

use crate::classes::{Alike, Class, ClassId, Classes};
use crate::model::{HostPort, NodeInfo, PodInfo, Resources};
use crate::objects::Objects;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

/// What the pods of a node have taken.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Sum of requests.
    pub requested: Resources,
    /// Sum of requests with defaults; only for scores.
    pub non_zero: Resources,
    /// How many pods.
    pub pods: i64,
    /// Host ports, with how many pods hold each.
    pub host_ports: BTreeMap<HostPort, usize>,
    /// How many pods of each class.
    pub alike: BTreeMap<ClassId, Alike>,
}

impl Usage {
    fn add(&mut self, pod: &PodInfo, class: ClassId) {
        let alike = self.alike.entry(class).or_default();
        alike.all += 1;
        alike.staying += i64::from(!pod.deleting);
        self.requested.add(&pod.requests);
        self.non_zero.add(&pod.non_zero);
        self.pods += 1;
        for port in &pod.host_ports {
            *self.host_ports.entry(port.clone()).or_insert(0) += 1;
        }
    }

    fn remove(&mut self, pod: &PodInfo, class: ClassId) {
        if let Some(alike) = self.alike.get_mut(&class) {
            alike.all -= 1;
            alike.staying -= i64::from(!pod.deleting);
            if alike.all == 0 {
                self.alike.remove(&class);
            }
        }
        self.requested.subtract(&pod.requests);
        self.non_zero.subtract(&pod.non_zero);
        self.pods -= 1;
        for port in &pod.host_ports {
            if let Some(n) = self.host_ports.get_mut(port) {
                *n -= 1;
                if *n == 0 {
                    self.host_ports.remove(port);
                }
            }
        }
    }
}

/// A pod on a node.
#[derive(Clone, Debug)]
pub struct NodePod {
    /// The pod, as it was when it was counted.
    pub pod: Arc<PodInfo>,
    /// Its class; [`UNCLASSED`] for one that is only thought to be there.
    pub class: ClassId,
}

/// No class: that of a nominated pod, which affinity and spread count one by one.
pub const UNCLASSED: ClassId = 0;

/// A node and its usage, at one moment.
#[derive(Clone, Debug, Default)]
pub struct NodeState {
    /// The node.
    pub info: Arc<NodeInfo>,
    /// What is taken of it.
    pub usage: Arc<Usage>,
    /// By what pods.
    pub pods: Arc<Vec<NodePod>>,
}

impl NodeState {
    /// An empty node.
    #[must_use]
    pub fn of(info: NodeInfo) -> Self {
        NodeState { info: Arc::new(info), ..NodeState::default() }
    }

    /// Thinks a pod onto the node.
    pub fn add(&mut self, pod: &NodePod) {
        Arc::make_mut(&mut self.usage).add(&pod.pod, pod.class);
        Arc::make_mut(&mut self.pods).push(pod.clone());
    }

    /// Thinks a pod away from it.
    pub fn remove(&mut self, pod: &NodePod) {
        let pods = Arc::make_mut(&mut self.pods);
        if let Some(at) = pods.iter().position(|p| p.pod.uid == pod.pod.uid) {
            pods.swap_remove(at);
            Arc::make_mut(&mut self.usage).remove(&pod.pod, pod.class);
        }
    }
}

/// The cluster at one moment; nodes by name.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Rises with every change of the cache.
    pub generation: u64,
    /// The nodes, by name.
    pub nodes: Arc<Vec<NodeState>>,
    /// The classes of the pods on them.
    pub classes: Arc<BTreeMap<ClassId, Arc<Class>>>,
    /// What else there is: budgets, volumes, classes.
    pub objects: Objects,
    nominated: Nominated,
    namespaces: Arc<HashMap<String, BTreeMap<String, String>>>,
    images: Arc<HashMap<String, usize>>,
}

/// The pods that are nominated to a node, by its name.
type Nominated = Arc<BTreeMap<String, Vec<Arc<PodInfo>>>>;

static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

impl Snapshot {
    /// The labels of a namespace; none for one that has not been seen.
    #[must_use]
    pub fn namespace_labels(&self, namespace: &str) -> &BTreeMap<String, String> {
        self.namespaces.get(namespace).unwrap_or(&NO_LABELS)
    }

    /// The pods that are nominated to a node: for whom victims were evicted there.
    #[must_use]
    pub fn nominated(&self, node: &str) -> &[Arc<PodInfo>] {
        self.nominated.get(node).map_or(&[], Vec::as_slice)
    }

    /// A node by name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&NodeState> {
        let at = self.nodes.binary_search_by(|n| n.info.name.as_str().cmp(name)).ok()?;
        self.nodes.get(at)
    }

    /// How many nodes have an image of this name.
    #[must_use]
    pub fn nodes_with_image(&self, name: &str) -> usize {
        self.images.get(name).copied().unwrap_or(0)
    }
}

#[derive(Debug, Default)]
struct Entry {
    /// `None` while pods name a node that has not been seen.
    info: Option<Arc<NodeInfo>>,
    usage: Arc<Usage>,
    pods: Arc<Vec<NodePod>>,
}

#[derive(Debug)]
struct Placed {
    pod: Arc<PodInfo>,
    class: ClassId,
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
    /// The nodes that differ from the snapshot's; `None` when not only their usage does.
    changed: Option<BTreeSet<String>>,
}

impl Cache {
    /// A node came or changed; returns what it was before.
    pub fn set_node(&mut self, info: Arc<NodeInfo>) -> Option<Arc<NodeInfo>> {
        let entry = self.nodes.entry(info.name.clone()).or_default();
        let before = entry.info.replace(info.clone());
        if before.as_ref() == Some(&info) {
            return before;
        }
        self.generation += 1;
        self.changed = None;
        if before.as_ref().map(|b| &b.images) != Some(&info.images) {
            self.count_images(before.as_deref(), Some(&info));
        }
        before
    }

    /// A node went; returns what it was. Its pods stay counted until they go.
    pub fn remove_node(&mut self, name: &str) -> Option<Arc<NodeInfo>> {
        let entry = self.nodes.get_mut(name)?;
        let before = entry.info.take();
        if entry.usage.pods == 0 {
            self.nodes.remove(name);
        }
        self.count_images(before.as_deref(), None);
        self.generation += 1;
        self.changed = None;
        before
    }

    /// A namespace came or changed.
    pub fn set_namespace(&mut self, name: &str, labels: BTreeMap<String, String>) {
        if self.namespaces.get(name) != Some(&labels) {
            Arc::make_mut(&mut self.namespaces).insert(name.to_owned(), labels);
            self.generation += 1;
        }
    }

    /// A namespace went.
    pub fn remove_namespace(&mut self, name: &str) {
        if self.namespaces.contains_key(name) {
            Arc::make_mut(&mut self.namespaces).remove(name);
            self.generation += 1;
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
        self.place(pod, node, true);
    }

    /// The API says that the pod is bound. Returns what it said before, if it did.
    pub fn confirm(&mut self, pod: Arc<PodInfo>) -> Option<Arc<PodInfo>> {
        let known = self.pods.get(&pod.uid).filter(|p| !p.assumed).map(|p| p.pod.clone());
        let node = pod.node_name.clone();
        self.place(pod, &node, false);
        known
    }

    /// The pod is gone, or its binding failed. Returns the pod if it was placed.
    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let placed = self.pods.remove(uid)?;
        self.generation += 1;
        self.usage_changed(&placed.node);
        self.classes.leave(placed.class);
        if let Some(entry) = self.nodes.get_mut(&placed.node) {
            Arc::make_mut(&mut entry.usage).remove(&placed.pod, placed.class);
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
        let class = self.classes.enter(&pod);
        self.remove_pod(&pod.uid);
        self.generation += 1;
        self.usage_changed(node);
        let entry = self.nodes.entry(node.to_owned()).or_default();
        Arc::make_mut(&mut entry.usage).add(&pod, class);
        Arc::make_mut(&mut entry.pods).push(NodePod { pod: pod.clone(), class });
        self.unnominate(&pod.uid);
        self.pods.insert(pod.uid.clone(), Placed { pod, class, node: node.to_owned(), assumed });
    }

    /// A pod that waits is nominated to a node: for pods of no higher priority it is as good as there.
    pub fn nominate(&mut self, pod: Arc<PodInfo>, node: &str) {
        self.unnominate(&pod.uid);
        Arc::make_mut(&mut self.nominated).entry(node.to_owned()).or_default().push(pod);
        self.generation += 1;
    }

    /// It no longer is. Returns the node that it was nominated to.
    pub fn unnominate(&mut self, uid: &str) -> Option<String> {
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

    fn usage_changed(&mut self, node: &str) {
        if let Some(changed) = &mut self.changed
            && !changed.contains(node)
        {
            changed.insert(node.to_owned());
        }
    }

    /// A node as it is now.
    #[must_use]
    pub fn state_of(&self, node: &str) -> Option<NodeState> {
        self.nodes.get(node).and_then(Entry::state)
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
            match (self.changed.take(), Arc::get_mut(&mut nodes)) {
                (Some(changed), Some(nodes)) => {
                    for name in changed {
                        let at = nodes.binary_search_by(|n| n.info.name.as_str().cmp(&name));
                        if let (Ok(at), Some(state)) = (at, self.state_of(&name)) {
                            nodes[at] = state;
                        }
                    }
                }
                _ => nodes = Arc::new(self.nodes.values().filter_map(Entry::state).collect()),
            }
            self.changed = Some(BTreeSet::new());
            self.snapshot = Snapshot {
                generation: self.generation,
                nodes,
                classes: self.classes.by_id(),
                objects: self.objects.clone(),
                nominated: self.nominated.clone(),
                namespaces: self.namespaces.clone(),
                images: self.images.clone(),
            };
        }
        self.snapshot.clone()
    }
}

impl Entry {
    fn state(&self) -> Option<NodeState> {
        let (usage, pods) = (self.usage.clone(), self.pods.clone());
        Some(NodeState { info: self.info.clone()?, usage, pods })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
