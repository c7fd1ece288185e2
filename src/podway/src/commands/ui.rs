//! `podway ui`: the page of a cluster's pod starts, behind the user's kubeconfig, until Ctrl-C.

use super::{Hinted, print};
use anyhow::Context as _;
use podway_ui::Options;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Show pods' starts as a web page: waterfalls, what is stuck, comparisons, distributions.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  podway ui -A\nIt prints an address with a token: who has it sees what your kubeconfig may see."
)]
pub(crate) struct Args {
    /// The namespace; the kubeconfig's if not given.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Pods of all namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// The address; port 0 takes a free one.
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:8093")]
    listen: SocketAddr,
    /// Allow an address that others reach: without TLS, so that the token and the page can be read on the way.
    #[arg(long)]
    allow_remote: bool,
    /// The kubeconfig; as kubectl finds it if not given.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    if !args.listen.ip().is_loopback() && !args.allow_remote {
        let hint = "the page has no TLS: use ssh -L, or --allow-remote if the network is yours";
        return Err(Hinted::new(format!("{} is reached by others", args.listen), hint).into());
    }
    crate::daemon::run(|shutdown| async move {
        let (client, default) = crate::kubernetes::client(args.kubeconfig.as_deref()).await?;
        let namespace = if args.all_namespaces { None } else { Some(args.namespace.unwrap_or(default)) };
        let tell = |address: String| {
            // The page is there whether or not somebody reads where.
            if let Err(error) = print(&format!("{address}\n")) {
                tracing::warn!("printing the address: {error}");
            }
        };
        let options = Options { listen: args.listen, namespace };
        podway_ui::serve(client, options, tell, shutdown).await.context("podway ui ended")
    })
}
