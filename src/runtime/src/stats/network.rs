//! A pod's network interfaces, read in its namespace.

use nix::sched::{CloneFlags, setns};
use std::io;
use std::path::PathBuf;

/// What went through an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Came in.
    pub rx: Flow,
    /// Went out.
    pub tx: Flow,
}

/// One direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Bytes.
    pub bytes: u64,
    /// Packets.
    pub packets: u64,
    /// Errors.
    pub errors: u64,
    /// Packets dropped.
    pub dropped: u64,
}

/// The interfaces of the namespace at `pin`, without the loopback; none when it is gone. Blocks.
pub(super) fn read(pin: PathBuf) -> Vec<Interface> {
    // A thread of its own, for it stays in the pod's namespace until it ends.
    let thread = std::thread::Builder::new().name("netstat".to_owned()).spawn(move || {
        let namespace = std::fs::File::open(&pin)?;
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        // `/proc/net` would be the process' own.
        std::fs::read_to_string("/proc/thread-self/net/dev")
    });
    let text =
        thread.and_then(|t| t.join().unwrap_or_else(|_| Err(io::Error::other("the thread ended early"))));
    match text {
        Ok(text) => parse(&text),
        // A sandbox that is being stopped: its namespace may go at any moment.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => {
            tracing::warn!(%error, "a pod's network statistics cannot be read");
            Vec::new()
        }
    }
}

fn parse(text: &str) -> Vec<Interface> {
    let interface = |line: &str| {
        let (name, numbers) = line.split_once(':')?;
        let n: Vec<u64> = numbers.split_ascii_whitespace().map(|w| w.parse().ok()).collect::<Option<_>>()?;
        let flow = |at: usize| {
            Some(Flow {
                bytes: *n.get(at)?,
                packets: *n.get(at + 1)?,
                errors: *n.get(at + 2)?,
                dropped: *n.get(at + 3)?,
            })
        };
        Some(Interface { name: name.trim().to_owned(), rx: flow(0)?, tx: flow(8)? })
    };
    text.lines().filter_map(interface).filter(|i| i.name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_read_as_the_kernel_writes_them() {
        let text = "Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0:    2516      33    1    2    0     0          0         0     1012      14    3    4    0     0       0          0
";
        let rx = Flow { bytes: 2516, packets: 33, errors: 1, dropped: 2 };
        let tx = Flow { bytes: 1012, packets: 14, errors: 3, dropped: 4 };
        assert_eq!(parse(text), [Interface { name: "eth0".to_owned(), rx, tx }]);
        assert!(parse("eth0: 1 2 x").is_empty());
    }

    #[test]
    fn a_namespace_that_is_gone_has_none() {
        assert!(read(PathBuf::from("/no/such/pin")).is_empty());
    }
}
