//! Credentials of the machine: a Docker configuration file and the helpers that it names.
//!
//! Off unless `[registry] docker_config` is set, and asked only for pulls that bring no credentials of
//! their own. The file is read at each pull. A helper is run from the configured directory and from
//! nowhere else, with the registry on stdin, as docker-credential-helpers' protocol has it. Values
//! are never logged, nor kept in errors.

use super::reference::ImageRef;
use super::registry::{Credentials, CredentialsError};
use podway_cri::v1::AuthConfig;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// How long a helper may take; it is killed then.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most of a helper's answer, and of the file, that is read.
const LIMIT: u64 = 1 << 20;

/// Why the machine's credentials are not known.
#[derive(Debug, thiserror::Error)]
pub enum KeychainError {
    /// The file could not be read.
    #[error("[registry] docker_config {} could not be read", .0.display())]
    Read(PathBuf, #[source] std::io::Error),
    /// The file is not what Docker writes. Its text is not quoted: it holds secrets.
    #[error("[registry] docker_config {} is not valid: error at line {line}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where.
        line: usize,
    },
    /// An entry is not usable.
    #[error("the entry for {0:?} in [registry] docker_config is not usable")]
    Entry(String, #[source] CredentialsError),
    /// A helper is named that cannot be run as configured.
    #[error("the credential helper {0:?} is not run: {1}")]
    Refused(String, &'static str),
    /// A helper failed.
    #[error("the credential helper {0:?} failed")]
    Helper(String, #[source] std::io::Error),
    /// A helper took too long.
    #[error("the credential helper {0:?} did not answer within 10 s")]
    Timeout(String),
}

/// Where credentials come from.
#[derive(Clone, Debug, Default)]
pub struct Keychain {
    /// Docker's config.json.
    pub docker_config: Option<PathBuf>,
    /// Where `docker-credential-<name>` is.
    pub helpers: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DockerConfig {
    auths: BTreeMap<String, DockerAuth>,
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct DockerAuth {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

/// Who has credentials for a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An entry of the file, by its key.
    Entry(String),
    /// A helper, by its name, asked for a server.
    Helper(String, String),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Entry(key) => write!(f, "docker_config entry {key:?}"),
            Source::Helper(name, _) => write!(f, "credential helper {name:?}"),
        }
    }
}

/// What Docker calls a registry in its file, best first: its own hub goes by a URL of old.
fn names(registry: &str) -> Vec<&str> {
    match registry {
        "docker.io" => vec!["https://index.docker.io/v1/", "index.docker.io", "docker.io"],
        other => vec![other],
    }
}

fn host(key: &str) -> &str {
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    key.split('/').next().unwrap_or(key)
}

impl DockerConfig {
    /// A helper for the registry comes first, then an entry, then the store for all: as Docker has it.
    fn source(&self, registry: &str) -> Option<Source> {
        let names = names(registry);
        let fits = |key: &&String| names.iter().any(|n| *key == n || host(key) == host(n));
        if let Some((key, helper)) = self.cred_helpers.iter().find(|(key, _)| fits(key)) {
            return Some(Source::Helper(helper.clone(), key.clone()));
        }
        let entry = self.auths.iter().find(|(key, auth)| fits(key) && !auth.is_empty());
        if let Some((key, _)) = entry {
            return Some(Source::Entry(key.clone()));
        }
        let store = self.creds_store.clone().filter(|s| !s.is_empty())?;
        Some(Source::Helper(store, names.first().copied().unwrap_or(registry).to_owned()))
    }
}

impl DockerAuth {
    fn is_empty(&self) -> bool {
        [&self.auth, &self.username, &self.identitytoken, &self.registrytoken].iter().all(|v| v.is_empty())
    }
}

impl Keychain {
    /// As configured.
    #[must_use]
    pub fn of(registry: &crate::config::Registry) -> Self {
        Keychain {
            docker_config: registry.docker_config.clone(),
            helpers: registry.credential_helpers.clone(),
        }
    }

    fn load(&self) -> Result<Option<DockerConfig>, KeychainError> {
        let Some(path) = &self.docker_config else { return Ok(None) };
        let read = || {
            let mut text = Vec::new();
            std::io::Read::read_to_end(
                &mut std::io::Read::take(std::fs::File::open(path)?, LIMIT),
                &mut text,
            )?;
            Ok(text)
        };
        let text = read().map_err(|e| KeychainError::Read(path.clone(), e))?;
        let parsed = serde_json::from_slice(&text);
        parsed
            .map(Some)
            .map_err(|e: serde_json::Error| KeychainError::Json { path: path.clone(), line: e.line() })
    }

    /// Who would be asked for `reference`'s registry; nobody is asked.
    ///
    /// # Errors
    /// [`KeychainError`].
    pub fn source(&self, reference: &ImageRef) -> Result<Option<Source>, KeychainError> {
        Ok(self.load()?.and_then(|c| c.source(reference.registry())))
    }

    /// The credentials for `reference`'s registry, and who had them. A helper that has none is no
    /// error: the registry may not need any.
    ///
    /// # Errors
    /// [`KeychainError`].
    pub async fn find(&self, reference: &ImageRef) -> Result<Option<(Credentials, Source)>, KeychainError> {
        let Some(config) = self.load()? else { return Ok(None) };
        let registry = reference.registry();
        let Some(source) = config.source(registry) else { return Ok(None) };
        let auth = match &source {
            Source::Entry(key) => {
                let Some(entry) = config.auths.get(key) else { return Ok(None) };
                AuthConfig {
                    auth: entry.auth.clone(),
                    username: entry.username.clone(),
                    password: entry.password.clone(),
                    identity_token: entry.identitytoken.clone(),
                    registry_token: entry.registrytoken.clone(),
                    server_address: String::new(),
                }
            }
            Source::Helper(name, server) => match self.ask(name, server).await? {
                None => return Ok(None),
                // "<token>" says that the secret is an identity token.
                Some(answer) if answer.username == "<token>" => {
                    AuthConfig { identity_token: answer.secret, ..AuthConfig::default() }
                }
                Some(answer) => {
                    AuthConfig { username: answer.username, password: answer.secret, ..AuthConfig::default() }
                }
            },
        };
        let credentials = Credentials::from_cri(&auth)
            .map_err(|e| KeychainError::Entry(podway_flow::record::bounded(registry, 80), e))?;
        Ok(credentials.map(|c| (c, source)))
    }

    fn helper(&self, name: &str) -> Result<PathBuf, KeychainError> {
        let refused = |why| KeychainError::Refused(podway_flow::record::bounded(name, 80), why);
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if name.is_empty() || name.len() > 64 || !name.bytes().all(plain) {
            return Err(refused("its name has characters that no helper has"));
        }
        let dir = self.helpers.as_deref().ok_or_else(|| refused("set [registry] credential_helpers"))?;
        let path: &Path = &dir.join(format!("docker-credential-{name}"));
        if path.is_file() {
            Ok(path.to_owned())
        } else {
            Err(refused("it is not in [registry] credential_helpers"))
        }
    }

    /// `Ok(None)` where the helper says that it has none.
    async fn ask(&self, name: &str, server: &str) -> Result<Option<HelperAnswer>, KeychainError> {
        let path = self.helper(name)?;
        let failed = |e| KeychainError::Helper(name.to_owned(), e);
        let talk = async {
            let mut child = tokio::process::Command::new(path)
                .arg("get")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .kill_on_drop(true)
                .spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                // One that does not read has its answer ready: what it says counts.
                drop(stdin.write_all(server.as_bytes()).await);
            }
            let mut text = Vec::new();
            if let Some(stdout) = child.stdout.take() {
                stdout.take(LIMIT).read_to_end(&mut text).await?;
            }
            Ok((child.wait().await?, text))
        };
        let (status, text) = tokio::time::timeout(PATIENCE, talk)
            .await
            .map_err(|_| KeychainError::Timeout(name.to_owned()))?
            .map_err(failed)?;
        if !status.success() {
            // docker-credential-helpers' own words for it, on stdout.
            let none = String::from_utf8_lossy(&text).contains("credentials not found");
            return if none { Ok(None) } else { Err(failed(std::io::Error::other(status.to_string()))) };
        }
        let answer = serde_json::from_slice(&text);
        answer.map(Some).map_err(|_| failed(std::io::Error::other("its answer is not valid")))
    }
}

#[cfg(test)]
mod tests;
