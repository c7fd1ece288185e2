//! `DIR/bin`: links to the programs that a user calls, for PATH.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{UpError, Work};
use crate::program::Program;
use crate::state::private_dir;

impl Work<'_> {
    /// Links `podway`, `kubectl-podway` (so that `kubectl podway` is it) and `kubectl`.
    pub(super) async fn links(&self, podway: &Path) -> Result<PathBuf, UpError> {
        let dir = self.layout.bin();
        private_dir(&dir)?;
        link(&dir.join("podway"), podway)?;
        link(&dir.join("kubectl-podway"), podway)?;
        match Program::Kubectl.locate(self.progress).await {
            // The link itself, where DIR/bin is in PATH already.
            Ok(found) if found.starts_with(&dir) => {}
            Ok(found) => link(&dir.join("kubectl"), &found)?,
            // The cluster is up all the same.
            Err(error) => (self.progress)(&format!("no kubectl: {error}")),
        }
        Ok(dir)
    }
}

/// Makes a link anew where it leads elsewhere.
fn link(path: &Path, to: &Path) -> Result<(), UpError> {
    let failed = |source| UpError::Link { path: path.display().to_string(), source };
    if std::fs::read_link(path).is_ok_and(|old| old == to) {
        return Ok(());
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    symlink(to, path).map_err(failed)
}
