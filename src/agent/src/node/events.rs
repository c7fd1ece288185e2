//! The events of the node that the kubelet has: what flipped, in its words.

use k8s_openapi::api::core::v1::{NodeStatus, ObjectReference};
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use std::time::Duration;

/// How long an event may take to be written; then it is left out.
const CALL: Duration = Duration::from_secs(10);

/// One event to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Happening {
    /// Its reason.
    pub reason: &'static str,
    /// Its text.
    pub note: String,
    /// Whether it is a warning.
    pub warning: bool,
}

fn status_is(name: &str, reason: &'static str) -> Happening {
    Happening { reason, note: format!("Node {name} status is now: {reason}"), warning: false }
}

/// The agent has started.
#[must_use]
pub fn starting() -> Happening {
    Happening { reason: "Starting", note: "Starting kubelet.".to_owned(), warning: false }
}

/// Whether the pods' cgroup could be held to what the node has for them (`enforceNodeAllocatableCgroups`).
#[must_use]
pub fn enforced(cgroup: &str, result: Result<(), String>) -> Happening {
    match result {
        Ok(()) => Happening {
            reason: "NodeAllocatableEnforced",
            note: "Updated Node Allocatable limit across pods".to_owned(),
            warning: false,
        },
        Err(error) => Happening {
            reason: "FailedNodeAllocatableEnforcement",
            note: format!("Failed to update Node Allocatable Limits {cgroup:?}: {error}"),
            warning: true,
        },
    }
}

/// Whether the cgroup of `whose` (`system`, `kube`) could be held to what is kept for it; the note of a failure says all.
#[must_use]
pub fn reserved(whose: &str, cgroup: &str, failure: Option<String>) -> Happening {
    match failure {
        None => Happening {
            reason: "NodeAllocatableEnforced",
            note: format!("Updated limits on {whose} reserved cgroup {cgroup}"),
            warning: false,
        },
        Some(note) => Happening { reason: "FailedNodeAllocatableEnforcement", note, warning: true },
    }
}

/// What has happened between two statuses of node `name`.
#[must_use]
pub fn between(name: &str, old: &NodeStatus, new: &NodeStatus) -> Vec<Happening> {
    fn of<'a>(status: &'a NodeStatus, kind: &str) -> Option<&'a str> {
        status.conditions.iter().flatten().find(|c| c.type_ == kind).map(|c| c.status.as_str())
    }
    let mut all = Vec::new();
    for (kind, yes, no) in [
        ("MemoryPressure", "NodeHasInsufficientMemory", "NodeHasSufficientMemory"),
        ("DiskPressure", "NodeHasDiskPressure", "NodeHasNoDiskPressure"),
        ("PIDPressure", "NodeHasInsufficientPID", "NodeHasSufficientPID"),
        ("Ready", "NodeReady", "NodeNotReady"),
    ] {
        let (before, after) = (of(old, kind), of(new, kind));
        // A Ready that was not there before is no news, as upstream has it.
        if before != after && !(kind == "Ready" && before.is_none()) {
            all.push(status_is(name, if after == Some("True") { yes } else { no }));
        }
    }
    let boot = |status: &NodeStatus| {
        status.node_info.as_ref().map(|info| info.boot_id.clone()).filter(|id| !id.is_empty())
    };
    if let (Some(before), Some(after)) = (boot(old), boot(new))
        && before != after
    {
        let note = format!("Node {name} has been rebooted, boot id: {after}");
        all.push(Happening { reason: "Rebooted", note, warning: true });
    }
    all
}

/// Writes events, beside everything else.
#[derive(Clone)]
pub struct Writer {
    recorder: Recorder,
    node: ObjectReference,
}

impl Writer {
    /// For the node `name`.
    #[must_use]
    pub fn new(client: Client, name: &str) -> Self {
        let reporter = Reporter { controller: "kubelet".to_owned(), instance: Some(name.to_owned()) };
        let node = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(name.to_owned()),
            // Not the object's: `kubectl describe node` looks for the name here too.
            uid: Some(name.to_owned()),
            ..ObjectReference::default()
        };
        Writer { recorder: Recorder::new(client, reporter), node }
    }

    /// Writes `all` in a task of its own: an event is worth no wait and no second try.
    pub fn write(&self, all: Vec<Happening>) {
        if all.is_empty() {
            return;
        }
        let Writer { recorder, node } = self.clone();
        tokio::spawn(async move {
            for happening in all {
                let event = Event {
                    type_: if happening.warning { EventType::Warning } else { EventType::Normal },
                    reason: happening.reason.to_owned(),
                    note: Some(happening.note),
                    action: happening.reason.to_owned(),
                    secondary: None,
                };
                match tokio::time::timeout(CALL, recorder.publish(&event, &node)).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        tracing::warn!(reason = event.reason, %error, "an event was not written")
                    }
                    Err(_) => tracing::warn!(reason = event.reason, "an event was not written in time"),
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_flips_is_an_event() {
        let status = |ready: &str, memory: &str, boot: &str| -> NodeStatus {
            let mut status: NodeStatus = serde_json::from_value(json!({"conditions": [
                {"type": "MemoryPressure", "status": memory}, {"type": "Ready", "status": ready},
            ]}))
            .unwrap();
            status.node_info = Some(Default::default());
            if let Some(info) = &mut status.node_info {
                info.boot_id = boot.to_owned();
            }
            status
        };
        let reasons = |old: &NodeStatus, new: &NodeStatus| -> Vec<&str> {
            between("n", old, new).into_iter().map(|h| h.reason).collect()
        };
        let good = status("True", "False", "a");
        assert_eq!(reasons(&good, &good), Vec::<&str>::new());
        assert_eq!(reasons(&NodeStatus::default(), &good), ["NodeHasSufficientMemory"]);
        assert_eq!(
            reasons(&good, &status("False", "True", "a")),
            ["NodeHasInsufficientMemory", "NodeNotReady"]
        );
        assert_eq!(reasons(&status("Unknown", "False", "a"), &good), ["NodeReady"]);
        let boot = between("n", &good, &status("True", "False", "b"));
        assert_eq!((boot[0].note.as_str(), boot[0].warning), ("Node n has been rebooted, boot id: b", true));
        assert_eq!(status_is("n", "NodeReady").note, "Node n status is now: NodeReady");
    }
}
