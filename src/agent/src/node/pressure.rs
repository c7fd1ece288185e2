//! When the node is short: the thresholds of a kubelet, hard and soft, and the memory that decides which of
//! them are met and which of them call for an eviction (`pkg/kubelet/eviction`). Pure: the caller has the
//! clock and the samples.
//!
//! A threshold that is met is told in the node's conditions at once, and for the transition period after
//! it was seen last, so that they do not flap. It calls for an eviction once it has been met for its
//! grace period, and then until it is over by the minimum reclaim.

use super::machine::{Room, Sample};
use std::time::{Duration, Instant};

/// What is observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Signal {
    /// `memory.available`: of the machine.
    Memory,
    /// `allocatableMemory.available`: of the cgroup of all pods.
    AllocatableMemory,
    /// `nodefs.available`.
    NodeFs,
    /// `nodefs.inodesFree`.
    NodeInodes,
    /// `imagefs.available`.
    ImageFs,
    /// `imagefs.inodesFree`.
    ImageInodes,
    /// `pid.available`.
    Pids,
}

impl Signal {
    /// All of them, memory first: the order in which they are reclaimed (`byEvictionPriority`).
    pub const ALL: [Signal; 7] = [
        Signal::Memory,
        Signal::AllocatableMemory,
        Signal::NodeFs,
        Signal::NodeInodes,
        Signal::ImageFs,
        Signal::ImageInodes,
        Signal::Pids,
    ];

    /// Its name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Signal::Memory => "memory.available",
            Signal::AllocatableMemory => "allocatableMemory.available",
            Signal::NodeFs => "nodefs.available",
            Signal::NodeInodes => "nodefs.inodesFree",
            Signal::ImageFs => "imagefs.available",
            Signal::ImageInodes => "imagefs.inodesFree",
            Signal::Pids => "pid.available",
        }
    }

    /// The signal of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.name() == name)
    }

    /// How much there is, and how much is left of it; none where that is not known.
    #[must_use]
    pub fn room(self, sample: &Sample) -> Option<Room> {
        match self {
            Signal::Memory => Some(sample.memory),
            Signal::AllocatableMemory => sample.pods_memory,
            Signal::NodeFs => Some(Room { all: sample.nodefs.capacity, left: sample.nodefs.available }),
            Signal::NodeInodes => Some(Room { all: sample.nodefs.inodes, left: sample.nodefs.inodes_free }),
            Signal::ImageFs => Some(Room { all: sample.imagefs.capacity, left: sample.imagefs.available }),
            Signal::ImageInodes => {
                Some(Room { all: sample.imagefs.inodes, left: sample.imagefs.inodes_free })
            }
            Signal::Pids => {
                let left = sample.pids_max.saturating_sub(sample.pids);
                Some(Room { all: sample.pids_max, left })
            }
        }
    }
}

/// An amount, or a part of what there is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// Bytes, inodes or tasks.
    Exact(u64),
    /// A part of 1: a `float32`, whose rounding can be seen in what comes of it.
    Part(f32),
}

impl Amount {
    /// The amount, of `all` (`GetThresholdQuantity`).
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "as upstream: a threshold is a part of 1, not an exact count"
    )]
    pub fn of(self, all: u64) -> u64 {
        match self {
            Amount::Exact(n) => n,
            Amount::Part(part) => (all as f64 * f64::from(part)) as u64,
        }
    }
}

impl std::fmt::Display for Amount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Amount::Exact(n) => write!(f, "{n}"),
            // As it was written: the rounding of a float32 is nobody's wish.
            Amount::Part(part) => write!(f, "{}%", (f64::from(*part) * 1e6).round() / 1e4),
        }
    }
}

/// Below what a resource is short.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// Of what.
    pub signal: Signal,
    /// How much there must be.
    pub value: Amount,
    /// How long it must be met before a pod goes; none: a hard threshold.
    pub grace: Option<Duration>,
    /// How much more than that there must be before it is over.
    pub min_reclaim: Option<Amount>,
}

impl Threshold {
    fn same(&self, other: &Threshold) -> bool {
        (self.signal, self.grace) == (other.signal, other.grace)
    }

    fn met(&self, sample: &Sample, reclaimed: bool) -> bool {
        let Some(room) = self.signal.room(sample) else { return false };
        let more = self.min_reclaim.filter(|_| reclaimed).map_or(0, |m| m.of(room.all));
        room.left < self.value.of(room.all).saturating_add(more)
    }
}

/// What the node goes by. The default is the kubelet's.
#[derive(Clone, Debug, PartialEq)]
pub struct Thresholds {
    /// `evictionHard` and `evictionSoft`, in the order in which they are reclaimed.
    pub list: Vec<Threshold>,
    /// `evictionPressureTransitionPeriod`: how long a shortage is reported after it was seen.
    pub transition: Duration,
    /// `evictionMaxPodGracePeriod`: how long a pod has at most when a soft threshold takes it.
    pub max_pod_grace: Duration,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds::hard_only(&Thresholds::HARD)
    }
}

