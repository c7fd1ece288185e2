//! Whether the kernel has killed in a container's cgroup for want of memory.
//!
//! The kernel counts that in a file of the cgroup, which is read when the container has ended: `oom_kill` of v1's
//! `memory.oom_control` (Linux 4.13), else of v2's `memory.events`. A cgroup of ours is there until it is removed by
//! whom we tell to. A scope is systemd's, who takes it away as soon as it is empty, often before we look. So for a
//! scope there is a second witness:
//!
//! * v1: the kernel signals an eventfd at each such want, which is before it kills, and once more when the cgroup
//!   goes. Another eventfd, of a threshold that is never reached, is signalled when the cgroup goes, and after the
//!   first (the kernel lets an RCU grace period pass before that one alone). Who saw two signals of the first
//!   had a kill; who saw one may have had the other, and waits for the second eventfd to know.
//! * v2: the count of the slice, which includes that of its scopes, has grown, and the container was ended by SIGKILL.

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::fs::{File, read_to_string, write};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

/// No cgroup uses as much; a multiple of the page size, which the kernel rounds to.
const NEVER: u64 = 1 << 62;
/// For how long a sign is waited for that the kernel has promised; then it is said that there was none.
const PATIENCE: Timespec = Timespec { tv_sec: 2, tv_nsec: 0 };

/// What is known of a container's cgroup beside its files.
#[derive(Debug)]
enum Witness {
    /// The files are there until we have them removed.
    None,
    /// v1: what is signalled at want of memory, and at the end of the cgroup.
    Signals { want: OwnedFd, end: OwnedFd },
    /// v2: what the slice had counted when the container began.
    Slice(u64),
}

/// A container's memory cgroup, watched from before its first instruction.
#[derive(Debug)]
pub(crate) struct Watch {
    cgroup: PathBuf,
    witness: Witness,
}

impl Watch {
    /// `scope`: it is systemd's, and goes when it is empty.
    pub(crate) fn begin(cgroup: PathBuf, scope: bool) -> Self {
        let witness = match (scope, kills(&cgroup.join("memory.oom_control"))) {
            (false, _) => Witness::None,
            (true, Some(_)) => signals(&cgroup).unwrap_or_else(|e| {
                eprintln!("{}: no signals at want of memory: {e}", cgroup.display());
                Witness::None
            }),
            (true, None) => Witness::Slice(slice(&cgroup).unwrap_or(0)),
        };
        Watch { cgroup, witness }
    }

    /// Whether it was so, of a container that `signal` has ended (0: none). To be asked once, after reaping, when
    /// the count is final.
    pub(crate) fn killed(&self, signal: i32) -> bool {
        let own = ["memory.oom_control", "memory.events"].iter().find_map(|f| kills(&self.cgroup.join(f)));
        match (&self.witness, own) {
            (_, Some(count)) => count > 0,
            (Witness::None, None) => false,
            (Witness::Slice(before), None) => {
                signal == 9 && slice(&self.cgroup).is_some_and(|now| now > *before)
            }
            (Witness::Signals { want, end }, None) => {
                let first = count(want);
                // A want comes before the kill, so it was signalled by now.
                first > 1 || first == 1 && wait(end) && count(want) > 0
            }
        }
    }
}

/// Registers both eventfds (Documentation/admin-guide/cgroup-v1/memory.rst, sections 9 and 10).
fn signals(cgroup: &Path) -> io::Result<Witness> {
    let register = |file: &str, more: &str| {
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let of = File::open(cgroup.join(file))?;
        let line = format!("{} {}{more}", fd.as_raw_fd(), of.as_raw_fd());
        write(cgroup.join("cgroup.event_control"), line)?;
        Ok::<_, io::Error>(fd)
    };
    let end = register("memory.usage_in_bytes", &format!(" {NEVER}"))?;
    Ok(Witness::Signals { want: register("memory.oom_control", "")?, end })
}

/// How often an eventfd was signalled since it was asked last.
fn count(fd: &OwnedFd) -> u64 {
    let mut bytes = [0; 8];
    match rustix::io::read(fd, &mut bytes) {
        Ok(8) => u64::from_ne_bytes(bytes),
        _ => 0,
    }
}

/// Waits for a signal; whether it came.
fn wait(fd: &OwnedFd) -> bool {
    poll(&mut [PollFd::from_borrowed_fd(fd.as_fd(), PollFlags::IN)], Some(&PATIENCE)).is_ok_and(|n| n == 1)
}

/// The count of the slice that a scope lies in.
fn slice(cgroup: &Path) -> Option<u64> {
    kills(&cgroup.parent()?.join("memory.events"))
}

/// The kills that a file tells of, if it is there.
fn kills(file: &Path) -> Option<u64> {
    read_to_string(file).ok().map(|text| oom_kills(&text))
}

fn oom_kills(text: &str) -> u64 {
    text.lines()
        .filter_map(|l| l.split_once(' '))
        .find(|(key, _)| *key == "oom_kill")
        .and_then(|(_, v)| v.trim().parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oom_kills_are_read_from_both_versions() {
        assert_eq!(oom_kills("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"), 2);
        assert_eq!(oom_kills("low 0\nhigh 0\nmax 9\noom 1\noom_kill 0\noom_group_kill 0\n"), 0);
        assert_eq!(oom_kills(""), 0);
    }

    #[test]
    fn a_scope_that_is_gone_is_told_of_by_its_slice() {
        let tmp = tempfile::tempdir().unwrap();
        let scope = tmp.path().join("a.scope");
        let slice = |n: u64| write(tmp.path().join("memory.events"), format!("oom_kill {n}\n")).unwrap();
        slice(3);
        std::fs::create_dir(&scope).unwrap();
        write(scope.join("memory.events"), "oom_kill 0\n").unwrap();
        let watch = Watch::begin(scope.clone(), true);
        slice(4);
        assert!(!watch.killed(9), "its own file goes before");
        std::fs::remove_dir_all(&scope).unwrap();
        assert!(watch.killed(9) && !watch.killed(15) && !watch.killed(0));
        slice(3);
        assert!(!watch.killed(9));
        assert!(!Watch::begin(scope, false).killed(9));
    }

    /// On the machine's own v1 tree: a cgroup that goes without a want of memory is not taken for one.
    #[test]
    fn a_cgroup_that_only_went_away_has_killed_nobody() {
        let cgroup = PathBuf::from(format!("/sys/fs/cgroup/memory/podway-oom-{}", std::process::id()));
        if !cgroup.with_file_name("memory.oom_control").exists() || std::fs::create_dir(&cgroup).is_err() {
            println!("skipped: needs root, and memory on cgroup v1");
            return;
        }
        let watch = Watch::begin(cgroup.clone(), true);
        assert!(matches!(watch.witness, Witness::Signals { .. }));
        assert!(!watch.killed(9));
        std::fs::remove_dir(&cgroup).unwrap();
        let Witness::Signals { want, end } = &watch.witness else { unreachable!("asserted above") };
        // Until it is signalled that it went: the hardest case.
        assert!(wait(want) && wait(end));
        assert!(!watch.killed(9));
    }
}
