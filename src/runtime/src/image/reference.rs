//! Image references: Docker's grammar and normalisation, into a type that can hold nothing else.
//!
//! Grammar and normalisation are those of `github.com/distribution/reference` (what containerd
//! and the kubelet use): no registry means `docker.io`, one path component there means
//! `library/`, neither tag nor digest means `:latest`.

use std::fmt;

/// A sha256 digest. Other algorithms are refused: nothing else is in use for images.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

/// Why a name or a digest was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ReferenceError {
    /// Nothing was given.
    #[error("the image reference is empty")]
    Empty,
    /// Longer than any valid reference.
    #[error("the image reference has {0} bytes; at most {MAX_REFERENCE} are allowed")]
    TooLong(usize),
    /// The registry part is not `host[:port]`.
    #[error("the registry {0:?} of the image reference is not a host name with an optional port")]
    Registry(String),
    /// The repository part is outside the grammar.
    #[error(
        "the repository {0:?} of the image reference is not valid: lower case letters, digits and single separators . _ - only"
    )]
    Repository(String),
    /// The tag is outside the grammar.
    #[error("the tag {0:?} of the image reference is not valid: at most 128 of A-Z a-z 0-9 _ . -")]
    Tag(String),
    /// The digest is not `sha256:` and 64 hex digits.
    #[error(
        "the digest {0:?} is not \"sha256:\" and 64 lower case hex digits; other algorithms are not supported"
    )]
    Digest(String),
    /// 64 hex digits alone are an image id, not a name.
    #[error("the image reference is 64 hex digits, which is an image id and not a name")]
    IsId,
}

const MAX_REFERENCE: usize = 1024;
const MAX_NAME: usize = 255;

impl Digest {
    /// The digest with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Digest(bytes)
    }

    /// The sha256 of `data`.
    #[must_use]
    pub fn of(data: &[u8]) -> Self {
        use sha2::Digest as _;
        Digest(sha2::Sha256::digest(data).into())
    }

    /// Reads `sha256:<64 lower case hex digits>`.
    ///
    /// # Errors
    /// [`ReferenceError::Digest`] for anything else.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        text.strip_prefix("sha256:")
            .and_then(Self::from_hex)
            .ok_or_else(|| ReferenceError::Digest(shortened(text)))
    }

    /// Reads 64 lower case hex digits.
    #[must_use]
    pub fn from_hex(hex_digits: &str) -> Option<Self> {
        let lower = hex_digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if hex_digits.len() != 64 || !lower {
            return None;
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(hex_digits, &mut bytes).ok()?;
        Some(Digest(bytes))
    }

    /// The 64 hex digits: a safe file name.
    #[must_use]
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Digest::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// A normalised image reference. At least one of tag and digest is there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageRef {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl ImageRef {
    /// Reads and normalises a reference as people write it.
    ///
    /// # Errors
    /// [`ReferenceError`], which names the part that is wrong.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if text.is_empty() {
            return Err(ReferenceError::Empty);
        }
        if text.len() > MAX_REFERENCE {
            return Err(ReferenceError::TooLong(text.len()));
        }
        if Digest::from_hex(text).is_some() {
            return Err(ReferenceError::IsId);
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
            None => (text, None),
        };
        // A colon after the last slash is a tag's; one before it is a port's.
        let name_end = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[name_end..].find(':') {
            Some(colon) => (&rest[..name_end + colon], Some(&rest[name_end + colon + 1..])),
            None => (rest, None),
        };
        if let Some(tag) = tag.filter(|t| !is_tag(t)) {
            return Err(ReferenceError::Tag(shortened(tag)));
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if looks_like_host(first) => (first, path),
            _ => ("docker.io", name),
        };
        if !is_host(registry) {
            return Err(ReferenceError::Registry(shortened(registry)));
        }
        let registry = if registry == "index.docker.io" { "docker.io" } else { registry };
        let repository = if registry == "docker.io" && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if !is_repository(&repository) || registry.len() + 1 + repository.len() > MAX_NAME {
            return Err(ReferenceError::Repository(shortened(path)));
        }
        let tag = tag.map(str::to_owned).or_else(|| digest.is_none().then(|| "latest".to_owned()));
        Ok(ImageRef { registry: registry.to_owned(), repository, tag, digest })
    }

    /// The registry: `host[:port]`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository's path within the registry.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The digest, where the reference pins one.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// The tag; with a digest beside it the digest decides.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// `registry/repository`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// `registry/repository:tag`, the form of a repo tag; `None` where a digest pins it: a tag
    /// beside a digest proves nothing about the tag.
    #[must_use]
    pub fn repo_tag(&self) -> Option<String> {
        if self.digest.is_some() {
            return None;
        }
        self.tag.as_ref().map(|tag| format!("{}:{tag}", self.name()))
    }

    /// `registry/repository@digest`, the form of a repo digest.
    #[must_use]
    pub fn repo_digest(&self, digest: Digest) -> String {
        format!("{}@{digest}", self.name())
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

fn looks_like_host(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase())
}

