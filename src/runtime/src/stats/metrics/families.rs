//! The table of families: names and help are cAdvisor's (metrics/prometheus.go), so that what reads
//! a stock kubelet's `/metrics/cadvisor` reads ours.

use super::{Family, Values};
use podway_cri::v1::MetricType::{Counter, Gauge};

const SECOND: u64 = 1_000_000_000;

/// Every family.
pub(super) const FAMILIES: &[Family] = &[
    // Processor.
    Family {
        name: "container_cpu_user_seconds_total",
        help: "Cumulative user CPU time consumed in seconds.",
        kind: Counter,
        values: Values::Cpu(|c| Some(c.user_ns / SECOND)),
    },
    Family {
        name: "container_cpu_system_seconds_total",
        help: "Cumulative system CPU time consumed in seconds.",
        kind: Counter,
        values: Values::Cpu(|c| Some(c.system_ns / SECOND)),
    },
    Family {
        name: "container_cpu_usage_seconds_total",
        help: "Cumulative CPU time consumed in seconds.",
        kind: Counter,
        values: Values::TotalCpu(|c| c.total_ns / SECOND),
    },
    Family {
        name: "container_cpu_cfs_periods_total",
        help: "Number of elapsed enforcement period intervals.",
        kind: Counter,
        values: Values::Cpu(|c| Some(c.periods)),
    },
    Family {
        name: "container_cpu_cfs_throttled_periods_total",
        help: "Number of throttled period intervals.",
        kind: Counter,
        values: Values::Cpu(|c| Some(c.throttled_periods)),
    },
    Family {
        name: "container_cpu_cfs_throttled_seconds_total",
        help: "Total time duration the container has been throttled.",
        kind: Counter,
        values: Values::Cpu(|c| Some(c.throttled_ns / SECOND)),
    },
    // Memory.
    Family {
        name: "container_memory_cache",
        help: "Number of bytes of page cache memory.",
        kind: Gauge,
        values: Values::Memory(|m| Some(m.cache)),
    },
    Family {
        name: "container_memory_rss",
        help: "Size of RSS in bytes.",
        kind: Gauge,
        values: Values::Memory(|m| Some(m.rss)),
    },
    Family {
        name: "container_memory_kernel_usage",
        help: "Size of kernel memory allocated in bytes.",
        kind: Gauge,
        values: Values::Memory(|m| Some(m.kernel)),
    },
    Family {
        name: "container_memory_mapped_file",
        help: "Size of memory mapped files in bytes.",
        kind: Gauge,
        values: Values::Memory(|m| Some(m.mapped_file)),
    },
    Family {
        name: "container_memory_swap",
        help: "Container swap usage in bytes.",
        kind: Gauge,
        values: Values::Memory(|m| Some(m.swap)),
    },
    Family {
        name: "container_memory_failcnt",
        help: "Number of memory usage hits limits",
        kind: Counter,
        values: Values::Memory(|m| Some(m.limit_hits)),
    },
    Family {
        name: "container_memory_usage_bytes",
        help: "Current memory usage in bytes, including all memory regardless of when it was accessed",
        kind: Gauge,
        values: Values::Memory(|m| Some(m.usage)),
    },
    Family {
        name: "container_memory_max_usage_bytes",
        help: "Maximum memory usage recorded in bytes",
        kind: Gauge,
        values: Values::Memory(|m| Some(m.peak)),
    },
    Family {
        name: "container_memory_working_set_bytes",
        help: "Current working set in bytes.",
        kind: Gauge,
        values: Values::Memory(|m| Some(m.working_set())),
    },
    Family {
        name: "container_memory_total_active_file_bytes",
        help: "Current total active file in bytes.",
        kind: Gauge,
        values: Values::Memory(|m| Some(m.active_file)),
    },
    Family {
        name: "container_memory_total_inactive_file_bytes",
        help: "Current total inactive file in bytes.",
        kind: Gauge,
        values: Values::Memory(|m| Some(m.inactive_file)),
    },
    Family {
        name: "container_memory_failures_total",
        help: "Cumulative count of memory allocation failures.",
        kind: Counter,
        values: Values::Faults,
    },
    Family {
        name: "container_oom_events_total",
        help: "Count of out of memory events observed for the container",
        kind: Counter,
        values: Values::Memory(|m| Some(m.oom_kills)),
    },
    // Disk.
    Family {
        name: "container_fs_inodes_free",
        help: "Number of available Inodes",
        kind: Gauge,
        values: Values::Filesystem(|f| f.inodes_free),
    },
    Family {
        name: "container_fs_inodes_total",
        help: "Number of Inodes",
        kind: Gauge,
        values: Values::Filesystem(|f| f.inodes),
    },
    Family {
        name: "container_fs_limit_bytes",
        help: "Number of bytes that can be consumed by the container on this filesystem.",
        kind: Gauge,
        values: Values::Filesystem(|f| f.bytes),
    },
    Family {
        name: "container_fs_usage_bytes",
        help: "Number of bytes that are consumed by the container on this filesystem.",
        kind: Gauge,
        values: Values::Layer(|d| d.bytes),
    },
    Family {
        name: "container_fs_reads_bytes_total",
        help: "Cumulative count of bytes read",
        kind: Counter,
        values: Values::Devices(|d| d.read.bytes),
    },
    Family {
        name: "container_fs_reads_total",
        help: "Cumulative count of reads completed",
        kind: Counter,
        values: Values::Devices(|d| d.read.operations),
    },
    Family {
        name: "container_fs_writes_bytes_total",
        help: "Cumulative count of bytes written",
        kind: Counter,
        values: Values::Devices(|d| d.write.bytes),
    },
    Family {
        name: "container_fs_writes_total",
        help: "Cumulative count of writes completed",
        kind: Counter,
        values: Values::Devices(|d| d.write.operations),
    },
    Family {
        name: "container_blkio_device_usage_total",
        help: "Blkio Device bytes usage",
        kind: Counter,
        values: Values::DeviceUsage,
    },
    // Huge pages.
    Family {
        name: "container_hugetlb_usage_bytes",
        help: "Current hugepage usage in bytes",
        kind: Gauge,
        values: Values::Pages(|h| Some(h.usage)),
    },
    Family {
        name: "container_hugetlb_max_usage_bytes",
        help: "Maximum hugepage usage recorded in bytes",
        kind: Gauge,
        values: Values::Pages(|h| h.peak),
    },
    // Network, of the sandbox.
    Family {
        name: "container_network_receive_bytes_total",
        help: "Cumulative count of bytes received",
        kind: Counter,
        values: Values::Network(|i| i.rx.bytes),
    },
    Family {
        name: "container_network_receive_packets_total",
        help: "Cumulative count of packets received",
        kind: Counter,
        values: Values::Network(|i| i.rx.packets),
    },
    Family {
        name: "container_network_receive_packets_dropped_total",
        help: "Cumulative count of packets dropped while receiving",
        kind: Counter,
        values: Values::Network(|i| i.rx.dropped),
    },
    Family {
        name: "container_network_receive_errors_total",
        help: "Cumulative count of errors encountered while receiving",
        kind: Counter,
        values: Values::Network(|i| i.rx.errors),
    },
    Family {
        name: "container_network_transmit_bytes_total",
        help: "Cumulative count of bytes transmitted",
        kind: Counter,
        values: Values::Network(|i| i.tx.bytes),
    },
    Family {
        name: "container_network_transmit_packets_total",
        help: "Cumulative count of packets transmitted",
        kind: Counter,
        values: Values::Network(|i| i.tx.packets),
    },
    Family {
        name: "container_network_transmit_packets_dropped_total",
        help: "Cumulative count of packets dropped while transmitting",
        kind: Counter,
        values: Values::Network(|i| i.tx.dropped),
    },
    Family {
        name: "container_network_transmit_errors_total",
        help: "Cumulative count of errors encountered while transmitting",
        kind: Counter,
        values: Values::Network(|i| i.tx.errors),
    },
    // Processes.
    Family {
        name: "container_file_descriptors",
        help: "Number of open file descriptors for the container.",
        kind: Gauge,
        values: Values::Processes(|p| p.descriptors),
    },
    Family {
        name: "container_processes",
        help: "Number of processes running inside the container.",
        kind: Gauge,
        values: Values::Processes(|p| p.processes),
    },
    Family {
        name: "container_sockets",
        help: "Number of open sockets for the container.",
        kind: Gauge,
        values: Values::Processes(|p| p.sockets),
    },
    Family {
        name: "container_threads",
        help: "Number of threads running inside the container",
        kind: Gauge,
        values: Values::Threads(|p| p.current),
    },
    Family {
        name: "container_threads_max",
        help: "Maximum number of threads allowed inside the container, infinity if value is zero",
        kind: Gauge,
        values: Values::Threads(|p| p.limit.unwrap_or(0)),
    },
    Family {
        name: "container_ulimits_soft",
        help: "Soft ulimit values for the container root process. Unlimited if -1, except priority and nice",
        kind: Gauge,
        values: Values::Ulimits,
    },
    // What it was asked with, as the kernel holds it; no limit is 0, as cAdvisor has it.
    Family {
        name: "container_spec_cpu_period",
        help: "CPU period of the container.",
        kind: Gauge,
        values: Values::Cpu(|c| Some(c.period_us)),
    },
    Family {
        name: "container_spec_cpu_quota",
        help: "CPU quota of the container.",
        kind: Gauge,
        values: Values::Cpu(|c| c.quota_us),
    },
    Family {
        name: "container_spec_cpu_shares",
        help: "CPU share of the container.",
        kind: Gauge,
        values: Values::Cpu(|c| Some(c.shares)),
    },
    Family {
        name: "container_spec_memory_limit_bytes",
        help: "Memory limit for the container.",
        kind: Gauge,
        values: Values::Memory(|m| Some(m.limit.unwrap_or(0))),
    },
    Family {
        name: "container_spec_memory_reservation_limit_bytes",
        help: "Memory reservation limit for the container.",
        kind: Gauge,
        values: Values::Memory(|m| Some(m.reservation.unwrap_or(0))),
    },
    Family {
        name: "container_spec_memory_swap_limit_bytes",
        help: "Memory swap limit for the container.",
        kind: Gauge,
        values: Values::Memory(|m| Some(m.swap_limit.unwrap_or(0))),
    },
    Family {
        name: "container_start_time_seconds",
        help: "Start time of the container since unix epoch in seconds.",
        kind: Gauge,
        values: Values::Started,
    },
    Family {
        name: "container_last_seen",
        help: "Last time a container was seen by the exporter",
        kind: Gauge,
        values: Values::Seen,
    },
    // Stalls, where the kernel tells of them (cgroup v2).
    Family {
        name: "container_pressure_cpu_stalled_seconds_total",
        help: "Total time duration no tasks in the container could make progress due to CPU congestion.",
        kind: Counter,
        values: Values::Stall(|u| u.cpu.as_ref()?.pressure.as_ref(), |p| p.full.total_us / 1_000_000),
    },
    Family {
        name: "container_pressure_cpu_waiting_seconds_total",
        help: "Total time duration tasks in the container have waited due to CPU congestion.",
        kind: Counter,
        values: Values::Stall(|u| u.cpu.as_ref()?.pressure.as_ref(), |p| p.some.total_us / 1_000_000),
    },
    Family {
        name: "container_pressure_memory_stalled_seconds_total",
        help: "Total time duration no tasks in the container could make progress due to memory congestion.",
        kind: Counter,
        values: Values::Stall(|u| u.memory.as_ref()?.pressure.as_ref(), |p| p.full.total_us / 1_000_000),
    },
    Family {
        name: "container_pressure_memory_waiting_seconds_total",
        help: "Total time duration tasks in the container have waited due to memory congestion.",
        kind: Counter,
        values: Values::Stall(|u| u.memory.as_ref()?.pressure.as_ref(), |p| p.some.total_us / 1_000_000),
    },
    Family {
        name: "container_pressure_io_stalled_seconds_total",
        help: "Total time duration no tasks in the container could make progress due to IO congestion.",
        kind: Counter,
        values: Values::Stall(|u| u.io_pressure.as_ref(), |p| p.full.total_us / 1_000_000),
    },
    Family {
        name: "container_pressure_io_waiting_seconds_total",
        help: "Total time duration tasks in the container have waited due to IO congestion.",
        kind: Counter,
        values: Values::Stall(|u| u.io_pressure.as_ref(), |p| p.some.total_us / 1_000_000),
    },
];
