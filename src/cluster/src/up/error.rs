//! Why the cluster is not up, and what to do about it.

use std::net::Ipv4Addr;

use crate::apply::ApplyError;
use crate::busybox::BusyboxError;
use crate::connect::ConnectError;
use crate::down::DownError;
use crate::existing::ExistingError;
use crate::firewall::FirewallError;
use crate::images::ImageError;
use crate::network::MAX_NODES;
use crate::nodes::NodesError;
use crate::pause::PauseError;
use crate::pki::PkiError;
use crate::preflight::PreflightError;
use crate::process::ProcessError;
use crate::program::BinaryError;
use crate::push::PushError;
use crate::registered::RegisteredError;
use crate::state::StateError;

/// Why the cluster is not up.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// The machine lacks something.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// More nodes than the network has room for.
    #[error("{nodes} nodes are too many; --nodes takes up to {MAX_NODES}")]
    TooManyNodes {
        /// What was asked for.
        nodes: u8,
    },
    /// The registry is not a host.
    #[error("--registry {value:?} is not HOST:PORT")]
    BadRegistry {
        /// The value.
        value: String,
    },
    /// The state directory holds a cluster of the other kind.
    #[error("{path} holds a cluster whose API server is {what}; podway down it, or give another --state-dir")]
    OtherKind {
        /// The directory.
        path: String,
        /// Where its API server is.
        what: String,
    },
    /// The directory holds something else.
    #[error("{path} is not empty and not a podway state directory; give another --state-dir")]
    Foreign {
        /// The directory.
        path: String,
    },
    /// The state could not be read or written.
    #[error(transparent)]
    State(#[from] StateError),
    /// A program is missing.
    #[error(transparent)]
    Binary(#[from] BinaryError),
    /// A certificate could not be made.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The existing cluster gave no identity.
    #[error(transparent)]
    Existing(#[from] ExistingError),
    /// A daemon could not be started or stopped.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A daemon did not become ready.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A manifest was not applied.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// A node's environment was not made.
    #[error(transparent)]
    Nodes(#[from] NodesError),
    /// The host does not forward for the nodes.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// There is no busybox for the images.
    #[error(transparent)]
    Busybox(#[from] BusyboxError),
    /// There is no pause program for its image.
    #[error(transparent)]
    Pause(#[from] PauseError),
    /// An image was not built.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// An image was not pushed.
    #[error(transparent)]
    Push(#[from] PushError),
    /// A node that is not wanted any more was not removed.
    #[error(transparent)]
    Down(#[from] DownError),
    /// No port is free.
    #[error("no free TCP port on {address}")]
    Port {
        /// The address.
        address: Ipv4Addr,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The controller manager did not do its work.
    #[error(
        "the default namespace has no service account after {seconds} s; see the log of kube-controller-manager"
    )]
    NoServiceAccount {
        /// How long was waited.
        seconds: u64,
    },
    /// The API server refused to be watched.
    #[error("cannot watch {what}")]
    Watch {
        /// What.
        what: String,
        /// The cause.
        #[source]
        source: kube::runtime::wait::Error,
    },
    /// A node did not become Ready.
    #[error("node {node} is not Ready after {seconds} s; see {log}")]
    NodeNotReady {
        /// The node.
        node: String,
        /// How long was waited.
        seconds: u64,
        /// Its agent's log.
        log: String,
    },
    /// A Node object is another's, or could not be removed.
    #[error(transparent)]
    Node(#[from] RegisteredError),
    /// The links to programs could not be made.
    #[error("cannot link {path}")]
    Link {
        /// The link.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

impl UpError {
    /// What the user can do about it, where it is not the logs that tell.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Preflight(PreflightError::NotRoot) => "sudo -E env PATH=\"$PATH\" podway up".to_owned(),
            Self::Preflight(PreflightError::Missing { package, .. }) => {
                format!("install it (Debian: apt-get install {package})")
            }
            Self::Preflight(PreflightError::NoOverlay { .. }) => "modprobe overlay; an overlay does not go on \
                an overlay, so in a container give --state-dir on a volume"
                .to_owned(),
            Self::Binary(BinaryError::NoTool { tool: "go", .. }) => "install Go 1.26 or newer \
                (https://go.dev/dl) and put it in PATH, or set KUBEBUILDER_ASSETS to a directory that has them"
                .to_owned(),
            Self::Binary(BinaryError::NoTool { .. }) => {
                "install one (Debian: apt-get install gcc libc6-dev)".to_owned()
            }
            Self::Binary(BinaryError::Build { program, .. }) => format!(
                "the build needs Go 1.26 and the Go module proxy (see go env GOPROXY); \
                 or set KUBEBUILDER_ASSETS to a directory that has {program}"
            ),
            Self::Busybox(_) => "install a static busybox (Debian: apt-get update && apt-get install \
                busybox-static), or give --registry HOST:PORT"
                .to_owned(),
            Self::Pause(_) => "install a C compiler (Debian: apt-get install gcc libc6-dev) or Go, \
                or give --registry HOST:PORT"
                .to_owned(),
            Self::Firewall(_) => "does iptables -t nat -S work on this machine? (modprobe iptable_nat, \
                or update-alternatives --config iptables)"
                .to_owned(),
            Self::OtherKind { path, .. } => format!("podway down --state-dir {path}"),
            Self::BadRegistry { .. } | Self::TooManyNodes { .. } | Self::Foreign { .. } => {
                "see podway up --help".to_owned()
            }
            _ => return None,
        })
    }
}
