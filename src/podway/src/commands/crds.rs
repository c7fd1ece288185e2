//! `podway crds`: the definitions as YAML; `crds/*.yaml` are this output.

/// Print the `CustomResourceDefinition`s.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  podway crds | kubectl apply -f -")]
pub(crate) struct Args {}

/// Runs the command.
pub(crate) fn run(_: &Args) -> anyhow::Result<()> {
    super::print(&podway_api::crds::crds_yaml()?)
}
