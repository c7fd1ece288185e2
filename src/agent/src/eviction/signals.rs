//! Which of the kubelet's signals are met by a sample, and for which resource that is. Pure.

use crate::node::machine::{Fs, Sample};
use crate::node::pressure::Thresholds;

/// What is short (`signalToResource`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// Memory: reclaimed before everything else.
    Memory,
    /// Bytes of a disk.
    Storage,
    /// Its inodes.
    Inodes,
    /// Tasks.
    Pids,
}

impl Resource {
    /// Its name in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Resource::Memory => "memory",
            Resource::Storage => "ephemeral-storage",
            Resource::Inodes => "inodes",
            Resource::Pids => "pids",
        }
    }
}

/// Which disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disk {
    /// That of volumes and logs.
    Node,
    /// That of images and writable layers.
    Image,
}

/// A threshold that is met.
#[derive(Clone, Debug, PartialEq)]
pub struct Met {
    /// Its name in the configuration.
    pub signal: &'static str,
    /// What is short.
    pub resource: Resource,
    /// Of which disk, if it is one's.
    pub disk: Option<Disk>,
    /// How much there must be ...
    pub quantity: u64,
    /// ... and how much there is.
    pub available: u64,
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a threshold is a part of 1, not an exact count"
)]
fn part(all: u64, part: f64) -> u64 {
    (all as f64 * part) as u64
}

/// The thresholds that `sample` meets, memory first (`byEvictionPriority`).
#[must_use]
pub fn met(sample: &Sample, thresholds: &Thresholds) -> Vec<Met> {
    let mut all = Vec::new();
    let mut add = |signal, resource, disk, quantity, available| {
        if available < quantity {
            all.push(Met { signal, resource, disk, quantity, available });
        }
    };
    add("memory.available", Resource::Memory, None, thresholds.memory, sample.memory_available);
    let mut fs = |fs: &Fs, disk, signals: [&'static str; 2], bytes, inodes| {
        let disk = Some(disk);
        add(signals[0], Resource::Storage, disk, part(fs.capacity, bytes), fs.available);
        add(signals[1], Resource::Inodes, disk, part(fs.inodes, inodes), fs.inodes_free);
    };
    let (of_node, of_images) =
        (["nodefs.available", "nodefs.inodesFree"], ["imagefs.available", "imagefs.inodesFree"]);
    fs(&sample.nodefs, Disk::Node, of_node, thresholds.nodefs, thresholds.nodefs_inodes);
    fs(&sample.imagefs, Disk::Image, of_images, thresholds.imagefs, thresholds.imagefs_inodes);
    if let Some(pids) = thresholds.pids {
        let left = sample.pids_max.saturating_sub(sample.pids);
        add("pid.available", Resource::Pids, None, part(sample.pids_max, pids), left);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_comes_first_and_each_signal_has_its_resource() {
        let fs = Fs { capacity: 1000, available: 500, inodes: 100, inodes_free: 50 };
        let sample =
            Sample { memory_available: 200 << 20, nodefs: fs, imagefs: fs, pids_max: 1000, pids: 950 };
        let thresholds = Thresholds { pids: Some(0.1), ..Thresholds::default() };
        let names = |s: &Sample| met(s, &thresholds).into_iter().map(|m| m.signal).collect::<Vec<_>>();
        assert_eq!(names(&sample), ["pid.available"]);
        let low = Fs { available: 99, inodes_free: 4, ..fs };
        let all = Sample { memory_available: 1, nodefs: low, imagefs: low, ..sample };
        assert_eq!(
            names(&all),
            [
                "memory.available",
                "nodefs.available",
                "nodefs.inodesFree",
                "imagefs.available",
                "imagefs.inodesFree",
                "pid.available"
            ]
        );
        let nodefs = &met(&all, &thresholds)[1];
        assert_eq!((nodefs.quantity, nodefs.available, nodefs.disk), (100, 99, Some(Disk::Node)));
        let edge = Sample { memory_available: 100 << 20, ..sample };
        assert_eq!(names(&edge), ["pid.available"], "at the threshold it is not met");
    }
}
