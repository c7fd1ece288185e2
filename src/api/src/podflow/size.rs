//! How a `PodFlow` stays small: what is given up for it, and in which order.
//!
//! Texts (command lines, paths, sentences) are cut first, the longest of them and no more than has to be; then digests,
//! ids and addresses, since one that is cut proves nothing any more; then evidence and messages go whole, and at last the
//! records of a pod with very many parts. Times, outcomes and conditions stay, and `truncated` says that something is missing.

use super::{FlowRecord, PodFlow, PodFlowStatus};
use podway_flow::PodRef;
use podway_flow::record::bounded;
use serde::Serialize;
use std::io;

/// The most bytes of JSON that an object takes, as the API server stores it: its metadata and `managedFields` too.
pub const OBJECT_LIMIT: usize = 8 * 1024;

/// What of it is the API server's to fill in: UID, versions, time, and who owns which field.
const SERVERS_SHARE: usize = 928;

/// Which values may be cut.
type May = fn(&str) -> bool;

/// What may be cut in turn, and to how much at least.
const STAGES: [(usize, May); 2] = [(32, is_text), (16, |_| true)];

/// The longest reason once something is cut.
const REASON: usize = 64;

/// Cuts until the object of `pod` fits with this status.
pub(super) fn shrink(status: &mut PodFlowStatus, pod: &PodRef) {
    let limit = OBJECT_LIMIT.saturating_sub(SERVERS_SHARE + json(&PodFlow::for_pod(pod)));
    let mut size = json(status);
    for (shortest, may) in STAGES {
        if size <= limit {
            return;
        }
        let level = level(lengths(status, may), size - limit).max(shortest);
        cut(status, level, may);
        size = json(status);
    }
    if size > limit {
        status.records.iter_mut().for_each(|r| r.evidence.clear());
        let messages = status.records.iter_mut().map(|r| &mut r.message);
        messages.chain(status.conditions.iter_mut().map(|c| &mut c.message)).for_each(String::clear);
        size = json(status);
    }
    while size > limit && !status.records.is_empty() {
        let keep = status.records.len().saturating_mul(limit) / size;
        status.records.truncate(keep.min(status.records.len() - 1));
        size = json(status);
    }
}

/// The level that lengths have to be cut to so that they are `excess` less together; 0 if none will do.
fn level(mut lengths: Vec<usize>, excess: usize) -> usize {
    lengths.sort_unstable_by(|a, b| b.cmp(a));
    let mut above = 0;
    for (i, length) in lengths.iter().enumerate() {
        above += length;
        let next = lengths.get(i + 1).copied().unwrap_or(0);
        if above - next * (i + 1) >= excess {
            return (above - excess) / (i + 1);
        }
    }
    0
}

fn lengths(status: &PodFlowStatus, may: May) -> Vec<usize> {
    let facts = status.records.iter().flat_map(|r| r.evidence.values()).filter(|value| may(value));
    let messages = status.records.iter().map(|r| &r.message);
    let told = status.conditions.iter().map(|c| &c.message);
    facts.chain(messages).chain(told).map(String::len).collect()
}

fn cut(status: &mut PodFlowStatus, level: usize, may: May) {
    status.truncated = true;
    for FlowRecord { reason, message, evidence, .. } in &mut status.records {
        for value in evidence.values_mut().filter(|value| may(value)) {
            shorten(value, level);
        }
        shorten(message, level);
        word(reason);
    }
    for condition in &mut status.conditions {
        shorten(&mut condition.message, level);
        word(&mut condition.reason);
    }
}

/// What the API's conventions have a reason be, and no longer than one is: none of ours is changed by it.
fn word(reason: &mut String) {
    reason.retain(|c| c.is_ascii_alphanumeric() || "_,:".contains(c));
    reason.truncate(REASON);
    if reason.is_empty() {
        reason.push_str("Unknown");
    }
}

fn shorten(text: &mut String, limit: usize) {
    if text.len() > limit {
        *text = bounded(text, limit);
    }
}

/// Whether part of it is of use: it is no digest, UID or address, which are words that are so only as a whole.
fn is_text(value: &str) -> bool {
    value.len() > "sha512:".len() + 128 || value.contains(|c: char| c == '/' || c.is_whitespace())
}

