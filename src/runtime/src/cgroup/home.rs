//! The cgroup in which the pods' monitors live, where it is not to be the runtime's: containerd's `ShimCgroup`,
//! CRI-O's `conmon_cgroup`. With the systemd driver it is a slice.
//!
//! A container that shares the host's PID namespace is ended by its cgroup: with the first process go all that
//! are in there (runc's `signalAllProcesses`). Where the runtime itself runs in such a container, its monitors
//! have to outlive it as they outlive it anywhere, so each is moved as soon as it runs, beside the work on the
//! pod's network. The runtime stays where it is: it can be killed and limited there. What a monitor starts later
//! is born where the monitor is.

use super::driver::{Units, plain};
use super::{Cgroups, Version};
use podway_systemd::{ManagerError, Slice};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What v1 gives to a new cgroup empty; no process enters before.
const CPUSET: [&str; 2] = ["cpuset.cpus", "cpuset.mems"];

/// Why the cgroup cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// Not a path, or that of the root, which is everybody's.
    #[error("[monitor] cgroup = {0:?}: give an absolute cgroupfs path below the root, without `..`")]
    Path(String),
    /// With systemd: not a slice.
    #[error(
        "[monitor] cgroup = {0:?}: cgroup_driver is \"systemd\": give a slice, e.g. \"podway-monitors.slice\""
    )]
    Slice(String),
    /// systemd refused.
    #[error("a monitor gets no scope")]
    Scope(#[from] ManagerError),
    /// The kernel refused.
    #[error("cannot {verb} {path}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// The cgroup, in every tree that the machine has.
#[derive(Clone, Debug)]
pub struct Home {
    cgroups: Cgroups,
    /// Without one whoever is started stays where the runtime is.
    path: Option<String>,
    /// With systemd each has a scope of its own in this slice, which goes with it.
    slice: Option<(Units, Slice)>,
}

impl Home {
    /// Makes it, or finds it there; without a path there is nothing to make.
    ///
    /// # Errors
    /// [`HomeError`].
    pub fn make(cgroups: Cgroups, path: Option<&str>) -> Result<Self, HomeError> {
        let checked = |p: &str| match plain(p) {
            Ok(path) if !path.is_empty() => Ok(path),
            _ => Err(HomeError::Path(p.to_owned())),
        };
        let home = Home { cgroups, path: path.map(checked).transpose()?, slice: None };
        for tree in home.trees()? {
            let mut dir = tree;
            for part in home.path.iter().flat_map(|p| p.split('/')).filter(|p| !p.is_empty()) {
                dir.push(part);
                match fs::create_dir(&dir) {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(at("make", &dir)(e)),
                    _ => {}
                }
                for file in CPUSET {
                    inherit(&dir, file)?;
                }
            }
        }
        Ok(home)
    }

    /// The same with systemd, which makes the slice when the first monitor is there.
    ///
    /// # Errors
    /// [`HomeError`].
    pub fn of_units(cgroups: Cgroups, units: Units, slice: Option<&str>) -> Result<Self, HomeError> {
        let checked = |name: &str| Slice::of_path(name).map_err(|e| HomeError::Slice(e.0));
        let slice = slice.map(checked).transpose()?.map(|slice| (units, slice));
        Ok(Home { cgroups, path: None, slice })
    }

    /// Moves a process there, with its threads; its children so far stay where they are. `name` is for its scope,
    /// if it gets one.
    ///
    /// # Errors
    /// [`HomeError`].
    pub async fn take_in(&self, pid: u32, name: &str) -> Result<(), HomeError> {
        match &self.slice {
            // The pid, for the scope of one that was replaced may not be gone yet.
            Some((units, slice)) => Ok(units.scope(&format!("{name}-{pid}.scope"), slice, pid).await?),
            None => {
                let home = self.clone();
                let moved = tokio::task::spawn_blocking(move || home.write(pid)).await;
                moved.map_err(|e| at("move a monitor to", &self.cgroups.mount)(io::Error::other(e)))?
            }
        }
    }

    fn write(&self, pid: u32) -> Result<(), HomeError> {
        let Some(path) = &self.path else { return Ok(()) };
        for tree in self.trees()? {
            let procs = tree.join(path.trim_start_matches('/')).join("cgroup.procs");
            fs::write(&procs, pid.to_string()).map_err(at("move a monitor by writing", &procs))?;
        }
        Ok(())
    }

    /// Removes it, unless somebody lives there. What of the path was there before stays.
    ///
    /// # Errors
    /// The kernel's.
    pub fn leave(&self) -> io::Result<()> {
        match &self.path {
            Some(path) if self.cgroups.processes(path).is_empty() => self.cgroups.remove_tree(path),
            _ => Ok(()),
        }
    }

    /// Links (`cpu` → `cpu,cpuacct`) lead to a tree that is in the list.
    fn trees(&self) -> Result<Vec<PathBuf>, HomeError> {
        let mount = &self.cgroups.mount;
        match (&self.path, self.cgroups.version) {
            (None, _) => Ok(Vec::new()),
            (Some(_), Version::V2) => Ok(vec![mount.clone()]),
            (Some(_), Version::V1) => {
                let entries = fs::read_dir(mount).and_then(Iterator::collect::<io::Result<Vec<_>>>);
                let entries = entries.map_err(at("list", mount))?.into_iter();
                let own = entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path());
                Ok(own.filter(|tree| tree.join("cgroup.procs").exists()).collect())
            }
        }
    }
}

