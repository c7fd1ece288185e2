//! What the scheduler counts: upstream's STABLE and BETA names, labels and buckets
//! (`pkg/scheduler/metrics/metrics.go` of 1.36), so that dashboards work with another `job`, and
//! podway's own.
//!
//! Counters and histograms are fed as things happen. Gauges (queue lengths, cache sizes) are asked
//! of the loop when somebody scrapes. No label holds a pod's or a node's name.

pub mod text;

use crate::audit::Fault;
use crate::cycle::Trace;
use crate::framework::Point;
use crate::leader::Role;
use crate::queue::Lengths;
use podway_flow::{Outcome, Phase, Record};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::{Family, MetricConstructor};
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// A set of `N` labels.
type Labels<const N: usize> = [(&'static str, Cow<'static, str>); N];
type Counters<const N: usize> = Family<Labels<N>, Counter>;
type Gauges<const N: usize> = Family<Labels<N>, Gauge>;
type Histograms<const N: usize> = Family<Labels<N>, Histogram, Buckets>;

/// `start · factor^k`, `count` of them.
#[derive(Clone, Copy, Debug)]
struct Buckets {
    start: f64,
    factor: f64,
    count: u16,
}

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(exponential_buckets(self.start, self.factor, self.count))
    }
}

fn histograms<const N: usize>(start: f64, factor: f64, count: u16) -> Histograms<N> {
    Family::new_with_constructor(Buckets { start, factor, count })
}

/// How an attempt to schedule a pod ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttemptResult {
    /// The pod was bound.
    Scheduled,
    /// No node fits, or a Permit plugin refused.
    Unschedulable,
    /// Something failed.
    Error,
}

impl AttemptResult {
    /// Upstream's word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            AttemptResult::Scheduled => "scheduled",
            AttemptResult::Unschedulable => "unschedulable",
            AttemptResult::Error => "error",
        }
    }
}

