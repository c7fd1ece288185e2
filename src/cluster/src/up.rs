//! `podway up`: brings up what is not up yet.
//!
//! Order: lock, directories, programs, network, certificates, etcd, kube-apiserver,
//! kube-controller-manager, custom resources and rights, registry and its images, scheduler, and
//! per node its namespace, runtime and agent; at last the nodes are Ready. Each step finds its own
//! work done or does it, so an `up` after a `kill -9` in the middle of one goes on where that one
//! was. What is made is told to the state before it is made.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, DeleteParams};

use crate::Progress;
use crate::binaries::{BinaryError, Program};
use crate::connect::{self, ConnectError};
use crate::existing::{Existing, ExistingError, Signer};
use crate::firewall::{self, FirewallError};
use crate::images::{self, Image, ImageError};
use crate::layout::Layout;
use crate::network::{MAX_NODES, Network};
use crate::nodes::{self, NodesError};
use crate::parts::{self, NodeParts, Shared};
use crate::pki::{Authority, Identity, PkiError};
use crate::process::{self, Daemon, ProcessError};
use crate::push::{PushError, Registry};
use crate::state::{State, StateError, StateLock, io_at, private_dir, write_private};
use crate::{apiserver, apply, controller_manager, down, etcd, kubeconfig, registry};

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
    /// How many nodes, at most [`MAX_NODES`].
    pub nodes: u8,
    /// The kubeconfig of a cluster that exists, instead of a control plane of our own.
    pub kubeconfig: Option<PathBuf>,
    /// A registry (`host:port`, plain HTTP) that answers for every registry, instead of a local one.
    pub registry: Option<String>,
    /// The `podway` binary, with `podway-monitor` beside it; without it the nodes are made and
    /// nothing is started on them, nor a scheduler.
    pub podway: Option<PathBuf>,
}

