//! A flow as one trace: the message that any OpenTelemetry receiver takes (OTLP 1.x), in the official types, which
//! are protobuf over gRPC and, by serde, OTLP's JSON.
//!
//! The trace has a resource per writer (API server, scheduler, agent, runtime), a root span for the start and
//! a span per record below it. Ids are functions of the pod's UID, not random: whoever exports a pod, and
//! however often, tells of the same trace. A `traceparent` on the pod makes the root a child of its span.

mod parent;

pub use parent::{PARENT_ANNOTATION, TraceParent};

use crate::{Flow, Micros, Outcome, Record, Resolution, Writer};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use sha2::{Digest as _, Sha256};

/// The trace id of a pod: its parent's, else its UID, which is 128 bits as well.
#[must_use]
pub fn trace_id(uid: &str, parent: Option<&TraceParent>) -> [u8; 16] {
    let bare: String = uid.chars().filter(|&c| c != '-').collect();
    let own =
        (bare.len() == 32).then(|| u128::from_str_radix(&bare, 16).ok()).flatten().filter(|id| *id != 0);
    parent.map_or_else(|| own.map_or_else(|| digest(uid), u128::to_be_bytes), |parent| parent.trace)
}

/// The request that tells of a pod's start; no resource, and so nothing to send, for an empty flow.
#[must_use]
pub fn request(flow: &Flow, parent: Option<&TraceParent>) -> ExportTraceServiceRequest {
    let trace = trace_id(&flow.pod.uid, parent);
    let root = span_id(flow, "start");
    let mut resources = Vec::new();
    for writer in [Writer::ApiServer, Writer::Scheduler, Writer::Agent, Writer::Runtime] {
        let ended = flow.records.iter().filter(|r| r.writer == writer && r.end.is_some());
        let mut spans: Vec<Span> = ended.map(|r| span(flow, r, trace, root)).collect();
        // The agent sees the whole, and tells of it.
        if writer == Writer::Agent
            && let Some(start) = start(flow, trace, root, parent)
        {
            spans.insert(0, start);
        }
        if !spans.is_empty() {
            // The API server and the scheduler are somewhere else.
            let here = matches!(writer, Writer::Agent | Writer::Runtime);
            let node = if here { flow.pod.node.as_str() } else { "" };
            let attributes = attributes(&[("service.name", service(writer)), ("k8s.node.name", node)]);
            let scope = InstrumentationScope {
                name: "podway".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..InstrumentationScope::default()
            };
            resources.push(ResourceSpans {
                resource: Some(Resource { attributes, ..Resource::default() }),
                scope_spans: vec![ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() }],
                ..ResourceSpans::default()
            });
        }
    }
    ExportTraceServiceRequest { resource_spans: resources }
}

fn start(flow: &Flow, trace: [u8; 16], root: [u8; 8], parent: Option<&TraceParent>) -> Option<Span> {
    let begin = flow.records.iter().map(|r| r.start).min()?;
    let end = flow.records.iter().filter_map(|r| r.end).max()?;
    let failed = flow.phases().into_iter().find(|s| s.outcome == Outcome::Failed);
    Some(Span {
        trace_id: trace.to_vec(),
        span_id: root.to_vec(),
        parent_span_id: parent.map(|p| p.span.to_vec()).unwrap_or_default(),
        name: "pod start".to_owned(),
        kind: SpanKind::Internal.into(),
        start_time_unix_nano: nanos(begin),
        end_time_unix_nano: nanos(end),
        attributes: attributes(&[
            ("k8s.namespace.name", &flow.pod.namespace),
            ("k8s.pod.name", &flow.pod.name),
            ("k8s.pod.uid", &flow.pod.uid),
        ]),
        status: Some(failed.map_or_else(Status::default, |s| error(format!("{}: {}", s.phase, s.reason)))),
        ..Span::default()
    })
}

