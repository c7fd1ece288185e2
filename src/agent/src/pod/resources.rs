//! Requests and limits as the kernel takes them: the kubelet's formulas.

use crate::env::quantity;
use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use podway_cri::v1;
use std::collections::BTreeMap;

/// CPU quota period, in µs.
const PERIOD: i64 = 100_000;

fn clamp(value: i128) -> i64 {
    i64::try_from(value.max(0)).unwrap_or(i64::MAX)
}

/// Millicores as cgroup v1 shares.
#[must_use]
pub fn shares(milli: i128) -> i64 {
    clamp(milli * 1024 / 1000).clamp(2, 262_144)
}

/// Millicores as a quota in µs per period of 100 ms; the kernel takes no less than 1 ms.
#[must_use]
pub fn quota(milli: i128) -> i64 {
    clamp(milli * 100).max(1000)
}

/// The CRI resources of a container. `qos` is the pod's QoS class, `capacity` the node's memory in
/// bytes. An unset CPU request takes the limit, as the API server defaults it.
#[must_use]
pub fn container(spec: &api::Container, qos: &str, capacity: i64) -> v1::LinuxContainerResources {
    let resources = spec.resources.as_ref();
    let request = |k: &str| resources.and_then(|r| r.requests.as_ref()).and_then(|m| m.get(k));
    let limit = |k: &str| resources.and_then(|r| r.limits.as_ref()).and_then(|m| m.get(k));
    let cpu_limit = limit("cpu").and_then(|q| quantity::milli(&q.0));
    let cpu = request("cpu").and_then(|q| quantity::milli(&q.0)).or(cpu_limit).unwrap_or(0);
    let memory = request("memory").and_then(|q| quantity::value(&q.0)).unwrap_or(0);
    v1::LinuxContainerResources {
        cpu_period: PERIOD,
        cpu_quota: cpu_limit.filter(|l| *l > 0).map_or(0, quota),
        cpu_shares: shares(cpu),
        memory_limit_in_bytes: limit("memory").and_then(|q| quantity::value(&q.0)).map_or(0, clamp),
        oom_score_adj: oom_score(qos, clamp(memory), capacity),
        ..Default::default()
    }
}

/// `oom_score_adj`: Guaranteed −997, `BestEffort` 1000, Burstable between 3 and 999 by its share.
#[must_use]
pub fn oom_score(qos: &str, request: i64, capacity: i64) -> i64 {
    match qos {
        "Guaranteed" => -997,
        "BestEffort" => 1000,
        _ => (1000 - clamp(1000 * i128::from(request) / i128::from(capacity.max(1)))).clamp(3, 999),
    }
}

/// A pod's QoS class, for one that no API server gave it (`ComputePodQOS`, pkg/apis/core/v1/helper/qos).
#[must_use]
pub fn qos_class(spec: &api::PodSpec) -> &'static str {
    type Sums = BTreeMap<&'static str, i128>;
    let (mut requests, mut limits, mut limited) = (Sums::new(), Sums::new(), true);
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let of_containers: Vec<_> = containers.map(|c| c.resources.as_ref()).collect();
    // What the pod states for itself goes before what its containers say.
    let all = if spec.resources.is_some() { vec![spec.resources.as_ref()] } else { of_containers };
    for one in all {
        for name in ["cpu", "memory"] {
            let of = |list: Option<&BTreeMap<String, Quantity>>| {
                list.and_then(|l| l.get(name)).and_then(|q| quantity::milli(&q.0)).filter(|n| *n > 0)
            };
            if let Some(n) = of(one.and_then(|r| r.requests.as_ref())) {
                *requests.entry(name).or_default() += n;
            }
            match of(one.and_then(|r| r.limits.as_ref())) {
                Some(n) => *limits.entry(name).or_default() += n,
                None => limited = false,
            }
        }
    }
    match (requests.is_empty() && limits.is_empty(), limited && requests == limits) {
        (true, _) => "BestEffort",
        (false, true) => "Guaranteed",
        (false, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_is_what_the_api_server_would_say() {
        let class = |containers: serde_json::Value| {
            qos_class(&serde_json::from_value(serde_json::json!({ "containers": containers })).unwrap())
        };
        let with = |requests: serde_json::Value, limits: serde_json::Value| serde_json::json!({"name": "c", "resources": {"requests": requests, "limits": limits}});
        let both = serde_json::json!({"cpu": "1", "memory": "1Gi"});
        let same = serde_json::json!({"cpu": "1000m", "memory": "1Gi"});
        let none = serde_json::json!({});
        assert_eq!(class(serde_json::json!([{"name": "c"}])), "BestEffort");
        assert_eq!(class(serde_json::json!([with(both.clone(), same.clone())])), "Guaranteed");
        assert_eq!(class(serde_json::json!([with(both.clone(), same), {"name": "d"}])), "Burstable");
        assert_eq!(class(serde_json::json!([with(both.clone(), none.clone())])), "Burstable");
        assert_eq!(class(serde_json::json!([with(none.clone(), both)])), "Burstable");
        let disk = serde_json::json!({"ephemeral-storage": "1Gi"});
        assert_eq!(class(serde_json::json!([with(disk, none)])), "BestEffort");
    }

    #[test]
    fn the_kubelets_formulas_hold() {
        let spec = serde_json::from_value(serde_json::json!({"name": "c", "resources": {
            "requests": {"cpu": "250m", "memory": "64Mi"}, "limits": {"cpu": "500m", "memory": "128Mi"}}}));
        let got = container(&spec.unwrap(), "Burstable", 128 << 20);
        assert_eq!((got.cpu_shares, got.cpu_quota, got.memory_limit_in_bytes), (256, 50_000, 128 << 20));
        assert_eq!(got.oom_score_adj, 500);
        assert_eq!((oom_score("Guaranteed", 1, 2), oom_score("BestEffort", 0, 2)), (-997, 1000));
    }
}
