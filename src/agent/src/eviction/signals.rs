//! What a threshold that calls for an eviction is about: of which resource, of which disk, how much there
//! must be and how much there is. Pure.

use crate::node::machine::Sample;
use crate::node::pressure::{Signal, Threshold};
use std::time::Duration;

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
    /// Whether it is a soft one: pods have their own grace then.
    pub soft: bool,
}

impl Met {
    /// What `threshold` says of `sample`; none where its signal is not observed.
    #[must_use]
    pub fn of(threshold: &Threshold, sample: &Sample) -> Option<Self> {
        let (resource, disk) = match threshold.signal {
            Signal::Memory | Signal::AllocatableMemory => (Resource::Memory, None),
            Signal::NodeFs => (Resource::Storage, Some(Disk::Node)),
            Signal::NodeInodes => (Resource::Inodes, Some(Disk::Node)),
            Signal::ImageFs => (Resource::Storage, Some(Disk::Image)),
            Signal::ImageInodes => (Resource::Inodes, Some(Disk::Image)),
            Signal::Pids => (Resource::Pids, None),
        };
        let room = threshold.signal.room(sample)?;
        Some(Met {
            signal: threshold.signal.name(),
            resource,
            disk,
            quantity: threshold.value.of(room.all),
            available: room.left,
            soft: threshold.grace.is_some(),
        })
    }

    /// What a pod has to end in: a second when the node is short by a hard threshold, else its own grace, at
    /// most `most`.
    #[must_use]
    pub fn grace(&self, own: Option<i64>, most: Duration) -> Duration {
        if !self.soft {
            return IMMEDIATE;
        }
        let own = own.map(|s| Duration::from_secs(u64::try_from(s).unwrap_or(0)));
        own.map_or(most, |own| own.min(most))
    }
}

/// `immediateEvictionGracePeriodSeconds`.
pub const IMMEDIATE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::machine::{Fs, Room};
    use crate::node::pressure::Amount;

    fn hard(signal: Signal, value: Amount) -> Threshold {
        Threshold { signal, value, grace: None, min_reclaim: None }
    }

    #[test]
    fn each_signal_has_its_resource_and_its_figures() {
        let fs = Fs { capacity: 1000, available: 99, inodes: 100, inodes_free: 4 };
        let sample = Sample {
            memory: Room { all: 1000, left: 10 },
            pods_memory: None,
            nodefs: fs,
            imagefs: fs,
            pids_max: 1000,
            pids: 950,
        };
        let of = |signal, value| Met::of(&hard(signal, value), &sample);
        let nodefs = of(Signal::NodeFs, Amount::Part(0.1)).unwrap();
        assert_eq!((nodefs.quantity, nodefs.available, nodefs.disk), (100, 99, Some(Disk::Node)));
        let pids = of(Signal::Pids, Amount::Exact(70)).unwrap();
        assert_eq!((pids.resource, pids.available, pids.quantity), (Resource::Pids, 50, 70));
        assert_eq!(of(Signal::ImageInodes, Amount::Part(0.05)).unwrap().available, 4);
        assert_eq!(of(Signal::AllocatableMemory, Amount::Exact(1)), None, "it is not observed here");
    }

    #[test]
    fn a_soft_threshold_leaves_a_pod_its_grace() {
        let of = |soft| Met {
            signal: "x",
            resource: Resource::Memory,
            disk: None,
            quantity: 0,
            available: 0,
            soft,
        };
        let most = Duration::from_secs(20);
        let graces =
            [of(false).grace(Some(30), most), of(true).grace(Some(30), most), of(true).grace(Some(5), most)];
        assert_eq!(graces.map(|g| g.as_secs()), [1, 20, 5]);
        assert_eq!(of(true).grace(None, most), most);
    }
}
