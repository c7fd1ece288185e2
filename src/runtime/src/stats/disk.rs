//! What a writable layer takes on disk.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

/// What a directory tree takes.
#[derive(Clone, Debug)]
pub struct Disk {
    /// ns since the epoch.
    pub at: i64,
    pub(super) taken: Instant,
    pub(super) took: Duration,
    /// Blocks on disk, in bytes: a sparse file counts what it holds.
    pub bytes: u64,
    /// Files, directories and links; one with several names counts once.
    pub inodes: u64,
}

impl Disk {
    /// Walks a tree; links are not followed, what vanishes meanwhile is not counted. Blocks.
    pub(super) fn walk(dir: &Path, now: i64) -> Self {
        let began = Instant::now();
        let (mut bytes, mut inodes) = (0, 0);
        let mut linked = std::collections::BTreeSet::new();
        let mut dirs = vec![dir.to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
                // Of the entry itself: a link's target may be anywhere.
                let Ok(meta) = entry.metadata() else { continue };
                if !meta.is_dir() && meta.nlink() > 1 && !linked.insert((meta.dev(), meta.ino())) {
                    continue;
                }
                bytes += meta.blocks() * 512;
                inodes += 1;
                if meta.is_dir() {
                    dirs.push(entry.path());
                }
            }
        }
        let taken = Instant::now();
        Disk { at: now, taken, took: taken - began, bytes, inodes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_counted_as_it_lies_on_disk() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::create_dir(tmp.path().join("d")).unwrap();
        std::fs::write(tmp.path().join("d/file"), vec![1; 100_000]).unwrap();
        std::fs::hard_link(tmp.path().join("d/file"), tmp.path().join("again")).unwrap();
        std::os::unix::fs::symlink("/", tmp.path().join("root")).unwrap();
        let sparse = std::fs::File::create(tmp.path().join("sparse")).unwrap();
        sparse.set_len(1 << 40).unwrap();
        std::fs::File::open(tmp.path().join("d/file")).unwrap().sync_all().unwrap();
        let disk = Disk::walk(tmp.path(), 7);
        assert_eq!((disk.inodes, disk.at), (4, 7));
        assert!((100_000..1_000_000).contains(&disk.bytes), "{}", disk.bytes);
        assert_eq!(Disk::walk(&tmp.path().join("no"), 7).inodes, 0);
    }
}
