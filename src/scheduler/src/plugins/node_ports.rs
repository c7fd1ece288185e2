//! Host ports: one user each.

use crate::cache::{NodeState, Snapshot};
use crate::framework::{
    ClusterEvent, CycleState, Filter, GoesBy, Plugin, PreFilter, PreFilterResult, Status,
};
use crate::model::{HostPort, Part, PodInfo};

/// The plugin.
pub struct NodePorts;

const REASON: &str = "node(s) didn't have free ports for the requested pod ports";

fn conflict<'a>(wanted: &[HostPort], mut used: impl Iterator<Item = &'a HostPort>) -> bool {
    used.any(|u| wanted.iter().any(|w| w.conflicts(u)))
}

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn goes_by(&self) -> GoesBy {
        GoesBy::Node(&[Part::HostPorts])
    }

    fn may_help(&self, pod: &PodInfo, event: &ClusterEvent) -> bool {
        match event {
            ClusterEvent::NodeAdd(_) | ClusterEvent::PodUpdate => true,
            ClusterEvent::AssignedPodDelete(gone) => conflict(&pod.host_ports, gone.host_ports.iter()),
            _ => false,
        }
    }
}

impl PreFilter for NodePorts {
    fn pre_filter(&self, _: &mut CycleState, pod: &PodInfo, _: &Snapshot) -> Result<PreFilterResult, Status> {
        Ok(if pod.host_ports.is_empty() { PreFilterResult::Skip } else { PreFilterResult::All })
    }
}

impl Filter for NodePorts {
    fn filter(&self, _: &CycleState, pod: &PodInfo, node: &NodeState) -> Result<(), Status> {
        if conflict(&pod.host_ports, node.usage.host_ports.keys()) {
            return Err(Status::unschedulable(self.name(), REASON));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn port(ip: &str, protocol: &str, port: i32) -> HostPort {
        HostPort { ip: ip.into(), protocol: protocol.into(), port }
    }

    #[rstest]
    #[case(port("0.0.0.0", "TCP", 80), port("0.0.0.0", "TCP", 80), true)]
    #[case(port("0.0.0.0", "TCP", 80), port("127.0.0.1", "TCP", 80), true)]
    #[case(port("127.0.0.1", "TCP", 80), port("0.0.0.0", "TCP", 80), true)]
    #[case(port("127.0.0.1", "TCP", 80), port("127.0.0.2", "TCP", 80), false)]
    #[case(port("0.0.0.0", "TCP", 80), port("0.0.0.0", "UDP", 80), false)]
    #[case(port("0.0.0.0", "TCP", 80), port("0.0.0.0", "TCP", 81), false)]
    fn conflicts(#[case] wanted: HostPort, #[case] used: HostPort, #[case] want: bool) {
        assert_eq!(conflict(&[wanted], [used].iter()), want);
    }
}
