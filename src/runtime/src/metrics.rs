//! What the runtime counts.
//!
//! Durations come from flow records and from nothing else, so that they agree with every other
//! picture of the same start. No label holds a name of a pod: their number must stay small.

use podway_flow::{Outcome, Record};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use std::time::Duration;

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// The metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    phases: Family<Labels<2>, Histogram>,
    checkpoints: Family<Labels<1>, Histogram>,
    sandboxes: Family<Labels<1>, Gauge>,
    containers: Family<Labels<1>, Gauge>,
}

fn phase_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 17)) // 1 ms to 65 s
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let phases = Family::new_with_constructor(phase_histogram as fn() -> Histogram);
        let (sandboxes, containers) = (Family::default(), Family::default());
        registry.register(
            "podway_pod_phase_duration_seconds",
            "How long a phase of a pod's start took, 1 ms to 60 s",
            phases.clone(),
        );
        let checkpoints = Family::new_with_constructor(phase_histogram as fn() -> Histogram);
        registry.register(
            "podway_runtime_container_checkpoint_duration_seconds",
            "How long a checkpoint of a container took, 1 ms to 60 s",
            checkpoints.clone(),
        );
        registry.register("podway_runtime_sandboxes", "Sandboxes by state", sandboxes.clone());
        registry.register("podway_runtime_containers", "Containers by state", containers.clone());
        Metrics { registry, phases, checkpoints, sandboxes, containers }
    }
}

impl Metrics {
    /// Takes the durations of what was recorded.
    pub fn observe(&self, records: &[Record]) {
        for record in records {
            let Some(micros) = record.duration() else { continue };
            let result = match record.outcome {
                Outcome::Succeeded => "succeeded",
                Outcome::Failed => "failed",
                Outcome::Skipped => "skipped",
                Outcome::Running => continue,
            };
            let labels = [("phase", record.phase.name()), ("result", result)];
            self.phases.get_or_create(&labels).observe(micros as f64 / 1e6);
        }
    }

    /// Takes how long a checkpoint took, and whether it was made.
    pub fn checkpoint(&self, took: Duration, made: bool) {
        let result = if made { "succeeded" } else { "failed" };
        self.checkpoints.get_or_create(&[("result", result)]).observe(took.as_secs_f64());
    }

    /// Sets how many there are, by state.
    pub fn count(&self, sandboxes: &[(&'static str, usize)], containers: &[(&'static str, usize)]) {
        for (family, counts) in [(&self.sandboxes, sandboxes), (&self.containers, containers)] {
            for (state, n) in counts {
                let gauge = family.get_or_create(&[("state", *state)]);
                gauge.set(i64::try_from(*n).unwrap_or(i64::MAX));
            }
        }
    }

    /// The metrics in the OpenMetrics text format.
    ///
    /// # Errors
    /// The encoder's.
    pub fn openmetrics(&self) -> Result<String, std::fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use podway_flow::{Clock, Phase, Recorder, Writer};

    #[test]
    fn records_become_durations_by_phase_and_result() {
        let metrics = Metrics::default();
        let recorder = Recorder::new(Writer::Runtime, Clock::new());
        recorder.begin(Phase::SandboxCreated).succeed("Created");
        recorder.begin(Phase::NetworkConfigured).fail("NetworkFailed", "no");
        metrics.observe(&recorder.take());
        let mut text = String::new();
        encode(&mut text, &metrics.registry).unwrap();
        for line in [
            "podway_pod_phase_duration_seconds_count{phase=\"SandboxCreated\",result=\"succeeded\"} 1",
            "podway_pod_phase_duration_seconds_count{phase=\"NetworkConfigured\",result=\"failed\"} 1",
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
