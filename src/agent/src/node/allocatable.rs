//! What of the machine pods may have: its capacity less what is kept for the system and for Kubernetes'
//! own daemons (`systemReserved`, `kubeReserved`), and for the scheduler's eyes also less what the hard
//! eviction thresholds keep free. Pure; the rules are the kubelet's
//! (`pkg/kubelet/cm/node_container_manager_linux.go`, `pkg/kubelet/nodestatus/setters.go`).
//!
//! Two numbers come of it: `Node.status.allocatable`, and the limits of the cgroup of all pods, which
//! leave the thresholds out, so that a node that is short evicts before the kernel kills.

use super::pressure::{Signal, Thresholds};
use crate::env::quantity;
use std::collections::BTreeMap;

/// What can be kept from pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// Processors.
    Cpu,
    /// Memory.
    Memory,
    /// The disk of volumes and logs.
    EphemeralStorage,
    /// Tasks; no resource of the Node, only of the pods' cgroup.
    Pid,
}

impl Resource {
    const ALL: [Resource; 4] = [Resource::Cpu, Resource::Memory, Resource::EphemeralStorage, Resource::Pid];

    /// Its name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Resource::Cpu => "cpu",
            Resource::Memory => "memory",
            Resource::EphemeralStorage => "ephemeral-storage",
            Resource::Pid => "pid",
        }
    }
}

/// Why a reservation is not one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum AllocatableError {
    /// A resource that is not one of the four.
    #[error("cannot reserve {0:?} resource")]
    Resource(String),
    /// A text that is no quantity.
    #[error("failed to parse quantity {text:?} for {name:?} resource")]
    Quantity {
        /// The resource.
        name: &'static str,
        /// What it holds.
        text: String,
    },
    /// Less than nothing.
    #[error("resource quantity for {name:?} cannot be negative: {text}")]
    Negative {
        /// The resource.
        name: &'static str,
        /// What it holds.
        text: String,
    },
    /// More is kept than there is.
    #[error(
        "invalid Node Allocatable configuration. Resource {name:?} has a reservation of {kept} but capacity of {all}. \
         Expected capacity >= reservation."
    )]
    TooMuch {
        /// The resource.
        name: &'static str,
        /// What is kept of it.
        kept: i128,
        /// What there is.
        all: i128,
    },
}

/// One of the two lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reserved(BTreeMap<Resource, (String, i128)>);

impl Reserved {
    /// Reads a list as the configuration file has it.
    ///
    /// # Errors
    /// [`AllocatableError`] for what cannot be reserved or is no quantity.
    pub fn parse(list: &BTreeMap<String, String>) -> Result<Self, AllocatableError> {
        let one = |(key, text): (&String, &String)| {
            let resource = Resource::ALL.into_iter().find(|r| r.name() == key);
            let resource = resource.ok_or_else(|| AllocatableError::Resource(key.clone()))?;
            let (name, text) = (resource.name(), text.clone());
            match quantity::milli(&text) {
                None => Err(AllocatableError::Quantity { name, text }),
                Some(n) if n < 0 => Err(AllocatableError::Negative { name, text }),
                Some(n) => Ok((resource, (text, n))),
            }
        };
        Ok(Reserved(list.iter().map(one).collect::<Result<_, _>>()?))
    }

    /// As the configuration file has it.
    #[must_use]
    pub fn shown(&self) -> BTreeMap<&'static str, &str> {
        self.0.iter().map(|(resource, (text, _))| (resource.name(), text.as_str())).collect()
    }

    /// What is kept of a resource, in its own units (thousandths of processors, bytes, tasks); none where the list
    /// does not have it.
    #[must_use]
    pub fn of(&self, resource: Resource) -> Option<i128> {
        let (_, milli) = self.0.get(&resource)?;
        Some(if resource == Resource::Cpu { *milli } else { quantity::ceil_div(*milli, 1000) })
    }

    fn milli(&self, resource: Resource) -> i128 {
        self.0.get(&resource).map_or(0, |(_, n)| *n)
    }
}

/// A cgroup that is there already, and is held to what is kept for those who run in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// As the cgroup driver names it: `/system`, `/system.slice`.
    pub cgroup: String,
    /// Whether only processors count, of which too few make slow and not dead.
    pub compressible: bool,
}

/// What is kept from pods, and which cgroups are held to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// `systemReserved`.
    pub system: Reserved,
    /// `kubeReserved`.
    pub kube: Reserved,
    /// Whether `enforceNodeAllocatable` has `pods`, as it has by default.
    pub enforce: bool,
    /// Where it has `system-reserved`: `systemReservedCgroup`.
    pub system_held: Option<Held>,
    /// Where it has `kube-reserved`: `kubeReservedCgroup`.
    pub kube_held: Option<Held>,
}

