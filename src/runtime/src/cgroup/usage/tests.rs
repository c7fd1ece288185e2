//! Trees as kernels write them, and the machine's own.

use super::*;

fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
    let tmp = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = tmp.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    tmp
}

const STALL: &str = "some avg10=1.50 avg60=0.25 avg300=0.10 total=2500000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\n";

#[test]
fn a_v2_tree_is_read_whole() {
    let tmp = tree(&[
        ("cgroup.controllers", "cpu memory pids io hugetlb\n"),
        (
            "pod/c/cpu.stat",
            "usage_usec 1500000\nuser_usec 1000000\nsystem_usec 500000\nnr_periods 10\nnr_throttled 4\nthrottled_usec 70\n",
        ),
        ("pod/c/cpu.max", "50000 100000\n"),
        ("pod/c/cpu.weight", "100\n"),
        ("pod/c/cpu.pressure", STALL),
        ("pod/c/memory.current", "9000\n"),
        ("pod/c/memory.peak", "12000\n"),
        ("pod/c/memory.max", "65536\n"),
        ("pod/c/memory.min", "0\n"),
        ("pod/c/memory.swap.current", "300\n"),
        ("pod/c/memory.swap.max", "max\n"),
        ("pod/c/memory.events", "low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\n"),
        (
            "pod/c/memory.stat",
            "anon 4000\nfile 3000\nkernel 1000\nfile_mapped 500\ninactive_file 2000\nactive_file 900\npgfault 77\npgmajfault 3\n",
        ),
        ("pod/c/pids.current", "3\n"),
        ("pod/c/pids.max", "max\n"),
        ("pod/c/io.stat", "254:0 rbytes=100 wbytes=200 rios=1 wios=2 dbytes=5 dios=1\n7:0 rbytes=8 rios=1\n"),
        ("pod/c/io.pressure", STALL),
        ("pod/c/hugetlb.2MB.current", "4194304\n"),
        ("pod/c/hugetlb.2MB.rsvd.current", "1\n"),
    ]);
    let usage = Cgroups::at(tmp.path()).usage("/pod/c");
    let cpu = usage.cpu.unwrap();
    assert_eq!((cpu.total_ns, cpu.user_ns, cpu.system_ns), (1_500_000_000, 1_000_000_000, 500_000_000));
    assert_eq!((cpu.periods, cpu.throttled_periods, cpu.throttled_ns), (10, 4, 70_000));
    assert_eq!((cpu.shares, cpu.quota_us, cpu.period_us), (1024, Some(50_000), 100_000));
    let stall = cpu.pressure.unwrap();
    assert_eq!((stall.some.total_us, stall.full.total_us, stall.some.avg10), (2_500_000, 1_000_000, 1.5));
    let memory = usage.memory.unwrap();
    assert_eq!(
        (memory.usage, memory.peak, memory.limit, memory.reservation),
        (9000, 12_000, Some(65_536), Some(0))
    );
    assert_eq!((memory.working_set(), memory.rss, memory.cache, memory.kernel), (7000, 4000, 3000, 1000));
    assert_eq!(
        (memory.mapped_file, memory.active_file, memory.swap, memory.swap_limit),
        (500, 900, 300, None)
    );
    assert_eq!((memory.faults, memory.major_faults, memory.limit_hits, memory.oom_kills), (77, 3, 7, 1));
    assert!(memory.pressure.is_none(), "a kernel without it says nothing");
    assert_eq!(usage.pids, Some(Pids { current: 3, limit: None }));
    let transfer = |bytes, operations| Transfer { bytes, operations };
    let disk = Device {
        major: 254,
        minor: 0,
        read: transfer(100, 1),
        write: transfer(200, 2),
        discard: transfer(5, 1),
    };
    assert_eq!(usage.devices[0], disk);
    assert_eq!(usage.devices[1].read, transfer(8, 1));
    assert!(usage.io_pressure.is_some());
    let pages = Hugetlb { page_size: "2MB".to_owned(), usage: 4_194_304, peak: None };
    assert_eq!(usage.hugetlb, [pages]);
}

