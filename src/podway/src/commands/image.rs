//! `podway image explain REF`: how the runtime would get an image. Nobody is asked, nothing is pulled.

use podway_runtime::config::Config;
use podway_runtime::image::explain::explain;
use std::path::PathBuf;

/// Tell how an image would be got.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  podway image explain busybox --config /etc/podway/runtime.toml\n  podway image explain registry.example/team/app:1 -o json"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
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

#[derive(Clone, Copy, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let What::Explain { image, config, output } = &args.what;
    let config = match config {
        Some(path) => Config::load(path)?,
        None => Config::default(),
    };
    let told = explain(&config, image)?;
    match output {
        Output::Text => super::print(&told.to_string()),
        Output::Json => super::print(&format!("{}\n", serde_json::to_string_pretty(&told)?)),
    }
}
