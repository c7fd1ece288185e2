//! The agent's metrics: the kubelet's names where they exist, so that dashboards keep working, and
//! `podway_pod_phase_duration_seconds`. No pod, image or container name is ever a label.

pub mod probes;

use crate::traces::Counts;
use podway_flow::stuck::Limits;
use podway_flow::{Flow, Outcome, Phase};
use probes::Probes;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

type Labels = Vec<(&'static str, String)>;
type Histograms = Family<Labels, Histogram, fn() -> Histogram>;

/// 1 ms to 60 s: what a phase of a start takes.
fn phases() -> Histogram {
    Histogram::new([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0])
}

/// The kubelet's buckets of a pod's start.
fn starts() -> Histogram {
    Histogram::new([
        0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0,
        240.0, 300.0, 360.0, 480.0, 600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
    ])
}

/// Go's default buckets.
fn calls() -> Histogram {
    Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0])
}

/// All metrics of the agent.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    phase: Histograms,
    /// What is usual for a phase, learned from the same flows.
    usual: Mutex<Limits>,
    stuck: Family<Labels, Gauge>,
    operations: Family<Labels, Counter>,
    operation_errors: Family<Labels, Counter>,
    operation_duration: Histograms,
    run_sandbox: Histograms,
    start_sli: Histogram,
    start: Histogram,
    start_total: Histogram,
    status_sync: Histogram,
    /// `kubelet_started_pods`: sandboxes asked for.
    pub started_pods: Counter,
    /// `kubelet_started_pods_errors`.
    pub started_pods_errors: Counter,
    started_containers: Family<Labels, Counter>,
    started_containers_errors: Family<Labels, Counter>,
    /// `kubelet_desired_pods`: pods bound to the node that are not at their end.
    pub desired_pods: Gauge,
    /// `kubelet_running_pods`: pods with a ready sandbox.
    pub running_pods: Gauge,
    /// `kubelet_orphaned_runtime_pods`: pods in the runtime that no API object stands for.
    pub orphans: Counter,
    admission_rejections: Family<Labels, Counter>,
    evictions: Family<Labels, Counter>,
    /// `podway_traces_exported` and `podway_traces_dropped`.
    pub traces: Counts,
    /// `/metrics/probes`.
    pub probes: Probes,
    /// `podway_events_discarded`: events beyond the budget.
    pub events_discarded: Counter,
    device_registrations: Family<Labels, Counter>,
    device_allocations: Histograms,
    /// `kubelet_graceful_shutdown_start_time_seconds`: since 1970; 0: there was none.
    pub shutdown_start: Gauge<f64, AtomicU64>,
    /// `kubelet_graceful_shutdown_end_time_seconds`.
    pub shutdown_end: Gauge<f64, AtomicU64>,
}

