//! `podway version`: the version, the commit it was built from, the Kubernetes whose types it has.

use super::Output;

/// The Kubernetes minor version of our API types and of the CRI: `k8s-openapi`'s feature, `api.proto`.
const KUBERNETES: &str = "1.36";

/// Print the version and the commit it was built from.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  podway version -o json")]
pub(crate) struct Args {
    /// The form.
    #[arg(short, long, value_enum, default_value = "text")]
    output: Output,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let (version, commit) = (env!("CARGO_PKG_VERSION"), env!("PODWAY_COMMIT"));
    let said = match args.output {
        Output::Text => format!("podway {version}\ncommit {commit}\nkubernetes {KUBERNETES}\n"),
        Output::Json => {
            let of = serde_json::json!({"version": version, "gitCommit": commit, "kubernetes": KUBERNETES});
            format!("{of}\n")
        }
    };
    super::print(&said)
}
