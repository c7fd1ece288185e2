//! `podway down`: ends and removes all that `podway up` made.

use std::path::PathBuf;

use super::up::progress;

/// End and remove the local cluster: every process, mount, namespace and file of it.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  podway down")]
pub(crate) struct Args {
    /// The state directory that was given to up.
    #[arg(long, value_name = "DIR", default_value = podway_cluster::up::DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let found = runtime.block_on(podway_cluster::down(&args.state_dir, progress))?;
    let state_dir = args.state_dir.display();
    progress(&if found { "all gone".to_owned() } else { format!("there is no cluster in {state_dir}") });
    Ok(())
}
