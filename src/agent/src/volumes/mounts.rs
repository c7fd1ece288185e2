//! What is mounted where, by the kernel's table: nothing is looked at on the mounts themselves, of which one may hang.

use super::{VolumeError, io_at};
use std::path::{Path, PathBuf};

/// Where something is mounted, in the order of the mounts.
pub(super) fn points() -> Result<Vec<PathBuf>, VolumeError> {
    let table = Path::new("/proc/self/mounts");
    let mounts = std::fs::read_to_string(table).map_err(io_at("read", table))?;
    Ok(mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(unescape).map(PathBuf::from).collect())
}

/// Whether something is mounted at `path`.
pub(super) fn has(path: &Path) -> Result<bool, VolumeError> {
    Ok(points()?.iter().any(|point| point == path))
}

/// Unmounts what is mounted at `dir` and below it, but for what is at `but` and below that.
pub(super) fn unmount(dir: &Path, but: Option<&Path>) -> Result<(), VolumeError> {
    let ours = |point: &&PathBuf| point.starts_with(dir) && but.is_none_or(|but| !point.starts_with(but));
    // Last mounted first: a mount may stand below another.
    for point in points()?.iter().rev().filter(ours) {
        rustix::mount::unmount(point, rustix::mount::UnmountFlags::empty())
            .map_err(|e| io_at("unmount", point)(e.into()))?;
    }
    Ok(())
}

/// The mount table's `\040` and its like.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}
