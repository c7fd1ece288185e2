//! The user's cache of programs: built or fetched once, for every cluster of the machine.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// `XDG_CACHE_HOME/podway`, else `HOME/.cache/podway`.
pub(crate) fn dir() -> Option<PathBuf> {
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|h| h.join(".cache")))
        .map(|c| c.join("podway"))
}

/// Takes a lock file; where another holds it, calls `waiting` and waits on a thread of its own.
pub(crate) async fn lock(path: &Path, waiting: impl FnOnce()) -> io::Result<fs::File> {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
    match file.try_lock() {
        Ok(()) => return Ok(file),
        Err(fs::TryLockError::WouldBlock) => {}
        Err(fs::TryLockError::Error(e)) => return Err(e),
    }
    waiting();
    tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await.map_err(io::Error::other)?
}
