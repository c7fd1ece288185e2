//! The addresses of the node: those of `--node-ip`, else the one that the default route goes out from.

use k8s_openapi::api::core::v1::NodeAddress;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

/// Why an address is not the node's.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// It can't be any node's.
    #[error("node IP {0} cannot be a node's address: it is {1}; give another --node-ip")]
    Kind(IpAddr, &'static str),
    /// No interface has it.
    #[error("node IP {0} is on no interface of this host; give another --node-ip")]
    Foreign(IpAddr),
    /// The interfaces can't be listed.
    #[error("cannot list the interfaces of this host")]
    Interfaces(#[source] nix::Error),
    /// There is no default route.
    #[error("no default route gives node {0} an address; give --node-ip")]
    NoRoute(String),
}

/// Checks `ip` as the kubelet does (`validateNodeIP`).
///
/// # Errors
/// [`AddressError`].
pub fn validate(ip: IpAddr) -> Result<(), AddressError> {
    let link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    let kind = [
        (ip.is_loopback(), "a loopback address"),
        (ip.is_multicast(), "a multicast address"),
        (link_local, "a link-local address"),
        (ip.is_unspecified(), "all zeros"),
    ];
    if let Some((_, what)) = kind.into_iter().find(|(is, _)| *is) {
        return Err(AddressError::Kind(ip, what));
    }
    let mut interfaces = nix::ifaddrs::getifaddrs().map_err(AddressError::Interfaces)?;
    let found = interfaces.any(|interface| {
        interface.address.is_some_and(|address| match ip {
            IpAddr::V4(v4) => address.as_sockaddr_in().is_some_and(|a| a.ip() == v4),
            IpAddr::V6(v6) => address.as_sockaddr_in6().is_some_and(|a| a.ip() == v6),
        })
    });
    if found { Ok(()) } else { Err(AddressError::Foreign(ip)) }
}

/// The address from which this host would reach far ones; IPv4 first.
#[must_use]
pub fn default_route() -> Option<IpAddr> {
    // To connect a UDP socket sends nothing: it only asks the kernel for the route. The targets are
    // addresses for documentation, on no real network.
    let far: [(IpAddr, IpAddr); 2] = [
        (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::new(203, 0, 113, 1).into()),
        (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()),
    ];
    far.into_iter().find_map(|(local, far)| {
        let socket = UdpSocket::bind((local, 0)).ok()?;
        socket.connect((far, 9)).ok()?;
        Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_unspecified() && !ip.is_loopback())
    })
}

/// The addresses of node `name`: at most two of `ips` (one per family), else the default route's.
///
/// # Errors
/// [`AddressError`].
pub fn addresses(name: &str, ips: &[IpAddr]) -> Result<Vec<NodeAddress>, AddressError> {
    let given: Vec<IpAddr> = ips.iter().copied().filter(|ip| !ip.is_unspecified()).take(2).collect();
    for ip in &given {
        validate(*ip)?;
    }
    let found = if given.is_empty() {
        vec![default_route().ok_or_else(|| AddressError::NoRoute(name.to_owned()))?]
    } else {
        given
    };
    let address = |kind: &str, address: String| NodeAddress { type_: kind.to_owned(), address };
    let internal = found.iter().map(|ip| address("InternalIP", ip.to_string()));
    Ok(internal.chain([address("Hostname", name.to_owned())]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_a_nodes_address() {
        for (ip, what) in [
            ("127.0.0.1", "loopback"),
            ("224.0.0.1", "multicast"),
            ("169.254.1.1", "link-local"),
            ("fe80::1", "link-local"),
            ("0.0.0.0", "zeros"),
            ("198.51.100.7", "no interface"),
        ] {
            let error = validate(ip.parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}
