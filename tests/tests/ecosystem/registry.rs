//! Every metric of the three parts, as their own registries print it. A family without a sample is not printed, so each is
//! given one by the calls that feed it; that none is forgotten is counted.

use podway_agent::metrics::Metrics as Agent;
use podway_flow::{Clock, Flow, Phase, PodRef, Record, Recorder, Writer};
use podway_runtime::metrics::Metrics as Runtime;
use podway_scheduler::cycle::Trace;
use podway_scheduler::framework::Point;
use podway_scheduler::metrics::{AttemptResult, Health, Metrics as Scheduler};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// One family of metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Whose `/metrics` has it.
    pub part: &'static str,
    /// Without a sample's suffix.
    pub name: String,
    /// `counter`, `gauge` or `histogram`.
    pub kind: String,
    /// The help text.
    pub help: String,
    /// Labels of its samples, without `le`.
    pub labels: BTreeSet<String>,
}

impl Metric {
    /// The names of its samples, by which queries ask.
    pub fn samples(&self) -> Vec<String> {
        match self.kind.as_str() {
            "counter" => vec![format!("{}_total", self.name)],
            "histogram" => ["_bucket", "_sum", "_count"].map(|s| format!("{}{s}", self.name)).to_vec(),
            _ => vec![self.name.clone()],
        }
    }
}

/// Records of two phases, one that went well and one that failed.
fn records() -> Vec<Record> {
    let recorder = Recorder::new(Writer::Agent, Clock::new());
    recorder.begin(Phase::Observed).succeed("Seen");
    recorder.begin(Phase::ImagesPulled).fail("PullFailed", "no");
    recorder.begin(Phase::Ready).succeed("Ready");
    recorder.take()
}

/// The agent's metrics, each with a sample.
pub fn agent() -> Agent {
    let metrics = Agent::new("node");
    metrics.operation("run_podsandbox", Duration::from_millis(3), true);
    metrics.container(false, Some("RunContainerError"));
    metrics.evicted("memory.available");
    metrics.refused("NodeAffinity");
    metrics.flow(&Flow { pod: PodRef::default(), records: records() });
    metrics.status_write(1000);
    drop(metrics.stuck(Phase::ImagesPulled));
    metrics.device_plugin_registered("example.com/device");
    metrics.devices_allocated("example.com/device", Duration::from_millis(3));
    metrics.traces.dropped.get_or_create(&vec![("reason", "queue_full")]).inc();
    metrics
}

fn scheduler() -> Scheduler {
    let metrics = Scheduler::new();
    metrics.attempt(AttemptResult::Scheduled, "podway", 1000);
    metrics.scheduled(1, 1000);
    metrics.trace(
        &Trace {
            points: vec![(Point::Filter, "Success", 10)],
            evaluated: [(("NodeName", Point::Filter), 1)].into(),
            rows: None,
        },
        "podway",
    );
    metrics.permit_waited("allowed", 10);
    metrics.incoming(BTreeMap::from([(("active", "PodAdd"), 1)]));
    metrics.shadowed("same");
    metrics.leads("podway-scheduler", true);
    metrics.records(&records());
    let refused = BTreeMap::from([(("NodeName", "podway".to_owned()), 1)]);
    metrics.set(&Health { refused, ..Health::default() });
    metrics
}

fn runtime() -> Runtime {
    let metrics = Runtime::default();
    metrics.observe(&records());
    metrics.count(&[("ready", 1)], &[("running", 1)]);
    metrics.checkpoint(Duration::from_millis(300), true);
    metrics
}

/// All of them.
pub fn all() -> anyhow::Result<Vec<Metric>> {
    let (agent, scheduler, runtime) = (agent(), scheduler(), runtime());
    let parts = [
        ("scheduler", scheduler.openmetrics()?, format!("{scheduler:?}")),
        ("agent", agent.text(), format!("{agent:?}")),
        ("runtime", runtime.openmetrics()?, format!("{runtime:?}")),
    ];
    let mut metrics = Vec::new();
    for (part, text, debug) in parts {
        let found = read(part, &text);
        let registered = debug.matches("Descriptor {").count();
        anyhow::ensure!(
            found.len() == registered,
            "{part}: {registered} metrics are registered, and {} have a sample here: {:?}",
            found.len(),
            found.iter().map(|m| &m.name).collect::<Vec<_>>()
        );
        metrics.extend(found);
    }
    Ok(metrics)
}

/// The families of OpenMetrics text.
fn read(part: &'static str, text: &str) -> Vec<Metric> {
    let mut all: Vec<Metric> = Vec::new();
    let mut help = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').map_or_else(String::new, |(_, help)| help.to_owned());
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            all.push(Metric {
                part,
                name: name.to_owned(),
                kind: kind.to_owned(),
                help: std::mem::take(&mut help),
                labels: BTreeSet::new(),
            });
        } else if let (Some(metric), Some((_, rest))) = (all.last_mut(), line.split_once('{')) {
            let labels = rest.split("=\"").filter_map(|part| part.rsplit([',', '{', '"']).next());
            metric.labels.extend(labels.filter(|l| is_label(l) && *l != "le").map(str::to_owned));
        }
    }
    all
}

fn is_label(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
}
