//! Tells people when the kernel ran out of memory and killed something (`SystemOOM`, as the kubelet's
//! `pkg/kubelet/oom/oom_watcher_linux.go`), by what it says in `/dev/kmsg`.
//!
//! The kernel's log is hostile in so far as any process may have a strange name: a line is searched,
//! never trusted, and what is told of it is bounded. A process that its own cgroup's limit killed is
//! that container's affair and no event of the node. What was told is written down by its place in
//! the log, so that an agent that starts again does not repeat it, and still tells of what happened
//! while it was away: it may have been the victim.

use crate::files;
use crate::node::events::{Happening, Writer};
use crate::status::budget::Budget;
use podway_flow::record::bounded;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The longest record that is read whole; the kernel's own limit is below.
const RECORD: usize = 8192;
/// How long a process' name is at most in an event: the kernel has 15 characters.
const NAME: usize = 64;

/// A process that the kernel killed for memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oom {
    /// The process' id; 0 where the log did not tell.
    pub pid: u32,
    /// Its name.
    pub process: String,
    /// The cgroup whose limit was met; `/` when it was the machine's memory.
    pub cgroup: String,
}

/// What the lines of one report say, up to that which names the victim. Kernels since 5.0 have
/// `oom-kill:constraint=…`, older ones `Task in … killed as a result of limit of …`
/// (cAdvisor's `utils/oomparser`).
#[derive(Debug, Default)]
pub struct Parser {
    begun: Option<Oom>,
}

impl Parser {
    /// Takes the next line; the report that it ends, if it ends one.
    pub fn line(&mut self, line: &str) -> Option<Oom> {
        let Some(oom) = &mut self.begun else {
            if line.contains("invoked oom-killer:") {
                self.begun = Some(Oom { pid: 0, process: String::new(), cgroup: "/".to_owned() });
            }
            return None;
        };
        let done = by_constraint(line, oom) || victim(line, oom);
        if !done && let Some((_, limit)) = between(line, "Task in ", " killed as a result of limit of ") {
            limit.trim().clone_into(&mut oom.cgroup);
        }
        if done { self.begun.take() } else { None }
    }
}

fn between<'a>(line: &'a str, from: &str, to: &str) -> Option<(&'a str, &'a str)> {
    line.split_once(from)?.1.split_once(to)
}

/// A line that names a cgroup. That of a machine without memory has no `oom_memcg`.
fn by_constraint(line: &str, oom: &mut Oom) -> bool {
    let Some((_, rest)) = line.split_once("oom-kill:constraint=") else { return false };
    let Some((cgroup, rest)) = between(rest, ",oom_memcg=", ",task_memcg=") else { return false };
    // A name may hold anything, these words too: the last of them are the kernel's.
    let found = (|| {
        let (head, pid) = rest.rsplit_once(",uid=")?.0.rsplit_once(",pid=")?;
        Some((head.split_once(",task=")?.1, pid.parse().ok()?))
    })();
    let Some((process, pid)) = found else { return false };
    *oom = Oom { pid, process: process.to_owned(), cgroup: cgroup.to_owned() };
    true
}

/// `Killed process 123 (name)`.
fn victim(line: &str, oom: &mut Oom) -> bool {
    let Some((pid, rest)) = between(line, "Killed process ", " (") else { return false };
    let (Ok(pid), Some((process, _))) = (pid.parse(), rest.rsplit_once(')')) else { return false };
    // What follows the name has parentheses of its own in no kernel; a name may have them.
    (oom.pid, oom.process) = (pid, process.to_owned());
    true
}

/// The event of a report; none when it was a cgroup's limit.
#[must_use]
pub fn event(oom: &Oom) -> Option<Happening> {
    if oom.cgroup != "/" {
        return None;
    }
    let mut note = "System OOM encountered".to_owned();
    if oom.pid != 0 && !oom.process.is_empty() {
        note = format!("{note}, victim process: {}, pid: {}", bounded(&oom.process, NAME), oom.pid);
    }
    Some(Happening { reason: "SystemOOM", note, warning: true })
}

/// A record of `/dev/kmsg`: its number and its text (`prefix,seq,time,flags;text\n key=value…`).
fn record(raw: &[u8]) -> Option<(u64, String)> {
    let text = String::from_utf8_lossy(raw);
    let (head, rest) = text.split_once(';')?;
    let seq = head.split(',').nth(1)?.parse().ok()?;
    Some((seq, rest.lines().next().unwrap_or_default().to_owned()))
}

/// The kernel's log, and what was told of it.
#[derive(Debug)]
pub struct Watch {
    log: PathBuf,
    seen: PathBuf,
    boot: String,
}

