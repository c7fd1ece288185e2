//! `podway completions SHELL`: what the shell reads to complete our commands and flags.

use clap_complete::Shell;

/// Print the completions of a shell.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  podway completions bash > /etc/bash_completion.d/podway\n  source <(podway completions zsh)"
)]
pub(crate) struct Args {
    /// The shell.
    shell: Shell,
}

/// Runs the command; `cli` is the whole program's.
pub(crate) fn run(args: &Args, mut cli: clap::Command) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut cli, "podway", &mut script);
    super::print(&String::from_utf8(script)?)
}
