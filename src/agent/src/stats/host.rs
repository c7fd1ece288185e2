//! The node's own usage, from its cgroups and /proc. Read below a given root, so that the tests read a
//! tree of their own.

use super::types::{Container, Cpu, Interface, Memory, Network, Rlimit, Swap, Time};
use crate::cgroups::layout::Layout;
use crate::node::machine::{kib, row};
use std::path::{Path, PathBuf};

/// Reads the usage of the machine.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
    /// The cgroup of all pods, relative to the hierarchy.
    pods: PathBuf,
}

/// What it read.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// When the machine was booted.
    pub booted: Time,
    /// All processors.
    pub cpu: Option<Cpu>,
    /// All memory.
    pub memory: Option<Memory>,
    /// Swap; none where there is none.
    pub swap: Option<Swap>,
    /// The interfaces.
    pub network: Option<Network>,
    /// Tasks.
    pub rlimit: Option<Rlimit>,
    /// `pods` and `kubelet`.
    pub system: Vec<Container>,
}

impl Host {
    /// The machine at `root`, whose pods are where `layout` has them.
    #[must_use]
    pub fn new(root: &Path, layout: &Layout) -> Self {
        let pods = PathBuf::from(layout.pods().path.trim_start_matches('/'));
        Host { root: root.to_owned(), pods }
    }

    /// Reads all of it at `now`; what cannot be read is not there.
    #[must_use]
    pub fn read(&self, now: jiff::Timestamp) -> Usage {
        let nanos = i64::try_from(now.as_nanosecond()).unwrap_or(i64::MAX);
        let time = Time::nanos(nanos);
        let stat = self.text("proc/stat").unwrap_or_default();
        let booted = stat.lines().find_map(|l| l.strip_prefix("btime ")?.trim().parse::<i64>().ok());
        let whole = self.cgroup(Path::new(""), time, nanos, "");
        let pods = self.cgroup(&self.pods, time, nanos, "pods");
        let meminfo = self.text("proc/meminfo").unwrap_or_default();
        let mut memory = whole.memory.unwrap_or_else(|| meminfo_memory(&meminfo, time, nanos));
        if let Some(total) = kib(&meminfo, "MemTotal") {
            memory.available_bytes = memory.working_set_bytes.map(|used| total.saturating_sub(used));
        }
        let cpu = whole.cpu.or_else(|| {
            proc_cpu(&stat).map(|used| Cpu {
                time,
                nanos,
                usage_core_nano_seconds: Some(used),
                ..Cpu::default()
            })
        });
        let swap = kib(&meminfo, "SwapTotal").filter(|n| *n > 0).map(|total| {
            let free = kib(&meminfo, "SwapFree").unwrap_or(total);
            Swap {
                time,
                nanos,
                swap_available_bytes: Some(free),
                swap_usage_bytes: Some(total.saturating_sub(free)),
            }
        });
        let mut system = Vec::new();
        system.extend(self.agent(time, nanos));
        if pods.cpu.is_some() || pods.memory.is_some() {
            system.push(pods);
        }
        Usage {
            booted: Time::seconds(booted.unwrap_or(0)),
            cpu,
            memory: Some(memory).filter(|m| m.working_set_bytes.is_some()),
            swap,
            network: self.network(time),
            rlimit: self.rlimit(time),
            system,
        }
    }

    fn text(&self, path: impl AsRef<Path>) -> Option<String> {
        std::fs::read_to_string(self.root.join(path)).ok()
    }

    /// A file of a cgroup in version 2, else in version 1.
    fn group(&self, group: &Path, controller: &str, v1: &str, v2: &str) -> Option<String> {
        let base = Path::new("sys/fs/cgroup");
        let two = (!v2.is_empty()).then(|| self.text(base.join(group).join(v2))).flatten();
        two.or_else(|| self.text(base.join(controller).join(group).join(v1)))
    }

