//! What a cgroup uses, read from the kernel's files: one reader for v1 and v2.
//!
//! Statistics over CRI and the cAdvisor-named metrics are both made from a [`Usage`], so they cannot
//! disagree. A file that is not there (a controller that is not mounted, an older kernel) is a value
//! that is not known; it is never a zero that the kernel did not say.

use super::{Cgroups, Version};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What a cgroup uses.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Usage {
    /// Processor time.
    pub cpu: Option<Cpu>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Tasks.
    pub pids: Option<Pids>,
    /// Block devices, by number.
    pub devices: Vec<Device>,
    /// Stalls on input and output; v2 only.
    pub io_pressure: Option<Pressure>,
    /// Huge pages by size.
    pub hugetlb: Vec<Hugetlb>,
}

/// Processor time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cpu {
    /// All of it, in ns.
    pub total_ns: u64,
    /// In user mode, in ns.
    pub user_ns: u64,
    /// In the kernel, in ns.
    pub system_ns: u64,
    /// Enforcement periods that passed.
    pub periods: u64,
    /// Those of them in which it was throttled.
    pub throttled_periods: u64,
    /// How long it was throttled, in ns.
    pub throttled_ns: u64,
    /// `cpu.shares`; of v2 the shares whose weight this is.
    pub shares: u64,
    /// µs per period that it may run; `None` for no quota.
    pub quota_us: Option<u64>,
    /// The period in µs.
    pub period_us: u64,
    /// Stalls; v2 only.
    pub pressure: Option<Pressure>,
}

/// Memory, in bytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    /// All that is charged.
    pub usage: u64,
    /// The most that ever was.
    pub peak: u64,
    /// `None` for no limit.
    pub limit: Option<u64>,
    /// What is kept for it: v1's soft limit, v2's `memory.min`.
    pub reservation: Option<u64>,
    /// Page cache.
    pub cache: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// Mapped files.
    pub mapped_file: u64,
    /// The kernel's, on its behalf.
    pub kernel: u64,
    /// File pages that may go at once.
    pub inactive_file: u64,
    /// File pages in use.
    pub active_file: u64,
    /// In swap.
    pub swap: u64,
    /// How much may be in swap; `None` for no limit.
    pub swap_limit: Option<u64>,
    /// Page faults.
    pub faults: u64,
    /// Page faults that read from a disk.
    pub major_faults: u64,
    /// How often the limit was hit.
    pub limit_hits: u64,
    /// Processes killed for want of memory.
    pub oom_kills: u64,
    /// Stalls; v2 only.
    pub pressure: Option<Pressure>,
}

impl Memory {
    /// What cannot be given up at once, as the kubelet and cAdvisor reckon it.
    #[must_use]
    pub fn working_set(&self) -> u64 {
        self.usage.saturating_sub(self.inactive_file)
    }
}

/// Tasks: processes and threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pids {
    /// How many there are.
    pub current: u64,
    /// How many there may be; `None` for no limit.
    pub limit: Option<u64>,
}

/// What went to and from a block device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its number.
    pub major: u32,
    /// Its number.
    pub minor: u32,
    /// Bytes and operations.
    pub read: Transfer,
    /// Bytes and operations.
    pub write: Transfer,
    /// Bytes and operations.
    pub discard: Transfer,
}

/// Bytes and operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    /// Bytes.
    pub bytes: u64,
    /// Operations.
    pub operations: u64,
}

/// Huge pages of one size.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hugetlb {
    /// As the kernel writes it, e.g. `2MB`.
    pub page_size: String,
    /// Bytes.
    pub usage: u64,
    /// The most that ever was; not known on v2.
    pub peak: Option<u64>,
}

/// Pressure stall information.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Pressure {
    /// Some tasks waited.
    pub some: Stall,
    /// No task went on.
    pub full: Stall,
}

/// One line of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Stall {
    /// µs in all.
    pub total_us: u64,
    /// Per cent of the last 10 s.
    pub avg10: f64,
    /// Per cent of the last 60 s.
    pub avg60: f64,
    /// Per cent of the last 300 s.
    pub avg300: f64,
}

/// v1 writes "no limit" as the largest whole number of pages; cAdvisor takes what is above this for it.
const UNLIMITED: u64 = 1 << 62;

/// Reads files of one cgroup.
struct Files<'a> {
    cgroups: &'a Cgroups,
    path: &'a str,
}

impl Files<'_> {
    fn dir(&self, controller: &str) -> PathBuf {
        self.cgroups.dir(controller, self.path)
    }

    fn text(&self, controller: &str, file: &str) -> Option<String> {
        std::fs::read_to_string(self.dir(controller).join(file)).ok()
    }

    fn number(&self, controller: &str, file: &str) -> Option<u64> {
        self.text(controller, file)?.trim().parse().ok()
    }

    /// A limit: `max`, a negative number and v1's largest one are none.
    fn limit(&self, controller: &str, file: &str) -> Option<u64> {
        self.number(controller, file).filter(|n| *n < UNLIMITED)
    }

    fn pairs(&self, controller: &str, file: &str) -> BTreeMap<String, u64> {
        pairs(&self.text(controller, file).unwrap_or_default())
    }

    fn pressure(&self, file: &str) -> Option<Pressure> {
        pressure(&self.text("", file)?)
    }
}

