//! The command line of etcd: one member, on loopback, for clients with a certificate only.

use std::path::Path;

use crate::layout::Layout;
use crate::process::Daemon;

/// The name of the daemon.
pub const NAME: &str = "etcd";

/// etcd listening for clients on `client` and for its (absent) peers on `peer`.
pub fn daemon(program: &Path, layout: &Layout, client: u16, peer: u16) -> Daemon {
    let url = format!("https://127.0.0.1:{client}");
    let peer = format!("http://127.0.0.1:{peer}");
    let file = |path: std::path::PathBuf| path.display().to_string();
    let args = vec![
        "--name=podway".to_owned(),
        format!("--data-dir={}", file(layout.etcd())),
        format!("--listen-client-urls={url}"),
        format!("--advertise-client-urls={url}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=podway={peer}"),
        format!("--cert-file={}", file(layout.cert("etcd"))),
        format!("--key-file={}", file(layout.key("etcd"))),
        format!("--trusted-ca-file={}", file(layout.cert("ca"))),
        "--client-cert-auth=true".to_owned(),
        "--auto-compaction-mode=periodic".to_owned(),
        "--auto-compaction-retention=1h".to_owned(),
        "--log-level=warn".to_owned(),
    ];
    Daemon::new(NAME, program, args)
}
