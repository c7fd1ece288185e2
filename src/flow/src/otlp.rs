//! A flow as one trace, in OTLP's JSON: what `POST /v1/traces` of any OpenTelemetry receiver takes (OTLP 1.x,
//! "JSON Protobuf encoding": ids in hex, 64-bit numbers as strings).
//!
//! The trace has a resource per writer (API server, scheduler, agent, runtime), a root span for the start and
//! a span per record below it. Ids are functions of the pod's UID, not random: whoever exports a pod, and
//! however often, tells of the same trace. A `traceparent` on the pod makes the root a child of its span.

use crate::{Flow, Micros, Outcome, Record, Resolution, Writer};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// The annotation by which a pod's creator hands over its trace (W3C trace context), as proposed in
/// kubernetes/enhancements#5915. It is read and never written.
pub const PARENT_ANNOTATION: &str = "tracing.k8s.io/traceparent";

/// A W3C `traceparent`, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceParent {
    trace: String,
    span: String,
}

impl TraceParent {
    /// Reads `00-TRACE-SPAN-FLAGS`; `None` for what is not one, as the standard asks: the trace starts anew.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split('-');
        let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let hex = |text: &str, length| {
            text.len() == length && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        };
        let whole = hex(version, 2) && hex(trace, 32) && hex(span, 16) && hex(flags, 2);
        // A later version may have more parts; version 00 has four, and ff is none.
        let length = (version != "00" || parts.next().is_none()) && version != "ff";
        let some = trace.bytes().any(|b| b != b'0') && span.bytes().any(|b| b != b'0');
        (whole && length && some).then(|| TraceParent { trace: trace.to_owned(), span: span.to_owned() })
    }
}

/// The trace id of a pod: its parent's, else its UID, which is 128 bits as well.
#[must_use]
pub fn trace_id(uid: &str, parent: Option<&TraceParent>) -> String {
    let bare: String = uid.chars().filter(|&c| c != '-').collect::<String>().to_ascii_lowercase();
    match parent {
        Some(parent) => parent.trace.clone(),
        None if bare.len() == 32 && bare.bytes().all(|b| b.is_ascii_hexdigit()) => bare,
        None => digest(uid, 16),
    }
}

/// The body of an `ExportTraceServiceRequest`; no resource, and so nothing to send, for an empty flow.
#[must_use]
pub fn request(flow: &Flow, parent: Option<&TraceParent>) -> Value {
    let trace = trace_id(&flow.pod.uid, parent);
    let root = span_id(flow, "start");
    let mut resources: Vec<Value> = Vec::new();
    for writer in [Writer::ApiServer, Writer::Scheduler, Writer::Agent, Writer::Runtime] {
        let mut spans: Vec<Value> = flow
            .records
            .iter()
            .filter(|r| r.writer == writer && r.end.is_some())
            .map(|r| span(flow, r, &trace, &root))
            .collect();
        // The agent sees the whole, and tells of it.
        if writer == Writer::Agent
            && let Some(start) = start(flow, &trace, &root, parent)
        {
            spans.insert(0, start);
        }
        if !spans.is_empty() {
            let resource =
                attributes(&[("service.name", service(writer)), ("k8s.node.name", &flow.pod.node)]);
            resources.push(json!({
                "resource": {"attributes": resource},
                "scopeSpans": [{"scope": {"name": "podway", "version": env!("CARGO_PKG_VERSION")}, "spans": spans}],
            }));
        }
    }
    json!({ "resourceSpans": resources })
}

fn start(flow: &Flow, trace: &str, root: &str, parent: Option<&TraceParent>) -> Option<Value> {
    let begin = flow.records.iter().map(|r| r.start).min()?;
    let end = flow.records.iter().filter_map(|r| r.end).max()?;
    let mut span = json!({
        "traceId": trace, "spanId": root, "name": "pod start", "kind": INTERNAL,
        "startTimeUnixNano": nanos(begin), "endTimeUnixNano": nanos(end),
        "attributes": attributes(&[
            ("k8s.namespace.name", &flow.pod.namespace),
            ("k8s.pod.name", &flow.pod.name),
            ("k8s.pod.uid", &flow.pod.uid),
        ]),
        "status": {},
    });
    if let Some(parent) = parent {
        span["parentSpanId"] = parent.span.clone().into();
    }
    let failed = flow.phases().into_iter().find(|s| s.outcome == Outcome::Failed);
    if let Some(failed) = failed {
        span["status"] = json!({"code": ERROR, "message": format!("{}: {}", failed.phase, failed.reason)});
    }
    Some(span)
}

/// `SPAN_KIND_INTERNAL` and `STATUS_CODE_ERROR` of opentelemetry-proto's `trace.proto`.
const INTERNAL: u8 = 1;
const ERROR: u8 = 2;

