//! `podway-monitor namespaces`: makes those namespaces of a pod that only a process of one thread can
//! make, holds them until the runtime has pinned them, and ends.
//!
//! A user namespace comes first and owns the others. A PID namespace needs a process 1 that lives as
//! long as the pod ([`crate::init`]); it is started here, into it.
//!
//! ```text
//! us → runtime   "user"        the user namespace is there: its ids are to be mapped
//! runtime → us   "mapped"
//! us → runtime   "ready PID"   all are there; PID is that of process 1, 0 without one
//! runtime → us   "pinned"      we end; anything else, or our standard input's end, undoes all
//! ```

use crate::init;
use nix::sched::{CloneFlags, unshare};
use std::ffi::OsString;
use std::io::{self, BufRead as _, Write as _};
use std::path::PathBuf;

#[derive(Default)]
struct Wanted {
    user: bool,
    pid: bool,
    others: Option<CloneFlags>,
    /// Files below /proc/sys, and what is written to them.
    writes: Vec<(PathBuf, OsString)>,
    /// Names the pod in the arguments of process 1.
    pod: PathBuf,
}

fn wanted(mut args: impl Iterator<Item = OsString>) -> io::Result<Wanted> {
    let usage = || {
        io::Error::other(
            "podway-monitor namespaces --pod DIR [--user] [--net] [--ipc] [--uts] [--pid] [--write FILE VALUE]…",
        )
    };
    let mut wanted = Wanted::default();
    let mut others = CloneFlags::empty();
    while let Some(name) = args.next() {
        match name.to_str() {
            Some("--user") => wanted.user = true,
            Some("--pid") => wanted.pid = true,
            Some("--net") => others |= CloneFlags::CLONE_NEWNET,
            Some("--ipc") => others |= CloneFlags::CLONE_NEWIPC,
            Some("--uts") => others |= CloneFlags::CLONE_NEWUTS,
            Some("--pod") => wanted.pod = args.next().map(PathBuf::from).ok_or_else(usage)?,
            Some("--write") => match (args.next(), args.next()) {
                (Some(file), Some(value)) => wanted.writes.push((PathBuf::from(file), value)),
                _ => return Err(usage()),
            },
            _ => return Err(usage()),
        }
    }
    wanted.others = (!others.is_empty()).then_some(others);
    if wanted.pod.as_os_str().is_empty() { Err(usage()) } else { Ok(wanted) }
}

fn tell(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}

fn hear(expected: &str) -> io::Result<()> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    if line.trim_end() == expected { Ok(()) } else { Err(io::Error::other("the runtime has given up")) }
}

/// Makes them, and waits until they are pinned.
pub(crate) fn run(args: impl Iterator<Item = OsString>) -> io::Result<()> {
    let wanted = wanted(args)?;
    if wanted.user {
        unshare(CloneFlags::CLONE_NEWUSER)?;
        tell("user")?;
        hear("mapped")?;
        // Root of the pod from here on: what is made now is the pod's.
        nix::unistd::setgroups(&[])?;
        nix::unistd::setresgid(0.into(), 0.into(), 0.into())?;
        nix::unistd::setresuid(0.into(), 0.into(), 0.into())?;
    }
    if let Some(others) = wanted.others {
        unshare(others)?;
    }
    for (file, value) in &wanted.writes {
        let shown = file.display();
        std::fs::write(file, value.as_encoded_bytes())
            .map_err(|e| io::Error::new(e.kind(), format!("cannot write {shown}: {e}")))?;
    }
    if !wanted.pid {
        tell("ready 0")?;
        return hear("pinned");
    }
    unshare(CloneFlags::CLONE_NEWPID)?;
    let mut init = init::start(&wanted.pod)?;
    let pinned = tell(&format!("ready {}", init.id())).and_then(|()| hear("pinned"));
    if pinned.is_err() {
        init.kill()?;
        init.wait()?;
    }
    pinned
}
