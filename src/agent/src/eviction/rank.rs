//! Which pod goes first, and what it is told (`pkg/kubelet/eviction/helpers.go`). Pure.
//!
//! The order: who takes more than was asked for, then who matters least, then who takes most beyond
//! what was asked for. A pod of which nothing is known goes before one that is known.

use super::signals::{Disk, Met, Resource};
use crate::env::quantity;
use crate::stats::types::{Container, Fs, Pod as Usage};
use k8s_openapi::api::core::v1::Pod;
use std::cmp::Reverse;
use std::fmt::Write as _;

/// `system-cluster-critical` and above.
const CRITICAL: i32 = 2_000_000_000;

/// Whether the pod must not be evicted (`IsCriticalPod`).
#[must_use]
pub fn critical(pod: &Pod) -> bool {
    let annotations = pod.metadata.annotations.as_ref();
    let has = |key: &str| annotations.is_some_and(|a| a.contains_key(key));
    let source = annotations.and_then(|a| a.get("kubernetes.io/config.source"));
    has("kubernetes.io/config.mirror")
        || source.is_some_and(|s| s != "api")
        || pod.spec.as_ref().and_then(|s| s.priority).is_some_and(|p| p >= CRITICAL)
}

/// What all of the pod asks for of `resource`.
fn request(pod: &Pod, resource: Resource) -> i128 {
    let Some(spec) = &pod.spec else { return 0 };
    if resource == Resource::Memory {
        return crate::cgroups::requests(spec).1;
    }
    let of = |c: &k8s_openapi::api::core::v1::Container| container_request(c, resource);
    let apps: i128 = spec.containers.iter().map(of).sum();
    let init = spec.init_containers.iter().flatten().map(of).max().unwrap_or(0);
    apps.max(init)
}

fn container_request(c: &k8s_openapi::api::core::v1::Container, resource: Resource) -> i128 {
    let requests = c.resources.as_ref().and_then(|r| r.requests.as_ref());
    requests.and_then(|r| r.get(resource.name())).and_then(|q| quantity::value(&q.0)).unwrap_or(0)
}

fn used(fs: Option<&Fs>, resource: Resource) -> i128 {
    let value = fs.and_then(|fs| if resource == Resource::Inodes { fs.inodes_used } else { fs.used_bytes });
    i128::from(value.unwrap_or(0))
}

/// What the pod takes of what is short. `split`: images have a disk of their own.
fn taken(usage: &Usage, met: &Met, split: bool) -> i128 {
    match met.resource {
        Resource::Memory => i128::from(usage.memory.and_then(|m| m.working_set_bytes).unwrap_or(0)),
        Resource::Pids => i128::from(usage.process_stats.map_or(0, |p| p.process_count)),
        resource => {
            let roots = || usage.containers.iter().map(|c| used(c.rootfs.as_ref(), resource)).sum::<i128>();
            let logs = || usage.containers.iter().map(|c| used(c.logs.as_ref(), resource)).sum::<i128>();
            let local = usage.volumes.iter().filter(|v| v.fs.capacity_bytes.is_some());
            let volumes = || local.map(|v| used(Some(&v.fs), resource)).sum::<i128>();
            match met.disk {
                Some(Disk::Image) if split => roots(),
                Some(Disk::Node) if split => logs() + volumes(),
                _ => roots() + logs() + volumes(),
            }
        }
    }
}

/// Puts the pods into the order in which they go.
pub fn rank(pods: &mut [(&Pod, Option<&Usage>)], met: &Met, split: bool) {
    pods.sort_by_key(|(pod, usage)| {
        let priority = pod.spec.as_ref().and_then(|s| s.priority).unwrap_or(0);
        let Some(usage) = usage else { return (false, Reverse(true), priority, Reverse(0)) };
        let taken = taken(usage, met, split);
        let (over, beyond) = match met.resource {
            Resource::Pids => (true, taken),
            resource => {
                let asked = request(pod, resource);
                (taken > asked, taken - asked)
            }
        };
        (true, Reverse(over), priority, Reverse(beyond))
    });
}

/// Bytes as Go's `resource.Quantity` has them in `BinarySI`.
#[must_use]
pub fn binary(bytes: i128) -> String {
    let (mut number, mut at) = (bytes, 0);
    let units = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    while number != 0 && number % 1024 == 0 && at + 1 < units.len() {
        (number, at) = (number / 1024, at + 1);
    }
    format!("{number}{}", units[at])
}

