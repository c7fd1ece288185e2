//! What the machine is and how much of it is free, from /proc, /sys and the agent's cgroup root.
//!
//! Everything is read below a given root, so that the tests read a tree of their own. Sizes are in
//! bytes. Upstream's source of the same numbers is cAdvisor.

use crate::cgroups::layout::Layout;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Why the machine could not be read.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A file could not be read.
    #[error("cannot read {0}")]
    Read(PathBuf, #[source] io::Error),
    /// A file has no such number in it.
    #[error("{0} has no {1}")]
    Field(PathBuf, &'static str),
    /// A file system does not answer.
    #[error("cannot read the size of the file system of {0}")]
    Statfs(PathBuf, #[source] nix::Error),
}

/// What does not change while the agent runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Processors online, at most those of the cgroup root.
    pub cpus: u64,
    /// Memory, at most the limit of the cgroup root.
    pub memory: u64,
    /// Swap; 0 where there is none.
    pub swap: u64,
    /// Huge pages: page size to pages.
    pub huge_pages: BTreeMap<u64, u64>,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// The firmware's UUID; the machine id where there is none.
    pub system_uuid: String,
    /// Changes with each boot.
    pub boot_id: String,
    /// `uname -r`.
    pub kernel: String,
    /// `PRETTY_NAME` of os-release.
    pub os_image: String,
}

/// A file system's room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fs {
    /// Its size.
    pub capacity: u64,
    /// What an unprivileged writer may still use.
    pub available: u64,
    /// Its inodes; 0 where it has no such limit.
    pub inodes: u64,
    /// Those that are free.
    pub inodes_free: u64,
}

/// How much there is of something, and how much is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// All of it.
    pub all: u64,
    /// What is left.
    pub left: u64,
}

/// What is free at this moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// Memory; what is left is capacity less working set.
    pub memory: Room,
    /// The same of the cgroup of all pods, where it has a limit.
    pub pods_memory: Option<Room>,
    /// The file system of the agent's root directory.
    pub nodefs: Fs,
    /// The file system of the images.
    pub imagefs: Fs,
    /// How many tasks the kernel can hold.
    pub pids_max: u64,
    /// How many there are.
    pub pids: u64,
}

/// A reader of the machine at `root` (`/` but in tests), as far as its cgroup goes.
#[derive(Clone, Debug)]
pub struct Reader {
    root: PathBuf,
    /// The cgroup that bounds this node, and that of all its pods, in a tree.
    cgroup: String,
    pods: String,
}

impl Reader {
    /// Where cgroups are as in `layout`.
    #[must_use]
    pub fn new(root: &Path, layout: &Layout) -> Self {
        let (cgroup, pods) = (layout.root().to_owned(), layout.pods().path.clone());
        Reader { root: root.to_owned(), cgroup, pods }
    }

    /// Reads what does not change.
    ///
    /// # Errors
    /// [`MachineError`] when memory or processors are not to be found; the other parts may be missing.
    pub fn machine(&self) -> Result<Machine, MachineError> {
        let online = self.text("sys/devices/system/cpu/online")?;
        let mut cpus = count(&online)
            .ok_or_else(|| MachineError::Field(self.at("sys/devices/system/cpu/online"), "list"))?;
        if let Some(set) = self.cgroup_value(&self.cgroup, "cpuset", "cpuset.cpus", "cpuset.cpus.effective")
            && let Some(allowed) = count(&set).filter(|n| *n > 0)
        {
            cpus = cpus.min(allowed);
        }
        let meminfo = self.text("proc/meminfo")?;
        let total = self.field(&meminfo, "MemTotal")?;
        let optional = |path: &str| self.text(path).unwrap_or_default().trim().to_owned();
        let machine_id = optional("etc/machine-id");
        let uuid = optional("sys/class/dmi/id/product_uuid");
        let release = self.text("etc/os-release").or_else(|_| self.text("usr/lib/os-release"));
        Ok(Machine {
            cpus,
            memory: self.memory_limit(&self.cgroup).map_or(total, |limit| limit.min(total)),
            swap: kib(&meminfo, "SwapTotal").unwrap_or_default(),
            huge_pages: self.huge_pages(),
            system_uuid: if uuid.is_empty() { machine_id.clone() } else { uuid },
            machine_id,
            boot_id: optional("proc/sys/kernel/random/boot_id"),
            kernel: optional("proc/sys/kernel/osrelease"),
            os_image: pretty_name(&release.unwrap_or_default()),
        })
    }

