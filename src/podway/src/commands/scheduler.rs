//! `podway scheduler`: chooses a node for pods of its names, until it is told to end.

use std::path::PathBuf;

use anyhow::Context as _;

use crate::scheduler_config::Settings;

/// Choose nodes for pods, beside kube-scheduler or instead of it.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  podway scheduler --kubeconfig scheduler.kubeconfig --scheduler-name podway"
)]
pub(crate) struct Args {
    /// A SchedulerConfiguration of which config/scheduler.yaml has the fields; flags go before it.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: Settings,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let settings = args.settings.over(args.config.as_deref())?;
    let config = settings.config()?;
    crate::daemon::run(|shutdown| async move {
        let (client, _) = crate::kubernetes::client(settings.kubeconfig.as_deref()).await?;
        tracing::info!(names = ?config.scheduler_names, "scheduler starts");
        podway_scheduler::run(client, config, shutdown).await.context("the scheduler ended")
    })
}
