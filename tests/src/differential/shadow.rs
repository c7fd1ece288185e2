//! Our scheduler as a shadow of the stock one: it watches, binds nothing, and says where the two differ.

use super::profiles::{DEFAULT, OTHERS};
use crate::plain::get;
use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use podway_scheduler::{Config, run};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;

/// How long anything may take.
const LIMIT: Duration = Duration::from_secs(30);
/// The pods of the default profile, on which both agree.
const PODS: usize = 8;
const NAMESPACE: &str = "d0";

/// What a shadow said of the pods that the stock scheduler bound.
#[derive(Debug, Default)]
pub struct Shadowed {
    /// Pods of the default profile for which ours would have taken the same node, or one as good.
    pub agreed: usize,
    /// What it says of one that the stock scheduler placed by other rules than ours.
    pub disagreements: Vec<Value>,
}

/// Whether /metrics or /readyz comes to have such a text.
async fn says(port: u16, path: &str, wanted: impl Fn(&str) -> bool) -> anyhow::Result<String> {
    let mut last = String::new();
    let came = async {
        loop {
            // It is not there at once.
            if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await {
                last = get(stream, path).await.unwrap_or_default();
                if wanted(&last) {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let came = tokio::time::timeout(LIMIT, came).await;
    came.map(|()| last.clone()).with_context(|| format!("{path} says:\n{last}"))
}

fn counted(text: &str, result: &str) -> usize {
    let sample = format!("podway_scheduler_shadow_decisions_total{{result=\"{result}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&sample)?.trim().parse().ok()).unwrap_or(0)
}

/// Of which the small one is the better only by the rules of one profile.
const NODES: [(&str, &str); 2] = [("shadow-large", "64"), ("shadow-small", "8")];

async fn nodes(client: &Client) -> anyhow::Result<()> {
    let api = Api::<k8s_openapi::api::core::v1::Node>::all(client.clone());
    for (name, cpu) in NODES {
        let node =
            json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "size": "1"}}});
        api.create(&PostParams::default(), &serde_json::from_value(node)?).await?;
        let status = json!({"status": {"allocatable": {"cpu": cpu, "memory": "64Gi", "pods": "110"}}});
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
        let untainted = json!({"spec": {"taints": []}});
        api.patch(name, &PatchParams::default(), &Patch::Merge(untainted)).await?;
    }
    Ok(())
}

/// Has the stock scheduler place pods, and the shadow judge each before the next comes.
///
/// # Errors
/// When one of the two does not answer.
pub async fn beside(client: &Client, dir: &Path) -> anyhow::Result<Shadowed> {
    nodes(client).await?;
    let (socket, free) = (dir.join("shadow.sock"), std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?);
    let [packed, ..] = OTHERS;
    let config = Config {
        // The second by ours has no rules of its own.
        profiles: [DEFAULT, packed].map(|name| (name.to_owned(), Default::default())).to_vec(),
        shadow: true,
        serve: Some(free),
        debug_socket: Some(socket.clone()),
        ..Config::default()
    };
    let end = CancellationToken::new();
    let shadow = tokio::spawn(run(client.clone(), config, end.clone()));
    says(free.port(), "/readyz", |text| text.contains("pods-synced ok") && !text.contains("[-]")).await?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
    let names: Vec<String> =
        (0..PODS).map(|i| format!("shadowed-{i}")).chain(["packed".to_owned()]).collect();
    for (i, name) in names.iter().enumerate() {
        let (scheduler, cpu) = if i < PODS { (DEFAULT, 100 * (i + 1)) } else { (packed, 4000) };
        let cpu = format!("{cpu}m");
        // The first two have one node each, so that the stock scheduler has seen both once they are bound.
        let selector = NODES.get(i).map_or(json!({}), |(node, _)| json!({"kubernetes.io/hostname": node}));
        let pod = json!({"metadata": {"name": name}, "spec": {"schedulerName": scheduler, "nodeSelector": selector,
            "terminationGracePeriodSeconds": 0, "containers":
            [{"name": "c", "image": "i", "resources": {"requests": {"cpu": cpu, "memory": "16Mi"}}}]}});
        pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
        let all = ["same", "tied", "lower", "refused", "unknown"];
        let judged = |text: &str| all.iter().map(|result| counted(text, result)).sum::<usize>() > i;
        says(free.port(), "/metrics", judged).await.with_context(|| format!("no verdict on {name}"))?;
    }
    let text = says(free.port(), "/metrics", |_| true).await?;
    let disagreements = get(UnixStream::connect(&socket).await?, "/debug/shadow").await?;
    end.cancel();
    tokio::time::timeout(LIMIT, shadow).await.context("the shadow does not end")???;
    // It has bound none of them itself: all are where the stock one put them, and carry no record of ours.
    for pod in pods.list(&ListParams::default()).await?.items {
        ensure!(pod.annotations().is_empty(), "{:?} has {:?}", pod.metadata.name, pod.annotations());
    }
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    pods.delete_collection(&now, &ListParams::default()).await?;
    Ok(Shadowed {
        agreed: counted(&text, "same") + counted(&text, "tied"),
        disagreements: serde_json::from_str(&disagreements)?,
    })
}
