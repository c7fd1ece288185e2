//! The command line of `podway`. Each sub-command is a thin file in `commands/`; the work is in the crates.
//!
//! Installed (or linked) as `kubectl-podway`, it answers to `kubectl podway …`.

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use podway_cluster::own;

use crate::{VERSION, commands, end, programs};

/// A Kubernetes scheduler, node agent and runtime in which every step of a pod's creation is visible.
#[derive(Parser)]
#[command(name = "podway", bin_name = bin_name(), version = VERSION, about, long_about = None, arg_required_else_help = true)]
#[command(after_help = "Example:\n  podway up\n  podway flow hello\n  podway down")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring up a local cluster and run a first pod.
    Up(commands::up::Args),
    /// End and remove the local cluster.
    Down(commands::down::Args),
    /// Choose nodes for pods.
    Scheduler(commands::scheduler::Args),
    /// Run the pods of a node.
    Agent(commands::agent::Args),
    /// Serve the container runtime interface.
    Runtime(commands::runtime::Args),
    /// Show every step of a pod's creation as a waterfall.
    Flow(commands::flow::Args),
    /// Tell how an image would be got, how far pulls have got, or make the image of podway itself.
    Image(commands::image::Args),
    /// Show pods' starts as a web page.
    Ui(commands::ui::Args),
    /// Say why a pod is not Ready, or not gone yet.
    Explain(commands::explain::Args),
    /// Say why a pod is on its node, or what keeps it waiting.
    Why(commands::why::Args),
    /// Say where pods would go, writing nothing.
    Whatif(commands::whatif::Args),
    /// Make the decisions of a recorded run again.
    Replay(commands::replay::Args),
    /// Print the CustomResourceDefinitions.
    Crds(commands::crds::Args),
    /// Print the completions of a shell.
    Completions(commands::completions::Args),
    /// Write the manual pages.
    Man(commands::man::Args),
    /// Print the version and the commit it was built from.
    Version(commands::version::Args),
}

/// `podway`: does what the command line asks.
pub fn podway() -> ExitCode {
    end(match Cli::parse().command {
        Command::Up(args) => commands::up::run(args),
        Command::Down(args) => commands::down::run(&args),
        Command::Scheduler(_) => programs::become_daemon(own::SCHEDULER),
        Command::Agent(_) => programs::become_daemon(own::AGENT),
        Command::Runtime(_) => programs::become_daemon(own::RUNTIME),
        Command::Flow(args) => commands::flow::run(args),
        Command::Image(args) => commands::image::run(args),
        Command::Ui(args) => commands::ui::run(args),
        Command::Explain(args) => commands::explain::run(args),
        Command::Why(args) => commands::why::run(args),
        Command::Whatif(args) => commands::whatif::run(args),
        Command::Replay(args) => commands::replay::run(&args),
        Command::Crds(args) => commands::crds::run(&args),
        Command::Completions(args) => commands::completions::run(&args, Cli::command()),
        Command::Man(args) => commands::man::run(&args, Cli::command()),
        Command::Version(args) => commands::version::run(&args),
    })
}

/// How the program was called: `kubectl podway` as a plugin, else `podway`.
fn bin_name() -> &'static str {
    let called = std::env::args_os().next().map(std::path::PathBuf::from);
    let name = called.as_deref().and_then(|p| p.file_name()).and_then(|n| n.to_str());
    if name.is_some_and(|n| n.starts_with("kubectl-podway")) { "kubectl podway" } else { "podway" }
}
