//! What can be said before anything is touched: that this machine lacks what `up` needs.

use std::fs;
use std::io;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::binaries::in_path;

/// What the machine lacks.
#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    /// The kernel lets only root do this.
    #[error("podway up makes network namespaces and mounts, which only root may")]
    NotRoot,
    /// A program of the machine is missing.
    #[error("there is no {program} in PATH")]
    Missing {
        /// The program.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The state directory does not carry an overlay, and so no container's file system.
    #[error("no overlay file system can be mounted in {path}")]
    NoOverlay {
        /// The directory.
        path: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A file operation failed.
    #[error("cannot write in {path}")]
    Io {
        /// The directory.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Root and iptables; everything else that is needed is found or built.
pub(crate) fn machine() -> Result<(), PreflightError> {
    if !rustix::process::geteuid().is_root() {
        return Err(PreflightError::NotRoot);
    }
    if !in_path("iptables") {
        return Err(PreflightError::Missing { program: "iptables", package: "iptables" });
    }
    Ok(())
}

/// Mounts an overlay in `dir`, and takes it away again.
pub(crate) fn overlay(dir: &Path) -> Result<(), PreflightError> {
    let path = || dir.display().to_string();
    let io = |source| PreflightError::Io { path: path(), source };
    let work = tempfile::tempdir_in(dir).map_err(io)?;
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir(work.path().join(name)).map_err(io)?;
    }
    let at = |name: &str| work.path().join(name).display().to_string();
    let data = format!("lowerdir={},upperdir={},workdir={}", at("lower"), at("upper"), at("work"));
    let merged = work.path().join("merged");
    mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(data.as_str()))
        .map_err(|e| PreflightError::NoOverlay { path: path(), source: e.into() })?;
    umount2(&merged, MntFlags::MNT_DETACH).map_err(|e| io(e.into()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlay_is_tried_and_leaves_nothing() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: mounts need root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        overlay(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        // proc carries none.
        assert!(overlay(Path::new("/proc/self")).is_err());
    }
}
