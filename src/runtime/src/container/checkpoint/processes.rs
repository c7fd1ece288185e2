//! The end of a dump that was broken off, at its time or with the runtime that wanted it.
//!
//! criu is a child of the OCI runtime. When that is killed, criu notices that nobody listens, takes back what it
//! did to the container's processes and ends; killed itself in the middle of it, it could not. So it is given time
//! first, and killed after. Who it is: the processes of these two programs that have files of the dump open.

use crate::orphan;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// How long criu may take to undo what it did.
const GRACE: Duration = Duration::from_secs(10);
/// How long a killed process may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// Returns when no process of a dump into `work` by the OCI runtime `oci` is left.
///
/// # Errors
/// The kernel's, or that one does not end.
pub(super) async fn ended(work: &Path, oci: &Path) -> io::Result<()> {
    let programs = [Some(OsStr::new("criu")), oci.file_name()];
    let found = find(work, &programs)?;
    if tokio::time::timeout(GRACE, all(&found)).await.is_err() {
        // Those that the first ones began since are found too.
        let left = find(work, &programs)?;
        for process in &left {
            match pidfd_send_signal(process.get_ref(), Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(e) => return Err(e.into()),
            }
        }
        let late = |_| io::Error::other("criu does not end after SIGKILL");
        tokio::time::timeout(KILL_LIMIT, all(&left)).await.map_err(late)??;
    }
    Ok(())
}

async fn all(processes: &[AsyncFd<OwnedFd>]) -> io::Result<()> {
    for process in processes {
        drop(process.readable().await?);
    }
    Ok(())
}

fn find(work: &Path, programs: &[Option<&OsStr>]) -> io::Result<Vec<AsyncFd<OwnedFd>>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let dir = entry?.path();
        let number = dir.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        let Some(pid) = number.and_then(Pid::from_raw) else { continue };
        let is_one = || {
            let program = std::fs::read_link(dir.join("exe"));
            program.is_ok_and(|exe| programs.contains(&exe.file_name())) && holds(&dir, work)
        };
        // Asked once more when it is held: the pid may have been given out again meanwhile.
        if is_one()
            && let Ok(fd) = pidfd_open(pid, PidfdFlags::NONBLOCK)
            && is_one()
        {
            found.push(orphan::watch(fd)?);
        }
    }
    Ok(found)
}

/// Whether a process has something below `work` open.
fn holds(process: &Path, work: &Path) -> bool {
    let files = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    files.filter_map(|file| std::fs::read_link(file.path()).ok()).any(|file| file.starts_with(work))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[tokio::test]
    async fn only_who_holds_the_dump_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("criu");
        std::fs::copy("/bin/sleep", &program).unwrap();
        let work = dir.path().join("work");
        std::fs::create_dir(&work).unwrap();
        let log = std::fs::File::create(work.join("dump.log")).unwrap();
        let sleep =
            |program: &Path, stdout: Stdio| Command::new(program).arg("1000").stdout(stdout).spawn().unwrap();
        let mut criu = sleep(&program, log.try_clone().unwrap().into());
        let mut others =
            [sleep(&program, Stdio::null()), sleep(Path::new("/bin/sleep"), log.try_clone().unwrap().into())];
        let programs = [Some(OsStr::new("criu"))];
        let found = find(&work, &programs).unwrap();
        assert_eq!(found.len(), 1);
        criu.kill().unwrap();
        all(&found).await.unwrap();
        criu.wait().unwrap();
        assert!(find(&work, &programs).unwrap().is_empty());
        ended(&work, Path::new("runc")).await.unwrap();
        for other in &mut others {
            assert!(other.try_wait().unwrap().is_none(), "it has nothing to do with the dump");
            other.kill().unwrap();
            other.wait().unwrap();
        }
    }
}
