//! podway's own programs: `podway`, and those that are installed beside it.

use std::path::{Path, PathBuf};

/// The scheduler's daemon.
pub const SCHEDULER: &str = "podway-scheduler";
/// The agent's.
pub const AGENT: &str = "podway-agent";
/// The runtime's.
pub const RUNTIME: &str = "podway-runtime";
/// What the runtime starts for each pod.
pub const MONITOR: &str = "podway-monitor";

/// All but `podway` itself.
pub const BESIDE: [&str; 4] = [SCHEDULER, AGENT, RUNTIME, MONITOR];

/// The program that is installed beside another.
pub fn beside(podway: &Path, program: &str) -> PathBuf {
    podway.with_file_name(program)
}

/// The first of [`BESIDE`] that is not there.
pub fn missing(podway: &Path) -> Option<PathBuf> {
    BESIDE.iter().map(|program| beside(podway, program)).find(|path| !path.is_file())
}
