//! What a cache has kept up to date through many changes decides like a cache that was filled at once.

use super::{Carried, CycleError, Decision, Trace, schedule_one};
use crate::cache::Cache;
use crate::model::{LabelSelector, NodeInfo, PodInfo, ReplicaSet, Resources};
use crate::objects::Object;
use crate::plugins::default_framework;
use k8s_openapi::api::core::v1;
use podway_flow::Micros;
use proptest::prelude::{Strategy, any, proptest};
use proptest::test_runner::Config;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What happens to the cluster: which kind of thing, to which of them, and how.
type Change = (u8, u8, u8);

/// The cluster as it is to be.
#[derive(Default)]
struct World {
    nodes: BTreeMap<String, Arc<NodeInfo>>,
    pods: BTreeMap<String, (Arc<PodInfo>, String)>,
    team: BTreeMap<String, String>,
}

fn node(at: u8, zone: u8, how: u8) -> Arc<NodeInfo> {
    let name = format!("n{at}");
    let taints = match how {
        0..=150 => json!([]),
        151..=200 => json!([{"key": "t", "effect": "PreferNoSchedule"}]),
        _ => json!([{"key": "t", "effect": "NoSchedule"}]),
    };
    let mut labels = json!({"kubernetes.io/hostname": name});
    // Some are in no zone.
    if zone > 0 {
        labels["topology.kubernetes.io/zone"] = json!(format!("z{zone}"));
    }
    let node = json!({"metadata": {"name": name, "labels": labels}, "spec": {"taints": taints},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "20"}}});
    Arc::new(NodeInfo::parse(&serde_json::from_value(node).unwrap()).unwrap())
}

fn term(app: u8, key: &str, more: Value) -> Value {
    let mut term = json!({"topologyKey": key, "labelSelector": {"matchLabels": {"app": format!("a{app}")}}});
    if let (Some(term), Some(more)) = (term.as_object_mut(), more.as_object()) {
        term.extend(more.clone());
    }
    term
}

/// One of some templates, each with something that is counted, in one of some shapes, by what is read of the pod and
/// its node alone.
fn pod(uid: &str, template: u8, shape: u8) -> PodInfo {
    const HOST: &str = "kubernetes.io/hostname";
    const ZONE: &str = "topology.kubernetes.io/zone";
    let required =
        |kind: &str, term: Value| json!({kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}});
    let rather = |kind: &str, term: Value| json!({kind: {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 7, "podAffinityTerm": term}]}});
    let constraint = |key: &str, when: &str, more: Value| {
        let mut c = json!({"maxSkew": 1, "topologyKey": key, "whenUnsatisfiable": when,
            "labelSelector": {"matchLabels": {"app": "a1"}}});
        if let (Some(c), Some(more)) = (c.as_object_mut(), more.as_object()) {
            c.extend(more.clone());
        }
        json!([c])
    };
    let app = template % 3;
    let cpu = ["100m", "700m", "2"][usize::from(shape % 3)];
    let none = || json!({});
    let (affinity, spread) = match template {
        0 => (none(), json!([])),
        1 => (required("podAntiAffinity", term(1, HOST, none())), json!([])),
        2 => (required("podAffinity", term(2, ZONE, none())), json!([])),
        3 => (rather("podAntiAffinity", term(0, ZONE, none())), json!([])),
        4 => (rather("podAffinity", term(1, HOST, none())), json!([])),
        5 => {
            let of_team = json!({"namespaceSelector": {"matchLabels": {"team": "red"}}});
            (required("podAntiAffinity", term(2, ZONE, of_team)), json!([]))
        }
        6 => (none(), constraint(ZONE, "DoNotSchedule", json!({"nodeTaintsPolicy": "Honor"}))),
        7 => (none(), constraint(HOST, "DoNotSchedule", json!({"minDomains": 4}))),
        8 => (none(), constraint(ZONE, "ScheduleAnyway", none())),
        _ => (none(), constraint(HOST, "ScheduleAnyway", none())),
    };
    let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "r", "controller": true}]);
    let pod: v1::Pod = serde_json::from_value(json!({
        "metadata": {"name": uid, "namespace": "d", "uid": uid, "labels": {"app": format!("a{app}")},
            "ownerReferences": if template == 0 { owner } else { json!([]) }},
        "spec": {"containers": [{"name": "c", "image": format!("i{}", shape % 3),
                "ports": if shape.is_multiple_of(5) { json!([{"containerPort": 80, "hostPort": 80}]) } else { json!([]) },
                "resources": {"requests": {"cpu": cpu}}}],
            "nodeSelector": if shape.is_multiple_of(7) { json!({ZONE: "z1"}) } else { json!({}) },
            "tolerations": if shape.is_multiple_of(2) { json!([{"key": "t", "operator": "Exists"}]) } else { json!([]) },
            "affinity": affinity, "topologySpreadConstraints": spread}}))
    .unwrap();
    PodInfo::parse(&pod).unwrap()
}

