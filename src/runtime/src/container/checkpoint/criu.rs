//! criu, which the OCI runtime has write a container's processes into files: found in PATH, where the OCI
//! runtime looks for it, and judged by its version and by what it says of this kernel.

use crate::check::in_path;
use std::io;
use std::path::{Path, PathBuf};
use tokio::process::Command;

/// The oldest that the kubelet's runtimes take, as criu counts: 3.16.
pub const LEAST: u32 = 31600;

/// Why there is no criu to work with.
#[derive(Debug, thiserror::Error)]
pub enum CriuError {
    /// None in PATH.
    #[error("there is no criu in PATH: install it")]
    Missing,
    /// It does not run.
    #[error("cannot run {0} --version")]
    Run(PathBuf, #[source] io::Error),
    /// It is too old, or says what nobody can read.
    #[error("{0} says {1:?}")]
    Old(PathBuf, String),
    /// Its own check finds that it cannot work here.
    #[error("{0} cannot work with this kernel: {1}")]
    Kernel(PathBuf, String),
}

/// Where it is, and its version, where that is new enough.
///
/// # Errors
/// [`CriuError`].
pub async fn look() -> Result<(PathBuf, String), CriuError> {
    let path = in_path(Path::new("criu")).ok_or(CriuError::Missing)?;
    let output = Command::new(&path).arg("--version").output().await;
    let output = output.map_err(|e| CriuError::Run(path.clone(), e))?;
    let said = String::from_utf8_lossy(&output.stdout);
    match number(&said) {
        Some((version, number)) if number >= LEAST => Ok((path, version.to_owned())),
        _ => Err(CriuError::Old(path, podway_flow::record::bounded(said.trim(), 80))),
    }
}

/// What [`look`] finds, if it can also work with this kernel. This takes a while: it tries much.
///
/// # Errors
/// [`CriuError`].
pub async fn check() -> Result<String, CriuError> {
    let (path, version) = look().await?;
    let output = Command::new(&path).arg("check").output().await;
    let output = output.map_err(|e| CriuError::Run(path.clone(), e))?;
    if output.status.success() {
        return Ok(format!("{} {version}", path.display()));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let why = first_error(&said).unwrap_or("it does not say why");
    Err(CriuError::Kernel(path, podway_flow::record::bounded(why, 300)))
}

/// The first thing that went wrong in what criu logs: the rest follows from it.
pub(super) fn first_error(log: &str) -> Option<&str> {
    log.lines().find_map(|line| line.find("Error (").map(|at| line[at..].trim_end()))
}

/// `Version: 3.17.1`, and 31701 for it.
fn number(said: &str) -> Option<(&str, u32)> {
    let text = said.lines().find_map(|line| line.strip_prefix("Version:"))?.trim();
    let mut parts = text.split(['.', '-', '+', '~']).map(|part| part.parse::<u32>().ok());
    let (major, minor) = (parts.next()??, parts.next()??);
    let patch = parts.next().flatten().unwrap_or(0);
    let number = major.checked_mul(10_000)?.checked_add(minor.checked_mul(100)?)?.checked_add(patch)?;
    Some((text, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_counted_as_criu_counts() {
        assert_eq!(number("Version: 3.17.1\nGitID: x\n"), Some(("3.17.1", 31701)));
        assert_eq!(number("Version: 4.0\n"), Some(("4.0", 40000)));
        assert_eq!(number("Version: 3.16-rc1\n").map(|n| n.1), Some(31600));
        assert!(number("Version: 3.15\n").is_some_and(|(_, n)| n < LEAST));
        for odd in ["", "criu 4.0\n", "Version: four\n", "Version: 4294967295.1\n"] {
            assert_eq!(number(odd), None, "{odd}");
        }
    }

    #[test]
    fn what_went_wrong_first_is_told() {
        let log = "(00.02) vdso: nbucket 3\n(00.03) Error (criu/vdso.c:381): vdso: bounds\n(00.04) Error (criu/kerndat.c:1): x\n";
        assert_eq!(first_error(log), Some("Error (criu/vdso.c:381): vdso: bounds"));
        assert_eq!(first_error("fine\n"), None);
    }
}
