//! `podway-scheduler`, which `podway scheduler` becomes: chooses a node for pods of its names, until it is told to end.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;

use podway_cluster::own;
use podway_scheduler::Clients;

use crate::scheduler_config::Settings;

/// Choose nodes for pods, beside kube-scheduler or instead of it.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  podway scheduler --kubeconfig scheduler.kubeconfig --scheduler-name podway"
)]
pub(crate) struct Args {
    /// A SchedulerConfiguration, of which config/scheduler.yaml has the fields, or upstream's
    /// KubeSchedulerConfiguration v1; flags go before it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// `podway-scheduler`: chooses nodes for pods.
pub fn program() -> ExitCode {
    crate::daemon(own::SCHEDULER, run)
}

fn run(args: Args) -> anyhow::Result<()> {
    let settings = args.settings.over(args.config.as_deref())?;
    let config = settings.config()?;
    crate::daemon::run(|shutdown| async move {
        let server = crate::kubernetes::config(settings.kubeconfig.as_deref()).await?;
        let clients = Clients::connect(&server).context("building the clients")?;
        let names: Vec<&str> = config.profiles.iter().map(|(name, _)| name.as_str()).collect();
        tracing::info!(?names, "scheduler starts");
        podway_scheduler::run(clients, config, shutdown).await.context("the scheduler ended")
    })
}