impl Metrics {
    /// Metrics of the agent of `node`.
    #[must_use]
    pub fn new(node: &str) -> Self {
        let mut registry = Registry::default();
        let m = Metrics {
            phase: Family::new_with_constructor(phases),
            usual: Mutex::default(),
            stuck: Family::default(),
            operations: Family::default(),
            operation_errors: Family::default(),
            operation_duration: Family::new_with_constructor(calls),
            run_sandbox: Family::new_with_constructor(calls),
            start_sli: starts(),
            start: starts(),
            start_total: starts(),
            status_sync: calls(),
            started_pods: Counter::default(),
            started_pods_errors: Counter::default(),
            started_containers: Family::default(),
            started_containers_errors: Family::default(),
            desired_pods: Gauge::default(),
            running_pods: Gauge::default(),
            orphans: Counter::default(),
            admission_rejections: Family::default(),
            evictions: Family::default(),
            traces: Counts::default(),
            probes: Probes::default(),
            events_discarded: Counter::default(),
            device_registrations: Family::default(),
            device_allocations: Family::new_with_constructor(calls),
            shutdown_start: Gauge::default(),
            shutdown_end: Gauge::default(),
            registry: Registry::default(),
        };
        let s = || Unit::Seconds;
        registry.register_with_unit(
            "podway_pod_phase_duration",
            "How long a phase of a pod's start took",
            s(),
            m.phase.clone(),
        );
        registry.register(
            "podway_pod_stuck",
            "Pods whose start has passed the limit of a phase, by the first such phase",
            m.stuck.clone(),
        );
        registry.register("kubelet_runtime_operations", "CRI calls", m.operations.clone());
        registry.register(
            "kubelet_runtime_operations_errors",
            "CRI calls that failed",
            m.operation_errors.clone(),
        );
        registry.register_with_unit(
            "kubelet_runtime_operations_duration",
            "How long CRI calls took",
            s(),
            m.operation_duration.clone(),
        );
        registry.register_with_unit(
            "kubelet_run_podsandbox_duration",
            "How long RunPodSandbox took",
            s(),
            m.run_sandbox.clone(),
        );
        registry.register_with_unit(
            "kubelet_pod_start_sli_duration",
            "From creation to running, without image pulls",
            s(),
            m.start_sli.clone(),
        );
        registry.register_with_unit(
            "kubelet_pod_start_duration",
            "From first seen to running",
            s(),
            m.start.clone(),
        );
        registry.register_with_unit(
            "kubelet_pod_start_total_duration",
            "From creation to running",
            s(),
            m.start_total.clone(),
        );
        registry.register_with_unit(
            "kubelet_pod_status_sync_duration",
            "From a change to its status in the API server",
            s(),
            m.status_sync.clone(),
        );
        registry.register("kubelet_started_pods", "Sandboxes asked for", m.started_pods.clone());
        registry.register(
            "kubelet_started_pods_errors",
            "Sandboxes that failed",
            m.started_pods_errors.clone(),
        );
        registry.register("kubelet_started_containers", "Containers asked for", m.started_containers.clone());
        registry.register(
            "kubelet_started_containers_errors",
            "Containers that failed to start",
            m.started_containers_errors.clone(),
        );
        registry.register("kubelet_evictions", "Pods that were evicted", m.evictions.clone());
        registry.register(
            "podway_events_discarded",
            "Events that were not written for the budget's sake",
            m.events_discarded.clone(),
        );
        registry.register(
            "podway_traces_exported",
            "Traces of pods' starts that the collector has",
            m.traces.exported.clone(),
        );
        registry.register(
            "podway_traces_dropped",
            "Traces that were not sent, since too many waited or the collector did not take them",
            m.traces.dropped.clone(),
        );
        registry.register("kubelet_desired_pods", "Pods that should run", m.desired_pods.clone());
        registry.register("kubelet_running_pods", "Pods with a ready sandbox", m.running_pods.clone());
        registry.register(
            "kubelet_orphaned_runtime_pods",
            "Pods in the runtime without an API object",
            m.orphans.clone(),
        );
        registry.register(
            "kubelet_admission_rejections",
            "Pods that were refused",
            m.admission_rejections.clone(),
        );
        registry.register(
            "kubelet_device_plugin_registration",
            "Registrations of device plugins, by their resource",
            m.device_registrations.clone(),
        );
        registry.register_with_unit(
            "kubelet_device_plugin_alloc_duration",
            "How long a device plugin took to allocate devices, by its resource",
            s(),
            m.device_allocations.clone(),
        );
        registry.register_with_unit(
            "kubelet_graceful_shutdown_start_time",
            "Last graceful shutdown start time since unix epoch in seconds",
            s(),
            m.shutdown_start.clone(),
        );
        registry.register_with_unit(
            "kubelet_graceful_shutdown_end_time",
            "Last graceful shutdown end time since unix epoch in seconds",
            s(),
            m.shutdown_end.clone(),
        );
        let name: Family<Labels, Gauge> = Family::default();
        name.get_or_create(&vec![("node", node.to_owned())]).set(1);
        registry.register("kubelet_node_name", "The node's name", name);
        Metrics { registry, ..m }
    }

