//! A cluster to ask questions of: read once with the asker's own rights, and never written to.
//!
//! It is the scheduler's own cache and cycle, filled from lists, so that an answer is what the scheduler
//! itself would decide on what the lists say. Two readings of the same lists give the same answers, bit for
//! bit: nothing here asks a clock or a random number.

use super::search::decide;
use crate::cache::{Cache, Snapshot};
use crate::config::profiles::Profiles;
use crate::cycle::{CycleError, Decision};
use crate::framework::Framework;
use crate::model::{LabelSelector, Meta, ModelError, NodeInfo, Owner, PodInfo};
use crate::objects::{
    CsiDriver, CsiNode, DisruptionBudget, Kept, Object, PersistentVolume, PersistentVolumeClaim, ReplicaSet,
    ReplicationController, Service, StatefulSet, StorageCapacity, StorageClass, VolumeAttachment,
};
use crate::plugins::default_binder::NoBinder;
use crate::plugins::{PluginArgs, registry};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod};
use kube::api::{Api, ListParams};
use podway_api::SchedulerProfile;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The cluster as it was read.
pub struct World {
    cache: Cache,
    profiles: Profiles,
    /// The pods without a node, by `namespace/name`.
    waiting: BTreeMap<String, Arc<PodInfo>>,
    /// The pods that are on a node, by the same.
    placed: BTreeMap<String, Arc<PodInfo>>,
    /// Those that a drain leaves: of a DaemonSet, or static.
    fixed: BTreeSet<String>,
    /// What could not be read, and is left out.
    pub left_out: Vec<String>,
}

/// Where a pod goes, on what is known.
#[derive(Clone, Debug)]
pub struct Placed {
    /// The pod.
    pub pod: Arc<PodInfo>,
    /// The decision, or why there is none.
    pub result: Result<Decision, CycleError>,
}

/// True for a pod that belongs to its node.
fn fixed(pod: &Pod) -> bool {
    let meta = &pod.metadata;
    let mirror = |a: &BTreeMap<String, String>| a.contains_key("kubernetes.io/config.mirror");
    meta.annotations.as_ref().is_some_and(mirror)
        || meta.owner_references.iter().flatten().any(|o| o.kind == "DaemonSet" && o.controller == Some(true))
}

fn every_plugin(args: &PluginArgs) -> Framework {
    Framework { bind: vec![Arc::new(NoBinder)], ..Framework::of(registry(args)) }
}

impl Default for World {
    fn default() -> Self {
        World {
            cache: Cache::default(),
            profiles: Profiles::none(Box::new(every_plugin)),
            waiting: BTreeMap::new(),
            placed: BTreeMap::new(),
            fixed: BTreeSet::new(),
            left_out: Vec::new(),
        }
    }
}

impl World {
    /// Reads nodes, pods, namespaces, budgets, volumes and profiles. Who may not see one of the last three gets
    /// answers without it, and is told.
    ///
    /// # Errors
    /// When nodes, pods or namespaces cannot be listed.
    pub async fn read(client: &kube::Client) -> Result<Self, kube::Error> {
        let mut world = World::default();
        let all = ListParams::default();
        for namespace in Api::<Namespace>::all(client.clone()).list(&all).await? {
            if let Some(name) = namespace.metadata.name {
                world.cache.set_namespace(&name, namespace.metadata.labels.unwrap_or_default());
            }
        }
        for node in Api::<Node>::all(client.clone()).list(&all).await? {
            if let Err(error) = world.add_node(&node) {
                world.leave_out(&format!("node {}", node.metadata.name.unwrap_or_default()), &error);
            }
        }
        let live = all.clone().fields("status.phase!=Succeeded,status.phase!=Failed");
        for pod in Api::<Pod>::all(client.clone()).list(&live).await? {
            if let Err(error) = world.add_pod(&pod) {
                world.leave_out(&format!("pod {}", pod.metadata.name.unwrap_or_default()), &error);
            }
        }
        macro_rules! kinds {
            ($($kind:ty),+) => { $(world.read_objects::<$kind>(client).await;)+ };
        }
        kinds!(DisruptionBudget, PersistentVolume, PersistentVolumeClaim, StorageClass);
        kinds!(CsiNode, CsiDriver, StorageCapacity, VolumeAttachment);
        kinds!(Service, ReplicationController, ReplicaSet, StatefulSet);
        match Api::<SchedulerProfile>::all(client.clone()).list(&all).await {
            Ok(profiles) => profiles.iter().for_each(|p| world.add_profile(p)),
            // The cluster has none.
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => world.leave_out("schedulerprofiles", &error),
        }
        Ok(world)
    }

