//! What a plugin calls itself: its resource and its socket. Whoever may write into the directory of the plugins can
//! say anything here.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::{Component, Path};

/// The registry's own socket, of which no plugin's may have the name.
pub const REGISTRY: &str = "kubelet.sock";

/// The name of an extended resource: `example.com/device` (`IsExtendedResourceName` of pkg/apis/core/v1/helper).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Resource(String);

impl Resource {
    /// None where it is none.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        // As a quota's resource it has `requests.` before it, which must leave it a qualified name.
        const FOR_QUOTA: usize = "requests.".len();
        let (domain, rest) = name.split_once('/')?;
        let native = name.contains("kubernetes.io/") || name.starts_with("requests.");
        let alphanumeric = |c: Option<char>, upper: bool| {
            c.is_some_and(|c| {
                c.is_ascii_digit() || c.is_ascii_lowercase() || (upper && c.is_ascii_uppercase())
            })
        };
        let whole = |text: &str, upper: bool, more: &str| {
            let mut all = text.chars();
            alphanumeric(text.chars().next(), upper)
                && alphanumeric(text.chars().next_back(), upper)
                && all.all(|c| alphanumeric(Some(c), upper) || more.contains(c))
        };
        let of_dns =
            domain.len() + FOR_QUOTA <= 253 && domain.split('.').all(|label| whole(label, false, "-"));
        let plain = rest.len() <= 63 && whole(rest, true, "-_.");
        (!native && of_dns && plain).then(|| Resource(name.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Resource {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        Resource::parse(&name).ok_or_else(|| format!("{name:?} is no extended resource"))
    }
}

impl From<Resource> for String {
    fn from(resource: Resource) -> Self {
        resource.0
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a plugin's socket in the directory of the plugins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket(String);

impl Socket {
    /// None where it is no plain name, or the registry's.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = Path::new(name).components();
        let plain = matches!(
            (parts.next(), parts.next()),
            (Some(Component::Normal(only)), None) if only == name
        );
        (plain && name != REGISTRY && !name.contains('\0')).then(|| Socket(name.to_owned()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_has_a_domain_of_its_own() {
        for good in ["example.com/device", "nvidia.com/gpu", "a/B_c.d-e", "intel.com/qat-1"] {
            assert_eq!(Resource::parse(good).unwrap().as_str(), good);
        }
        let long = format!("{}/x", vec!["a".repeat(60); 5].join("."));
        let tail = format!("a.b/{}", "x".repeat(64));
        for bad in [
            "",
            "cpu",
            "kubernetes.io/x",
            "x.kubernetes.io/x",
            "requests.a/b",
            "a/",
            "/b",
            "a/b/c",
            "A.b/c",
            "a..b/c",
            "a.b/-c",
            "a.b/c ",
            "a.b/c\n",
            "-a/b",
            &long,
            &tail,
        ] {
            assert_eq!(Resource::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn a_socket_lies_in_the_directory() {
        assert_eq!(Socket::parse("gpu.sock").unwrap().as_str(), "gpu.sock");
        for bad in ["", ".", "..", "../x", "a/b", "/run/x.sock", "a/", "./a", "a\0b", REGISTRY] {
            assert_eq!(Socket::parse(bad), None, "{bad:?}");
        }
    }
}
