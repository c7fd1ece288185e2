//! Containers reach each other: in a pod over localhost, across nodes by the pod's address.

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use podway_tests::namespace::{Ns, container, node, pod};
use serde_json::json;

/// Serves `what` on port 8080.
fn serve(what: &str) -> String {
    format!(
        "mkdir /tmp/www; echo {what} > /tmp/www/index.html; trap 'exit 0' TERM; \
         httpd -f -p 8080 -h /tmp/www & wait $!"
    )
}

/// Fetches `url` until it answers, and stays.
fn fetch(url: &str) -> String {
    format!("until wget -qO- {url}; do sleep 0.1; done; trap 'exit 0' TERM; sleep 3600 & wait $!")
}

pub async fn localhost(ns: Ns) -> anyhow::Result<()> {
    let containers = [
        container("server", &serve("over localhost")),
        container("client", &fetch("http://127.0.0.1:8080/")),
    ];
    let _: Pod = ns.create(pod("two", "", json!({"containers": containers}))).await?;
    ns.ready("two").await?;
    ns.until_log("two", "client", "over localhost").await
}

pub async fn across_nodes(ns: Ns) -> anyhow::Result<()> {
    let on = |name: &str| json!({"nodeSelector": {"kubernetes.io/hostname": name}});
    let _: Pod = ns.create(pod("server", &serve("across nodes"), on("podway-0"))).await?;
    let server = ns.ready("server").await?;
    let address = server.status.as_ref().and_then(|s| s.pod_ip.clone()).context("an address")?;
    let _: Pod = ns.create(pod("client", &fetch(&format!("http://{address}:8080/")), on("podway-1"))).await?;
    let client = ns.ready("client").await?;
    ensure!((node(&server), node(&client)) == ("podway-0", "podway-1"));
    ns.until_log("client", "main", "across nodes").await
}
