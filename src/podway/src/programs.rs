//! The programs that are installed together: each finds the others beside itself.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use podway_cluster::own;

use crate::commands::Hinted;

/// This program, when all the others are beside it.
///
/// # Errors
/// When one is not there: the first is named.
pub(crate) fn whole() -> anyhow::Result<PathBuf> {
    let podway = std::env::current_exe().context("finding this program")?;
    match own::missing(&podway) {
        None => Ok(podway),
        Some(missing) => {
            let hint =
                "it is installed beside podway, and built by: cargo build --release --workspace --bins";
            Err(Hinted::new(format!("{} is not there", missing.display()), hint).into())
        }
    }
}

/// Becomes the daemon `name`, which reads what was said after the command's name as this program did.
pub(crate) fn become_daemon(name: &str) -> anyhow::Result<()> {
    let daemon = own::beside(&whole()?, name);
    // It only returns when it failed.
    let error = Command::new(&daemon).args(std::env::args_os().skip(2)).exec();
    Err(error).with_context(|| format!("starting {}", daemon.display()))
}