    /// Reads what is free now. `node_dir` and `image_dir` are on the file systems that count.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn sample(&self, node_dir: &Path, image_dir: &Path) -> Result<Sample, MachineError> {
        let meminfo = self.text("proc/meminfo")?;
        // As upstream: the working set is what is used less the page cache that was not used lately.
        let (total, free) = (self.field(&meminfo, "MemTotal")?, self.field(&meminfo, "MemFree")?);
        let inactive = kib(&meminfo, "Inactive(file)").unwrap_or_default();
        let mut memory_available = (free + inactive).min(total);
        let mut all = total;
        if let Some(limit) = self.memory_limit(&self.cgroup).filter(|limit| *limit < total) {
            all = limit;
            memory_available = memory_available.min(limit.saturating_sub(self.working_set(&self.cgroup)));
        }
        let pods = self.memory_limit(&self.pods);
        let pods_memory =
            pods.map(|limit| Room { all: limit, left: limit.saturating_sub(self.working_set(&self.pods)) });
        // The fourth field of loadavg is `running/all`, of all tasks.
        let tasks = self
            .text("proc/loadavg")
            .ok()
            .and_then(|text| text.split_whitespace().nth(3)?.split_once('/')?.1.parse::<u64>().ok());
        Ok(Sample {
            memory: Room { all, left: memory_available },
            pods_memory,
            nodefs: fs(node_dir)?,
            imagefs: fs(image_dir)?,
            pids_max: self.pids_max(),
            pids: tasks.unwrap_or_default(),
        })
    }

    /// How many tasks the kernel can hold: the smaller of its two limits; 0 where it tells neither.
    #[must_use]
    pub fn pids_max(&self) -> u64 {
        let number = |path: &str| self.text(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let limits = [number("proc/sys/kernel/pid_max"), number("proc/sys/kernel/threads-max")];
        limits.into_iter().flatten().min().unwrap_or_default()
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    fn text(&self, path: &str) -> Result<String, MachineError> {
        let path = self.at(path);
        std::fs::read_to_string(&path).map_err(|source| MachineError::Read(path, source))
    }

    fn field(&self, meminfo: &str, name: &'static str) -> Result<u64, MachineError> {
        kib(meminfo, name).ok_or_else(|| MachineError::Field(self.at("proc/meminfo"), name))
    }

    /// A file of a cgroup: of version 2 where it is there, else of version 1.
    fn cgroup_value(&self, group: &str, controller: &str, v1: &str, v2: &str) -> Option<String> {
        let base = self.at("sys/fs/cgroup");
        let group = group.trim_start_matches('/');
        let two = base.join(group).join(v2);
        let one = base.join(controller).join(group).join(v1);
        std::fs::read_to_string(two).or_else(|_| std::fs::read_to_string(one)).ok()
    }

    /// The limit of a cgroup; none when it says `max` or a number that stands for it.
    fn memory_limit(&self, group: &str) -> Option<u64> {
        self.cgroup_value(group, "memory", "memory.limit_in_bytes", "memory.max")?.trim().parse().ok()
    }

    /// What a cgroup uses, less the page cache that was not used lately.
    fn working_set(&self, group: &str) -> u64 {
        let used = self.cgroup_value(group, "memory", "memory.usage_in_bytes", "memory.current");
        let stat = self.cgroup_value(group, "memory", "memory.stat", "memory.stat").unwrap_or_default();
        let cache = row(&stat, "total_inactive_file").or_else(|| row(&stat, "inactive_file"));
        let used = used.and_then(|text| text.trim().parse::<u64>().ok()).unwrap_or_default();
        used.saturating_sub(cache.unwrap_or_default())
    }

    fn huge_pages(&self) -> BTreeMap<u64, u64> {
        let mut found = BTreeMap::new();
        let Ok(dir) = std::fs::read_dir(self.at("sys/kernel/mm/hugepages")) else { return found };
        for entry in dir.flatten() {
            let name = entry.file_name();
            let size = name.to_str().and_then(|n| n.strip_prefix("hugepages-")?.strip_suffix("kB"));
            let pages = std::fs::read_to_string(entry.path().join("nr_hugepages"));
            if let (Some(Ok(size)), Ok(pages)) = (size.map(str::parse::<u64>), pages)
                && let Ok(pages) = pages.trim().parse::<u64>()
            {
                found.insert(size * 1024, pages);
            }
        }
        found
    }
}

/// The room of the file system on which `path` lies.
///
/// # Errors
/// [`MachineError::Statfs`].
pub fn fs(path: &Path) -> Result<Fs, MachineError> {
    let stat = nix::sys::statvfs::statvfs(path).map_err(|e| MachineError::Statfs(path.to_owned(), e))?;
    let block = stat.fragment_size();
    Ok(Fs {
        capacity: stat.blocks() * block,
        available: stat.blocks_available() * block,
        inodes: stat.files(),
        inodes_free: stat.files_free(),
    })
}

/// How many numbers a kernel list such as `0-3,8` names.
fn count(list: &str) -> Option<u64> {
    let mut found = 0;
    for part in list.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
        found += last.checked_sub(first)? + 1;
    }
    (found > 0).then_some(found)
}