impl Default for Reservation {
    fn default() -> Self {
        Reservation {
            system: Reserved::default(),
            kube: Reserved::default(),
            enforce: true,
            system_held: None,
            kube_held: None,
        }
    }
}

/// What there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capacity {
    /// Processors.
    pub cpus: u64,
    /// Bytes.
    pub memory: u64,
    /// Bytes of the disk, where it is known.
    pub storage: Option<u64>,
    /// Tasks that the kernel can hold.
    pub pids: u64,
}

/// The limits of the cgroup of all pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodsLimits {
    /// CPU in thousandths, which becomes the shares of all pods.
    pub milli_cpu: i128,
    /// Bytes of memory.
    pub memory: i128,
    /// Tasks; none where the kernel does not tell how many it can hold.
    pub pids: Option<i128>,
}

impl Reservation {
    /// `enforceNodeAllocatable`, as the configuration file has it.
    #[must_use]
    pub fn enforced(&self) -> Vec<&'static str> {
        let held = |held: &Option<Held>, names: [&'static str; 2]| {
            held.as_ref().map(|held| names[usize::from(held.compressible)])
        };
        let mut all = Vec::from_iter(self.enforce.then_some("pods"));
        all.extend(held(&self.system_held, ["system-reserved", "system-reserved-compressible"]));
        all.extend(held(&self.kube_held, ["kube-reserved", "kube-reserved-compressible"]));
        if all.is_empty() { vec!["none"] } else { all }
    }

    /// What is kept of `resource`, in thousandths.
    fn kept(&self, resource: Resource) -> i128 {
        self.system.milli(resource) + self.kube.milli(resource)
    }

    /// The thousandths of processors that the Node offers.
    #[must_use]
    pub fn cpu(&self, cpus: u64) -> i128 {
        (i128::from(cpus) * 1000 - self.kept(Resource::Cpu)).max(0)
    }

    /// The memory that the Node offers, before huge pages are taken from it.
    #[must_use]
    pub fn memory(&self, all: u64, thresholds: &Thresholds) -> u64 {
        left(all, self.whole(Resource::Memory) + i128::from(thresholds.kept(Signal::Memory, all)))
    }

    /// The disk that the Node offers.
    #[must_use]
    pub fn storage(&self, all: u64, thresholds: &Thresholds) -> u64 {
        left(all, self.whole(Resource::EphemeralStorage) + i128::from(thresholds.kept(Signal::NodeFs, all)))
    }

    fn whole(&self, resource: Resource) -> i128 {
        quantity::ceil_div(self.kept(resource), 1000)
    }

    /// The limits of the cgroup of all pods: without the thresholds, and all that there is where they
    /// are not enforced.
    #[must_use]
    pub fn pods(&self, capacity: &Capacity) -> PodsLimits {
        let free = |all: u64, resource| {
            let kept = if self.enforce { self.whole(resource) } else { 0 };
            (i128::from(all) - kept).max(0)
        };
        let milli_cpu = if self.enforce { self.cpu(capacity.cpus) } else { i128::from(capacity.cpus) * 1000 };
        PodsLimits {
            milli_cpu,
            memory: free(capacity.memory, Resource::Memory),
            pids: (capacity.pids > 0).then(|| free(capacity.pids, Resource::Pid)),
        }
    }

    /// Whether there is as much as is kept (`validateNodeAllocatable`).
    ///
    /// # Errors
    /// [`AllocatableError::TooMuch`] for the first resource of which there is less.
    pub fn check(&self, capacity: &Capacity, thresholds: &Thresholds) -> Result<(), AllocatableError> {
        let storage = capacity.storage.unwrap_or(0);
        let memory = i128::from(thresholds.kept(Signal::Memory, capacity.memory));
        let of_disk = i128::from(thresholds.kept(Signal::NodeFs, storage));
        let all = [
            (Resource::Cpu, i128::from(capacity.cpus) * 1000, self.kept(Resource::Cpu)),
            (Resource::Memory, capacity.memory.into(), self.whole(Resource::Memory) + memory),
            (Resource::EphemeralStorage, storage.into(), self.whole(Resource::EphemeralStorage) + of_disk),
        ];
        let known = |resource: Resource| resource != Resource::EphemeralStorage || capacity.storage.is_some();
        match all.into_iter().find(|(resource, all, kept)| known(*resource) && kept > all) {
            None => Ok(()),
            Some((resource, all, kept)) => {
                Err(AllocatableError::TooMuch { name: resource.name(), kept, all })
            }
        }
    }
}