/// The message of an eviction for `met`.
#[must_use]
pub fn message(pod: &Pod, usage: Option<&Usage>, met: &Met) -> String {
    let resource = met.resource;
    let figure = |n: i128| match resource {
        Resource::Memory | Resource::Storage => binary(n),
        Resource::Inodes | Resource::Pids => n.to_string(),
    };
    let mut text = format!(
        "The node was low on resource: {}. Threshold quantity: {}, available: {}. ",
        resource.name(),
        figure(met.quantity.into()),
        match resource {
            // As observed, whole Ki: upstream's figure comes from meminfo too.
            Resource::Memory | Resource::Storage => format!("{}Ki", met.available / 1024),
            Resource::Inodes | Resource::Pids => met.available.to_string(),
        }
    );
    let of = |c: &Container| match resource {
        Resource::Memory => c.memory.and_then(|m| m.working_set_bytes).map(i128::from),
        Resource::Storage => c
            .rootfs
            .and_then(|r| r.used_bytes)
            .zip(c.logs.and_then(|l| l.used_bytes))
            .map(|(a, b)| i128::from(a) + i128::from(b)),
        Resource::Inodes | Resource::Pids => None,
    };
    let Some(spec) = &pod.spec else { return text };
    for stats in usage.iter().flat_map(|u| &u.containers) {
        let mut all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let Some(container) = all.find(|c| c.name == stats.name) else { continue };
        let asked = container_request(container, resource);
        if let Some(used) = of(stats).filter(|used| *used > asked) {
            let _ = write!(
                text,
                "Container {} was using {}, request is {}, has larger consumption of {}. ",
                stats.name,
                binary(used),
                binary(asked),
                resource.name()
            );
        }
    }
    text
}

/// Why a pod goes for what it takes of the disk itself (`localStorageEviction`), whatever the node
/// has left.
#[must_use]
pub fn over_limit(pod: &Pod, usage: &Usage, split: bool) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let limit =
        |quantity: &k8s_openapi::apimachinery::pkg::api::resource::Quantity| quantity::value(&quantity.0);
    for volume in spec.volumes.iter().flatten() {
        let Some(size) = volume.empty_dir.as_ref().and_then(|e| e.size_limit.as_ref()) else { continue };
        let taken = usage.volumes.iter().find(|v| v.name == volume.name).and_then(|v| v.fs.used_bytes);
        if limit(size).zip(taken).is_some_and(|(most, taken)| most > 0 && i128::from(taken) > most) {
            return Some(format!(
                "Usage of EmptyDir volume {:?} exceeds the limit {:?}. ",
                volume.name, size.0
            ));
        }
    }
    let of = |c: &k8s_openapi::api::core::v1::Container| {
        limit(c.resources.as_ref()?.limits.as_ref()?.get(Resource::Storage.name())?).filter(|n| *n != 0)
    };
    let all: Vec<i128> = spec.containers.iter().filter_map(of).collect();
    let total: i128 = all.iter().sum();
    let taken = used(usage.ephemeral_storage.as_ref(), Resource::Storage);
    // A container without a limit leaves the pod without one.
    if !all.is_empty() && all.len() == spec.containers.len() && taken > total {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            binary(total)
        ));
    }
    for stats in &usage.containers {
        let most = spec.containers.iter().find(|c| c.name == stats.name).and_then(of);
        let root = if split { 0 } else { used(stats.rootfs.as_ref(), Resource::Storage) };
        let taken = used(stats.logs.as_ref(), Resource::Storage) + root;
        if let Some(most) = most.filter(|most| *most < taken) {
            return Some(format!(
                "Container {} exceeded its local ephemeral storage limit {:?}. ",
                stats.name,
                binary(most)
            ));
        }
    }
    None
}