impl World {
    /// The change, in the world and in the cache that keeps up with it.
    fn change(&mut self, cache: &mut Cache, (what, which, how): Change) {
        let uid = format!("u{}", which % 24);
        match what % 10 {
            0 => {
                let node = node(which % 6, how % 4, how);
                self.nodes.insert(node.name.to_string(), node.clone());
                cache.set_node(node);
            }
            1 if how > 200 => {
                let name = format!("n{}", which % 6);
                self.nodes.remove(&name);
                cache.remove_node(&name);
            }
            2 => {
                self.pods.remove(&uid);
                cache.remove_pod(&uid);
            }
            3 => {
                // It begins to go.
                if let Some((pod, node)) = self.pods.get_mut(&uid) {
                    *pod = Arc::new(PodInfo { deleting: true, node_name: node.clone(), ..(**pod).clone() });
                    cache.confirm(pod.clone());
                }
            }
            4 if how > 128 => {
                self.team =
                    BTreeMap::from([("team".to_owned(), ["red", "blue"][usize::from(which % 2)].to_owned())]);
                cache.set_namespace("d", self.team.clone());
            }
            5 => {
                // A node's amounts change, which no count goes by.
                let name = format!("n{}", which % 6);
                if let Some(node) = self.nodes.get_mut(&name) {
                    let allocatable =
                        Resources { milli_cpu: i64::from(how) * 20, ..node.allocatable.clone() };
                    *node = Arc::new(NodeInfo { allocatable, ..(**node).clone() });
                    cache.set_node(node.clone());
                }
            }
            6 => {
                // It pulled images, or was cordoned.
                let name = format!("n{}", which % 6);
                if let Some(node) = self.nodes.get_mut(&name) {
                    let images = BTreeMap::from([(format!("i{}:latest", how % 3), i64::from(how) << 22)]);
                    *node = Arc::new(NodeInfo { images, unschedulable: how > 200, ..(**node).clone() });
                    cache.set_node(node.clone());
                }
            }
            _ => {
                let (pod, node) = (Arc::new(pod(&uid, how % 10, which)), format!("n{}", which % 6));
                self.pods.insert(uid, (pod.clone(), node.clone()));
                cache.assume(pod, &node);
            }
        }
    }

    fn fresh(&self) -> Cache {
        let mut cache = with_replica_set();
        self.nodes.values().for_each(|node| drop(cache.set_node(node.clone())));
        cache.set_namespace("d", self.team.clone());
        self.pods.values().for_each(|(pod, node)| cache.assume(pod.clone(), node));
        cache
    }
}

fn with_replica_set() -> Cache {
    let mut cache = Cache::default();
    let selector = LabelSelector::All(vec![]).and("app", "a0");
    cache.objects_mut().put("d/rs".into(), Object::ReplicaSet(Arc::new(ReplicaSet { selector })));
    cache
}

/// All that a cycle says, but for what tells snapshots apart.
fn said(cache: &mut Cache, pod: &PodInfo, carried: &mut Carried) -> Result<Decision, CycleError> {
    let (framework, snapshot, mut trace) = (default_framework(), cache.snapshot(), Trace::default());
    let found = schedule_one(Some(carried), &framework, &snapshot, pod, &|| Micros(1), &mut trace);
    found.map(|decision| Decision { generation: 0, ..decision })
}

proptest! {
    #![proptest_config(Config { cases: 150, ..Config::default() })]
    #[test]
    fn what_is_kept_decides_as_what_is_counted_anew(
        changes in proptest::collection::vec(any::<Change>().prop_map(|c| c), 1..80),
        asked in proptest::collection::vec((0..10_u8, any::<u8>()), 80),
    ) {
        let (mut world, mut cache, mut carried) = (World::default(), with_replica_set(), Carried::default());
        for at in 0..5 {
            world.change(&mut cache, (0, at, at));
        }
        for (change, (template, shape)) in changes.into_iter().zip(asked) {
            world.change(&mut cache, change);
            let pod = pod("asking", template, shape);
            let (kept, anew) = (said(&mut cache, &pod, &mut carried), said(&mut world.fresh(), &pod, &mut Carried::default()));
            assert_eq!(format!("{kept:?}"), format!("{anew:?}"), "after {change:?}, template {template}, shape {shape}");
        }
    }
}
