//! What the scheduler told of a pod's placement: its records, on the Binding and so on the pod.

use crate::annotations::SCHEDULING_ANNOTATION;
use k8s_openapi::api::core::v1::Pod;
use podway_flow::{Phase, Record, Writer, wire};

/// The phases that are the scheduler's to tell.
const PHASES: [Phase; 4] = [Phase::Queued, Phase::NodesFiltered, Phase::NodesScored, Phase::Bound];

/// The scheduler's records of `pod`; none where another scheduler placed it.
///
/// Anybody may write the annotation: what it cannot be is left out, what it claims is the scheduler's word and
/// nobody else's.
#[must_use]
pub fn told(pod: &Pod) -> Vec<Record> {
    let annotation = pod.metadata.annotations.as_ref().and_then(|a| a.get(SCHEDULING_ANNOTATION));
    let told = annotation.and_then(|text| wire::decode(text.as_bytes()).ok()).unwrap_or_default();
    let own = told.into_iter().filter(|record| PHASES.contains(&record.phase));
    own.map(|record| Record { writer: Writer::Scheduler, ..record }).collect()
}