    async fn read_objects<T: Kept>(&mut self, client: &kube::Client) {
        let list = match Api::<T::Api>::all(client.clone()).list(&ListParams::default()).await {
            Ok(list) => list,
            Err(error) => return self.leave_out(T::KIND.name(), &error),
        };
        for api in list {
            let meta = Meta::of(&api);
            let key = meta.key();
            if let Some(object) = T::parse(meta, api) {
                let object: Object = T::wrap(Arc::new(object));
                self.cache.objects_mut().put(key, object);
            }
        }
    }

    fn leave_out(&mut self, what: &str, error: &dyn std::error::Error) {
        self.left_out.push(format!("{what}: {error}"));
    }

    /// A node comes, as one of the API's.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn add_node(&mut self, node: &Node) -> Result<(), ModelError> {
        self.cache.set_node(Arc::new(NodeInfo::parse(node)?));
        Ok(())
    }

    /// A pod comes: placed if it names a node.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn add_pod(&mut self, pod: &Pod) -> Result<(), ModelError> {
        let info = Arc::new(PodInfo::parse(pod)?);
        if info.node_name.is_empty() {
            self.waiting.insert(info.key(), info);
        } else {
            if fixed(pod) {
                self.fixed.insert(info.key());
            }
            self.placed.insert(info.key(), info.clone());
            self.cache.confirm(info);
        }
        Ok(())
    }

    /// A profile comes. One that is not valid is told and left out.
    pub fn add_profile(&mut self, profile: &SchedulerProfile) {
        let Some(name) = &profile.metadata.name else { return };
        let generation = profile.metadata.generation.unwrap_or(1);
        if let (_, Some(error)) = self.profiles.set(name, &profile.spec, generation) {
            self.leave_out(&format!("schedulerprofile {name}"), &error);
        }
    }

    /// The plugins that decide for a scheduler's pods: those of its profile object, else the default ones.
    #[must_use]
    pub fn framework(&self, scheduler: &str) -> Arc<Framework> {
        self.profiles
            .of(scheduler)
            .map_or_else(|| Arc::new(every_plugin(&PluginArgs::default())), |p| p.framework.clone())
    }

    /// The cluster as it is now.
    pub fn snapshot(&mut self) -> Snapshot {
        self.cache.snapshot()
    }

    /// A pod that waits, by `namespace/name`.
    #[must_use]
    pub fn waiting(&self, key: &str) -> Option<&Arc<PodInfo>> {
        self.waiting.get(key)
    }

    /// A pod that is on a node, by `namespace/name`.
    #[must_use]
    pub fn placed(&self, key: &str) -> Option<&Arc<PodInfo>> {
        self.placed.get(key)
    }

    /// True when there is a node of this name.
    #[must_use]
    pub fn has_node(&self, name: &str) -> bool {
        self.cache.node_names().any(|n| n == name)
    }

    /// Thinks a pod away.
    pub fn remove(&mut self, pod: &PodInfo) {
        self.cache.remove_pod(&pod.uid);
    }

    /// Cordons a node and takes its pods away, those of a DaemonSet and static ones excepted, which a drain
    /// leaves too. Returns them, the most important first, as those that are to be placed again.
    pub fn drain(&mut self, name: &str) -> Vec<Arc<PodInfo>> {
        let snapshot = self.cache.snapshot();
        let Some(state) = snapshot.nodes.iter().find(|n| *n.info.name == *name) else { return Vec::new() };
        self.cache.set_node(Arc::new(NodeInfo { unschedulable: true, ..(*state.info).clone() }));
        let mut out: Vec<Arc<PodInfo>> = self
            .placed
            .values()
            .filter(|p| p.node_name == name && !p.deleting && !self.fixed.contains(&p.key()))
            .cloned()
            .collect();
        out.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.key().cmp(&b.key())));
        for pod in &mut out {
            self.cache.remove_pod(&pod.uid);
            *pod = Arc::new(PodInfo { node_name: String::new(), ..(**pod).clone() });
        }
        out
    }

    /// Makes a pod one of a ReplicaSet that selects its labels, so that it is spread by default.
    pub fn own(&mut self, pod: &mut PodInfo) {
        const NAME: &str = "podway-whatif";
        let all = pod.labels.iter();
        let selector =
            all.fold(LabelSelector::All(vec![]), |selector, (key, value)| selector.and(key, value));
        let set = Object::ReplicaSet(Arc::new(ReplicaSet { selector }));
        self.cache.objects_mut().put(format!("{}/{NAME}", pod.namespace), set);
        pod.owner = Some(Owner::ReplicaSet(NAME.to_owned()));
    }

    /// Decides for a pod, and gives it its node here, so that the next one finds it there.
    pub fn place(&mut self, pod: Arc<PodInfo>) -> Placed {
        let (framework, snapshot) = (self.framework(&pod.scheduler_name), self.cache.snapshot());
        let result = decide(&framework, &snapshot, &pod);
        if let Ok(decision) = &result {
            self.cache.assume(pod.clone(), &decision.node);
        }
        Placed { pod, result }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, cpu: &str) -> Node {
        serde_json::from_value(json!({"metadata": {"name": name},
            "status": {"allocatable": {"cpu": cpu, "memory": "8Gi", "pods": "110"}}}))
        .unwrap()
    }

    fn pod(name: &str, cpu: &str, on: Option<&str>) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "d", "uid": name},
            "spec": {"nodeName": on, "containers": [
                {"name": "c", "resources": {"requests": {"cpu": cpu}}}]}}))
        .unwrap()
    }

    fn world() -> World {
        let mut world = World::default();
        for n in [node("a", "2"), node("b", "2")] {
            world.add_node(&n).unwrap();
        }
        let mut own = pod("own", "100m", Some("a"));
        let owner = json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "o", "uid": "o", "controller": true}]);
        own.metadata.owner_references = serde_json::from_value(owner).unwrap();
        for p in [pod("x", "1", Some("a")), pod("y", "1500m", Some("b")), own] {
            world.add_pod(&p).unwrap();
        }
        world
    }

    fn nodes(world: &mut World, pods: Vec<Arc<PodInfo>>) -> Vec<String> {
        pods.into_iter()
            .map(|p| match world.place(p).result {
                Ok(decision) => decision.node,
                Err(error) => error.to_string(),
            })
            .collect()
    }

    #[test]
    fn what_is_placed_takes_its_room_from_the_next() {
        let replicas = |n: usize| {
            (0..n).map(|i| Arc::new(PodInfo::parse(&pod(&format!("r{i}"), "600m", None)).unwrap())).collect()
        };
        let answers = nodes(&mut world(), replicas(2));
        assert_eq!(answers[0], "a");
        assert!(answers[1].starts_with("0/2 nodes are available: 2 Insufficient cpu."), "{answers:?}");
        // The same questions have the same answers.
        assert_eq!(nodes(&mut world(), replicas(2)), answers);
        let mut wider = world();
        wider.add_node(&node("c", "8")).unwrap();
        assert_eq!(nodes(&mut wider, replicas(2)), ["c", "c"]);
    }

    #[test]
    fn a_drain_moves_what_does_not_stay() {
        let mut world = world();
        let moved = world.drain("a");
        assert_eq!(moved.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["x"]);
        let answers = nodes(&mut world, moved);
        assert!(
            answers[0]
                .starts_with("0/2 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable."),
            "{answers:?}"
        );
        assert!(world.drain("nowhere").is_empty());
    }

    #[test]
    fn a_profile_decides_for_its_pods_and_a_bad_one_is_told() {
        let mut world = world();
        let profile = |name: &str, spec: serde_json::Value| -> SchedulerProfile {
            serde_json::from_value(json!({"apiVersion": "podway.dev/v1alpha1", "kind": "SchedulerProfile",
                "metadata": {"name": name}, "spec": spec}))
            .unwrap()
        };
        world.add_profile(&profile(
            "blind",
            json!({"plugins": {"multiPoint": {"disabled": [{"name": "NodeResourcesFit"}]}}}),
        ));
        world.add_profile(&profile("bad", json!({"percentageOfNodesToScore": 101})));
        assert_eq!(world.left_out.len(), 1, "{:?}", world.left_out);
        let mut big = PodInfo::parse(&pod("big", "64", None)).unwrap();
        assert!(world.place(Arc::new(big.clone())).result.is_err());
        big.scheduler_name = "blind".into();
        assert!(world.place(Arc::new(big)).result.is_ok());
    }
}