/// What the loop has in its hands at one moment.
#[derive(Clone, Debug, Default)]
pub struct Health {
    /// Whether this replica leads.
    pub role: Role,
    /// False for a leader whose lease has run out.
    pub leads: bool,
    /// The list of nodes is complete.
    pub nodes_synced: bool,
    /// The list of pods is complete.
    pub pods_synced: bool,
    /// The list of profiles is complete, or there is none to be had.
    pub profiles_synced: bool,
    /// The status lane takes notices.
    pub status_lane: bool,
    /// How many pods wait where.
    pub lengths: Lengths,
    /// Nodes, pods and assumed pods.
    pub sizes: (usize, usize, usize),
    /// Waiting pods by refusing plugin and profile.
    pub refused: BTreeMap<(&'static str, String), usize>,
    /// Waiting pods that have waited too long.
    pub stuck: usize,
}

/// All metrics of one scheduler.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    attempts: Counters<2>,
    attempt_duration: Histograms<2>,
    sli: Histograms<1>,
    pod_attempts: Histogram,
    pending: Gauges<1>,
    incoming: Counters<2>,
    points: Histograms<3>,
    evaluations: Counters<3>,
    unschedulable: Gauges<2>,
    permit_wait: Histograms<1>,
    goroutines: Gauges<1>,
    cache: Gauges<1>,
    phases: Histograms<2>,
    stuck: Gauges<1>,
    bind_conflicts: Counter,
    preemptions: Counter,
    victims: Histogram,
    leader: Gauges<1>,
    shadow: Counters<1>,
    audits: Counter,
    faults: Gauges<1>,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

fn fixed(word: &'static str) -> Cow<'static, str> {
    Cow::Borrowed(word)
}

fn profile(name: &str) -> (&'static str, Cow<'static, str>) {
    ("profile", Cow::Owned(name.to_owned()))
}

/// µs as seconds, what every Prometheus duration is in.
#[expect(clippy::cast_precision_loss, reason = "2^53 µs are 285 years")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

fn size(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

impl Metrics {
    /// Registers all of them, at zero.
    #[must_use]
    pub fn new() -> Self {
        fn put<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
            registry.register(name, help, metric.clone());
            metric
        }
        let mut registry = Registry::default();
        let r = registry.sub_registry_with_prefix("scheduler");
        let attempts = put(
            r,
            "schedule_attempts",
            "Number of attempts to schedule pods, by the result. 'unschedulable' means a pod could not be \
             scheduled, while 'error' means an internal scheduler problem",
            Family::default(),
        );
        let attempt_duration = put(
            r,
            "scheduling_attempt_duration_seconds",
            "Scheduling attempt latency in seconds (scheduling algorithm + binding)",
            histograms(0.001, 2.0, 15),
        );
        let sli = put(
            r,
            "pod_scheduling_sli_duration_seconds",
            "E2e latency for a pod being scheduled, from the time the pod enters the scheduling queue and \
             might involve multiple scheduling attempts",
            histograms(0.01, 2.0, 20),
        );
        let pod_attempts = put(
            r,
            "pod_scheduling_attempts",
            "Number of attempts to successfully schedule a pod",
            Histogram::new(exponential_buckets(1.0, 2.0, 5)),
        );
        let pending = put(r, "pending_pods", "Number of pending pods, by the queue type", Family::default());
        let incoming = put(
            r,
            "queue_incoming_pods",
            "Number of pods added to scheduling queues by event and queue type",
            Family::default(),
        );
        let points = put(
            r,
            "framework_extension_point_duration_seconds",
            "Latency for running all plugins of a specific extension point",
            histograms(0.0001, 2.0, 12),
        );
        let evaluations = put(
            r,
            "plugin_evaluation",
            "Number of attempts to schedule pods by each plugin and the extension point (available only in \
             PreFilter, Filter, PreScore, and Score)",
            Family::default(),
        );
        let unschedulable = put(
            r,
            "unschedulable_pods",
            "The number of unschedulable pods broken down by plugin name. A pod counts for every plugin \
             that refused it",
            Family::default(),
        );
        let permit_wait = put(
            r,
            "permit_wait_duration_seconds",
            "Duration of waiting on permit",
            histograms(0.001, 2.0, 15),
        );
        let goroutines: Gauges<1> = put(
            r,
            "goroutines",
            "Number of running tasks split by the work they do such as binding",
            Family::default(),
        );
        let cache = put(
            r,
            "cache_size",
            "Number of nodes, pods, and assumed (bound) pods in the scheduler cache",
            Family::default(),
        );
        let preemptions = put(
            r,
            "preemption_attempts",
            "Total preemption attempts in the cluster till now",
            Counter::default(),
        );
        let victims = put(
            r,
            "preemption_victims",
            "Number of selected preemption victims",
            Histogram::new(exponential_buckets(1.0, 2.0, 7)),
        );
        let phases = put(
            &mut registry,
            "podway_pod_phase_duration_seconds",
            "How long a phase of a pod's start took, 1 ms to 60 s",
            histograms(0.001, 2.0, 17),
        );
        let stuck: Gauges<1> = put(
            &mut registry,
            "podway_pod_stuck",
            "Pods whose start has passed the limit of a phase, by the first such phase",
            Family::default(),
        );
        stuck.get_or_create(&[("phase", fixed(Phase::Queued.name()))]).set(0);
        let bind_conflicts = put(
            &mut registry,
            "podway_scheduler_bind_conflicts",
            "Bindings that the API server refused because the pod is bound or another one (409)",
            Counter::default(),
        );
        let shadow = put(
            &mut registry,
            "podway_scheduler_shadow_decisions",
            "Bindings of another scheduler, by how they compare with what this one would have decided",
            Family::default(),
        );
        let audits = put(
            &mut registry,
            "podway_scheduler_audits",
            "How often the cache was compared with what the API server lists",
            Counter::default(),
        );
        let faults: Gauges<1> = put(
            &mut registry,
            "podway_scheduler_cache_faults",
            "What of the cache the last two such comparisons found wrong, by kind; 0 while all is well",
            Family::default(),
        );
        for kind in Fault::KINDS {
            faults.get_or_create(&[("kind", fixed(kind))]).set(0);
        }
        let leader = put(
            &mut registry,
            "leader_election_master_status",
            "Gauge of if the reporting system is master of the relevant lease, 0 indicates backup, 1 indicates \
             master. 'name' is the string used to identify the lease. Please make sure to group by name.",
            Family::default(),
        );
        goroutines.get_or_create(&[("operation", fixed("binding"))]).set(0);
        Metrics {
            registry,
            attempts,
            attempt_duration,
            sli,
            pod_attempts,
            pending,
            incoming,
            points,
            evaluations,
            unschedulable,
            permit_wait,
            goroutines,
            cache,
            phases,
            stuck,
            bind_conflicts,
            preemptions,
            victims,
            leader,
            shadow,
            audits,
            faults,
        }
    }

    /// PostFilter looked for victims, and found so many.
    pub fn preempted(&self, victims: Option<usize>) {
        self.preemptions.inc();
        if let Some(n) = victims {
            #[expect(clippy::cast_precision_loss, reason = "a count of pods")]
            self.victims.observe(n as f64);
        }
    }

    /// An attempt ended, after `micros`.
    pub fn attempt(&self, result: AttemptResult, scheduler: &str, micros: u64) {
        let labels = [("result", fixed(result.name())), profile(scheduler)];
        self.attempts.get_or_create(&labels).inc();
        self.attempt_duration.get_or_create(&labels).observe(seconds(micros));
    }

    /// A pod was bound at its `attempts`th attempt, `micros` after it came.
    pub fn scheduled(&self, attempts: u32, micros: u64) {
        let label = if attempts >= 15 { "15+".into() } else { Cow::Owned(attempts.to_string()) };
        self.sli.get_or_create(&[("attempts", label)]).observe(seconds(micros));
        self.pod_attempts.observe(f64::from(attempts));
    }

    /// What a cycle's extension points did.
    pub fn trace(&self, trace: &Trace, scheduler: &str) {
        for (point, status, micros) in &trace.points {
            self.point(*point, status, scheduler, *micros);
        }
        for ((plugin, point), calls) in &trace.evaluated {
            let labels =
                [("plugin", fixed(plugin)), ("extension_point", fixed(point.name())), profile(scheduler)];
            self.evaluations.get_or_create(&labels).inc_by(*calls);
        }
    }

    /// An extension point ran.
    pub fn point(&self, point: Point, status: &'static str, scheduler: &str, micros: u64) {
        let labels =
            [("extension_point", fixed(point.name())), ("status", fixed(status)), profile(scheduler)];
        self.points.get_or_create(&labels).observe(seconds(micros));
    }

    /// A pod was held by Permit.
    pub fn permit_waited(&self, status: &'static str, micros: u64) {
        self.permit_wait.get_or_create(&[("result", fixed(status))]).observe(seconds(micros));
    }

    /// Pods came into queues.
    pub fn incoming(&self, counts: BTreeMap<(&'static str, &'static str), u64>) {
        for ((queue, event), n) in counts {
            self.incoming.get_or_create(&[("queue", fixed(queue)), ("event", fixed(event))]).inc_by(n);
        }
    }

    /// A binding task began (`1`) or ended (`-1`).
    pub fn binding_tasks(&self, change: i64) {
        self.goroutines.get_or_create(&[("operation", fixed("binding"))]).inc_by(change);
    }

    /// The API server refused a binding with 409.
    pub fn bind_conflict(&self) {
        self.bind_conflicts.inc();
    }

    /// The cache was audited, and these faults were confirmed.
    pub fn audited<'a>(&self, kinds: impl Iterator<Item = &'a str>) {
        self.audits.inc();
        let mut counts: BTreeMap<&str, i64> = BTreeMap::new();
        kinds.for_each(|kind| *counts.entry(kind).or_insert(0) += 1);
        for kind in Fault::KINDS {
            let n = counts.get(kind).copied().unwrap_or(0);
            self.faults.get_or_create(&[("kind", fixed(kind))]).set(n);
        }
    }

    /// A binding of another scheduler was compared.
    pub fn shadowed(&self, result: &'static str) {
        self.shadow.get_or_create(&[("result", fixed(result))]).inc();
    }

    /// Whether this replica holds the lease.
    pub fn leads(&self, lease: &str, leads: bool) {
        self.leader.get_or_create(&[("name", Cow::Owned(lease.to_owned()))]).set(i64::from(leads));
    }

    /// The phases of a pod, once they have ended.
    pub fn records(&self, records: &[Record]) {
        for record in records {
            let Some(micros) = record.duration() else { continue };
            let result = match record.outcome {
                Outcome::Running => continue,
                Outcome::Succeeded => "succeeded",
                Outcome::Failed => "failed",
                Outcome::Skipped => "skipped",
            };
            let labels = [("phase", fixed(record.phase.name())), ("result", fixed(result))];
            self.phases.get_or_create(&labels).observe(seconds(micros));
        }
    }

    /// Sets the gauges.
    pub fn set(&self, health: &Health) {
        let Lengths { active, backoff, unschedulable, gated } = health.lengths;
        for (queue, n) in
            [("active", active), ("backoff", backoff), ("unschedulable", unschedulable), ("gated", gated)]
        {
            self.pending.get_or_create(&[("queue", fixed(queue))]).set(size(n));
        }
        let (nodes, pods, assumed) = health.sizes;
        for (kind, n) in [("nodes", nodes), ("pods", pods), ("assumed_pods", assumed)] {
            self.cache.get_or_create(&[("type", fixed(kind))]).set(size(n));
        }
        self.stuck.get_or_create(&[("phase", fixed(Phase::Queued.name()))]).set(size(health.stuck));
        self.unschedulable.clear();
        for ((plugin, scheduler), n) in &health.refused {
            self.unschedulable.get_or_create(&[("plugin", fixed(plugin)), profile(scheduler)]).set(size(*n));
        }
    }

    /// OpenMetrics text.
    ///
    /// # Errors
    /// Only when a metric cannot be formatted, which is a fault of the program.
    pub fn openmetrics(&self) -> Result<String, std::fmt::Error> {
        let mut out = String::new();
        encode(&mut out, &self.registry)?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_buckets_are_upstreams_in_both_formats() {
        let metrics = Metrics::new();
        metrics.attempt(AttemptResult::Scheduled, "podway", 1_500);
        metrics.scheduled(20, 70_000);
        metrics.set(&Health {
            lengths: Lengths { gated: 2, ..Lengths::default() },
            stuck: 3,
            ..Health::default()
        });
        metrics.incoming(BTreeMap::from([(("active", "NodeAdd"), 3)]));
        metrics.point(Point::Bind, "Success", "podway", 900);
        let open = metrics.openmetrics().unwrap();
        assert!(open.ends_with("# EOF\n"));
        let text = text::prometheus(&open);
        for line in [
            "# TYPE scheduler_schedule_attempts_total counter",
            "scheduler_schedule_attempts_total{result=\"scheduled\",profile=\"podway\"} 1",
            "scheduler_scheduling_attempt_duration_seconds_bucket{le=\"0.002\",result=\"scheduled\",profile=\"podway\"} 1",
            "scheduler_pod_scheduling_sli_duration_seconds_bucket{le=\"0.08\",attempts=\"15+\"} 1",
            "scheduler_pod_scheduling_attempts_bucket{le=\"16.0\"} 0",
            "scheduler_pending_pods{queue=\"gated\"} 2",
            "scheduler_queue_incoming_pods_total{queue=\"active\",event=\"NodeAdd\"} 3",
            "scheduler_preemption_attempts_total 0",
            "scheduler_goroutines{operation=\"binding\"} 0",
            "podway_pod_stuck{phase=\"Queued\"} 3",
            "podway_scheduler_bind_conflicts_total 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\nis not in\n{text}");
        }
        assert!(text.contains("scheduler_framework_extension_point_duration_seconds_bucket{le=\"0.0128\""));
    }
}
