//! The runc of the tests.

use std::path::PathBuf;

/// The first of `PODWAY_RUNC`, `PATH` and `/tmp/kbin`.
pub fn runc() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::var_os("PODWAY_RUNC")
        .map(PathBuf::from)
        .into_iter()
        .chain(std::env::split_paths(&path).map(|d| d.join("runc")))
        .chain([PathBuf::from("/tmp/kbin/runc")])
        .find(|p| p.is_file())
}