fn span(flow: &Flow, record: &Record, trace: &str, root: &str) -> Value {
    let key =
        format!("{}/{}/{}", record.phase, record.subject.as_deref().unwrap_or_default(), record.attempt);
    let (attempt, queued) = (record.attempt.to_string(), record.queued_micros.to_string());
    let mut facts: Vec<(&str, &str)> =
        vec![("k8s.pod.uid", &flow.pod.uid), ("podway.reason", &record.reason), ("podway.attempt", &attempt)];
    facts.extend(record.subject.as_deref().map(|subject| ("podway.subject", subject)));
    if record.queued_micros > 0 {
        facts.push(("podway.queued_micros", &queued));
    }
    if record.resolution == Resolution::Second {
        facts.push(("podway.resolution", "1s"));
    }
    let mut all = attributes(&facts);
    all.extend(
        record.evidence.iter().map(|(key, value)| attribute(&format!("podway.evidence.{key}"), value)),
    );
    json!({
        "traceId": trace, "spanId": span_id(flow, &key), "parentSpanId": root, "name": record.phase.name(),
        "kind": INTERNAL, "startTimeUnixNano": nanos(record.start),
        "endTimeUnixNano": nanos(record.end.unwrap_or(record.start)), "attributes": all,
        "status": if record.outcome == Outcome::Failed { json!({"code": ERROR, "message": record.message}) } else { json!({}) },
    })
}

const fn service(writer: Writer) -> &'static str {
    match writer {
        Writer::ApiServer => "kube-apiserver",
        Writer::Scheduler => "podway-scheduler",
        Writer::Agent => "podway-agent",
        Writer::Runtime => "podway-runtime",
    }
}

fn attributes(pairs: &[(&str, &str)]) -> Vec<Value> {
    pairs.iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| attribute(key, value)).collect()
}

fn attribute(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}

fn nanos(at: Micros) -> String {
    (i128::from(at.0.max(0)) * 1000).to_string()
}

fn span_id(flow: &Flow, key: &str) -> String {
    digest(&format!("{}/{key}", flow.pod.uid), 8)
}

fn digest(text: &str, bytes: usize) -> String {
    Sha256::digest(text).iter().take(bytes).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;
    use std::collections::BTreeSet;

    fn spans(request: &Value) -> Vec<Value> {
        let resources = request["resourceSpans"].as_array().unwrap();
        resources.iter().flat_map(|r| r["scopeSpans"][0]["spans"].as_array().unwrap().clone()).collect()
    }

    #[test]
    fn one_trace_has_every_record_and_a_resource_per_writer() {
        let flow = samples::whole();
        let request = request(&flow, None);
        let services: Vec<&str> = request["resourceSpans"]
            .as_array()
            .unwrap()
            .iter()
            .map(|r| r["resource"]["attributes"][0]["value"]["stringValue"].as_str().unwrap())
            .collect();
        assert_eq!(services, ["kube-apiserver", "podway-scheduler", "podway-agent", "podway-runtime"]);
        let spans = spans(&request);
        assert_eq!(spans.len(), flow.records.len() + 1);
        let ids: BTreeSet<&str> = spans.iter().map(|s| s["spanId"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), spans.len());
        let root = spans.iter().find(|s| s["parentSpanId"].is_null()).unwrap();
        assert!(spans.iter().all(|s| s["traceId"] == root["traceId"]));
        assert!(spans.iter().all(|s| s == root || s["parentSpanId"] == root["spanId"]));
        assert_eq!(root["startTimeUnixNano"], "1795498272104123000");
        assert_eq!(super::request(&Flow::default(), None)["resourceSpans"], json!([]));
        assert_eq!(super::request(&flow, None), request, "the same pod is the same trace");
    }

    #[test]
    fn a_failed_attempt_is_an_error_and_what_runs_is_not_a_span_yet() {
        let spans = spans(&request(&samples::stuck(), None));
        let failed: Vec<_> = spans.iter().filter(|s| s["status"]["code"] == 2).collect();
        assert_eq!((spans.len(), failed.len(), &failed[0]["name"]), (3, 1, &json!("ImagesPulled")));
    }

    #[test]
    fn the_pods_own_trace_is_joined_and_what_is_none_is_not() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let parent = TraceParent::parse(text).unwrap();
        let spans = spans(&request(&samples::whole(), Some(&parent)));
        assert!(spans.iter().all(|s| s["traceId"] == "4bf92f3577b34da6a3ce929d0e0e4736"));
        assert!(spans.iter().any(|s| s["parentSpanId"] == "00f067aa0ba902b7"));
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            assert_eq!(TraceParent::parse(bad), None, "{bad}");
        }
        assert_eq!(
            trace_id("0F0E0D0C-0b0a-0908-0706-050403020100", None),
            "0f0e0d0c0b0a09080706050403020100"
        );
        assert_eq!(trace_id("no uid", None).len(), 32);
    }
}
