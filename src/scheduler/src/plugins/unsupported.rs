//! Refuses a pod whose required constraints have no plugin yet: placing it as if it had none
//! would be wrong without a sign of it.

use crate::cache::Snapshot;
use crate::framework::{ClusterEvent, CycleState, Plugin, PreFilter, PreFilterResult, Status};
use crate::model::PodInfo;

/// The plugin.
pub struct Unsupported;

impl Plugin for Unsupported {
    fn name(&self) -> &'static str {
        "Unsupported"
    }

    fn may_help(&self, _: &PodInfo, event: &ClusterEvent) -> bool {
        matches!(event, ClusterEvent::PodUpdate)
    }
}

impl PreFilter for Unsupported {
    fn pre_filter(&self, _: &mut CycleState, pod: &PodInfo, _: &Snapshot) -> Result<PreFilterResult, Status> {
        if pod.unsupported.is_empty() {
            return Ok(PreFilterResult::Skip);
        }
        Err(Status::unresolvable(self.name(), format!("not supported: {}", pod.unsupported.join(", "))))
    }
}
