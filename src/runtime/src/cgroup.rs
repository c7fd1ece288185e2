//! Where a container's cgroup is, on v1 and v2, and what limits the kernel holds for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How the machine mounts cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// One tree per controller.
    V1,
    /// One tree.
    V2,
}

/// A cgroup parent that is not a plain absolute path.
#[derive(Debug, thiserror::Error)]
#[error(
    "cgroup_parent {0:?} is not supported: give an absolute cgroupfs path without `..` (systemd slices are not supported)"
)]
pub struct InvalidParent(String);

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

    /// Removes the empty cgroup `path` of every controller; one that is not there is removed already.
    ///
    /// # Errors
    /// The kernel's, e.g. busy while a process is in it.
    pub fn remove(&self, path: &str) -> std::io::Result<()> {
        let dirs: Vec<PathBuf> = match self.version {
            Version::V2 => vec![self.dir("", path)],
            Version::V1 => std::fs::read_dir(&self.mount)?
                .filter_map(Result::ok)
                .map(|e| e.path().join(path.trim_start_matches('/')))
                .collect(),
        };
        for dir in dirs {
            match std::fs::remove_dir(&dir) {
                Err(e)
                    if !matches!(
                        e.kind(),
                        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
                    ) =>
                {
                    return Err(e);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// A checked cgroup parent; the default where none is asked for.
///
/// # Errors
/// [`InvalidParent`] for a relative path, `..` or a systemd slice.
pub fn parent(asked: &str, default: &str) -> Result<String, InvalidParent> {
    let path = if asked.is_empty() { default } else { asked };
    let plain = path.starts_with('/')
        && !path.ends_with(".slice")
        && !path.contains(['\0', '\n', ':'])
        && path.split('/').all(|p| p != ".." && p != ".");
    if plain { Ok(path.trim_end_matches('/').to_owned()) } else { Err(InvalidParent(path.to_owned())) }
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

    #[test]
    fn a_parent_is_an_absolute_plain_path() {
        assert_eq!(parent("", "/podway").unwrap(), "/podway");
        assert_eq!(parent("/kubepods/x/", "/p").unwrap(), "/kubepods/x");
        for bad in ["kubepods", "/a/../b", "kubepods.slice", "/a/b.slice", "/a:b"] {
            assert!(parent(bad, "/p").is_err(), "{bad}");
        }
    }
}
