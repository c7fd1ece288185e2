//! Finds each program that the cluster needs, or has it built.
//!
//! The order: `KUBEBUILDER_ASSETS` (taken as it is, since somebody chose it), PATH and the usual
//! directories (only in a version that fits), the cache, and at last a build from the committed
//! Go modules into the cache (see `build`).

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Progress;
use crate::build;
use crate::cache;
use crate::program::{BinaryError, Program};

impl Program {
    /// Finds the program, building it if need be; minutes, the first time.
    pub async fn locate(self, progress: Progress<'_>) -> Result<PathBuf, BinaryError> {
        let mut found = locate(&[self], progress).await?;
        found.remove(&self).ok_or(BinaryError::NotWanted { program: self.file() })
    }

    /// Finds an installed program.
    fn search(self) -> Option<PathBuf> {
        if let Some(assets) = env::var_os("KUBEBUILDER_ASSETS").map(PathBuf::from) {
            let chosen = assets.join(self.file());
            if self.complete(&chosen) {
                return Some(chosen);
            }
        }
        let path = env::var_os("PATH").unwrap_or_default();
        match self {
            Self::CniPlugins => ["/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni"]
                .iter()
                .map(PathBuf::from)
                .find(|d| self.complete(d)),
            _ => env::split_paths(&path)
                .map(|d| d.join(self.file()))
                .find(|p| self.complete(p) && self.printed_version(p).is_some_and(|text| self.fits(&text))),
        }
    }

    fn printed_version(self, path: &Path) -> Option<String> {
        if !self.versioned() {
            return Some(String::new());
        }
        let output = Command::new(path).args(self.version_args()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

/// Finds each of `wanted`, or builds it; says first what is built and how long that may take.
pub(crate) async fn locate(
    wanted: &[Program],
    progress: Progress<'_>,
) -> Result<BTreeMap<Program, PathBuf>, BinaryError> {
    let mut found = BTreeMap::new();
    let mut missing = Vec::new();
    for &program in wanted {
        match program.search() {
            Some(path) => drop(found.insert(program, path)),
            None => match build::cached(program)? {
                Some(path) => drop(found.insert(program, path)),
                None => missing.push(program),
            },
        }
    }
    tools(&missing)?;
    if missing.len() > 1 {
        let names: Vec<&str> = missing.iter().map(|p| p.file()).collect();
        let total: u32 = missing.iter().map(|&p| build::seconds(p)).sum();
        let cache = cache::dir().unwrap_or_default();
        progress(&format!(
            "to be built with Go, once (about {} on 2 cores; kept in {}): {}",
            build::duration(total.into()),
            cache.display(),
            names.join(", ")
        ));
    }
    for program in missing {
        found.insert(program, build::built(program, progress).await?);
    }
    Ok(found)
}

/// That what builds them is there, before minutes are spent on those that come first.
fn tools(missing: &[Program]) -> Result<(), BinaryError> {
    let names = |list: &[Program]| list.iter().map(|p| p.file()).collect::<Vec<_>>().join(", ");
    if !missing.is_empty() && !in_path("go") {
        return Err(BinaryError::NoTool { programs: names(missing), tool: "go" });
    }
    // runc joins namespaces in C.
    if missing.contains(&Program::Runc) && !["gcc", "cc", "clang"].into_iter().any(in_path) {
        return Err(BinaryError::NoTool { programs: names(&[Program::Runc]), tool: "C compiler" });
    }
    Ok(())
}

/// Whether PATH has a program.
pub(crate) fn in_path(program: &str) -> bool {
    of_path(program).is_some()
}

/// A program of PATH, whatever its version.
pub(crate) fn of_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|d| d.join(program)).find(|p| p.is_file())
}
