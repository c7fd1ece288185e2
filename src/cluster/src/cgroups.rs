//! The cgroups of a node, on version 1 (a tree per controller) and on version 2 (one tree): what
//! runs in them is ended, then they are removed. Only below the name that podway gave them.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::process::{self, ProcessError};

/// Why a cgroup is left.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// A process does not end.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A directory cannot be read or removed.
    #[error("cannot {what} the cgroup {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The directory.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// New processes came as fast as they were ended.
    #[error("processes in the cgroup {path} start faster than they are ended")]
    Busy {
        /// The cgroup.
        path: String,
    },
}

const ROOT: &str = "/sys/fs/cgroup";

/// The directories of `cgroup` in every mounted tree.
fn trees(root: &Path, cgroup: &str) -> Vec<PathBuf> {
    let relative = cgroup.trim_start_matches('/');
    let mut roots = vec![root.to_owned()];
    if let Ok(entries) = fs::read_dir(root) {
        // A controller's name may be a link to the mount of two (`cpu` → `cpu,cpuacct`): taken once.
        let real = entries.filter_map(Result::ok).filter(|e| e.file_type().is_ok_and(|t| t.is_dir()));
        roots.extend(real.map(|e| e.path()));
    }
    roots.into_iter().map(|r| r.join(relative)).filter(|p| p.is_dir()).collect()
}

/// The directory and all below it, those below first.
fn below(dir: &Path, into: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            below(&entry.path(), into)?;
        }
    }
    into.push(dir.to_owned());
    Ok(())
}

fn listed(trees: &[PathBuf]) -> Result<Vec<PathBuf>, CgroupError> {
    let mut all = Vec::new();
    for tree in trees {
        let path = tree.display().to_string();
        below(tree, &mut all).map_err(|source| CgroupError::Io { what: "read", path, source })?;
    }
    Ok(all)
}

fn pids(dirs: &[PathBuf]) -> BTreeSet<i32> {
    // A cgroup that is gone meanwhile has no process.
    let texts = dirs.iter().filter_map(|d| fs::read_to_string(d.join("cgroup.procs")).ok());
    texts.flat_map(|t| t.lines().filter_map(|l| l.parse().ok()).collect::<Vec<i32>>()).collect()
}

/// Ends every process in `cgroup` and below, then removes it.
pub(crate) async fn remove(cgroup: &str) -> Result<(), CgroupError> {
    remove_in(Path::new(ROOT), cgroup).await
}

/// The same for a node whose cgroups systemd has: it ends the slice with all that is in it, and forgets the slice of
/// all nodes with the last of them.
pub(crate) async fn remove_slice(slice: &str) -> Result<(), CgroupError> {
    let (above, path) = ("podway.slice", format!("/podway.slice/{slice}"));
    if trees(Path::new(ROOT), &path).is_empty() {
        return Ok(());
    }
    stop(slice).await?;
    remove(&path).await?;
    if trees(Path::new(ROOT), above).is_empty() { stop(above).await } else { Ok(()) }
}

async fn stop(unit: &str) -> Result<(), CgroupError> {
    let failed = |source| CgroupError::Io { what: "have systemd stop", path: unit.to_owned(), source };
    let output = tokio::process::Command::new("systemctl").args(["stop", "--", unit]).output().await;
    let output = output.map_err(failed)?;
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if output.status.success() { Ok(()) } else { Err(failed(io::Error::other(said))) }
}

async fn remove_in(root: &Path, cgroup: &str) -> Result<(), CgroupError> {
    let trees = trees(root, cgroup);
    let mut left = 20;
    loop {
        let found = pids(&listed(&trees)?);
        if found.is_empty() {
            break;
        }
        left -= 1;
        if left == 0 {
            return Err(CgroupError::Busy { path: cgroup.to_owned() });
        }
        for pid in found {
            process::kill(pid, Duration::from_secs(10)).await?;
        }
    }
    for dir in listed(&trees)? {
        // A killed process leaves its cgroup a moment after its end is told, and version 1 tells
        // nobody when a cgroup is empty.
        let mut pause = Duration::from_millis(1);
        loop {
            match remove_dir(&dir) {
                Err(CgroupError::Io { source, .. }) if busy(&source) && pause < Duration::from_secs(2) => {}
                other => break other?,
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
    }
    // The parent goes with its last node; it is not empty while another cluster has one.
    if let Some((parent, _)) = cgroup.rsplit_once('/').filter(|(p, _)| !p.is_empty()) {
        for dir in self::trees(root, parent) {
            match remove_dir(&dir) {
                Err(CgroupError::Io { source, .. }) if busy(&source) => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// Not empty: cgroups answer "busy" to that.
fn busy(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty)
}

fn remove_dir(dir: &Path) -> Result<(), CgroupError> {
    match fs::remove_dir(dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(CgroupError::Io { what: "remove", path: dir.display().to_string(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_named_cgroup_goes_in_every_tree() {
        let root = tempfile::tempdir().unwrap();
        for dir in ["cpu/podway/n0/pod/c", "memory/podway/n0", "memory/podway/n1", "podway/n0/x"] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        remove_in(root.path(), "/podway/n0").await.unwrap();
        assert!(!root.path().join("cpu/podway").exists());
        assert!(!root.path().join("memory/podway/n0").exists());
        assert!(root.path().join("memory/podway/n1").exists());
        assert!(!root.path().join("podway/n0").exists());
    }
}
