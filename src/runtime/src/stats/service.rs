//! The questions: one or many, statistics or metrics. An answer is made of what is known after
//! [`sample`] had what is old read anew.

use super::{Depth, Entry, metrics, sample, show};
use crate::error::OpError;
use crate::ids::Id;
use crate::state::{Container, Life, Runtime, Sandbox, Stage};
use crate::status;
use podway_cri::v1;
use std::collections::HashMap;
use std::sync::Arc;

fn matches(selector: &HashMap<String, String>, labels: &HashMap<String, String>) -> bool {
    selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

fn show_container(runtime: &Runtime, id: &Id, entry: &Container) -> v1::ContainerStats {
    let known: Arc<Entry> = runtime.stats.entry(id);
    let load = known.load.latest().filter(|_| entry.stage == Stage::Running);
    let status = status::container_status(id, entry);
    v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: id.to_string(),
            metadata: status.metadata,
            labels: status.labels,
            annotations: status.annotations,
        }),
        cpu: load.as_deref().and_then(show::cpu),
        memory: load.as_deref().and_then(show::memory),
        writable_layer: known.disk.latest().map(|d| show::filesystem(&d, &runtime.config.root)),
        swap: load.as_deref().and_then(show::swap),
        io: load.as_deref().and_then(show::io),
    }
}

fn show_sandbox(runtime: &Runtime, id: &Id, entry: &Sandbox) -> v1::PodSandboxStats {
    let known = runtime.stats.entry(id);
    let load = known.load.latest().filter(|_| entry.life == Life::Ready);
    let status = status::sandbox_status(id, entry);
    let running = runtime.containers_of(id).into_iter().filter(|(_, c)| c.stage == Stage::Running);
    v1::PodSandboxStats {
        attributes: Some(v1::PodSandboxAttributes {
            id: id.to_string(),
            metadata: status.metadata,
            labels: status.labels,
            annotations: status.annotations,
        }),
        linux: Some(v1::LinuxPodSandboxStats {
            cpu: load.as_deref().and_then(show::cpu),
            memory: load.as_deref().and_then(show::memory),
            network: load.as_deref().and_then(show::network),
            process: load.as_deref().and_then(show::process),
            containers: running.map(|(cid, c)| show_container(runtime, &cid, &c)).collect(),
            io: load.as_deref().and_then(show::io),
        }),
        windows: None,
    }
}

/// The statistics of a container; of one that does not run what is on disk.
///
/// # Errors
/// [`OpError::NotFound`].
pub async fn container(runtime: &Runtime, id: &Id) -> Result<v1::ContainerStats, OpError> {
    runtime.known_container(id)?;
    sample(runtime, &[], std::slice::from_ref(id), Depth::Statistics).await;
    let entry = runtime.known_container(id)?;
    Ok(show_container(runtime, id, &entry))
}

/// The statistics of the running containers that fit.
pub async fn containers(
    runtime: &Runtime,
    filter: Option<v1::ContainerStatsFilter>,
) -> Vec<v1::ContainerStats> {
    let filter = filter.unwrap_or_default();
    let wanted: Vec<Id> = runtime
        .containers()
        .into_iter()
        .filter(|(_, c)| c.stage == Stage::Running)
        .filter(|(id, _)| filter.id.is_empty() || id.as_str().starts_with(&filter.id))
        .filter(|(_, c)| filter.pod_sandbox_id.is_empty() || c.sandbox.as_str() == filter.pod_sandbox_id)
        .filter(|(id, c)| {
            filter.label_selector.is_empty()
                || matches(&filter.label_selector, &status::container_status(id, c).labels)
        })
        .map(|(id, _)| id)
        .collect();
    sample(runtime, &[], &wanted, Depth::Statistics).await;
    // What is gone by now is not listed.
    wanted.iter().filter_map(|id| Some(show_container(runtime, id, &runtime.container(id)?))).collect()
}

fn running_in(runtime: &Runtime, sandboxes: &[Id]) -> Vec<Id> {
    let all = sandboxes.iter().flat_map(|s| runtime.containers_of(s));
    all.filter(|(_, c)| c.stage == Stage::Running).map(|(id, _)| id).collect()
}

/// The statistics of a sandbox and its running containers.
///
/// # Errors
/// [`OpError::NotFound`].
pub async fn sandbox(runtime: &Runtime, id: &Id) -> Result<v1::PodSandboxStats, OpError> {
    runtime.known_sandbox(id)?;
    let one = std::slice::from_ref(id);
    sample(runtime, one, &running_in(runtime, one), Depth::Statistics).await;
    let entry = runtime.known_sandbox(id)?;
    Ok(show_sandbox(runtime, id, &entry))
}

/// The statistics of the sandboxes that fit.
pub async fn sandboxes(
    runtime: &Runtime,
    filter: Option<v1::PodSandboxStatsFilter>,
) -> Vec<v1::PodSandboxStats> {
    let filter = filter.unwrap_or_default();
    let wanted: Vec<Id> = runtime
        .sandboxes()
        .into_iter()
        .filter(|(id, _)| filter.id.is_empty() || id.as_str().starts_with(&filter.id))
        .filter(|(id, s)| {
            filter.label_selector.is_empty()
                || matches(&filter.label_selector, &status::sandbox_status(id, s).labels)
        })
        .map(|(id, _)| id)
        .collect();
    sample(runtime, &wanted, &running_in(runtime, &wanted), Depth::Statistics).await;
    wanted.iter().filter_map(|id| Some(show_sandbox(runtime, id, &runtime.sandbox(id)?))).collect()
}

/// The metrics of every ready sandbox and its running containers.
pub async fn sandbox_metrics(runtime: &Runtime) -> Vec<v1::PodSandboxMetrics> {
    let ready: Vec<Id> =
        runtime.sandboxes().into_iter().filter(|(_, s)| s.life == Life::Ready).map(|(id, _)| id).collect();
    let running = running_in(runtime, &ready);
    sample(runtime, &ready, &running, Depth::Metrics).await;
    let filesystem = metrics::Filesystem::of(&runtime.config.root);
    let mut shown = Vec::new();
    for id in ready {
        let Some(sandbox) = runtime.sandbox(&id) else { continue };
        let pod = status::sandbox_status(&id, &sandbox).metadata.unwrap_or_default();
        let load = runtime.stats.entry(&id).load.latest();
        let containers = runtime.containers_of(&id).into_iter().filter(|(_, c)| c.stage == Stage::Running);
        let containers = containers.map(|(cid, c)| {
            let known = runtime.stats.entry(&cid);
            let samples = metrics::Samples {
                load: known.load.latest(),
                disk: known.disk.latest(),
                processes: known.processes.latest(),
                filesystem: filesystem.as_ref(),
            };
            metrics::container(&pod, &cid, &c, &samples)
        });
        shown.push(v1::PodSandboxMetrics {
            pod_sandbox_id: id.to_string(),
            metrics: load.map(|l| metrics::sandbox(&pod, &id, &sandbox, &l)).unwrap_or_default(),
            container_metrics: containers.collect(),
        });
    }
    shown
}
