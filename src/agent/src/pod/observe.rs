//! From CRI messages to what the core reads. Everything that the core must know after a restart of
//! the agent stands in the runtime's labels and annotations (the kubelet's own keys).

use crate::pod::core::{Instance, Sandbox, State};
use podway_cri::v1;
use podway_flow::Micros;
use std::time::Duration;

/// Label: the container's name in its pod.
pub const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Annotation: the hash of the spec, in hexadecimal.
pub const CONTAINER_HASH: &str = "io.kubernetes.container.hash";
/// Annotation: how long the start was put off, in milliseconds: the next delay follows from it.
pub const RESTART_DELAY: &str = "podway.dev/restart-delay-ms";
/// Annotation: the restart count.
pub const RESTART_COUNT: &str = "io.kubernetes.container.restartCount";

fn micros(nanos: i64) -> Micros {
    Micros(nanos.max(0) / 1000)
}

/// A sandbox from its status; `None` without metadata, which no runtime of ours or others leaves out.
#[must_use]
pub fn sandbox(status: &v1::PodSandboxStatus) -> Option<Sandbox> {
    let network = status.network.as_ref();
    let more = network.iter().flat_map(|n| n.additional_ips.iter().map(|ip| ip.ip.clone()));
    let ips = network.iter().map(|n| n.ip.clone()).chain(more).filter(|ip| !ip.is_empty()).collect();
    Some(Sandbox {
        id: status.id.clone(),
        ready: status.state == v1::PodSandboxState::SandboxReady as i32,
        attempt: status.metadata.as_ref()?.attempt,
        created: micros(status.created_at),
        ips,
    })
}

/// A container of sandbox `sandbox` from its status; `None` for one that no agent made.
#[must_use]
pub fn instance(status: &v1::ContainerStatus, sandbox: &str) -> Option<Instance> {
    let state = match v1::ContainerState::try_from(status.state).ok()? {
        v1::ContainerState::ContainerCreated => State::Created,
        v1::ContainerState::ContainerRunning => State::Running,
        v1::ContainerState::ContainerUnknown => State::Unknown,
        v1::ContainerState::ContainerExited => State::Exited {
            code: status.exit_code,
            finished: micros(status.finished_at),
            reason: status.reason.clone(),
            message: status.message.clone(),
        },
    };
    Some(Instance {
        id: status.id.clone(),
        sandbox: sandbox.to_owned(),
        name: status.labels.get(CONTAINER_NAME)?.clone(),
        restarts: status.annotations.get(RESTART_COUNT).and_then(|n| n.parse().ok()).unwrap_or(0),
        hash: status
            .annotations
            .get(CONTAINER_HASH)
            .and_then(|h| u32::from_str_radix(h, 16).ok())
            .unwrap_or(0),
        created: micros(status.created_at),
        started: micros(status.started_at),
        waited: status.annotations.get(RESTART_DELAY).and_then(|n| n.parse().ok()).map(Duration::from_millis),
        state,
        image_id: if status.image_id.is_empty() { status.image_ref.clone() } else { status.image_id.clone() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_core_needs_is_read_back_from_the_runtime() {
        let mut status = v1::ContainerStatus {
            id: "x".into(),
            state: 2,
            exit_code: 3,
            finished_at: 5_000,
            ..Default::default()
        };
        assert_eq!(instance(&status, "s"), None, "a container that no agent made");
        status.labels.insert(CONTAINER_NAME.into(), "c".into());
        status.annotations.insert(RESTART_COUNT.into(), "2".into());
        status.annotations.insert(CONTAINER_HASH.into(), "ff".into());
        let got = instance(&status, "s").unwrap();
        assert_eq!((got.restarts, got.hash), (2, 255));
        assert!(matches!(got.state, State::Exited { code: 3, finished: Micros(5), .. }));
    }
}
