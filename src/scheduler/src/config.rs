//! What the scheduler is told.

pub mod args;
pub mod profile;
pub mod profiles;

use crate::extender::Spec;
use crate::leader::LeaderElection;
use crate::queue::Backoff;
use podway_api::profile::ProfileSpec;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// The scheduler's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Pods with one of these `spec.schedulerName`s are ours, and placed as the profile says.
    pub profiles: Vec<(String, ProfileSpec)>,
    /// Backoff of pods that failed.
    pub backoff: Backoff,
    /// How many bindings may be written at once.
    pub bind_lanes: usize,
    /// Where `/livez`, `/readyz` and `/metrics` are served, without authentication; `None`: nowhere.
    pub serve: Option<SocketAddr>,
    /// Where decisions, queue and snapshot are served, on a socket of mode 0600; `None`: nowhere.
    pub debug_socket: Option<PathBuf>,
    /// Binds nothing: compares what another scheduler does with what this one would.
    pub shadow: bool,
    /// How the leader of several replicas is elected; `None`: this one is alone.
    pub leader_election: Option<LeaderElection>,
    /// How long it is from one self-audit to the next.
    pub audit: Duration,
    /// Where the run is recorded; `None`: nowhere.
    pub record: Option<PathBuf>,
    /// Who else is asked, by all profiles.
    pub extenders: Vec<Spec>,
}

/// Loopback, since nobody is asked who they are.
pub const DEFAULT_SERVE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 10351);

impl Default for Config {
    fn default() -> Self {
        Config {
            profiles: vec![(podway_api::annotations::SCHEDULER_NAME.to_owned(), ProfileSpec::default())],
            backoff: Backoff::default(),
            bind_lanes: 32,
            serve: Some(DEFAULT_SERVE),
            debug_socket: None,
            shadow: false,
            leader_election: Some(LeaderElection::default()),
            audit: Duration::from_secs(300),
            record: None,
            extenders: vec![],
        }
    }
}

impl Config {
    /// Who the election's events come from: the first profile.
    #[must_use]
    pub fn reporter(&self) -> &str {
        self.profiles.first().map_or("podway", |(name, _)| name)
    }
}
