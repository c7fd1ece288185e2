//! Which resource is short: the kubelet's default hard eviction thresholds, and how long a shortage
//! is still reported after it has gone, so that a condition does not flap.

use super::machine::{Fs, Sample};
use std::time::{Duration, Instant};

/// Below what a resource is short. The default is the kubelet's `evictionHard` default.
#[derive(Clone, Debug, PartialEq)]
pub struct Thresholds {
    /// `memory.available`, in bytes.
    pub memory: u64,
    /// `nodefs.available`, a part of 1.
    pub nodefs: f64,
    /// `nodefs.inodesFree`, a part of 1.
    pub nodefs_inodes: f64,
    /// `imagefs.available`, a part of 1.
    pub imagefs: f64,
    /// `imagefs.inodesFree`, a part of 1.
    pub imagefs_inodes: f64,
    /// `pid.available`, a part of 1; the kubelet has none by default.
    pub pids: Option<f64>,
    /// `evictionPressureTransitionPeriod`: how long a shortage is reported after it was seen.
    pub transition: Duration,
}

impl Default for Thresholds {
    fn default() -> Self {
        Thresholds {
            memory: 100 << 20,
            nodefs: 0.10,
            nodefs_inodes: 0.05,
            imagefs: 0.15,
            imagefs_inodes: 0.05,
            pids: None,
            transition: Duration::from_secs(300),
        }
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

/// When each shortage was seen last.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    memory: Option<Instant>,
    disk: Option<Instant>,
    pids: Option<Instant>,
}

impl Memory {
    /// Takes a sample at `now`, and says what is to be reported.
    #[expect(clippy::cast_precision_loss, reason = "a threshold is a part of 1, not an exact count")]
    pub fn observe(&mut self, sample: &Sample, thresholds: &Thresholds, now: Instant) -> Pressures {
        let short = |free: u64, all: u64, part: f64| (free as f64) < (all as f64) * part;
        let full = |fs: &Fs, part, inodes| {
            short(fs.available, fs.capacity, part) || short(fs.inodes_free, fs.inodes, inodes)
        };
        let memory = sample.memory_available < thresholds.memory;
        let disk = full(&sample.nodefs, thresholds.nodefs, thresholds.nodefs_inodes)
            || full(&sample.imagefs, thresholds.imagefs, thresholds.imagefs_inodes);
        let left = sample.pids_max.saturating_sub(sample.pids);
        let pids = thresholds.pids.is_some_and(|part| short(left, sample.pids_max, part));
        let sticky = |seen: &mut Option<Instant>, is: bool| {
            if is {
                *seen = Some(now);
            }
            seen.is_some_and(|at| now.saturating_duration_since(at) < thresholds.transition)
        };
        Pressures {
            memory: sticky(&mut self.memory, memory),
            disk: sticky(&mut self.disk, disk),
            pids: sticky(&mut self.pids, pids),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn roomy() -> Sample {
        let fs = Fs { capacity: 1000, available: 500, inodes: 100, inodes_free: 50 };
        Sample { memory_available: 1 << 30, nodefs: fs, imagefs: fs, pids_max: 1000, pids: 999 }
    }

    #[test]
    fn each_threshold_and_its_edge() {
        let now = Instant::now();
        let see = |change: &dyn Fn(&mut Sample)| {
            let mut sample = roomy();
            change(&mut sample);
            Memory::default().observe(&sample, &Thresholds::default(), now)
        };
        let none = Pressures::default();
        assert_eq!(see(&|_| ()), none);
        assert_eq!(see(&|s| s.memory_available = 100 << 20), none);
        assert_eq!(see(&|s| s.memory_available = (100 << 20) - 1), Pressures { memory: true, ..none });
        let disk = Pressures { disk: true, ..none };
        assert_eq!(see(&|s| s.nodefs.available = 100), none);
        assert_eq!(see(&|s| s.nodefs.available = 99), disk);
        assert_eq!(see(&|s| s.nodefs.inodes_free = 4), disk);
        assert_eq!(see(&|s| s.imagefs.available = 149), disk);
        assert_eq!(see(&|s| s.imagefs.inodes_free = 4), disk);
        // A file system without inodes is not out of them.
        assert_eq!(see(&|s| (s.nodefs.inodes, s.nodefs.inodes_free) = (0, 0)), none);
        let thresholds = Thresholds { pids: Some(0.1), ..Thresholds::default() };
        let pids = Memory::default().observe(&roomy(), &thresholds, now);
        assert_eq!(pids, Pressures { pids: true, ..none });
    }

    #[test]
    fn a_shortage_stays_for_the_transition_period() {
        let (start, thresholds) = (Instant::now(), Thresholds::default());
        let mut memory = Memory::default();
        let short = Sample { memory_available: 0, ..roomy() };
        assert!(memory.observe(&short, &thresholds, start).memory);
        assert!(memory.observe(&roomy(), &thresholds, start + Duration::from_secs(299)).memory);
        assert!(!memory.observe(&roomy(), &thresholds, start + Duration::from_secs(300)).memory);
    }
}
