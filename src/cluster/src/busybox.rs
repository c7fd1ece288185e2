//! A statically linked busybox for the images: that of the machine, else Debian's package, which is
//! fetched (by apt-get, with its signatures) into the cache and not installed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use crate::Progress;
use crate::cache;
use crate::elf;

/// Why there is no busybox.
#[derive(Debug, thiserror::Error)]
pub enum BusyboxError {
    /// There is none, and no Debian to get one from.
    #[error("there is no statically linked busybox in PATH, and no apt-get to fetch one with")]
    None,
    /// There is no directory for the cache.
    #[error("no cache directory for busybox; set XDG_CACHE_HOME or HOME")]
    NoCache,
    /// It was not fetched.
    #[error("there is no statically linked busybox in PATH, and {tool} does not get one: {message}")]
    Fetch {
        /// What failed.
        tool: &'static str,
        /// The end of what it said.
        message: String,
    },
    /// A file operation failed.
    #[error("cannot {what} {path} for busybox")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The path.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BusyboxError {
    let path = path.display().to_string();
    move |source| BusyboxError::Io { what, path, source }
}

/// The statically linked busybox of PATH.
pub(crate) fn installed() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/bin")])
        .map(|d| d.join("busybox"))
        .find(|p| fs::read(p).is_ok_and(|bytes| elf::is_static(&bytes)))
}

/// The installed one, that of the cache, or the package's.
pub(crate) async fn locate(progress: Progress<'_>) -> Result<PathBuf, BusyboxError> {
    if let Some(found) = installed() {
        return Ok(found);
    }
    let dir = cache::dir().ok_or(BusyboxError::NoCache)?.join("bin").join("busybox-static");
    let place = dir.join("busybox");
    if place.is_file() {
        return Ok(place);
    }
    if !crate::binaries::in_path("apt-get") {
        return Err(BusyboxError::None);
    }
    progress("fetching Debian's busybox-static (about 5 s; not installed, kept in the cache)");
    fs::create_dir_all(&dir).map_err(at("create", &dir))?;
    let work = tempfile::tempdir_in(&dir).map_err(at("create a directory in", &dir))?;
    run("apt-get", &["download", "-q", "busybox-static"], work.path()).await?;
    let package = fs::read_dir(work.path())
        .map_err(at("read", work.path()))?
        .filter_map(Result::ok)
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .find(|name| name.ends_with(".deb"));
    let package = package.ok_or_else(|| BusyboxError::Fetch {
        tool: "apt-get download",
        message: "it says that it did, but there is no package".to_owned(),
    })?;
    run("dpkg-deb", &["-x", &package, "files"], work.path()).await?;
    // Debian 12 has it in bin, later ones in usr/bin.
    let files = work.path().join("files");
    let found = ["usr/bin/busybox", "bin/busybox"]
        .into_iter()
        .map(|name| files.join(name))
        .find(|p| fs::read(p).is_ok_and(|bytes| elf::is_static(&bytes)));
    let found = found.ok_or_else(|| BusyboxError::Fetch {
        tool: "dpkg-deb",
        message: format!("{package} has no statically linked busybox"),
    })?;
    fs::rename(&found, &place).map_err(at("move into the cache", &found))?;
    Ok(place)
}

async fn run(tool: &'static str, args: &[&str], dir: &Path) -> Result<(), BusyboxError> {
    let failed = |message| BusyboxError::Fetch { tool, message };
    let mut command = Command::new(tool);
    command.args(args).current_dir(dir).env("LC_ALL", "C").stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(failed(text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("no word").to_owned()))
}