/// The bytes of `value` as JSON.
fn json(value: &impl Serialize) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, value).map_or(usize::MAX, |()| count.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use podway_flow::{Flow, Micros, Outcome, Phase, Record, Resolution, Writer};
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    const LONGEST: usize = 253;

    fn record(phase: Phase, subject: &str) -> Record {
        Record {
            phase,
            subject: Some(subject.to_owned()),
            // Of no phase the usual one.
            writer: if phase == Phase::Admitted { Writer::Runtime } else { Writer::Agent },
            attempt: 1,
            start: Micros(1_795_498_272_104_123),
            end: Some(Micros(1_795_498_272_204_123)),
            queued_micros: 7,
            outcome: Outcome::Succeeded,
            reason: "Done".to_owned(),
            message: String::new(),
            resolution: Resolution::Micros,
            evidence: BTreeMap::new(),
        }
    }

    fn digest() -> String {
        format!("sha256:{}", "0".repeat(64))
    }

    fn flow(name: usize, records: Vec<Record>) -> Flow {
        let pod = PodRef {
            namespace: "n".repeat(name.min(63)),
            name: "p".repeat(name),
            uid: "6f2c1ab0-4a3b-4b53-9a44-0123456789ab".to_owned(),
            node: "w".repeat(name),
        };
        Flow { pod, records }
    }

    /// The object as an API server has it after both writes of the agent, of which it owns every field.
    fn stored(flow: &Flow, status: &PodFlowStatus) -> usize {
        let mut object = serde_json::to_value(PodFlow::for_pod(&flow.pod)).unwrap();
        let owner = format!("k:{{\"uid\":\"{}\"}}", flow.pod.uid);
        let own: serde_json::Map<String, Value> = serde_json::to_value(status)
            .unwrap()
            .as_object()
            .unwrap()
            .keys()
            .map(|field| (format!("f:{field}"), json!({})))
            .chain([(".".to_owned(), json!({}))])
            .collect();
        let entry = |fields: Value, subresource: &str| {
            let mut entry = json!({"manager": crate::annotations::AGENT_MANAGER, "operation": "Update", "time": "2026-11-24T18:10:37Z",
                "apiVersion": "podway.dev/v1alpha1", "fieldsType": "FieldsV1", "fieldsV1": fields});
            if !subresource.is_empty() {
                entry["subresource"] = json!(subresource);
            }
            entry
        };
        let made = json!({"f:metadata": {"f:ownerReferences": {".": {}, owner: {}}},
            "f:spec": {".": {}, "f:nodeName": {}, "f:podName": {}, "f:podUID": {}}});
        let metadata = object["metadata"].as_object_mut().unwrap();
        metadata.insert("uid".to_owned(), json!(flow.pod.uid));
        metadata.insert("resourceVersion".to_owned(), json!("18446744073709551615"));
        metadata.insert("generation".to_owned(), json!(9_999_999));
        metadata.insert("creationTimestamp".to_owned(), json!("2026-11-24T18:10:37Z"));
        let entries = [entry(made, ""), entry(json!({"f:status": own}), "status")];
        metadata.insert("managedFields".to_owned(), json!(entries));
        object["status"] = serde_json::to_value(status).unwrap();
        serde_json::to_vec(&object).unwrap().len()
    }

    fn made(flow: &Flow) -> PodFlowStatus {
        let status = PodFlowStatus::from_flow(flow, &[], Some(1));
        let size = stored(flow, &status);
        assert!(size <= OBJECT_LIMIT, "{size} bytes are stored");
        let own = json(&PodFlow::for_pod(&flow.pod)) + json(&status);
        assert!((1..=SERVERS_SHARE).contains(&(size - own)), "{} are the API server's", size - own);
        status
    }

    #[test]
    fn texts_are_cut_first_and_no_more_than_has_to_be() {
        let mut records: Vec<Record> = Phase::ALL.iter().map(|&p| record(p, "part")).collect();
        for record in &mut records[..6] {
            record.evidence.insert("digest".to_owned(), digest());
        }
        records[3].evidence.insert("argv".to_owned(), "/x ".repeat(1300));
        records[5].evidence.insert("path".to_owned(), "/short/one".to_owned());
        let flow = flow(5, records.clone());
        let status = made(&flow);
        assert!(status.truncated);
        assert_eq!(status.records.len(), records.len());
        assert!(status.records[..6].iter().all(|r| r.evidence["digest"] == digest()), "a digest is cut last");
        let of = |key: &str| status.records.iter().find_map(|r| r.evidence.get(key)).unwrap();
        assert_eq!(of("path"), "/short/one", "the longest gives first");
        assert!(of("argv").ends_with('…'));
        // Nothing is left unused but what the API server may take.
        let limit = OBJECT_LIMIT - SERVERS_SHARE - json(&PodFlow::for_pod(&flow.pod));
        assert!(json(&status) + 4 > limit, "{} of {limit}", json(&status));
    }

    #[test]
    fn the_whole_object_stays_within_its_limit_whatever_is_told() {
        let hostile = ["\u{1}".repeat(900), "\"".repeat(900), "é ".repeat(900), "0".repeat(100)];
        for name in [1, LONGEST] {
            for text in &hostile {
                let mut records: Vec<Record> =
                    Phase::ALL.iter().map(|&p| record(p, &"s".repeat(name))).collect();
                for record in &mut records {
                    record.message = bounded(text, Record::MESSAGE_LIMIT);
                    record.reason.clone_from(text);
                    record.outcome = Outcome::Failed;
                    record.evidence = (0..6).map(|i| (format!("node/{i}"), text.clone())).collect();
                }
                let status = made(&flow(name, records.clone()));
                assert!(status.truncated && status.conditions.len() == 1 + Phase::ALL.len());
                let many = records.iter().cycle().take(200).cloned().collect();
                assert!(made(&flow(name, many)).truncated);
            }
        }
    }

    #[test]
    fn what_fits_is_left_as_it_is() {
        let flow = flow(20, Phase::ALL.iter().map(|&p| record(p, "main")).collect());
        let status = made(&flow);
        assert!(!status.truncated);
        assert_eq!(status.to_records().collect::<Vec<_>>(), flow.records);
    }

    #[test]
    fn a_level_takes_from_the_longest() {
        assert_eq!(level(vec![10, 100, 50], 30), 70);
        assert_eq!(level(vec![10, 100, 50], 70), 40);
        assert_eq!(level(vec![10, 100, 50], 150), 3);
        assert_eq!(level(vec![10, 100, 50], 161), 0);
        assert_eq!(level(Vec::new(), 1), 0);
    }
}
