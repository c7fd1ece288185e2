//! `podway up`: brings up what is not up yet.
//!
//! Order: lock, directories, programs, network, certificates, etcd, kube-apiserver,
//! kube-controller-manager, custom resources and rights, registry and its images, scheduler, and
//! per node its namespace, runtime and agent; at last the nodes are Ready. Each step finds its own
//! work done or does it, so an `up` after a `kill -9` in the middle of one goes on where that one
//! was. What is made is told to the state before it is made.

mod control_plane;
mod daemons;
mod error;
mod images;
mod links;
mod network;
mod parts;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::Client;

pub use self::error::UpError;
use crate::Progress;
use crate::existing::Existing;
use crate::images::Programs;
use crate::layout::Layout;
use crate::network::MAX_NODES;
use crate::parts::{NodeParts, Shared};
use crate::program::{BinaryError, Program};
use crate::state::{State, StateLock, io_at, private_dir};
use crate::{apply, binaries, firewall, nodes, preflight, registry};

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
    /// Whether our scheduler has the pods that name none, too.
    pub default_scheduler: bool,
    /// Whether systemd manages the nodes' cgroups.
    pub systemd: bool,
    /// Whom pods ask for names (`clusterDNS`); without one they have their node's resolver.
    pub cluster_dns: Option<Ipv4Addr>,
    /// The `podway` binary, with [the others](crate::own) beside it; without it the nodes are made and
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
            default_scheduler: false,
            systemd: false,
            cluster_dns: None,
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
    /// The directory with links to `podway`, `kubectl-podway` and `kubectl`, where there is one.
    pub bin: Option<PathBuf>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("server", &self.server).finish_non_exhaustive()
    }
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
    if options.podway.is_some() {
        preflight::overlay(layout.root())?;
    }
    let programs = binaries::locate(&wanted(&options), progress).await?;
    let mut work = Work { layout: &layout, state: &mut state, programs, progress };
    if !options.control_plane_only {
        return work.cluster(&options).await;
    }
    let (client, server) = work.control_plane(Ipv4Addr::LOCALHOST).await?;
    work.objects(&client, &options).await?;
    work.default_service_account(&client).await?;
    let (kubeconfig, audit_log) = (layout.admin_kubeconfig(), Some(layout.audit_log()));
    Ok(Cluster { client, server, kubeconfig, registry: None, audit_log, bin: None, layout })
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
    Ok(preflight::machine()?)
}

/// The programs that there is no cluster without.
fn wanted(options: &UpOptions) -> Vec<Program> {
    let mut wanted = Vec::new();
    if options.kubeconfig.is_none() {
        wanted.extend([Program::Etcd, Program::KubeApiserver, Program::KubeControllerManager]);
    }
    if !options.control_plane_only {
        if options.registry.is_none() {
            wanted.push(Program::Registry);
        }
        if options.podway.is_some() {
            wanted.extend([Program::Runc, Program::CniPlugins]);
        }
    }
    wanted
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

/// One `up` at work.
struct Work<'a> {
    layout: &'a Layout,
    state: &'a mut State,
    /// Those of [`wanted`].
    programs: BTreeMap<Program, PathBuf>,
    progress: Progress<'a>,
}

impl Work<'_> {
    /// One of the programs that are at hand.
    fn program(&self, program: Program) -> Result<&Path, BinaryError> {
        let found = self.programs.get(&program);
        found.map(PathBuf::as_path).ok_or(BinaryError::NotWanted { program: program.file() })
    }

    /// What the image of podway is built from.
    fn own_programs(&self, options: &UpOptions) -> Result<Option<Programs>, BinaryError> {
        let Some(podway) = &options.podway else { return Ok(None) };
        Ok(Some(Programs { podway: podway.clone(), runc: self.program(Program::Runc)?.to_owned() }))
    }

    /// Everything but the control plane alone.
    async fn cluster(&mut self, options: &UpOptions) -> Result<Cluster, UpError> {
        let layout = self.layout;
        let images = match &options.registry {
            Some(_) => None,
            None => Some(self.build_images(self.own_programs(options)?).await?),
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
        firewall::open(network, self.state.api_port()).await?;
        self.objects(&client, options).await?;
        let endpoint = match (images, &options.registry) {
            (Some(images), _) => self.local_registry(gateway, images).await?,
            (None, Some(endpoint)) => endpoint.clone(),
            (None, None) => String::new(),
        };
        for node in network.nodes(options.nodes) {
            nodes::node(network, node, options.nodes).await?;
        }
        if let Some(podway) = &options.podway {
            let shared = Shared {
                podway: podway.clone(),
                runc: self.program(Program::Runc)?.to_owned(),
                cni: self.program(Program::CniPlugins)?.to_owned(),
                registry: endpoint.clone(),
                registry_only: options.registry.is_some(),
                audit: existing.is_none(),
                default_scheduler: options.default_scheduler,
                systemd: options.systemd,
                cluster_dns: options.cluster_dns,
            };
            let nodes: Vec<NodeParts> =
                network.nodes(options.nodes).map(|n| NodeParts::new(layout, n)).collect();
            self.part_identities(&nodes, &server, existing.as_ref()).await?;
            self.parts(&client, &nodes, &shared).await?;
        }
        self.default_service_account(&client).await?;
        let bin = match &options.podway {
            Some(podway) => Some(self.links(podway).await?),
            None => None,
        };
        Ok(Cluster {
            client,
            server,
            kubeconfig: options.kubeconfig.clone().unwrap_or_else(|| layout.admin_kubeconfig()),
            registry: Some(endpoint),
            audit_log: existing.is_none().then(|| layout.audit_log()),
            bin,
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
}
