//! Programs of the tests' own that are written in Go, for the sake of the packages that Go alone has: `tests/go`.

use anyhow::{Context as _, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds the program `name` into the directory `out`. What it is made of is in Go's cache, once it was built.
///
/// # Errors
/// What Go says.
pub fn build(name: &str, out: &Path) -> anyhow::Result<PathBuf> {
    let out = out.join(name);
    let output = Command::new("go")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("go").join(name))
        .env("GOFLAGS", "-buildvcs=false")
        .env("GOWORK", "off")
        .env("CGO_ENABLED", "0")
        // As everything else is built: packages that are built already are not built again.
        .args(["build", "-trimpath", "-o"])
        .arg(&out)
        .arg(".")
        .output()
        .context("go")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(out)
}