    fn cgroup(&self, group: &Path, time: Time, nanos: i64, name: &str) -> Container {
        let cpu = self.group(group, "cpuacct", "cpuacct.usage", "cpu.stat").and_then(|text| {
            match row(&text, "usage_usec") {
                Some(micros) => micros.checked_mul(1000),
                None => text.trim().parse().ok(),
            }
        });
        let stat = self.group(group, "memory", "memory.stat", "memory.stat").unwrap_or_default();
        let used = self.group(group, "memory", "memory.usage_in_bytes", "memory.current");
        let used = used.and_then(|text| text.trim().parse::<u64>().ok());
        let any = |names: [&str; 2]| names.iter().find_map(|name| row(&stat, name));
        let memory = used.map(|used| Memory {
            time,
            nanos,
            usage_bytes: Some(used),
            working_set_bytes: Some(
                used.saturating_sub(any(["total_inactive_file", "inactive_file"]).unwrap_or(0)),
            ),
            rss_bytes: any(["total_rss", "anon"]),
            page_faults: any(["total_pgfault", "pgfault"]),
            major_page_faults: any(["total_pgmajfault", "pgmajfault"]),
            ..Memory::default()
        });
        let cpu = cpu.map(|used| Cpu { time, nanos, usage_core_nano_seconds: Some(used), ..Cpu::default() });
        Container { name: name.to_owned(), cpu, memory, ..Container::default() }
    }

    /// The agent itself, under the name that dashboards have for the kubelet.
    fn agent(&self, time: Time, nanos: i64) -> Option<Container> {
        let stat = self.text("proc/self/stat")?;
        // After the name, which is in brackets and may hold anything.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
        // In proc(5)'s count utime is 14, stime 15 and rss 24; the first here is 3.
        let ticks = number(11)? + number(12)?;
        let rss = number(21)? * 4096;
        Some(Container {
            name: "kubelet".to_owned(),
            cpu: Some(Cpu {
                time,
                nanos,
                usage_core_nano_seconds: Some(ticks * 10_000_000),
                ..Cpu::default()
            }),
            memory: Some(Memory {
                time,
                nanos,
                usage_bytes: Some(rss),
                working_set_bytes: Some(rss),
                rss_bytes: Some(rss),
                ..Memory::default()
            }),
            ..Container::default()
        })
    }

    fn network(&self, time: Time) -> Option<Network> {
        let dev = self.text("proc/net/dev")?;
        let mut interfaces: Vec<Interface> = dev.lines().skip(2).filter_map(interface).collect();
        interfaces.retain(|i| i.name != "lo" && !i.name.starts_with("veth"));
        let route = self.text("proc/net/route").unwrap_or_default();
        let default = route.lines().skip(1).find_map(|line| {
            let mut fields = line.split_whitespace();
            let name = fields.next()?;
            (fields.next()? == "00000000").then(|| name.to_owned())
        });
        let default = default.and_then(|name| interfaces.iter().find(|i| i.name == name).cloned());
        Some(Network { time, default: default.or_else(|| interfaces.first().cloned())?, interfaces })
    }

    fn rlimit(&self, time: Time) -> Option<Rlimit> {
        let most = self.text("proc/sys/kernel/pid_max")?.trim().parse().ok()?;
        let loadavg = self.text("proc/loadavg")?;
        let now = loadavg.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
        Some(Rlimit { time, maxpid: most, curproc: now })
    }
}

