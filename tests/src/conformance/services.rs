//! A stock kube-proxy and CoreDNS as pods of the cluster, for the specs of services and DNS.

use crate::cluster::{Cluster, run};
use anyhow::ensure;
use podway_cluster::images::services::{COREDNS, KUBE_PROXY};
use std::net::Ipv4Addr;
use std::time::Duration;
use tokio::process::Command;

/// Whom pods ask for names: an address of the services' network, and of the `kube-dns` service.
pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);

/// Both, as kubeadm has them.
const MANIFEST: &str = include_str!("services.yaml");

/// How long it may take until both are Ready.
const LIMIT: Duration = Duration::from_secs(120);

/// Applies them, and waits until they are Ready.
///
/// # Errors
/// When kubectl fails, or they are not Ready in time.
pub async fn install(cluster: &Cluster) -> anyhow::Result<()> {
    let manifest = MANIFEST
        .replace("@PODS@", &cluster.pods()?.to_string())
        .replace("@KUBE_PROXY@", KUBE_PROXY)
        .replace("@COREDNS@", COREDNS)
        .replace("@DNS@", &DNS.to_string());
    let limit = format!("--timeout={}s", LIMIT.as_secs());
    for (words, input) in [
        (&["apply", "-f", "-"][..], manifest.as_str()),
        (&["-n", "kube-system", "rollout", "status", "daemonset/kube-proxy", &limit], ""),
        (&["-n", "kube-system", "rollout", "status", "deployment/coredns", &limit], ""),
    ] {
        let mut command = Command::new(&cluster.kubectl);
        command.arg("--kubeconfig").arg(cluster.layout.admin_kubeconfig()).args(words);
        // kubectl's own limit is the one that says what is missing.
        let answer = run(&mut command, input, LIMIT + Duration::from_secs(10)).await?;
        let said = answer.err.trim();
        ensure!(answer.code == 0, "kubectl {} ended with {}: {said}", words.join(" "), answer.code);
    }
    Ok(())
}
