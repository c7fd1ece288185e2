//! The addresses and names of a cluster's network. Pure: what is made of them is in `nodes`.
//!
//! Several clusters (state directories) can stand on one machine, so each takes a slot: slot 0 has
//! the names that people see (`podway0`, `podway-node-0`, 10.89.0.0/24), the others carry the
//! slot's number. A slot's bridge has the state directory as its alias: that is who owns it.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;

/// How many clusters one machine takes: each has 16 of the 256 pod networks.
pub const SLOTS: u8 = 16;

/// How many nodes a cluster takes.
pub const MAX_NODES: u8 = 16;

/// An IPv4 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// Its first address.
    pub address: Ipv4Addr,
    /// Its prefix length in bits.
    pub prefix: u8,
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// The network of one cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    slot: u8,
}

impl Network {
    /// The network in a slot; `None` where there is no such slot.
    pub fn new(slot: u8) -> Option<Self> {
        (slot < SLOTS).then_some(Self { slot })
    }

    /// The slot.
    pub fn slot(self) -> u8 {
        self.slot
    }

    /// The bridge on the host that joins the nodes: `podway0`.
    pub fn bridge(self) -> String {
        format!("podway{}", self.slot)
    }

    /// The network of the nodes: 10.89.0.0/24.
    pub fn subnet(self) -> Cidr {
        Cidr { address: Ipv4Addr::new(10, 89, self.slot, 0), prefix: 24 }
    }

    /// The host's address on the bridge: the nodes' gateway, and where API server and registry listen.
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 89, self.slot, 1)
    }

    /// The bridge's hardware address (locally administered).
    pub fn mac(self) -> [u8; 6] {
        [0x02, 0x59, 0, 0, self.slot, 0xff]
    }

    /// The pod networks of all nodes of this cluster.
    pub fn pods(self) -> Cidr {
        Cidr { address: Ipv4Addr::new(10, 244, self.slot * MAX_NODES, 0), prefix: 20 }
    }

    /// Node `index` of this cluster.
    pub fn node(self, index: u8) -> NodeNetwork {
        NodeNetwork { network: self, index: index.min(MAX_NODES - 1) }
    }

    /// Its first `count` nodes.
    pub fn nodes(self, count: u8) -> impl Iterator<Item = NodeNetwork> {
        (0..count.min(MAX_NODES)).map(move |index| self.node(index))
    }
}

/// One node's part of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeNetwork {
    network: Network,
    index: u8,
}

impl NodeNetwork {
    /// Which node of its cluster.
    pub fn index(self) -> u8 {
        self.index
    }

    /// The Node's name: `podway-0`.
    pub fn name(self) -> String {
        format!("podway-{}", self.index)
    }

    /// The name of its network namespace, which is also that of its cgroup: `podway-node-0`.
    pub fn netns(self) -> String {
        match self.network.slot {
            0 => format!("podway-node-{}", self.index),
            slot => format!("podway{slot}-node-{}", self.index),
        }
    }

    /// Where the network namespace is pinned; `ip netns` finds it there.
    pub fn netns_path(self) -> PathBuf {
        PathBuf::from("/run/netns").join(self.netns())
    }

    /// The host's end of its cable (at most 15 bytes, the kernel's limit).
    pub fn host_end(self) -> String {
        format!("{}-n{}", self.network.bridge(), self.index)
    }

    /// The name of the other end until it is in the namespace, where it is `eth0`.
    pub fn loose_end(self) -> String {
        format!("{}-p{}", self.network.bridge(), self.index)
    }

    /// Its address.
    pub fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 89, self.network.slot, 10 + self.index)
    }

    /// The hardware address of its `eth0` (locally administered): the same after it was made anew, so
    /// that the other nodes' neighbour tables stay right.
    pub fn mac(self) -> [u8; 6] {
        [0x02, 0x59, 0, 0, self.network.slot, self.index]
    }

    /// The network of its pods: 10.244.0.0/24.
    pub fn pods(self) -> Cidr {
        let third = self.network.slot * MAX_NODES + self.index;
        Cidr { address: Ipv4Addr::new(10, 244, third, 0), prefix: 24 }
    }

    /// The cgroup of all that runs on it.
    pub fn cgroup(self) -> String {
        format!("/podway/{}", self.netns())
    }

    /// What that is to systemd, where it manages cgroups: `podway-podway_node_0.slice`.
    pub fn slice(self) -> String {
        format!("podway-{}.slice", self.netns().replace('-', "_"))
    }

    /// Where its runtime keeps what a reboot ends: socket paths have room for 107 bytes only, so it
    /// is not below the state directory.
    pub fn run_dir(self) -> PathBuf {
        PathBuf::from("/run/podway").join(self.netns())
    }

    /// The CNI configuration of its pods: a bridge of its own, addresses out of [`Self::pods`].
    ///
    /// No masquerading here: pods of two nodes see each other's own address. What leaves the
    /// machine is masqueraded by the host.
    pub fn conflist(self, ipam: &std::path::Path) -> serde_json::Value {
        serde_json::json!({
            "cniVersion": "1.0.0",
            "name": "podway",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": true,
                    "ipMasq": false,
                    "hairpinMode": true,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": ipam,
                        "ranges": [[{"subnet": self.pods().to_string()}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cluster_has_the_names_that_people_see() {
        let network = Network::new(0).unwrap();
        let node = network.node(1);
        assert_eq!(
            (network.bridge().as_str(), network.gateway().to_string().as_str()),
            ("podway0", "10.89.0.1")
        );
        assert_eq!((node.name().as_str(), node.netns().as_str()), ("podway-1", "podway-node-1"));
        assert_eq!(node.pods().to_string(), "10.244.1.0/24");
        assert_eq!(node.address().to_string(), "10.89.0.11");
    }

    #[test]
    fn clusters_share_no_name_and_no_address() {
        let mut seen = std::collections::HashSet::new();
        for slot in 0..SLOTS {
            let network = Network::new(slot).unwrap();
            for node in network.nodes(MAX_NODES) {
                let host = node.host_end();
                assert!(host.len() <= 15 && node.loose_end().len() <= 15, "{host}");
                let pods = node.pods().to_string();
                assert!(node.pods().address >= network.pods().address, "{pods}");
                for name in [host, node.loose_end(), pods, node.netns(), node.address().to_string()] {
                    assert!(seen.insert(name.clone()), "{name} twice");
                }
            }
        }
        assert_eq!(Network::new(SLOTS), None);
    }
}
