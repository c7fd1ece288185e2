//! `podway down`: ends and removes all that an `up` made, in the reverse order.
//!
//! Agents and scheduler first, so that nothing is started any more; then what runs in the nodes'
//! cgroups; then every daemon; then mounts, namespaces, bridge and rules; the state directory last,
//! and in it the state at the very end. It goes on after what fails, so that one stuck thing does
//! not keep the rest, and reports the first failure at the end; the state stays then, for another try.

use std::path::Path;
use std::time::Duration;

use kube::Client;

use crate::Progress;
use crate::cgroups::{self, CgroupError};
use crate::connect;
use crate::firewall::{self, FirewallError};
use crate::layout::Layout;
use crate::mounts::{self, MountError};
use crate::network::{MAX_NODES, Network};
use crate::nodes::{self, NodesError};
use crate::parts::{self, NodeParts};
use crate::process::{self, ProcessError};
use crate::registered::{self, RegisteredError};
use crate::state::{State, StateError, StateLock, io_at};

/// Why something is left.
#[derive(Debug, thiserror::Error)]
pub enum DownError {
    /// The state could not be read, or the directory not be removed.
    #[error(transparent)]
    State(#[from] StateError),
    /// A process could not be stopped.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A cgroup is left.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// A mount is left.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A namespace or a link is left.
    #[error(transparent)]
    Nodes(#[from] NodesError),
    /// A rule is left.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// The existing cluster keeps our nodes.
    #[error("the nodes are still in the cluster of {kubeconfig}; delete them with kubectl")]
    Existing {
        /// Its kubeconfig.
        kubeconfig: String,
        /// The cause.
        #[source]
        source: Box<LeaveError>,
    },
}

/// Why the existing cluster keeps them.
#[derive(Debug, thiserror::Error)]
pub enum LeaveError {
    /// It is not reached.
    #[error(transparent)]
    Connect(#[from] connect::ConnectError),
    /// It refuses.
    #[error(transparent)]
    Node(#[from] RegisteredError),
}

/// How long a daemon may take to end by itself.
const GRACE: Duration = Duration::from_secs(10);

/// The order in which the control plane is stopped; what is not named here is stopped before.
const LAST: [&str; 4] = ["registry", "kube-controller-manager", "kube-apiserver", "etcd"];

/// The first failure of several steps.
struct Failures(Option<DownError>);

impl Failures {
    fn keep<E: Into<DownError>>(&mut self, result: Result<(), E>) {
        if let Err(error) = result {
            self.0.get_or_insert(error.into());
        }
    }

    fn into_result(self) -> Result<(), DownError> {
        self.0.map_or(Ok(()), Err)
    }
}

/// Removes the cluster in `state_dir`. Returns false where there is none.
///
/// Where the directory was removed by hand, what is left of its cluster is found by the marks: the
/// daemons' environment and the bridge's alias.
pub async fn down(state_dir: &Path, progress: impl Fn(&str) + Send + Sync) -> Result<bool, DownError> {
    let progress: Progress<'_> = &progress;
    let root = std::fs::canonicalize(state_dir)
        .or_else(|_| std::path::absolute(state_dir))
        .map_err(io_at("find", state_dir))?;
    let layout = Layout::new(root);
    let (lock, state) = match State::load(&layout)? {
        Some(found) => {
            let lock = StateLock::take(&layout)?;
            // Read again under the lock: an up may have ended meanwhile.
            (Some(lock), State::load(&layout)?.unwrap_or(found))
        }
        None => match orphan(&layout)? {
            Some(state) => (None, state),
            None => return Ok(false),
        },
    };
    let network = state.slot.and_then(Network::new);
    let nodes: Vec<NodeParts> = network
        .map(|n| n.nodes(state.nodes).map(|node| NodeParts::new(&layout, node)).collect())
        .unwrap_or_default();
    let mut failures = Failures(None);

    let named = nodes.iter().map(NodeParts::agent_name).chain([parts::SCHEDULER.to_owned()]);
    for name in named {
        if let Some(record) = state.processes.get(&name) {
            progress(&format!("stopping {name}"));
            failures.keep(process::stop(record, GRACE).await);
        }
    }
    if let Some(kubeconfig) = &state.existing {
        progress("deleting the nodes in the existing cluster; its definitions and rights of podway stay");
        failures.keep(leave(kubeconfig, &layout, &nodes).await);
    }
    for node in &nodes {
        progress(&format!("removing {}", node.network.name()));
        failures.keep(self::node(node, &state).await);
    }
    let early = state.processes.iter().filter(|(name, _)| !LAST.contains(&name.as_str()));
    let late = LAST.iter().filter_map(|name| state.processes.get_key_value(*name));
    for (name, record) in early.chain(late).filter(|(_, record)| process::alive(record)) {
        progress(&format!("stopping {name}"));
        failures.keep(process::stop(record, GRACE).await);
    }
    // Those whose record was lost, and the monitors that outlive a runtime.
    failures.keep(process::stop_marked(layout.root(), GRACE).await.map(|_| ()));
    // Again: a runtime whose record was lost may have started something meanwhile.
    for node in &nodes {
        failures.keep(remains(node).await);
    }
    if let Some(network) = network {
        failures.keep(unnetwork(network, &layout, &state).await);
    }
    failures.keep(mounts::unmount_below(layout.root()));
    failures.into_result()?;
    if lock.is_some() {
        remove(&layout)?;
    }
    drop(lock);
    Ok(true)
}

/// What may be left of a cluster without a state; `None` where nothing is.
fn orphan(layout: &Layout) -> Result<Option<State>, DownError> {
    let slot = nodes::find(layout.root()).map(Network::slot);
    let marked = process::marked(layout.root()).map_err(|source| ProcessError::Kernel {
        what: "list",
        pid: 0,
        source,
    })?;
    let left = slot.is_some() || !marked.is_empty();
    Ok(left.then(|| State { slot, nodes: MAX_NODES, shared_netns: true, ..State::default() }))
}

/// Ends and removes one node: its daemons, what runs on it, its mounts, its namespace.
pub(crate) async fn node(node: &NodeParts, state: &State) -> Result<(), DownError> {
    let mut failures = Failures(None);
    let stop = async |name: String| match state.processes.get(&name) {
        Some(record) => process::stop(record, GRACE).await,
        None => Ok(()),
    };
    failures.keep(stop(node.agent_name()).await);
    failures.keep(stop(node.runtime_name()).await);
    failures.keep(remains(node).await);
    failures.into_result()
}

/// What is left of a node once its daemons have ended.
async fn remains(node: &NodeParts) -> Result<(), DownError> {
    let mut failures = Failures(None);
    failures.keep(cgroups::remove(&node.network.cgroup()).await);
    failures.keep(cgroups::remove_slice(&node.network.slice()).await);
    for dir in [&node.network.run_dir(), node.dir()] {
        let unmounted = mounts::unmount_below(dir);
        // Not through what is still mounted there.
        if unmounted.is_ok() && dir != node.dir() {
            failures.keep(node.remove_run_dir());
        }
        failures.keep(unmounted);
    }
    failures.keep(nodes::remove_node(node.network).await);
    failures.into_result()
}

/// Removes bridge and rules, and lets the host forward as before.
async fn unnetwork(network: Network, layout: &Layout, state: &State) -> Result<(), DownError> {
    let _lock = nodes::lock().await?;
    let mut failures = Failures(None);
    failures.keep(firewall::close(network).await);
    failures.keep(nodes::remove_bridge(network, layout.root()).await);
    if state.forwarding_was_off && !nodes::any_bridge() {
        failures.keep(firewall::forward(false));
    }
    if state.shared_netns {
        failures.keep(nodes::unshare_netns());
    }
    failures.into_result()
}

/// Deletes our nodes from a cluster that was there before.
async fn leave(kubeconfig: &Path, layout: &Layout, nodes: &[NodeParts]) -> Result<(), DownError> {
    let failed = |source: LeaveError| DownError::Existing {
        kubeconfig: kubeconfig.display().to_string(),
        source: Box::new(source),
    };
    let client: Client = connect::client(kubeconfig).await.map_err(|e| failed(e.into()))?;
    let names = nodes.iter().map(|node| node.network.name());
    for name in names.filter(|name| registered::ours(layout, name)) {
        registered::delete(&client, &name).await.map_err(|e| failed(e.into()))?;
    }
    Ok(())
}

/// Removes the state directory; what makes it one goes last, so that a `down` that is killed
/// meanwhile can be run again.
fn remove(layout: &Layout) -> Result<(), StateError> {
    let root = layout.root();
    let last = [layout.state_file(), layout.lock_file()];
    for entry in std::fs::read_dir(root).map_err(io_at("read", root))? {
        let path = entry.map_err(io_at("read", root))?.path();
        if last.contains(&path) {
            continue;
        }
        let removed = if path.is_dir() && !path.is_symlink() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.map_err(io_at("remove", &path))?;
    }
    std::fs::remove_dir_all(root).map_err(io_at("remove", root))
}