/// All processors' time but idle and waiting, in nanoseconds.
fn proc_cpu(stat: &str) -> Option<u64> {
    let rest = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = rest.split_whitespace().map_while(|f| f.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal
    let used: u64 =
        fields.iter().take(8).enumerate().filter(|(at, _)| !matches!(at, 3 | 4)).map(|(_, n)| n).sum();
    used.checked_mul(10_000_000)
}

fn meminfo_memory(meminfo: &str, time: Time, nanos: i64) -> Memory {
    let row = |name| kib(meminfo, name);
    let used = row("MemTotal").zip(row("MemFree")).map(|(all, free)| all.saturating_sub(free));
    Memory {
        time,
        nanos,
        usage_bytes: used,
        working_set_bytes: used.map(|n| n.saturating_sub(row("Inactive(file)").unwrap_or(0))),
        rss_bytes: row("AnonPages"),
        ..Memory::default()
    }
}

fn interface(line: &str) -> Option<Interface> {
    let (name, rest) = line.split_once(':')?;
    let fields: Vec<u64> = rest.split_whitespace().map_while(|f| f.parse().ok()).collect();
    Some(Interface {
        name: name.trim().to_owned(),
        rx_bytes: fields.first().copied(),
        rx_errors: fields.get(2).copied(),
        tx_bytes: fields.get(8).copied(),
        tx_errors: fields.get(10).copied(),
    })
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

    const PROC: &[(&str, &str)] = &[
        ("proc/stat", "cpu  10 0 20 1000 5 1 1 0 7 0\ncpu0 1 1 1\nbtime 1700000000\n"),
        (
            "proc/meminfo",
            "MemTotal: 1000 kB\nMemFree: 100 kB\nInactive(file): 50 kB\nSwapTotal: 8 kB\nSwapFree: 6 kB\n",
        ),
        ("proc/loadavg", "0.1 0.2 0.3 2/345 999\n"),
        ("proc/sys/kernel/pid_max", "32768\n"),
        ("proc/self/stat", "7 (a ) b) S 1 1 1 0 -1 0 0 0 0 0 3 4 0 0 20 0 1 0 5 1000 9 0\n"),
        (
            "proc/net/dev",
            "h\nh\n  lo: 9 9 9 0 0 0 0 0 9 9 9\neth0: 100 1 2 0 0 0 0 0 200 1 3 0\nveth1: 1 1 1 0 0 0 0 0 1 1 1\n",
        ),
        ("proc/net/route", "Iface Destination\neth0\t00000000\t0\n"),
    ];

    #[test]
    fn a_machine_of_either_cgroup_version_and_of_none() {
        let v1: &[(&str, &str)] = &[
            ("sys/fs/cgroup/cpuacct/cpuacct.usage", "5000000000\n"),
            ("sys/fs/cgroup/memory/memory.usage_in_bytes", "600000\n"),
            ("sys/fs/cgroup/memory/memory.stat", "cache 1\ntotal_inactive_file 100000\ntotal_rss 4096\n"),
            ("sys/fs/cgroup/cpuacct/kubepods/cpuacct.usage", "7\n"),
            ("sys/fs/cgroup/memory/kubepods/memory.usage_in_bytes", "70\n"),
        ];
        // The root of version 2 has no memory.current.
        let v2: &[(&str, &str)] = &[
            ("sys/fs/cgroup/cpu.stat", "usage_usec 5000000\nuser_usec 1\n"),
            ("sys/fs/cgroup/kubepods/cpu.stat", "usage_usec 7\n"),
            ("sys/fs/cgroup/kubepods/memory.current", "70\n"),
            ("sys/fs/cgroup/kubepods/memory.stat", "inactive_file 30\nanon 5\n"),
        ];
        let (of_cgroup, of_proc) = (500_000, (1000 - 100 - 50) * 1024);
        for (files, cpu, working) in
            [(v1, 5_000_000_000, of_cgroup), (v2, 5_000_000_000, of_proc), (&[], 320_000_000, of_proc)]
        {
            let dir = tree(&[PROC, files].concat());
            let usage = Host::new(dir.path(), &Layout::new(Driver::Cgroupfs, "/").unwrap())
                .read(jiff::Timestamp::from_second(1_700_000_100).unwrap());
            assert_eq!(usage.cpu.unwrap().usage_core_nano_seconds, Some(cpu));
            let memory = usage.memory.unwrap();
            assert_eq!(memory.working_set_bytes, Some(working));
            assert_eq!(memory.available_bytes, Some(1_024_000 - working));
            assert_eq!(usage.swap.unwrap().swap_usage_bytes, Some(2048));
            assert_eq!(usage.booted, Time::seconds(1_700_000_000));
            let network = usage.network.unwrap();
            assert_eq!((network.default.name.as_str(), network.interfaces.len()), ("eth0", 1));
            assert_eq!((network.default.rx_errors, network.default.tx_bytes), (Some(2), Some(200)));
            assert_eq!(usage.rlimit.map(|r| (r.curproc, r.maxpid)), Some((345, 32768)));
            let names: Vec<&str> = usage.system.iter().map(|c| c.name.as_str()).collect();
            assert_eq!(names, if files.is_empty() { vec!["kubelet"] } else { vec!["kubelet", "pods"] });
            assert_eq!(usage.system[0].memory.unwrap().rss_bytes, Some(9 * 4096));
            assert_eq!(usage.system[0].cpu.unwrap().usage_core_nano_seconds, Some(70_000_000));
        }
    }
}