/// `key value` lines.
fn pairs(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        Some((key.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

fn pressure(text: &str) -> Option<Pressure> {
    let mut pressure = Pressure::default();
    for line in text.lines() {
        let (kind, rest) = line.split_once(' ')?;
        let stall = match kind {
            "some" => &mut pressure.some,
            "full" => &mut pressure.full,
            _ => continue,
        };
        for (key, value) in rest.split(' ').filter_map(|p| p.split_once('=')) {
            match key {
                "avg10" => stall.avg10 = value.parse().ok()?,
                "avg60" => stall.avg60 = value.parse().ok()?,
                "avg300" => stall.avg300 = value.parse().ok()?,
                "total" => stall.total_us = value.trim().parse().ok()?,
                _ => {}
            }
        }
    }
    Some(pressure)
}

/// The shares that runc makes `weight` of: the inverse of its log-quadratic formula (opencontainers/cgroups
/// utils.go, ConvertCPUSharesToCgroupV2Value), which has 1024 ↔ 100.
fn shares(weight: u64) -> u64 {
    if weight <= 1 {
        return 2;
    }
    let y = (weight as f64).log10() + 7.0 / 34.0;
    let l = (-125.0 + (125.0f64.powi(2) + 4.0 * 612.0 * y).sqrt()) / 2.0;
    (l.exp2().round() as u64).clamp(2, 262_144)
}

impl Cgroups {
    /// What the cgroup `path` uses; empty when it is gone. Blocks, for the kernel may have to add up
    /// what each processor counted.
    #[must_use]
    pub fn usage(&self, path: &str) -> Usage {
        let files = Files { cgroups: self, path };
        match self.version() {
            Version::V1 => Usage {
                cpu: cpu_v1(&files),
                memory: memory_v1(&files),
                pids: pids(&files),
                devices: devices_v1(&files),
                io_pressure: None,
                hugetlb: hugetlb(&files.dir("hugetlb"), ".usage_in_bytes", Some(".max_usage_in_bytes")),
            },
            Version::V2 => Usage {
                cpu: cpu_v2(&files),
                memory: memory_v2(&files),
                pids: pids(&files),
                devices: devices_v2(&files),
                io_pressure: files.pressure("io.pressure"),
                hugetlb: hugetlb(&files.dir(""), ".current", None),
            },
        }
    }
}

fn cpu_v1(files: &Files<'_>) -> Option<Cpu> {
    let stat = files.pairs("cpu", "cpu.stat");
    let of = |key: &str| stat.get(key).copied().unwrap_or(0);
    Some(Cpu {
        total_ns: files.number("cpuacct", "cpuacct.usage")?,
        user_ns: files.number("cpuacct", "cpuacct.usage_user").unwrap_or(0),
        system_ns: files.number("cpuacct", "cpuacct.usage_sys").unwrap_or(0),
        periods: of("nr_periods"),
        throttled_periods: of("nr_throttled"),
        throttled_ns: of("throttled_time"),
        shares: files.number("cpu", "cpu.shares").unwrap_or(0),
        quota_us: files.limit("cpu", "cpu.cfs_quota_us"),
        period_us: files.number("cpu", "cpu.cfs_period_us").unwrap_or(0),
        pressure: None,
    })
}

fn cpu_v2(files: &Files<'_>) -> Option<Cpu> {
    let stat = files.pairs("", "cpu.stat");
    let of = |key: &str| stat.get(key).copied().unwrap_or(0);
    let max = files.text("", "cpu.max").unwrap_or_default();
    let (quota, period) = max.trim().split_once(' ').unwrap_or_default();
    Some(Cpu {
        total_ns: stat.get("usage_usec")?.saturating_mul(1000),
        user_ns: of("user_usec").saturating_mul(1000),
        system_ns: of("system_usec").saturating_mul(1000),
        periods: of("nr_periods"),
        throttled_periods: of("nr_throttled"),
        throttled_ns: of("throttled_usec").saturating_mul(1000),
        shares: files.number("", "cpu.weight").map_or(0, shares),
        quota_us: quota.parse().ok(),
        period_us: period.parse().unwrap_or(0),
        pressure: files.pressure("cpu.pressure"),
    })
}

fn memory_v1(files: &Files<'_>) -> Option<Memory> {
    let usage = files.number("memory", "memory.usage_in_bytes")?;
    let stat = files.pairs("memory", "memory.stat");
    let of = |key: &str| stat.get(key).copied().unwrap_or(0);
    let limit = files.limit("memory", "memory.limit_in_bytes");
    // memsw counts memory and swap together.
    let with_swap = files.limit("memory", "memory.memsw.limit_in_bytes");
    Some(Memory {
        usage,
        peak: files.number("memory", "memory.max_usage_in_bytes").unwrap_or(usage),
        limit,
        reservation: files.limit("memory", "memory.soft_limit_in_bytes"),
        cache: of("total_cache"),
        rss: of("total_rss"),
        mapped_file: of("total_mapped_file"),
        kernel: files.number("memory", "memory.kmem.usage_in_bytes").unwrap_or(0),
        inactive_file: of("total_inactive_file"),
        active_file: of("total_active_file"),
        swap: of("total_swap"),
        swap_limit: with_swap.map(|both| both.saturating_sub(limit.unwrap_or(0))),
        faults: of("total_pgfault"),
        major_faults: of("total_pgmajfault"),
        limit_hits: files.number("memory", "memory.failcnt").unwrap_or(0),
        oom_kills: files.pairs("memory", "memory.oom_control").get("oom_kill").copied().unwrap_or(0),
        pressure: None,
    })
}

fn memory_v2(files: &Files<'_>) -> Option<Memory> {
    let usage = files.number("", "memory.current")?;
    let stat = files.pairs("", "memory.stat");
    let of = |key: &str| stat.get(key).copied().unwrap_or(0);
    let events = files.pairs("", "memory.events");
    let event = |key: &str| events.get(key).copied().unwrap_or(0);
    Some(Memory {
        usage,
        peak: files.number("", "memory.peak").unwrap_or(usage),
        limit: files.limit("", "memory.max"),
        reservation: files.limit("", "memory.min"),
        cache: of("file"),
        rss: of("anon"),
        mapped_file: of("file_mapped"),
        // "kernel" since Linux 5.18; before that its parts.
        kernel: stat.get("kernel").copied().unwrap_or_else(|| of("slab") + of("kernel_stack")),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        swap: files.number("", "memory.swap.current").unwrap_or(0),
        swap_limit: files.limit("", "memory.swap.max"),
        faults: of("pgfault"),
        major_faults: of("pgmajfault"),
        limit_hits: event("max"),
        oom_kills: event("oom_kill"),
        pressure: files.pressure("memory.pressure"),
    })
}

fn pids(files: &Files<'_>) -> Option<Pids> {
    Some(Pids { current: files.number("pids", "pids.current")?, limit: files.limit("pids", "pids.max") })
}

fn number_of(device: &str) -> Option<(u32, u32)> {
    let (major, minor) = device.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// BFQ counts only what it schedules, the throttle layer everything: the first that has lines, as
/// libcontainer has it.
fn devices_v1(files: &Files<'_>) -> Vec<Device> {
    let mut devices: BTreeMap<(u32, u32), Device> = BTreeMap::new();
    for (kind, operations) in [("io_service_bytes", false), ("io_serviced", true)] {
        let read = |layer: &str| files.text("blkio", &format!("blkio.{layer}.{kind}_recursive"));
        let counts = |text: &String| text.lines().any(|l| l.contains(':'));
        let Some(text) = read("bfq").filter(counts).or_else(|| read("throttle")) else { continue };
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let [number, operation, value] = words[..] else { continue };
            let (Some((major, minor)), Ok(value)) = (number_of(number), value.parse::<u64>()) else {
                continue;
            };
            let device =
                devices.entry((major, minor)).or_insert(Device { major, minor, ..Device::default() });
            let transfer = match operation {
                "Read" => &mut device.read,
                "Write" => &mut device.write,
                "Discard" => &mut device.discard,
                _ => continue, // Sync, Async and Total are the same bytes again
            };
            *(if operations { &mut transfer.operations } else { &mut transfer.bytes }) = value;
        }
    }
    devices.into_values().collect()
}

fn devices_v2(files: &Files<'_>) -> Vec<Device> {
    let text = files.text("", "io.stat").unwrap_or_default();
    let device = |line: &str| {
        let (number, rest) = line.split_once(' ')?;
        let (major, minor) = number_of(number)?;
        let mut device = Device { major, minor, ..Device::default() };
        for (key, value) in rest.split(' ').filter_map(|p| p.split_once('=')) {
            let value = value.trim().parse().ok()?;
            match key {
                "rbytes" => device.read.bytes = value,
                "rios" => device.read.operations = value,
                "wbytes" => device.write.bytes = value,
                "wios" => device.write.operations = value,
                "dbytes" => device.discard.bytes = value,
                "dios" => device.discard.operations = value,
                _ => {}
            }
        }
        Some(device)
    };
    text.lines().filter_map(device).collect()
}

/// `hugetlb.<size><suffix>` files of a directory.
fn hugetlb(dir: &Path, suffix: &str, peak: Option<&str>) -> Vec<Hugetlb> {
    let number =
        |file: String| -> Option<u64> { std::fs::read_to_string(dir.join(file)).ok()?.trim().parse().ok() };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let size = name.strip_prefix("hugetlb.").and_then(|n| n.strip_suffix(suffix));
        let Some(size) = size.filter(|s| !s.contains('.')) else { continue };
        let Some(usage) = number(name.clone()) else { continue };
        let peak = peak.and_then(|p| number(format!("hugetlb.{size}{p}")));
        found.push(Hugetlb { page_size: size.to_owned(), usage, peak });
    }
    found.sort_by(|a, b| a.page_size.cmp(&b.page_size));
    found
}

#[cfg(test)]
mod tests;
