//! What a pod is given and what it asks for. Formulas are the kubelet's (pkg/kubelet/cm/helpers_linux.go,
//! k8s.io/component-helpers/resource).

use crate::env::quantity;
use crate::pod::resources;
use k8s_openapi::api::core::v1 as api;
use std::collections::BTreeMap;

/// A pod's share of the machine: what its cgroup is set to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodLimits {
    /// CPU requests as cgroup v1 shares.
    pub cpu_shares: i64,
    /// CPU limit in µs per 100 ms; `None` unless every container has one.
    pub cpu_quota: Option<i64>,
    /// Memory limit in bytes; `None` unless every container has one.
    pub memory: Option<i64>,
}

/// The limits of a pod: the larger of what its containers ask for together and what any one init
/// container asks for alone; sidecars add up with the containers.
#[must_use]
pub fn limits(spec: &api::PodSpec) -> PodLimits {
    let sum = |which: fn(&api::ResourceRequirements) -> Option<&Amounts>, key: &str| total(spec, which, key);
    let requests: fn(&api::ResourceRequirements) -> Option<&Amounts> = |r| r.requests.as_ref();
    let limits: fn(&api::ResourceRequirements) -> Option<&Amounts> = |r| r.limits.as_ref();
    let cpu = sum(requests, "cpu").0;
    let (cpu_limit, cpu_limited) = sum(limits, "cpu");
    let (memory, memory_limited) = sum(limits, "memory");
    PodLimits {
        cpu_shares: resources::shares(cpu),
        cpu_quota: (cpu_limited && cpu_limit > 0).then(|| resources::quota(cpu_limit)),
        memory: (memory_limited && memory > 0).then(|| i64::try_from(memory).unwrap_or(i64::MAX)),
    }
}

/// What a pod asks of its node: millicores and bytes.
#[must_use]
pub fn requests(spec: &api::PodSpec) -> (i128, i128) {
    (total(spec, |r| r.requests.as_ref(), "cpu").0, total(spec, |r| r.requests.as_ref(), "memory").0)
}

type Amounts = BTreeMap<String, k8s_openapi::apimachinery::pkg::api::resource::Quantity>;

/// The sum (in milli for cpu, in units else), and whether every regular container states it.
fn total(
    spec: &api::PodSpec,
    which: fn(&api::ResourceRequirements) -> Option<&Amounts>,
    key: &str,
) -> (i128, bool) {
    let of = |c: &api::Container| {
        let text = &c.resources.as_ref().and_then(which)?.get(key)?.0;
        if key == "cpu" { quantity::milli(text) } else { quantity::value(text) }
    };
    let mut sum: i128 = spec.containers.iter().filter_map(of).sum();
    let mut all = spec.containers.iter().all(|c| of(c).is_some_and(|v| v > 0));
    let (mut sidecars, mut peak) = (0, 0);
    for c in spec.init_containers.iter().flatten() {
        let own = of(c).unwrap_or(0);
        if c.restart_policy.as_deref() == Some("Always") {
            sidecars += own;
            all &= own > 0;
        } else {
            peak = peak.max(sidecars + own);
        }
    }
    sum = (sum + sidecars).max(peak);
    // What the pod states for itself goes before what its containers add up to.
    let own = spec.resources.as_ref().and_then(which).and_then(|list| list.get(key));
    if let Some(own) =
        own.and_then(|q| if key == "cpu" { quantity::milli(&q.0) } else { quantity::value(&q.0) })
    {
        (sum, all) = (own, true);
    }
    let overhead = spec.overhead.as_ref().and_then(|o| o.get(key));
    let overhead =
        overhead.and_then(|q| if key == "cpu" { quantity::milli(&q.0) } else { quantity::value(&q.0) });
    (sum + overhead.unwrap_or(0), all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> api::PodSpec {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_pods_limits_are_what_its_containers_add_up_to() {
        let with = |requests, limits| serde_json::json!({"name": "c", "resources": {"requests": requests, "limits": limits}});
        let got = limits(&spec(serde_json::json!({
            "containers": [
                with(serde_json::json!({"cpu": "100m"}), serde_json::json!({"cpu": "200m", "memory": "10Mi"})),
                with(serde_json::json!({"cpu": "400m"}), serde_json::json!({"cpu": "300m", "memory": "20Mi"}))],
            "initContainers": [with(serde_json::json!({"cpu": "1"}), serde_json::json!({"memory": "5Mi"}))]})));
        assert_eq!(got, PodLimits { cpu_shares: 1024, cpu_quota: Some(50_000), memory: Some(30 << 20) });
        let got = limits(&spec(serde_json::json!({"containers": [{"name": "c"}]})));
        assert_eq!(got, PodLimits { cpu_shares: 2, cpu_quota: None, memory: None });
        let got = limits(&spec(serde_json::json!({"containers": [{"name": "c"}],
            "resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Mi"}}})));
        assert_eq!(
            got,
            PodLimits { cpu_shares: 1024, cpu_quota: None, memory: Some(1 << 20) },
            "what a pod states for itself goes before"
        );
    }
}
