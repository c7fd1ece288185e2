//! The files of this repository.

use anyhow::Context as _;
use std::path::{Path, PathBuf};

/// Where a file of the repository is.
#[must_use]
pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name)
}

/// Its text.
///
/// # Errors
/// When it cannot be read.
pub fn text(name: &str) -> anyhow::Result<String> {
    std::fs::read_to_string(file(name)).with_context(|| name.to_owned())
}