fn left(all: u64, kept: i128) -> u64 {
    u64::try_from((i128::from(all) - kept).max(0)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(of: &[(&str, &str)]) -> Result<Reserved, AllocatableError> {
        Reserved::parse(&of.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    fn reservation(system: &[(&str, &str)], kube: &[(&str, &str)]) -> Reservation {
        Reservation {
            system: list(system).unwrap(),
            kube: list(kube).unwrap(),
            enforce: true,
            ..Reservation::default()
        }
    }

    const CAPACITY: Capacity = Capacity { cpus: 4, memory: 8 << 30, storage: Some(100 << 30), pids: 32768 };

    #[test]
    fn what_is_kept_is_read_as_a_kubelet_reads_it() {
        let read = list(&[("cpu", "250m"), ("memory", "1Gi"), ("pid", "1000")]).unwrap();
        assert_eq!(read.shown(), [("cpu", "250m"), ("memory", "1Gi"), ("pid", "1000")].into());
        for (bad, says) in [
            (("disk", "1"), "cannot reserve \"disk\" resource"),
            (("hugepages-2Mi", "1Gi"), "cannot reserve \"hugepages-2Mi\" resource"),
            (("cpu", "much"), "failed to parse quantity \"much\" for \"cpu\" resource"),
            (("memory", "-1Mi"), "resource quantity for \"memory\" cannot be negative: -1Mi"),
        ] {
            assert_eq!(list(&[bad]).unwrap_err().to_string(), says);
        }
    }

    #[test]
    fn the_node_offers_what_neither_list_nor_threshold_keeps() {
        let r = reservation(
            &[("cpu", "100m"), ("memory", "1Gi"), ("ephemeral-storage", "1Gi")],
            &[("cpu", "150m"), ("memory", "512Mi"), ("ephemeral-storage", "2Gi")],
        );
        let thresholds = Thresholds::default();
        assert_eq!(r.cpu(4), 3750);
        assert_eq!(r.memory(8 << 30, &thresholds), (8 << 30) - (1 << 30) - (512 << 20) - (100 << 20));
        // 10 % as float32 is a little more: what a kubelet of that size reports, to the byte.
        let storage = r.storage(100 << 30, &thresholds);
        assert_eq!(storage, (100 << 30) - (3 << 30) - 10_737_418_400);
        let most = reservation(&[("cpu", "9"), ("memory", "9Gi")], &[]);
        assert_eq!((most.cpu(4), most.memory(8 << 30, &thresholds)), (0, 0), "never below nothing");
    }

    #[test]
    fn the_pods_cgroup_has_the_thresholds_room_as_well() {
        let r = reservation(&[("memory", "1Gi"), ("pid", "768")], &[("cpu", "1500m")]);
        let limits = r.pods(&CAPACITY);
        assert_eq!(limits, PodsLimits { milli_cpu: 2500, memory: 7 << 30, pids: Some(32000) });
        let free = Reservation { enforce: false, ..r }.pods(&CAPACITY);
        assert_eq!(free, PodsLimits { milli_cpu: 4000, memory: 8 << 30, pids: Some(32768) });
        assert_eq!(Reservation::default().pods(&Capacity { pids: 0, ..CAPACITY }).pids, None);
    }

    #[test]
    fn more_than_there_is_cannot_be_kept() {
        let thresholds = Thresholds::default();
        reservation(&[("cpu", "2")], &[("cpu", "2")]).check(&CAPACITY, &thresholds).unwrap();
        let says = |system: &[(&str, &str)], capacity: Capacity| {
            reservation(system, &[]).check(&capacity, &thresholds).unwrap_err().to_string()
        };
        assert_eq!(
            says(&[("cpu", "4001m")], CAPACITY),
            "invalid Node Allocatable configuration. Resource \"cpu\" has a reservation of 4001 but capacity \
             of 4000. Expected capacity >= reservation."
        );
        assert!(says(&[("memory", "8Gi")], CAPACITY).contains("\"memory\""), "the threshold counts too");
        assert!(says(&[("ephemeral-storage", "95Gi")], CAPACITY).contains("\"ephemeral-storage\""));
        let unknown = Capacity { storage: None, ..CAPACITY };
        reservation(&[("ephemeral-storage", "1Ti")], &[]).check(&unknown, &thresholds).unwrap();
    }
}
