//! Mirrors: containerd's hosts.toml, so that a machine's existing configuration works as it is.
//!
//! `<config_path>/<host[_port_]>/hosts.toml`, else `<config_path>/_default/hosts.toml`, read at each
//! pull (a change needs no restart). The hosts are tried in the file's order, `server` last. Keys
//! that we do not know are errors: a mistyped `skip_verify` must not pass in silence.

use super::reference::ImageRef;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How an endpoint's certificate is verified.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Tls {
    /// Against the machine's certificate authorities.
    Native,
    /// Against these files only (PEM).
    Authorities(Vec<PathBuf>),
    /// Not at all (`skip_verify`).
    Unverified,
}

/// One place to get an image from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// `http` or `https`.
    pub scheme: Scheme,
    /// `host[:port]`.
    pub authority: String,
    /// The API's path, `/v2` but for `override_path`.
    pub path: String,
    /// May it answer what a tag means?
    pub resolve: bool,
    /// May manifests by digest and blobs come from it?
    pub pull: bool,
    /// Its certificate.
    pub tls: Tls,
    /// Is it not the registry itself? Then it is told `?ns=<registry>`, and gets no credentials
    /// that were not named for it.
    pub mirror: bool,
}

/// A URL's scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain text.
    Http,
    /// TLS.
    Https,
}

impl std::fmt::Display for Scheme {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        })
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}://{}", self.scheme, self.authority)
    }
}

/// Why the endpoints of a registry are not known.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// The file could not be read.
    #[error("{} could not be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The error.
        #[source]
        source: std::io::Error,
    },
    /// The file is not TOML of this shape.
    #[error("{} is not a valid hosts.toml", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// The error, with line and key.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A host is not a URL we can use.
    #[error("{}: {url:?} is not http://host[:port][/path] or https://…", path.display())]
    Url {
        /// The file.
        path: PathBuf,
        /// The value.
        url: String,
    },
    /// A capability is not known.
    #[error("{}: capability {name:?} is not known; use \"pull\", \"resolve\" or \"push\"", path.display())]
    Capability {
        /// The file.
        path: PathBuf,
        /// The value.
        name: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostsFile {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<String, toml::Spanned<HostTable>>,
    capabilities: Option<Vec<String>>,
    skip_verify: Option<bool>,
    ca: Option<OneOrMany>,
    override_path: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HostTable {
    capabilities: Option<Vec<String>>,
    skip_verify: Option<bool>,
    ca: Option<OneOrMany>,
    override_path: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

/// The endpoints for `reference`'s registry, best first.
///
/// # Errors
/// [`HostsError`]: a broken file fails the pull rather than going around a mirror in silence.
pub fn endpoints(config_path: Option<&Path>, reference: &ImageRef) -> Result<Vec<Endpoint>, HostsError> {
    let registry = reference.registry();
    for path in files(config_path, reference) {
        match std::fs::read_to_string(&path) {
            Ok(text) => return parse(&path, &text, registry),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(HostsError::Read { path, source }),
        }
    }
    Ok(vec![own(registry)])
}

/// The files that may say who is asked for `reference`'s registry, in the order of preference.
#[must_use]
pub fn files(config_path: Option<&Path>, reference: &ImageRef) -> Vec<PathBuf> {
    let Some(root) = config_path else { return Vec::new() };
    let file = |directory| root.join(directory).join("hosts.toml");
    directories(reference.registry()).into_iter().map(file).collect()
}

/// containerd's names, in its order; a registry is `host[:port]` by its type, never a path.
fn directories(registry: &str) -> Vec<String> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
        names.push(format!("{host}_{port}_"));
    }
    names.extend([registry.to_owned(), "_default".to_owned()]);
    names
}

/// The registry itself: plain text on this machine's loopback (as containerd has it), else TLS.
fn own(registry: &str) -> Endpoint {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => registry,
    };
    let loopback = host == "localhost"
        || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    Endpoint {
        scheme: if loopback { Scheme::Http } else { Scheme::Https },
        authority: if registry == "docker.io" { "registry-1.docker.io" } else { registry }.to_owned(),
        path: "/v2".to_owned(),
        resolve: true,
        pull: true,
        tls: Tls::Native,
        mirror: false,
    }
}

/// Reads the text of a hosts.toml that stands at `path`, for `registry`.
///
/// # Errors
/// [`HostsError`].
pub fn parse(path: &Path, text: &str, registry: &str) -> Result<Vec<Endpoint>, HostsError> {
    let file: HostsFile = toml::from_str(text)
        .map_err(|source| HostsError::Toml { path: path.to_owned(), source: Box::new(source) })?;
    // A TOML table has no order; the file has.
    let mut hosts: Vec<(String, toml::Spanned<HostTable>)> = file.host.into_iter().collect();
    hosts.sort_by_key(|(_, table)| table.span().start);
    let mut endpoints = Vec::new();
    for (url, table) in hosts {
        endpoints.push(endpoint(path, &url, table.into_inner(), true)?);
    }
    let table = HostTable {
        capabilities: file.capabilities,
        skip_verify: file.skip_verify,
        ca: file.ca,
        override_path: file.override_path,
    };
    let server = match file.server {
        Some(url) => Endpoint { mirror: false, ..endpoint(path, &url, table, false)? },
        None => {
            let own = own(registry);
            let url = own.to_string();
            endpoint(path, &url, table, false)?
        }
    };
    endpoints.push(server);
    Ok(endpoints)
}

