//! Whether an image reference is one, with the words of upstream's parser
//! (github.com/distribution/reference 0.6, `ParseNormalizedNamed`), which the kubelet puts into
//! `InvalidImageName`. Pure.

/// The longest path of a repository, in bytes.
const PATH_LIMIT: usize = 255;
/// The longest tag, in bytes.
const TAG_LIMIT: usize = 128;
/// The hexadecimal digits of the digest algorithms that there are.
const ALGORITHMS: [(&str, usize); 3] = [("sha256", 64), ("sha384", 96), ("sha512", 128)];

/// Nothing, or why `image` is no reference: the message of the waiting reason `InvalidImageName`.
///
/// # Errors
/// The message.
pub fn check(image: &str) -> Result<(), String> {
    parse(image).map_err(|why| {
        format!("Failed to apply default image tag {image:?}: couldn't parse image name {image:?}: {why}")
    })
}

fn parse(image: &str) -> Result<(), String> {
    let hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    if image.len() == 64 && image.bytes().all(hex) {
        return Err(format!("invalid repository name ({image}), cannot specify 64-byte hexadecimal strings"));
    }
    let (domain, rest) = split_domain(image);
    let remote = rest.split(':').next().unwrap_or_default();
    if remote.to_lowercase() != remote {
        return Err(format!("invalid reference format: repository name ({remote}) must be lowercase"));
    }
    let invalid = || "invalid reference format".to_owned();
    let (rest, digest) = match rest.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (rest, None),
    };
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    let tag_ok = |t: &str| {
        t.len() <= TAG_LIMIT
            && t.bytes().next().is_some_and(word)
            && t.bytes().all(|c| word(c) || c == b'.' || c == b'-')
    };
    if !domain.is_none_or(is_domain) || !path.split('/').all(is_component) || !tag.is_none_or(tag_ok) {
        return Err(invalid());
    }
    if path.len() > PATH_LIMIT {
        return Err(format!("repository name must not be more than {PATH_LIMIT} characters"));
    }
    let Some(digest) = digest else { return Ok(()) };
    let (algorithm, sum) = digest.split_once(':').ok_or_else(invalid)?;
    let part = |p: &str| {
        p.bytes().next().is_some_and(|c| c.is_ascii_alphabetic())
            && p.bytes().all(|c| c.is_ascii_alphanumeric())
    };
    if !algorithm.split(['-', '_', '+', '.']).all(part)
        || sum.len() < 32
        || !sum.bytes().all(|c| c.is_ascii_hexdigit())
    {
        return Err(invalid());
    }
    match ALGORITHMS.iter().find(|(name, _)| *name == algorithm) {
        None => Err("unsupported digest algorithm".to_owned()),
        Some((_, length)) if sum.len() != *length => Err("invalid checksum digest length".to_owned()),
        Some(_) if !sum.bytes().all(hex) => Err("invalid checksum digest format".to_owned()),
        Some(_) => Ok(()),
    }
}

/// What stands before the first slash is a registry only if it looks like one.
fn split_domain(image: &str) -> (Option<&str>, &str) {
    match image.split_once('/') {
        Some((domain, rest))
            if domain == "localhost" || domain.contains(['.', ':']) || domain.to_lowercase() != domain =>
        {
            (Some(domain), rest)
        }
        _ => (None, image),
    }
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[').and_then(|d| d.split_once(']')) {
        Some((address, rest)) => {
            let address_ok =
                !address.is_empty() && address.bytes().all(|c| c.is_ascii_hexdigit() || c == b':');
            if !address_ok {
                return false;
            }
            ("", if rest.is_empty() { None } else { Some(rest.strip_prefix(':').unwrap_or_default()) })
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        },
    };
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
    };
    let port_ok = |p: &str| !p.is_empty() && p.bytes().all(|c| c.is_ascii_digit());
    (domain.starts_with('[') || host.split('.').all(label)) && port.is_none_or(port_ok)
}

/// Lower-case words joined by one dot, one or two underscores, or any number of dashes.
fn is_component(component: &str) -> bool {
    let word = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends = bytes.first().is_some_and(|&c| word(c)) && bytes.last().is_some_and(|&c| word(c));
    let joints = bytes.split(|&c| word(c)).filter(|joint| !joint.is_empty());
    let good = |joint: &[u8]| matches!(joint, b"." | b"_" | b"__") || joint.iter().all(|&c| c == b'-');
    ends && joints.into_iter().all(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_told_from_what_is_none_in_upstreams_words() {
        let digest = "a".repeat(64);
        for good in [
            "busybox",
            "busybox:latest",
            "localhost/a",
            "localhost:5000/a/b:v1",
            "REG/a",
            "[::1]:5000/a",
            "docker.io/library/a.b_c__d---e:T_1.2-x",
            &format!("r.example/a:v@sha256:{digest}"),
        ] {
            assert_eq!(parse(good), Ok(()), "{good}");
        }
        for (bad, why) in [
            ("", "invalid reference format"),
            ("NOT/a:name:at all", "invalid reference format"),
            ("a b", "invalid reference format"),
            ("a..b", "invalid reference format"),
            ("a/", "invalid reference format"),
            ("r.example:x/a", "invalid reference format"),
            ("a:-x", "invalid reference format"),
            ("a:", "invalid reference format"),
            ("a@sha256:12", "invalid reference format"),
            ("library/A:v", "invalid reference format: repository name (library/A) must be lowercase"),
            (&format!("a@sha256:{digest}a"), "invalid checksum digest length"),
            (&format!("a@md5:{digest}"), "unsupported digest algorithm"),
            (&"b".repeat(256), "repository name must not be more than 255 characters"),
        ] {
            assert_eq!(parse(bad), Err(why.to_owned()), "{bad}");
        }
        assert!(parse(&digest).is_err(), "an id is no reference");
        assert_eq!(
            check("NOT/a:name:at all").unwrap_err(),
            "Failed to apply default image tag \"NOT/a:name:at all\": couldn't parse image name \"NOT/a:name:at all\": invalid reference format"
        );
    }
}
