//! `podway-runtime`: the CRI server that invokes runc, until it is told to end; `check` says what it would lack.
//! `podway runtime` has the same command line, and becomes that program.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use podway_cluster::own;
use podway_runtime::check::{Finding, State};
use podway_runtime::config::Config;

use super::{Hinted, Output, one_line};

/// Serve the container runtime interface; containers live on when it ends.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  podway runtime --listen unix:///run/podway/runtime.sock\n  crictl --runtime-endpoint unix:///run/podway/runtime.sock pods\n  podway runtime check --config /etc/podway/runtime.toml"
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
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(clap::Subcommand)]
enum What {
    /// Say what this machine lacks: runc and its known holes, network, cgroups, overlay; 1 if no pod would run.
    Check {
        /// The configuration (TOML).
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
        /// How to print it.
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
    },
}

fn load(path: Option<&Path>) -> anyhow::Result<Config> {
    let mut config = Config::of(path)?;
    if config.monitor.path == Config::default().monitor.path {
        // Installed together: the monitor is beside this binary, unless another was named.
        let program = std::env::current_exe().context("finding this program")?;
        let beside = own::beside(&program, own::MONITOR);
        if beside.is_file() {
            config.monitor.path = beside;
        }
    }
    Ok(config)
}

fn check(config: Option<&Path>, output: Output) -> anyhow::Result<()> {
    let config = load(config)?;
    let found = tokio::runtime::Runtime::new()?.block_on(podway_runtime::check::check(&config));
    output.print(&found, |found| lines(found))?;
    let missing: Vec<&str> = found.iter().filter(|f| f.state == State::Missing).map(|f| f.what).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Hinted::new(format!("no pod would run: {}", missing.join(", ")), "see the lines marked missing")
        .into())
}

fn lines(found: &[Finding]) -> String {
    let line = |f: &Finding| {
        let state = match f.state {
            State::Ok => "ok",
            State::Warning => "warning",
            State::Missing => "missing",
        };
        format!("{state:<8} {:<27} {}\n", f.what, one_line(&f.said))
    };
    found.iter().map(line).collect()
}

/// `podway-runtime`: does what the command line asks.
pub fn program() -> ExitCode {
    crate::daemon(own::RUNTIME, run)
}

fn run(args: Args) -> anyhow::Result<()> {
    if let Some(What::Check { config, output }) = &args.what {
        return check(config.as_deref().or(args.config.as_deref()), *output);
    }
    crate::daemon::run(|shutdown| async move {
        let mut config = load(args.config.as_deref())?;
        config.listen = args.listen.unwrap_or(config.listen);
        config.root = args.root.unwrap_or(config.root);
        config.state = args.state.unwrap_or(config.state);
        tracing::info!(listen = config.listen, root = %config.root.display(), "runtime starts");
        podway_runtime::run::run(config, shutdown).await.context("the runtime ended")
    })
}
