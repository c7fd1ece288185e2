//! The programs of a few lines that images need (pause's, and the shell of the suite's busybox): static,
//! built once into the cache by the C compiler, or by Go where there is none that links statically.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use sha2::{Digest as _, Sha256};
use tokio::process::Command;

use crate::cache;
use crate::elf;

/// Why there is no such program.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// There is no directory for the cache.
    #[error("no cache directory for an image's program; set XDG_CACHE_HOME or HOME")]
    NoCache,
    /// Nothing builds it.
    #[error("cannot build a program of an image; {tried}")]
    Build {
        /// What was tried, and what came of it.
        tried: String,
    },
    /// A file operation failed.
    #[error("cannot {what} {path} for a program of an image")]
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

/// A program of ours.
struct Small {
    name: &'static str,
    c: &'static str,
    /// The same in Go, where there is one.
    go: Option<&'static str>,
}

static PAUSE: Small =
    Small { name: "pause", c: include_str!("../pause/pause.c"), go: Some(include_str!("../pause/main.go")) };
static SHELL: Small = Small { name: "sh", c: include_str!("../pause/sh.c"), go: None };

fn at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PauseError {
    let path = path.display().to_string();
    move |source| PauseError::Io { what, path, source }
}

/// The pause program in the cache; under a second to build where it is not there.
pub(crate) async fn locate() -> Result<PathBuf, PauseError> {
    built(&PAUSE).await
}

/// The shell of the suite's busybox image, likewise.
pub(crate) async fn shell() -> Result<PathBuf, PauseError> {
    built(&SHELL).await
}

async fn built(program: &Small) -> Result<PathBuf, PauseError> {
    let Small { name, c, go } = *program;
    let version = hex::encode(&Sha256::digest([c, go.unwrap_or_default()].concat())[..6]);
    let dir = cache::dir().ok_or(PauseError::NoCache)?.join("bin").join(format!("{name}-{version}"));
    let place = dir.join(name);
    if place.is_file() {
        return Ok(place);
    }
    fs::create_dir_all(&dir).map_err(at("create", &dir))?;
    let work = tempfile::tempdir_in(&dir).map_err(at("create a directory in", &dir))?;
    for (file, text) in [("main.c", Some(c)), ("main.go", go)] {
        let Some(text) = text else { continue };
        let path = work.path().join(file);
        fs::write(&path, text).map_err(at("write", &path))?;
    }
    let mut tried = Vec::new();
    let by_c = ["cc", "-static", "-Os", "-s", "-o", name, "main.c"];
    let by_go = ["go", "build", "-trimpath", "-ldflags=-s -w", "-o", name, "main.go"];
    for attempt in [Some(by_c.as_slice()), go.map(|_| by_go.as_slice())].into_iter().flatten() {
        match run(attempt, work.path()).await {
            Ok(output) if output.status.success() => {
                let built = work.path().join(name);
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
