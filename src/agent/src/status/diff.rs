//! The least that must be sent: a strategic merge patch of `status` with the pod's UID in it, so that
//! a pod made anew under the same name never gets the old one's status. No GET comes before it.

use k8s_openapi::api::core::v1::PodStatus;
use serde_json::{Map, Value, json};

/// The lists that the API server merges by key, so that what is gone must be named.
const MERGED: [(&str, &str); 3] = [("conditions", "type"), ("podIPs", "ip"), ("hostIPs", "ip")];

/// Conditions that the agent takes away again; any other that is not named is another writer's.
pub const OWN: [&str; 2] = ["PodResizePending", "PodResizeInProgress"];

/// The patch that makes `old` into `new`; `None` when nothing differs. Conditions are not removed but
/// for [`OWN`]: those that `new` does not name are another writer's.
#[must_use]
pub fn patch(uid: &str, old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let (old, new) = (object(old), object(new));
    let mut status = Map::new();
    for (key, value) in &new {
        let before = old.get(key);
        if before == Some(value) {
            continue;
        }
        let merged = MERGED.iter().find(|(name, _)| name == key);
        let sent = match merged {
            Some((_, by)) => Value::Array(changed(before, value, by, |item| {
                key != "conditions" || item["type"].as_str().is_some_and(|t| OWN.contains(&t))
            })),
            None => value.clone(),
        };
        if sent.as_array().is_none_or(|list| !list.is_empty()) {
            status.insert(key.clone(), sent);
        }
    }
    // What only the agent sets and no longer holds.
    for key in ["message", "reason", "podIP", "podIPs"] {
        if old.contains_key(key) && !new.contains_key(key) {
            status.insert(key.to_owned(), Value::Null);
        }
    }
    (!status.is_empty()).then(|| json!({"metadata": {"uid": uid}, "status": status}))
}

fn object(status: &PodStatus) -> Map<String, Value> {
    match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    }
}

fn changed(old: Option<&Value>, new: &Value, by: &str, remove: impl Fn(&Value) -> bool) -> Vec<Value> {
    let list = |v: &Value| v.as_array().cloned().unwrap_or_default();
    let old = old.map(list).unwrap_or_default();
    let new = list(new);
    let mut sent: Vec<Value> = new.iter().filter(|item| !old.contains(item)).cloned().collect();
    // An item is merged field by field: a field that it no longer has must be named as well.
    for item in &mut sent {
        let before = old.iter().find(|o| o.get(by) == item.get(by)).and_then(Value::as_object);
        let (Some(before), Some(item)) = (before, item.as_object_mut()) else { continue };
        for key in before.keys() {
            item.entry(key).or_insert(Value::Null);
        }
    }
    let gone = old.iter().filter(|o| remove(o) && new.iter().all(|n| n.get(by) != o.get(by)));
    sent.extend(gone.map(|o| json!({"$patch": "delete", by: o.get(by)})));
    sent
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: Value) -> PodStatus {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn only_what_changed_is_sent_and_what_is_gone_is_named() {
        let old = status(
            json!({"phase": "Pending", "reason": "X", "podIPs": [{"ip": "a"}], "qosClass": "Burstable",
            "conditions": [{"type": "A", "status": "True"}, {"type": "B", "status": "True", "reason": "R"}, {"type": "F", "status": "True"}]}),
        );
        let new = status(json!({"phase": "Running", "podIPs": [{"ip": "b"}], "qosClass": "Burstable",
            "conditions": [{"type": "A", "status": "True"}, {"type": "B", "status": "False"}]}));
        assert_eq!(
            patch("u", &old, &new).unwrap(),
            json!({"metadata": {"uid": "u"}, "status": {"phase": "Running", "reason": null,
                "podIPs": [{"ip": "b"}, {"$patch": "delete", "ip": "a"}],
                "conditions": [{"type": "B", "status": "False", "reason": null}]}})
        );
        assert_eq!(patch("u", &new, &new), None);
        let shorter = status(json!({"phase": "Running", "podIPs": [{"ip": "b"}], "qosClass": "Burstable",
            "conditions": [{"type": "A", "status": "True"}]}));
        assert_eq!(patch("u", &new, &shorter), None, "a condition of another writer stays");
        let resizing = status(json!({"conditions": [{"type": "PodResizePending", "status": "True"}]}));
        assert_eq!(
            patch("u", &resizing, &status(json!({"conditions": []}))).unwrap()["status"],
            json!({"conditions": [{"$patch": "delete", "type": "PodResizePending"}]})
        );
    }
}
