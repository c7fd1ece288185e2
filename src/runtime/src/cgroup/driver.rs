//! Who makes cgroups: runc, by directories, or systemd, by units (the kubelet's `cgroupDriver`, containerd's
//! `SystemdCgroup`, CRI-O's `cgroup_manager`).
//!
//! All that is kept and read is a path below the cgroup mount, with either driver. Its shape tells which made it: a
//! scope in a slice is systemd's. So what was made under one driver is found, and removed, under the other.

use super::Version;
use crate::ids::Id;
use podway_systemd::{Driver, Manager, ManagerError, Slice};
use std::sync::Arc;

/// What stands before a container's id in the name of its scope: containerd's is `cri-containerd`, CRI-O's `crio`.
const PREFIX: &str = "cri-podway";

/// A cgroup parent that is not of the driver's kind.
#[derive(Debug, thiserror::Error)]
pub enum InvalidParent {
    /// With cgroupfs: not a plain absolute path.
    #[error(
        "cgroup_parent {0:?} is not supported: give an absolute cgroupfs path without `..` (cgroup_driver is \
         \"cgroupfs\": a systemd slice is none)"
    )]
    Path(String),
    /// With systemd: not a slice.
    #[error(
        "cgroup_parent {0:?} is not supported: cgroup_driver is \"systemd\", but did not receive a slice as parent \
         (NAME.slice, or the path at which systemd has it)"
    )]
    Slice(String),
}

/// The path of a sandbox' cgroup: the one that is asked for, else one of its own below the default, which is
/// `/podway` or `podway.slice` where the configuration has none.
///
/// # Errors
/// [`InvalidParent`] for a relative path, `..`, or one of the other driver's kind.
pub fn sandbox(driver: Driver, asked: &str, default: &str, id: &Id) -> Result<String, InvalidParent> {
    let given = [asked, default].into_iter().find(|p| !p.is_empty());
    match driver {
        Driver::Cgroupfs => {
            let parent = plain(given.unwrap_or("/podway"))?;
            Ok(if asked.is_empty() { format!("{parent}/{id}") } else { parent })
        }
        Driver::Systemd => {
            let slice = slice(given.unwrap_or("podway.slice"))?;
            if !asked.is_empty() {
                return Ok(slice.path());
            }
            let own = slice.name().trim_end_matches(".slice");
            Slice::parse(&format!("{own}-{id}.slice"))
                .map(|own| own.path())
                .map_err(|e| InvalidParent::Slice(e.0))
        }
    }
}

/// A checked path of cgroupfs.
pub(super) fn plain(path: &str) -> Result<String, InvalidParent> {
    let plain = path.starts_with('/')
        && !path.ends_with(".slice")
        && !path.contains(['\0', '\n', ':'])
        && path.split('/').all(|p| p != ".." && p != ".");
    if plain { Ok(path.trim_end_matches('/').to_owned()) } else { Err(InvalidParent::Path(path.to_owned())) }
}

fn slice(path: &str) -> Result<Slice, InvalidParent> {
    Slice::of_path(path).map_err(|e| InvalidParent::Slice(e.0))
}

/// The path of a container's cgroup in that of its sandbox.
#[must_use]
pub fn container(sandbox: &str, id: &Id) -> String {
    if sandbox.ends_with(".slice") {
        format!("{sandbox}/{PREFIX}-{id}.scope")
    } else {
        format!("{sandbox}/{id}")
    }
}

/// The unit that a cgroup is, if it is one.
#[must_use]
pub fn unit(path: &str) -> Option<&str> {
    let (above, name) = path.rsplit_once('/')?;
    let scope = name.ends_with(".scope") && above.ends_with(".slice");
    (scope || name.ends_with(".slice")).then_some(name)
}

/// What config.json says of a container's cgroup: its path, or for a scope `slice:prefix:name`, which with
/// `--systemd-cgroup` an OCI runtime asks systemd for.
#[must_use]
pub fn oci(path: &str) -> String {
    let parts = || {
        let (above, name) = path.rsplit_once('/')?;
        let slice = above.rsplit('/').next().filter(|s| s.ends_with(".slice"))?;
        let id = name.strip_suffix(".scope")?.strip_prefix(PREFIX)?.strip_prefix('-')?;
        Some(format!("{slice}:{PREFIX}:{id}"))
    };
    parts().unwrap_or_else(|| path.to_owned())
}