/// Takes a value from the cgroup above where this one has none; a file that is not there is of another tree.
fn inherit(dir: &Path, file: &str) -> Result<(), HomeError> {
    let own = dir.join(file);
    let value = match fs::read_to_string(&own) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(at("read", &own))?,
    };
    let Some(above) = dir.parent().map(|d| d.join(file)).filter(|_| value.trim().is_empty()) else {
        return Ok(());
    };
    // On v2 the root has none, and an empty one means that of the cgroup above.
    match fs::read_to_string(&above) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => match other.map_err(at("read", &above))? {
            above if above.trim().is_empty() => Ok(()),
            above => fs::write(&own, above).map_err(at("write", &own)),
        },
    }
}

fn at(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HomeError {
    let path = path.to_owned();
    move |source| HomeError::Io { verb, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Trees as the kernel has them, with the files that it makes in a new directory made before.
    #[test]
    fn every_tree_has_it_and_cpusets_are_passed_down() {
        let mount = tempfile::tempdir().unwrap();
        for dir in ["memory/podway/monitors", "cpuset/podway/monitors", "cpu,cpuacct", "not-a-tree"] {
            fs::create_dir_all(mount.path().join(dir)).unwrap();
        }
        std::os::unix::fs::symlink("cpu,cpuacct", mount.path().join("cpu")).unwrap();
        for tree in ["memory", "cpuset", "cpu,cpuacct"] {
            fs::write(mount.path().join(tree).join("cgroup.procs"), "").unwrap();
        }
        let file = |path: &str| mount.path().join(path);
        for name in CPUSET {
            fs::write(file("cpuset").join(name), "0-1\n").unwrap();
            fs::write(file("cpuset/podway").join(name), "\n").unwrap();
            fs::write(file("cpuset/podway/monitors").join(name), "").unwrap();
        }
        let home = Home::make(Cgroups::at(mount.path()), Some("/podway/monitors")).unwrap();
        assert_eq!(fs::read_to_string(file("cpuset/podway/monitors/cpuset.mems")).unwrap(), "0-1\n");
        home.write(17).unwrap();
        for tree in ["memory", "cpuset", "cpu,cpuacct"] {
            let procs = fs::read_to_string(file(tree).join("podway/monitors/cgroup.procs")).unwrap();
            assert_eq!(procs, "17", "{tree}");
        }
        assert!(!file("not-a-tree/podway").exists());
        // Somebody lives there.
        home.leave().unwrap();
        assert!(file("memory/podway/monitors").exists());
    }

    #[test]
    fn without_one_nothing_is_touched_and_a_bad_one_is_named() {
        let mount = tempfile::tempdir().unwrap();
        fs::write(mount.path().join("cgroup.controllers"), "").unwrap();
        let make = |path| Home::make(Cgroups::at(mount.path()), path);
        let none = make(None).unwrap();
        none.write(1).unwrap();
        none.leave().unwrap();
        assert_eq!(fs::read_dir(mount.path()).unwrap().count(), 1);
        for bad in ["monitors", "/a/../b", "/system.slice", "/", ""] {
            let error = make(Some(bad)).unwrap_err();
            assert!(error.to_string().contains("[monitor] cgroup"), "{bad:?}: {error}");
        }
        let units = |slice| Home::of_units(Cgroups::at(mount.path()), Units::new(Version::V2), slice);
        assert!(units(Some("podway-monitors.slice")).is_ok() && units(None).is_ok());
        for bad in ["/podway/monitors", "-.slice", "/a/../b.slice", ""] {
            let error = units(Some(bad)).unwrap_err();
            assert!(error.to_string().contains("[monitor] cgroup"), "{bad:?}: {error}");
        }
        let v2 = make(Some("/podway/monitors")).unwrap();
        v2.leave().unwrap();
        assert!(mount.path().join("podway").exists() && !mount.path().join("podway/monitors").exists());
    }
}
