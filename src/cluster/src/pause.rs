//! The program of the pause image: a static one of a few lines, built once into the cache by the C
//! compiler, or by Go where there is none that links statically.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use sha2::{Digest as _, Sha256};
use tokio::process::Command;

use crate::cache;
use crate::elf;

/// Why there is no pause program.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// There is no directory for the cache.
    #[error("no cache directory for the pause program; set XDG_CACHE_HOME or HOME")]
    NoCache,
    /// Nothing builds it.
    #[error("cannot build the pause program; {tried}")]
    Build {
        /// What was tried, and what came of it.
        tried: String,
    },
    /// A file operation failed.
    #[error("cannot {what} {path} for the pause program")]
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

const C: &str = include_str!("../pause/pause.c");
const GO: &str = include_str!("../pause/main.go");

fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PauseError {
    let path = path.display().to_string();
    move |source| PauseError::Io { what, path, source }
}

/// The pause program in the cache; under a second to build where it is not there.
pub(crate) async fn locate() -> Result<PathBuf, PauseError> {
    let version = hex::encode(&Sha256::digest([C, GO].concat())[..6]);
    let dir = cache::dir().ok_or(PauseError::NoCache)?.join("bin").join(format!("pause-{version}"));
    let place = dir.join("pause");
    if place.is_file() {
        return Ok(place);
    }
    fs::create_dir_all(&dir).map_err(at("create", &dir))?;
    let work = tempfile::tempdir_in(&dir).map_err(at("create a directory in", &dir))?;
    for (name, text) in [("pause.c", C), ("main.go", GO)] {
        let path = work.path().join(name);
        fs::write(&path, text).map_err(at("write", &path))?;
    }
    let mut tried = Vec::new();
    for attempt in [
        ["cc", "-static", "-Os", "-s", "-o", "pause", "pause.c"].as_slice(),
        &["go", "build", "-trimpath", "-ldflags=-s -w", "-o", "pause", "main.go"],
    ] {
        match run(attempt, work.path()).await {
            Ok(output) if output.status.success() => {
                let built = work.path().join("pause");
                let bytes = fs::read(&built).map_err(at("read", &built))?;
                if elf::is_static(&bytes) {
                    fs::rename(&built, &place).map_err(at("move into the cache", &built))?;
                    return Ok(place);
                }
                tried.push(format!("{} does not link statically", attempt[0]));
            }
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr);
                let last = text.lines().rev().find(|l| !l.trim().is_empty()).unwrap_or("no word");
                tried.push(format!("{} ended with {}: {last}", attempt[0], output.status));
            }
            Err(error) => tried.push(format!("{} does not run: {error}", attempt[0])),
        }
    }
    Err(PauseError::Build { tried: tried.join("; ") })
}

async fn run(argv: &[&str], dir: &Path) -> io::Result<Output> {
    let mut command = Command::new(argv.first().copied().unwrap_or_default());
    command
        .args(argv.iter().skip(1))
        .current_dir(dir)
        .env("CGO_ENABLED", "0")
        .env("GO111MODULE", "off")
        .env("GOFLAGS", "")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command.output().await
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    /// As PID 1 of a namespace it takes in an orphan, and ends on SIGTERM with 0.
    #[tokio::test]
    async fn pause_is_static_and_ends_when_told() {
        let program = super::locate().await.unwrap();
        let mut child = Command::new(&program).stdin(Stdio::null()).spawn().unwrap();
        // Its handlers are set: the kernel says which signals are caught.
        let caught = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
            let mask = status.lines().find_map(|l| l.strip_prefix("SigCgt:\t")).unwrap().to_owned();
            u64::from_str_radix(&mask, 16).unwrap() & (1 << 14) != 0
        };
        let limit = Instant::now() + Duration::from_secs(10);
        while !caught() {
            assert!(Instant::now() < limit, "SIGTERM is never caught");
            tokio::task::yield_now().await;
        }
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}
