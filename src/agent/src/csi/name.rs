//! What a CSI driver calls itself, and which versions of CSI it speaks. Its name becomes a directory's, a key of
//! objects and part of messages; whoever reaches the registry's directory, or writes a PersistentVolume, gives it.

use std::fmt;

/// The name of a driver: `hostpath.csi.k8s.io` (`ValidateCSIDriverName` of pkg/apis/core/validation).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DriverName(String);

impl DriverName {
    /// None where it is none.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let label = |label: &str| {
            let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
            ends(label.chars().next())
                && ends(label.chars().next_back())
                && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
        };
        (name.len() <= 63 && name.split('.').all(label)).then(|| DriverName(name.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DriverName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A version of CSI that this agent speaks: 1.x.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    minor: u32,
}

impl Version {
    /// The highest of those that a driver names (`HighestSupportedVersion`); none where it speaks no 1.x.
    #[must_use]
    pub fn highest(of: &[String]) -> Option<Self> {
        of.iter().filter_map(|text| Version::parse(text)).max()
    }

    fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.trim_start_matches('v').split('.').map(str::parse::<u32>);
        let mut next = || numbers.next().map_or(Some(0), Result::ok);
        let (major, minor) = (next()?, next()?);
        // Others are no versions, or of a CSI that is not this one.
        (major == 1 && numbers.all(|n| n.is_ok())).then_some(Version { minor })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_driver_has_a_domains_name() {
        for good in ["hostpath.csi.k8s.io", "a", "Ebs-1.example.com"] {
            assert_eq!(DriverName::parse(good).unwrap().as_str(), good);
        }
        let long = "a".repeat(64);
        for bad in ["", ".", "..", "a..b", "a/b", "../x", "-a", "a-", "a b", "a\0b", "a_b", &long] {
            assert_eq!(DriverName::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_highest_version_of_csi_1_counts() {
        let of = |all: &[&str]| Version::highest(&all.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>());
        assert!(of(&["1.2.0", "0.3.0"]) > of(&["v1.0"]));
        assert_eq!(of(&["1.0.0"]), of(&["1"]));
        for none in [&["0.3.0"][..], &["2.0.0"], &["1.x"], &[], &["one"]] {
            assert_eq!(of(none), None, "{none:?}");
        }
    }
}
