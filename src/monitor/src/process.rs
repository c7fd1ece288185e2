//! runc's command lines, its log, and signals.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::signal::{SigSet, Signal};

/// The most of runc's message that is passed on, in bytes.
const MAX_REASON: usize = 4096;

/// How a process ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) exit_code: i32,
    pub(crate) signal: i32,
    pub(crate) at_ns: u64,
}

/// Which runc, and where it keeps its things.
#[derive(Clone, Debug)]
pub(crate) struct Runc {
    pub(crate) binary: PathBuf,
    pub(crate) root: PathBuf,
    pub(crate) log: PathBuf,
}

impl Runc {
    /// The arguments of `runc --root R --log L <verb and its arguments>`.
    pub(crate) fn arguments(&self, rest: &[&std::ffi::OsStr]) -> Vec<OsString> {
        let mut all: Vec<OsString> =
            vec!["--root".into(), self.root.clone().into(), "--log".into(), self.log.clone().into()];
        all.extend(rest.iter().map(|a| (*a).to_owned()));
        all
    }

    /// Starts runc; gives its pid. The caller must reap once afterwards: SIGCHLD is let through
    /// (and lost) meanwhile, because a child would inherit the mask and hand it to the container.
    pub(crate) fn spawn(&self, arguments: &[OsString], stdio: [Stdio; 3]) -> io::Result<u32> {
        let [stdin, stdout, stderr] = stdio;
        let mut command = Command::new(&self.binary);
        command.args(arguments).stdin(stdin).stdout(stdout).stderr(stderr);
        let mask = child_mask();
        mask.thread_unblock()?;
        let child = command.spawn();
        mask.thread_block()?;
        Ok(child?.id())
    }

    /// Where the log ends now, so that a later failure is not told with an earlier line.
    pub(crate) fn log_end(&self) -> u64 {
        std::fs::metadata(&self.log).map_or(0, |m| m.len())
    }

    /// The last error that runc logged after `from`.
    pub(crate) fn reason(&self, from: u64, ended: Ended) -> String {
        let mut bytes = Vec::new();
        let read = File::open(&self.log).and_then(|mut file| {
            let end = file.seek(SeekFrom::End(0))?;
            file.seek(SeekFrom::Start(from.max(end.saturating_sub(64 * 1024))))?;
            file.take(64 * 1024).read_to_end(&mut bytes)
        });
        let text = String::from_utf8_lossy(&bytes);
        match (read, last_error(&text)) {
            (Ok(_), Some(line)) => line,
            _ => format!("runc exited with {} and logged nothing", ended.exit_code),
        }
    }
}

/// The message of the last `level=error` line of a logrus text log, else the last line.
fn last_error(text: &str) -> Option<String> {
    let lines = || text.lines().rev().filter(|l| !l.trim().is_empty());
    let line = lines().find(|l| l.contains("level=error")).or_else(|| lines().next())?;
    let message = line.split_once("msg=").map_or(line, |(_, m)| m);
    let message = match message.strip_prefix('"').and_then(|m| m.strip_suffix('"')) {
        Some(quoted) => quoted.replace("\\\"", "\"").replace("\\n", " "),
        None => message.to_owned(),
    };
    Some(message.chars().take(MAX_REASON / 4).collect())
}

/// The signals that the loop takes from its signalfd.
pub(crate) fn child_mask() -> SigSet {
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask
}

/// Sends `signo` to `pid`, which the caller knows to be an unreaped child.
#[expect(unsafe_code, reason = "no safe wrapper takes real-time signals; kill(2) touches no memory")]
pub(crate) fn kill(pid: u32, signo: u8) -> io::Result<()> {
    let target = i32::try_from(pid).ok().filter(|p| *p > 1);
    let Some(target) = target else { return Err(io::ErrorKind::InvalidInput.into()) };
    // SAFETY: kill takes two integers and has no memory-safety condition.
    match unsafe { nix::libc::kill(target, i32::from(signo)) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends `signo` to the process group that `pid`, an unreaped child, leads; to `pid` alone if it has
/// gone into another one.
pub(crate) fn kill_group(pid: u32, signo: u8) -> io::Result<()> {
    use nix::errno::Errno;
    let target = i32::try_from(pid).ok().filter(|p| *p > 1);
    let signal = Signal::try_from(i32::from(signo)).ok();
    let Some((target, signal)) = target.zip(signal) else { return Err(io::ErrorKind::InvalidInput.into()) };
    match nix::sys::signal::killpg(nix::unistd::Pid::from_raw(target), signal) {
        Ok(()) => Ok(()),
        Err(Errno::ESRCH) => kill(pid, signo),
        Err(e) => Err(e.into()),
    }
}

/// Nanoseconds since the epoch.
pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_the_last_error() {
        let log = "time=\"t\" level=error msg=\"one\"\ntime=\"t\" level=error msg=\"no \\\"x\\\"\"\ntime=\"t\" level=warning msg=w\n";
        assert_eq!(last_error(log).as_deref(), Some("no \"x\""));
        assert_eq!(last_error(""), None);
    }
}