    /// Everything as OpenMetrics text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing into a String does not fail.
        if prometheus_client::encoding::text::encode(&mut out, &self.registry).is_err() {
            tracing::error!("the metrics could not be written");
        }
        out
    }

    /// Counts a CRI call.
    pub fn operation(&self, name: &str, took: Duration, failed: bool) {
        let labels = vec![("operation_type", name.to_owned())];
        self.operations.get_or_create(&labels).inc();
        self.operation_duration.get_or_create(&labels).observe(took.as_secs_f64());
        if failed {
            self.operation_errors.get_or_create(&labels).inc();
        }
        if name == "run_podsandbox" {
            self.run_sandbox
                .get_or_create(&vec![("runtime_handler", String::new())])
                .observe(took.as_secs_f64());
        }
    }

    /// Counts a container's start; `error` is its waiting reason if it failed.
    pub fn container(&self, init: bool, error: Option<&str>) {
        let kind = if init { "init_container" } else { "container" };
        let labels = vec![("container_type", kind.to_owned())];
        self.started_containers.get_or_create(&labels).inc();
        if let Some(code) = error {
            let labels = vec![("container_type", kind.to_owned()), ("code", code.to_owned())];
            self.started_containers_errors.get_or_create(&labels).inc();
        }
    }

    /// A pod was evicted for `signal`.
    pub fn evicted(&self, signal: &str) {
        self.evictions.get_or_create(&vec![("eviction_signal", signal.to_owned())]).inc();
    }

    /// Counts a refused pod.
    pub fn refused(&self, reason: &str) {
        self.admission_rejections.get_or_create(&vec![("reason", reason.to_owned())]).inc();
    }

    /// A device plugin has registered.
    pub fn device_plugin_registered(&self, resource: &str) {
        self.device_registrations.get_or_create(&vec![("resource_name", resource.to_owned())]).inc();
    }

    /// A device plugin was asked for devices.
    pub fn devices_allocated(&self, resource: &str, took: Duration) {
        let labels = vec![("resource_name", resource.to_owned())];
        self.device_allocations.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Takes over a finished start: the same records that the conditions and the picture are made of.
    pub fn flow(&self, flow: &Flow) {
        for summary in flow.phases() {
            let result = match summary.outcome {
                Outcome::Succeeded => "succeeded",
                Outcome::Skipped => "skipped",
                Outcome::Failed => "failed",
                Outcome::Running => continue,
            };
            let Some(end) = summary.end else { continue };
            let labels = vec![("phase", summary.phase.name().to_owned()), ("result", result.to_owned())];
            self.phase.get_or_create(&labels).observe(seconds(end.since(summary.start)));
        }
        let Some(ready) = flow.summary(Phase::Ready).and_then(|s| s.end) else { return };
        self.usual.lock().unwrap_or_else(PoisonError::into_inner).learn(flow);
        if let Some(seen) = flow.summary(Phase::Observed) {
            self.start.observe(seconds(ready.since(seen.start)));
        }
        if let Some(total) = flow.total() {
            self.start_total.observe(seconds(total));
            let pull =
                flow.summary(Phase::ImagesPulled).and_then(|s| Some(s.end?.since(s.start))).unwrap_or(0);
            self.start_sli.observe(seconds(total.saturating_sub(pull)));
        }
    }

    /// Asks what is usual.
    pub fn limits<T>(&self, ask: impl FnOnce(&Limits) -> T) -> T {
        ask(&self.usual.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts a pod that is stuck in a phase, for as long as what this gives lives.
    #[must_use]
    pub fn stuck(&self, phase: Phase) -> Counted {
        let gauge = self.stuck.get_or_create(&vec![("phase", phase.name().to_owned())]).clone();
        gauge.inc();
        Counted(gauge)
    }

    /// A status write, from the change to the answer, in µs.
    pub fn status_write(&self, micros: u64) {
        self.status_sync.observe(seconds(micros));
    }
}

/// One more in a gauge, while it lives.
#[derive(Debug)]
pub struct Counted(Gauge);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

fn seconds(micros: u64) -> f64 {
    Duration::from_micros(micros).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use podway_flow::{Clock, PodRef, Recorder, Writer};

    #[test]
    fn dashboards_find_their_names() {
        let metrics = Metrics::new("n");
        metrics.operation("run_podsandbox", Duration::from_millis(3), true);
        metrics.container(false, Some("RunContainerError"));
        let recorder = Recorder::new(Writer::Agent, Clock::new());
        recorder.begin(Phase::Observed).succeed("Seen");
        recorder.begin(Phase::Ready).succeed("Ready");
        metrics.flow(&Flow { pod: PodRef::default(), records: recorder.take() });
        let text = metrics.text();
        for name in [
            "kubelet_node_name{node=\"n\"} 1",
            "kubelet_runtime_operations_total{operation_type=\"run_podsandbox\"} 1",
            "kubelet_runtime_operations_errors_total{operation_type=\"run_podsandbox\"} 1",
            "kubelet_run_podsandbox_duration_seconds_count",
            "kubelet_pod_start_sli_duration_seconds_count 1",
            "podway_pod_phase_duration_seconds_bucket{le=\"0.001\",phase=\"Ready\",result=\"succeeded\"} 1",
            "kubelet_started_containers_errors_total{container_type=\"container\",code=\"RunContainerError\"} 1",
        ] {
            assert!(text.contains(name), "{name} not in {text}");
        }
    }
}
