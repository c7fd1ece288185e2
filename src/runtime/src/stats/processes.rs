//! The processes of a container: how many, and what they hold open.

use std::collections::BTreeSet;
use std::time::Instant;

/// What a container's processes hold.
#[derive(Clone, Debug)]
pub struct Processes {
    pub(super) taken: Instant,
    /// How many there are, threads not counted.
    pub processes: u64,
    /// Open file descriptors.
    pub descriptors: u64,
    /// Those of them that are sockets.
    pub sockets: u64,
    /// The init's soft limit of open files; `None` for no limit, and when it is gone.
    pub max_open_files: Option<u64>,
}

impl Processes {
    /// Counts; a process that ends meanwhile is not counted. Blocks.
    pub(super) fn count(pids: &BTreeSet<u32>, init: Option<u32>) -> Self {
        let (mut descriptors, mut sockets) = (0, 0);
        for pid in pids {
            for fd in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
                descriptors += 1;
                let target = std::fs::read_link(fd.path()).unwrap_or_default();
                sockets += u64::from(target.as_os_str().as_encoded_bytes().starts_with(b"socket:"));
            }
        }
        let limits = init.and_then(|pid| std::fs::read_to_string(format!("/proc/{pid}/limits")).ok());
        Processes {
            taken: Instant::now(),
            processes: pids.len() as u64,
            descriptors,
            sockets,
            max_open_files: limits.and_then(|text| soft_limit(&text, "Max open files")),
        }
    }
}

fn soft_limit(limits: &str, name: &str) -> Option<u64> {
    let rest = limits.lines().find_map(|l| l.strip_prefix(name))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_holds_is_counted() {
        let me = std::process::id();
        let before = Processes::count(&BTreeSet::from([me]), Some(me));
        let held: Vec<_> = (0..50).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let after = Processes::count(&BTreeSet::from([me]), Some(me));
        // Other tests of this process open and close descriptors meanwhile, but not fifty sockets.
        assert!(after.sockets >= before.sockets + 25 && after.descriptors > before.descriptors);
        drop(held);
        assert_eq!(after.processes, 1);
        assert!(after.max_open_files.is_some_and(|n| n > 0));
        assert_eq!(soft_limit("Max open files  unlimited  unlimited files\n", "Max open files"), None);
        assert_eq!(Processes::count(&BTreeSet::from([u32::MAX]), None).descriptors, 0);
    }
}
