//! The command line of kube-controller-manager.
//!
//! It is what makes namespaces have a `default` service account and a `kube-root-ca.crt`, takes
//! the not-ready taint from nodes, and runs Deployments and Jobs.

use std::path::Path;

use crate::layout::Layout;
use crate::process::Daemon;

/// The name of the daemon.
pub const NAME: &str = "kube-controller-manager";

/// The range of pod addresses; each node has a /24 of it.
pub const POD_CIDR: &str = "10.244.0.0/16";

/// kube-controller-manager with its health port on loopback.
pub fn daemon(program: &Path, layout: &Layout, port: u16) -> Daemon {
    let file = |path: std::path::PathBuf| path.display().to_string();
    let args = vec![
        format!("--kubeconfig={}", file(layout.kubeconfig(NAME))),
        "--bind-address=127.0.0.1".to_owned(),
        format!("--secure-port={port}"),
        "--use-service-account-credentials=true".to_owned(),
        format!("--service-account-private-key-file={}", file(layout.key("sa"))),
        format!("--root-ca-file={}", file(layout.cert("ca"))),
        format!("--cluster-signing-cert-file={}", file(layout.cert("ca"))),
        format!("--cluster-signing-key-file={}", file(layout.key("ca"))),
        format!("--cluster-cidr={POD_CIDR}"),
        "--allocate-node-cidrs=false".to_owned(),
        // One instance: an election would only delay the start, and write a lease all the time.
        "--leader-elect=false".to_owned(),
        "--profiling=false".to_owned(),
    ];
    Daemon::new(NAME, program, args)
}