/// A host name or address with an optional port; so also a safe directory name.
fn is_host(text: &str) -> bool {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((address, after)) = rest.split_once(']') else { return false };
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return false;
        }
        return match after.strip_prefix(':') {
            Some(port) => is_port(port),
            None => after.is_empty(),
        };
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let label = |l: &str| {
        !l.is_empty()
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|p| p > 0)
}

fn is_repository(path: &str) -> bool {
    path.split('/').all(is_component)
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_component(component: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    if !bytes.first().is_some_and(|&b| alnum(b)) || !bytes.last().is_some_and(|&b| alnum(b)) {
        return false;
    }
    component
        .split(|c: char| c.is_ascii() && alnum(c as u8))
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= 128
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[rstest]
    #[case("busybox", "docker.io/library/busybox:latest")]
    #[case("busybox:1.37", "docker.io/library/busybox:1.37")]
    #[case("user/app", "docker.io/user/app:latest")]
    #[case("docker.io/busybox", "docker.io/library/busybox:latest")]
    #[case("index.docker.io/busybox", "docker.io/library/busybox:latest")]
    #[case("registry.k8s.io/pause:3.10.1", "registry.k8s.io/pause:3.10.1")]
    #[case("localhost/a", "localhost/a:latest")]
    #[case("localhost:5000/a:b", "localhost:5000/a:b")]
    #[case("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest")]
    #[case("[::1]:5000/a", "[::1]:5000/a:latest")]
    #[case("a__b/c-d--e.f_g", "docker.io/a__b/c-d--e.f_g:latest")]
    #[case("UPPER/a", "UPPER/a:latest")]
    fn a_reference_is_normalised(#[case] text: &str, #[case] normal: &str) {
        let parsed = ImageRef::parse(text).unwrap();
        assert_eq!(parsed.to_string(), normal);
        assert_eq!(ImageRef::parse(normal).unwrap(), parsed);
    }

    #[test]
    fn a_digest_pins_and_adds_no_tag() {
        let parsed = ImageRef::parse(&format!("busybox@{D}")).unwrap();
        assert_eq!((parsed.tag(), parsed.repo_tag()), (None, None));
        assert_eq!(parsed.to_string(), format!("docker.io/library/busybox@{D}"));
        let both = ImageRef::parse(&format!("a.io/b:c@{D}")).unwrap();
        assert_eq!(both.to_string(), format!("a.io/b:c@{D}"));
        assert_eq!((both.repo_tag(), both.digest().unwrap().to_string()), (None, D.to_owned()));
    }

    #[rstest]
    #[case("")]
    #[case("Busybox")]
    #[case("busybox:")]
    #[case("busybox:-x")]
    #[case("busybox:a b")]
    #[case("busybox@sha256:12")]
    #[case("busybox@sha512:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")]
    #[case("busybox@sha256:E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855")]
    #[case("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")]
    #[case("a//b")]
    #[case("/a")]
    #[case("a/")]
    #[case("../../etc/passwd")]
    #[case("a.io/../b")]
    #[case("a.io/.b")]
    #[case("a.io/b._c")]
    #[case("a.io/b___c")]
    #[case("a.io:0/b")]
    #[case("a.io:65536/b")]
    #[case("a.io:x/b")]
    #[case("-a.io/b")]
    #[case("a..io/b")]
    #[case("[zz]/b")]
    #[case("a.io/b\0c")]
    #[case("a.io/b\nc")]
    #[case("a.io/é")]
    #[case("http://a.io/b")]
    fn a_reference_outside_the_grammar_is_refused(#[case] text: &str) {
        assert!(ImageRef::parse(text).is_err(), "{text:?}");
    }

    #[test]
    fn length_caps_hold() {
        assert!(ImageRef::parse(&format!("a.io/{}", "b".repeat(250))).is_ok());
        assert!(ImageRef::parse(&format!("a.io/{}", "b".repeat(251))).is_err());
        assert!(ImageRef::parse(&format!("a:{}", "t".repeat(128))).is_ok());
        assert!(ImageRef::parse(&format!("a:{}", "t".repeat(129))).is_err());
        assert_eq!(ImageRef::parse(&"a".repeat(2000)), Err(ReferenceError::TooLong(2000)));
    }
}
