//! Random clusters and pods that meet every plugin.
//!
//! Names carry the round, so that what an earlier one has left behind has no part in it. Values are few,
//! so that they meet: two zones, three apps, small nodes.

use super::profiles;
use super::random::Random;
use serde_json::{Value, json};

/// The namespaces, made once; each with a `team` label of its own.
pub const NAMESPACES: [&str; 2] = ["d0", "d1"];
/// The priority classes, made once: name, value, and whether it preempts.
pub const PRIORITIES: [(&str, i64, bool); 4] =
    [("low", 10, true), ("mid", 100, true), ("high", 1000, true), ("patient", 1000, false)];
const ZONES: [&str; 2] = ["z0", "z1"];
const APPS: [&str; 3] = ["a", "b", "c"];
const ZONE: &str = "topology.kubernetes.io/zone";
const HOST: &str = "kubernetes.io/hostname";
/// An extended resource, which the extender has a say about.
pub const GPU: &str = "example.com/gpu";
/// Another, which no node has: it is the extender's alone.
pub const JUDGED: &str = "example.com/judged";
const IMAGES: [(&str, i64); 4] = [
    ("example.com/small:1", 20 << 20),
    ("example.com/middle:1", 300 << 20),
    ("example.com/large:1", 1500 << 20),
    ("example.com/untagged:latest", 700 << 20),
];

/// A cluster of one round.
pub struct Round {
    /// Nodes, with spec and status as they are to be.
    pub nodes: Vec<Value>,
    /// Pods on them, by `spec.nodeName`.
    pub placed: Vec<Value>,
    /// Other objects, in the order in which they are made: kind and object.
    pub objects: Vec<(&'static str, Value)>,
    number: usize,
    claims: Vec<(String, String)>,
}

fn node_name(round: usize, i: usize) -> String {
    format!("n{round}-{i}")
}

fn node(r: &mut Random, round: usize, i: usize) -> Value {
    let name = node_name(round, i);
    let mut labels = json!({HOST: name, "disk": r.one(&["ssd", "hdd"]), "size": r.one(&["1", "2", "3"])});
    if r.percent(85) {
        labels[ZONE] = json!(r.one(&ZONES));
    }
    let taints: Vec<Value> = r.some(
        12,
        &[
            json!({"key": "k1", "effect": "NoSchedule"}),
            json!({"key": "k2", "value": "v", "effect": "PreferNoSchedule"}),
            json!({"key": "k3", "value": "v", "effect": "NoExecute"}),
            json!({"key": "k4", "effect": "PreferNoSchedule"}),
        ],
    );
    let mut allocatable = json!({
        "cpu": r.one(&["500m", "1", "2", "4", "7900m"]),
        "memory": r.one(&["512Mi", "1Gi", "2Gi", "3000Mi", "8Gi"]),
        "pods": r.one(&["3", "6", "10", "110"]),
    });
    if r.percent(60) {
        allocatable["ephemeral-storage"] = json!(r.one(&["1Gi", "10Gi"]));
    }
    if r.percent(40) {
        allocatable[GPU] = json!(r.one(&["1", "2", "4"]));
    }
    let images: Vec<Value> = r
        .some(40, &IMAGES)
        .into_iter()
        .map(|(name, size)| json!({"names": [name], "sizeBytes": size}))
        .collect();
    let features: Vec<&str> = r.some(50, &["UserNamespacesHostNetworkSupport"]);
    json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": taints, "unschedulable": r.percent(7)},
        "status": {"allocatable": allocatable, "capacity": allocatable, "images": images,
            "declaredFeatures": features},
    })
}