impl Watch {
    /// The log of this boot; `root` is the agent's directory.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Watch { log: "/dev/kmsg".into(), seen: root.join("oom-seen"), boot: boot.trim().to_owned() }
    }

    /// Up to which record was told in this boot.
    fn told(&self) -> Option<u64> {
        let text = std::fs::read_to_string(&self.seen).ok()?;
        let (boot, seq) = text.trim().split_once(' ')?;
        (boot == self.boot).then(|| seq.parse().ok())?
    }

    fn tell(&self, seq: u64) -> io::Result<()> {
        files::replace(&self.seen, 0o700, format!("{} {seq}\n", self.boot).as_bytes())
    }

    #[expect(unsafe_code, reason = "tokio wants it promised that the descriptor stays open")]
    fn open(&self) -> io::Result<AsyncFd<File>> {
        let flags = rustix::fs::OFlags::NONBLOCK.bits();
        let flags = i32::try_from(flags).map_err(io::Error::other)?;
        let file = File::options().read(true).custom_flags(flags).open(&self.log)?;
        // SAFETY: a File keeps its one descriptor open until it is dropped, with the AsyncFd.
        Ok(unsafe { AsyncFd::register_with_interest(file, Interest::READABLE) }?)
    }

    /// Follows the log until the future is dropped. Where it cannot be read that is told once.
    pub async fn run(self, events: Writer) {
        let log = match self.open() {
            Ok(log) => log,
            Err(error) => {
                tracing::warn!(%error, "/dev/kmsg cannot be read: no SystemOOM events");
                return std::future::pending().await;
            }
        };
        let (told, mut parser) = (self.told(), Parser::default());
        let mut budget = Budget::new(Instant::now());
        let mut buffer = vec![0; RECORD];
        loop {
            let read = log.async_io(Interest::READABLE, |mut file| file.read(&mut buffer)).await;
            let taken = match read {
                Ok(n) => n,
                // What was overwritten before it was read is lost; what follows is not.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => continue,
                Err(error) => {
                    tracing::warn!(%error, "/dev/kmsg cannot be read any more: no SystemOOM events");
                    return std::future::pending().await;
                }
            };
            let Some((seq, line)) = buffer.get(..taken).and_then(record) else { continue };
            let Some(oom) = parser.line(&line) else { continue };
            if told.is_some_and(|told| seq <= told) {
                continue;
            }
            let Some(happening) = event(&oom) else { continue };
            tracing::warn!(pid = oom.pid, process = oom.process, "the machine ran out of memory");
            if let Err(error) = self.tell(seq) {
                tracing::warn!(%error, "which OOM was told cannot be written down: it may be told again");
            }
            if budget.take("SystemOOM", Instant::now()) {
                events.write(vec![happening]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(lines: &[&str]) -> Vec<Oom> {
        let mut parser = Parser::default();
        lines.iter().filter_map(|line| parser.line(line)).collect()
    }

    /// Lines of Linux 6.1 for a machine that is full, and for a container.
    #[test]
    fn the_machines_memory_is_the_nodes_affair_and_a_limit_is_not() {
        let full = [
            "stress invoked oom-killer: gfp_mask=0x140dca(GFP_HIGHUSER_MOVABLE), order=0, oom_score_adj=0",
            "CPU: 1 PID: 4242 Comm: stress Not tainted 6.1.0 #1",
            "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,\
             task_memcg=/kubepods/podx,task=stress,pid=4242,uid=0",
            "Out of memory: Killed process 4242 (stress) total-vm:8391108kB, anon-rss:8028kB",
        ];
        let limit = [
            "sh invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0, oom_score_adj=1000",
            "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,\
             oom_memcg=/kubepods/pody,task_memcg=/kubepods/pody/c,task=dd,pid=77,uid=0",
            "Memory cgroup out of memory: Killed process 77 (dd) total-vm:1kB",
        ];
        let all = parse(&[full.as_slice(), limit.as_slice()].concat());
        assert_eq!(all.len(), 2);
        assert_eq!(
            event(&all[0]).unwrap(),
            Happening {
                reason: "SystemOOM",
                note: "System OOM encountered, victim process: stress, pid: 4242".to_owned(),
                warning: true
            }
        );
        assert_eq!(
            (all[1].cgroup.as_str(), all[1].pid, all[1].process.as_str()),
            ("/kubepods/pody", 77, "dd")
        );
        assert_eq!(event(&all[1]), None);
    }

    #[test]
    fn old_kernels_strange_names_and_half_a_report() {
        let old = parse(&[
            "x invoked oom-killer: gfp_mask=0x0",
            "Task in /a/b killed as a result of limit of /a",
            "Killed process 9 (x) total-vm:1kB",
        ]);
        assert_eq!(old, [Oom { pid: 9, process: "x".into(), cgroup: "/a".into() }]);
        let strange =
            parse(&["y invoked oom-killer: ", "Out of memory: Killed process 8 (a (b) c) total-vm:1kB"]);
        assert_eq!(strange[0].process, "a (b) c");
        let strange = parse(&[
            "y invoked oom-killer: ",
            "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/p,\
             task_memcg=/p/c,task=a,pid=1,uid=2,pid=3,uid=0",
        ]);
        assert_eq!((strange[0].process.as_str(), strange[0].pid), ("a,pid=1,uid=2", 3));
        assert_eq!(parse(&["Out of memory: Killed process 8 (a)", "oom_reaper: reaped process 8"]), []);
        assert_eq!(
            parse(&["y invoked oom-killer: ", "Killed process many (a)", "oom-kill:constraint=x"]),
            []
        );
        let long = Oom { pid: 1, process: "n".repeat(500), cgroup: "/".into() };
        assert!(event(&long).unwrap().note.len() < 150);
        let unknown = Oom { pid: 0, process: String::new(), cgroup: "/".into() };
        assert_eq!(event(&unknown).unwrap().note, "System OOM encountered");
    }

    #[test]
    fn records_have_a_number() {
        let raw = b"6,4491,15561616841,-;eth0: up\n SUBSYSTEM=net\n";
        assert_eq!(record(raw), Some((4491, "eth0: up".to_owned())));
        for bad in [&b""[..], b"no record", b"6;x", b"6,x,1,-;y"] {
            assert_eq!(record(bad), None);
        }
    }

    #[test]
    fn what_was_told_is_known_in_the_same_boot_only() {
        let dir = tempfile::tempdir().unwrap();
        let watch = |boot: &str| Watch {
            log: PathBuf::new(),
            seen: dir.path().join("oom-seen"),
            boot: boot.to_owned(),
        };
        assert_eq!(watch("a").told(), None);
        watch("a").tell(7).unwrap();
        assert_eq!((watch("a").told(), watch("b").told()), (Some(7), None));
        std::fs::write(dir.path().join("oom-seen"), "a x").unwrap();
        assert_eq!(watch("a").told(), None);
    }
}
