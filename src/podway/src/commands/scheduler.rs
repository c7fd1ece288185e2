//! `podway scheduler`: chooses a node for pods of its names, until it is told to end.

use std::path::PathBuf;

use anyhow::Context as _;

use super::Hinted;

/// Choose nodes for pods, beside kube-scheduler or instead of it.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  podway scheduler --kubeconfig scheduler.kubeconfig --scheduler-name podway"
)]
pub(crate) struct Args {
    /// The kubeconfig; as kubectl finds it if not given (in a pod: its service account).
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Pods with this schedulerName are ours; may be given more than once, and be default-scheduler.
    #[arg(long = "scheduler-name", value_name = "NAME")]
    scheduler_names: Vec<String>,
    /// Where /livez, /readyz and /metrics are served, without authentication; 0 for nowhere.
    #[arg(long, value_name = "IP:PORT", default_value_t = podway_scheduler::config::DEFAULT_SERVE.to_string())]
    metrics_bind_address: String,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let serve = match args.metrics_bind_address.as_str() {
        "0" => None,
        text => Some(text.parse().with_context(|| {
            Hinted::new(format!("--metrics-bind-address {text:?}"), "give IP:PORT, or 0 for nowhere")
        })?),
    };
    crate::daemon::run(|shutdown| async move {
        let (client, _) = crate::kubernetes::client(args.kubeconfig.as_deref()).await?;
        let mut config = podway_scheduler::Config { serve, ..podway_scheduler::Config::default() };
        if !args.scheduler_names.is_empty() {
            config.scheduler_names = args.scheduler_names;
        }
        tracing::info!(names = ?config.scheduler_names, "scheduler starts");
        podway_scheduler::run(client, config, shutdown).await.context("the scheduler ended")
    })
}
