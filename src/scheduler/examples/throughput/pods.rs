//! The pods of each workload.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

/// The workloads.
pub(crate) const WORKLOADS: &[&str] = &["basic", "anti-affinity", "affinity", "spread"];

fn required(kind: &str, key: &str) -> Value {
    let term = json!({"topologyKey": key, "labelSelector": {"matchLabels": {"app": "web"}}});
    json!({"affinity": {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}})
}

/// A pod of a workload, for a scheduler. It tolerates all: nobody keeps these nodes Ready.
pub(crate) fn pod(name: &str, scheduler: &str, workload: &str) -> Pod {
    let more = match workload {
        "anti-affinity" => required("podAntiAffinity", "kubernetes.io/hostname"),
        "affinity" => required("podAffinity", "topology.kubernetes.io/zone"),
        "spread" => json!({"topologySpreadConstraints": [{"maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule",
            "topologyKey": "topology.kubernetes.io/zone", "labelSelector": {"matchLabels": {"app": "web"}}}]}),
        _ => json!({}),
    };
    let resources = json!({"requests": {"cpu": "100m", "memory": "50Mi"}});
    let mut spec = json!({"schedulerName": scheduler, "tolerations": [{"operator": "Exists"}],
        "containers": [{"name": "c", "image": "none", "resources": resources}]});
    if let (Some(spec), Some(more)) = (spec.as_object_mut(), more.as_object()) {
        spec.extend(more.clone());
    }
    let meta = json!({"name": name, "labels": {"app": "web"}});
    serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}))
        .unwrap()
}