/// A row of meminfo in bytes.
pub(crate) fn kib(meminfo: &str, name: &str) -> Option<u64> {
    let rest = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A row of `memory.stat`.
pub(crate) fn row(stat: &str, name: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn pretty_name(release: &str) -> String {
    let value = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    value.map_or_else(|| "Linux".to_owned(), |v| v.trim().trim_matches(['"', '\'']).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use podway_systemd::Driver;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    const BASE: &[(&str, &str)] = &[
        ("sys/devices/system/cpu/online", "0-3,6\n"),
        ("proc/meminfo", "MemTotal:  1000 kB\nMemFree: 100 kB\nInactive(file): 50 kB\nSwapTotal: 8 kB\n"),
        ("proc/loadavg", "0.1 0.2 0.3 2/345 999\n"),
        ("proc/sys/kernel/pid_max", "4194304\n"),
        ("proc/sys/kernel/threads-max", "32768\n"),
        ("etc/os-release", "NAME=x\nPRETTY_NAME=\"Debian 12\"\n"),
        ("etc/machine-id", "abc\n"),
        ("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "3\n"),
    ];

    fn layout(root: &str) -> Layout {
        Layout::new(Driver::Cgroupfs, root).unwrap()
    }

    #[test]
    fn the_whole_machine() {
        let dir = tree(BASE);
        let reader = Reader::new(dir.path(), &layout("/"));
        let machine = reader.machine().unwrap();
        assert_eq!((machine.cpus, machine.memory, machine.swap), (5, 1000 * 1024, 8 * 1024));
        assert_eq!((machine.os_image.as_str(), machine.system_uuid.as_str()), ("Debian 12", "abc"));
        assert_eq!(machine.huge_pages, [(2 << 20, 3)].into());
        let sample = reader.sample(dir.path(), dir.path()).unwrap();
        assert_eq!(sample.memory, Room { all: 1000 * 1024, left: 150 * 1024 });
        assert_eq!(sample.pods_memory, None);
        assert_eq!((sample.pids, sample.pids_max), (345, 32768));
        assert!(sample.nodefs.capacity > 0);
    }

    #[test]
    fn a_cgroup_root_bounds_it_in_both_versions() {
        let v1 = [
            ("sys/fs/cgroup/memory/n/memory.limit_in_bytes", "512000"),
            ("sys/fs/cgroup/memory/n/memory.usage_in_bytes", "500000"),
            ("sys/fs/cgroup/memory/n/memory.stat", "cache 7\ntotal_inactive_file 1000\n"),
            ("sys/fs/cgroup/cpuset/n/cpuset.cpus", "0-1"),
            ("sys/fs/cgroup/memory/n/kubepods/memory.limit_in_bytes", "300000"),
            ("sys/fs/cgroup/memory/n/kubepods/memory.usage_in_bytes", "260000"),
            ("sys/fs/cgroup/memory/n/kubepods/memory.stat", "total_inactive_file 10000\n"),
        ];
        let v2 = [
            ("sys/fs/cgroup/n/memory.max", "512000"),
            ("sys/fs/cgroup/n/memory.current", "500000"),
            ("sys/fs/cgroup/n/memory.stat", "inactive_file 1000\n"),
            ("sys/fs/cgroup/n/cpuset.cpus.effective", "2,3"),
            ("sys/fs/cgroup/n/kubepods/memory.max", "300000"),
            ("sys/fs/cgroup/n/kubepods/memory.current", "260000"),
            ("sys/fs/cgroup/n/kubepods/memory.stat", "inactive_file 10000\n"),
        ];
        for files in [v1, v2] {
            let dir = tree(&[BASE, &files].concat());
            let reader = Reader::new(dir.path(), &layout("/n"));
            let machine = reader.machine().unwrap();
            assert_eq!((machine.cpus, machine.memory), (2, 512_000));
            let sample = reader.sample(dir.path(), dir.path()).unwrap();
            assert_eq!(sample.memory, Room { all: 512_000, left: 13_000 });
            assert_eq!(sample.pods_memory, Some(Room { all: 300_000, left: 50_000 }));
        }
    }

    #[test]
    fn lists_of_the_kernel() {
        for (list, n) in [("0", Some(1)), ("0-1\n", Some(2)), ("", None), ("3-1", None), ("x", None)] {
            assert_eq!(count(list), n, "{list:?}");
        }
    }
}
