//! `podway runtime`: the CRI server that invokes runc, until it is told to end.

use std::path::PathBuf;

use anyhow::Context as _;
use podway_runtime::config::Config;

/// Serve the container runtime interface; containers live on when it ends.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  podway runtime --listen unix:///run/podway/runtime.sock\n  crictl --runtime-endpoint unix:///run/podway/runtime.sock pods"
)]
pub(crate) struct Args {
    /// The configuration (TOML); an unknown key is an error.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The socket; over the configuration's.
    #[arg(long, value_name = "unix:///PATH")]
    listen: Option<String>,
    /// What survives a reboot: images, journal, writable layers; over the configuration's.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// What does not: namespaces, bundles, monitors' sockets; over the configuration's.
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    crate::daemon::run(|shutdown| async move {
        let mut config = match &args.config {
            Some(path) => Config::load(path)?,
            None => Config::default(),
        };
        config.listen = args.listen.unwrap_or(config.listen);
        config.root = args.root.unwrap_or(config.root);
        config.state = args.state.unwrap_or(config.state);
        if config.monitor.path == Config::default().monitor.path {
            // Installed together: the monitor is beside this binary, unless another was named.
            let beside = std::env::current_exe().context("finding this binary")?;
            let beside = beside.with_file_name("podway-monitor");
            if beside.is_file() {
                config.monitor.path = beside;
            }
        }
        tracing::info!(listen = config.listen, root = %config.root.display(), "runtime starts");
        podway_runtime::run::run(config, shutdown).await.context("the runtime ended")
    })
}
