//! The clusters and the pods: those of scheduler_perf (`test/integration/scheduler_perf/*/templates` of Kubernetes
//! 1.36), on nodes that have other pods too.

use k8s_openapi::api::core::v1::{Node, Pod};
use podway_scheduler::cache::Cache;
use podway_scheduler::model::{LabelSelector, NodeInfo, PodInfo, ReplicaSet};
use podway_scheduler::objects::Object;
use serde_json::{Value, json};
use std::sync::Arc;

/// How much of it.
#[derive(Clone, Copy)]
pub(crate) struct Size {
    pub(crate) nodes: usize,
    /// Pods that are on the nodes before.
    pub(crate) pods: usize,
    /// Pods that are decided.
    pub(crate) measured: usize,
}

/// A workload.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    /// The `i`th pod's labels and what its spec has more than the default one's.
    one: fn(usize) -> (Value, Value),
    /// How many pods of the kind are there already, of 1,000 nodes.
    there: usize,
    /// How many pods wait that fit nowhere.
    stuck: usize,
}

const HOST: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";

const fn plain(name: &'static str, one: fn(usize) -> (Value, Value), there: usize) -> Workload {
    Workload { name, one, there, stuck: 0 }
}

/// All.
pub(crate) const ALL: &[Workload] = &[
    plain("SchedulingBasic", |_| (json!({}), json!({})), 200),
    plain("DefaultTopologySpreading", |i| (app(i % 10), json!({})), 1000),
    plain("SchedulingPodAntiAffinity", |_| colour("podAntiAffinity", HOST, true), 200),
    plain("AntiAffinityOfStatefulSets", |i| numbered(i, "podAntiAffinity", HOST), 200),
    plain("SchedulingPreferredPodAntiAffinity", |_| colour("podAntiAffinity", HOST, false), 1000),
    plain("SchedulingPodAffinity", |_| colour("podAffinity", ZONE, true), 1000),
    plain("SchedulingPreferredPodAffinity", |_| colour("podAffinity", HOST, false), 1000),
    plain("RequiredAntiAffinityWithNSSelector", |_| of_team(), 200),
    plain("TopologySpreading", |_| spread("DoNotSchedule", ZONE), 1000),
    plain("TopologySpreadingByHost", |_| spread("DoNotSchedule", HOST), 1000),
    plain("PreferredTopologySpreading", |_| spread("ScheduleAnyway", ZONE), 1000),
    plain("SchedulingNodeAffinity", |_| (json!({}), in_zones()), 200),
    plain(
        "SchedulingWithTaints",
        |_| (json!({}), json!({"tolerations": [{"key": "t", "operator": "Exists"}]})),
        200,
    ),
    plain("MixedSchedulingBasePod", mixed, 1000),
    // None of scheduler_perf's: pods of twenty Deployments by turns that ask for other amounts and images.
    plain("DeploymentsOfManySizes", sized, 1000),
    Workload { name: "Unschedulable", one: |_| (json!({}), json!({})), there: 200, stuck: 10_000 },
];

fn app(n: usize) -> Value {
    json!({"app": format!("app-{n}")})
}

fn colour(kind: &str, key: &str, required: bool) -> (Value, Value) {
    let term = json!({"topologyKey": key, "labelSelector": {"matchLabels": {"color": "green"}}});
    (json!({"color": "green"}), json!({"affinity": {kind: terms(term, required)}}))
}

fn terms(term: Value, required: bool) -> Value {
    if required {
        json!({"requiredDuringSchedulingIgnoredDuringExecution": [term]})
    } else {
        json!({"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": term}]})
    }
}

/// Each pod has a label of its own, as the pods of a StatefulSet do.
fn numbered(i: usize, kind: &str, key: &str) -> (Value, Value) {
    let (mut labels, spec) = colour(kind, key, true);
    labels["statefulset.kubernetes.io/pod-name"] = json!(format!("web-{i}"));
    (labels, spec)
}

fn of_team() -> (Value, Value) {
    let term = json!({"topologyKey": HOST, "labelSelector": {"matchLabels": {"color": "green"}},
        "namespaceSelector": {"matchLabels": {"team": "devops"}}});
    (json!({"color": "green"}), json!({"affinity": {"podAntiAffinity": terms(term, true)}}))
}

fn spread(when: &str, key: &str) -> (Value, Value) {
    let constraint = json!({"maxSkew": 5, "topologyKey": key, "whenUnsatisfiable": when,
        "labelSelector": {"matchLabels": {"color": "blue"}}});
    (json!({"color": "blue"}), json!({"topologySpreadConstraints": [constraint]}))
}

