//! Names of slices, and where systemd puts their cgroups: `a-b.slice` lies in `/a.slice/a-b.slice`.

use std::fmt;

/// The longest name of a unit (UNIT_NAME_MAX of systemd).
const MAX: usize = 255;

/// A name that is no slice's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid slice name: {0:?}")]
pub struct InvalidSlice(pub String);

/// A slice below the root slice, by its name: `kubepods-burstable.slice`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slice(String);

impl Slice {
    /// Reads a name, by the rules of libcontainer's `ExpandSlice` (cgroups/systemd/common.go) and those of systemd
    /// for the characters of a unit's name. The root slice, which is everybody's, is refused.
    ///
    /// # Errors
    /// [`InvalidSlice`].
    pub fn parse(name: &str) -> Result<Self, InvalidSlice> {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | ':' | '@' | '-');
        let stem = name.strip_suffix(".slice").filter(|_| name.len() <= MAX);
        let good = |stem: &str| stem.chars().all(fits) && stem.split('-').all(|part| !part.is_empty());
        match stem {
            Some(stem) if good(stem) => Ok(Slice(name.to_owned())),
            _ => Err(InvalidSlice(name.to_owned())),
        }
    }

    /// Reads a name, or the whole path of a slice's cgroup, as kubelets hand it over.
    ///
    /// # Errors
    /// [`InvalidSlice`], also for a path at which systemd would not have the slice.
    pub fn of_path(path: &str) -> Result<Self, InvalidSlice> {
        let invalid = || InvalidSlice(path.to_owned());
        let slice = Slice::parse(path.rsplit('/').next().unwrap_or_default()).map_err(|_| invalid())?;
        if path == slice.0 || path == slice.path() { Ok(slice) } else { Err(invalid()) }
    }

    /// The slice of these names one below the other, with `-` in a name as `_`: the kubelet's
    /// `CgroupName.ToSystemd` (pkg/kubelet/cm/cgroup_manager_linux.go).
    ///
    /// # Errors
    /// [`InvalidSlice`].
    pub fn of_parts<'a>(parts: impl IntoIterator<Item = &'a str>) -> Result<Self, InvalidSlice> {
        let parts: Vec<String> = parts.into_iter().map(|part| part.replace('-', "_")).collect();
        Slice::parse(&format!("{}.slice", parts.join("-")))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }

    fn stem(&self) -> &str {
        self.0.strip_suffix(".slice").unwrap_or(&self.0)
    }

    /// The path of its cgroup.
    #[must_use]
    pub fn path(&self) -> String {
        let stem = self.stem();
        let ends = stem.match_indices('-').map(|(at, _)| at).chain([stem.len()]);
        ends.fold(String::new(), |path, end| format!("{path}/{}.slice", &stem[..end]))
    }

    /// The name of the slice that it lies in; `-.slice` is the root.
    #[must_use]
    pub fn parent(&self) -> String {
        match self.stem().rsplit_once('-') {
            Some((above, _)) => format!("{above}.slice"),
            None => "-.slice".to_owned(),
        }
    }

    /// The last of its names, `_` as `-` again.
    #[must_use]
    pub fn last(&self) -> String {
        self.stem().rsplit('-').next().unwrap_or_default().replace('_', "-")
    }
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_lies_in_those_that_its_name_begins_with() {
        let slice = Slice::of_parts(["kubepods", "burstable", "pod12ab-cd-ef"]).unwrap();
        assert_eq!(slice.name(), "kubepods-burstable-pod12ab_cd_ef.slice");
        assert_eq!(
            slice.path(),
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod12ab_cd_ef.slice"
        );
        assert_eq!(
            (slice.parent().as_str(), slice.last().as_str()),
            ("kubepods-burstable.slice", "pod12ab-cd-ef")
        );
        assert_eq!(Slice::of_path(&slice.path()).unwrap(), slice);
        assert_eq!(Slice::of_path(slice.name()).unwrap(), slice);
        assert_eq!(Slice::parse("a.slice").unwrap().parent(), "-.slice");
    }

    #[test]
    fn what_systemd_would_have_elsewhere_is_refused() {
        for bad in [
            "",
            ".slice",
            "-.slice",
            "a",
            "a.scope",
            "a--b.slice",
            "-a.slice",
            "a-.slice",
            "a/b.slice",
            "../a.slice",
            "a b.slice",
            "a\n.slice",
            "ä.slice",
            "a%n.slice",
        ] {
            assert!(Slice::parse(bad).is_err(), "{bad:?}");
        }
        for bad in [
            "/a-b.slice",
            "/b.slice/a-b.slice",
            "/a.slice/../a.slice",
            "//a.slice",
            "/a.slice/",
            "/",
            "/kubepods/pod",
        ] {
            assert!(Slice::of_path(bad).is_err(), "{bad:?}");
        }
        assert!(Slice::parse(&format!("{}.slice", "a".repeat(250))).is_err());
        assert!(Slice::of_parts(["kubepods", ""]).is_err());
    }
}
