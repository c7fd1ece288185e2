//! The closed list of phases, in the order in which a pod goes through them.

use crate::Writer;
use serde::{Deserialize, Serialize};

/// What stands before a phase's name in its condition type on a Pod.
pub const CONDITION_PREFIX: &str = "podway.dev/";

/// One phase of a pod's creation. The order of the variants is the order of the flow.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema,
)]
pub enum Phase {
    /// Steps 1: the API server authenticated, authorized and admitted the request.
    Requested,
    /// Steps 2 and 3: etcd holds the pod and the client has its answer.
    Persisted,
    /// Step 4: the pod waited in the scheduler's queue.
    Queued,
    /// Step 4: nodes that cannot run the pod were ruled out.
    NodesFiltered,
    /// Step 4: the feasible nodes were ranked.
    NodesScored,
    /// Steps 5 and 6: the Binding was written.
    Bound,
    /// Step 7: the node agent saw the pod on its watch.
    Observed,
    /// Step 7: the node agent accepted the pod.
    Admitted,
    /// The pod's volumes are in place.
    VolumesMounted,
    /// Step 8: the sandbox (namespaces, cgroup parent) stands.
    SandboxCreated,
    /// Step 8: CNI gave the sandbox its addresses.
    NetworkConfigured,
    /// Step 10: each image is present.
    ImagesPulled,
    /// Steps 9 and 11: layers unpacked, root filesystems mounted.
    RootfsPrepared,
    /// Step 12: each container's config.json is written.
    SpecGenerated,
    /// Steps 13 to 15: `runc create`: clone, namespaces, cgroups.
    ContainersCreated,
    /// Steps 13 to 15: `runc start`: the processes run.
    ContainersStarted,
    /// Steps 16 to 18: the status was written back and is in etcd.
    StatusReported,
    /// The pod is Ready.
    Ready,
}

impl Phase {
    /// Every phase, in flow order.
    pub const ALL: [Phase; 18] = [
        Phase::Requested,
        Phase::Persisted,
        Phase::Queued,
        Phase::NodesFiltered,
        Phase::NodesScored,
        Phase::Bound,
        Phase::Observed,
        Phase::Admitted,
        Phase::VolumesMounted,
        Phase::SandboxCreated,
        Phase::NetworkConfigured,
        Phase::ImagesPulled,
        Phase::RootfsPrepared,
        Phase::SpecGenerated,
        Phase::ContainersCreated,
        Phase::ContainersStarted,
        Phase::StatusReported,
        Phase::Ready,
    ];

    /// The phase's name: a condition type without its domain, and a metric label value.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Requested => "Requested",
            Phase::Persisted => "Persisted",
            Phase::Queued => "Queued",
            Phase::NodesFiltered => "NodesFiltered",
            Phase::NodesScored => "NodesScored",
            Phase::Bound => "Bound",
            Phase::Observed => "Observed",
            Phase::Admitted => "Admitted",
            Phase::VolumesMounted => "VolumesMounted",
            Phase::SandboxCreated => "SandboxCreated",
            Phase::NetworkConfigured => "NetworkConfigured",
            Phase::ImagesPulled => "ImagesPulled",
            Phase::RootfsPrepared => "RootfsPrepared",
            Phase::SpecGenerated => "SpecGenerated",
            Phase::ContainersCreated => "ContainersCreated",
            Phase::ContainersStarted => "ContainersStarted",
            Phase::StatusReported => "StatusReported",
            Phase::Ready => "Ready",
        }
    }

    /// Whose phase it is: who has it in hand, and tells of it wherever it can be told.
    #[must_use]
    pub const fn writer(self) -> Writer {
        match self {
            Phase::Requested | Phase::Persisted => Writer::ApiServer,
            Phase::Queued | Phase::NodesFiltered | Phase::NodesScored | Phase::Bound => Writer::Scheduler,
            Phase::Observed
            | Phase::Admitted
            | Phase::VolumesMounted
            | Phase::StatusReported
            | Phase::Ready => Writer::Agent,
            Phase::SandboxCreated
            | Phase::NetworkConfigured
            | Phase::ImagesPulled
            | Phase::RootfsPrepared
            | Phase::SpecGenerated
            | Phase::ContainersCreated
            | Phase::ContainersStarted => Writer::Runtime,
        }
    }

    /// The steps of the source article (1 to 18) that the phase covers; empty where the article is silent.
    #[must_use]
    pub const fn steps(self) -> &'static [u8] {
        match self {
            Phase::Requested => &[1],
            Phase::Persisted => &[2, 3],
            Phase::Queued | Phase::NodesFiltered | Phase::NodesScored => &[4],
            Phase::Bound => &[5, 6],
            Phase::Observed | Phase::Admitted => &[7],
            Phase::VolumesMounted | Phase::Ready => &[],
            Phase::SandboxCreated | Phase::NetworkConfigured => &[8],
            Phase::ImagesPulled => &[10],
            Phase::RootfsPrepared => &[9, 11],
            Phase::SpecGenerated => &[12],
            Phase::ContainersCreated => &[13, 14, 15],
            Phase::ContainersStarted => &[15],
            Phase::StatusReported => &[16, 17, 18],
        }
    }

    /// The condition type on the Pod: `podway.dev/<Phase>`, but `Ready` itself, which is core's.
    #[must_use]
    pub fn condition_type(self) -> String {
        match self {
            Phase::Ready => "Ready".to_owned(),
            other => format!("{CONDITION_PREFIX}{}", other.name()),
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phases_are_in_flow_order_and_cover_all_18_steps() {
        assert!(Phase::ALL.windows(2).all(|w| w[0] < w[1]));
        let mut steps: Vec<u8> = Phase::ALL.iter().flat_map(|p| p.steps().iter().copied()).collect();
        steps.sort_unstable();
        steps.dedup();
        assert_eq!(steps, (1..=18).collect::<Vec<u8>>());
    }

    #[test]
    fn a_name_reads_back_as_its_phase() {
        for phase in Phase::ALL {
            let json = serde_json::to_string(&phase).unwrap();
            assert_eq!(json, format!("\"{}\"", phase.name()));
            assert_eq!(serde_json::from_str::<Phase>(&json).unwrap(), phase);
        }
    }
}
