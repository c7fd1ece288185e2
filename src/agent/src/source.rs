//! What the kubelet API ([`PodSource`]) asks of the pods: their objects, where their logs are, which
//! container a name means, and the flow so far. Read-only, in memory: no call of it waits for a pod.

use k8s_openapi::api::core::v1::Pod;
use podway_flow::Flow;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::sync::watch;

/// One container of a pod as the runtime has it; an older instance of a name is listed as well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerView {
    /// The container's name in the pod.
    pub name: String,
    /// Its CRI id.
    pub id: String,
    /// The restart count that it was made with: of one name, the highest is the current one.
    pub restarts: u32,
    /// Its log in CRI format; the file may not exist yet, or no longer.
    pub log_path: PathBuf,
    /// Whether its process runs, so that one can exec into it.
    pub running: bool,
}

/// One pod as its worker last saw it.
#[derive(Clone, Debug)]
pub struct PodView {
    /// The object, with the status that the agent last computed (it may be ahead of the API server's).
    pub object: Arc<Pod>,
    /// Its containers, newest instance of a name first.
    pub containers: Vec<ContainerView>,
    /// All that was recorded of it, running phases included.
    pub flow: Arc<Flow>,
}

impl PodView {
    /// The newest instance of a container, or with `previous` the one before it.
    #[must_use]
    pub fn container(&self, name: &str, previous: bool) -> Option<&ContainerView> {
        self.containers.iter().filter(|c| c.name == name).nth(usize::from(previous))
    }
}

/// The pods of this node, for the kubelet API.
pub trait PodSource: Send + Sync {
    /// Every pod of the node.
    fn pods(&self) -> Vec<PodView>;

    /// A pod by name; `None` for one that is not on this node.
    fn pod(&self, namespace: &str, name: &str) -> Option<PodView>;

    /// The same as a stream: it changes with each step of the pod and closes when the pod is gone.
    fn follow(&self, namespace: &str, name: &str) -> Option<watch::Receiver<Arc<PodView>>>;

    /// How often the pods' probes had which answer, in Prometheus' text format.
    fn probes(&self) -> String;

    /// The agent's metrics in Prometheus' OpenMetrics text format.
    fn metrics(&self) -> String;
}
