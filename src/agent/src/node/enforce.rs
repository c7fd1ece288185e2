//! Holds the cgroup of all pods to what the node has for them (`enforceNodeAllocatableCgroups`).
//!
//! Pods that run may use more than a new configuration leaves them; then the kernel refuses the limit.
//! It is tried again each minute, as upstream does: eviction brings their use down in the meantime.

use super::allocatable::PodsLimits;
use super::events::{Writer, enforced};
use crate::cgroups::Cgroups;
use crate::pod::actions::chain;
use std::sync::Arc;
use std::time::Duration;

/// How long until a limit that was refused is tried again.
const AGAIN: Duration = Duration::from_secs(60);

/// Sets the limits, and tells of it; never ends.
pub async fn keep(cgroups: Arc<Cgroups>, limits: PodsLimits, events: Writer) {
    loop {
        let tree = Arc::clone(&cgroups);
        // The kernel may have to free memory before it answers.
        let result = tokio::task::spawn_blocking(move || tree.enforce(limits).map_err(|e| chain(&e))).await;
        let result = result.unwrap_or_else(|error| Err(error.to_string()));
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
