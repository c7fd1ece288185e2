//! DRA is not supported: a pod with resource claims is refused, since placing it as if it had none
//! would be wrong without a sign of it. The PostFilter is upstream's for a pod without any
//! (`plugins/dynamicresources/dynamicresources.go`), whose words are in every refusal's message.

use crate::cache::Snapshot;
use crate::framework::{
    ClusterEvent, CycleState, Plugin, PostFilter, PostFilterResult, PreFilter, PreFilterResult, Status, Unfit,
};
use crate::model::PodInfo;

/// The plugin.
pub struct DynamicResources;

/// Its PreFilter has run.
#[derive(Clone)]
struct Seen;

impl Plugin for DynamicResources {
    fn name(&self) -> &'static str {
        "DynamicResources"
    }

    fn may_help(&self, _: &PodInfo, event: &ClusterEvent) -> bool {
        matches!(event, ClusterEvent::PodUpdate)
    }
}

impl PreFilter for DynamicResources {
    fn pre_filter(
        &self,
        state: &mut CycleState,
        pod: &PodInfo,
        _: &Snapshot,
    ) -> Result<PreFilterResult, Status> {
        state.put(Seen);
        if pod.unsupported.is_empty() {
            return Ok(PreFilterResult::Skip);
        }
        Err(Status::unresolvable(self.name(), format!("not supported: {}", pod.unsupported.join(", "))))
    }
}

impl PostFilter for DynamicResources {
    fn post_filter(&self, state: &mut CycleState, unfit: &Unfit<'_>) -> PostFilterResult {
        if state.get::<Seen>().is_none() {
            // An earlier PreFilter ended the cycle: upstream finds no state of its own then.
            return PostFilterResult::Failed("not found".to_owned());
        }
        PostFilterResult::Refused(if unfit.pod.unsupported.is_empty() {
            "no new claims to deallocate".to_owned()
        } else {
            "still not schedulable".to_owned()
        })
    }
}
