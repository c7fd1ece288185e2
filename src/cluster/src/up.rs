//! `podway up`: brings up what is not up yet.
//!
//! Order: lock, directories, programs, certificates, kubeconfigs, etcd, kube-apiserver,
//! kube-controller-manager. Each step finds its own work done or does it, so an `up` after a
//! `kill -9` in the middle of one goes on where that one was.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::Client;

use crate::Progress;
use crate::binaries::{BinaryError, Program};
use crate::connect::{self, ConnectError};
use crate::layout::Layout;
use crate::pki::{Authority, Identity, PkiError};
use crate::process::{self, Daemon, ProcessError};
use crate::state::{State, StateError, StateLock, io_at, private_dir, write_private};
use crate::{apiserver, apply, controller_manager, etcd, kubeconfig};

/// The state directory that the command line takes where none is given.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/podway/local";

/// What is to be brought up.
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// The state directory.
    pub state_dir: PathBuf,
    /// Only etcd, kube-apiserver and kube-controller-manager, on loopback.
    pub control_plane_only: bool,
    /// The custom resource definitions to apply, each a YAML text.
    pub crds: Vec<String>,
}

impl Default for UpOptions {
    fn default() -> Self {
        Self { state_dir: PathBuf::from(DEFAULT_STATE_DIR), control_plane_only: false, crds: Vec::new() }
    }
}

