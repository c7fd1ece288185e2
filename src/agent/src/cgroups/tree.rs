//! The files of cgroups: directories made, values written and read, and all of it removed, on v1 (a tree per
//! controller) and v2 (one tree).

use std::io;
use std::path::{Path, PathBuf};

/// The controllers in which pod limits stand on v1; runc makes the others' directories itself.
const V1_CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
/// What is passed down to children on v2, as far as the machine has it.
const V2_CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"];

/// A file or directory of a cgroup could not be made, changed or removed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {verb} cgroup {path}")]
pub struct FileError {
    verb: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn at(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { verb, path, source }
}

/// The cgroup file system.
#[derive(Clone, Debug)]
pub struct Tree {
    mount: PathBuf,
    v2: bool,
}

impl Tree {
    /// That at `mount`.
    #[must_use]
    pub fn new(mount: &Path) -> Self {
        Tree { mount: mount.to_owned(), v2: mount.join("cgroup.controllers").exists() }
    }

    /// Whether it is of version 2.
    #[must_use]
    pub fn v2(&self) -> bool {
        self.v2
    }

    /// Makes a cgroup and those above it. May be repeated.
    ///
    /// # Errors
    /// [`FileError`] with the kernel's reason.
    pub fn make(&self, path: &str) -> Result<(), FileError> {
        let mut above = String::new();
        for part in path.split('/').filter(|p| !p.is_empty()) {
            if self.v2 {
                self.delegate(&above)?;
            }
            above = format!("{above}/{part}");
            for dir in self.made(&above) {
                match std::fs::create_dir(&dir) {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(at("make", &dir)(e)),
                    _ => {}
                }
            }
        }
        if self.v2 { self.delegate(path) } else { Ok(()) }
    }

    /// Writes one value. A controller that the machine does not have limits nothing.
    ///
    /// # Errors
    /// [`FileError`] with the kernel's reason.
    pub fn set(&self, controller: &str, path: &str, file: &str, value: &str) -> Result<(), FileError> {
        let file = self.dir(controller, path).join(file);
        match std::fs::OpenOptions::new().write(true).truncate(true).open(&file) {
            Ok(mut open) => io::Write::write_all(&mut open, value.as_bytes()).map_err(at("set", &file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(at("set", &file)(e)),
        }
    }

    /// The first number in a file; none where there is none, or none above 0.
    #[must_use]
    pub fn number(&self, controller: &str, path: &str, file: &str) -> Option<i64> {
        let text = std::fs::read_to_string(self.dir(controller, path).join(file)).ok()?;
        text.split_whitespace().next()?.parse::<i64>().ok().filter(|v| *v > 0)
    }

    /// Whether there is such a cgroup in any tree.
    #[must_use]
    pub fn has(&self, path: &str) -> bool {
        self.all(path).iter().any(|dir| dir.is_dir())
    }

    /// Whether there is such a cgroup wherever a limit may stand.
    #[must_use]
    pub fn whole(&self, path: &str) -> bool {
        self.made(path).iter().all(|dir| dir.is_dir())
    }

    /// The names of the cgroups in this one, of all trees together.
    #[must_use]
    pub fn names(&self, path: &str) -> Vec<String> {
        let entries = self.all(path).into_iter().filter_map(|dir| std::fs::read_dir(dir).ok());
        entries.flatten().filter_map(Result::ok).filter_map(|e| e.file_name().into_string().ok()).collect()
    }

    /// Removes a cgroup and those below it in every tree. May be repeated.
    ///
    /// # Errors
    /// [`FileError`] while something runs in it.
    pub fn remove(&self, path: &str) -> Result<(), FileError> {
        self.all(path).iter().try_for_each(|dir| remove(dir).map_err(at("remove", dir)))
    }

    /// Passes the controllers that there are on to the children of `path`.
    fn delegate(&self, path: &str) -> Result<(), FileError> {
        let dir = self.dir("", path);
        let has = std::fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
        let file = dir.join("cgroup.subtree_control");
        let on = std::fs::read_to_string(&file).unwrap_or_default();
        for controller in has.split_whitespace().filter(|c| V2_CONTROLLERS.contains(c)) {
            if on.split_whitespace().all(|o| o != controller) {
                std::fs::write(&file, format!("+{controller}")).map_err(at("delegate from", &dir))?;
            }
        }
        Ok(())
    }

    /// Where a controller has a cgroup.
    #[must_use]
    pub fn dir(&self, controller: &str, path: &str) -> PathBuf {
        let relative = path.trim_start_matches('/');
        if self.v2 { self.mount.join(relative) } else { self.mount.join(controller).join(relative) }
    }

    fn made(&self, path: &str) -> Vec<PathBuf> {
        if self.v2 {
            return vec![self.dir("", path)];
        }
        let mounted = V1_CONTROLLERS.into_iter().filter(|c| self.mount.join(c).is_dir());
        mounted.map(|c| self.dir(c, path)).collect()
    }

    fn all(&self, path: &str) -> Vec<PathBuf> {
        if self.v2 {
            return vec![self.dir("", path)];
        }
        let trees = std::fs::read_dir(&self.mount).into_iter().flatten().filter_map(Result::ok);
        trees.map(|tree| tree.path().join(path.trim_start_matches('/'))).collect()
    }
}

/// Removes a cgroup and those below it, the deepest first. Files in it are the kernel's.
fn remove(dir: &Path) -> io::Result<()> {
    let gone = |e: &io::Error| matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory);
    let entries = match std::fs::read_dir(dir) {
        Err(e) if gone(&e) => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove(&entry.path())?;
        }
    }
    match std::fs::remove_dir(dir) {
        Err(e) if !gone(&e) => Err(e),
        _ => Ok(()),
    }
}
