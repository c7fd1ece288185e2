//! Scheduling is a real choice between two nodes.

use anyhow::ensure;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::ListParams;
use podway_tests::namespace::{LIMIT, Ns, STAY, node, pod};
use podway_tests::wait;
use serde_json::json;
use std::collections::BTreeSet;
use std::path::Path;

pub async fn deployment_of_5_over_2_nodes(ns: Ns) -> anyhow::Result<()> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests/examples/deployment.yaml");
    ns.kubectl(&["apply", "-f", &file.display().to_string()]).await?;
    let five = |d: &Deployment| d.status.as_ref().is_some_and(|s| s.available_replicas == Some(5));
    wait::until(ns.api(), "metadata.name=five", "5 replicas", LIMIT, five).await?;
    let pods = ns.api::<Pod>().list(&ListParams::default()).await?;
    let nodes: BTreeSet<&str> = pods.iter().map(node).collect();
    ensure!(nodes == BTreeSet::from(["podway-0", "podway-1"]), "the pods are on {nodes:?}");
    for pod in &pods.items {
        ns.whole_flow(&pod.name_any()).await?;
    }
    numbers_of_5(&ns).await?;
    // One that is deleted is replaced.
    let victim = &pods.items[0];
    ns.kubectl(&["delete", "pod", victim.metadata.name.as_deref().unwrap_or_default(), "--wait=false"])
        .await?;
    ns.gone(victim).await?;
    wait::until(ns.api(), "metadata.name=five", "5 replicas again", LIMIT, five).await?;
    Ok(())
}

/// The five as numbers: quantiles, blame, the path, a comparison, and kube-burner's documents.
async fn numbers_of_5(ns: &Ns) -> anyhow::Result<()> {
    let told = async |args: &[&str]| {
        let all = [&["flow", "-n", &ns.name, "-l", "app=five"], args].concat();
        let answer = ns.cluster.podway(&all).await?;
        ensure!(answer.code == 0, "podway {all:?}: {}", answer.err);
        ensure!(answer.out.lines().all(|l| l.chars().count() <= 80), "{}", answer.out);
        println!("{}", answer.out);
        anyhow::Ok(answer.out)
    };
    let stats: serde_json::Value = serde_json::from_str(&told(&["stats", "-o", "json"]).await?)?;
    ensure!(stats["pods"] == 5 && stats["ready"] == 5 && stats["total"]["count"] == 5, "{stats}");
    ensure!(stats["total"]["p50Micros"].as_u64() <= stats["total"]["p99Micros"].as_u64(), "{stats}");
    let phases = stats["phases"].as_array().map_or(0, Vec::len);
    ensure!(phases >= 12, "{phases} phases in {stats}");
    ensure!(told(&["blame"]).await?.contains("WORST POD"));
    ensure!(told(&["chain"]).await?.contains("ContainersStarted"));
    ensure!(told(&["compare", "app=five", "app=five"]).await?.contains("A and B take the same time"));
    let documents: Vec<serde_json::Value> =
        serde_json::from_str(&told(&["stats", "-o", "kube-burner"]).await?)?;
    let of = |name: &str| documents.iter().filter(|d| d["metricName"] == name).count();
    let counts = [of("podLatencyMeasurement"), of("podLatencyQuantilesMeasurement")];
    ensure!(counts == [5, 4], "{counts:?} documents");
    Ok(())
}

pub async fn uncordoned(ns: Ns) -> anyhow::Result<()> {
    let nodes = ["podway-0", "podway-1"];
    for node in nodes {
        ns.kubectl(&["cordon", node]).await?;
    }
    let result = refused_then_placed(&ns).await;
    for node in nodes {
        ns.kubectl(&["uncordon", node]).await?;
    }
    result
}

async fn refused_then_placed(ns: &Ns) -> anyhow::Result<()> {
    let _: Pod = ns.create(pod("waits", STAY, json!({}))).await?;
    let refused = ns
        .pod("waits", "the refusal", |p| {
            podway_tests::namespace::condition(p, "PodScheduled") == Some("False")
        })
        .await?;
    let condition = refused.status.into_iter().flat_map(|s| s.conditions.unwrap_or_default());
    let said = condition.into_iter().find(|c| c.type_ == "PodScheduled").map(|c| (c.reason, c.message));
    let expected = "0/2 nodes are available: 2 node(s) were unschedulable. no new claims to deallocate, preemption: \
                    0/2 nodes are available: 2 Preemption is not helpful for scheduling.";
    ensure!(said == Some((Some("Unschedulable".into()), Some(expected.into()))), "{said:?}");
    ns.kubectl(&["uncordon", "podway-1"]).await?;
    let placed = ns.ready("waits").await?;
    ensure!(node(&placed) == "podway-1");
    let events = ns
        .kubectl(&["get", "events", "-o", "jsonpath={range .items[*]}{.reason}: {.message}{\"\\n\"}{end}"])
        .await?;
    for line in [
        format!("FailedScheduling: {expected}"),
        format!("Scheduled: Successfully assigned {}/waits to podway-1", ns.name),
    ] {
        ensure!(events.lines().any(|l| l == line), "no event {line:?} in\n{events}");
    }
    Ok(())
}