/// A cluster that is up.
#[derive(Clone)]
pub struct Cluster {
    /// Where its files are.
    pub layout: Layout,
    /// A client with the administrator's identity.
    pub client: Client,
    /// The API server's URL.
    pub server: String,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Why the cluster is not up.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// Asked for what is not built.
    #[error("not supported: {what}; set control_plane_only")]
    NotSupported {
        /// What was asked for.
        what: &'static str,
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
    /// A daemon could not be started or stopped.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// A daemon did not become ready.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A manifest was not applied.
    #[error(transparent)]
    Apply(#[from] apply::ApplyError),
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
    #[error("cannot watch the service accounts of the default namespace")]
    Watch(#[source] kube::runtime::wait::Error),
}

/// How long a daemon may take until it is ready. A slow machine needs some 10 s.
const READY: Duration = Duration::from_secs(90);

/// Brings up the cluster, or finds it up; `progress` gets a line for each thing that takes time.
pub async fn up(options: UpOptions, progress: impl Fn(&str) + Send + Sync) -> Result<Cluster, UpError> {
    let progress: Progress<'_> = &progress;
    if !options.control_plane_only {
        return Err(UpError::NotSupported { what: "nodes, registry and podway's own parts" });
    }
    let layout = open_dir(&options.state_dir)?;
    let _lock = StateLock::take(&layout)?;
    let mut state = State::load(&layout)?.unwrap_or_default();
    state.save(&layout)?;
    let mut work = Work { layout: &layout, state: &mut state, progress };
    let address = Ipv4Addr::LOCALHOST;
    let (client, server) = work.control_plane(address).await?;
    for yaml in options.crds.iter().map(String::as_str).chain([apply::RBAC]) {
        apply::apply(&client, yaml).await?;
    }
    Ok(Cluster { client, server, layout })
}

/// Makes the state directory, or sees that it is one.
fn open_dir(path: &Path) -> Result<Layout, UpError> {
    private_dir(path)?;
    let root = std::fs::canonicalize(path).map_err(io_at("open", path))?;
    let layout = Layout::new(&root);
    let empty = std::fs::read_dir(&root).map_err(io_at("read", &root))?.next().is_none();
    // The lock is made before the state: an up that was killed between them left only it.
    if !empty && !layout.state_file().exists() && !layout.lock_file().exists() {
        return Err(UpError::Foreign { path: root.display().to_string() });
    }
    for dir in [layout.logs(), layout.etcd()] {
        private_dir(&dir)?;
    }
    Ok(layout)
}

/// One `up` at work.
struct Work<'a> {
    layout: &'a Layout,
    state: &'a mut State,
    progress: Progress<'a>,
}

impl Work<'_> {
    async fn control_plane(&mut self, address: Ipv4Addr) -> Result<(Client, String), UpError> {
        let etcd_program = Program::Etcd.locate(self.progress).await?;
        let apiserver_program = Program::KubeApiserver.locate(self.progress).await?;
        let manager_program = Program::KubeControllerManager.locate(self.progress).await?;

        let local = Ipv4Addr::LOCALHOST;
        let etcd_port = self.port("etcd", local, None)?;
        let peer_port = self.port("etcd-peer", local, None)?;
        let secure_port = self.port("apiserver", address, Some(6443))?;
        let manager_port = self.port("controller-manager", local, None)?;
        let server = format!("https://{address}:{secure_port}");
        self.identities(address, &server)?;

        let daemon = etcd::daemon(&etcd_program, self.layout, etcd_port, peer_port);
        self.ensure(&daemon, || async { tokio::net::TcpStream::connect((local, etcd_port)).await.is_ok() })
            .await?;

        write_private(&self.layout.audit_policy(), apiserver::AUDIT_POLICY.as_bytes())?;
        let daemon = apiserver::daemon(&apiserver_program, self.layout, address, secure_port, etcd_port);
        let client = connect::client(&self.layout.admin_kubeconfig()).await?;
        self.ensure(&daemon, || connect::answers(&client, "/readyz")).await?;

        let daemon = controller_manager::daemon(&manager_program, self.layout, manager_port);
        self.ensure(&daemon, || async {
            tokio::net::TcpStream::connect((local, manager_port)).await.is_ok()
        })
        .await?;
        self.default_service_account(&client).await?;
        Ok((client, server))
    }

    /// Every certificate and kubeconfig of the control plane.
    fn identities(&self, address: Ipv4Addr, server: &str) -> Result<(), UpError> {
        let layout = self.layout;
        let authority = Authority::open(layout)?;
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let serving = [local, IpAddr::V4(apiserver::SERVICE_ADDRESS), IpAddr::V4(address)];
        let serving = if address.is_loopback() { &serving[..2] } else { &serving[..] };
        let names = [
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ];
        for identity in [
            Identity::server("etcd", "etcd", &["localhost"], &[local]),
            Identity::server("apiserver", "kube-apiserver", &names, serving),
            Identity::client("apiserver-etcd-client", "kube-apiserver", &[]),
            Identity::client(
                "apiserver-kubelet-client",
                "kube-apiserver-kubelet-client",
                &["system:masters"],
            ),
            Identity::client("admin", "podway-admin", &["system:masters"]),
            Identity::client(controller_manager::NAME, "system:kube-controller-manager", &[]),
        ] {
            authority.issue(&identity)?;
        }
        kubeconfig::write(layout, &layout.admin_kubeconfig(), "admin", server)?;
        let manager = controller_manager::NAME;
        kubeconfig::write(layout, &layout.kubeconfig(manager), manager, server)?;
        Ok(())
    }

    /// The port that was chosen for `name` before, or a free one.
    fn port(&mut self, name: &str, address: Ipv4Addr, preferred: Option<u16>) -> Result<u16, UpError> {
        if let Some(port) = self.state.ports.get(name) {
            return Ok(*port);
        }
        let free = |port| TcpListener::bind((address, port)).and_then(|l| l.local_addr());
        let found = preferred
            .and_then(|port| free(port).ok())
            .map_or_else(|| free(0), Ok)
            .map_err(|source| UpError::Port { address, source })?;
        self.state.ports.insert(name.to_owned(), found.port());
        self.state.save(self.layout)?;
        Ok(found.port())
    }

    /// Sees that the daemon runs with this command line and is ready.
    async fn ensure<F>(&mut self, daemon: &Daemon, ready: impl FnMut() -> F) -> Result<(), UpError>
    where
        F: Future<Output = bool>,
    {
        let name = daemon.name.as_str();
        let log = self.layout.log(name);
        let running = self.state.processes.get(name).cloned().filter(process::alive);
        let record = match running {
            Some(record) if record.argv == daemon.argv() => record,
            other => {
                if let Some(old) = other {
                    process::stop(&old, Duration::from_secs(10)).await?;
                }
                (self.progress)(&format!("starting {name}"));
                let record = daemon.start(&log, self.layout.root())?;
                self.state.processes.insert(name.to_owned(), record.clone());
                self.state.save(self.layout)?;
                record
            }
        };
        connect::until_ready(name, &record, &log, READY, ready).await?;
        Ok(())
    }

    /// Pods cannot be created before their namespace has a service account.
    async fn default_service_account(&self, client: &Client) -> Result<(), UpError> {
        use k8s_openapi::api::core::v1::ServiceAccount;
        let api: kube::Api<ServiceAccount> = kube::Api::namespaced(client.clone(), "default");
        let there = |object: Option<&ServiceAccount>| object.is_some();
        let wait = kube::runtime::wait::await_condition(api, "default", there);
        match tokio::time::timeout(READY, wait).await {
            Ok(found) => found.map(|_| ()).map_err(UpError::Watch),
            Err(_) => Err(UpError::NoServiceAccount { seconds: READY.as_secs() }),
        }
    }
}
