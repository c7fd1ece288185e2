//! The atomic writer: a volume's files change all at once (pkg/volume/util/atomic_writer.go).
//!
//! Layout: `..<time>/` holds the files, `..data` points to it, and each visible name points through
//! `..data`. A change makes a new directory and renames a new `..data` over the old one, so that a
//! reader sees the old set or the new set and never a mixture.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";

/// One file of a volume.
#[derive(Clone, PartialEq, Eq)]
pub struct File {
    /// Its bytes: perhaps a secret, so that there is no `Debug`.
    pub data: Vec<u8>,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner, where it is not root.
    pub uid: Option<u32>,
}

/// The files of a volume by relative path.
pub type Payload = BTreeMap<String, File>;

/// Why a volume's files could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// A path that would leave the volume or hide its machinery.
    #[error("invalid path {0:?} in the volume: it must be relative, without '..' and not begin with '..'")]
    Path(String),
    /// The kernel refused.
    #[error("cannot write {path}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> WriteError + '_ {
    move |source| WriteError::Io { path: path.to_owned(), source }
}

/// Whether a key or item path may be a file of a volume.
///
/// # Errors
/// [`WriteError::Path`] when it may not.
pub fn validate(path: &str) -> Result<(), WriteError> {
    let plain = Path::new(path).components().all(|c| matches!(c, Component::Normal(_)));
    if path.is_empty() || path.len() > 4096 || path.contains('\0') || path.starts_with("..") || !plain {
        return Err(WriteError::Path(path.to_owned()));
    }
    Ok(())
}

/// Makes `dir` show exactly `payload`. Returns whether anything changed.
///
/// # Errors
/// [`WriteError`]; the volume then shows what it showed before.
pub fn write(dir: &Path, payload: &Payload, gid: Option<u32>) -> Result<bool, WriteError> {
    for path in payload.keys() {
        validate(path)?;
    }
    let data = dir.join(DATA);
    let old = match std::fs::read_link(&data) {
        Ok(target) => Some(dir.join(target)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => return Err(at(&data)(e)),
    };
    if let Some(old) = &old
        && current(old, payload)
    {
        link_names(dir, payload)?;
        return Ok(false);
    }
    let stamp = jiff::Timestamp::now().strftime("..%Y_%m_%d_%H_%M_%S.%9f").to_string();
    let fresh = dir.join(&stamp);
    std::fs::DirBuilder::new().mode(0o755).create(&fresh).map_err(at(&fresh))?;
    // The umask of the process must not take bits away from what the pod may read.
    set_mode(&fresh, 0o755)?;
    if let Err(error) = fill(&fresh, payload, gid) {
        std::fs::remove_dir_all(&fresh).map_err(at(&fresh))?;
        return Err(error);
    }
    let tmp = dir.join(DATA_TMP);
    match std::fs::remove_file(&tmp) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(at(&tmp)(e)),
        _ => {}
    }
    symlink(&stamp, &tmp).map_err(at(&tmp))?;
    std::fs::rename(&tmp, &data).map_err(at(&data))?;
    link_names(dir, payload)?;
    remove_stale(dir, payload, &stamp)?;
    Ok(true)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), WriteError> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(at(path))
}

fn fill(fresh: &Path, payload: &Payload, gid: Option<u32>) -> Result<(), WriteError> {
    for (path, file) in payload {
        let target = fresh.join(path);
        if let Some(parent) = target.parent() {
            std::fs::DirBuilder::new().mode(0o755).recursive(true).create(parent).map_err(at(parent))?;
        }
        let mut options = std::fs::OpenOptions::new();
        let mut out = options.write(true).create_new(true).mode(0o600).open(&target).map_err(at(&target))?;
        io::Write::write_all(&mut out, &file.data).map_err(at(&target))?;
        // fsGroup: the group reads what the owner reads (0440 on top, as upstream's read-only mask).
        let mode = if gid.is_some() { file.mode | 0o440 } else { file.mode };
        if file.uid.is_some() || gid.is_some() {
            chown(&target, file.uid, gid).map_err(at(&target))?;
        }
        set_mode(&target, mode)?;
    }
    Ok(())
}

/// Whether `old` holds exactly the payload's bytes.
fn current(old: &Path, payload: &Payload) -> bool {
    let mut found = BTreeSet::new();
    walk(old, old, &mut found);
    found.iter().eq(payload.keys())
        && payload.iter().all(|(path, file)| std::fs::read(old.join(path)).is_ok_and(|d| d == file.data))
}

fn walk(root: &Path, dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            walk(root, &path, found);
        } else if let Ok(relative) = path.strip_prefix(root) {
            found.insert(relative.to_string_lossy().into_owned());
        }
    }
}

fn visible(payload: &Payload) -> BTreeSet<&str> {
    payload.keys().filter_map(|p| p.split('/').next()).collect()
}

fn link_names(dir: &Path, payload: &Payload) -> Result<(), WriteError> {
    for name in visible(payload) {
        let link = dir.join(name);
        match symlink(Path::new(DATA).join(name), &link) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(at(&link)(e)),
            _ => {}
        }
    }
    Ok(())
}

fn remove_stale(dir: &Path, payload: &Payload, stamp: &str) -> Result<(), WriteError> {
    let keep = visible(payload);
    for entry in std::fs::read_dir(dir).map_err(at(dir))? {
        let entry = entry.map_err(at(dir))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = entry.path();
        if name == DATA || name == stamp || keep.contains(name.as_str()) {
            continue;
        }
        if entry.file_type().map_err(at(&path))?.is_dir() {
            std::fs::remove_dir_all(&path).map_err(at(&path))?;
        } else {
            std::fs::remove_file(&path).map_err(at(&path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        files
            .iter()
            .map(|(p, d)| ((*p).to_owned(), File { data: d.as_bytes().to_vec(), mode: 0o644, uid: None }))
            .collect()
    }

    #[test]
    fn the_set_of_files_changes_at_once_and_nothing_stale_stays() {
        let dir = tempfile::tempdir().unwrap();
        let read = |p: &str| std::fs::read_to_string(dir.path().join(p)).ok();
        assert!(write(dir.path(), &payload(&[("a", "1"), ("d/b", "2")]), None).unwrap());
        assert_eq!((read("a").as_deref(), read("d/b").as_deref()), (Some("1"), Some("2")));
        assert!(!write(dir.path(), &payload(&[("a", "1"), ("d/b", "2")]), None).unwrap());
        assert!(write(dir.path(), &payload(&[("a", "3")]), None).unwrap());
        assert_eq!((read("a").as_deref(), read("d/b")), (Some("3"), None));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3, "a, ..data and one directory");
    }

    #[test]
    fn a_path_cannot_leave_the_volume() {
        for bad in ["", "/a", "../a", "a/../b", "..a", "a/./../b"] {
            assert!(validate(bad).is_err(), "{bad}");
        }
        assert!(validate("a..b/c").is_ok());
    }
}
