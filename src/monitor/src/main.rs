//! podway-monitor: the parent of one pod's containers, in one thread and without a runtime.
//!
//! `podway_monitor::spawn` starts it with the listening socket as standard input. It forks once,
//! prints the pid of the process that stays, becomes a session leader and a subreaper (so that a
//! container's init becomes its child when runc exits), and runs the loop of [`server`]. By another first
//! argument it is the maker of a pod's [`namespaces`], or process 1 of a shared one ([`init`]).

mod init;
mod log;
mod namespaces;
mod oom;
mod process;
mod server;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "podway-monitor --socket PATH --state-dir DIR < listening socket\n\
    Started by podway runtime, one per pod; not meant to be run by hand.";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("podway-monitor: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> io::Result<()> {
    let mut args = std::env::args_os().skip(1).peekable();
    match args.peek().and_then(|a| a.to_str()) {
        Some("namespaces") => return namespaces::run(args.skip(1)),
        Some("init") => return init::run(args.skip(1)),
        _ => {}
    }
    let (socket, state_dir) = arguments(args)?;
    let listener = io::stdin().as_fd().try_clone_to_owned()?;
    if !detach()? {
        return Ok(());
    }
    quiet_stdio()?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    lower_oom_score();
    process::child_mask().thread_block()?;
    server::Monitor::new(listener, socket, state_dir)?.run()
}

fn arguments(mut args: impl Iterator<Item = OsString>) -> io::Result<(PathBuf, PathBuf)> {
    let (mut socket, mut state_dir) = (None, None);
    while let Some(name) = args.next() {
        let value = args.next().map(PathBuf::from);
        match name.to_str() {
            Some("--socket") => socket = value,
            Some("--state-dir") => state_dir = value,
            _ => return Err(io::Error::other(USAGE)),
        }
    }
    socket.zip(state_dir).ok_or_else(|| io::Error::other(USAGE))
}

/// Leaves the caller: true in the process that stays, false in the one that tells its pid.
#[expect(unsafe_code, reason = "fork has no safe wrapper; this process has one thread")]
fn detach() -> io::Result<bool> {
    // SAFETY: no other thread exists, so no lock can be held in the child.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => {
            writeln!(io::stdout(), "{child}")?;
            Ok(false)
        }
        nix::unistd::ForkResult::Child => {
            rustix::process::setsid()?;
            Ok(true)
        }
    }
}

/// The starter waits for the end of our standard output; the listener must not be inherited as 0.
fn quiet_stdio() -> io::Result<()> {
    let null: OwnedFd = std::fs::OpenOptions::new().read(true).write(true).open("/dev/null")?.into();
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    Ok(())
}

/// As low as this process may go. Without CAP_SYS_RESOURCE nothing below the inherited value is
/// allowed; the containers' own value is set by runc from their config.json.
fn lower_oom_score() {
    if std::fs::write("/proc/self/oom_score_adj", "-999").is_err() {
        // Refused: the inherited value stays, which is the lowest allowed.
    }
}
