//! Where a checkpoint is to be written: a path of a request, judged before anything is made.
//!
//! The archive is written beside its place under a name of its own and gets its name when it is whole, so
//! nobody ever reads half of one. Nothing but a former archive is replaced, and nothing of the runtime's own.

use crate::error::OpError;
use crate::ids::Id;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

/// A name in a directory that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Location {
    dir: PathBuf,
    name: OsString,
}

impl Location {
    /// Judges `text`, which must lie in none of `own`. Blocks: it looks at the disk.
    pub(super) fn parse(text: &str, own: &[&Path]) -> Result<Self, OpError> {
        let bad = |why: &str| {
            let shown = podway_flow::record::bounded(text, 200);
            Err(OpError::Invalid(format!("location {shown:?} {why}")))
        };
        let Some(below) = text.strip_prefix('/') else { return bad("is not an absolute path") };
        let plain = |part: &str| !matches!(part, "" | "." | "..") && part.len() <= 255;
        if text.len() >= 4096 || text.contains('\0') || !below.split('/').all(plain) {
            return bad("is not a plain path of a file");
        }
        let path = Path::new(text);
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return bad("is not a plain path of a file");
        };
        // Links in it are the node's own (a kubelet's directory that was moved): what counts is where they lead.
        let dir = match dir.canonicalize() {
            Ok(dir) if dir.is_dir() => dir,
            Ok(_) => return bad("is not in a directory"),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return bad("is in a directory that is not there");
            }
            Err(e) => return Err(OpError::Io("look at the location's directory", e)),
        };
        let owned = own.iter().any(|own| own.canonicalize().is_ok_and(|own| dir.starts_with(own)));
        if owned {
            return bad("is in a directory of the runtime's own");
        }
        match std::fs::symlink_metadata(dir.join(name)) {
            Ok(there) if there.is_file() => {}
            Ok(_) => return bad("is there already, and no file"),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(OpError::Io("look at the location", e)),
        }
        Ok(Location { dir, name: name.to_owned() })
    }

    /// The whole path.
    pub(super) fn path(&self) -> PathBuf {
        self.dir.join(&self.name)
    }

    /// Its directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the archive of a container is until it is whole.
    pub(super) fn staged(&self, id: &Id) -> PathBuf {
        self.dir.join(format!(".checkpoint-{id}.partial"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_hostile_location_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).display().to_string();
        let own = dir.path().join("own");
        std::fs::create_dir_all(own.join("journal")).unwrap();
        std::fs::create_dir(dir.path().join("taken")).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        symlink("/etc/passwd", dir.path().join("link")).unwrap();
        symlink(&own, dir.path().join("door")).unwrap();
        let long = at(&"x".repeat(256));
        for bad in [
            "",
            "x.tar",
            "/",
            "//",
            "/tmp/",
            "/tmp/../etc/x",
            "/tmp/./x",
            "/tmp/a\0b",
            "/no/such/dir/x",
            &at("file/x"),
            &at("taken"),
            &at("link"),
            &at("own/x"),
            &at("own/journal/x.json"),
            &at("door/x"),
            &long,
            &format!("/{}", "a/".repeat(3000)),
        ] {
            let refused = Location::parse(bad, &[&own]);
            assert!(matches!(refused, Err(OpError::Invalid(_))), "{bad:?}: {refused:?}");
        }
    }

    #[test]
    fn a_name_in_a_directory_is_taken_and_an_old_archive_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        std::fs::write(dir.join("old.tar"), "").unwrap();
        let id = Id::random().unwrap();
        for name in ["old.tar", "checkpoint-a_b-c-2026-11-29T19:00:00Z.tar"] {
            let path = dir.join(name);
            let location = Location::parse(&path.display().to_string(), &[]).unwrap();
            assert_eq!(location.path(), path);
            assert_eq!(location.staged(&id).parent(), Some(dir.as_path()));
        }
    }
}
