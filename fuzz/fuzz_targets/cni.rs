//! A CNI configuration and what a plugin answers.
#![no_main]

use libfuzzer_sys::fuzz_target;
use podway_runtime::cni::{Network, ips};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(network) = Network::parse(bytes) {
        assert!(!network.name.is_empty());
    }
    if let Ok(result) = serde_json::from_slice(bytes) {
        for ip in ips(&result) {
            ip.parse::<std::net::IpAddr>().expect("an address");
        }
    }
});
