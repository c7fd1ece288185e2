//! `podway up --kubeconfig`: nodes of one state directory join a cluster that was there before, here
//! the control plane of another, and leave it as it was.

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use podway_tests::cluster::Cluster;
use podway_tests::namespace::{LIMIT, Ns, STAY, pod};
use podway_tests::wait;
use serde_json::json;
use std::path::PathBuf;
use std::sync::Arc;

/// A cluster whose nodes have the names that ours would have: nothing of it is touched.
pub async fn nodes_of_another_are_not_taken_over(ns: Ns) -> anyhow::Result<()> {
    let kubeconfig = ns.cluster.layout.admin_kubeconfig().display().to_string();
    let dir = beside(&ns, "x");
    let answer = join(&ns, &kubeconfig, &dir).await?;
    let _: Pod = ns.create(pod("after", STAY, json!({}))).await?;
    ns.ready("after").await?;
    let down = ns.cluster.podway(&["down", "--state-dir", &dir]).await?;
    ensure!(answer.code != 0 && answer.err.contains("has a node podway-0 already"), "{answer:?}");
    ensure!(down.code == 0, "podway down: {}", down.err);
    ensure!(nodes(&ns.cluster).await? == ["podway-0", "podway-1"]);
    let _: Pod = ns.create(pod("still", STAY, json!({}))).await?;
    ns.ready("still").await?;
    Ok(())
}

pub async fn a_node_joins_and_leaves(ns: Ns) -> anyhow::Result<()> {
    let (host, guest) = (beside(&ns, "h"), beside(&ns, "g"));
    let result = async {
        let cluster = Arc::new(Cluster::up(&PathBuf::from(&host), 0).await?);
        let result = joined(&ns, &cluster, &guest).await;
        let down = ns.cluster.podway(&["down", "--state-dir", &guest]).await?;
        result?;
        ensure!(down.code == 0, "podway down of the guest: {}", down.err);
        ensure!(nodes(&cluster).await?.is_empty(), "its node stays registered");
        anyhow::Ok(())
    };
    let result = result.await;
    Cluster::down(&PathBuf::from(&host)).await?;
    result?;
    for dir in [host, guest] {
        ensure!(!PathBuf::from(&dir).exists(), "{dir} is still there");
    }
    Ok(())
}

async fn joined(ns: &Ns, cluster: &Arc<Cluster>, guest: &str) -> anyhow::Result<()> {
    let kubeconfig = cluster.layout.admin_kubeconfig().display().to_string();
    let answer = join(ns, &kubeconfig, guest).await?;
    ensure!(answer.code == 0, "podway up --kubeconfig ended with {}: {}", answer.code, answer.err);
    let exports = format!("export KUBECONFIG={kubeconfig}\n");
    ensure!(answer.out.starts_with(&exports), "it printed {:?}", answer.out);
    ensure!(nodes(cluster).await? == ["podway-0"]);
    // The namespace that any cluster has: this one goes with the whole.
    let there = Ns { cluster: Arc::clone(cluster), name: "default".to_owned() };
    let _: Pod = there.create(pod("guest", &format!("echo hello; {STAY}"), json!({}))).await?;
    let ready = there.ready("guest").await?;
    there.until_log("guest", "main", "hello").await?;
    ensure!(there.kubectl(&["exec", "guest", "--", "echo", "x"]).await? == "x\n");
    there.kubectl(&["delete", "pod", "guest", "--wait=false"]).await?;
    let uid = ready.metadata.uid.as_deref();
    wait::until_gone(there.api::<Pod>(), "guest", uid, LIMIT).await.context("deleting the pod")
}

async fn join(ns: &Ns, kubeconfig: &str, dir: &str) -> anyhow::Result<podway_tests::cluster::Answer> {
    let up = ["up", "--no-demo", "--nodes", "1", "--kubeconfig", kubeconfig, "--state-dir", dir];
    ns.cluster.podway(&up).await
}

/// A state directory of its own; short, since socket paths have room for 107 bytes.
fn beside(ns: &Ns, what: &str) -> String {
    format!("{}-{what}", ns.cluster.layout.root().display())
}

async fn nodes(cluster: &Cluster) -> anyhow::Result<Vec<String>> {
    let api: Api<Node> = Api::all(cluster.client.clone());
    Ok(api.list(&ListParams::default()).await?.iter().map(ResourceExt::name_any).collect())
}
