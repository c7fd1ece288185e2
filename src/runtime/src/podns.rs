//! The namespaces of a pod that only a process of one thread can make: a user namespace with what it
//! owns, and a shared PID namespace with its process 1.
//!
//! `podway-monitor namespaces` makes them and waits. Who its process 1 is stands in the pod's directory
//! before it is told to end: if this process is killed earlier, it sees its standard input end and undoes
//! all; if later, the file says whom to kill.

use crate::cgroup::home::Home;
use crate::netns::{NamespaceError, pin, step};
use crate::spec::Mapping;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// The file that names process 1: its pid and its start time.
const PROCESS_1: &str = "process-1";

/// What to make.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The program: the monitor's.
    pub program: PathBuf,
    /// Where process 1 lives.
    pub home: Home,
    /// Where the pins go.
    pub pins: PathBuf,
    /// The pod's directory, which is there.
    pub pod: PathBuf,
    /// The ids of a user namespace that owns the others.
    pub user: Option<Mapping>,
    /// A PID namespace.
    pub pid: bool,
    /// `net`, `ipc`, `uts`.
    pub others: Vec<&'static str>,
    /// Files below /proc/sys and their values.
    pub writes: Vec<(PathBuf, String)>,
}

struct Maker {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Maker {
    async fn hear(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).await?;
        if !line.is_empty() {
            return Ok(line.trim_end().to_owned());
        }
        let mut said = String::new();
        if let Some(errors) = self.child.stderr.take() {
            errors.take(4096).read_to_string(&mut said).await?;
        }
        let said = said.trim().trim_start_matches("podway-monitor: ");
        Err(io::Error::other(if said.is_empty() { "it ended without a word" } else { said }))
    }

    fn pid(&self) -> io::Result<u32> {
        self.child.id().ok_or_else(|| io::Error::other("it has ended"))
    }
}

/// Makes and pins them. On an error nothing is left but what [`crate::netns::remove`] removes.
///
/// # Errors
/// [`NamespaceError`] naming the step.
pub async fn create(wanted: &Wanted) -> Result<(), NamespaceError> {
    let mut command = Command::new(&wanted.program);
    command.arg("namespaces").arg("--pod").arg(&wanted.pod);
    if wanted.user.is_some() {
        command.arg("--user");
    }
    if wanted.pid {
        command.arg("--pid");
    }
    for kind in &wanted.others {
        command.arg(format!("--{kind}"));
    }
    for (file, value) in &wanted.writes {
        command.arg("--write").arg(file).arg(value);
    }
    let run = "run podway-monitor namespaces";
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(step(run))?;
    let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(step(run)(io::Error::other("it has no standard streams")));
    };
    let mut maker = Maker { child, stdin, stdout: BufReader::new(stdout) };
    let pid = maker.pid().map_err(step(run))?;
    if let Some(mapping) = wanted.user {
        expect(&mut maker, "user").await.map_err(step("unshare the user namespace"))?;
        for file in ["uid_map", "gid_map"] {
            let path = format!("/proc/{pid}/{file}");
            std::fs::write(&path, mapping.line()).map_err(step(format!("write {file}")))?;
        }
        maker.stdin.write_all(b"mapped\n").await.map_err(step("map the ids"))?;
    }
    let ready = maker.hear().await.map_err(step("make the pod's namespaces"))?;
    let init: u32 = ready.strip_prefix("ready ").and_then(|p| p.parse().ok()).unwrap_or(0);
    let of_us = wanted.user.map(|_| "user").into_iter().chain(wanted.others.iter().copied());
    for kind in of_us {
        pin(&wanted.pins, kind, &format!("/proc/{pid}/ns/{kind}"))?;
    }
    if wanted.pid {
        let record = format!("{init} {}", start_time(init).unwrap_or(0));
        std::fs::write(wanted.pod.join(PROCESS_1), record).map_err(step("note process 1"))?;
        pin(&wanted.pins, "pid", &format!("/proc/{init}/ns/pid"))?;
        let moved = wanted.home.take_in(init, "podway-init").await.map_err(io::Error::other);
        moved.map_err(step("move process 1 to the monitors"))?;
    }
    maker.stdin.write_all(b"pinned\n").await.map_err(step("let the maker go"))?;
    let status = maker.child.wait().await.map_err(step("wait for the maker"))?;
    if status.success() { Ok(()) } else { Err(step(run)(io::Error::other(status.to_string()))) }
}

/// Whether the kernel and the file system of `dir` have id-mapped mounts: tried, not guessed.
///
/// # Errors
/// Why not.
pub async fn probe(program: &Path, dir: &Path) -> io::Result<()> {
    let mut child = Command::new(program)
        .args(["namespaces", "--user", "--pod"])
        .arg(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(io::Error::other("it has no standard streams"));
    };
    let mut maker = Maker { child, stdin, stdout: BufReader::new(stdout) };
    let pid = maker.pid()?;
    expect(&mut maker, "user").await?;
    let mapping = Mapping { host: 65536, length: 65536 };
    for file in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{pid}/{file}"), mapping.line())?;
    }
    let user = std::fs::File::open(format!("/proc/{pid}/ns/user"))?;
    let mapped = crate::rootfs::idmap::mapped(dir, user.as_fd()).map(drop);
    // It hears that it is not wanted any more.
    drop(maker.stdin);
    maker.child.wait().await?;
    mapped
}

async fn expect(maker: &mut Maker, line: &str) -> io::Result<()> {
    let heard = maker.hear().await?;
    if heard == line { Ok(()) } else { Err(io::Error::other(format!("it said {heard:?}"))) }
}

/// Field 22 of `/proc/PID/stat`.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Process 1 of the pod's PID namespace, held; `None` where it has ended, or where there is none.
///
/// # Errors
/// The kernel's.
pub fn process_1(pod: &Path) -> io::Result<Option<OwnedFd>> {
    let Ok(text) = std::fs::read_to_string(pod.join(PROCESS_1)) else { return Ok(None) };
    let mut numbers = text.split_ascii_whitespace();
    let pid = numbers.next().and_then(|n| n.parse::<u32>().ok());
    let start = numbers.next().and_then(|n| n.parse::<u64>().ok());
    let raw = pid.and_then(|p| i32::try_from(p).ok()).and_then(Pid::from_raw);
    let (Some(pid), Some(raw)) = (pid, raw) else { return Ok(None) };
    match pidfd_open(raw, PidfdFlags::empty()) {
        // Looked at after the descriptor was opened: a pid is given out again.
        Ok(fd) if start_time(pid) == start => Ok(Some(fd)),
        Ok(_) | Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Kills process 1 of the pod's PID namespace, and with it whatever is in there; none is killed already.
/// Blocks until it has ended.
///
/// # Errors
/// The kernel's.
pub fn end(pod: &Path) -> io::Result<()> {
    if let Some(process) = process_1(pod)? {
        match pidfd_send_signal(&process, Signal::KILL) {
            Ok(()) => {
                let mut polled = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
                if poll(&mut polled, PollTimeout::from(20_000_u16))? == 0 {
                    return Err(io::Error::other("process 1 of the pod does not end after SIGKILL"));
                }
            }
            Err(rustix::io::Errno::SRCH) => {}
            Err(e) => return Err(e.into()),
        }
    }
    crate::rootfs::remove_file(&pod.join(PROCESS_1))
}
