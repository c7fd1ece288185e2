//! The intent journal: one JSON file per thing, written before the effect it speaks of.
//!
//! A file is replaced by rename, so a reader sees the old or the new entry, never half of one.
//! What the journal says is memory; the kernel is the truth. `load_all` runs once, on start.

use crate::ids::Id;
use crate::points::{self, Point};
use serde::{Serialize, de::DeserializeOwned};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::marker::PhantomData;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

/// Why the journal failed.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The kernel refused.
    #[error("cannot write the journal {0}: check that the disk has space and may be written")]
    Io(PathBuf, #[source] io::Error),
    /// An entry could not be encoded.
    #[error("cannot encode the journal entry {0}")]
    Encode(PathBuf, #[source] serde_json::Error),
}

/// The entries that read, and the files that did not.
pub type Loaded<T> = (Vec<(Id, T)>, Vec<PathBuf>);

/// A directory of entries of one kind.
#[derive(Debug)]
pub struct Journal<T> {
    dir: PathBuf,
    kind: PhantomData<fn() -> T>,
}

/// Makes a directory (and its parents) that only root may enter.
///
/// # Errors
/// The kernel's.
pub fn private_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

impl<T: Serialize + DeserializeOwned> Journal<T> {
    /// Opens the journal in `dir`, which is made when missing.
    ///
    /// # Errors
    /// [`JournalError::Io`] when the directory cannot be made.
    pub fn open(dir: PathBuf) -> Result<Self, JournalError> {
        private_dir(&dir).map_err(|e| JournalError::Io(dir.clone(), e))?;
        Ok(Journal { dir, kind: PhantomData })
    }

    fn path(&self, id: &Id) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }

    /// Writes or replaces an entry; it is on disk as a whole when this returns.
    ///
    /// # Errors
    /// [`JournalError`] when it could not be written; the old entry then stands.
    pub fn put(&self, id: &Id, entry: &T) -> Result<(), JournalError> {
        let path = self.path(id);
        let bytes = serde_json::to_vec(entry).map_err(|e| JournalError::Encode(path.clone(), e))?;
        let staged = path.with_extension("tmp");
        let write = || {
            let mut file = File::create(&staged)?;
            file.write_all(&bytes)?;
            file.sync_data()?;
            points::at(Point::JournalStaged);
            fs::rename(&staged, &path)
        };
        write().map_err(|e| JournalError::Io(path.clone(), e))
    }

    /// Forgets an entry; one that is not there is forgotten already.
    ///
    /// # Errors
    /// [`JournalError::Io`] when the kernel refused.
    pub fn forget(&self, id: &Id) -> Result<(), JournalError> {
        match fs::remove_file(self.path(id)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(JournalError::Io(self.path(id), e)),
            _ => Ok(()),
        }
    }

    /// Every entry that reads; what does not read is named in the second list and left in place.
    ///
    /// # Errors
    /// [`JournalError::Io`] when the directory cannot be listed.
    pub fn load_all(&self) -> Result<Loaded<T>, JournalError> {
        let (mut entries, mut unreadable) = (Vec::new(), Vec::new());
        let io_err = |e| JournalError::Io(self.dir.clone(), e);
        for item in fs::read_dir(&self.dir).map_err(io_err)? {
            let path = item.map_err(io_err)?.path();
            if path.extension().is_some_and(|e| e == "tmp") {
                // The staged file of a write that never ended.
                fs::remove_file(&path).map_err(io_err)?;
                continue;
            }
            let id = path.file_stem().and_then(|s| Id::try_from(s.to_string_lossy().into_owned()).ok());
            let entry = fs::read(&path).ok().and_then(|b| serde_json::from_slice(&b).ok());
            match (id, entry) {
                (Some(id), Some(entry)) => entries.push((id, entry)),
                _ => unreadable.push(path),
            }
        }
        Ok((entries, unreadable))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_survive_and_a_torn_write_is_not_one() {
        let dir = tempfile::tempdir().unwrap();
        let journal: Journal<String> = Journal::open(dir.path().join("j")).unwrap();
        let id = Id::random().unwrap();
        journal.put(&id, &"one".to_owned()).unwrap();
        journal.put(&id, &"two".to_owned()).unwrap();
        fs::write(dir.path().join("j/x.tmp"), b"{").unwrap();
        fs::write(dir.path().join("j").join(format!("{}.json", "a".repeat(64))), b"{").unwrap();
        let (entries, unreadable) = journal.load_all().unwrap();
        assert_eq!(entries, vec![(id.clone(), "two".to_owned())]);
        assert_eq!(unreadable.len(), 1);
        assert!(!dir.path().join("j/x.tmp").exists());
        journal.forget(&id).unwrap();
        journal.forget(&id).unwrap();
        assert!(journal.load_all().unwrap().0.is_empty());
    }
}
