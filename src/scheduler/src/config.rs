//! What the scheduler is told.

use crate::queue::Backoff;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// The scheduler's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Pods with one of these `spec.schedulerName`s are ours; the first is who events come from.
    pub scheduler_names: Vec<String>,
    /// Backoff of pods that failed.
    pub backoff: Backoff,
    /// How many bindings may be written at once.
    pub bind_lanes: usize,
    /// Where `/livez`, `/readyz` and `/metrics` are served, without authentication; `None`: nowhere.
    pub serve: Option<SocketAddr>,
}

/// Loopback, since nobody is asked who they are.
pub const DEFAULT_SERVE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10351);

impl Default for Config {
    fn default() -> Self {
        Config {
            scheduler_names: vec![podway_api::annotations::SCHEDULER_NAME.to_owned()],
            backoff: Backoff::default(),
            bind_lanes: 32,
            serve: Some(DEFAULT_SERVE),
        }
    }
}

impl Config {
    /// True for a `spec.schedulerName` that is ours.
    #[must_use]
    pub fn owns(&self, scheduler_name: &str) -> bool {
        self.scheduler_names.iter().any(|n| n == scheduler_name)
    }

    /// Who events come from.
    #[must_use]
    pub fn reporter(&self) -> &str {
        self.scheduler_names.first().map_or("podway", String::as_str)
    }
}
