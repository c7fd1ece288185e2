//! Where a node's cgroups lie: `<root>/kubepods[/burstable|/besteffort]/pod<uid>`, or the slices that systemd has
//! for these names. Which of the two is the runtime's word (KEP-4033), as both must have the same manager.

use podway_systemd::{Driver, InvalidSlice, Slice};

/// A cgroup: its path in a tree (empty for the root), which is CRI's `cgroup_parent` too, and what it is to systemd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// `/kubepods/burstable`.
    pub path: String,
    /// `kubepods-burstable.slice`; none where systemd is not asked.
    pub slice: Option<Slice>,
}

/// The layout of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    driver: Driver,
    root: Vec<String>,
    top: Group,
    pods: Group,
}

impl Layout {
    /// The layout below `root` (`--cgroup-root`), with systemd a path of plain names as well.
    ///
    /// # Errors
    /// [`InvalidSlice`] where systemd cannot have a slice of these names.
    pub fn new(driver: Driver, root: &str) -> Result<Self, InvalidSlice> {
        let root: Vec<String> = root.split('/').filter(|p| !p.is_empty()).map(str::to_owned).collect();
        let none = Group { path: String::new(), slice: None };
        let mut layout = Layout { driver, root, top: none.clone(), pods: none };
        if !layout.root.is_empty() {
            layout.top = layout.group(&[])?;
        }
        layout.pods = layout.group(&["kubepods"])?;
        Ok(layout)
    }

    /// Who manages it.
    #[must_use]
    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// The root's path, empty for the whole machine.
    #[must_use]
    pub fn root(&self) -> &str {
        &self.top.path
    }

    /// The cgroup of all pods.
    #[must_use]
    pub fn pods(&self) -> &Group {
        &self.pods
    }

    /// The cgroup of a lower class: `burstable`, `besteffort`.
    ///
    /// # Errors
    /// [`InvalidSlice`].
    pub fn class(&self, class: &str) -> Result<Group, InvalidSlice> {
        self.group(&["kubepods", class])
    }

    /// A pod's cgroup. `qos` is the pod's QoS class.
    ///
    /// # Errors
    /// [`InvalidSlice`] where systemd cannot have a slice of this UID's name.
    pub fn pod(&self, qos: &str, uid: &str) -> Result<Group, InvalidSlice> {
        let pod = format!("pod{uid}");
        match qos {
            "Guaranteed" => self.group(&["kubepods", &pod]),
            "Burstable" => self.group(&["kubepods", "burstable", &pod]),
            _ => self.group(&["kubepods", "besteffort", &pod]),
        }
    }

    /// Of which pod a directory in the cgroup of all pods or in that of a class is.
    #[must_use]
    pub fn uid(&self, directory: &str) -> Option<String> {
        match self.driver {
            Driver::Cgroupfs => directory.strip_prefix("pod").map(str::to_owned),
            Driver::Systemd => Slice::parse(directory).ok()?.last().strip_prefix("pod").map(str::to_owned),
        }
    }

    /// Somebody else's cgroup, by the whole of its name: `/system`, `/system.slice`.
    ///
    /// # Errors
    /// [`InvalidSlice`].
    pub fn named(&self, name: &str) -> Result<Group, InvalidSlice> {
        Ok(match self.driver {
            Driver::Cgroupfs => Group { path: format!("/{}", name.trim_matches('/')), slice: None },
            Driver::Systemd => {
                let slice =
                    Slice::of_path(name.strip_prefix('/').filter(|n| !n.contains('/')).unwrap_or(name))?;
                Group { path: slice.path(), slice: Some(slice) }
            }
        })
    }

    fn group(&self, below: &[&str]) -> Result<Group, InvalidSlice> {
        let parts = self.root.iter().map(String::as_str).chain(below.iter().copied());
        Ok(match self.driver {
            Driver::Cgroupfs => {
                Group { path: parts.fold(String::new(), |path, part| path + "/" + part), slice: None }
            }
            Driver::Systemd => {
                let slice = Slice::of_parts(parts)?;
                Group { path: slice.path(), slice: Some(slice) }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_kubelets_with_either_manager() {
        let plain = Layout::new(Driver::Cgroupfs, "/").unwrap();
        assert_eq!((plain.root(), plain.pods().path.as_str()), ("", "/kubepods"));
        assert_eq!(plain.pod("Guaranteed", "a-b").unwrap().path, "/kubepods/poda-b");
        assert_eq!(plain.pod("BestEffort", "a-b").unwrap().path, "/kubepods/besteffort/poda-b");
        assert_eq!(plain.uid("poda-b").as_deref(), Some("a-b"));
        assert_eq!(plain.uid("burstable"), None);

        let slices = Layout::new(Driver::Systemd, "").unwrap();
        assert_eq!((slices.root(), slices.pods().path.as_str()), ("", "/kubepods.slice"));
        let pod = slices.pod("Burstable", "a-b").unwrap();
        assert_eq!(
            pod.path, "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-poda_b.slice",
            "kubelet_pods.go hands the runtime the whole path"
        );
        assert_eq!(slices.uid("kubepods-burstable-poda_b.slice").as_deref(), Some("a-b"));
        assert_eq!(slices.uid("kubepods-burstable.slice"), None);
        assert_eq!(slices.uid("poda_b"), None);

        let below = Layout::new(Driver::Systemd, "/podway/node-0/").unwrap();
        assert_eq!(below.root(), "/podway.slice/podway-node_0.slice");
        assert_eq!(below.pods().slice.as_ref().unwrap().name(), "podway-node_0-kubepods.slice");
        for name in ["system.slice", "/system.slice"] {
            assert_eq!(below.named(name).unwrap().path, "/system.slice");
        }
        assert!(below.named("/system").is_err());
        assert_eq!(plain.named("system/daemons").unwrap().path, "/system/daemons");
        assert_eq!(Layout::new(Driver::Cgroupfs, "/podway/node-0/").unwrap().root(), "/podway/node-0");
    }

    #[test]
    fn a_name_that_systemd_cannot_have_is_refused() {
        assert!(Layout::new(Driver::Systemd, "/a b").is_err());
        let layout = Layout::new(Driver::Systemd, "/").unwrap();
        assert!(layout.pod("Guaranteed", "x/../y").is_err());
        assert!(layout.pod("Guaranteed", &"a".repeat(250)).is_err());
    }
}
