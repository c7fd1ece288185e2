//! Entries as CRI shows them, and the CRI configurations that they hold.

use crate::error::OpError;
use crate::ids::Id;
use crate::state::{Container, Life, Runtime, Sandbox, Stage};
use podway_cri::Message as _;
use podway_cri::v1::{self, ContainerConfig, NamespaceOption, PodSandboxConfig};

/// A sandbox' configuration, read back from its entry.
///
/// # Errors
/// [`OpError::Precondition`] when the entry was damaged.
pub fn sandbox_config(sandbox: &Sandbox) -> Result<PodSandboxConfig, OpError> {
    let bytes = hex::decode(&sandbox.config).unwrap_or_default();
    PodSandboxConfig::decode(bytes.as_slice())
        .map_err(|e| OpError::Precondition(format!("the sandbox' journal entry is damaged: {e}")))
}

/// The namespace options of a sandbox.
#[must_use]
pub fn options(config: &PodSandboxConfig) -> NamespaceOption {
    let context = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    context.and_then(|c| c.namespace_options.clone()).unwrap_or_default()
}

/// A container's configuration, read back from its entry.
///
/// # Errors
/// [`OpError::Precondition`] when the entry was damaged.
pub fn container_config(container: &Container) -> Result<ContainerConfig, OpError> {
    let bytes = hex::decode(&container.config).unwrap_or_default();
    ContainerConfig::decode(bytes.as_slice())
        .map_err(|e| OpError::Precondition(format!("the container's journal entry is damaged: {e}")))
}

/// A sandbox as CRI shows it.
#[must_use]
pub fn sandbox_status(id: &Id, entry: &Sandbox) -> v1::PodSandboxStatus {
    let config = sandbox_config(entry).unwrap_or_default();
    let options = options(&config);
    let mut ips = entry.ips.iter().cloned();
    v1::PodSandboxStatus {
        id: id.to_string(),
        state: i32::from(entry.life != Life::Ready),
        created_at: entry.created_at,
        network: Some(v1::PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
        }),
        linux: Some(v1::LinuxPodSandboxStatus { namespaces: Some(v1::Namespace { options: Some(options) }) }),
        metadata: config.metadata,
        labels: config.labels,
        annotations: config.annotations,
        runtime_handler: entry.handler.clone(),
    }
}

fn state(stage: Stage) -> v1::ContainerState {
    match stage {
        Stage::Creating | Stage::Created => v1::ContainerState::ContainerCreated,
        Stage::Running => v1::ContainerState::ContainerRunning,
        Stage::Exited => v1::ContainerState::ContainerExited,
    }
}

/// A container as CRI shows it.
#[must_use]
pub fn container_status(id: &Id, entry: &Container) -> v1::ContainerStatus {
    let config = container_config(entry).unwrap_or_default();
    let refusal = entry.refusal.as_deref().filter(|_| entry.stage == Stage::Exited);
    let reason = match (entry.stage, entry.oom_killed, entry.exit_code) {
        (Stage::Exited, ..) if refusal.is_some() => "StartError",
        (Stage::Exited, true, _) => "OOMKilled",
        (Stage::Exited, false, 0) => "Completed",
        (Stage::Exited, false, _) => "Error",
        _ => "",
    };
    v1::ContainerStatus {
        id: id.to_string(),
        metadata: config.metadata,
        state: state(entry.stage) as i32,
        created_at: entry.created_at,
        started_at: entry.started_at,
        finished_at: entry.finished_at,
        exit_code: entry.exit_code,
        image: config.image,
        image_ref: entry.image_id.clone(),
        image_id: entry.image_id.clone(),
        reason: reason.to_owned(),
        message: refusal.unwrap_or_default().to_owned(),
        labels: config.labels,
        annotations: config.annotations,
        mounts: config.mounts,
        log_path: entry.log_path.clone(),
        resources: Some(v1::ContainerResources {
            linux: config.linux.and_then(|l| l.resources),
            ..Default::default()
        }),
        user: entry.user.as_ref().map(|user| v1::ContainerUser {
            linux: Some(v1::LinuxContainerUser {
                uid: i64::from(user.uid),
                gid: i64::from(user.gid),
                // As getgroups(2) tells them in the process: the primary one is among them.
                supplemental_groups: [&[user.gid], user.groups.as_slice()]
                    .concat()
                    .into_iter()
                    .map(i64::from)
                    .collect(),
            }),
        }),
        stop_signal: crate::container::signals::named(entry.stop_signal) as i32,
    }
}

/// The statuses of a sandbox' containers.
#[must_use]
pub fn statuses_of(runtime: &Runtime, sandbox: &Id) -> Vec<v1::ContainerStatus> {
    runtime.containers_of(sandbox).iter().map(|(id, c)| container_status(id, c)).collect()
}
