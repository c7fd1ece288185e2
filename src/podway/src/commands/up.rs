//! `podway up`: the local cluster with podway's parts, and a first pod whose way is shown.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use podway_cluster::{Cluster, UpOptions};
use podway_systemd::Driver;

use super::{Hinted, flow, print};
use crate::programs;

/// Bring up a local cluster with podway's scheduler, agents and runtimes, and run a first pod.
///
/// A second up finds the first one running. Needs root, iptables and (for its own registry)
/// busybox-static; etcd, Kubernetes and runc come from KUBEBUILDER_ASSETS or PATH, or are built
/// once with Go.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  podway up --nodes 2\n  export KUBECONFIG=/var/lib/podway/local/admin.kubeconfig\n  kubectl get nodes,pods"
)]
pub(crate) struct Args {
    /// Where everything is kept: kubeconfig, logs, certificates, data.
    #[arg(long, value_name = "DIR", default_value = podway_cluster::up::DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
    /// How many nodes, each in a network namespace of its own.
    #[arg(long, value_name = "N", default_value_t = 1)]
    nodes: u8,
    /// Start no pod.
    #[arg(long)]
    no_demo: bool,
    /// Use the cluster of this kubeconfig instead of an own control plane.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Have podway's scheduler place the pods that name no scheduler, too.
    #[arg(long)]
    default_scheduler: bool,
    /// Who manages the nodes' cgroups: whoever makes a directory, or the systemd of this machine.
    #[arg(long, value_name = "DRIVER", default_value = Driver::default().name(), value_parser = [Driver::Cgroupfs.name(), Driver::Systemd.name()])]
    cgroup_driver: String,
    /// The address of the cluster's DNS server, for pods; without one they have their node's resolver.
    #[arg(long, value_name = "IP")]
    cluster_dns: Option<Ipv4Addr>,
    /// Use this registry (plain HTTP) for every image, instead of an own one.
    #[arg(long, value_name = "HOST:PORT")]
    registry: Option<String>,
}

const DEMO: &str = include_str!("../../../../manifests/examples/pod.yaml");
/// The name of the pod in [`DEMO`].
const DEMO_NAME: &str = "hello";
/// How long the demonstration may take; it takes less than a second.
const DEMO_LIMIT: Duration = Duration::from_secs(60);

/// A line of progress on standard error, so that standard output is the result alone.
#[expect(clippy::print_stderr, reason = "progress is for who watches")]
pub(crate) fn progress(line: &str) {
    eprintln!("{line}");
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    // A second install is refused, and the first one serves.
    let _installed = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(up(args))
}

async fn up(args: Args) -> anyhow::Result<()> {
    let podway = programs::whole()?;
    let kubeconfig = args.kubeconfig.map(std::path::absolute).transpose().context("finding --kubeconfig")?;
    let options = UpOptions {
        state_dir: args.state_dir.clone(),
        control_plane_only: false,
        crds: podway_api::crds::crds()?.into_iter().map(|crd| crd.yaml).collect(),
        nodes: args.nodes,
        kubeconfig,
        registry: args.registry,
        default_scheduler: args.default_scheduler,
        systemd: args.cgroup_driver == Driver::Systemd.name(),
        cluster_dns: args.cluster_dns,
        podway: Some(podway),
    };
    let logs = args.state_dir.join("logs");
    let hint = format!("the logs are in {}; podway down removes what is there", logs.display());
    let cluster = podway_cluster::up(options, progress)
        .await
        .with_context(|| Hinted::new("the cluster is not up", hint))?;
    if !args.no_demo && args.nodes > 0 {
        demo(&cluster).await?;
    }
    print(&exports(&cluster))
}

/// What a shell needs to use the cluster; `eval "$(podway up --no-demo)"` is meant to work.
fn exports(cluster: &Cluster) -> String {
    let mut lines = format!("export KUBECONFIG={}\n", cluster.kubeconfig.display());
    if let Some(bin) = &cluster.bin {
        lines.push_str(&format!("export PATH={}:$PATH\n", bin.display()));
    }
    lines
}

/// Runs the first pod and prints its way.
async fn demo(cluster: &Cluster) -> anyhow::Result<()> {
    progress(&format!("starting pod {DEMO_NAME}"));
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "default");
    let pod: Pod = serde_yaml::from_str(DEMO).context("reading the demonstration pod")?;
    match pods.create(&PostParams::default(), &pod).await {
        // That of an up before; its way is shown again.
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        created => drop(created.context("creating the demonstration pod")?),
    }
    let ready = |pod: Option<&Pod>| {
        let conditions = pod.and_then(|p| p.status.as_ref()?.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
    };
    let wait = kube::runtime::wait::await_condition(pods, DEMO_NAME, ready);
    let waited = tokio::time::timeout(DEMO_LIMIT, wait).await;
    let source = flow::Source::new(cluster.client.clone(), "default", DEMO_NAME, cluster.audit_log.clone());
    // Also where it did not get Ready: the picture says where it stands.
    print(&source.picture().await?)?;
    let hint = format!("kubectl describe pod {DEMO_NAME}");
    let late = || Hinted::new(format!("pod {DEMO_NAME} is not Ready after {} s", DEMO_LIMIT.as_secs()), hint);
    waited.map_err(|_| late())?.context("watching the demonstration pod")?;
    Ok(())
}
