//! What this machine can do for containers: looked up once, and told in the CRI `Status`.

use crate::apparmor;
use crate::cgroup::{Cgroups, Version};
use std::path::Path;

/// Controllers and modules that not every kernel has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Read-only mounts that are so in depth: runc's `rro`, and `mount_setattr(2)`.
    pub recursive_read_only: bool,
    /// User namespaces with id-mapped mounts.
    pub user_namespaces: bool,
    /// The kernel has AppArmor and it is on.
    pub apparmor: bool,
    /// Our default profile is loaded.
    pub apparmor_default: bool,
    /// The kernel has SELinux and it is on.
    pub selinux: bool,
    /// Swap is accounted, so that it can be limited.
    pub swap: bool,
    /// Huge pages are accounted.
    pub huge_pages: bool,
    /// `unified` keys have a meaning.
    pub cgroup_v2: bool,
}

impl Features {
    /// Looks at the kernel and at the cgroups; what runc can do is known.
    #[must_use]
    pub fn look(cgroups: &Cgroups, recursive_read_only: bool) -> Self {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Features {
            recursive_read_only,
            // Tried by `podns::probe`, once the monitor's program is known.
            user_namespaces: false,
            apparmor: apparmor::enabled(),
            // Loaded by `apparmor::load`.
            apparmor_default: false,
            selinux: Path::new("/sys/fs/selinux/enforce").exists(),
            swap: match cgroups.version() {
                Version::V1 => cgroups.dir("memory", "/").join("memory.memsw.limit_in_bytes").exists(),
                // The root has no such file; the one of this process' own cgroup has.
                Version::V2 => own
                    .lines()
                    .filter_map(|l| l.strip_prefix("0::"))
                    .any(|path| cgroups.dir("", path).join("memory.swap.max").exists()),
            },
            huge_pages: match cgroups.version() {
                Version::V1 => cgroups.dir("hugetlb", "/").join("cgroup.procs").exists(),
                Version::V2 => std::fs::read_to_string(cgroups.dir("", "/").join("cgroup.controllers"))
                    .is_ok_and(|all| all.split_ascii_whitespace().any(|c| c == "hugetlb")),
            },
            cgroup_v2: cgroups.version() == Version::V2,
        }
    }
}

/// Whether an OCI runtime whose `features` printed this can make a mount read-only in depth on this kernel.
#[must_use]
pub fn recursive_read_only(features: &[u8]) -> bool {
    let said: serde_json::Value = serde_json::from_slice(features).unwrap_or_default();
    let mut options = said["mountOptions"].as_array().into_iter().flatten();
    kernel() >= (5, 12) && options.any(|o| o == "rro")
}

/// The kernel's version, major and minor.
fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).filter_map(|n| n.parse().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