fn in_zones() -> Value {
    let term = json!({"matchExpressions": [{"key": ZONE, "operator": "In", "values": ["moon-1", "moon-2"]}]});
    json!({"affinity": {"nodeAffinity":
        {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}}})
}

fn mixed(i: usize) -> (Value, Value) {
    match i % 5 {
        0 => (json!({}), json!({})),
        1 => colour("podAntiAffinity", HOST, false),
        2 => colour("podAffinity", ZONE, true),
        3 => spread("DoNotSchedule", ZONE),
        _ => spread("ScheduleAnyway", ZONE),
    }
}

fn sized(i: usize) -> (Value, Value) {
    let n = i % 20;
    let requests = json!({"cpu": format!("{}m", 50 + n), "memory": format!("{}Mi", 400 + n)});
    let image = format!("registry.example/app-{n}:1");
    (app(n), json!({"containers": [{"name": "app", "image": image, "resources": {"requests": requests}}]}))
}

fn pod_of(name: &str, (labels, more): (Value, Value)) -> PodInfo {
    let owner = labels.get("app").and_then(Value::as_str).map(|app| {
        json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": app, "uid": app, "controller": true}])
    });
    let mut spec = json!({"containers": [{"name": "pause", "image": "registry.k8s.io/pause:3.10.1",
        "resources": {"requests": {"cpu": "100m", "memory": "500Mi"}}}]});
    if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    let pod: Pod =
        serde_json::from_value(json!({"metadata": {"name": name, "uid": name, "namespace": "sched",
        "labels": labels, "ownerReferences": owner.unwrap_or(json!([]))}, "spec": spec}))
        .unwrap();
    PodInfo::parse(&pod).unwrap()
}

impl Workload {
    /// The `i`th pod to decide.
    pub(crate) fn pod(&self, i: usize) -> Arc<PodInfo> {
        Arc::new(pod_of(&format!("measured-{i}"), (self.one)(i)))
    }

    /// Those that wait and fit nowhere.
    pub(crate) fn waiting(&self, size: Size) -> impl Iterator<Item = Arc<PodInfo>> {
        let stuck = if size.nodes < 1000 { self.stuck / 100 } else { self.stuck };
        let big = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "9"}}}]});
        (0..stuck).map(move |i| Arc::new(pod_of(&format!("stuck-{i}"), (json!({}), big.clone()))))
    }

    /// The nodes, the pods on them and what they belong to.
    pub(crate) fn cluster(&self, size: Size) -> Cache {
        let mut cache = Cache::default();
        cache.set_namespace("sched", [("team".to_owned(), "devops".to_owned())].into());
        for i in 0..size.nodes {
            let name = format!("scheduler-perf-{i:05}");
            let taints = if i % 2 == 1 && self.name.ends_with("Taints") {
                json!([{"key": "t", "effect": "NoSchedule"}])
            } else {
                json!([])
            };
            let node: Node = serde_json::from_value(json!({
                "metadata": {"name": name, "labels": {HOST: name, ZONE: format!("moon-{}", i % 3 + 1),
                    "kubernetes.io/arch": "amd64", "kubernetes.io/os": "linux",
                    "node.kubernetes.io/instance-type": "m", "topology.kubernetes.io/region": "moon"}},
                "spec": {"taints": taints},
                "status": {"allocatable": {"cpu": "4", "memory": "32Gi", "pods": "110"}}}))
            .unwrap();
            cache.set_node(Arc::new(NodeInfo::parse(&node).unwrap()));
        }
        // Deployments of 100 replicas.
        for n in 0..size.pods.div_ceil(100) {
            let selector = LabelSelector::All(vec![]).and("app", &format!("app-{n}"));
            let set = Object::ReplicaSet(Arc::new(ReplicaSet { selector }));
            cache.objects_mut().put(format!("sched/app-{n}"), set);
        }
        let there = self.there * size.nodes / 1000;
        for i in 0..size.pods {
            let pod = match i < there {
                true => pod_of(&format!("init-{i}"), (self.one)(i + 1_000_000)),
                false => pod_of(&format!("other-{i}"), (app(i / 100), json!({}))),
            };
            // Replicas are not on neighbouring nodes; the first pods of a kind are on nodes of their own.
            let at = if i < there { i % size.nodes } else { i * 7919 % size.nodes };
            cache.assume(Arc::new(pod), &format!("scheduler-perf-{at:05}"));
        }
        cache
    }
}