fn selector(r: &mut Random) -> Value {
    match r.below(5) {
        0 => json!({"matchExpressions": [{"key": "app", "operator": "In", "values": r.some(60, &APPS)
            .into_iter().chain(["a"]).collect::<Vec<_>>()}]}),
        1 => json!({"matchExpressions": [{"key": "tier", "operator": r.one(&["Exists", "DoesNotExist"])}]}),
        2 => json!({"matchLabels": {"app": r.one(&APPS)},
            "matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["x"]}]}),
        _ => json!({"matchLabels": {"app": r.one(&APPS)}}),
    }
}

fn term(r: &mut Random) -> Value {
    let mut term = json!({"labelSelector": selector(r), "topologyKey": r.one(&[ZONE, HOST, "disk"])});
    match r.below(6) {
        0 => term["namespaces"] = json!([r.one(&NAMESPACES)]),
        1 => term["namespaceSelector"] = json!({"matchLabels": {"team": r.one(&["d0", "d1", "none"])}}),
        2 => term["namespaceSelector"] = json!({}),
        // A key that the selector has too is refused.
        3 if !term["labelSelector"].to_string().contains("tier") => term["matchLabelKeys"] = json!(["tier"]),
        _ => {}
    }
    term
}

fn weighted(r: &mut Random) -> Value {
    json!({"weight": r.one(&[1, 7, 50, 100]), "podAffinityTerm": term(r)})
}

fn terms(r: &mut Random, hard: usize, soft: usize) -> Value {
    let mut out = json!({});
    if r.percent(hard) {
        let more = r.percent(25);
        out["requiredDuringSchedulingIgnoredDuringExecution"] =
            if more { json!([term(r), term(r)]) } else { json!([term(r)]) };
    }
    if r.percent(soft) {
        let more = r.percent(40);
        out["preferredDuringSchedulingIgnoredDuringExecution"] =
            if more { json!([weighted(r), weighted(r)]) } else { json!([weighted(r)]) };
    }
    out
}

fn requirement(r: &mut Random) -> Value {
    match r.below(6) {
        0 => json!({"key": "disk", "operator": "In", "values": ["ssd"]}),
        1 => json!({"key": "disk", "operator": "NotIn", "values": ["ssd"]}),
        2 => json!({"key": ZONE, "operator": r.one(&["Exists", "DoesNotExist"])}),
        3 => json!({"key": "size", "operator": r.one(&["Gt", "Lt"]), "values": ["2"]}),
        4 => json!({"key": ZONE, "operator": "In", "values": [r.one(&ZONES)]}),
        _ => json!({"key": "size", "operator": "In", "values": ["1", "3"]}),
    }
}

fn node_affinity(r: &mut Random, round: usize, nodes: usize) -> Value {
    let mut out = json!({});
    if r.percent(55) {
        let one = |r: &mut Random| match r.below(6) {
            0 => json!({"matchFields": [{"key": "metadata.name", "operator": r.one(&["In", "NotIn"]),
                "values": [node_name(round, r.below(nodes + 1))]}]}),
            1 => json!({"matchExpressions": [requirement(r), requirement(r)]}),
            _ => json!({"matchExpressions": [requirement(r)]}),
        };
        let all = if r.percent(30) { vec![one(r), one(r)] } else { vec![one(r)] };
        out["requiredDuringSchedulingIgnoredDuringExecution"] = json!({"nodeSelectorTerms": all});
    }
    if r.percent(60) {
        let one = |r: &mut Random| json!({"weight": r.one(&[1, 10, 99]), "preference": {"matchExpressions": [requirement(r)]}});
        out["preferredDuringSchedulingIgnoredDuringExecution"] =
            if r.percent(40) { json!([one(r), one(r)]) } else { json!([one(r)]) };
    }
    out
}

fn spread(r: &mut Random) -> Value {
    let hard = r.percent(55);
    let mut out = json!({
        "maxSkew": r.one(&[1, 1, 2, 3]),
        "topologyKey": r.one(&[ZONE, HOST, "disk"]),
        "whenUnsatisfiable": if hard { "DoNotSchedule" } else { "ScheduleAnyway" },
        "labelSelector": selector(r),
    });
    if hard && r.percent(25) {
        out["minDomains"] = json!(r.one(&[1, 2, 3]));
    }
    if r.percent(30) {
        out["nodeAffinityPolicy"] = json!(r.one(&["Honor", "Ignore"]));
    }
    if r.percent(30) {
        out["nodeTaintsPolicy"] = json!(r.one(&["Honor", "Ignore"]));
    }
    if r.percent(15) && !out["labelSelector"].to_string().contains("tier") {
        out["matchLabelKeys"] = json!(["tier"]);
    }
    out
}

fn requests(r: &mut Random) -> Value {
    let mut out = json!({});
    if r.percent(75) {
        out["cpu"] = json!(r.one(&["1m", "100m", "250m", "500m", "1", "1500m", "0"]));
    }
    if r.percent(65) {
        out["memory"] = json!(r.one(&["1", "64Mi", "200Mi", "500Mi", "1Gi", "2500Mi"]));
    }
    if r.percent(15) {
        out["ephemeral-storage"] = json!(r.one(&["100Mi", "900Mi", "5Gi"]));
    }
    if r.percent(12) {
        out[GPU] = json!(r.one(&["1", "2"]));
    }
    if r.percent(20) {
        out[JUDGED] = json!("1");
    }
    out
}

fn container(r: &mut Random, name: &str) -> Value {
    let requests = requests(r);
    let mut limits = json!({});
    for extended in [GPU, JUDGED] {
        if let Some(amount) = requests.get(extended) {
            limits[extended] = amount.clone();
        }
    }
    let (image, _) = r.one(&IMAGES);
    let image = if r.percent(20) { "example.com/untagged" } else { image };
    let mut out = json!({"name": name, "image": image,
        "resources": {"requests": requests, "limits": limits}});
    if r.percent(15) {
        let mut port = json!({"containerPort": 80, "hostPort": r.one(&[8080, 9090]),
            "protocol": r.one(&["TCP", "UDP"])});
        if r.percent(40) {
            port["hostIP"] = json!(r.one(&["127.0.0.1", "10.0.0.1"]));
        }
        out["ports"] = json!([port]);
    }
    out
}

/// A pod; `namespace` is told apart so that the caller knows where to make it.
fn pod(r: &mut Random, name: &str, namespace: &str, round: usize) -> Value {
    let mut labels = json!({"app": r.one(&APPS)});
    if r.percent(30) {
        labels["tier"] = json!(r.one(&["x", "y"]));
    }
    let mut spec = json!({"containers": [container(r, "c")], "terminationGracePeriodSeconds": 0});
    if r.percent(20) {
        let (first, mut second) = (container(r, "c"), container(r, "d"));
        // One port twice is refused by the API server.
        if first["ports"] == second["ports"] {
            second["ports"] = json!([]);
        }
        spec["containers"] = json!([first, second]);
    }
    if r.percent(15) {
        let mut init = container(r, "i");
        init["ports"] = json!([]);
        if r.percent(50) {
            init["restartPolicy"] = json!("Always");
        }
        spec["initContainers"] = json!([init]);
    }
    if r.percent(50) {
        spec["priorityClassName"] = json!(r.one(&PRIORITIES).0);
    }
    let mut metadata = json!({"name": name, "namespace": namespace, "labels": labels});
    if r.percent(25) {
        let controller = json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("rs{round}"),
            "uid": "00000000-0000-0000-0000-000000000001", "controller": true});
        metadata["ownerReferences"] = json!([controller]);
    }
    json!({"metadata": metadata, "spec": spec})
}

