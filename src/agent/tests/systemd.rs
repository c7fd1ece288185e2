//! The pods' cgroups with the driver systemd, on a real systemd: booted in a container ([`booted`]), where this
//! executable runs once more as a service.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

#[path = "../../runtime/tests/support/booted.rs"]
mod booted;

use futures::StreamExt as _;
use podway_agent::cgroups::layout::Layout;
use podway_agent::cgroups::{Cgroups, PodLimits};
use podway_agent::node::allocatable::PodsLimits;
use podway_systemd::Driver;
use podway_systemd::logind::Logind;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

fn systemctl(args: &[&str]) -> String {
    run("systemctl", args)
}

/// Runs a program of systemd's; what it printed.
fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// One property of a unit.
fn property(unit: &str, name: &str) -> String {
    systemctl(&["show", "--value", "--property", name, "--", unit]).trim().to_owned()
}

/// Both: the one that boots it, and the one that is run inside.
#[test]
fn on_a_real_systemd() {
    if std::env::var_os(booted::INSIDE).is_some() {
        let threads = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        threads.block_on(async {
            slices_of_a_pod().await;
            a_shutdown_waits().await;
        });
        return;
    }
    match booted::run(&["--exact", "on_a_real_systemd", "--nocapture"], &[], &[]) {
        Ok(said) => println!("{said}"),
        Err(error) => panic!("{error}"),
    }
}

/// Ends what was booted, by a way out of its own: its success is this test's. Does not return.
async fn a_shutdown_waits() {
    let logind = Logind::connect().await.unwrap();
    let allowed = logind.delay().await.unwrap();
    let wanted = allowed + Duration::from_secs(60);
    logind.allow(wanted, Path::new("/")).await.unwrap();
    assert_eq!(logind.delay().await.unwrap(), wanted);
    let _lock = logind.inhibit("podway", "test").await.unwrap();
    let listed = run("systemd-inhibit", &["--list"]);
    assert!(listed.contains("podway") && listed.contains("delay"), "{listed}");
    let mut shutdowns = std::pin::pin!(logind.shutdowns().await.unwrap());
    // Goes to logind, as whoever presses the button does.
    systemctl(&["--no-wall", "poweroff"]);
    let told = tokio::time::timeout(Duration::from_secs(20), shutdowns.next()).await.unwrap();
    assert_eq!(told, Some(true));
    assert_eq!(property("poweroff.target", "ActiveState"), "inactive", "the machine waits for us");
    println!("a shutdown of the machine waited for the lock");
    // The lock is held until there is nothing left to shut down.
    systemctl(&["--force", "--force", "exit", &booted::SUCCESS.to_string()]);
    std::future::pending().await
}

async fn slices_of_a_pod() {
    const POD: &str = "kubepods-burstable-podaa_bb.slice";
    let mount = Path::new("/sys/fs/cgroup");
    let layout = Layout::new(Driver::Systemd, "/").unwrap();
    let cgroups = Cgroups::new(mount, layout.clone()).with_pod_pids(Some(321));
    let v2 = cgroups.version() == 2;
    let path = cgroups.pod_path("Burstable", "aa-bb").unwrap();
    assert_eq!(path, format!("/kubepods.slice/kubepods-burstable.slice/{POD}"));
    let read = |controller: &str, path: &str, v1: &str, v2_file: &str| {
        let relative = path.trim_start_matches('/');
        let (dir, file) = if v2 { (mount.to_owned(), v2_file) } else { (mount.join(controller), v1) };
        std::fs::read_to_string(dir.join(relative).join(file)).unwrap().trim().to_owned()
    };
    let memory = |path: &str| read("memory", path, "memory.limit_in_bytes", "memory.max");
    let quota = || read("cpu", &path, "cpu.cfs_quota_us", "cpu.max");
    let active = |unit: &str| property(unit, "ActiveState");

    cgroups.prepare(1500).await.unwrap();
    let node = PodsLimits { milli_cpu: 1500, memory: 256 << 20, pids: Some(5000) };
    cgroups.enforce(node).await.unwrap();
    for unit in ["kubepods.slice", "kubepods-burstable.slice", "kubepods-besteffort.slice"] {
        assert_eq!(active(unit), "active", "{unit}");
    }
    let limits = PodLimits { cpu_shares: 512, cpu_quota: Some(50_000), memory: Some(64 << 20) };
    cgroups.make("Burstable", "aa-bb", limits).await.unwrap();
    cgroups.make("Burstable", "aa-bb", limits).await.unwrap();
    assert_eq!((cgroups.uids(), active(POD).as_str()), (vec!["aa-bb".to_owned()], "active"));
    assert_eq!(property(POD, "CPUQuotaPerSecUSec"), "500ms");
    assert_eq!(property(POD, "TasksMax"), "321");
    let pids = || read("pids", &path, "pids.max", "pids.max");
    let held = || (memory("/kubepods.slice"), memory(&path), quota(), pids());
    let set = held();
    assert_eq!((set.0.as_str(), set.1.as_str(), set.3.as_str()), ("268435456", "67108864", "321"));
    assert!(set.2.starts_with("50000"), "{}", set.2);
    assert_eq!(read("pids", "/kubepods.slice", "pids.max", "pids.max"), "5000");
    // It is systemd's own as well: what it was not told of it would undo.
    systemctl(&["daemon-reload"]);
    assert_eq!(held(), set);

    let other = PodLimits { cpu_shares: 1024, cpu_quota: None, memory: Some(128 << 20) };
    cgroups.widen("Burstable", "aa-bb", other).await.unwrap();
    assert_eq!(memory(&path), "134217728");
    cgroups.resize("Burstable", "aa-bb", other).await.unwrap();
    assert_eq!(property(POD, "CPUQuotaPerSecUSec"), "infinity");
    assert!(quota().starts_with(if v2 { "max" } else { "-1" }), "{}", quota());

    // Another agent in its place finds the pod by the name of its slice.
    let again = Cgroups::new(mount, layout);
    again.prepare(1500).await.unwrap();
    again.leave().await.unwrap();
    assert_eq!(again.uids(), ["aa-bb"], "what has a pod stays");
    again.remove("aa-bb").await.unwrap();
    again.remove("aa-bb").await.unwrap();
    assert!(again.uids().is_empty());
    assert_eq!(active(POD), "inactive");
    again.leave().await.unwrap();
    for unit in ["kubepods.slice", "kubepods-burstable.slice", "kubepods-besteffort.slice"] {
        assert_eq!(active(unit), "inactive", "{unit}");
    }
    let trees = std::fs::read_dir(mount).unwrap().flatten().map(|e| e.path());
    let left: Vec<_> = trees.chain([mount.to_owned()]).map(|t| t.join("kubepods.slice")).collect();
    assert!(left.iter().all(|dir| !dir.exists()), "{left:?}");
    println!("systemd had the slices of a pod, its limits over a reload, and nothing after it");
}