/// Units of systemd.
#[derive(Clone, Debug)]
pub struct Units {
    manager: Arc<Manager>,
    v2: bool,
}

impl Units {
    /// Those of the system's manager, which is asked when there is something to ask.
    #[must_use]
    pub fn new(version: Version) -> Self {
        Units { manager: Arc::default(), v2: version == Version::V2 }
    }

    /// Which systemd answers.
    ///
    /// # Errors
    /// [`ManagerError`] if none does.
    pub async fn version(&self) -> Result<String, ManagerError> {
        self.manager.version().await
    }

    /// Puts a process into a scope of its own.
    ///
    /// # Errors
    /// [`ManagerError`].
    pub async fn scope(&self, name: &str, slice: &Slice, pid: u32) -> Result<(), ManagerError> {
        self.manager.start_scope(name, slice, pid, self.v2).await
    }

    /// Ends the unit that a cgroup is, with all that runs in it; a cgroup of the other driver is left.
    ///
    /// # Errors
    /// [`ManagerError`].
    pub async fn end(&self, path: &str) -> Result<(), ManagerError> {
        match unit(path) {
            Some(unit) => self.manager.stop(unit).await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> Id {
        Id::random().unwrap()
    }

    #[test]
    fn a_parent_of_cgroupfs_is_an_absolute_plain_path() {
        let (driver, id) = (Driver::Cgroupfs, id());
        assert_eq!(sandbox(driver, "", "", &id).unwrap(), format!("/podway/{id}"));
        assert_eq!(sandbox(driver, "", "/p", &id).unwrap(), format!("/p/{id}"));
        assert_eq!(sandbox(driver, "/kubepods/x/", "/p", &id).unwrap(), "/kubepods/x");
        for bad in ["kubepods", "/a/../b", "kubepods.slice", "/a/b.slice", "/a:b"] {
            let error = sandbox(driver, bad, "/p", &id).unwrap_err().to_string();
            assert!(error.contains(&format!("cgroup_parent {bad:?}")), "{error}");
        }
    }

    #[test]
    fn a_parent_of_systemd_is_a_slice() {
        let (driver, id) = (Driver::Systemd, id());
        assert_eq!(sandbox(driver, "", "", &id).unwrap(), format!("/podway.slice/podway-{id}.slice"));
        let pod = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice";
        for asked in [pod, "kubepods-burstable-pod1_2.slice"] {
            assert_eq!(sandbox(driver, asked, "x.slice", &id).unwrap(), pod);
        }
        for bad in [
            "/kubepods/pod1",
            "kubepods",
            "/a/../b.slice",
            "/",
            "-.slice",
            ".slice",
            "/a-b.slice",
            "a/b.slice",
            "a:b",
            "/podway",
        ] {
            let error = sandbox(driver, bad, "", &id).unwrap_err().to_string();
            assert!(error.contains(&format!("cgroup_parent {bad:?}")) && error.contains("slice"), "{error}");
        }
        assert!(sandbox(driver, "", "/podway", &id).is_err(), "also where the configuration has it");
    }

    #[test]
    fn the_shape_of_a_path_tells_who_made_it() {
        let id = id();
        let scope = container("/kubepods.slice/kubepods-pod1.slice", &id);
        assert_eq!(scope, format!("/kubepods.slice/kubepods-pod1.slice/cri-podway-{id}.scope"));
        assert_eq!(oci(&scope), format!("kubepods-pod1.slice:cri-podway:{id}"));
        assert_eq!(unit(&scope), Some(format!("cri-podway-{id}.scope").as_str()));
        let plain = container("/kubepods/pod1", &id);
        assert_eq!((oci(&plain), unit(&plain)), (format!("/kubepods/pod1/{id}"), None));
        assert_eq!(unit("/podway.slice/podway-1.slice"), Some("podway-1.slice"));
    }
}
