//! Figures as Prometheus' text format 0.0.4: `/metrics/resource` (what metrics-server reads,
//! `pkg/kubelet/metrics/collectors/resource_metrics.go`) and `/metrics/cadvisor`. The second is the
//! runtime's own where it has metrics over CRI (`cri_metrics.go`), else what a look gives.

use super::types::{Cpu, Memory, Summary, Swap};
use podway_cri::v1;
use std::fmt::Write as _;

/// The content type.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A text that grows family by family.
#[derive(Debug, Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(
            self.0,
            "# HELP {name} {}\n# TYPE {name} {kind}",
            help.replace('\\', "\\\\").replace('\n', "\\n")
        );
    }

    /// `at`: nanoseconds since 1970; 0 for none.
    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64, at: i64) {
        self.0.push_str(name);
        for (n, (key, value)) in labels.iter().enumerate() {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{key}=\"{value}\"", if n == 0 { '{' } else { ',' });
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = write!(self.0, " {value}");
        if at > 0 {
            let _ = write!(self.0, " {}", at / 1_000_000);
        }
        self.0.push('\n');
    }
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus has floating point numbers only")]
fn float(n: u64) -> f64 {
    n as f64
}

fn seconds(nanos: u64) -> f64 {
    float(nanos) / 1e9
}

fn cpu(c: Option<&Cpu>) -> Option<(f64, i64)> {
    c.and_then(|c| Some((seconds(c.usage_core_nano_seconds?), c.nanos)))
}

fn memory(m: Option<&Memory>) -> Option<(f64, i64)> {
    m.and_then(|m| Some((float(m.working_set_bytes?), m.nanos)))
}

fn swap(s: Option<&Swap>) -> Option<(f64, i64)> {
    s.and_then(|s| Some((float(s.swap_usage_bytes?), s.nanos)))
}

type Labelled<'a> = (Vec<(&'a str, &'a str)>, Option<(f64, i64)>);

fn all<'a>(text: &mut Text, head: (&str, &str, &str), samples: impl Iterator<Item = Labelled<'a>>) {
    let (name, kind, help) = head;
    let mut told = false;
    for (labels, sample) in samples {
        let Some((value, at)) = sample else { continue };
        if !std::mem::replace(&mut told, true) {
            text.family(name, kind, help);
        }
        text.sample(name, &labels, value, at);
    }
}

/// `/metrics/resource`; `None` is a look that failed.
#[must_use]
pub fn resource(summary: Option<&Summary>) -> String {
    let mut text = Text::default();
    if let Some(summary) = summary {
        let pods = || {
            summary.pods.iter().map(|p| {
                (vec![("pod", p.pod_ref.name.as_str()), ("namespace", p.pod_ref.namespace.as_str())], p)
            })
        };
        let containers = || {
            pods().flat_map(|(labels, p)| {
                p.containers.iter().map(move |c| {
                    let mut labels = labels.clone();
                    labels.insert(0, ("container", c.name.as_str()));
                    (labels, c)
                })
            })
        };
        let node = &summary.node;
        let t = &mut text;
        let head = (
            "container_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the container in core-seconds",
        );
        all(t, head, containers().map(|(l, c)| (l, cpu(c.cpu.as_ref()))));
        let head = (
            "container_memory_working_set_bytes",
            "gauge",
            "[STABLE] Current working set of the container in bytes",
        );
        all(t, head, containers().map(|(l, c)| (l, memory(c.memory.as_ref()))));
        let head = (
            "container_start_time_seconds",
            "gauge",
            "[STABLE] Start time of the container since unix epoch in seconds",
        );
        let started = |c: &super::types::Container| {
            c.start_time.0.map(|at| (float(u64::try_from(at.as_second()).unwrap_or(0)), 0))
        };
        all(t, head, containers().map(|(l, c)| (l, started(c))));
        let head = (
            "container_swap_usage_bytes",
            "gauge",
            "[ALPHA] Current amount of the container swap usage in bytes. Reported only on non-windows systems",
        );
        all(t, head, containers().map(|(l, c)| (l, swap(c.swap.as_ref()))));
        let head = (
            "node_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the node in core-seconds",
        );
        all(t, head, std::iter::once((Vec::new(), cpu(node.cpu.as_ref()))));
        let head =
            ("node_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the node in bytes");
        all(t, head, std::iter::once((Vec::new(), memory(node.memory.as_ref()))));
        let head = (
            "node_swap_usage_bytes",
            "gauge",
            "[ALPHA] Current swap usage of the node in bytes. Reported only on non-windows systems",
        );
        all(t, head, std::iter::once((Vec::new(), swap(node.swap.as_ref()))));
        let head = (
            "pod_cpu_usage_seconds_total",
            "counter",
            "[STABLE] Cumulative cpu time consumed by the pod in core-seconds",
        );
        all(t, head, pods().map(|(l, p)| (l, cpu(p.cpu.as_ref()))));
        let head =
            ("pod_memory_working_set_bytes", "gauge", "[STABLE] Current working set of the pod in bytes");
        all(t, head, pods().map(|(l, p)| (l, memory(p.memory.as_ref()))));
        let head = (
            "pod_swap_usage_bytes",
            "gauge",
            "[ALPHA] Current amount of the pod swap usage in bytes. Reported only on non-windows systems",
        );
        all(t, head, pods().map(|(l, p)| (l, swap(p.swap.as_ref()))));
    }
    let failed = if summary.is_some() { 0.0 } else { 1.0 };
    for (name, level) in [("resource_scrape_error", "STABLE"), ("scrape_error", "ALPHA")] {
        let help = format!("[{level}] 1 if there was an error while getting container metrics, 0 otherwise");
        text.family(name, "gauge", &help);
        text.sample(name, &[], failed, 0);
    }
    text.0
}