impl Round {
    /// A cluster.
    #[must_use]
    pub fn new(r: &mut Random, number: usize) -> Self {
        let count = 2 + r.below(6);
        let nodes = (0..count).map(|i| node(r, number, i)).collect();
        let mut round = Round { nodes, placed: vec![], objects: vec![], number, claims: vec![] };
        round.storage(r, count);
        round.others(r);
        for i in 0..r.below(22) {
            let namespace = r.one(&NAMESPACES);
            let mut pod = pod(r, &format!("e{number}-{i}"), namespace, number);
            let affinity = json!({"podAffinity": terms(r, 10, 15), "podAntiAffinity": terms(r, 15, 15)});
            if r.percent(35) {
                pod["spec"]["affinity"] = affinity;
            }
            if r.percent(12) {
                round.claim_into(r, &mut pod, true);
            }
            pod["spec"]["nodeName"] = json!(node_name(number, r.below(count)));
            if r.percent(40) {
                let day = 1 + r.below(20);
                pod["status"] = json!({"startTime": format!("2026-01-{day:02}T00:00:00Z")});
            }
            round.placed.push(pod);
        }
        round
    }

    fn others(&mut self, r: &mut Random) {
        let n = self.number;
        for (i, namespace) in NAMESPACES.into_iter().enumerate() {
            if r.percent(40) {
                self.objects.push((
                    "PodDisruptionBudget",
                    json!({
                    "metadata": {"name": format!("b{n}"), "namespace": namespace},
                    "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": r.one(&APPS)}}},
                    "status": {"disruptionsAllowed": r.below(2), "currentHealthy": 1, "desiredHealthy": 1,
                        "expectedPods": 1}}),
                ));
            }
            if r.percent(40) {
                self.objects.push((
                    "Service",
                    json!({
                    "metadata": {"name": format!("s{n}-{i}"), "namespace": namespace},
                    "spec": {"selector": {"app": r.one(&APPS)}, "ports": [{"port": 80}]}}),
                ));
            }
            if r.percent(60) {
                let app = r.one(&APPS);
                self.objects.push((
                    "ReplicaSet",
                    json!({
                    "metadata": {"name": format!("rs{n}"), "namespace": namespace},
                    "spec": {"replicas": 0, "selector": {"matchLabels": {"app": app}},
                        "template": {"metadata": {"labels": {"app": app}},
                            "spec": {"containers": [{"name": "c", "image": "i"}]}}}}),
                ));
            }
        }
    }

    fn storage(&mut self, r: &mut Random, nodes: usize) {
        let n = self.number;
        let driver = format!("csi{n}.example.com");
        let zone =
            |r: &mut Random| json!([{"matchLabelExpressions": [{"key": ZONE, "values": [r.one(&ZONES)]}]}]);
        let mut make = |kind, object| self.objects.push((kind, object));
        make("CSIDriver", json!({"metadata": {"name": driver}, "spec": {"storageCapacity": r.percent(50)}}));
        for (name, provisioner, mode) in [
            ("local", "kubernetes.io/no-provisioner", "WaitForFirstConsumer"),
            ("made", driver.as_str(), "WaitForFirstConsumer"),
            ("now", driver.as_str(), "Immediate"),
        ] {
            let mut class = json!({"metadata": {"name": format!("{name}{n}")}, "provisioner": provisioner,
                "volumeBindingMode": mode});
            if name == "made" && r.percent(40) {
                class["allowedTopologies"] = zone(r);
            }
            make("StorageClass", class);
        }
        if r.percent(60) {
            make(
                "CSIStorageCapacity",
                json!({"metadata": {"name": format!("room{n}"), "namespace": "d0"},
                "storageClassName": format!("made{n}"), "capacity": r.one(&["1Gi", "20Gi"]),
                "nodeTopology": {"matchLabels": {"disk": r.one(&["ssd", "hdd"])}}}),
            );
        }
        for i in 0..nodes {
            if r.percent(50) {
                let mut of = json!({"name": driver, "nodeID": format!("{i}")});
                if r.percent(75) {
                    of["allocatable"] = json!({"count": r.one(&[0, 1, 2])});
                }
                make("CSINode", json!({"metadata": {"name": node_name(n, i)}, "spec": {"drivers": [of]}}));
            }
        }
        let mut claims = Vec::new();
        for i in 0..8 {
            let (volume, claim) = (format!("v{n}-{i}"), format!("c{n}-{i}"));
            let namespace = r.one(&NAMESPACES);
            let kind = r.below(6);
            let class = match kind {
                0 => format!("local{n}"),
                1 => format!("made{n}"),
                2 => format!("now{n}"),
                _ => format!("bound{n}"),
            };
            let mode = if r.percent(15) { "ReadWriteOncePod" } else { "ReadWriteOnce" };
            let mut spec = json!({"accessModes": [mode], "storageClassName": class,
                "resources": {"requests": {"storage": r.one(&["1Gi", "3Gi"])}}});
            let mut annotations = json!({});
            // The volume of a local class waits for its claim; the others' are theirs already.
            if kind == 0 || kind > 2 {
                let mut volume_spec = json!({"capacity": {"storage": r.one(&["1Gi", "2Gi", "5Gi"])},
                    "accessModes": [mode], "storageClassName": class,
                    "csi": {"driver": driver, "volumeHandle": volume}});
                if r.percent(50) {
                    let requirement = json!({"key": r.one(&[ZONE, "disk"]), "operator": "In",
                        "values": [r.one(&["z0", "z1", "ssd"])]});
                    let terms = json!([{"matchExpressions": [requirement]}]);
                    volume_spec["nodeAffinity"] = json!({"required": {"nodeSelectorTerms": terms}});
                }
                let mut labels = json!({});
                if kind == 3 {
                    labels[ZONE] = json!(r.one(&["z0", "z1", "z0__z1"]));
                }
                if kind > 2 {
                    volume_spec["claimRef"] =
                        json!({"namespace": namespace, "name": claim, "kind": "PersistentVolumeClaim"});
                    annotations["pv.kubernetes.io/bind-completed"] = json!("yes");
                    spec["volumeName"] = json!(volume);
                }
                let phase = if kind == 0 { "Available" } else { "Bound" };
                if !r.percent(4) {
                    make(
                        "PersistentVolume",
                        json!({"metadata": {"name": volume, "labels": labels},
                        "spec": volume_spec, "status": {"phase": phase}}),
                    );
                }
            }
            let phase = if r.percent(3) {
                "Lost"
            } else if kind > 2 {
                "Bound"
            } else {
                "Pending"
            };
            make(
                "PersistentVolumeClaim",
                json!({
                "metadata": {"name": claim, "namespace": namespace, "annotations": annotations},
                "spec": spec, "status": {"phase": phase}}),
            );
            claims.push((namespace.to_owned(), claim));
        }
        self.claims = claims;
    }

    /// Gives the pod one or two claims of its namespace; `bound_only` is left to chance by the caller.
    fn claim_into(&self, r: &mut Random, pod: &mut Value, one: bool) {
        let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
        let of: Vec<String> = self
            .claims
            .iter()
            .filter(|(n, _)| *n == namespace)
            .map(|(_, c)| c.clone())
            .chain([format!("missing{}", self.number)])
            .collect();
        let count = if one { 1 } else { 1 + r.below(2) };
        let mut names: Vec<String> = (0..count).map(|_| r.one(&of)).collect();
        names.dedup();
        let volumes: Vec<Value> = names
            .iter()
            .enumerate()
            .map(|(i, c)| json!({"name": format!("v{i}"), "persistentVolumeClaim": {"claimName": c}}))
            .collect();
        pod["spec"]["volumes"] = json!(volumes);
    }

    /// A pod to be placed.
    #[must_use]
    pub fn pending(&self, r: &mut Random, i: usize) -> Value {
        let namespace = r.one(&NAMESPACES);
        let mut pod = pod(r, &format!("p{}-{i}", self.number), namespace, self.number);
        let spec = &mut pod["spec"];
        let other = r.percent(45);
        spec["schedulerName"] = json!(if other { r.one(&profiles::OTHERS) } else { profiles::DEFAULT });
        if r.percent(20) {
            spec["nodeSelector"] = json!({"disk": r.one(&["ssd", "hdd", "none"])});
        }
        let mut affinity = json!({});
        if r.percent(30) {
            affinity["nodeAffinity"] = node_affinity(r, self.number, self.nodes.len());
        }
        if r.percent(25) {
            affinity["podAffinity"] = terms(r, 50, 60);
        }
        if r.percent(25) {
            affinity["podAntiAffinity"] = terms(r, 55, 60);
        }
        spec["affinity"] = affinity;
        if r.percent(35) {
            let tolerations = [
                json!({"key": "k1", "operator": "Exists", "effect": "NoSchedule"}),
                json!({"key": "k2", "operator": "Equal", "value": "v"}),
                json!({"key": "k3", "operator": "Exists"}),
                json!({"operator": "Exists", "effect": "PreferNoSchedule"}),
                json!({"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}),
            ];
            spec["tolerations"] = json!(r.some(45, &tolerations));
        }
        if r.percent(30) {
            let more = r.percent(30);
            let all = if more { vec![spread(r), spread(r)] } else { vec![spread(r)] };
            // The API server takes each key with each action once.
            let key = |c: &Value| (c["topologyKey"].clone(), c["whenUnsatisfiable"].clone());
            let keep = all.len() < 2 || key(&all[0]) != key(&all[1]);
            spec["topologySpreadConstraints"] = json!(if keep { all } else { all[..1].to_vec() });
        }
        if r.percent(5) {
            spec["hostNetwork"] = json!(true);
            spec["hostUsers"] = json!(false);
            // What is on the host's network has its ports there.
            for list in ["containers", "initContainers"] {
                for container in spec[list].as_array_mut().into_iter().flatten() {
                    container["ports"] = json!([]);
                }
            }
        }
        if r.percent(6) {
            let disk = json!({"pdName": "disk", "readOnly": r.percent(50)});
            spec["volumes"] = json!([{"name": "disk", "gcePersistentDisk": disk}]);
        } else if r.percent(25) {
            self.claim_into(r, &mut pod, false);
        }
        pod
    }
}
