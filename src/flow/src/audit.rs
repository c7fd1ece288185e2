//! Steps 1 to 3 and 6, read from the API server's audit log (audit.k8s.io/v1, a JSON event per line).
//!
//! The log says when a request was received and when it was answered, both in µs, who asked and why
//! it was allowed. What happened in between is not in it: `Requested` is a point, and `Persisted`
//! lasts from there to the answer. The log holds users' text: lines are bounded, and so is every
//! value that is kept; a line that is not an event is counted, not fatal.

use crate::record::bounded;
use crate::{Flow, Micros, Outcome, Phase, Record, Resolution, Writer};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::{self, BufRead, Read as _};

/// The longest line that is read; a longer one is skipped.
pub const LINE_LIMIT: u64 = 1024 * 1024;
/// The longest value that is kept as evidence, in bytes.
const VALUE_LIMIT: usize = 256;

/// Collects what an audit log says of one pod.
#[derive(Debug)]
pub struct Collector<'a> {
    namespace: &'a str,
    name: &'a str,
    records: BTreeMap<Phase, Record>,
    /// Lines that are no event: too long, no JSON, no time.
    pub skipped: u64,
}

impl<'a> Collector<'a> {
    /// For the pod `namespace/name`. Of several pods of that name, the last one made counts.
    #[must_use]
    pub fn new(namespace: &'a str, name: &'a str) -> Self {
        Collector { namespace, name, records: BTreeMap::new(), skipped: 0 }
    }

    /// Takes one line.
    pub fn line(&mut self, line: &[u8]) {
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        match serde_json::from_slice::<Event>(line) {
            Ok(event) => self.event(&event),
            Err(_) => self.skipped += 1,
        }
    }

    /// Takes a whole log.
    ///
    /// # Errors
    /// When the reader fails.
    pub fn log(&mut self, mut reader: impl BufRead) -> io::Result<()> {
        let mut line = Vec::new();
        loop {
            line.clear();
            if (&mut reader).take(LINE_LIMIT).read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            if line.last() != Some(&b'\n') && line.len() as u64 == LINE_LIMIT {
                self.skipped += 1;
                reader.skip_until(b'\n')?;
                continue;
            }
            self.line(&line);
        }
    }

    /// The records: `Requested`, `Persisted`, `Bound`, as far as the log has them.
    #[must_use]
    pub fn finish(self) -> Vec<Record> {
        self.records.into_values().collect()
    }

    fn event(&mut self, event: &Event) {
        let Some(object) = &event.object_ref else { return };
        let response = event.response_object.as_ref().and_then(|o| o.metadata.as_ref());
        // A name that the server made up (generateName) stands only in the answer.
        let name = if object.name.is_empty() { response.map_or("", |m| &m.name) } else { &object.name };
        let code = event.response_status.as_ref().map_or(0, |s| s.code);
        // A server-side apply creates by PATCH, which is answered with 201 only then.
        let creates = event.verb == "create" || (event.verb == "patch" && code == 201);
        if !creates
            || event.stage != "ResponseComplete"
            || object.resource != "pods"
            || object.namespace != self.namespace
            || name != self.name
        {
            return;
        }
        let (Some(received), Some(answered)) =
            (micros(&event.request_received_timestamp), micros(&event.stage_timestamp))
        else {
            self.skipped += 1;
            return;
        };
        let mut evidence = BTreeMap::new();
        let mut note = |key: &str, value: &str| {
            if !value.is_empty() {
                evidence.insert(key.to_owned(), bounded(value, VALUE_LIMIT));
            }
        };
        note("auditID", &event.audit_id);
        note("code", &code.to_string());
        note("user", &event.user.username);
        note("userAgent", &event.user_agent);
        note("verb", &event.verb);
        for (key, from) in [("decision", "decision"), ("decisionReason", "reason")] {
            note(key, event.annotations.get(&format!("authorization.k8s.io/{from}")).map_or("", |v| v));
        }
        if let Some(meta) = response {
            note("uid", &meta.uid);
            note("resourceVersion", &meta.resource_version);
        }
        let ok = (200..300).contains(&code);
        let make = |phase, start, end, done: &str| Record {
            phase,
            subject: None,
            writer: Writer::ApiServer,
            attempt: 1,
            start,
            end: Some(end),
            queued_micros: 0,
            outcome: if ok { Outcome::Succeeded } else { Outcome::Failed },
            reason: if ok { done.to_owned() } else { format!("Status{code}") },
            message: String::new(),
            resolution: Resolution::Micros,
            evidence: evidence.clone(),
        };
        let end = answered.max(received);
        match object.subresource.as_str() {
            "" if ok => {
                self.records.clear();
                self.records
                    .insert(Phase::Requested, make(Phase::Requested, received, received, "Authorized"));
                let mut persisted = make(Phase::Persisted, received, end, "Created");
                // Who asked and why it was let stands on the request.
                persisted
                    .evidence
                    .retain(|key, _| ["code", "uid", "resourceVersion"].contains(&key.as_str()));
                self.records.insert(Phase::Persisted, persisted);
            }
            // A refused request (the name is taken, forbidden) says nothing of a pod that exists.
            "" => {
                let refused = make(Phase::Requested, received, end, "Authorized");
                self.records.entry(Phase::Requested).or_insert(refused);
            }
            "binding" => {
                let bound = make(Phase::Bound, received, end, "Bound");
                let settled =
                    self.records.get(&Phase::Bound).is_some_and(|b| b.outcome == Outcome::Succeeded);
                if ok || !settled {
                    self.records.insert(Phase::Bound, bound);
                }
            }
            _ => {}
        }
    }
}

