//! The agent's process: directories, the runtime, the node's registration and lease, then the kubelet
//! API and the watches that drive the pods' workers. Pods are not touched before the Node is registered, as what it offers
//! and is called goes into them.

use crate::api::KubeApi;
use crate::audit::AuditLog;
use crate::certificates::client::Swap;
use crate::certificates::rotate;
use crate::cgroups::layout::Layout;
use crate::cgroups::{CgroupError, Cgroups};
use crate::config::Config;
use crate::cri::Cri;
use crate::csi::Drivers;
use crate::csi::node::ApiNode;
use crate::devices::Devices;
use crate::dns::{self, NodeDns};
use crate::eviction::Eviction;
use crate::gc::Collector;
use crate::metrics::Metrics;
use crate::node::allocatable::{AllocatableError, Capacity, PodsLimits};
use crate::node::machine::{self, MachineError, Reader};
use crate::node::runtime::CriProbe;
use crate::node::{NodeError, Registrar};
use crate::node::{enforce, events, oom};
use crate::plugins::Plugins;
use crate::pod::admission::Offer;
use crate::pod::classes::Classes;
use crate::pod::confinement::Modules;
use crate::pod::context::Context;
use crate::pod::ledger::Ledger;
use crate::pod::status;
use crate::pods::Pods;
use crate::shutdown::Shutdown;
use crate::shutdown::times::Times;
use crate::statics::dir::Dir;
use crate::stats::Stats;
use crate::status::pace::Pace;
use crate::traces::config::TracingError;
use crate::traces::send;
use crate::userns::UserNamespaces;
use crate::volumes::VolumeManager;
use crate::volumes::api::ApiSource;
use crate::{gc, lease, server, volumes, watch};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::node::v1::RuntimeClass;
use kube::runtime::{WatchStreamExt as _, reflector, watcher};
use kube::{Api, Client};
use podway_flow::Clock;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch::{Receiver, Sender};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// Where the kernel's cgroups are.
const CGROUPS: &str = "/sys/fs/cgroup";
/// How often a runtime that does not serve yet is tried.
const CONNECT: Duration = Duration::from_millis(200);

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A directory cannot be made.
    #[error("cannot make {0}: run as root, or give another --root-dir")]
    Dir(PathBuf, #[source] io::Error),
    /// The endpoint is not one.
    #[error(transparent)]
    Endpoint(#[from] podway_cri::client::ConnectError),
    /// The runtime does not answer as a CRI v1 runtime.
    #[error("the runtime at {endpoint} does not tell its version: is it a CRI v1 runtime?")]
    Runtime {
        /// The endpoint as given.
        endpoint: String,
        /// Its answer.
        #[source]
        source: crate::cri::CallError,
    },
    /// A file of the machine.
    #[error("cannot read {0}: give another with its flag")]
    File(PathBuf, #[source] io::Error),
    /// The cgroups of all pods.
    #[error(
        "the pods' cgroups cannot be made: give another --cgroup-root, or run where cgroups are writable"
    )]
    Cgroups(#[from] CgroupError),
    /// The names that they would have.
    #[error("--cgroup-root {0}: with the runtime's cgroup driver systemd give plain names, as in /podway")]
    CgroupRoot(String, #[source] podway_systemd::InvalidSlice),
    /// The cgroups of others.
    #[error(transparent)]
    Reserved(#[from] enforce::ReservedError),
    /// What the machine has.
    #[error("the machine cannot be read")]
    Machine(#[from] MachineError),
    /// More is kept from pods than there is.
    #[error(transparent)]
    Allocatable(#[from] AllocatableError),
    /// The volumes that pods have.
    #[error(transparent)]
    Volumes(#[from] volumes::VolumeError),
    /// The node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// Where traces go.
    #[error("tracing")]
    Tracing(#[from] TracingError),
    /// The kubelet API.
    #[error(transparent)]
    Server(#[from] server::ServerError),
    /// A part of the agent ended.
    #[error("the {0} ended: start the agent again")]
    Ended(&'static str),
}

/// Runs the agent as configured until `shutdown`; the certificate of `rotation` is renewed in time. Pods and their
/// processes live on after it. Where their cgroups are is told in `layout` before the first is made.
///
/// # Errors
/// [`RunError`] when it cannot begin or cannot go on.
pub async fn run(
    client: Client,
    config: Config,
    rotation: Option<Swap>,
    shutdown: CancellationToken,
    layout: &OnceLock<Layout>,
) -> Result<(), RunError> {
    let ended = shutdown.clone();
    tokio::select! {
        // Parts end by it too, which is no error then.
        biased;
        () = ended.cancelled() => Ok(()),
        result = work(client, config, rotation, shutdown, layout) => result,
    }
}

/// Takes the cgroups of all pods along where there are no pods: an agent that does not come back has left nothing,
/// and one that does makes them again. To be called once no task of [`run`] is left that could make them.
pub fn leave(layout: &Layout) {
    let cgroups = Cgroups::new(Path::new(CGROUPS), layout.clone());
    let thread = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(thread) => thread,
        Err(error) => return tracing::info!(%error, "the pods' cgroups stay"),
    };
    if let Err(error) = thread.block_on(cgroups.leave()) {
        tracing::info!(?error, "the pods' cgroups stay");
    }
}

async fn work(
    client: Client,
    config: Config,
    rotation: Option<Swap>,
    shutdown: CancellationToken,
    told: &OnceLock<Layout>,
) -> Result<(), RunError> {
    let mut private = std::fs::DirBuilder::new();
    let made = private.recursive(true).mode(0o700).create(&config.root_dir);
    made.map_err(|e| RunError::Dir(config.root_dir.clone(), e))?;
    let channel = connect(&config.container_runtime_endpoint).await?;
    let metrics = Arc::new(Metrics::new(&config.node_name));
    let cri = Cri::new(channel.clone(), Arc::clone(&metrics));
    let (runtime, version) = cri.version().await.map_err(|source| RunError::Runtime {
        endpoint: config.container_runtime_endpoint.clone(),
        source,
    })?;
    tracing::info!(runtime, version, node = config.node_name, "the runtime answers");
    let (config, layout) = cgroup_layout(&cri, config).await?;
    let layout = told.get_or_init(|| layout);
    let limits = pods_limits(&config, layout)?;

    let mut tasks: JoinSet<&'static str> = JoinSet::new();
    let file = config.root_dir.join("devices.json");
    let devices = Devices::new(&config.device_plugins(), &file, Arc::clone(&metrics));
    let registry = Arc::clone(&devices);
    tasks.spawn(async move {
        registry.serve().await;
        "registry of device plugins"
    });
    // Before the Node is told anything: what is in use is not detached.
    let in_use = Sender::new(volumes::csi::attached(&config.root_dir)?);
    let probe = Arc::new(CriProbe(channel.clone()));
    let thresholds = config.thresholds.clone().with_allocatable(config.reservation.enforce);
    let registrar = Registrar::new(client.clone(), probe, &config, layout, thresholds.clone())?
        .with_devices(devices.amounts())
        .with_volumes(in_use.subscribe());
    let node_handle = registrar.handle();
    let stop = shutdown.clone();
    tasks.spawn(async move {
        registrar.run(stop).await;
        "registration of the node"
    });
    let cluster = ApiNode::new(client.clone(), &config.node_name, node_handle.state());
    let drivers = Drivers::new(Arc::new(cluster));
    let plugins = Plugins::new(&config.plugins_registry(), Arc::clone(&drivers));
    tasks.spawn(async move {
        plugins.serve().await;
        "registry of plugins"
    });
    let (dir, name) = (config.pki(), config.node_name.clone());
    if let Some(swap) = rotation {
        let (dir, name) = (dir.clone(), name.clone());
        tasks.spawn(async move {
            rotate::client(swap, &dir, &name).await;
            "renewal of the client certificate"
        });
    }
    if config.server_tls_bootstrap {
        let (own, told) = (client.clone(), node_handle.state());
        tasks.spawn(async move {
            rotate::serving(own, &dir, &name, told).await;
            "renewal of the serving certificate"
        });
    }
    let mut state = node_handle.state();
    // Static pods do not wait for the API server: what the machine itself says of the node is enough.
    let alone = config.static_pod_path.is_some();
    let node = loop {
        let node = {
            let state = state.borrow_and_update();
            state.node.clone().or_else(|| state.local.clone().filter(|_| alone))
        };
        if let Some(node) = node {
            break node;
        }
        if state.changed().await.is_err() {
            return Err(RunError::Ended("registration of the node"));
        }
    };
    let (own, name, told) = (client.clone(), config.node_name.clone(), node_handle.state());
    tasks.spawn(async move {
        lease::keep(own, &name, told).await;
        "lease of the node"
    });

    if config.cluster_dns.is_empty() {
        tracing::warn!("no --cluster-dns is given: pods with dnsPolicy ClusterFirst get the node's resolver");
    }
    let clock = Clock::new();
    let services = kept::<Service>(&mut tasks, &client, "watch of services");
    let classes = kept::<RuntimeClass>(&mut tasks, &client, "watch of RuntimeClasses");
    let counts = Arc::clone(&metrics);
    let mut traces = None;
    if let Some(tracing) = &config.tracing {
        let (to, sending) = send::start(tracing, metrics.traces.clone())?;
        traces = Some(to);
        tasks.spawn(async move {
            sending.await;
            "export of traces"
        });
    }
    let context = context(
        &client,
        &config,
        &node,
        layout.clone(),
        cri.clone(),
        metrics,
        runtime,
        (services, Classes::new(classes), devices, drivers),
        in_use,
        clock,
        node_handle.state(),
    )?;
    let context = Context { traces, ..context };
    context.cgroups.prepare(limits.milli_cpu).await?;
    let told = events::Writer::new(client.clone(), &config.node_name);
    enforce::others(&context.cgroups, &config.reservation, &told).await?;
    let cgroups = Arc::clone(&context.cgroups);
    tasks.spawn(async move {
        enforce::keep(cgroups, limits, told).await;
        "limits of all pods"
    });
    let offer = Offer {
        node: config.node_name.clone(),
        allocatable: context.allocatable.clone(),
        labels: node.metadata.labels.clone().unwrap_or_default(),
        max_pods: usize::try_from(config.max_pods).unwrap_or(usize::MAX),
        modules: context.modules,
    };
    let pods = Pods::new(context, offer, node_handle.state(), client.clone(), config.root_dir.clone());
    let stats = Arc::new(Stats::new(Arc::new(cri.clone()), &config, layout));
    let parts = server::Parts {
        client: client.clone(),
        pods: Arc::clone(&pods) as _,
        streaming: Arc::new(channel.clone()),
        pulls: Arc::new(channel),
        checkpointing: Arc::new(cri.clone()),
        checkpoints: config.root_dir.join(server::checkpoint::DIRECTORY),
        stats: Arc::clone(&stats),
        configz: Arc::new(config.configz()),
        system_logs: PathBuf::from("/var/log"),
        node: node_handle.state(),
    };
    let server = server::Server::bind(&config, parts).await?;
    tasks.spawn(async move {
        server.serve(shutdown).await;
        "kubelet API"
    });
    let node_events = events::Writer::new(client.clone(), &config.node_name);
    let collector =
        Arc::new(Collector::new(cri.clone(), Arc::clone(&pods) as _, node_events.clone(), config.image_gc));
    for part in [true, false] {
        let collector = Arc::clone(&collector);
        tasks.spawn(async move {
            if part {
                gc::images(collector).await
            } else {
                gc::containers(collector).await
            }
            "garbage collection"
        });
    }
    let (ooms, told) = (oom::Watch::new(&config.root_dir), node_events.clone());
    tasks.spawn(async move {
        ooms.run(told).await;
        "watch of the kernel's log"
    });
    let shutdown_events = node_events.clone();
    let eviction = Eviction {
        pods: Arc::clone(&pods),
        stats,
        collector,
        events: node_events,
        node: node_handle.clone(),
        thresholds,
        reader: Reader::new(Path::new("/"), layout),
        root_dir: config.root_dir.clone(),
        metrics: Arc::clone(&counts),
    };
    tasks.spawn(async move {
        eviction.run().await;
        "eviction"
    });
    if !config.shutdown.is_empty() {
        let shutdown = Shutdown {
            pods: Arc::clone(&pods),
            node: node_handle.clone(),
            events: shutdown_events,
            periods: config.shutdown.clone(),
            times: Times::recall(&config.root_dir, Arc::clone(&counts)),
        };
        tasks.spawn(async move {
            shutdown.run().await;
            "watch of the machine's shutdown"
        });
    }
    let (logs_cri, logged, policy) = (cri.clone(), Arc::clone(&pods), config.container_logs);
    tasks.spawn(async move {
        gc::rotate_logs(logs_cri, logged, policy).await;
        "rotation of logs"
    });
    let events = Arc::clone(&pods);
    tasks.spawn(async move {
        watch::runtime(cri, events).await;
        "runtime's event stream"
    });
    pods.recall().await;
    if let Some(path) = &config.static_pod_path {
        let mut dir = Dir::new(path, &config.node_name);
        // Before the first listing: whatever runs and is no pod's is taken down then.
        let files = dir.read().map_err(|e| RunError::File(path.clone(), e))?;
        pods.files(files);
        let files = Arc::clone(&pods);
        tasks.spawn(async move {
            dir.follow(|pods| files.files(pods)).await;
            "watch of static pods"
        });
    }
    let (name, bound) = (config.node_name.clone(), Arc::clone(&pods));
    tasks.spawn(async move {
        // What an API server has for this node is not asked for before it knows the node.
        if state.wait_for(|s| s.node.is_some()).await.is_ok() {
            watch::pods(client, &name, bound, clock).await;
        }
        "watch of pods"
    });
    match tasks.join_next().await {
        Some(Ok(part)) => Err(RunError::Ended(part)),
        _ => Err(RunError::Ended("agent")),
    }
}

/// The configuration with the cgroup driver that the runtime has, and where cgroups are then (KEP-4033): two managers
/// of one tree would take each other's away. A runtime that does not say leaves it to the configuration.
async fn cgroup_layout(cri: &Cri, config: Config) -> Result<(Config, Layout), RunError> {
    let said = cri.cgroup_driver().await;
    let said = said.map_err(|source| RunError::Runtime {
        endpoint: config.container_runtime_endpoint.clone(),
        source,
    })?;
    let config = Config { cgroup_driver: said.unwrap_or(config.cgroup_driver), ..config };
    let layout = Layout::new(config.cgroup_driver, &config.cgroup_root);
    let layout = layout.map_err(|e| RunError::CgroupRoot(config.cgroup_root.clone(), e))?;
    tracing::info!(driver = config.cgroup_driver.name(), pods = layout.pods().path, "cgroups");
    Ok((config, layout))
}

/// What all pods together may have, once it is clear that not more is kept from them than there is.
fn pods_limits(config: &Config, layout: &Layout) -> Result<PodsLimits, RunError> {
    let reader = Reader::new(Path::new("/"), layout);
    let machine = reader.machine()?;
    let capacity = Capacity {
        cpus: machine.cpus,
        memory: machine.memory,
        storage: Some(machine::fs(&config.root_dir)?.capacity),
        pids: reader.pids_max(),
    };
    config.reservation.check(&capacity, &config.thresholds)?;
    Ok(config.reservation.pods(&capacity))
}

/// Connects to the runtime, waiting until it serves.
async fn connect(endpoint: &str) -> Result<Channel, RunError> {
    podway_cri::client::socket_path(endpoint)?;
    let mut told = false;
    loop {
        match podway_cri::client::connect(endpoint).await {
            Ok(channel) => return Ok(channel),
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%error, "waiting for the runtime");
                }
                tokio::time::sleep(CONNECT).await;
            }
        }
    }
}

/// All objects of a kind, kept up to date by a watch that is begun again wherever it breaks off; `what` names it.
fn kept<K>(tasks: &mut JoinSet<&'static str>, client: &Client, what: &'static str) -> reflector::Store<K>
where
    K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let watched = Api::<K>::all(client.clone());
    tasks.spawn(async move {
        let stream = watcher(watched, watcher::Config::default()).default_backoff().modify(watch::lean);
        let mut stream = std::pin::pin!(reflector(writer, stream));
        while let Some(event) = stream.next().await {
            if let Err(error) = event {
                tracing::warn!(%error, "the {what} broke off and is begun again");
            }
        }
        what
    });
    store
}

#[expect(clippy::too_many_arguments, reason = "the parts of one struct, each made elsewhere")]
fn context(
    client: &Client,
    config: &Config,
    node: &Node,
    layout: Layout,
    cri: Cri,
    metrics: Arc<Metrics>,
    runtime: String,
    (services, classes, devices, drivers): (reflector::Store<Service>, Classes, Arc<Devices>, Arc<Drivers>),
    in_use: Sender<BTreeSet<String>>,
    clock: Clock,
    state: Receiver<crate::node::State>,
) -> Result<Context, RunError> {
    let status = node.status.clone().unwrap_or_default();
    let allocatable = status.allocatable.unwrap_or_default();
    let capacity = status.capacity.unwrap_or_default();
    let memory = capacity.get("memory").and_then(|q| crate::env::quantity::value(&q.0)).unwrap_or(0);
    let addresses = status.addresses.unwrap_or_default();
    let of = |kind: &str| addresses.iter().filter(|a| a.type_ == kind).map(|a| a.address.clone()).collect();
    let ips: Vec<String> = of("InternalIP");
    let hostnames: Vec<String> = of("Hostname");
    let cgroups = Cgroups::new(Path::new(CGROUPS), layout).with_pod_pids(config.pod_pids_limit);
    let read = |path: &Path| std::fs::read_to_string(path).map_err(|e| RunError::File(path.to_owned(), e));
    let source = Arc::new(ApiSource::new(client.clone()));
    Ok(Context {
        api: Arc::new(KubeApi::new(client.clone(), &config.node_name, services, Arc::clone(&metrics))),
        pace: Pace::default(),
        volumes: VolumeManager::new(
            volumes::csi::Parts {
                root: config.root_dir.clone(),
                node: config.node_name.clone(),
                drivers,
                known: state.clone(),
                in_use,
            },
            Arc::clone(&source) as _,
            Arc::clone(&source) as _,
            allocatable.clone(),
        ),
        objects: source,
        ledger: Ledger::new(allocatable.clone()),
        devices,
        userns: Arc::new(UserNamespaces::new(&config.root_dir.join("pods"), state.clone())),
        classes,
        modules: Modules::of_kernel(),
        seccomp_default: config.seccomp_default,
        known: state,
        cgroups: Arc::new(cgroups),
        audit: config.audit_log.clone().map(AuditLog::new),
        podflow: config.podflow,
        traces: None,
        node: status::Node { runtime, ips },
        hostname: hostnames.into_iter().next().unwrap_or_else(|| config.node_name.clone()),
        dns: NodeDns {
            cluster_dns: config.cluster_dns.iter().map(ToString::to_string).collect(),
            cluster_domain: config.cluster_domain.clone(),
            host: dns::parse(&read(&config.resolv_conf)?),
        },
        pod_logs_dir: config.pod_logs_dir.clone(),
        memory_capacity: i64::try_from(memory).unwrap_or(i64::MAX),
        allocatable,
        cri,
        metrics,
        clock,
    })
}