/// Whether the pod has a limit of its own on the disk, so that it must be looked at.
#[must_use]
pub fn limited(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let volumes = spec.volumes.iter().flatten();
    let containers = spec.containers.iter().filter_map(|c| c.resources.as_ref()?.limits.as_ref());
    volumes.filter_map(|v| v.empty_dir.as_ref()).any(|e| e.size_limit.is_some())
        || containers.into_iter().any(|l| l.contains_key(Resource::Storage.name()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::types::{Memory, Processes, Volume};
    use serde_json::{Value, json};

    fn pod(name: &str, priority: i32, memory: &str) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"priority": priority,
            "containers": [{"name": "c", "resources": {"requests": {"memory": memory}}}]}}))
        .unwrap()
    }

    fn takes(bytes: u64) -> Usage {
        let memory = Some(Memory { working_set_bytes: Some(bytes), ..Memory::default() });
        Usage {
            memory,
            containers: vec![Container { name: "c".into(), memory, ..Container::default() }],
            ..Usage::default()
        }
    }

    fn short(resource: Resource, disk: Option<Disk>) -> Met {
        Met { signal: "x", resource, disk, quantity: 100 << 20, available: 50 << 20, soft: false }
    }

    #[test]
    fn over_request_then_priority_then_usage() {
        let pods = [
            pod("modest", 0, "1Gi"),
            pod("over-important", 10, "0"),
            pod("over-small", 0, "10Mi"),
            pod("over-big", 0, "10Mi"),
            pod("unknown", 100, "0"),
        ];
        let usages = [takes(500 << 20), takes(900 << 20), takes(20 << 20), takes(300 << 20)];
        let mut all: Vec<(&Pod, Option<&Usage>)> =
            pods.iter().enumerate().map(|(n, p)| (p, usages.get(n))).collect();
        rank(&mut all, &short(Resource::Memory, None), false);
        let names: Vec<&str> = all.iter().map(|(p, _)| p.metadata.name.as_deref().unwrap()).collect();
        assert_eq!(names, ["unknown", "over-big", "over-small", "over-important", "modest"]);
    }

    #[test]
    fn tasks_by_priority_then_number_and_disks_by_what_lies_on_them() {
        let with = |n| Usage { process_stats: Some(Processes { process_count: n }), ..Usage::default() };
        let (pods, usages) =
            ([pod("a", 1, "0"), pod("b", 0, "0"), pod("c", 0, "0")], [with(90), with(5), with(9)]);
        let mut all: Vec<_> = pods.iter().zip(usages.iter().map(Some)).collect();
        rank(&mut all, &short(Resource::Pids, None), false);
        let names: Vec<&str> = all.iter().map(|(p, _)| p.metadata.name.as_deref().unwrap()).collect();
        assert_eq!(names, ["c", "b", "a"]);
        let fs = |bytes| Some(Fs { used_bytes: Some(bytes), capacity_bytes: Some(1), ..Fs::default() });
        let usage = Usage {
            containers: vec![Container { rootfs: fs(1), logs: fs(10), ..Container::default() }],
            volumes: vec![
                Volume { fs: fs(100).unwrap(), name: "disk".into() },
                Volume { fs: Fs { used_bytes: Some(9000), ..Fs::default() }, name: "tmpfs".into() },
            ],
            ..Usage::default()
        };
        let of = |disk, split| taken(&usage, &short(Resource::Storage, Some(disk)), split);
        assert_eq!([of(Disk::Node, false), of(Disk::Image, false)], [111, 111]);
        assert_eq!([of(Disk::Node, true), of(Disk::Image, true)], [110, 1]);
    }

    #[test]
    fn the_kubelets_words() {
        let pod = pod("p", 0, "10Mi");
        assert_eq!(
            message(&pod, Some(&takes(12 << 20)), &short(Resource::Memory, None)),
            "The node was low on resource: memory. Threshold quantity: 100Mi, available: 51200Ki. \
             Container c was using 12Mi, request is 10Mi, has larger consumption of memory. "
        );
        for (bytes, text) in
            [(0, "0"), (1000, "1000"), (1024, "1Ki"), (1536 * 1024, "1536Ki"), (1 << 30, "1Gi")]
        {
            assert_eq!(binary(bytes), text);
        }
    }

    #[test]
    fn a_pod_goes_for_what_it_takes_itself() {
        let read =
            |spec: Value| -> Pod { serde_json::from_value(json!({"metadata": {}, "spec": spec})).unwrap() };
        let fs = |bytes| Fs { used_bytes: Some(bytes), ..Fs::default() };
        let usage = Usage {
            containers: vec![Container {
                name: "c".into(),
                rootfs: Some(fs(60)),
                logs: Some(fs(50)),
                ..Container::default()
            }],
            volumes: vec![Volume { fs: fs(2000), name: "e".into() }],
            ephemeral_storage: Some(fs(2110)),
            ..Usage::default()
        };
        let volume =
            read(json!({"containers": [], "volumes": [{"name": "e", "emptyDir": {"sizeLimit": "1Ki"}}]}));
        assert!(limited(&volume));
        assert_eq!(
            over_limit(&volume, &usage, false).as_deref(),
            Some("Usage of EmptyDir volume \"e\" exceeds the limit \"1Ki\". ")
        );
        let limit = |q: &str| json!({"name": "c", "resources": {"limits": {"ephemeral-storage": q}}});
        assert_eq!(
            over_limit(&read(json!({"containers": [limit("2Ki")]})), &usage, false).as_deref(),
            Some("Pod ephemeral local storage usage exceeds the total limit of containers 2Ki. ")
        );
        let beside = read(json!({"containers": [limit("100"), {"name": "d"}]}));
        assert_eq!(
            over_limit(&beside, &usage, false).as_deref(),
            Some("Container c exceeded its local ephemeral storage limit \"100\". ")
        );
        assert_eq!(over_limit(&beside, &usage, true), None, "the layer lies on the images' disk");
        assert!(!limited(&read(
            json!({"containers": [{"name": "d"}], "volumes": [{"name": "e", "emptyDir": {}}]})
        )));
    }

    #[test]
    fn who_is_critical() {
        assert!(critical(&pod("p", CRITICAL, "0")) && !critical(&pod("p", CRITICAL - 1, "0")));
        let mut mirror = pod("p", 0, "0");
        mirror.metadata.annotations =
            Some([("kubernetes.io/config.mirror".to_owned(), String::new())].into());
        assert!(critical(&mirror));
    }
}
