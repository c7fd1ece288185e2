//! Who manages cgroups: a kubelet's `cgroupDriver`, containerd's `SystemdCgroup`, CRI-O's `cgroup_manager`. A node has
//! one of them: its agent and its runtime must have the same.

use serde::Deserialize;

/// Who manages cgroups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// Whoever makes a directory.
    #[default]
    Cgroupfs,
    /// systemd, by slices and scopes.
    Systemd,
}

impl Driver {
    /// As configurations have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Driver::Cgroupfs => "cgroupfs",
            Driver::Systemd => "systemd",
        }
    }
}
