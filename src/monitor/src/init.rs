//! `podway-monitor init DIR`: process 1 of the PID namespace that a pod's containers share. It reaps, and
//! ends when the runtime kills it.
//!
//! The containers see it: so it has nothing to be taken. Its root is an empty read-only file system, it
//! has no capability, no supplementary group and an id of nobody, and it cannot be traced or dumped, so
//! that its links in /proc lead nowhere. A signal from inside does not reach it: it handles none.

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, CapabilitySets};
use std::ffi::OsString;
use std::io::{self, BufRead as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

const NOBODY: u32 = 65534;
const LOCKED: &str = "locked";

/// Starts it as a child, in the PID namespace that was unshared for children; back when it is locked up.
pub(crate) fn start(pod: &Path) -> io::Result<Child> {
    let mut child = Command::new("/proc/self/exe")
        .arg("init")
        .arg(pod)
        .current_dir("/")
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    if let Some(out) = child.stdout.take() {
        io::BufReader::new(out).read_line(&mut line)?;
    }
    if line.trim_end() == LOCKED {
        return Ok(child);
    }
    child.kill()?;
    child.wait()?;
    Err(io::Error::other("process 1 of the pod could not be locked up"))
}

/// Runs until it is killed.
pub(crate) fn run(mut args: impl Iterator<Item = OsString>) -> io::Result<()> {
    // The directory only names the pod, for people and for a count of what is left.
    args.next().ok_or_else(|| io::Error::other("podway-monitor init DIR"))?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block()?;
    rustix::process::setsid()?;
    lock_up()?;
    writeln!(io::stdout(), "{LOCKED}")?;
    // Nobody is told anything any more, and the pipe of the one who started us is let go.
    for stream in 0..3 {
        nix::unistd::close(stream)?;
    }
    loop {
        children.wait()?;
        while let Ok(status) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            if status == WaitStatus::StillAlive {
                break;
            }
        }
    }
}

fn lock_up() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    // Over /proc, which is on every machine, since a place is needed.
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("none"), "/proc", Some("tmpfs"), flags, Some("size=4k,mode=555"))?;
    nix::unistd::chdir("/proc")?;
    nix::unistd::pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    nix::unistd::chdir("/")?;

    nix::unistd::setgroups(&[])?;
    // A small user namespace does not have nobody's id; then it stays the pod's root, without rights.
    if nix::unistd::setresgid(NOBODY.into(), NOBODY.into(), NOBODY.into()).is_ok() {
        nix::unistd::setresuid(NOBODY.into(), NOBODY.into(), NOBODY.into())?;
    }
    rustix::thread::set_no_new_privs(true)?;
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        },
    )?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}
