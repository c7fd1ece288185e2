//! `podway man DIR`: a manual page for the program and for each of its commands.

use crate::commands::Hinted;
use anyhow::Context as _;
use std::path::PathBuf;

/// Write the manual pages.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  podway man /usr/local/share/man/man1 && man podway-flow")]
pub(crate) struct Args {
    /// The directory, which is made if it is not there.
    directory: PathBuf,
}

/// Runs the command; `cli` is the whole program's.
pub(crate) fn run(args: &Args, cli: clap::Command) -> anyhow::Result<()> {
    let hint = "name a directory that you may write";
    let failed = || Hinted::new(format!("writing manual pages to {}", args.directory.display()), hint);
    std::fs::create_dir_all(&args.directory).with_context(failed)?;
    clap_mangen::generate_to(cli, &args.directory).with_context(failed)
}
