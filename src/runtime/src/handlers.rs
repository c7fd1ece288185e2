//! The OCI runtimes that a pod may be run with, by the handler that its RuntimeClass names: runc, which is always
//! there as `runc` and as the default, and those of the configuration. Each is run once at the start, so that one
//! that is missing is told before a pod asks for it.

use crate::config::Config;
use crate::features;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// The handler that is always there, and what none names.
pub const DEFAULT: &str = "runc";

/// Why a handler cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum HandlerError {
    /// runc does not run.
    #[error("cannot run {0} --version: install runc, or set [runc] path")]
    Runc(PathBuf, #[source] io::Error),
    /// Another does not.
    #[error("cannot run {1} --version: install it, or set [runtimes.{0}] path")]
    Other(String, PathBuf, #[source] io::Error),
    /// A name that no RuntimeClass can have.
    #[error("[runtimes.{0}]: a handler's name has lower case letters, digits and -, and is not runc")]
    Name(String),
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handler {
    /// The program, with runc's command line.
    pub path: PathBuf,
    /// The first line of its `--version`.
    pub version: String,
    /// Makes a mount read-only in depth, by what it says by its `features` and by the kernel.
    pub recursive_read_only: bool,
}

impl Handler {
    /// Runs the program and asks what it is.
    ///
    /// # Errors
    /// When it does not run, or ends with an error.
    pub async fn look(path: &Path) -> io::Result<Self> {
        let told = async |argument: &str| tokio::process::Command::new(path).arg(argument).output().await;
        // Side by side: a restarted runtime waits for them.
        let (version, features) = tokio::try_join!(told("--version"), told("features"))?;
        if !version.status.success() {
            return Err(io::Error::other(format!("it ended with {}", version.status)));
        }
        let version = String::from_utf8_lossy(&version.stdout).lines().next().unwrap_or_default().to_owned();
        let recursive_read_only = features::recursive_read_only(&features.stdout);
        Ok(Handler { path: path.to_owned(), version, recursive_read_only })
    }
}

/// All of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handlers(BTreeMap<String, Handler>);

impl Handlers {
    /// Runs each.
    ///
    /// # Errors
    /// [`HandlerError`].
    pub async fn look(config: &Config) -> Result<Self, HandlerError> {
        let path = &config.runc.path;
        let runc = Handler::look(path).await.map_err(|e| HandlerError::Runc(path.clone(), e))?;
        let mut all = BTreeMap::from([(DEFAULT.to_owned(), runc)]);
        for (name, other) in &config.runtimes {
            if name == DEFAULT || !is_name(name) {
                return Err(HandlerError::Name(name.clone()));
            }
            let found = Handler::look(&other.path).await;
            let found = found.map_err(|e| HandlerError::Other(name.clone(), other.path.clone(), e))?;
            all.insert(name.clone(), found);
        }
        Ok(Handlers(all))
    }

    /// The one that a pod asks for; without a name, runc.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Handler> {
        self.0.get(if name.is_empty() { DEFAULT } else { name })
    }

    /// Every name, and what it stands for.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Handler)> + Clone {
        self.0.iter().map(|(name, handler)| (name.as_str(), handler))
    }
}

/// A DNS label, as the API server has it of a RuntimeClass' handler.
fn is_name(name: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let ends = !name.starts_with('-') && !name.ends_with('-');
    !name.is_empty() && name.len() <= 63 && ends && name.bytes().all(inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Oci;

    fn config(name: &str, path: &str) -> Config {
        let runtimes = BTreeMap::from([(name.to_owned(), Oci { path: path.into() })]);
        let runc = Oci { path: "/bin/true".into() };
        Config { runc, runtimes, ..Config::default() }
    }

    #[tokio::test]
    async fn a_pod_gets_the_one_that_it_names_and_runc_without_a_name() {
        let all = Handlers::look(&config("crun", "/bin/echo")).await.unwrap();
        assert_eq!(all.get("").unwrap(), all.get("runc").unwrap());
        assert_eq!(all.get("crun").unwrap().path, Path::new("/bin/echo"));
        assert!(all.get("kata").is_none());
        assert_eq!(all.all().map(|(name, _)| name).collect::<Vec<_>>(), ["crun", "runc"]);
    }

    #[tokio::test]
    async fn what_cannot_be_run_or_named_is_told_at_the_start() {
        let said =
            async |name: &str, path: &str| Handlers::look(&config(name, path)).await.unwrap_err().to_string();
        let missing = said("crun", "/no/such").await;
        assert!(missing.contains("/no/such") && missing.contains("[runtimes.crun] path"), "{missing}");
        assert!(said("crun", "/bin/false").await.contains("[runtimes.crun]"));
        for name in ["runc", "", "Kata", "a.b", "-x"] {
            assert!(said(name, "/bin/true").await.contains("a handler's name"), "{name}");
        }
    }
}
