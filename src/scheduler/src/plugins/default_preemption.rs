//! DefaultPreemption: when no node fits, looks which pods of lower priority could make room.

use crate::framework::{ClusterEvent, CycleState, Plugin, PostFilter, PostFilterResult, Unfit};
use crate::model::PodInfo;
use crate::preemption::{Candidates, preempt};

/// The plugin, with its args.
#[derive(Default)]
pub struct DefaultPreemption(pub Candidates);

impl Plugin for DefaultPreemption {
    fn name(&self) -> &'static str {
        "DefaultPreemption"
    }

    /// The plugins that refused know best when the victims' going has helped.
    fn may_help(&self, _: &PodInfo, _: &ClusterEvent) -> bool {
        false
    }
}

impl PostFilter for DefaultPreemption {
    fn post_filter(&self, state: &mut CycleState, unfit: &Unfit<'_>) -> PostFilterResult {
        preempt(self.0, state, unfit)
    }
}
