//! The exit record: `key=value` lines, durable before anyone hears of the exit.
//!
//! Written to a temporary name in the same directory, synced, renamed, and the directory synced:
//! a reader sees the whole record or none.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// How a container ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitRecord {
    /// The exit code; 128 + the signal's number when a signal ended it.
    pub exit_code: i32,
    /// The signal, 0 when it exited by itself.
    pub signal: i32,
    /// When it was reaped, nanoseconds since the epoch.
    pub finished_at_ns: u64,
    /// The kernel killed in the container's cgroup for want of memory.
    pub oom_killed: bool,
}

impl ExitRecord {
    /// Reads the record at `path`; `NotFound` while there is none, `InvalidData` if it is not one.
    pub fn read(path: &Path) -> io::Result<ExitRecord> {
        let text = std::fs::read_to_string(path)?;
        ExitRecord::parse(&text)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "exit record is not of this version"))
    }

    /// Parses a record; keys that this version does not know are passed over.
    pub fn parse(text: &str) -> Option<ExitRecord> {
        let (mut code, mut signal, mut finished, mut oom) = (None, None, None, None);
        for line in text.lines() {
            match line.split_once('=')? {
                ("exit_code", v) => code = Some(v.parse().ok()?),
                ("signal", v) => signal = Some(v.parse().ok()?),
                ("finished_at_ns", v) => finished = Some(v.parse().ok()?),
                ("oom_killed", v) => oom = Some(v.parse().ok()?),
                _ => {}
            }
        }
        Some(ExitRecord { exit_code: code?, signal: signal?, finished_at_ns: finished?, oom_killed: oom? })
    }

    /// Makes the record durable at `path`.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".tmp");
        let temporary = Path::new(&temporary);
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(temporary)?;
        file.write_all(
            format!(
                "exit_code={}\nsignal={}\nfinished_at_ns={}\noom_killed={}\n",
                self.exit_code, self.signal, self.finished_at_ns, self.oom_killed
            )
            .as_bytes(),
        )?;
        file.sync_all()?;
        std::fs::rename(temporary, path)?;
        if let Some(directory) = path.parent() {
            File::open(directory)?.sync_all()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("exit");
        let record = ExitRecord { exit_code: 137, signal: 9, finished_at_ns: u64::MAX, oom_killed: true };
        record.write(&path).unwrap();
        assert_eq!(ExitRecord::read(&path).unwrap(), record);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_cut_record_is_none() {
        assert_eq!(ExitRecord::parse("exit_code=1\nsignal=0\n"), None);
        assert_eq!(ExitRecord::parse(""), None);
    }
}
