//! The archive of a checkpoint: the files of its directory in one tar, written under a name of its own beside its
//! place. Only root may read it: it has every page of the container's memory.

use super::location::Location;
use crate::points::{self, Point};
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Instant;

/// What the container's log is called in it, as in containerd's.
const LOG: &str = "container.log";

/// Fails what is written through it once its time has come.
pub(super) struct Until<W> {
    pub inner: W,
    pub deadline: Instant,
}

impl<W: Write> Write for Until<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if Instant::now() >= self.deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.inner.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A new file that only root may read; one of this name must not be there.
pub(super) fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Archives what is in `work`, and the log, at `staged`, and gives it its name. Blocks.
pub(super) fn write(
    work: &Path,
    log: &Path,
    staged: &Path,
    location: &Location,
    deadline: Instant,
) -> io::Result<()> {
    let file = io::BufWriter::with_capacity(1 << 20, private_file(staged)?);
    let mut tar = tar::Builder::new(Until { inner: file, deadline });
    tar.follow_symlinks(false);
    tar.sparse(false);
    tar.append_dir_all("", work)?;
    append_log(&mut tar, log)?;
    let file = tar.into_inner()?.inner.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    points::at(Point::CheckpointStaged);
    std::fs::rename(staged, location.path())?;
    File::open(location.dir())?.sync_all()?;
    points::at(Point::CheckpointNamed);
    Ok(())
}

/// As long as the log is now: its container goes on writing.
fn append_log<W: Write>(tar: &mut tar::Builder<W>, log: &Path) -> io::Result<()> {
    let file = match OpenOptions::new().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(log) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let meta = file.metadata()?;
    let mut header = tar::Header::new_gnu();
    header.set_metadata(&meta);
    header.set_mode(0o600);
    tar.append_data(&mut header, LOG, file.take(meta.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::time::Duration;

    #[test]
    fn an_archive_is_whole_or_has_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let work = dir.join("work");
        std::fs::create_dir_all(work.join("checkpoint")).unwrap();
        std::fs::write(work.join("checkpoint/pages-1.img"), "pages").unwrap();
        std::fs::write(work.join("config.dump"), "{}").unwrap();
        std::fs::write(dir.join("log"), "said").unwrap();
        let place = dir.join("x.tar");
        let location = Location::parse(&place.display().to_string(), &[]).unwrap();
        let staged = dir.join("staged");
        let write = |deadline| write(&work, &dir.join("log"), &staged, &location, deadline);
        let late = write(Instant::now()).unwrap_err();
        assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        assert!(!place.exists());
        std::fs::remove_file(&staged).unwrap();
        write(Instant::now() + Duration::from_secs(60)).unwrap();
        assert!(!staged.exists());
        assert_eq!(std::fs::metadata(&place).unwrap().permissions().mode() & 0o7777, 0o600);
        let mut archive = tar::Archive::new(File::open(&place).unwrap());
        let names = archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().display().to_string());
        let mut names: Vec<String> = names.collect();
        names.sort();
        assert_eq!(names, ["checkpoint", "checkpoint/pages-1.img", "config.dump", "container.log"]);
    }
}
