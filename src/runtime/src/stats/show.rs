//! Samples as CRI's statistics.

use super::{Disk, Interface, Load};
use crate::cgroup::usage::{Cpu, Memory, Pressure, Stall};
use podway_cri::v1;
use std::path::Path;

fn value(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

fn stall(stall: &Stall) -> v1::PsiData {
    v1::PsiData {
        total: stall.total_us.saturating_mul(1000),
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    }
}

fn pressure(pressure: &Pressure) -> v1::PsiStats {
    v1::PsiStats { full: Some(stall(&pressure.full)), some: Some(stall(&pressure.some)) }
}

pub(super) fn cpu(load: &Load) -> Option<v1::CpuUsage> {
    let cpu: &Cpu = load.usage.cpu.as_ref()?;
    Some(v1::CpuUsage {
        timestamp: load.at,
        usage_core_nano_seconds: value(cpu.total_ns),
        usage_nano_cores: load.nano_cores.and_then(value),
        psi: cpu.pressure.as_ref().map(pressure),
    })
}

pub(super) fn memory(load: &Load) -> Option<v1::MemoryUsage> {
    let memory: &Memory = load.usage.memory.as_ref()?;
    // Without a limit 0, as containerd and CRI-O have it (getAvailableBytes): clients expect a value.
    let available = memory.limit.map_or(0, |limit| limit.saturating_sub(memory.working_set()));
    Some(v1::MemoryUsage {
        timestamp: load.at,
        working_set_bytes: value(memory.working_set()),
        available_bytes: value(available),
        usage_bytes: value(memory.usage),
        rss_bytes: value(memory.rss),
        page_faults: value(memory.faults),
        major_page_faults: value(memory.major_faults),
        psi: memory.pressure.as_ref().map(pressure),
    })
}

pub(super) fn swap(load: &Load) -> Option<v1::SwapUsage> {
    let memory = load.usage.memory.as_ref()?;
    let available = memory.swap_limit.map_or(0, |limit| limit.saturating_sub(memory.swap));
    Some(v1::SwapUsage {
        timestamp: load.at,
        swap_available_bytes: value(available),
        swap_usage_bytes: value(memory.swap),
    })
}

/// Only where the kernel tells of stalls (v2): there is nothing else in it.
pub(super) fn io(load: &Load) -> Option<v1::IoUsage> {
    let psi = load.usage.io_pressure.as_ref().map(pressure)?;
    Some(v1::IoUsage { timestamp: load.at, psi: Some(psi) })
}

pub(super) fn process(load: &Load) -> Option<v1::ProcessUsage> {
    let pids = load.usage.pids?;
    Some(v1::ProcessUsage { timestamp: load.at, process_count: value(pids.current) })
}

fn interface(of: &Interface) -> v1::NetworkInterfaceUsage {
    v1::NetworkInterfaceUsage {
        name: of.name.clone(),
        rx_bytes: value(of.rx.bytes),
        rx_errors: value(of.rx.errors),
        tx_bytes: value(of.tx.bytes),
        tx_errors: value(of.tx.errors),
    }
}

/// The default interface is `eth0`, the name that a CNI ADD is given; else the first one.
pub(super) fn network(load: &Load) -> Option<v1::NetworkUsage> {
    let main = load.network.iter().position(|i| i.name == "eth0").unwrap_or(0);
    let default_interface = Some(interface(load.network.get(main)?));
    let others = load.network.iter().enumerate().filter(|(n, _)| *n != main);
    let interfaces = others.map(|(_, i)| interface(i)).collect();
    Some(v1::NetworkUsage { timestamp: load.at, default_interface, interfaces })
}

/// `root` is what ImageFsInfo names too: clients look the file system up by it.
pub(super) fn filesystem(disk: &Disk, root: &Path) -> v1::FilesystemUsage {
    v1::FilesystemUsage {
        timestamp: disk.at,
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: root.display().to_string() }),
        used_bytes: value(disk.bytes),
        inodes_used: value(disk.inodes),
    }
}
