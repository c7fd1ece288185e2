//! What a pod takes of the node's disk: its logs and its local volumes, counted as `du` counts. Only
//! what the agent made itself is walked, by file descriptor and without following a link, so that
//! neither a pod's link nor a mount of it leads the count elsewhere; a count is good for a minute (the
//! kubelet's `volumeStatsAggPeriod`), and one that was quick for less: a pod that grows is seen to.

use crate::sync::lock;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long a count is good at most.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// And how many times as long as it took: counting takes a hundredth of the time.
const SHARE: u32 = 100;
/// The deepest directory that is counted.
const DEPTH: usize = 128;

/// Bytes and inodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Blocks taken, in bytes.
    pub bytes: u64,
    /// Files, directories and links.
    pub inodes: u64,
}

impl std::ops::AddAssign for Used {
    fn add_assign(&mut self, other: Used) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.inodes = self.inodes.saturating_add(other.inodes);
    }
}

/// A pod's part of the disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodDisk {
    /// By container.
    pub logs: HashMap<String, Used>,
    /// By volume: what it takes, and whether that is the node's disk (and not memory).
    pub volumes: HashMap<String, (Used, bool)>,
}

/// Counts, and what was counted lately: until when that is good, and what it was.
#[derive(Debug, Default)]
pub struct Disk {
    known: Mutex<HashMap<String, (Instant, PodDisk)>>,
}

impl Disk {
    /// What the pods of `places` (UID, log directory, pod directory) take. Blocks.
    #[must_use]
    pub fn of(
        &self,
        places: Vec<(String, PathBuf, PathBuf)>,
        fresh: bool,
        now: Instant,
    ) -> HashMap<String, PodDisk> {
        let mut found = HashMap::new();
        for (uid, logs, dir) in places {
            let known = {
                let known = lock(&self.known);
                known.get(&uid).filter(|(until, _)| !fresh && now < *until).cloned()
            };
            let entry = known.unwrap_or_else(|| {
                let begun = Instant::now();
                let disk = PodDisk { logs: logs_of(&logs), volumes: volumes_of(&dir) };
                (now + GOOD_FOR.min(begun.elapsed() * SHARE), disk)
            });
            found.insert(uid, entry);
        }
        let counted = found.iter().map(|(uid, (_, disk))| (uid.clone(), disk.clone())).collect();
        *lock(&self.known) = found;
        counted
    }
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(list) = std::fs::read_dir(dir) else { return Vec::new() };
    list.flatten().filter_map(|e| e.file_name().into_string().ok()).collect()
}

fn logs_of(dir: &Path) -> HashMap<String, Used> {
    names(dir).into_iter().map(|name| (name.clone(), count(&dir.join(name)))).collect()
}

fn volumes_of(dir: &Path) -> HashMap<String, (Used, bool)> {
    let root = dir.join("volumes");
    let own = device(dir);
    let mut found = HashMap::new();
    // What the kubelet counts on the node itself: the rest is another file system's business.
    for kind in ["empty-dir", "configmap", "secret", "downward-api", "projected"] {
        let root = root.join(format!("kubernetes.io~{kind}"));
        for name in names(&root) {
            let path = root.join(&name);
            let local = device(&path) == own;
            found.insert(name, (count(&path), local));
        }
    }
    found
}

fn device(path: &Path) -> Option<u64> {
    rustix::fs::lstat(path).ok().map(|stat| stat.st_dev)
}

/// What is below `path`, itself included; what vanishes meanwhile is not counted.
#[must_use]
pub fn count(path: &Path) -> Used {
    let Ok(stat) = rustix::fs::lstat(path) else { return Used::default() };
    let mut used = Used { bytes: blocks(stat.st_blocks), inodes: 1 };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if let Ok(dir) = rustix::fs::open(path, flags, Mode::empty()) {
        used += below(dir, stat.st_dev, 0);
    }
    used
}

fn blocks(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0).saturating_mul(512)
}

fn below(dir: OwnedFd, device: u64, depth: usize) -> Used {
    let mut used = Used::default();
    let Ok(list) = Dir::read_from(&dir) else { return used };
    for entry in list.flatten() {
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let Ok(stat) = statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        // A mount in the volume is another's.
        if stat.st_dev != device {
            continue;
        }
        used += Used { bytes: blocks(stat.st_blocks), inodes: 1 };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && depth < DEPTH {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            if let Ok(inner) = openat(&dir, name, flags, Mode::empty()) {
                used += below(inner, device, depth + 1);
            }
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_counted_and_a_link_leads_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("p/volumes/kubernetes.io~empty-dir/e");
        std::fs::create_dir_all(volume.join("d")).unwrap();
        std::fs::write(volume.join("d/f"), vec![1; 100_000]).unwrap();
        let big = dir.path().join("big");
        std::fs::write(&big, vec![1; 1_000_000]).unwrap();
        std::os::unix::fs::symlink(&big, volume.join("link")).unwrap();
        std::os::unix::fs::symlink(dir.path(), volume.join("dir")).unwrap();
        let disk = Disk::default();
        let place = || vec![("u".to_owned(), dir.path().join("logs"), dir.path().join("p"))];
        let now = Instant::now();
        let (used, local) = disk.of(place(), false, now)["u"].volumes["e"];
        assert!(local && (100_000..500_000).contains(&used.bytes), "{used:?}");
        assert_eq!(used.inodes, 5, "the volume, d, f and two links");
        std::fs::remove_file(volume.join("d/f")).unwrap();
        let inodes = |fresh, at| disk.of(place(), fresh, at)["u"].volumes["e"].0.inodes;
        assert_eq!(inodes(false, now), 5, "a count is good for a while");
        assert_eq!(inodes(false, now + Duration::from_secs(59)), 4, "less than a minute where it is quick");
        std::fs::write(volume.join("g"), "x").unwrap();
        assert_eq!(inodes(true, now), 5, "and not where it must be fresh");
    }
}
