//! Limits, as a runtime spec has them.

use super::SpecError;
use crate::features::Features;
use podway_cri::v1::LinuxContainerResources;
use serde_json::{Map, Value, json};

/// `linux.resources` without its devices.
///
/// # Errors
/// [`SpecError::NotSupported`] for a limit that the machine cannot hold.
pub(crate) fn resources_json(
    r: &LinuxContainerResources,
    features: &Features,
) -> Result<Map<String, Value>, SpecError> {
    let (mut cpu, mut memory) = (Map::new(), Map::new());
    let put = |map: &mut Map<String, Value>, key: &str, value: i64| {
        if value != 0 {
            map.insert(key.to_owned(), json!(value));
        }
    };
    put(&mut cpu, "shares", r.cpu_shares);
    put(&mut cpu, "quota", r.cpu_quota);
    put(&mut cpu, "period", r.cpu_period);
    put(&mut memory, "limit", r.memory_limit_in_bytes);
    let swap = match r.memory_swap_limit_in_bytes {
        // Memory and swap together: without a word on it a limited container does not swap.
        0 if features.swap => r.memory_limit_in_bytes,
        // As containerd: where swap is not accounted there is nothing to hold.
        _ if !features.swap => 0,
        limit => limit,
    };
    put(&mut memory, "swap", swap);
    for (key, value) in [("cpus", &r.cpuset_cpus), ("mems", &r.cpuset_mems)] {
        if !value.is_empty() {
            cpu.insert(key.to_owned(), json!(value));
        }
    }
    let mut all = Map::from_iter([("cpu".to_owned(), json!(cpu)), ("memory".to_owned(), json!(memory))]);
    // The kubelet names every size that the machine has, with 0; without the controller that holds by itself.
    if !features.huge_pages && r.hugepage_limits.iter().any(|h| h.limit > 0) {
        return Err(SpecError::NotSupported(
            "hugepage_limits: this machine has no hugetlb controller".to_owned(),
        ));
    }
    if features.huge_pages && !r.hugepage_limits.is_empty() {
        let list = r.hugepage_limits.iter().map(|h| json!({"pageSize": h.page_size, "limit": h.limit}));
        all.insert("hugepageLimits".to_owned(), list.collect());
    }
    if !r.unified.is_empty() {
        if !features.cgroup_v2 {
            return Err(SpecError::NotSupported("unified: this machine has cgroup v1".to_owned()));
        }
        all.insert("unified".to_owned(), json!(r.unified));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use podway_cri::v1::HugepageLimit;

    #[test]
    fn a_limit_that_the_machine_cannot_hold_is_refused_by_name() {
        let v1 = Features::default();
        let all = Features { swap: true, huge_pages: true, cgroup_v2: true, ..v1 };
        let limited = LinuxContainerResources { memory_limit_in_bytes: 5, ..Default::default() };
        assert_eq!(resources_json(&limited, &all).unwrap()["memory"]["swap"], 5);
        assert!(resources_json(&limited, &v1).unwrap()["memory"].get("swap").is_none());
        let pages = |limit| LinuxContainerResources {
            hugepage_limits: vec![HugepageLimit { page_size: "2MB".to_owned(), limit }],
            ..Default::default()
        };
        assert!(resources_json(&pages(0), &v1).unwrap().get("hugepageLimits").is_none());
        assert!(resources_json(&pages(9), &v1).unwrap_err().to_string().contains("hugepage_limits"));
        assert_eq!(resources_json(&pages(9), &all).unwrap()["hugepageLimits"][0]["limit"], 9);
        let unified = LinuxContainerResources {
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        };
        assert!(resources_json(&unified, &v1).unwrap_err().to_string().contains("unified"));
        assert_eq!(resources_json(&unified, &all).unwrap()["unified"]["memory.high"], "1");
    }
}