/// What the runtime measured, under the names that it gave.
#[must_use]
pub fn of_runtime(descriptors: &[v1::MetricDescriptor], pods: &[v1::PodSandboxMetrics]) -> String {
    let mut text = Text::default();
    for descriptor in descriptors {
        let metrics = pods.iter().flat_map(|pod| {
            pod.metrics.iter().chain(pod.container_metrics.iter().flat_map(|c| c.metrics.iter()))
        });
        let own = metrics.filter(|m| m.name == descriptor.name);
        let mut told = false;
        for metric in own {
            // As upstream: one whose labels are not those that were promised is left out.
            if metric.label_values.len() != descriptor.label_keys.len() {
                continue;
            }
            let Some(value) = &metric.value else { continue };
            if !std::mem::replace(&mut told, true) {
                let kind = match metric.metric_type() {
                    v1::MetricType::Counter => "counter",
                    v1::MetricType::Gauge => "gauge",
                };
                text.family(&metric.name, kind, &descriptor.help);
            }
            let labels: Vec<(&str, &str)> = descriptor
                .label_keys
                .iter()
                .map(String::as_str)
                .zip(metric.label_values.iter().map(String::as_str))
                .collect();
            text.sample(&metric.name, &labels, float(value.value), metric.timestamp);
        }
    }
    text.0
}

/// The same from a look, for a runtime without metrics over CRI: those names that dashboards need.
#[must_use]
pub fn of_summary(summary: &Summary) -> String {
    let mut text = Text::default();
    let t = &mut text;
    let containers = || {
        summary.pods.iter().flat_map(|p| {
            p.containers.iter().map(move |c| {
                let labels = vec![
                    ("container", c.name.as_str()),
                    ("namespace", p.pod_ref.namespace.as_str()),
                    ("pod", p.pod_ref.name.as_str()),
                ];
                (labels, c)
            })
        })
    };
    let head = ("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.");
    all(t, head, containers().map(|(l, c)| (l, cpu(c.cpu.as_ref()))));
    type Of = fn(&Memory) -> Option<u64>;
    let memories: [(&str, &str, Of); 3] = [
        ("container_memory_rss", "Size of RSS in bytes.", |m| m.rss_bytes),
        (
            "container_memory_usage_bytes",
            "Current memory usage in bytes, including all memory regardless of when it was accessed",
            |m| m.usage_bytes,
        ),
        ("container_memory_working_set_bytes", "Current working set in bytes.", |m| m.working_set_bytes),
    ];
    for (name, help, of) in memories {
        let value = |m: &Memory| Some((float(of(m)?), m.nanos));
        all(t, (name, "gauge", help), containers().map(|(l, c)| (l, c.memory.as_ref().and_then(value))));
    }
    let head = (
        "container_fs_usage_bytes",
        "gauge",
        "Number of bytes that are consumed by the container on this filesystem.",
    );
    all(t, head, containers().map(|(l, c)| (l, c.rootfs.and_then(|fs| Some((float(fs.used_bytes?), 0))))));
    type Bytes = fn(&super::types::Interface) -> Option<u64>;
    let networks: [(&str, &str, Bytes); 4] = [
        ("container_network_receive_bytes_total", "Cumulative count of bytes received", |i| i.rx_bytes),
        (
            "container_network_receive_errors_total",
            "Cumulative count of errors encountered while receiving",
            |i| i.rx_errors,
        ),
        ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", |i| i.tx_bytes),
        (
            "container_network_transmit_errors_total",
            "Cumulative count of errors encountered while transmitting",
            |i| i.tx_errors,
        ),
    ];
    for (name, help, of) in networks {
        let samples = summary.pods.iter().flat_map(|p| {
            let interfaces = p.network.iter().flat_map(|n| n.interfaces.iter());
            interfaces.map(move |i| {
                let labels = vec![
                    ("interface", i.name.as_str()),
                    ("namespace", p.pod_ref.namespace.as_str()),
                    ("pod", p.pod_ref.name.as_str()),
                ];
                (labels, of(i).map(|n| (float(n), 0)))
            })
        });
        all(t, (name, "counter", help), samples);
    }
    text.0
}