impl Thresholds {
    /// The default of `evictionHard`.
    pub const HARD: [(Signal, Amount); 5] = [
        (Signal::Memory, Amount::Exact(100 << 20)),
        (Signal::NodeFs, Amount::Part(0.10)),
        (Signal::NodeInodes, Amount::Part(0.05)),
        (Signal::ImageFs, Amount::Part(0.15)),
        (Signal::ImageInodes, Amount::Part(0.05)),
    ];

    /// Hard thresholds alone.
    #[must_use]
    pub fn hard_only(of: &[(Signal, Amount)]) -> Self {
        let hard = |(signal, value): &(Signal, Amount)| Threshold {
            signal: *signal,
            value: *value,
            grace: None,
            min_reclaim: None,
        };
        Thresholds {
            list: of.iter().map(hard).collect(),
            transition: Duration::from_secs(300),
            max_pod_grace: Duration::ZERO,
        }
    }

    /// The hard thresholds, which are kept free from pods.
    pub fn hard(&self) -> impl Iterator<Item = &Threshold> {
        self.list.iter().filter(|t| t.grace.is_none())
    }

    /// The soft ones.
    pub fn soft(&self) -> impl Iterator<Item = &Threshold> {
        self.list.iter().filter(|t| t.grace.is_some())
    }

    /// How much of `all` the hard threshold of `signal` keeps free.
    #[must_use]
    pub fn kept(&self, signal: Signal, all: u64) -> u64 {
        self.hard().find(|t| t.signal == signal).map_or(0, |t| t.value.of(all))
    }

    /// The same, and the machine's threshold of memory for the cgroup of all pods as well, as where that
    /// is held to its limit (`addAllocatableThresholds`): pods are evicted before the kernel kills in it.
    #[must_use]
    pub fn with_allocatable(mut self, enforced: bool) -> Self {
        let has = self.hard().any(|t| t.signal == Signal::AllocatableMemory);
        let memory = self.hard().find(|t| t.signal == Signal::Memory).copied();
        if let Some(memory) = memory.filter(|_| enforced && !has) {
            self.list.push(Threshold { signal: Signal::AllocatableMemory, ..memory });
        }
        self.list.sort_by_key(|t| t.signal);
        self
    }
}

/// What is reported as short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressures {
    /// Memory.
    pub memory: bool,
    /// Disk or inodes, of pods or of images.
    pub disk: bool,
    /// Tasks.
    pub pids: bool,
}

/// What is remembered between two samples.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Thresholds that are met, and since when.
    first: Vec<(Threshold, Instant)>,
    /// Those that called for an eviction and are not over.
    calling: Vec<Threshold>,
    memory: Option<Instant>,
    disk: Option<Instant>,
    pids: Option<Instant>,
}

impl Memory {
    /// Takes a sample at `now`: what is to be reported, and which thresholds call for an eviction.
    pub fn observe(
        &mut self,
        sample: &Sample,
        thresholds: &Thresholds,
        now: Instant,
    ) -> (Pressures, Vec<Threshold>) {
        let mut met: Vec<Threshold> =
            thresholds.list.iter().filter(|t| t.met(sample, false)).copied().collect();
        let unresolved = self.calling.iter().filter(|t| t.met(sample, true));
        met.extend(unresolved.filter(|t| met.iter().all(|m| !m.same(t))).copied().collect::<Vec<_>>());
        met.sort_by_key(|t| t.signal);
        let since = |t: &Threshold| self.first.iter().find(|(f, _)| f.same(t)).map_or(now, |(_, at)| *at);
        self.first = met.iter().map(|t| (*t, since(t))).collect();
        self.calling = self
            .first
            .iter()
            .filter(|(t, at)| now.saturating_duration_since(*at) >= t.grace.unwrap_or_default())
            .map(|(t, _)| *t)
            .collect();
        let short = |signals: &[Signal]| met.iter().any(|t| signals.contains(&t.signal));
        let disks = [Signal::NodeFs, Signal::NodeInodes, Signal::ImageFs, Signal::ImageInodes];
        let sticky = |seen: &mut Option<Instant>, is: bool| {
            if is {
                *seen = Some(now);
            }
            seen.is_some_and(|at| now.saturating_duration_since(at) < thresholds.transition)
        };
        let pressures = Pressures {
            memory: sticky(&mut self.memory, short(&[Signal::Memory, Signal::AllocatableMemory])),
            disk: sticky(&mut self.disk, short(&disks)),
            pids: sticky(&mut self.pids, short(&[Signal::Pids])),
        };
        (pressures, self.calling.clone())
    }

    /// Whether `sample` leaves every threshold behind by its minimum reclaim.
    #[must_use]
    pub fn relieved(sample: &Sample, thresholds: &Thresholds) -> bool {
        thresholds.list.iter().all(|t| !t.met(sample, true))
    }
}

#[cfg(test)]
mod tests {
    use super::super::machine::Fs;
    use super::*;

