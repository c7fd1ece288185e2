//! Containers whose monitor is gone: found, signalled, waited for and removed without it.
//!
//! Their processes live on as children of init. What runc wrote (pid and start time) and the
//! container's cgroup say which they are; a pid alone never does, for the kernel gives it out
//! again. Every signal goes through a pidfd that was checked after it was opened.

use crate::cgroup::Cgroups;
use crate::ids::Id;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// How long killed processes may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(20);

/// Why a container without a monitor could not be ended or removed.
#[derive(Debug, thiserror::Error)]
pub enum OrphanError {
    /// The kernel refused.
    #[error("cannot {0} of a container without a monitor")]
    Io(&'static str, #[source] io::Error),
    /// Processes do not end.
    #[error("processes {0:?} do not end after SIGKILL: are they in uninterruptible sleep?")]
    Stuck(Vec<u32>),
    /// runc.
    #[error("runc delete: {0}")]
    Runc(String),
}

/// A container's init, held by its pidfd.
#[derive(Debug)]
pub struct Process {
    /// Its pid, which stays its own only while the pidfd's process is not reaped.
    pub pid: u32,
    fd: OwnedFd,
}

fn field(stat: &str, number: usize) -> Option<u64> {
    // The command (field 2) may hold anything; what follows its last `)` is fields 3 and on.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(number - 3)?.parse().ok()
}

fn open(pid: u32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    pidfd_open(pid, PidfdFlags::NONBLOCK).ok()
}

/// The container's init, if it lives or was not yet reaped: what runc recorded, checked by start time.
#[must_use]
pub fn init(runc_root: &Path, id: &Id) -> Option<Process> {
    let (pid, start) = recorded(&runc_root.join(id.as_str()))?;
    let fd = open(pid)?;
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let same = match start {
        Some(start) => field(&read("stat")?, 22)? == start,
        None => read("cgroup")?.contains(id.as_str()),
    };
    same.then_some(Process { pid, fd })
}

/// The pid and the start time of the init, as the OCI runtime wrote them: runc and youki in `state.json`, crun in
/// `status`; youki has no start time.
fn recorded(dir: &Path) -> Option<(u32, Option<u64>)> {
    let read =
        |file: &str| serde_json::from_slice::<serde_json::Value>(&std::fs::read(dir.join(file)).ok()?).ok();
    let number = |state: &serde_json::Value, key: &str| state[key].as_u64();
    let (pid, start) = match (read("state.json"), read("status")) {
        (Some(state), _) if state["init_process_pid"].is_u64() => {
            (number(&state, "init_process_pid")?, Some(number(&state, "init_process_start")?))
        }
        (Some(state), _) => (number(&state, "pid")?, None),
        (None, Some(status)) => (number(&status, "pid")?, Some(number(&status, "process-start-time")?)),
        (None, None) => return None,
    };
    Some((u32::try_from(pid).ok()?, start))
}

impl Process {
    /// Sends a signal; a process that has ended is signalled already.
    ///
    /// # Errors
    /// The kernel's.
    pub fn signal(&self, signo: u8) -> Result<(), OrphanError> {
        let err = |e: io::Error| OrphanError::Io("signal the process", e);
        let signal = Signal::from_named_raw(i32::from(signo))
            .ok_or_else(|| err(io::Error::other(format!("not supported: signal {signo}"))))?;
        match pidfd_send_signal(&self.fd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(err(e.into())),
        }
    }

    /// Waits until it ended; gives its exit code (128 + signal) if the kernel still knows it.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn ended(self) -> io::Result<Option<i32>> {
        let fd = watch(self.fd)?;
        drop(fd.readable().await?);
        // Not reaped yet: its stat line has the code. Reaped: the pidfd has it (Linux 6.15).
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let zombie = stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'));
        let of_stat = field(&stat, 52).filter(|_| zombie).and_then(|s| i32::try_from(s).ok());
        let status = exit_status(fd.get_ref()).or(of_stat);
        Ok(status.map(|s| if s & 0x7f == 0 { s >> 8 & 0xff } else { 128 + (s & 0x7f) }))
    }
}

#[expect(unsafe_code, reason = "tokio cannot know that a foreign type keeps its descriptor; OwnedFd does")]
pub(crate) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the OwnedFd goes into the AsyncFd, keeps one descriptor and closes it only when dropped.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// The wait status of a reaped process, from `PIDFD_GET_INFO`; `None` on kernels before 6.15.
#[expect(unsafe_code, reason = "the ioctl has no safe wrapper yet")]
fn exit_status(fd: &OwnedFd) -> Option<i32> {
    /// `struct pidfd_info` of linux/pidfd.h, its first version of 64 bytes.
    #[repr(C)]
    #[derive(Default)]
    pub struct Info {
        mask: u64,
        rest: [u32; 13],
        exit_code: i32,
    }
    const EXIT: u64 = 1 << 3;
    nix::ioctl_readwrite!(pidfd_get_info, 0xff, 11, Info);
    let mut info = Info { mask: EXIT, ..Info::default() };
    // SAFETY: the request's number encodes the size of Info, and the kernel writes no more than it.
    unsafe { pidfd_get_info(fd.as_raw_fd(), &raw mut info) }.ok()?;
    (info.mask & EXIT != 0).then_some(info.exit_code)
}