impl Default for UpOptions {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::from(DEFAULT_STATE_DIR),
            control_plane_only: false,
            crds: Vec::new(),
            nodes: 1,
            kubeconfig: None,
            registry: None,
            podway: None,
        }
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
    /// The administrator's kubeconfig.
    pub kubeconfig: PathBuf,
    /// The registry that the nodes ask, `host:port`; none with only a control plane.
    pub registry: Option<String>,
    /// The API server's audit log, where the API server is ours.
    pub audit_log: Option<PathBuf>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Why the cluster is not up.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    /// The kernel lets only root do this.
    #[error("podway up makes network namespaces and mounts; run it as root")]
    NotRoot,
    /// Programs of the machine are missing.
    #[error("missing on this machine: {programs}; install them (Debian: apt-get install {packages})")]
    Missing {
        /// What is missing.
        programs: String,
        /// The Debian packages that have it.
        packages: String,
    },
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
    Apply(#[from] apply::ApplyError),
    /// A node's environment was not made.
    #[error(transparent)]
    Nodes(#[from] NodesError),
    /// The host does not forward for the nodes.
    #[error(transparent)]
    Firewall(#[from] FirewallError),
    /// An image was not built.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// An image was not pushed.
    #[error(transparent)]
    Push(#[from] PushError),
    /// A node that is not wanted any more was not removed.
    #[error(transparent)]
    Down(#[from] down::DownError),
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
    /// The existing cluster has a node of that name.
    #[error("the cluster has a node {node} already, which is not of this state directory; delete it first")]
    NodeExists {
        /// The node.
        node: String,
    },
    /// The existing cluster does not say which nodes it has.
    #[error("cannot look up the node {node}")]
    LookUpNode {
        /// The node.
        node: String,
        /// The cause.
        #[source]
        source: kube::Error,
    },
    /// A node's Node object could not be removed.
    #[error("cannot delete the node {node}")]
    DeleteNode {
        /// The node.
        node: String,
        /// The cause.
        #[source]
        source: kube::Error,
    },
}

/// How long a daemon may take until it is ready. A slow machine needs some 10 s.
const READY: Duration = Duration::from_secs(90);

/// Brings up the cluster, or finds it up; `progress` gets a line for each thing that takes time.
pub async fn up(options: UpOptions, progress: impl Fn(&str) + Send + Sync) -> Result<Cluster, UpError> {
    let progress: Progress<'_> = &progress;
    check(&options)?;
    let layout = open_dir(&options.state_dir)?;
    let _lock = StateLock::take(&layout)?;
    let mut state = State::load(&layout)?.unwrap_or_default();
    same_kind(&layout, &state, &options)?;
    state.existing.clone_from(&options.kubeconfig);
    state.save(&layout)?;
    let mut work = Work { layout: &layout, state: &mut state, progress };
    if !options.control_plane_only {
        return work.cluster(&options).await;
    }
    let (client, server) = work.control_plane(Ipv4Addr::LOCALHOST).await?;
    work.objects(&client, &options).await?;
    work.default_service_account(&client).await?;
    let (kubeconfig, audit_log) = (layout.admin_kubeconfig(), Some(layout.audit_log()));
    Ok(Cluster { client, server, kubeconfig, registry: None, audit_log, layout })
}

/// What can be said before anything is touched.
fn check(options: &UpOptions) -> Result<(), UpError> {
    if options.control_plane_only {
        return Ok(());
    }
    if options.nodes > MAX_NODES {
        return Err(UpError::TooManyNodes { nodes: options.nodes });
    }
    if let Some(value) = options.registry.as_ref().filter(|r| !registry::valid_endpoint(r)) {
        return Err(UpError::BadRegistry { value: value.clone() });
    }
    if !rustix::process::geteuid().is_root() {
        return Err(UpError::NotRoot);
    }
    let mut missing = Vec::new();
    if !in_path("iptables") {
        missing.push(("iptables", "iptables"));
    }
    if options.registry.is_none() && images::find_busybox().is_err() {
        missing.push(("busybox (statically linked)", "busybox-static"));
    }
    if missing.is_empty() {
        return Ok(());
    }
    let (programs, packages): (Vec<&str>, Vec<&str>) = missing.into_iter().unzip();
    Err(UpError::Missing { programs: programs.join(", "), packages: packages.join(" ") })
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|d| d.join(program).is_file())
}

/// A state directory's cluster is either ours or one that exists, until it is taken down.
fn same_kind(layout: &Layout, state: &State, options: &UpOptions) -> Result<(), UpError> {
    if state.existing == options.kubeconfig || state.processes.is_empty() && state.slot.is_none() {
        return Ok(());
    }
    let what = match &state.existing {
        Some(path) => format!("that of {}", path.display()),
        None => "its own".to_owned(),
    };
    Err(UpError::OtherKind { path: layout.root().display().to_string(), what })
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

/// The local registry's images.
enum Images {
    /// They are in it.
    Pushed,
    /// They are being built.
    Built { built: tokio::task::JoinHandle<Result<Vec<Image>, ImageError>>, sources: String },
}

/// One `up` at work.
struct Work<'a> {
    layout: &'a Layout,
    state: &'a mut State,
    progress: Progress<'a>,
}

impl Work<'_> {
    /// Everything but the control plane alone.
    async fn cluster(&mut self, options: &UpOptions) -> Result<Cluster, UpError> {
        let layout = self.layout;
        let images = match &options.registry {
            Some(_) => None,
            None => Some((Program::Registry.locate(self.progress).await?, self.build_images().await?)),
        };
        let network = self.network(options.nodes).await?;
        let gateway = network.gateway();
        let existing = match &options.kubeconfig {
            Some(path) => Some(Existing::open(layout, path).await?),
            None => None,
        };
        let (client, server) = match &existing {
            Some(existing) => (existing.client.clone(), existing.server.clone()),
            None => self.control_plane(gateway).await?,
        };
        firewall::open(network, down::api_port(self.state)).await?;
        self.objects(&client, options).await?;
        let endpoint = match (images, &options.registry) {
            (Some((program, images)), _) => self.local_registry(&program, gateway, images).await?,
            (None, Some(endpoint)) => endpoint.clone(),
            (None, None) => String::new(),
        };
        for node in network.nodes(options.nodes) {
            nodes::node(network, node, options.nodes).await?;
        }
        if let Some(podway) = &options.podway {
            let shared = Shared {
                monitor: podway.with_file_name("podway-monitor"),
                podway: podway.clone(),
                runc: Program::Runc.locate(self.progress).await?,
                cni: Program::CniPlugins.locate(self.progress).await?,
                registry: endpoint.clone(),
                registry_only: options.registry.is_some(),
                audit: existing.is_none(),
            };
            let nodes: Vec<NodeParts> =
                network.nodes(options.nodes).map(|n| NodeParts::new(layout, n)).collect();
            self.part_identities(&nodes, &server, existing.as_ref()).await?;
            self.parts(&client, &nodes, &shared).await?;
        }
        self.default_service_account(&client).await?;
        Ok(Cluster {
            client,
            server,
            kubeconfig: options.kubeconfig.clone().unwrap_or_else(|| layout.admin_kubeconfig()),
            registry: Some(endpoint),
            audit_log: existing.is_none().then(|| layout.audit_log()),
            layout: layout.clone(),
        })
    }

    /// The custom resources and the rights of our parts.
    async fn objects(&self, client: &Client, options: &UpOptions) -> Result<(), UpError> {
        for yaml in options.crds.iter().map(String::as_str).chain([apply::RBAC]) {
            apply::apply(client, yaml).await?;
        }
        Ok(())
    }

    /// Takes a network, makes its bridge, and removes the nodes that are not wanted any more.
    async fn network(&mut self, count: u8) -> Result<Network, UpError> {
        let _lock = nodes::lock().await?;
        let network = nodes::choose(self.layout.root(), self.state.slot)?;
        self.state.slot = Some(network.slot());
        let before = self.state.nodes;
        self.state.nodes = before.max(count);
        self.state.forwarding_was_off |= !firewall::forwards();
        self.state.save(self.layout)?;
        if nodes::share()? {
            self.state.shared_netns = true;
            self.state.save(self.layout)?;
        }
        nodes::bridge(network, self.layout.root()).await?;
        firewall::forward(true)?;
        for index in count..before {
            let node = NodeParts::new(self.layout, network.node(index));
            (self.progress)(&format!("removing {}", node.network.name()));
            down::node(&node, self.state).await?;
            let admin = self.state.existing.clone().unwrap_or_else(|| self.layout.admin_kubeconfig());
            // Without a control plane yet there is no Node either.
            if let Ok(client) = connect::client(&admin).await
                && connect::answers(&client, "/readyz").await
            {
                delete_node(&client, &node.network.name()).await?;
            }
        }
        self.state.nodes = count;
        self.state.save(self.layout)?;
        Ok(network)
    }

    /// Builds the registry's images on a thread, while the control plane starts; not those that an
    /// `up` before has pushed already.
    async fn build_images(&self) -> Result<Images, UpError> {
        let busybox = images::find_busybox()?;
        let agnhost = match Program::Agnhost.locate(self.progress).await {
            Ok(path) => Some(path),
            Err(error) => {
                // A pod that names it says that there is no such image; all else goes on.
                (self.progress)(&format!("no image of agnhost: {error}"));
                None
            }
        };
        let programs: Vec<&Path> =
            [Some(&busybox), agnhost.as_ref()].into_iter().flatten().map(PathBuf::as_path).collect();
        let sources = images::sources(&programs)?;
        if std::fs::read_to_string(self.pushed()).is_ok_and(|text| text == sources) {
            return Ok(Images::Pushed);
        }
        let built = tokio::task::spawn_blocking(move || {
            let layer = images::busybox_layer(&busybox)?;
            let mut built = vec![images::busybox(&layer)?, images::pause(&layer)?];
            if let Some(program) = agnhost {
                built.push(images::agnhost(&program, &layer)?);
            }
            Ok(built)
        });
        Ok(Images::Built { built, sources })
    }

    /// The file that says what the images in the registry were built from.
    fn pushed(&self) -> PathBuf {
        self.layout.registry().join("pushed")
    }

    /// Starts the registry on the bridge and fills it; gives its `host:port`.
    async fn local_registry(
        &mut self,
        program: &Path,
        address: Ipv4Addr,
        images: Images,
    ) -> Result<String, UpError> {
        let port = self.port("registry", address, None)?;
        let endpoint = format!("{address}:{port}");
        let daemon = registry::daemon(program, self.layout, address, port)?;
        let client = Registry::new(&endpoint);
        self.ensure(&daemon, || client.answers()).await?;
        let Images::Built { built, sources } = images else { return Ok(endpoint) };
        for image in built.await.map_err(|e| ImageError::Layer(std::io::Error::other(e)))?? {
            if client.push(&image).await? {
                (self.progress)(&format!("pushed {}:{}", image.repository, image.tag));
            }
        }
        write_private(&self.pushed(), sources.as_bytes())?;
        Ok(endpoint)
    }

    /// The certificates and kubeconfigs of our parts: from our CA, or from the existing cluster.
    async fn part_identities(
        &self,
        nodes: &[NodeParts],
        server: &str,
        existing: Option<&Existing>,
    ) -> Result<(), UpError> {
        let layout = self.layout;
        let mut wanted =
            vec![(Identity::client(parts::SCHEDULER, parts::SCHEDULER_USER, &[]), Signer::Client)];
        for node in nodes {
            let name = node.network.name();
            let address = IpAddr::V4(node.network.address());
            wanted.push((Identity::node(&name), Signer::NodeClient));
            wanted.push((Identity::node_serving(&node.serving(), &name, address), Signer::NodeServing));
        }
        match existing {
            Some(existing) => {
                for node in nodes {
                    self.not_anothers(&existing.client, &node.network.name()).await?;
                }
                for (identity, signer) in &wanted {
                    existing.issue(layout, identity, *signer).await?;
                }
            }
            None => {
                let authority = Authority::open(layout)?;
                for (identity, _) in &wanted {
                    authority.issue(identity)?;
                }
            }
        }
        for (identity, signer) in &wanted {
            if !matches!(signer, Signer::NodeServing) {
                let name = &identity.name;
                kubeconfig::write(layout, &layout.kubeconfig(name), name, server)?;
            }
        }
        Ok(())
    }

    /// A Node of an existing cluster that we have no identity for is somebody else's.
    async fn not_anothers(&self, client: &Client, name: &str) -> Result<(), UpError> {
        if self.layout.cert(name).exists() {
            return Ok(());
        }
        let api: Api<Node> = Api::all(client.clone());
        match api.get_metadata_opt(name).await {
            Ok(None) => Ok(()),
            Ok(Some(_)) => Err(UpError::NodeExists { node: name.to_owned() }),
            Err(source) => Err(UpError::LookUpNode { node: name.to_owned(), source }),
        }
    }

    /// Starts scheduler, runtimes and agents, and waits until every node is Ready.
    async fn parts(&mut self, client: &Client, nodes: &[NodeParts], shared: &Shared) -> Result<(), UpError> {
        let running = || async { true };
        let local = Ipv4Addr::LOCALHOST;
        let port = self.port(parts::SCHEDULER, local, Some(10351))?;
        let daemon = parts::scheduler(&shared.podway, self.layout, port);
        self.ensure(&daemon, || async { tokio::net::TcpStream::connect((local, port)).await.is_ok() })
            .await?;
        for node in nodes {
            let socket = node.socket();
            let daemon = node.runtime(shared)?;
            self.ensure(&daemon, || async { tokio::net::UnixStream::connect(&socket).await.is_ok() }).await?;
            self.ensure(&node.agent(shared, self.layout)?, running).await?;
        }
        for node in nodes {
            self.ready(client, node).await?;
        }
        Ok(())
    }

    /// Waits by a watch until the Node is Ready; an agent that ends is told at once.
    async fn ready(&self, client: &Client, node: &NodeParts) -> Result<(), UpError> {
        let name = node.network.name();
        let is_ready = |object: Option<&Node>| {
            let conditions = object.and_then(|n| n.status.as_ref()?.conditions.as_ref());
            let ready =
                conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
            // The controller manager takes the taint away a moment later; pods would wait for that.
            let taints = object.and_then(|n| n.spec.as_ref()?.taints.as_ref());
            ready && !taints.is_some_and(|all| all.iter().any(|t| t.key == "node.kubernetes.io/not-ready"))
        };
        let wait = kube::runtime::wait::await_condition(Api::all(client.clone()), &name, is_ready);
        let agent = node.agent_name();
        let log = self.layout.log(&agent);
        let ended = async {
            match self.state.processes.get(&agent) {
                Some(record) => process::ended(record).await,
                None => Ok(()),
            }
        };
        tokio::select! {
            found = wait => match found {
                Ok(_) => Ok(()),
                Err(source) => Err(UpError::Watch { what: format!("node {name}"), source }),
            },
            ended = ended => {
                ended?;
                Err(connect::ended(&agent, &log).into())
            }
            () = tokio::time::sleep(READY) => Err(UpError::NodeNotReady {
                node: name.clone(),
                seconds: READY.as_secs(),
                log: log.display().to_string(),
            }),
        }
    }

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
        let mut running = self.state.processes.get(name).cloned().filter(process::alive);
        if running.is_none() {
            running = process::unrecorded(daemon, self.layout.root())
                .map_err(|source| ProcessError::Kernel { what: "list", pid: 0, source })?;
        }
        let record = match running {
            Some(record) if process::current(&record, daemon) => record,
            other => {
                if let Some(old) = other {
                    process::stop(&old, Duration::from_secs(10)).await?;
                }
                (self.progress)(&format!("starting {name}"));
                daemon.start(&log, self.layout.root())?
            }
        };
        if self.state.processes.get(name) != Some(&record) {
            self.state.processes.insert(name.to_owned(), record.clone());
            self.state.save(self.layout)?;
        }
        connect::until_ready(name, &record, &log, READY, ready).await?;
        Ok(())
    }

    /// Pods cannot be created before their namespace has a service account.
    async fn default_service_account(&self, client: &Client) -> Result<(), UpError> {
        use k8s_openapi::api::core::v1::ServiceAccount;
        let api: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
        let there = |object: Option<&ServiceAccount>| object.is_some();
        let wait = kube::runtime::wait::await_condition(api, "default", there);
        match tokio::time::timeout(READY, wait).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(source)) => Err(UpError::Watch { what: "the default service account".to_owned(), source }),
            Err(_) => Err(UpError::NoServiceAccount { seconds: READY.as_secs() }),
        }
    }
}

/// Deletes a Node object, whether or not it is there.
pub(crate) async fn delete_node(client: &Client, name: &str) -> Result<(), UpError> {
    let api: Api<Node> = Api::all(client.clone());
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(source) => Err(UpError::DeleteNode { node: name.to_owned(), source }),
    }
}