#[test]
fn a_v1_tree_is_read_whole() {
    let tmp = tree(&[
        ("cpuacct/pod/c/cpuacct.usage", "1500\n"),
        ("cpuacct/pod/c/cpuacct.usage_user", "1000\n"),
        ("cpuacct/pod/c/cpuacct.usage_sys", "500\n"),
        ("cpu/pod/c/cpu.stat", "nr_periods 10\nnr_throttled 4\nthrottled_time 70\n"),
        ("cpu/pod/c/cpu.shares", "512\n"),
        ("cpu/pod/c/cpu.cfs_quota_us", "-1\n"),
        ("cpu/pod/c/cpu.cfs_period_us", "100000\n"),
        ("memory/pod/c/memory.usage_in_bytes", "9000\n"),
        ("memory/pod/c/memory.max_usage_in_bytes", "12000\n"),
        ("memory/pod/c/memory.limit_in_bytes", "65536\n"),
        ("memory/pod/c/memory.memsw.limit_in_bytes", "98304\n"),
        ("memory/pod/c/memory.soft_limit_in_bytes", "9223372036854771712\n"),
        ("memory/pod/c/memory.failcnt", "7\n"),
        ("memory/pod/c/memory.kmem.usage_in_bytes", "1000\n"),
        ("memory/pod/c/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
        (
            "memory/pod/c/memory.stat",
            "cache 1\ntotal_cache 3000\ntotal_rss 4000\ntotal_mapped_file 500\ntotal_inactive_file 2000\ntotal_active_file 900\ntotal_swap 300\ntotal_pgfault 77\ntotal_pgmajfault 3\n",
        ),
        ("pids/pod/c/pids.current", "3\n"),
        ("pids/pod/c/pids.max", "100\n"),
        ("blkio/pod/c/blkio.bfq.io_service_bytes_recursive", "Total 0\n"),
        (
            "blkio/pod/c/blkio.throttle.io_service_bytes_recursive",
            "254:0 Read 100\n254:0 Write 200\n254:0 Sync 300\n254:0 Total 300\nTotal 300\n",
        ),
        ("blkio/pod/c/blkio.throttle.io_serviced_recursive", "254:0 Read 1\n254:0 Write 2\nTotal 3\n"),
        ("hugetlb/pod/c/hugetlb.2MB.usage_in_bytes", "0\n"),
        ("hugetlb/pod/c/hugetlb.2MB.max_usage_in_bytes", "4194304\n"),
        ("hugetlb/pod/c/hugetlb.2MB.rsvd.usage_in_bytes", "1\n"),
    ]);
    let usage = Cgroups::at(tmp.path()).usage("/pod/c");
    let cpu = usage.cpu.unwrap();
    assert_eq!((cpu.total_ns, cpu.user_ns, cpu.system_ns, cpu.throttled_ns), (1500, 1000, 500, 70));
    assert_eq!((cpu.shares, cpu.quota_us, cpu.period_us), (512, None, 100_000));
    let memory = usage.memory.unwrap();
    assert_eq!((memory.working_set(), memory.limit, memory.reservation), (7000, Some(65_536), None));
    assert_eq!((memory.cache, memory.rss, memory.swap, memory.swap_limit), (3000, 4000, 300, Some(32_768)));
    assert_eq!((memory.faults, memory.major_faults, memory.limit_hits, memory.oom_kills), (77, 3, 7, 2));
    assert_eq!(usage.pids, Some(Pids { current: 3, limit: Some(100) }));
    let device = usage.devices[0];
    assert_eq!((device.major, device.read.bytes, device.write.bytes), (254, 100, 200));
    assert_eq!((device.read.operations, device.write.operations), (1, 2));
    let pages = Hugetlb { page_size: "2MB".to_owned(), usage: 0, peak: Some(4_194_304) };
    assert_eq!(usage.hugetlb, [pages]);
}

#[test]
fn a_cgroup_that_is_gone_uses_nothing_that_is_known() {
    let tmp = tree(&[("cgroup.controllers", "")]);
    assert_eq!(Cgroups::at(tmp.path()).usage("/no/such"), Usage::default());
    assert_eq!(Cgroups::at(Path::new("/sys/fs/cgroup")).usage("/no/such/cgroup"), Usage::default());
}

#[test]
fn shares_survive_the_way_through_a_weight() {
    // Pairs of runc's formula (opencontainers/cgroups utils_test.go).
    for (weight, want) in [(1, 2), (100, 1024), (10_000, 262_144)] {
        assert_eq!(shares(weight), want, "weight {weight}");
    }
}

/// The machine's own tree, whichever version it has: this process uses processor time and memory.
#[test]
fn the_machines_own_tree_is_read() {
    let cgroups = Cgroups::at(Path::new("/sys/fs/cgroup"));
    let text = std::fs::read_to_string("/proc/self/cgroup").unwrap();
    let of = |controller: &str| {
        text.lines().find_map(|l| {
            let mut parts = l.splitn(3, ':');
            let names = parts.nth(1)?;
            let ours = names.is_empty() && cgroups.version() == Version::V2;
            (ours || names.split(',').any(|n| n == controller))
                .then(|| parts.next().unwrap_or("/").to_owned())
        })
    };
    let Some(cpu) = of("cpuacct").and_then(|p| cgroups.usage(&p).cpu) else { return };
    assert!(cpu.total_ns > 0);
    if let Some(memory) = of("memory").and_then(|p| cgroups.usage(&p).memory) {
        assert!(memory.usage > 0 && memory.working_set() <= memory.usage);
    }
}
