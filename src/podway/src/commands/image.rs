//! `podway image`: how the runtime would get an image (nobody is asked, nothing is pulled), how far its pulls
//! have got, and the image of podway itself.

mod build;
mod pulls;

use super::Output;
use podway_runtime::config::Config;
use podway_runtime::image::explain::explain;
use std::path::{Path, PathBuf};

/// Tell how an image would be got, how far pulls have got, or make the image of podway.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  podway image explain busybox --config /etc/podway/runtime.toml\n  podway image explain registry.example/team/app:1 -o json\n  podway image pulls -w"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Put these programs and their libraries into an image; the same programs give the same digest.
    Build(build::Args),
    /// Print what podway is built from, as CycloneDX JSON. The image has it in /usr/share/podway.
    Sbom,
    /// How far the pulls of this node's runtime have got.
    Pulls(pulls::Args),
    /// Which hosts.toml decides, who is asked in which order, whose credentials are used.
    Explain {
        /// The image's name, as a pod has it.
        #[arg(value_name = "REF")]
        image: String,
        /// The runtime's configuration (TOML).
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// How to print it.
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    match args.what {
        What::Build(args) => tokio::runtime::Runtime::new()?.block_on(args.run()),
        What::Pulls(args) => tokio::runtime::Runtime::new()?.block_on(args.run()),
        What::Sbom => build::sbom(),
        What::Explain { image, config, output } => tell(&image, config.as_deref(), output),
    }
}

fn tell(image: &str, config: Option<&Path>, output: Output) -> anyhow::Result<()> {
    let config = Config::of(config)?;
    let told = explain(&config, image)?;
    output.print(&told, ToString::to_string)
}