    fn roomy() -> Sample {
        let fs = Fs { capacity: 1000, available: 500, inodes: 100, inodes_free: 50 };
        Sample {
            memory: Room { all: 4 << 30, left: 1 << 30 },
            pods_memory: None,
            nodefs: fs,
            imagefs: fs,
            pids_max: 1000,
            pids: 999,
        }
    }

    fn short() -> Sample {
        Sample { memory: Room { all: 4 << 30, left: 0 }, ..roomy() }
    }

    #[test]
    fn each_threshold_and_its_edge() {
        let now = Instant::now();
        let see = |change: &dyn Fn(&mut Sample)| {
            let mut sample = roomy();
            change(&mut sample);
            Memory::default().observe(&sample, &Thresholds::default(), now).0
        };
        let none = Pressures::default();
        assert_eq!(see(&|_| ()), none);
        assert_eq!(see(&|s| s.memory.left = 100 << 20), none);
        assert_eq!(see(&|s| s.memory.left = (100 << 20) - 1), Pressures { memory: true, ..none });
        let disk = Pressures { disk: true, ..none };
        assert_eq!(see(&|s| s.nodefs.available = 100), none);
        assert_eq!(see(&|s| s.nodefs.available = 99), disk);
        assert_eq!(see(&|s| s.nodefs.inodes_free = 4), disk);
        assert_eq!(see(&|s| s.imagefs.available = 149), disk);
        assert_eq!(see(&|s| s.imagefs.inodes_free = 4), disk);
        // A file system without inodes is not out of them.
        assert_eq!(see(&|s| (s.nodefs.inodes, s.nodefs.inodes_free) = (0, 0)), none);
        let thresholds = Thresholds::hard_only(&[(Signal::Pids, Amount::Part(0.1))]);
        let (pids, calling) = Memory::default().observe(&roomy(), &thresholds, now);
        assert_eq!((pids, calling.len()), (Pressures { pids: true, ..none }, 1));
    }

    #[test]
    fn a_shortage_stays_for_the_transition_period() {
        let (start, thresholds) = (Instant::now(), Thresholds::default());
        let mut memory = Memory::default();
        let mut at = |sample: &Sample, secs| {
            memory.observe(sample, &thresholds, start + Duration::from_secs(secs)).0.memory
        };
        assert!(at(&short(), 0));
        assert!(at(&roomy(), 299));
        assert!(!at(&roomy(), 300));
    }

    #[test]
    fn a_soft_threshold_calls_after_its_grace_and_is_told_at_once() {
        let soft = Threshold {
            signal: Signal::Memory,
            value: Amount::Exact(500 << 20),
            grace: Some(Duration::from_secs(90)),
            min_reclaim: Some(Amount::Exact(100 << 20)),
        };
        let thresholds = Thresholds { list: vec![soft], ..Thresholds::default() };
        let (start, mut memory) = (Instant::now(), Memory::default());
        let mut at = |left: u64, secs| {
            let sample = Sample { memory: Room { all: 4 << 30, left: left << 20 }, ..roomy() };
            let (told, calling) = memory.observe(&sample, &thresholds, start + Duration::from_secs(secs));
            (told.memory, calling.len())
        };
        assert_eq!(at(499, 0), (true, 0));
        assert_eq!(at(499, 89), (true, 0));
        assert_eq!(at(500, 89), (true, 0), "not met any more: its grace begins anew");
        assert_eq!(at(499, 90), (true, 0));
        assert_eq!(at(499, 180), (true, 1));
        assert_eq!(at(599, 190), (true, 1), "not over by as much as is to be reclaimed");
        assert_eq!(at(600, 200), (true, 0));
        assert_eq!(at(599, 210), (true, 0), "and below that only once it is met again");
    }

    #[test]
    fn the_pods_cgroup_has_the_machines_threshold() {
        let thresholds = Thresholds::default().with_allocatable(true);
        let sample = Sample { pods_memory: Some(Room { all: 1 << 30, left: 50 << 20 }), ..roomy() };
        let (told, calling) = Memory::default().observe(&sample, &thresholds, Instant::now());
        assert!(told.memory);
        assert_eq!(calling[0].signal, Signal::AllocatableMemory);
        assert_eq!(thresholds.kept(Signal::Memory, 1), 100 << 20);
        assert!(Memory::relieved(&roomy(), &thresholds) && !Memory::relieved(&sample, &thresholds));
        let off = Thresholds::default().with_allocatable(false);
        assert_eq!(off, Thresholds::default());
    }

    #[test]
    fn amounts_are_reckoned_as_upstream_does() {
        assert_eq!(Amount::Part(0.1).of(100 << 30), 10_737_418_400);
        assert_eq!((Amount::Exact(7).of(1), Amount::Part(0.05).of(100)), (7, 5));
        assert_eq!([Amount::Part(0.1), Amount::Exact(9)].map(|a| a.to_string()), ["10%", "9"]);
        assert!(Signal::ALL.into_iter().all(|s| Signal::named(s.name()) == Some(s)));
    }
}
