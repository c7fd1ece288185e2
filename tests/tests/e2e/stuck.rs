//! A pod that gets no node is told of within a second of the limit of its wait: by condition, event, metric and picture;
//! and it is taken back once it has got one.

use super::metrics::scheduler_address;
use anyhow::{Context as _, ensure};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{Event, Node, Pod, PodCondition};
use kube::api::{Api, DeleteParams, PostParams};
use podway_flow::stuck::{CONDITION, EVENT};
use podway_tests::namespace::{LIMIT, Ns, STAY, node, pod};
use podway_tests::{plain, wait};
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// A node that nobody runs: pods can be placed on it, quickly and without any work.
const NOBODYS: &str = "nobodys";
/// After how many pods of a fresh scheduler the limit is what they took: it looks at each 16th, and 20 are enough.
const LEARNED: usize = 32;
/// What the stuck pod asks of a node, and none has.
const LABEL: &str = "podway.dev/e2e-later";

pub async fn in_the_queue(ns: Ns) -> anyhow::Result<()> {
    // One that has seen long waits in the cases before would wait three times as long.
    ns.cluster.kill(podway_cluster::parts::SCHEDULER)?;
    ns.cluster.up_again().await?;
    let nodes = Api::<Node>::all(ns.cluster.client.clone());
    let object: Node = serde_json::from_value(json!({
        "metadata": {"name": NOBODYS, "labels": {"kubernetes.io/hostname": NOBODYS}},
        "status": {"allocatable": {"cpu": "4", "memory": "4Gi", "pods": "110"},
            "capacity": {"cpu": "4", "memory": "4Gi", "pods": "110"}}}))?;
    nodes.create(&PostParams::default(), &object).await?;
    let result = told_and_taken_back(&ns).await;
    // No kubelet would end what is on it.
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    ns.api::<Pod>().delete_collection(&now, &kube::api::ListParams::default()).await?;
    nodes.delete(NOBODYS, &DeleteParams::default()).await?;
    result
}

async fn told_and_taken_back(ns: &Ns) -> anyhow::Result<()> {
    let quick = (0..LEARNED).map(|i| async move {
        let name = format!("quick-{i}");
        let _: Pod = ns.create(pod(&name, STAY, on(json!({"kubernetes.io/hostname": NOBODYS})))).await?;
        ns.pod(&name, "its node", |p| node(p) == NOBODYS).await
    });
    try_join_all(quick).await?;

    let _: Pod = ns.create(pod("waits", STAY, on(json!({LABEL: "true"})))).await?;
    let created = Instant::now();
    let told = ns.pod("waits", "that it is stuck", |p| stuck(p).is_some_and(|c| c.status == "True")).await?;
    let after = created.elapsed();
    let told = stuck(&told).context("the condition")?;
    let line = told.message.clone().unwrap_or_default();
    let limit = limit(&line)?;
    println!("told after {} ms: {line}", after.as_millis());
    ensure!(limit < Duration::from_secs(5), "of {LEARNED} quick pods the scheduler has learned {limit:?}");
    ensure!(
        limit <= after + Duration::from_millis(100) && after < limit + Duration::from_secs(1),
        "{after:?}"
    );
    ensure!(told.reason.as_deref() == Some("Queued"), "{told:?}");
    ensure!(line.contains("Unschedulable: 0/3 nodes are available"), "{line}");

    let event = |e: &Event| e.involved_object.name.as_deref() == Some("waits");
    let event = wait::until(ns.api(), &format!("reason={EVENT}"), "the event", LIMIT, event).await?;
    ensure!(event.type_.as_deref() == Some("Warning") && event.message.as_ref() == Some(&line), "{event:?}");
    ensure!(counted(ns).await? == "1", "one is stuck");
    let answer = ns.cluster.podway(&["flow", "waits", "-n", &ns.name]).await?;
    ensure!(answer.out.starts_with("STUCK: Queued for "), "{}{}", answer.out, answer.err);

    ns.cluster.kubectl(&["label", "node", NOBODYS, &format!("{LABEL}=true")], "").await?;
    let got_on =
        ns.pod("waits", "that it has got on", |p| stuck(p).is_some_and(|c| c.status == "False")).await?;
    ensure!(node(&got_on) == NOBODYS && stuck(&got_on).and_then(|c| c.reason.as_deref()) == Some("GotOn"));
    ensure!(counted(ns).await? == "0", "none is stuck");
    Ok(())
}

/// On nodes with such labels, whatever they are tainted with: nobody says of ours that it is Ready.
fn on(labels: Value) -> Value {
    json!({"nodeSelector": labels, "tolerations": [{"operator": "Exists"}]})
}

fn stuck(pod: &Pod) -> Option<&PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == CONDITION)
}

/// How long the pod might have waited, as the line says.
fn limit(line: &str) -> anyhow::Result<Duration> {
    let limit = line.split_once("limit ").and_then(|(_, rest)| rest.split_once(" s)"));
    let (limit, _) = limit.with_context(|| format!("{line:?} has no limit"))?;
    Ok(Duration::from_secs_f64(limit.parse()?))
}

/// How many the scheduler counts.
async fn counted(ns: &Ns) -> anyhow::Result<String> {
    let text = plain::get(TcpStream::connect(scheduler_address(ns)?).await?, "/metrics").await?;
    let value = text.lines().find_map(|l| l.strip_prefix("podway_pod_stuck{phase=\"Queued\"} "));
    Ok(value.with_context(|| format!("no gauge in {text}"))?.to_owned())
}
