//! Annotations, labels and names under `podway.dev`.

/// The scheduler's records, on the Binding and so on the Pod.
pub use podway_flow::wire::SCHEDULING_ANNOTATION;

/// The API group of our resources, and the prefix of annotations and of condition types.
pub const GROUP: &str = "podway.dev";
/// `podway.dev/podflow: "off"` on a Pod: no `PodFlow` is written for it.
pub const PODFLOW: &str = "podway.dev/podflow";
/// `spec.schedulerName` of the pods that our scheduler takes.
pub const SCHEDULER_NAME: &str = "podway";
/// The field manager of the scheduler's writes.
pub const SCHEDULER_MANAGER: &str = "podway-scheduler";
/// The field manager of the agent's writes.
pub const AGENT_MANAGER: &str = "podway-agent";
