//! Daemons: started detached, found again, stopped.
//!
//! Invariants: a pid is never acted upon without its start time and boot matching what was
//! recorded; a stop is over only when the kernel says that the process has ended (pidfd), never
//! after a guess in time. Each daemon carries `PODWAY_CLUSTER=<state dir>` in its environment, so
//! that one whose record was lost (an `up` killed between start and record) is still found.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions};
use tokio::io::unix::AsyncFd;

use crate::state::ProcessRecord;

/// The environment variable that marks every daemon of a cluster.
pub const MARK: &str = "PODWAY_CLUSTER";

/// The environment variable with the digest of what a daemon was started with.
const INPUTS: &str = "PODWAY_INPUTS";

/// The environment variable that names a daemon.
const NAME: &str = "PODWAY_DAEMON";

/// Why a daemon could not be started, watched or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The program could not be started.
    #[error("cannot start {name} ({program})")]
    Start {
        /// The daemon.
        name: String,
        /// Its program.
        program: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The kernel refused an operation on a process.
    #[error("cannot {what} process {pid}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// On which process.
        pid: i32,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It does not end, not even on SIGKILL.
    #[error("process {pid} does not end; it hangs in the kernel (see /proc/{pid}/stack)")]
    Stuck {
        /// The process.
        pid: i32,
    },
}

/// What is to be started.
#[derive(Debug, Clone)]
pub struct Daemon {
    /// Its name: of the log and of the record.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Arguments, without the program.
    pub args: Vec<String>,
    /// Environment beyond what is inherited.
    pub env: Vec<(String, OsString)>,
    /// The network namespace to run in (a path under `/run/netns`), or the host's.
    pub netns: Option<PathBuf>,
    /// The files that it reads once: other contents mean another start.
    pub files: Vec<PathBuf>,
}

impl Daemon {
    /// A daemon in the host's network namespace.
    pub fn new(name: impl Into<String>, program: impl Into<PathBuf>, args: Vec<String>) -> Self {
        Self {
            name: name.into(),
            program: program.into(),
            args,
            env: Vec::new(),
            netns: None,
            files: Vec::new(),
        }
    }

    /// The digest of the contents of its files.
    fn inputs(&self) -> io::Result<String> {
        use sha2::Digest as _;
        let mut digest = sha2::Sha256::new();
        for file in &self.files {
            digest.update(sha2::Sha256::digest(fs::read(file)?));
        }
        Ok(hex::encode(digest.finalize()))
    }

    /// The command line as it is recorded.
    pub fn argv(&self) -> Vec<String> {
        let mut argv = vec![self.program.display().to_string()];
        argv.extend(self.args.iter().cloned());
        argv
    }

    /// Starts it in a session of its own, with its output appended to `log`.
    #[expect(unsafe_code, reason = "pre_exec: setsid and setns have no safe spelling in std")]
    pub fn start(&self, log: &Path, cluster: &Path) -> Result<ProcessRecord, ProcessError> {
        let failed = |source| ProcessError::Start {
            name: self.name.clone(),
            program: self.program.display().to_string(),
            source,
        };
        let output =
            fs::OpenOptions::new().append(true).create(true).mode(0o600).open(log).map_err(failed)?;
        let netns = self.netns.as_ref().map(fs::File::open).transpose().map_err(failed)?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .env(MARK, cluster)
            .env(NAME, &self.name)
            .env(INPUTS, self.inputs().map_err(failed)?)
            .current_dir(cluster)
            .stdin(Stdio::null())
            .stdout(output.try_clone().map_err(failed)?)
            .stderr(output);
        // SAFETY: between fork and exec only async-signal-safe system calls are made, on a file
        // that the parent keeps open until the child has been spawned; nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                rustix::process::setsid()?;
                if let Some(netns) = &netns {
                    nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
                }
                Ok(())
            });
        }
        let child = command.spawn().map_err(failed)?;
        let pid = i32::try_from(child.id()).map_err(|e| failed(io::Error::other(e)))?;
        // A child that is already a zombie still has its stat, since nobody has waited for it.
        let start = stat(pid)
            .map(|s| s.start)
            .ok_or_else(|| failed(io::Error::other(format!("no /proc/{pid}/stat; is /proc mounted?"))))?;
        Ok(ProcessRecord { pid, start, boot: boot_id().map_err(failed)?, argv: self.argv() })
    }
}

/// The two facts of `/proc/PID/stat` that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    start: u64,
    ended: bool,
}

/// Parses `/proc/PID/stat`; the name in parentheses may hold anything, so the last `)` counts.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    // The state is field 3, so field 22 is the 19th of those after it.
    let start = fields.nth(18)?.parse().ok()?;
    Some(Stat { start, ended })
}

fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Whether the recorded process still runs (a zombie does not).
pub fn alive(record: &ProcessRecord) -> bool {
    boot_id().is_ok_and(|boot| boot == record.boot)
        && stat(record.pid).is_some_and(|s| s.start == record.start && !s.ended)
}

/// Whether the recorded process is what `daemon` would start: same command line, same contents of
/// its files, same network namespace (one that was pinned anew is another, whatever its path), and
/// its program not replaced since.
pub(crate) fn current(record: &ProcessRecord, daemon: &Daemon) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let number = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    let of = |what: &str| PathBuf::from(format!("/proc/{}/{what}", record.pid));
    let same = |what: &str, path: &Path| {
        let own = number(&of(what));
        own.is_some() && own == number(path)
    };
    let Ok(inputs) = daemon.inputs() else { return false };
    let Ok(environ) = fs::read(of("environ")) else { return false };
    let mark = format!("{INPUTS}={inputs}");
    record.argv == daemon.argv()
        && same("exe", &daemon.program)
        && daemon.netns.as_ref().is_none_or(|netns| same("ns/net", netns))
        && environ.split(|b| *b == 0).any(|v| v == mark.as_bytes())
}

/// A handle on exactly the recorded process; `None` if it has ended.
fn open(pid: i32, start: u64) -> Result<Option<OwnedFd>, ProcessError> {
    let Some(raw) = Pid::from_raw(pid) else { return Ok(None) };
    let fd = match rustix::process::pidfd_open(raw, PidfdFlags::NONBLOCK) {
        Ok(fd) => fd,
        Err(rustix::io::Errno::SRCH) => return Ok(None),
        Err(e) => return Err(ProcessError::Kernel { what: "open", pid, source: e.into() }),
    };
    // Looked at after the pidfd was opened: from here on the pid cannot be another's.
    Ok(stat(pid).filter(|s| s.start == start && !s.ended).map(|_| fd))
}

/// Ends when the recorded process has ended.
pub async fn ended(record: &ProcessRecord) -> Result<(), ProcessError> {
    if !alive(record) {
        return Ok(());
    }
    match open(record.pid, record.start)? {
        Some(fd) => wait(fd, record.pid).await,
        None => Ok(()),
    }
}

#[expect(unsafe_code, reason = "tokio wants a promise that the descriptor stays open")]
async fn wait(fd: OwnedFd, pid: i32) -> Result<(), ProcessError> {
    let failed = |source| ProcessError::Kernel { what: "wait for", pid, source };
    // SAFETY: an OwnedFd keeps its one descriptor open until it is dropped, with the AsyncFd.
    let fd = unsafe { AsyncFd::register_with_interest(fd, tokio::io::Interest::READABLE) }
        .map_err(|e| failed(e.into()))?;
    fd.readable().await.map_err(failed)?.retain_ready();
    Ok(())
}

/// Stops the recorded process: SIGTERM, and SIGKILL where it has not ended within `grace`.
pub async fn stop(record: &ProcessRecord, grace: Duration) -> Result<(), ProcessError> {
    if alive(record) {
        terminate(record.pid, record.start, grace).await?;
    }
    reap(record.pid);
    Ok(())
}

async fn terminate(pid: i32, start: u64, grace: Duration) -> Result<(), ProcessError> {
    for (signal, limit) in [(Signal::TERM, grace), (Signal::KILL, Duration::from_secs(10))] {
        let Some(fd) = open(pid, start)? else { return Ok(()) };
        match rustix::process::pidfd_send_signal(&fd, signal) {
            Ok(()) => {}
            Err(rustix::io::Errno::SRCH) => return Ok(()),
            Err(e) => return Err(ProcessError::Kernel { what: "signal", pid, source: e.into() }),
        }
        if let Ok(waited) = tokio::time::timeout(limit, wait(fd, pid)).await {
            return waited;
        }
    }
    Err(ProcessError::Stuck { pid })
}

/// Kills a process of which only the pid is known, and waits until it has ended.
pub(crate) async fn kill(pid: i32, limit: Duration) -> Result<(), ProcessError> {
    let Some(stat) = stat(pid).filter(|s| !s.ended) else {
        reap(pid);
        return Ok(());
    };
    let Some(fd) = open(pid, stat.start)? else { return Ok(()) };
    match rustix::process::pidfd_send_signal(&fd, Signal::KILL) {
        Ok(()) => {}
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        Err(e) => return Err(ProcessError::Kernel { what: "signal", pid, source: e.into() }),
    }
    match tokio::time::timeout(limit, wait(fd, pid)).await {
        Ok(waited) => waited,
        Err(_) => Err(ProcessError::Stuck { pid }),
    }
}

