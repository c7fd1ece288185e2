//! Where a container's cgroup is, on v1 and v2, and what limits the kernel holds for it; what it
//! uses is read by [`usage`], [`home`] is where the monitors are, and [`driver`] who makes cgroups: runc alone, or
//! systemd.

pub mod driver;
pub mod home;
pub mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// How the machine mounts cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One tree per controller.
    V1,
    /// One tree.
    V2,
}

/// The cgroup file system.
#[derive(Clone, Debug)]
pub struct Cgroups {
    mount: PathBuf,
    version: Version,
}

impl Cgroups {
    /// Looks at the tree at `mount` (normally `/sys/fs/cgroup`).
    #[must_use]
    pub fn at(mount: &Path) -> Self {
        let v2 = mount.join("cgroup.controllers").exists();
        Cgroups { mount: mount.to_owned(), version: if v2 { Version::V2 } else { Version::V1 } }
    }

    /// Which version the tree is.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The directory of a cgroup in one controller's tree.
    #[must_use]
    pub fn dir(&self, controller: &str, path: &str) -> PathBuf {
        let relative = path.trim_start_matches('/');
        match self.version {
            Version::V1 => self.mount.join(controller).join(relative),
            Version::V2 => self.mount.join(relative),
        }
    }

    /// The limits that the kernel holds for a cgroup, by the name of their file; a file that is
    /// not there (a controller that is not mounted) is left out.
    #[must_use]
    pub fn limits(&self, path: &str) -> BTreeMap<&'static str, String> {
        let files: &[(&str, &str)] = match self.version {
            Version::V1 => &[
                ("memory", "memory.limit_in_bytes"),
                ("cpu", "cpu.shares"),
                ("cpu", "cpu.cfs_quota_us"),
                ("cpu", "cpu.cfs_period_us"),
                ("pids", "pids.max"),
                ("cpuset", "cpuset.cpus"),
            ],
            Version::V2 => &[
                ("", "memory.max"),
                ("", "cpu.weight"),
                ("", "cpu.max"),
                ("", "pids.max"),
                ("", "cpuset.cpus"),
            ],
        };
        files
            .iter()
            .filter_map(|&(controller, file)| {
                let text = std::fs::read_to_string(self.dir(controller, path).join(file)).ok()?;
                Some((file, text.trim().to_owned()))
            })
            .collect()
    }

    /// A cgroup's directory in every tree that it may be in.
    fn dirs(&self, path: &str) -> Vec<PathBuf> {
        let relative = path.trim_start_matches('/');
        match self.version {
            Version::V2 => vec![self.mount.join(relative)],
            Version::V1 => {
                let trees = std::fs::read_dir(&self.mount).into_iter().flatten().flatten();
                trees.map(|e| e.path().join(relative)).filter(|d| d.is_dir()).collect()
            }
        }
    }

    /// The processes in a cgroup and below it, in any controller's tree.
    #[must_use]
    pub fn processes(&self, path: &str) -> BTreeSet<u32> {
        let mut all = BTreeSet::new();
        let mut dirs = self.dirs(path);
        while let Some(dir) = dirs.pop() {
            let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            all.extend(text.lines().filter_map(|l| l.parse::<u32>().ok()));
            let below = std::fs::read_dir(&dir).into_iter().flatten().flatten();
            dirs.extend(below.map(|e| e.path()).filter(|p| p.is_dir()));
        }
        all
    }

    /// Whether the kernel has killed in the cgroup for want of memory.
    #[must_use]
    pub fn oom_killed(&self, path: &str) -> bool {
        let dir = self.dir("memory", path);
        let kills = |file: &str| {
            let text = std::fs::read_to_string(dir.join(file)).ok()?;
            text.lines().find_map(|l| l.strip_prefix("oom_kill "))?.trim().parse::<u64>().ok()
        };
        kills("memory.oom_control").or_else(|| kills("memory.events")).is_some_and(|n| n > 0)
    }

    /// Removes the cgroup `path` and the empty ones below it, of every controller; one that is not
    /// there is removed already.
    ///
    /// # Errors
    /// The kernel's, e.g. busy while a process is in it.
    pub fn remove_tree(&self, path: &str) -> std::io::Result<()> {
        self.dirs(path).iter().try_for_each(|dir| remove_below(dir))
    }
}

fn remove_below(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_below(&entry.path())?;
        }
    }
    match std::fs::remove_dir(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_back_from_either_tree() {
        let tmp = tempfile::tempdir().unwrap();
        let v1 = tmp.path().join("v1");
        std::fs::create_dir_all(v1.join("memory/pod/c")).unwrap();
        std::fs::write(v1.join("memory/pod/c/memory.limit_in_bytes"), "1024\n").unwrap();
        let cgroups = Cgroups::at(&v1);
        assert_eq!(cgroups.version(), Version::V1);
        assert_eq!(cgroups.limits("/pod/c"), BTreeMap::from([("memory.limit_in_bytes", "1024".to_owned())]));
        let v2 = tmp.path().join("v2");
        std::fs::create_dir_all(v2.join("pod/c")).unwrap();
        std::fs::write(v2.join("cgroup.controllers"), "").unwrap();
        std::fs::write(v2.join("pod/c/memory.max"), "max\n").unwrap();
        let cgroups = Cgroups::at(&v2);
        assert_eq!(cgroups.limits("/pod/c"), BTreeMap::from([("memory.max", "max".to_owned())]));
    }
}
