//! `podway-agent`, which `podway agent` becomes: runs the pods of one node over CRI, until it is told to end. The flags are the
//! kubelet's.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

use anyhow::Context as _;
use podway_agent::certificates::client::Swap;
use podway_agent::certificates::request::Purpose;
use podway_agent::certificates::store::Store;
use podway_agent::traces::Tracing;
use podway_agent::{certificates, config::Config, connection};
use podway_cluster::own;

use crate::commands::Hinted;

/// Run the pods of a node, in the kubelet's place; pods live on when it ends.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  podway agent --kubeconfig node-1.kubeconfig --node-name node-1 --container-runtime-endpoint unix:///run/podway/runtime.sock"
)]
pub(crate) struct Args {
    /// The kubeconfig, whose user is system:node:NAME; as kubectl finds it if not given.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// A kubeconfig whose credential may only ask for the node's certificate: used where the one of
    /// --kubeconfig is not there yet, which is written then.
    #[arg(long, value_name = "FILE", requires = "kubeconfig")]
    bootstrap_kubeconfig: Option<PathBuf>,
    /// Where certificates that the cluster signs are kept; pki below the root directory if not given.
    #[arg(long, value_name = "DIR")]
    cert_dir: Option<PathBuf>,
    /// The node's name.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: String,
    /// The CRI v1 server: podway runtime, containerd or CRI-O.
    #[arg(long, value_name = "unix:///PATH")]
    container_runtime_endpoint: Option<String>,
    /// A KubeletConfiguration of which config/agent.yaml has the fields; flags go before it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Volumes, and the agent's own state.
    #[arg(long, value_name = "DIR")]
    root_dir: Option<PathBuf>,
    /// The node's address, or one of each family; found from the default route if not given.
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    node_ip: Vec<IpAddr>,
    /// Labels of the node: KEY=VALUE, separated by commas.
    #[arg(long, value_name = "LABELS", value_delimiter = ',', value_parser = label)]
    node_labels: Vec<(String, String)>,
    /// Where device plugins register: kubelet.sock is made in it. /var/lib/kubelet/device-plugins is for plugins that
    /// know no other, on a node without a kubelet; device-plugins below the root directory if not given.
    #[arg(long, value_name = "DIR")]
    device_plugin_dir: Option<PathBuf>,
    /// The API server's audit log (JSON lines), where it is on this machine: µs times for steps 1 to 3.
    #[arg(long, value_name = "FILE")]
    audit_log: Option<PathBuf>,
    /// Write no PodFlow objects.
    #[arg(long)]
    no_podflow: bool,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

impl Args {
    fn config(&self) -> anyhow::Result<Config> {
        let mut config = Config { node_name: self.node_name.clone(), ..Config::default() };
        if let Some(path) = &self.config {
            crate::kubelet_config::load(path, &mut config)?;
        }
        if let Some(endpoint) = &self.container_runtime_endpoint {
            config.container_runtime_endpoint.clone_from(endpoint);
        }
        if let Some(dir) = &self.root_dir {
            config.root_dir.clone_from(dir);
        }
        if config.tracing.is_none() {
            config.tracing = Tracing::of_environment(|name| std::env::var(name).ok())
                .context("the environment's OTEL_EXPORTER_OTLP_…")?;
        }
        config.cert_dir.clone_from(&self.cert_dir);
        config.node_ip.clone_from(&self.node_ip);
        config.node_labels = self.node_labels.iter().cloned().collect::<BTreeMap<_, _>>();
        config.device_plugin_dir.clone_from(&self.device_plugin_dir);
        config.audit_log.clone_from(&self.audit_log);
        config.podflow = !self.no_podflow;
        Ok(config)
    }
}

/// The credential that the cluster signed, where the node has one: asked for if it is not there.
async fn rotation(args: &Args, config: &Config) -> anyhow::Result<Option<Swap>> {
    let Some(kubeconfig) = args.kubeconfig.as_deref() else {
        let hint = "give --kubeconfig and --bootstrap-kubeconfig";
        anyhow::ensure!(
            !config.rotate_certificates,
            Hinted::new("rotateCertificates: no --kubeconfig".to_owned(), hint)
        );
        return Ok(None);
    };
    let pki = config.pki();
    if let Some(bootstrap) = &args.bootstrap_kubeconfig {
        certificates::bootstrap(bootstrap, kubeconfig, &pki, &config.node_name)
            .await
            .context("getting the node's first certificate")?;
    } else if config.rotate_certificates {
        let pem = Store::new(&pki, Purpose::Client.pair()).path();
        let why = format!("rotateCertificates: there is no {}", pem.display());
        anyhow::ensure!(pem.exists(), Hinted::new(why, "give --bootstrap-kubeconfig"));
    } else {
        return Ok(None);
    }
    Ok(Some(certificates::swapping(kubeconfig).await?))
}

/// `podway-agent`: runs the pods of a node.
pub fn program() -> ExitCode {
    crate::daemon(own::AGENT, run)
}

fn run(args: Args) -> anyhow::Result<()> {
    let config = args.config()?;
    let layout = Arc::new(OnceLock::new());
    let told = Arc::clone(&layout);
    let ended = crate::daemon::run(|shutdown| async move {
        let rotation = rotation(&args, &config).await?;
        let client = match &rotation {
            Some(swap) => swap.client(),
            None => {
                let config = crate::kubernetes::config(args.kubeconfig.as_deref()).await?;
                connection::client(config).context("building the client")?
            }
        };
        let rotation = rotation.filter(|_| config.rotate_certificates);
        tracing::info!(node = config.node_name, "agent starts");
        tokio::spawn(crate::allocator::give_back());
        podway_agent::run::run(client, config, rotation, shutdown, &told).await.context("the agent ended")
    });
    // Also after an error: in a pod of its own its runtime may be gone before it is told to end.
    if let Some(layout) = layout.get() {
        podway_agent::run::leave(layout);
    }
    ended
}