/// Takes the exit status where the process was a child of this one; otherwise init takes it.
fn reap(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        // ECHILD means that it was not ours, which is the usual case in `podway down`.
        let _not_ours = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
    }
}

/// The processes that carry the mark of the cluster, whether or not they were recorded.
pub fn marked(cluster: &Path) -> io::Result<Vec<(i32, u64)>> {
    let mut mark = format!("{MARK}=").into_bytes();
    mark.extend_from_slice(cluster.as_os_str().as_bytes());
    let own = std::process::id();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else {
            continue;
        };
        if u32::try_from(pid) == Ok(own) {
            continue;
        }
        // A process that has ended meanwhile, or a kernel thread, has no environment to read.
        let Ok(environ) = fs::read(format!("/proc/{pid}/environ")) else { continue };
        if environ.split(|b| *b == 0).any(|v| v == mark)
            && let Some(stat) = stat(pid).filter(|s| !s.ended)
        {
            found.push((pid, stat.start));
        }
    }
    Ok(found)
}

/// The daemon `name` of a cluster where it runs without being recorded: an `up` was killed between
/// starting and recording it. What a daemon starts carries its marks too, so the program counts.
pub(crate) fn unrecorded(daemon: &Daemon, cluster: &Path) -> io::Result<Option<ProcessRecord>> {
    let mut name = format!("{NAME}=").into_bytes();
    name.extend_from_slice(daemon.name.as_bytes());
    let program = daemon.program.display().to_string();
    for (pid, start) in marked(cluster)? {
        // One that has ended meanwhile is not there to be found.
        let Ok(environ) = fs::read(format!("/proc/{pid}/environ")) else { continue };
        let Ok(cmdline) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
        let argv: Vec<String> = cmdline
            .strip_suffix(b"\0")
            .unwrap_or(&cmdline)
            .split(|b| *b == 0)
            .map(|a| String::from_utf8_lossy(a).into_owned())
            .collect();
        if environ.split(|b| *b == 0).any(|v| v == name) && argv.first() == Some(&program) {
            return Ok(Some(ProcessRecord { pid, start, boot: boot_id()?, argv }));
        }
    }
    Ok(None)
}

/// Stops every process that carries the mark of the cluster.
pub async fn stop_marked(cluster: &Path, grace: Duration) -> Result<usize, ProcessError> {
    let list = |source| ProcessError::Kernel { what: "list", pid: 0, source };
    let found = marked(cluster).map_err(list)?;
    for (pid, start) in &found {
        terminate(*pid, *start, grace).await?;
        reap(*pid);
    }
    Ok(found.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let tail = "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        let parsed = parse_stat(&format!("12 (a) b (c) S {tail}"));
        assert_eq!(parsed, Some(Stat { start: 4711, ended: false }));
        assert_eq!(parse_stat(&format!("12 (a) Z {tail}")), Some(Stat { start: 4711, ended: true }));
        assert_eq!(parse_stat("12 (a"), None);
    }

    #[tokio::test]
    async fn a_daemon_is_started_marked_and_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::new("sleep", "/bin/sleep", vec!["600".into()]);
        let record = daemon.start(&dir.path().join("log"), dir.path()).unwrap();
        assert!(alive(&record));
        // The kernel closes what is close-on-exec before the new environment is there to be read.
        let found = loop {
            match unrecorded(&daemon, dir.path()).unwrap() {
                Some(found) => break found,
                None => tokio::task::yield_now().await,
            }
        };
        assert_eq!(found, record);
        let stranger = Daemon::new("sleep", "/bin/other", vec![]);
        assert_eq!(unrecorded(&stranger, dir.path()).unwrap(), None);
        let other = ProcessRecord { start: record.start + 1, ..record.clone() };
        assert!(!alive(&other), "another start time is another process");
        stop(&record, Duration::from_secs(5)).await.unwrap();
        assert!(!alive(&record));
        assert_eq!(marked(dir.path()).unwrap(), vec![]);
    }

    #[tokio::test]
    async fn one_that_ignores_sigterm_is_killed() {
        let dir = tempfile::tempdir().unwrap();
        let script = "trap '' TERM; echo ready; while :; do read x < /dev/zero; done";
        let daemon = Daemon::new("stubborn", "/bin/sh", vec!["-c".into(), script.into()]);
        let log = dir.path().join("log");
        let record = daemon.start(&log, dir.path()).unwrap();
        while fs::read(&log).unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        stop(&record, Duration::from_millis(50)).await.unwrap();
        assert!(!alive(&record));
    }
}
