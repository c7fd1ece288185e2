//! `podway down`: ends and removes all that an `up` made, in the reverse order.
//!
//! It goes on after what fails, so that one stuck thing does not keep the rest, and reports the
//! first failure at the end; the state directory stays then, for another try.

use std::path::Path;
use std::time::Duration;

use crate::Progress;
use crate::layout::Layout;
use crate::process::{self, ProcessError};
use crate::state::{State, StateError, StateLock, io_at};

/// Why something is left.
#[derive(Debug, thiserror::Error)]
pub enum DownError {
    /// The state could not be read, or the directory not be removed.
    #[error(transparent)]
    State(#[from] StateError),
    /// A process could not be stopped.
    #[error(transparent)]
    Process(#[from] ProcessError),
}

/// How long a daemon may take to end by itself.
const GRACE: Duration = Duration::from_secs(10);

/// The order in which the control plane is stopped; what is not named here is stopped before.
const LAST: [&str; 4] = ["registry", "kube-controller-manager", "kube-apiserver", "etcd"];

/// Removes the cluster in `state_dir`. Returns false where there is none.
pub async fn down(state_dir: &Path, progress: impl Fn(&str) + Send + Sync) -> Result<bool, DownError> {
    let progress: Progress<'_> = &progress;
    let Ok(root) = std::fs::canonicalize(state_dir) else { return Ok(false) };
    let layout = Layout::new(root);
    let Some(found) = State::load(&layout)? else { return Ok(false) };
    let lock = StateLock::take(&layout)?;
    // Read again under the lock: an up may have ended meanwhile.
    let state = State::load(&layout)?.unwrap_or(found);
    let mut first: Option<DownError> = None;
    let mut keep = |result: Result<(), DownError>| {
        if let Err(error) = result {
            first.get_or_insert(error);
        }
    };

    let early = state.processes.iter().filter(|(name, _)| !LAST.contains(&name.as_str()));
    let late = LAST.iter().filter_map(|name| state.processes.get_key_value(*name));
    for (name, record) in early.chain(late) {
        progress(&format!("stopping {name}"));
        keep(process::stop(record, GRACE).await.map_err(DownError::from));
    }
    // Those whose record was lost, and the monitors that outlive a runtime.
    keep(process::stop_marked(layout.root(), GRACE).await.map(|_| ()).map_err(DownError::from));

    if let Some(error) = first {
        return Err(error);
    }
    std::fs::remove_dir_all(layout.root()).map_err(io_at("remove", layout.root()))?;
    drop(lock);
    Ok(true)
}