fn endpoint(file: &Path, url: &str, table: HostTable, mirror: bool) -> Result<Endpoint, HostsError> {
    let bad = || HostsError::Url { path: file.to_owned(), url: url.chars().take(120).collect() };
    let full = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
    let uri: http::Uri = full.parse().map_err(|_| bad())?;
    let scheme = match uri.scheme_str() {
        Some("http") => Scheme::Http,
        Some("https") => Scheme::Https,
        _ => return Err(bad()),
    };
    let authority = uri.authority().map(http::uri::Authority::as_str).ok_or_else(bad)?;
    // Credentials in a URL would end in logs.
    if authority.contains('@') || uri.query().is_some() {
        return Err(bad());
    }
    let given = uri.path().trim_end_matches('/');
    let path = if table.override_path.unwrap_or(false) || given.ends_with("/v2") {
        given.to_owned()
    } else {
        format!("{given}/v2")
    };
    let (mut resolve, mut pull) = (true, true);
    if let Some(capabilities) = table.capabilities {
        (resolve, pull) = (false, false);
        for name in capabilities {
            match name.as_str() {
                "resolve" => resolve = true,
                "pull" => pull = true,
                "push" => {}
                _ => return Err(HostsError::Capability { path: file.to_owned(), name }),
            }
        }
    }
    let beside = |p: PathBuf| file.parent().map_or_else(|| p.clone(), |d| d.join(&p));
    let tls = match (table.skip_verify.unwrap_or(false), table.ca) {
        (true, _) => Tls::Unverified,
        (false, None) => Tls::Native,
        (false, Some(OneOrMany::One(p))) => Tls::Authorities(vec![beside(p)]),
        (false, Some(OneOrMany::Many(p))) => Tls::Authorities(p.into_iter().map(beside).collect()),
    };
    Ok(Endpoint { scheme, authority: authority.to_owned(), path, resolve, pull, tls, mirror })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn of(files: &[(&str, &str)], image: &str) -> Result<Vec<Endpoint>, HostsError> {
        let root = tempfile::tempdir().unwrap();
        for (directory, text) in files {
            std::fs::create_dir_all(root.path().join(directory)).unwrap();
            std::fs::write(root.path().join(directory).join("hosts.toml"), text).unwrap();
        }
        endpoints(Some(root.path()), &ImageRef::parse(image).unwrap())
    }

    fn names(endpoints: &[Endpoint]) -> Vec<String> {
        endpoints.iter().map(|e| format!("{e}{}", e.path)).collect()
    }

    #[rstest]
    #[case("busybox", "https://registry-1.docker.io/v2")]
    #[case("a.io/b", "https://a.io/v2")]
    #[case("localhost:5000/b", "http://localhost:5000/v2")]
    #[case("127.0.0.1/b", "http://127.0.0.1/v2")]
    #[case("[::1]:5000/b", "http://[::1]:5000/v2")]
    #[case("10.0.0.1:5000/b", "https://10.0.0.1:5000/v2")]
    fn without_a_file_the_registry_itself_answers(#[case] image: &str, #[case] want: &str) {
        assert_eq!(names(&of(&[], image).unwrap()), [want]);
    }

    #[test]
    fn hosts_come_in_the_files_order_and_the_server_last() {
        let text = r#"
server = "https://reg.example"
[host."https://z.example"]
  capabilities = ["pull", "resolve"]
[host."http://a.example:5000/prefix"]
  capabilities = ["pull"]
  skip_verify = true
[host."https://m.example/x"]
  override_path = true
  ca = "ca.pem"
"#;
        let got = of(&[("docker.io", text)], "busybox").unwrap();
        assert_eq!(
            names(&got),
            [
                "https://z.example/v2",
                "http://a.example:5000/prefix/v2",
                "https://m.example/x",
                "https://reg.example/v2"
            ]
        );
        assert_eq!((got[1].resolve, got[1].pull, &got[1].tls), (false, true, &Tls::Unverified));
        assert!(matches!(&got[2].tls, Tls::Authorities(p) if p[0].ends_with("docker.io/ca.pem")));
        assert_eq!(got.iter().map(|e| e.mirror).collect::<Vec<_>>(), [true, true, true, false]);
    }

    #[test]
    fn the_host_with_its_port_comes_before_the_default() {
        let mirror = "[host.\"http://m:1\"]\n";
        let other = "[host.\"http://other:1\"]\n";
        let files = [("a.io_5000_", mirror), ("_default", other)];
        assert_eq!(names(&of(&files, "a.io:5000/b").unwrap())[0], "http://m:1/v2");
        assert_eq!(names(&of(&files, "b.io/b").unwrap()), ["http://other:1/v2", "https://b.io/v2"]);
    }

    #[rstest]
    #[case::unknown_key("sever = \"https://a\"")]
    #[case::unknown_host_key("[host.\"http://m\"]\nskip_verfy = true")]
    #[case::unsupported_client("[host.\"http://m\"]\nclient = \"a.pem\"")]
    #[case::capability("[host.\"http://m\"]\ncapabilities = [\"pul\"]")]
    #[case::scheme("[host.\"ftp://m\"]")]
    #[case::credentials("[host.\"http://u:p@m\"]")]
    #[case::not_toml("[")]
    fn a_wrong_file_is_an_error(#[case] text: &str) {
        of(&[("_default", text)], "busybox").unwrap_err();
    }
}
