//! How an image would be got: which hosts.toml, which endpoints in which order, whose credentials.
//! Nobody is asked and nothing is pulled; no secret is read into the answer.

use super::hosts::{self, Endpoint, HostsError, Tls};
use super::keychain::{Keychain, KeychainError};
use super::reference::{ImageRef, ReferenceError};
use crate::config::Config;
use serde::Serialize;
use std::path::PathBuf;

/// Why it cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// The name.
    #[error("the image's name is not valid")]
    Reference(#[from] ReferenceError),
    /// hosts.toml.
    #[error("the endpoints of the registry are not known")]
    Hosts(#[from] HostsError),
    /// Credentials.
    #[error("the credentials for the registry are not known")]
    Keychain(#[from] KeychainError),
}

/// How an image would be got.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    /// The name in full.
    pub image: String,
    /// Its registry.
    pub registry: String,
    /// The files that were looked for, in order.
    pub looked_for: Vec<PathBuf>,
    /// The one that decides; `None` where the registry itself is asked.
    pub hosts_toml: Option<PathBuf>,
    /// Who is asked, in order.
    pub endpoints: Vec<Place>,
    /// Whose credentials a pull that brings none would use.
    pub auth: String,
    /// Who must accept the image.
    pub verifiers: Option<PathBuf>,
    /// Whether garbage collection is told to leave it.
    pub pinned: bool,
}

/// One endpoint.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// Where.
    pub url: String,
    /// `mirror` or `registry`.
    pub kind: &'static str,
    /// What it may answer.
    pub capabilities: Vec<&'static str>,
    /// How its certificate is verified.
    pub tls: String,
}

fn place(endpoint: &Endpoint) -> Place {
    let tls = match (&endpoint.tls, endpoint.scheme) {
        (_, hosts::Scheme::Http) => "none: plain text".to_owned(),
        (Tls::Native, _) => "the machine's certificate authorities".to_owned(),
        (Tls::Authorities(files), _) => {
            let files: Vec<String> = files.iter().map(|f| f.display().to_string()).collect();
            format!("only {}", files.join(", "))
        }
        (Tls::Unverified, _) => "NOT VERIFIED (skip_verify)".to_owned(),
    };
    let capabilities = [("resolve", endpoint.resolve), ("pull", endpoint.pull)];
    Place {
        url: format!("{endpoint}{}", endpoint.path),
        kind: if endpoint.mirror { "mirror" } else { "registry" },
        capabilities: capabilities.into_iter().filter_map(|(name, has)| has.then_some(name)).collect(),
        tls,
    }
}

/// Tells how `name` would be got with this configuration.
///
/// # Errors
/// [`ExplainError`]: what a pull would fail with as well.
pub fn explain(config: &Config, name: &str) -> Result<Explained, ExplainError> {
    let reference = ImageRef::parse(name)?;
    let root = config.registry.config_path.as_deref();
    let looked_for = hosts::files(root, &reference);
    let endpoints = hosts::endpoints(root, &reference)?;
    let source = Keychain::of(&config.registry).source(&reference)?;
    let tag = reference.repo_tag();
    let pinned =
        config.images.pinned.iter().any(|p| tag.as_deref().is_some_and(|t| super::service::pins(p, t)));
    Ok(Explained {
        image: reference.to_string(),
        registry: reference.registry().to_owned(),
        hosts_toml: looked_for.iter().find(|f| f.exists()).cloned(),
        looked_for,
        endpoints: endpoints.iter().map(place).collect(),
        auth: source.map_or_else(|| "none".to_owned(), |s| s.to_string()),
        verifiers: config.images.verifiers.clone(),
        pinned,
    })
}

impl std::fmt::Display for Explained {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "image      {}", self.image)?;
        match &self.hosts_toml {
            Some(file) => writeln!(f, "hosts      {}", file.display())?,
            None if self.looked_for.is_empty() => {
                writeln!(f, "hosts      no [registry] config_path: the registry itself is asked")?;
            }
            None => {
                let files: Vec<String> = self.looked_for.iter().map(|p| p.display().to_string()).collect();
                writeln!(f, "hosts      none of {}", files.join(", "))?;
            }
        }
        for (n, place) in self.endpoints.iter().enumerate() {
            let may = place.capabilities.join("+");
            writeln!(f, "{:<11}{} ({}, {may}; TLS: {})", n + 1, place.url, place.kind, place.tls)?;
        }
        writeln!(f, "auth       {} (a pull with credentials of its own uses those)", self.auth)?;
        match &self.verifiers {
            Some(dir) => writeln!(f, "verifiers  all programs in {}", dir.display())?,
            None => writeln!(f, "verifiers  none")?,
        }
        writeln!(f, "pinned     {}", if self.pinned { "yes" } else { "no" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_files_endpoints_and_whose_credentials_but_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("docker.io")).unwrap();
        let hosts = "[host.\"https://m.example\"]\ncapabilities = [\"pull\"]\nskip_verify = true\n";
        std::fs::write(at("docker.io/hosts.toml"), hosts).unwrap();
        std::fs::write(at("config.json"), r#"{"auths":{"docker.io":{"auth":"aHVudGVyMjpodW50ZXIy"}}}"#)
            .unwrap();
        let mut config = Config::default();
        config.registry.config_path = Some(dir.path().to_owned());
        config.registry.docker_config = Some(at("config.json"));
        config.images.pinned = vec!["docker.io/library/busy*".to_owned()];
        let told = explain(&config, "busybox").unwrap();
        assert_eq!(told.hosts_toml, Some(at("docker.io/hosts.toml")));
        assert_eq!((told.endpoints[0].kind, &*told.endpoints[0].capabilities), ("mirror", &["pull"][..]));
        assert!(told.pinned && told.endpoints[0].tls.contains("NOT VERIFIED"));
        let (text, json) = (told.to_string(), serde_json::to_string(&told).unwrap());
        assert!(text.contains("docker_config entry \"docker.io\""), "{text}");
        assert!(!text.contains("aHVudGVy") && !json.contains("aHVudGVy") && !text.contains("hunter2"));
        std::fs::write(at("docker.io/hosts.toml"), "sever = 1").unwrap();
        assert!(matches!(explain(&config, "busybox"), Err(ExplainError::Hosts(_))));
        let told = explain(&Config::default(), "a.io/b").unwrap();
        assert_eq!((told.hosts_toml, told.endpoints.len(), &*told.auth), (None, 1, "none"));
    }
}
