//! Holds the cgroup of all pods to what the node has for them, and those of the system and of Kubernetes' own daemons
//! to what is kept for these (`enforceNodeAllocatableCgroups` of `pkg/kubelet/cm/node_container_manager_linux.go`).
//!
//! Pods that run may use more than a new configuration leaves them; then the kernel refuses the limit.
//! It is tried again each minute, as upstream does: eviction brings their use down in the meantime. The others' cgroups
//! are held once, and an agent that cannot does not start.

use super::allocatable::{PodsLimits, Reservation};
use super::events::{Writer, enforced, reserved};
use crate::cgroups::{CgroupError, Cgroups};
use crate::pod::actions::chain;
use std::sync::Arc;
use std::time::Duration;

/// How long until a limit that was refused is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// A cgroup is not held to what is kept for it.
#[derive(Debug, thiserror::Error)]
#[error(
    "failed to enforce {whose} Reserved {how}Cgroup Limits on {cgroup:?}: make it, or leave it out of enforceNodeAllocatable"
)]
pub struct ReservedError {
    whose: &'static str,
    how: &'static str,
    cgroup: String,
    #[source]
    source: Box<CgroupError>,
}

/// Sets the limits of those that are not pods, and tells of it.
///
/// # Errors
/// [`ReservedError`] for the first that cannot be held.
pub async fn others(cgroups: &Cgroups, kept: &Reservation, events: &Writer) -> Result<(), ReservedError> {
    let all = [
        ("system", "System", &kept.system_held, &kept.system),
        ("kube", "Kube", &kept.kube_held, &kept.kube),
    ];
    for (name, whose, held, list) in all {
        let Some(held) = held else { continue };
        let how = if held.compressible { "Compressible " } else { "" };
        if let Err(source) = cgroups.hold(held, list).await {
            let cgroup = held.cgroup.clone();
            let note = format!(
                "Failed to enforce {whose} Reserved {how}Cgroup Limits on {cgroup:?}: {}",
                chain(&source)
            );
            events.write(vec![reserved(name, &cgroup, Some(note))]);
            return Err(ReservedError { whose, how, cgroup, source: Box::new(source) });
        }
        events.write(vec![reserved(name, &held.cgroup, None)]);
    }
    Ok(())
}

/// Sets the limits of all pods, and tells of it; never ends.
pub async fn keep(cgroups: Arc<Cgroups>, limits: PodsLimits, events: Writer) {
    loop {
        let result = cgroups.enforce(limits).await.map_err(|e| chain(&e));
        let done = result.is_ok();
        if let Err(error) = &result {
            tracing::warn!(cgroup = cgroups.base(), error, "the pods' cgroup has not the node's limits");
        }
        events.write(vec![enforced(cgroups.base(), result)]);
        if done {
            return std::future::pending().await;
        }
        tokio::time::sleep(AGAIN).await;
    }
}
