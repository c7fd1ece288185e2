//! The documents that kube-burner's `podLatency` measurement indexes, so that its dashboards and scripts
//! can read our numbers: `podLatencyMeasurement`, one per pod, and `podLatencyQuantilesMeasurement`, one
//! per condition. Fields as in kube-burner's `pkg/measurements/pod_latency.go` and `metrics/metrics.go`:
//! ms from creation, integers. `Initialized` and `ContainersReady` are no phases of ours and are left out.

use super::Quantiles;
use crate::{Flow, Micros, Outcome, Phase};
use serde_json::{Value, json};

/// What the documents of one run have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// kube-burner's `uuid`: which run.
    pub uuid: String,
    /// kube-burner's `jobName`.
    pub job_name: String,
    /// When the quantiles were made.
    pub now: Micros,
}

/// kube-burner's condition, its field in a pod's document, and the phase at whose end it holds.
const CONDITIONS: [(&str, &str, Phase); 4] = [
    ("PodScheduled", "schedulingLatency", Phase::Bound),
    ("PodReadyToStartContainers", "readyToStartContainersLatency", Phase::NetworkConfigured),
    ("ContainersStarted", "containersStartedLatency", Phase::ContainersStarted),
    ("Ready", "podReadyLatency", Phase::Ready),
];

/// All documents of a group: kube-burner too leaves out a pod that is not Ready.
#[must_use]
pub fn documents(flows: &[Flow], run: &Run) -> Vec<Value> {
    let ready: Vec<&Flow> = flows.iter().filter(|f| super::ready_in(f).is_some()).collect();
    let mut documents: Vec<Value> = ready.iter().filter_map(|flow| pod(flow, run)).collect();
    for (condition, _, phase) in CONDITIONS {
        let sample = ready.iter().filter_map(|flow| latency(flow, phase)).collect();
        documents.extend(Quantiles::of(sample).map(|q| quantiles(condition, &q, run)));
    }
    documents
}

fn pod(flow: &Flow, run: &Run) -> Option<Value> {
    let mut document = json!({
        "timestamp": origin(flow)?.rfc3339(),
        "metricName": "podLatencyMeasurement",
        "uuid": run.uuid,
        "jobName": run.job_name,
        "namespace": flow.pod.namespace,
        "podName": flow.pod.name,
        "nodeName": flow.pod.node,
    });
    for (_, field, phase) in CONDITIONS {
        if let Some(latency) = latency(flow, phase) {
            document[field] = whole_ms(latency).into();
        }
    }
    Some(document)
}

fn quantiles(condition: &str, q: &Quantiles, run: &Run) -> Value {
    json!({
        "quantileName": condition,
        "uuid": run.uuid,
        "jobName": run.job_name,
        "P99": whole_ms(q.p99_micros),
        "P95": whole_ms(q.p95_micros),
        "P50": whole_ms(q.p50_micros),
        "min": whole_ms(q.min_micros),
        "max": whole_ms(q.max_micros),
        "avg": whole_ms(q.mean_micros),
        "timestamp": run.now.rfc3339(),
        "metricName": "podLatencyQuantilesMeasurement",
    })
}

fn origin(flow: &Flow) -> Option<Micros> {
    flow.records.iter().map(|r| r.start).min()
}

/// From creation to the end of a phase, in µs.
fn latency(flow: &Flow, phase: Phase) -> Option<u64> {
    let summary = flow.summary(phase).filter(|s| s.outcome == Outcome::Succeeded)?;
    Some(summary.end?.since(origin(flow)?))
}

/// As Go's `Duration.Milliseconds`: cut, not rounded.
const fn whole_ms(micros: u64) -> u64 {
    micros / 1000
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn a_ready_pod_gives_a_document_and_the_group_its_quantiles() {
        let run = Run { uuid: "u".into(), job_name: "j".into(), now: Micros(0) };
        let documents = documents(&[samples::whole(), samples::whole(), samples::stuck()], &run);
        let of = |name: &str| documents.iter().filter(|d| d["metricName"] == name).collect::<Vec<_>>();
        let pods = of("podLatencyMeasurement");
        assert_eq!(pods.len(), 2);
        assert_eq!((&pods[0]["podName"], &pods[0]["nodeName"]), (&json!("web-0"), &json!("podway-0")));
        assert_eq!(pods[0]["timestamp"], "2026-11-24T05:31:12.104123Z");
        assert_eq!(
            [&pods[0]["schedulingLatency"], &pods[0]["readyToStartContainersLatency"]],
            [&json!(5), &json!(21)]
        );
        assert_eq!(
            [&pods[0]["containersStartedLatency"], &pods[0]["podReadyLatency"]],
            [&json!(52), &json!(84)]
        );
        let quantiles = of("podLatencyQuantilesMeasurement");
        let names: Vec<_> = quantiles.iter().map(|q| q["quantileName"].as_str().unwrap()).collect();
        assert_eq!(names, ["PodScheduled", "PodReadyToStartContainers", "ContainersStarted", "Ready"]);
        assert_eq!(
            (&quantiles[3]["P99"], &quantiles[3]["avg"], &quantiles[3]["jobName"]),
            (&json!(84), &json!(84), &json!("j"))
        );
    }
}
