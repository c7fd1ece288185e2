//! What the scheduler is told.

use crate::queue::Backoff;

/// The scheduler's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Pods with one of these `spec.schedulerName`s are ours; the first is who events come from.
    pub scheduler_names: Vec<String>,
    /// Backoff of pods that failed.
    pub backoff: Backoff,
    /// How many bindings may be written at once.
    pub bind_lanes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config { scheduler_names: vec!["podway".to_owned()], backoff: Backoff::default(), bind_lanes: 32 }
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
