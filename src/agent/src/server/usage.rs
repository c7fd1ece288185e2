//! `/stats/summary`, `/metrics/resource`, `/metrics/cadvisor`, `/metrics/probes`, `/runningpods`: what
//! is used and what runs, asked of the runtime when somebody asks here.

use super::Shared;
use crate::cri::CallError;
use crate::pod::cri_config::{POD_NAME, POD_NAMESPACE, POD_UID};
use crate::pod::observe::CONTAINER_NAME;
use crate::stats::look::{Depth, PATIENCE, StatsError};
use crate::stats::{Look, expose};
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Json, Response};
use podway_cri::v1;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::Arc;
use tonic::Code;

/// As the kubelet answers an error of its own (`handleError`).
fn failed(what: &dyn std::fmt::Display) -> Response {
    (StatusCode::INTERNAL_SERVER_ERROR, format!("Internal Error: {what}")).into_response()
}

fn text(text: String) -> Response {
    ([(CONTENT_TYPE, expose::CONTENT_TYPE)], text).into_response()
}

async fn look(shared: &Shared, depth: Depth) -> Result<Look, String> {
    let look = shared.parts.stats.look(shared.parts.pods.as_ref(), depth);
    match tokio::time::timeout(PATIENCE, look).await {
        Ok(Ok(look)) => Ok(look),
        Ok(Err(StatsError::Runtime(error))) if error.code == Code::Unimplemented => {
            Err(format!("not supported: the runtime has no stats over CRI ({error})"))
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("the runtime does not tell in {} s", PATIENCE.as_secs())),
    }
}

pub(super) async fn summary(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery) -> Response {
    let query = match super::pairs(query.as_deref()) {
        Ok(query) => query,
        Err(refusal) => return *refusal,
    };
    let only = query.iter().any(|(key, value)| key == "only_cpu_and_memory" && value == "true");
    match look(&shared, if only { Depth::Usage } else { Depth::Disk }).await {
        Ok(look) => Json(look.summary).into_response(),
        Err(error) => failed(&error),
    }
}

pub(super) async fn resource(State(shared): State<Arc<Shared>>) -> Response {
    let seen = look(&shared, Depth::Usage).await;
    if let Err(error) = &seen {
        tracing::warn!(error, "what pods use is not known");
    }
    text(expose::resource(seen.ok().as_ref().map(|look| &look.summary)))
}

pub(super) async fn cadvisor(State(shared): State<Arc<Shared>>) -> Response {
    let metrics = tokio::time::timeout(PATIENCE, shared.parts.stats.source().sandbox_metrics()).await;
    let own = match metrics {
        Ok(Ok((descriptors, pods))) if !descriptors.is_empty() => expose::of_runtime(&descriptors, &pods),
        Ok(Err(CallError { code: Code::Unimplemented, .. }) | Ok(_)) => {
            match look(&shared, Depth::Disk).await {
                Ok(look) => expose::of_summary(&look.summary),
                Err(error) => return failed(&error),
            }
        }
        Ok(Err(error)) => return failed(&error),
        Err(_) => return failed(&"the runtime does not tell its metrics"),
    };
    text(machine(&shared) + &own)
}

fn machine(shared: &Shared) -> String {
    let node = shared.parts.node.borrow().node.clone();
    let capacity = node.and_then(|n| n.status.as_ref()?.capacity.clone()).unwrap_or_default();
    let value = |name: &str| capacity.get(name).and_then(|q| crate::env::quantity::value(&q.0));
    match (value("cpu"), value("memory")) {
        (Some(cpus), Some(memory)) => expose::machine(
            u64::try_from(cpus).unwrap_or_default(),
            u64::try_from(memory).unwrap_or_default(),
        ),
        _ => String::new(),
    }
}

pub(super) async fn probes(State(shared): State<Arc<Shared>>) -> Response {
    text(shared.parts.pods.probes())
}

pub(super) async fn running(State(shared): State<Arc<Shared>>) -> Response {
    match tokio::time::timeout(PATIENCE, shared.parts.stats.source().holding()).await {
        Ok(Ok((sandboxes, containers))) => Json(pod_list(&sandboxes, &containers)).into_response(),
        Ok(Err(error)) => failed(&error),
        Err(_) => failed(&"the runtime does not tell what it holds"),
    }
}

/// What runs, as the kubelet's `/runningpods` has it: names and containers, no more.
fn pod_list(sandboxes: &[v1::PodSandbox], containers: &[v1::Container]) -> Value {
    let mut pods: BTreeMap<&str, (&str, &str, Vec<Value>)> = BTreeMap::new();
    let label = |labels: &'_ std::collections::HashMap<String, String>, key: &str| -> Option<String> {
        labels.get(key).cloned()
    };
    for sandbox in sandboxes.iter().filter(|s| s.state == v1::PodSandboxState::SandboxReady as i32) {
        let [uid, ns, name] = [POD_UID, POD_NAMESPACE, POD_NAME].map(|key| sandbox.labels.get(key));
        if let (Some(uid), Some(ns), Some(name)) = (uid, ns, name) {
            pods.entry(uid).or_insert((ns, name, Vec::new()));
        }
    }
    for container in containers.iter().filter(|c| c.state == v1::ContainerState::ContainerRunning as i32) {
        let Some(uid) = container.labels.get(POD_UID) else { continue };
        let Some((_, _, list)) = pods.get_mut(uid.as_str()) else { continue };
        list.push(json!({
            "name": label(&container.labels, CONTAINER_NAME),
            "image": container.image.as_ref().map(|i| i.image.clone()),
            "resources": {},
        }));
    }
    let items: Vec<Value> = pods
        .into_iter()
        .map(|(uid, (ns, name, containers))| {
            json!({
                "metadata": {"name": name, "namespace": ns, "uid": uid, "creationTimestamp": null},
                "spec": {"containers": containers},
                "status": {},
            })
        })
        .collect();
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items})
}

pub(super) async fn configz(State(shared): State<Arc<Shared>>) -> Response {
    Json(json!({"kubeletconfig": *shared.parts.configz})).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_runs_is_listed_and_what_does_not_is_left_out() {
        let labels =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let sandbox = |uid, state: v1::PodSandboxState| v1::PodSandbox {
            state: state as i32,
            labels: labels(&[(POD_UID, uid), (POD_NAMESPACE, "n"), (POD_NAME, "p")]),
            ..Default::default()
        };
        let container = |uid, name, state: v1::ContainerState| v1::Container {
            state: state as i32,
            labels: labels(&[(POD_UID, uid), (CONTAINER_NAME, name)]),
            ..Default::default()
        };
        let list = pod_list(
            &[
                sandbox("a", v1::PodSandboxState::SandboxReady),
                sandbox("b", v1::PodSandboxState::SandboxNotready),
            ],
            &[
                container("a", "c", v1::ContainerState::ContainerRunning),
                container("a", "old", v1::ContainerState::ContainerExited),
                container("b", "c", v1::ContainerState::ContainerRunning),
            ],
        );
        let items = list["items"].as_array().unwrap();
        assert_eq!(items.len(), 1);
        assert_eq!(items[0]["metadata"]["uid"], "a");
        let names: Vec<&str> = items[0]["spec"]["containers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["c"]);
    }
}
