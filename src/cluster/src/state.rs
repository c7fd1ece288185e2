//! `state.json`: what an `up` made, so that the next `up` or `down` finds it.
//!
//! It is a memory and not the truth: whether a process lives is asked of the kernel each time,
//! and a pid counts only together with its start time and the boot it was seen in.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::layout::Layout;

/// What is remembered of a cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The TCP ports that were chosen, by what listens on them.
    pub ports: BTreeMap<String, u16>,
    /// The daemons that were started, by name.
    pub processes: BTreeMap<String, ProcessRecord>,
    /// How many node environments were made (`podway-0` and on); written before they are.
    #[serde(default)]
    pub nodes: u8,
    /// Which of the machine's networks is ours (see `network`); written before it is made.
    #[serde(default)]
    pub slot: Option<u8>,
    /// Whether the host did not forward packets before we had it do so.
    #[serde(default)]
    pub forwarding_was_off: bool,
    /// Whether we made /run/netns a mount.
    #[serde(default)]
    pub shared_netns: bool,
    /// The kubeconfig of the cluster that was there already, where the control plane is not ours.
    #[serde(default)]
    pub existing: Option<std::path::PathBuf>,
}

/// One daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// Process id.
    pub pid: i32,
    /// Start time in clock ticks since boot: field 22 of `/proc/PID/stat`.
    pub start: u64,
    /// The boot in which it was started: `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
    /// Its command line, to see whether a restart with other flags is due.
    pub argv: Vec<String>,
}

/// Why the state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A file operation failed.
    #[error("cannot {what} {path}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which path.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file is not a state.
    #[error("{path} is not a podway state file; remove it if it is not one")]
    Parse {
        /// The file.
        path: String,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// Another `up` or `down` is at work.
    #[error("another podway up or down is working on {path}; wait for it to end")]
    Busy {
        /// The lock file.
        path: String,
    },
}

/// Turns an I/O error into one that names the path.
pub(crate) fn io_at(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.display().to_string();
    move |source| StateError::Io { what, path, source }
}

impl State {
    /// Reads the state; `None` where there is none.
    pub fn load(layout: &Layout) -> Result<Option<Self>, StateError> {
        let path = layout.state_file();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(io_at("read", &path)(e)),
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| StateError::Parse { path: path.display().to_string(), source })
    }

    /// The API server's port, where the API server is ours.
    pub(crate) fn api_port(&self) -> Option<u16> {
        self.ports.get("apiserver").copied().filter(|_| self.existing.is_none())
    }

    /// Writes the state atomically.
    pub fn save(&self, layout: &Layout) -> Result<(), StateError> {
        let path = layout.state_file();
        let text = serde_json::to_vec_pretty(self)
            .map_err(|source| StateError::Parse { path: path.display().to_string(), source })?;
        write_private(&path, &text)
    }
}

/// Makes a directory, and those above it, that only the owner enters.
pub(crate) fn private_dir(path: &Path) -> Result<(), StateError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_at("create", path))
}

/// Writes a file that only the owner reads, by rename, so that it is whole or not there.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let temporary = path.with_extension("tmp");
    let write = || -> io::Result<()> {
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(io_at("write", path))
}

/// The lock of a state directory; held until it is dropped.
#[derive(Debug)]
pub(crate) struct StateLock {
    _file: fs::File,
}

impl StateLock {
    /// Takes the lock, or says that another holds it.
    pub(crate) fn take(layout: &Layout) -> Result<Self, StateError> {
        let path = layout.lock_file();
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io_at("open", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(fs::TryLockError::WouldBlock) => Err(StateError::Busy { path: path.display().to_string() }),
            Err(fs::TryLockError::Error(e)) => Err(io_at("lock", &path)(e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_the_way_through_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        assert_eq!(State::load(&layout).unwrap(), None);
        let mut state = State::default();
        state.ports.insert("etcd".into(), 4001);
        state.save(&layout).unwrap();
        assert_eq!(State::load(&layout).unwrap(), Some(state));
    }

    #[test]
    fn the_lock_is_for_one() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let first = StateLock::take(&layout).unwrap();
        assert!(matches!(StateLock::take(&layout), Err(StateError::Busy { .. })));
        drop(first);
        StateLock::take(&layout).unwrap();
    }
}
