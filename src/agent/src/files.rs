//! Small files of the agent's own, each whole or not there at all.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

/// What is written before it takes its place.
const NEXT: &str = "next";

/// Writes `text` in the place of `path`, for the owner alone; a directory that is missing is made with mode `dir`.
/// What is renamed outlives the agent; should the machine go, so may this.
///
/// # Errors
/// As the file system has them.
pub fn replace(path: &Path, dir: u32, text: &[u8]) -> io::Result<()> {
    swap(path, dir, text, false)
}

/// The same, and it outlives the machine's end too.
///
/// # Errors
/// As the file system has them.
pub fn replace_for_good(path: &Path, dir: u32, text: &[u8]) -> io::Result<()> {
    swap(path, dir, text, true)
}

/// [`replace`] with the JSON of `value`.
///
/// # Errors
/// As the file system has them.
pub fn keep<T: Serialize>(path: &Path, dir: u32, value: &T) -> io::Result<()> {
    replace(path, dir, &serde_json::to_vec(value)?)
}

/// The value that was kept at `path`; none where nothing was.
///
/// # Errors
/// As the file system has them, and where the file holds something else.
pub fn recall<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => Ok(Some(serde_json::from_slice(&read?)?)),
    }
}

/// Removes what was kept at `path`, and what a write that was cut short has left; nothing there is as good.
///
/// # Errors
/// As the file system has them.
pub fn forget(path: &Path) -> io::Result<()> {
    for file in [path, &path.with_extension(NEXT)] {
        match std::fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn swap(path: &Path, dir: u32, text: &[u8], sync: bool) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(dir).create(parent)?;
    }
    let next = path.with_extension(NEXT);
    let mut file =
        std::fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
    file.write_all(text)?;
    if sync {
        file.sync_all()?;
    }
    std::fs::rename(next, path)
}
