//! Finds and removes the mounts below a directory: overlays, volumes, pinned namespaces.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, umount2};

/// Why a mount is left.
#[derive(Debug, thiserror::Error)]
#[error("cannot unmount {path}")]
pub struct MountError {
    /// The mount point.
    pub path: String,
    /// The cause.
    #[source]
    pub source: io::Error,
}

/// The mount points below `dir` (or at it) in `mountinfo`, the latest first.
fn below(mountinfo: &str, dir: &Path) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|l| l.split(' ').nth(4)).map(unescaped);
    let mut found: Vec<PathBuf> = points.filter(|p| p.starts_with(dir)).collect();
    found.reverse();
    found
}

/// The kernel writes space, tab, newline and backslash as `\ooo`.
fn unescaped(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|d| std::str::from_utf8(d).ok());
        match octal.and_then(|d| u8::from_str_radix(d, 8).ok()).filter(|_| *first == b'\\') {
            Some(byte) => {
                out.push(byte);
                rest = &tail[3..];
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

/// Unmounts everything below `dir`. On success nothing is mounted there any more, so that whoever
/// removes the directory next cannot reach through a bind mount into a user's files.
pub(crate) fn unmount_below(dir: &Path) -> Result<(), MountError> {
    let failed = |path: &Path, source| MountError { path: path.display().to_string(), source };
    let list = || -> Result<Vec<PathBuf>, MountError> {
        let info = Path::new("/proc/self/mountinfo");
        let text = fs::read(info).map_err(|e| failed(info, e))?;
        Ok(below(&String::from_utf8_lossy(&text), dir))
    };
    let mut first = None;
    for point in list()? {
        // Detached: nobody is left who uses it, but a mount namespace may still be on its way out.
        if let Err(e) = umount2(&point, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            // One that went with the mount above it fails too: what is left counts.
            first.get_or_insert((point, e));
        }
    }
    match (list()?.into_iter().next(), first) {
        (None, _) => Ok(()),
        (Some(_), Some((point, e))) => Err(failed(&point, e.into())),
        (Some(point), None) => Err(failed(&point, io::ErrorKind::ResourceBusy.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_come_innermost_first_and_unescaped() {
        let text = "1 0 8:1 / / rw - ext4 x rw\n2 1 0:5 / /s/a rw - tmpfs x rw\n\
                    3 2 0:6 / /s/a/b\\040c rw - tmpfs x rw\n4 1 0:7 / /sx rw - tmpfs x rw\n";
        assert_eq!(below(text, Path::new("/s")), [PathBuf::from("/s/a/b c"), PathBuf::from("/s/a")]);
    }
}