/// Kills whatever is in the container's cgroup and its init, and waits for their end.
fn kill(cgroups: &Cgroups, cgroup: &str, init: Option<Process>) -> Result<(), OrphanError> {
    let deadline = Instant::now() + KILL_LIMIT;
    if let Some(process) = &init {
        process.signal(9)?;
    }
    let mut waiting: Vec<(u32, OwnedFd)> = init.into_iter().map(|p| (p.pid, p.fd)).collect();
    loop {
        let members: BTreeSet<u32> = cgroups.processes(cgroup);
        for pid in members {
            if waiting.iter().any(|(p, _)| *p == pid) {
                continue;
            }
            let Some(fd) = open(pid) else { continue };
            // The pid may have been given out again between the list and the pidfd.
            if !cgroups.processes(cgroup).contains(&pid) {
                continue;
            }
            match pidfd_send_signal(&fd, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => waiting.push((pid, fd)),
                Err(e) => return Err(OrphanError::Io("kill a process", e.into())),
            }
        }
        if waiting.is_empty() {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(OrphanError::Stuck(waiting.iter().map(|(pid, _)| *pid).collect()));
        }
        let mut fds: Vec<PollFd<'_>> =
            waiting.iter().map(|(_, fd)| PollFd::new(fd.as_fd(), PollFlags::POLLIN)).collect();
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(OrphanError::Io("wait for the end", e.into())),
        }
        let ended: Vec<bool> = fds.iter().map(|f| f.any().unwrap_or(false)).collect();
        let mut ended = ended.into_iter();
        waiting.retain(|_| !ended.next().unwrap_or(false));
    }
}

/// Kills whatever is in a cgroup, and waits for its end. Blocks.
///
/// # Errors
/// [`OrphanError`].
pub fn kill_all(cgroups: &Cgroups, cgroup: &str) -> Result<(), OrphanError> {
    kill(cgroups, cgroup, None)
}

/// Kills a container and removes what runc made for it. Works with any part missing; blocks.
///
/// # Errors
/// [`OrphanError`]; may be repeated.
pub fn remove(
    runc: &Path,
    root: &Path,
    id: &Id,
    (cgroups, cgroup): (&Cgroups, &str),
) -> Result<(), OrphanError> {
    kill(cgroups, cgroup, init(root, id))?;
    if root.join(id.as_str()).exists() {
        let output = Command::new(runc)
            .arg("--root")
            .arg(root)
            .args(["delete", id.as_str()])
            .output()
            .map_err(|e| OrphanError::Io("run runc delete", e))?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            // A state that runc does not read (it was killed while it wrote) is nobody's: it goes below.
            if recorded(&root.join(id.as_str())).is_some() && !text.contains("does not exist") {
                return Err(OrphanError::Runc(podway_flow::record::bounded(&text, 512)));
            }
        }
        crate::rootfs::remove_tree(&root.join(id.as_str()))
            .map_err(|e| OrphanError::Io("remove runc's state", e))?;
    }
    cgroups.remove_tree(cgroup).map_err(|e| OrphanError::Io("remove the cgroup", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_oci_runtime_writes_of_an_init_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let wrote = |file: &str, text: &str| {
            std::fs::write(dir.path().join(file), text).unwrap();
            recorded(dir.path())
        };
        assert_eq!(recorded(dir.path()), None);
        // crun 1.8 (libcrun/status.c), youki 0.5 (libcontainer's State), runc 1.5.
        assert_eq!(wrote("status", r#"{"pid": 12, "process-start-time": 345}"#), Some((12, Some(345))));
        assert_eq!(wrote("state.json", r#"{"pid": 13, "status": "running"}"#), Some((13, None)));
        let runc = r#"{"init_process_pid": 14, "init_process_start": 678}"#;
        assert_eq!(wrote("state.json", runc), Some((14, Some(678))));
        assert_eq!(wrote("state.json", "{"), Some((12, Some(345))), "half written");
    }

    #[test]
    fn a_stat_line_is_read_past_any_command() {
        let stat = "7 (a) b) Z 1 7 7 0 -1";
        assert_eq!((field(stat, 4), field(stat, 5), field(stat, 99)), (Some(1), Some(7), None));
    }

    #[tokio::test]
    async fn an_init_is_known_by_pid_and_start_time_and_its_code_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let id = Id::random().unwrap();
        let mut child = Command::new("/bin/sh")
            .args(["-c", "read x; exit 5"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let state = dir.path().join(id.as_str());
        std::fs::create_dir(&state).unwrap();
        let write = |start: u64| {
            let text = format!(r#"{{"init_process_pid":{},"init_process_start":{start}}}"#, child.id());
            std::fs::write(state.join("state.json"), text).unwrap();
        };
        let start = field(&stat, 22).unwrap();
        write(start + 1);
        assert!(init(dir.path(), &id).is_none(), "another process of that pid");
        write(start);
        let process = init(dir.path(), &id).unwrap();
        drop(child.stdin.take());
        assert_eq!(process.ended().await.unwrap(), Some(5));
        child.wait().unwrap();
        assert!(init(dir.path(), &id).is_none());
    }
}
