//! In-place resize: what a pod wants, what the node has given it, and what its cgroups have. Pure.
//!
//! `spec` says what is wanted. What was given (the allocation) is what the pod is run with, and the
//! status tells it, so that a restarted agent goes on from there (upstream keeps a checkpoint,
//! pkg/kubelet/allocation/state).

use crate::pod::ledger::Denied;
use crate::pod::model::{Pod, Role};
use k8s_openapi::api::core::v1 as api;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Resources by container.
pub type Given = BTreeMap<String, api::ResourceRequirements>;

/// What became of the last wish.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resize {
    /// Why what is wanted is not given.
    pub pending: Option<Denied>,
    /// What is given is being done; with why it has not come to its end.
    pub progress: Option<String>,
    /// What the containers' cgroups have, where that is not what is given.
    pub actual: Given,
    /// Containers that get what is given with their next instance, and the one that goes for it.
    pub replaced: BTreeMap<String, String>,
    /// Whether the pod's own cgroup has what is given.
    pub settled: bool,
}

/// What each container asks for in `spec`.
#[must_use]
pub fn wanted(spec: &api::PodSpec) -> Given {
    let all = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    all.map(|c| (c.name.clone(), c.resources.clone().unwrap_or_default())).collect()
}

/// What a pod that runs already was given, by its status; what it wants where that does not tell.
#[must_use]
pub fn given(pod: &api::Pod) -> Given {
    let mut all = pod.spec.as_ref().map(wanted).unwrap_or_default();
    let statuses = pod.status.iter().flat_map(|s| {
        s.container_statuses.iter().flatten().chain(s.init_container_statuses.iter().flatten())
    });
    for status in statuses {
        let Some(resources) = status.resources.as_ref().filter(|_| status.allocated_resources.is_some())
        else {
            continue;
        };
        if let Some(own) = all.get_mut(&status.name) {
            own.requests.clone_from(&status.allocated_resources);
            own.limits.clone_from(&resources.limits);
        }
    }
    all
}

/// The object as the node runs it: its containers have what was given.
#[must_use]
pub fn with(object: &Arc<api::Pod>, given: &Given) -> Arc<api::Pod> {
    if object.spec.as_ref().map(wanted).as_ref() == Some(given) {
        return Arc::clone(object);
    }
    let mut own = (**object).clone();
    if let Some(spec) = own.spec.as_mut() {
        for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
            if let Some(resources) = given.get(&container.name) {
                container.resources = Some(resources.clone());
            }
        }
    }
    Arc::new(own)
}

/// Whether going from `old` to `new` wants a new container, by its `resizePolicy`.
#[must_use]
pub fn restarts(
    container: &api::Container,
    old: &api::ResourceRequirements,
    new: &api::ResourceRequirements,
) -> bool {
    let of =
        |list: &Option<BTreeMap<String, _>>, name: &str| list.as_ref().and_then(|l| l.get(name).cloned());
    container.resize_policy.iter().flatten().any(|policy| {
        let name = policy.resource_name.as_str();
        policy.restart_policy == "RestartContainer"
            && (of(&old.requests, name) != of(&new.requests, name)
                || of(&old.limits, name) != of(&new.limits, name))
    })
}

/// Whether a container's resources can be changed while it is there: what runs to its end cannot.
#[must_use]
pub fn resizable(pod: &Pod, name: &str) -> bool {
    pod.container(name).is_some_and(|c| matches!(c.role, Role::App | Role::Sidecar))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn object(cpu: &str) -> Arc<api::Pod> {
        let pod = json!({"spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu}},
            "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "NotRequired"},
                {"resourceName": "memory", "restartPolicy": "RestartContainer"}]}, {"name": "d", "image": "i"}]},
            "status": {"containerStatuses": [{"name": "c", "image": "i", "imageID": "i", "ready": true, "restartCount": 0,
                "allocatedResources": {"cpu": "1"}, "resources": {"requests": {"cpu": "1"}, "limits": {"cpu": "2"}}}]}});
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn a_pod_is_run_with_what_it_was_given() {
        let wish = object("3");
        let given = given(&wish);
        assert_eq!(
            serde_json::to_value(&given).unwrap()["c"],
            json!({"requests": {"cpu": "1"}, "limits": {"cpu": "2"}})
        );
        let own = with(&wish, &given);
        assert_eq!(wanted(own.spec.as_ref().unwrap()), given);
        assert!(Arc::ptr_eq(&own, &with(&own, &given)), "nothing is made anew for nothing");
    }

    #[test]
    fn the_policy_of_what_changes_decides_on_a_restart() {
        let pod = object("1");
        let container = &pod.spec.as_ref().unwrap().containers[0];
        let make = |v| serde_json::from_value::<api::ResourceRequirements>(v).unwrap();
        let old = make(json!({"requests": {"cpu": "1", "memory": "1Mi"}}));
        assert!(!restarts(container, &old, &make(json!({"requests": {"cpu": "2", "memory": "1Mi"}}))));
        assert!(restarts(container, &old, &make(json!({"requests": {"cpu": "1", "memory": "2Mi"}}))));
    }
}
