//! Container events: published to whoever listens, bounded; a slow listener loses the oldest.

use crate::ids::Id;
use crate::state::Runtime;
use crate::status;
use podway_cri::v1::{ContainerEventResponse, ContainerEventType};

/// Tells the listeners of a container. Nobody listening is not an error.
pub fn publish(runtime: &Runtime, id: &Id, kind: ContainerEventType) {
    let sandbox = runtime.container(id).map(|c| c.sandbox);
    tell(runtime, id, sandbox, kind);
}

/// Tells the listeners of a sandbox, which counts as a container with the sandbox' id.
pub fn publish_sandbox(runtime: &Runtime, id: &Id, kind: ContainerEventType) {
    tell(runtime, id, Some(id.clone()), kind);
}

/// Tells the listeners of what has just gone, and of the sandbox that it was in.
pub fn tell(runtime: &Runtime, id: &Id, sandbox: Option<Id>, kind: ContainerEventType) {
    if runtime.events.receiver_count() == 0 {
        return;
    }
    let pod = sandbox.as_ref().and_then(|s| Some((s, runtime.sandbox(s)?)));
    let event = ContainerEventResponse {
        container_id: id.to_string(),
        container_event_type: kind as i32,
        created_at: runtime.now_ns(),
        pod_sandbox_status: pod.as_ref().map(|(s, entry)| status::sandbox_status(s, entry)),
        containers_statuses: sandbox.map(|s| status::statuses_of(runtime, &s)).unwrap_or_default(),
    };
    // The count was above 0 a moment ago; a listener that left since then needs no event.
    drop(runtime.events.send(event));
}
