//! One look at what the cluster has of everything that could grow.

use crate::cluster::Cluster;
use crate::leaks::Snapshot;
use crate::meter;
use std::collections::BTreeMap;
use std::path::Path;

/// What the daemons are called in the state of `podway up`, and in the table.
const DAEMONS: [&str; 3] = ["scheduler", "agent", "runtime"];

/// A look: by the series' name.
pub type Sample = BTreeMap<String, f64>;

/// Looks at memory and file descriptors of each daemon, and at what the machine has.
///
/// # Errors
/// When a daemon is gone: none may end while it is looked at.
pub fn take(cluster: &Cluster) -> anyhow::Result<Sample> {
    let mut sample = Sample::new();
    for part in DAEMONS {
        for (name, pid) in cluster.daemons(part)? {
            let memory = meter::of(u32::try_from(pid)?);
            let memory = memory.ok_or_else(|| anyhow::anyhow!("{name} has ended"))?;
            sample.insert(format!("{name}: RSS, MiB"), count(memory.rss) / 1024.0);
            let fds = std::fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"))?.count();
            sample.insert(format!("{name}: file descriptors"), count(fds as u64));
        }
    }
    let seen = Snapshot::take(cluster.layout.root());
    for (name, of) in [
        ("cgroups", &seen.cgroups),
        ("mounts", &seen.mounts),
        ("network namespaces", &seen.netns),
        ("addresses", &seen.addresses),
        ("processes", &seen.processes),
    ] {
        sample.insert(name.to_owned(), count(of.len() as u64));
    }
    Ok(sample)
}

#[expect(clippy::cast_precision_loss, reason = "counts of a machine are far below 2^52")]
fn count(n: u64) -> f64 {
    n as f64
}