/// Adds an audit log's records to a flow. A phase that the flow has in µs keeps its own times and
/// takes on the facts that it lacks; one that it has only to a second is replaced, and its facts stay.
pub fn overlay(flow: &mut Flow, records: Vec<Record>) {
    for mut record in records {
        let fine = |r: &&mut Record| r.phase == record.phase && r.resolution == Resolution::Micros;
        if let Some(own) = flow.records.iter_mut().find(fine) {
            for (key, value) in record.evidence {
                own.evidence.entry(key).or_insert(value);
            }
        } else {
            for coarse in flow.records.iter().filter(|r| r.phase == record.phase) {
                for (key, value) in &coarse.evidence {
                    record.evidence.entry(key.clone()).or_insert_with(|| value.clone());
                }
            }
            flow.records.retain(|r| r.phase != record.phase);
            flow.records.push(record);
        }
    }
}

fn micros(text: &str) -> Option<Micros> {
    text.parse::<jiff::Timestamp>().ok().map(|t| Micros(t.as_microsecond()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    #[serde(default, rename = "auditID")]
    audit_id: String,
    stage: String,
    verb: String,
    #[serde(default)]
    user: User,
    #[serde(default)]
    user_agent: String,
    object_ref: Option<ObjectRef>,
    response_status: Option<ResponseStatus>,
    response_object: Option<ResponseObject>,
    #[serde(default)]
    request_received_timestamp: String,
    #[serde(default)]
    stage_timestamp: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
struct User {
    #[serde(default)]
    username: String,
}

#[derive(Deserialize)]
struct ObjectRef {
    #[serde(default)]
    resource: String,
    #[serde(default)]
    subresource: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
struct ResponseStatus {
    #[serde(default)]
    code: i32,
}

#[derive(Deserialize)]
struct ResponseObject {
    metadata: Option<Metadata>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    uid: String,
    #[serde(default)]
    resource_version: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, sub: &str, code: i32, at: &str) -> String {
        serde_json::json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": "a-1",
            "stage": "ResponseComplete", "verb": "create", "user": {"username": "kubernetes-admin"},
            "objectRef": {"resource": "pods", "subresource": sub, "namespace": "default", "name": name},
            "responseStatus": {"code": code},
            "requestReceivedTimestamp": format!("2026-11-24T05:31:12.{at}Z"),
            "stageTimestamp": "2026-11-24T05:31:12.900001Z",
            "annotations": {"authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": "RBAC"}
        })
        .to_string()
    }

    #[test]
    fn create_and_binding_become_the_first_phases() {
        let log = [
            line("web", "", 409, "000001"),
            line("web", "", 201, "104123"),
            line("other", "", 201, "104124"),
            "garbage".to_owned(),
            String::new(),
            line("web", "binding", 201, "204123"),
            line("web", "status", 200, "304123"),
        ]
        .join("\n");
        let mut collector = Collector::new("default", "web");
        collector.log(log.as_bytes()).unwrap();
        assert_eq!(collector.skipped, 1);
        let records = collector.finish();
        let phases: Vec<Phase> = records.iter().map(|r| r.phase).collect();
        assert_eq!(phases, [Phase::Requested, Phase::Persisted, Phase::Bound]);
        assert_eq!(records[1].duration(), Some(795_878));
        assert_eq!(records[0].evidence["user"], "kubernetes-admin");
        assert_eq!(records[0].evidence["decision"], "allow");
    }

    #[test]
    fn a_server_side_apply_that_creates_counts_and_one_that_changes_does_not() {
        let patch = |code| line("web", "", code, "104123").replace(r#""verb":"create""#, r#""verb":"patch""#);
        let mut collector = Collector::new("default", "web");
        collector.line(patch(200).as_bytes());
        assert!(collector.records.is_empty());
        collector.line(patch(201).as_bytes());
        collector.line(patch(200).as_bytes());
        let records = collector.finish();
        let phases: Vec<Phase> = records.iter().map(|r| r.phase).collect();
        assert_eq!(phases, [Phase::Requested, Phase::Persisted]);
        assert_eq!(records[0].evidence["verb"], "patch");
    }

    #[test]
    fn a_line_without_end_is_skipped_and_the_next_is_read() {
        let mut log = vec![b'x'; usize::try_from(LINE_LIMIT).unwrap() * 2];
        log.push(b'\n');
        log.extend(line("web", "", 201, "104123").bytes());
        let mut collector = Collector::new("default", "web");
        collector.log(log.as_slice()).unwrap();
        assert_eq!((collector.skipped, collector.finish().len()), (1, 2));
    }

    #[test]
    fn what_a_flow_knows_better_stays() {
        let mut collector = Collector::new("default", "web");
        collector.line(line("web", "", 201, "104123").as_bytes());
        collector.line(line("web", "binding", 201, "204123").as_bytes());
        let records = collector.finish();
        let mut own = records[2].clone();
        (own.writer, own.evidence, own.start) = (Writer::Scheduler, BTreeMap::new(), Micros(5));
        let mut coarse = records[1].clone();
        coarse.resolution = Resolution::Second;
        coarse.evidence = BTreeMap::from([("resourceVersion".to_owned(), "7".to_owned())]);
        let mut flow = Flow { records: vec![own, coarse], ..Flow::default() };
        overlay(&mut flow, records);
        assert_eq!(flow.records.len(), 3);
        let bound = &flow.records_of(Phase::Bound)[0];
        assert_eq!((bound.start, bound.evidence["code"].as_str()), (Micros(5), "201"));
        let persisted = flow.records_of(Phase::Persisted)[0];
        assert_eq!(persisted.resolution, Resolution::Micros);
        assert_eq!((&*persisted.evidence["resourceVersion"], &*persisted.evidence["code"]), ("7", "201"));
    }
}