/// The machine's part of `/metrics/cadvisor`.
#[must_use]
pub fn machine(cpus: u64, memory: u64) -> String {
    let mut text = Text::default();
    text.family("machine_cpu_cores", "gauge", "Number of logical CPU cores.");
    text.sample("machine_cpu_cores", &[], float(cpus), 0);
    text.family("machine_memory_bytes", "gauge", "Amount of memory installed on the machine.");
    text.sample("machine_memory_bytes", &[], float(memory), 0);
    text.0
}

#[cfg(test)]
mod tests {
    use super::super::types::{Container, Interface, Network, Node, Pod, PodRef, Time};
    use super::*;

    fn summary() -> Summary {
        let cpu = Some(Cpu {
            nanos: 5_000_000_000,
            usage_core_nano_seconds: Some(1_500_000_000),
            ..Cpu::default()
        });
        let memory = Some(Memory { nanos: 5_000_000_000, working_set_bytes: Some(7), ..Memory::default() });
        let interface = Interface { name: "eth0".into(), rx_bytes: Some(3), ..Interface::default() };
        let network =
            Network { default: interface.clone(), interfaces: vec![interface], ..Network::default() };
        let container = Container {
            name: "c".into(),
            start_time: Time::seconds(1_700_000_000),
            cpu,
            memory,
            ..Container::default()
        };
        Summary {
            node: Node { node_name: "n".into(), cpu, memory, ..Node::default() },
            pods: vec![Pod {
                pod_ref: PodRef { name: "p".into(), namespace: "d".into(), uid: "u".into() },
                containers: vec![container],
                cpu,
                memory,
                network: Some(network),
                ..Pod::default()
            }],
        }
    }

    #[test]
    fn what_metrics_server_reads() {
        let text = resource(Some(&summary()));
        for line in [
            "# TYPE node_cpu_usage_seconds_total counter",
            "node_cpu_usage_seconds_total 1.5 5000",
            "node_memory_working_set_bytes 7 5000",
            "container_cpu_usage_seconds_total{container=\"c\",pod=\"p\",namespace=\"d\"} 1.5 5000",
            "container_memory_working_set_bytes{container=\"c\",pod=\"p\",namespace=\"d\"} 7 5000",
            "container_start_time_seconds{container=\"c\",pod=\"p\",namespace=\"d\"} 1700000000",
            "pod_memory_working_set_bytes{pod=\"p\",namespace=\"d\"} 7 5000",
            "resource_scrape_error 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        assert!(!text.contains("swap"), "what is not known is not there");
        assert!(resource(None).contains("\nscrape_error 1\n"));
    }

    #[test]
    fn the_runtimes_own_metrics_and_those_of_one_that_has_none() {
        let metric = |labels: &[&str], value| v1::Metric {
            name: "container_x".into(),
            timestamp: 2_000_000,
            metric_type: v1::MetricType::Counter as i32,
            label_values: labels.iter().map(ToString::to_string).collect(),
            value: Some(v1::UInt64Value { value }),
        };
        let descriptors = [v1::MetricDescriptor {
            name: "container_x".into(),
            help: "X.".into(),
            label_keys: vec!["id".into()],
        }];
        let pods = [v1::PodSandboxMetrics {
            metrics: vec![metric(&["a\"b"], 4), metric(&[], 5)],
            ..Default::default()
        }];
        assert_eq!(
            of_runtime(&descriptors, &pods),
            "# HELP container_x X.\n# TYPE container_x counter\ncontainer_x{id=\"a\\\"b\"} 4 2\n"
        );
        let text = of_summary(&summary());
        assert!(text.contains(
            "container_memory_working_set_bytes{container=\"c\",namespace=\"d\",pod=\"p\"} 7 5000\n"
        ));
        assert!(text.contains(
            "container_network_receive_bytes_total{interface=\"eth0\",namespace=\"d\",pod=\"p\"} 3\n"
        ));
    }
}