fn span(flow: &Flow, record: &Record, trace: [u8; 16], root: [u8; 8]) -> Span {
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
    let failed = record.outcome == Outcome::Failed;
    Span {
        trace_id: trace.to_vec(),
        span_id: span_id(flow, &key).to_vec(),
        parent_span_id: root.to_vec(),
        name: record.phase.name().to_owned(),
        kind: SpanKind::Internal.into(),
        start_time_unix_nano: nanos(record.start),
        end_time_unix_nano: nanos(record.end.unwrap_or(record.start)),
        attributes: all,
        status: Some(if failed { error(record.message.clone()) } else { Status::default() }),
        ..Span::default()
    }
}

fn error(message: String) -> Status {
    Status { code: StatusCode::Error.into(), message }
}

const fn service(writer: Writer) -> &'static str {
    match writer {
        Writer::ApiServer => "kube-apiserver",
        Writer::Scheduler => "podway-scheduler",
        Writer::Agent => "podway-agent",
        Writer::Runtime => "podway-runtime",
    }
}

fn attributes(pairs: &[(&str, &str)]) -> Vec<KeyValue> {
    pairs.iter().filter(|(_, value)| !value.is_empty()).map(|(key, value)| attribute(key, value)).collect()
}

fn attribute(key: &str, value: &str) -> KeyValue {
    let value = AnyValue { value: Some(any_value::Value::StringValue(value.to_owned())) };
    KeyValue { key: key.to_owned(), value: Some(value), ..KeyValue::default() }
}

fn nanos(at: Micros) -> u64 {
    u64::try_from(at.0).unwrap_or(0).saturating_mul(1000)
}

fn span_id(flow: &Flow, key: &str) -> [u8; 8] {
    digest(&format!("{}/{key}", flow.pod.uid))
}

/// The first `N` bytes of the SHA-256.
fn digest<const N: usize>(text: &str) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.iter_mut().zip(Sha256::digest(text)).for_each(|(to, from)| *to = from);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;
    use serde_json::{Value, json};
    use std::collections::BTreeSet;

    /// As JSON: what `podway flow -o otlp` prints.
    fn json_of(flow: &Flow, parent: Option<&TraceParent>) -> Value {
        serde_json::to_value(request(flow, parent)).unwrap()
    }

    fn spans(request: &Value) -> Vec<Value> {
        let resources = request["resourceSpans"].as_array().unwrap();
        resources.iter().flat_map(|r| r["scopeSpans"][0]["spans"].as_array().unwrap().clone()).collect()
    }

    #[test]
    fn one_trace_has_every_record_and_a_resource_per_writer() {
        let flow = samples::whole();
        let request = json_of(&flow, None);
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
        let root = spans.iter().find(|s| s["parentSpanId"] == "").unwrap();
        assert!(spans.iter().all(|s| s["traceId"] == root["traceId"]));
        assert!(spans.iter().all(|s| s == root || s["parentSpanId"] == root["spanId"]));
        assert_eq!(root["startTimeUnixNano"], "1795498272104123000");
        assert_eq!(json_of(&Flow::default(), None)["resourceSpans"], json!([]));
        assert_eq!(json_of(&flow, None), request, "the same pod is the same trace");
    }

    #[test]
    fn a_failed_attempt_is_an_error_and_what_runs_is_not_a_span_yet() {
        let spans = spans(&json_of(&samples::stuck(), None));
        let failed: Vec<_> = spans.iter().filter(|s| s["status"]["code"] == 2).collect();
        assert_eq!((spans.len(), failed.len(), &failed[0]["name"]), (3, 1, &json!("ImagesPulled")));
    }

    #[test]
    fn the_pods_own_trace_is_joined_and_what_is_none_is_not() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let parent = TraceParent::parse(text).unwrap();
        let spans = spans(&json_of(&samples::whole(), Some(&parent)));
        assert!(spans.iter().all(|s| s["traceId"] == "4bf92f3577b34da6a3ce929d0e0e4736"));
        assert!(spans.iter().any(|s| s["parentSpanId"] == "00f067aa0ba902b7"));
        assert_eq!(
            trace_id("0F0E0D0C-0b0a-0908-0706-050403020100", None),
            0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100_u128.to_be_bytes()
        );
        assert_ne!(trace_id("no uid", None), trace_id("00000000-0000-0000-0000-000000000000", None));
    }
}
