//! `podway why` and `podway whatif`: what they say is so, and asking changes nothing.

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use podway_tests::audit;
use podway_tests::namespace::{Ns, STAY, condition, node, pod};
use serde_json::{Value, json};
use std::path::Path;

/// What a node lacks until it is told to be given.
const KEY: &str = "podway.dev/questions";

async fn asked(ns: &Ns, args: &[&str]) -> anyhow::Result<String> {
    let all = [args, &["-n", &ns.name]].concat();
    let answer = ns.cluster.podway(&all).await?;
    ensure!(answer.code == 0, "podway {all:?}: {}", answer.err);
    println!("{}", answer.out);
    Ok(answer.out)
}

async fn asked_json(ns: &Ns, args: &[&str]) -> anyhow::Result<Value> {
    let text = asked(ns, &[args, &["-o", "json"]].concat()).await?;
    serde_json::from_str(&text).with_context(|| format!("podway {args:?} says {text}"))
}

pub async fn why_and_whatif(ns: Ns) -> anyhow::Result<()> {
    let _: Pod = ns.create(pod("runs", STAY, json!({}))).await?;
    let runs = ns.ready("runs").await?;
    why_of_one_that_runs(&ns, node(&runs)).await?;
    let result = why_of_one_that_waits(&ns).await;
    for node in ["podway-0", "podway-1"] {
        ns.kubectl(&["label", "node", node, &format!("{KEY}-")]).await?;
    }
    result?;
    whatif(&ns, node(&runs)).await
}

/// Which nodes took it and what each was worth: the record that came with its binding.
async fn why_of_one_that_runs(ns: &Ns, on: &str) -> anyhow::Result<()> {
    let text = asked(ns, &["why", "pod/runs"]).await?;
    ensure!(text.starts_with(&format!("{}/runs is on {on}: podway chose it\n", ns.name)), "{text}");
    ensure!(text.contains("\n  2 of 2 nodes took it\n") && text.contains("\n  margin "), "{text}");
    for node in ["podway-0", "podway-1"] {
        let scored = |l: &str| l.contains("TaintToleration=100x3") && l.contains("NodeResourcesFit=");
        let line = text.lines().find(|l| l.trim_start().starts_with(node));
        ensure!(line.is_some_and(scored), "no scores of {node} in\n{text}");
    }
    let told = asked_json(ns, &["why", "runs"]).await?;
    ensure!((&told["state"], &told["node"]) == (&json!("placed"), &json!(on)), "{told}");
    Ok(())
}

/// The reason that the condition has, and the smallest change; once that very change is made, the pod runs where it
/// was said to.
async fn why_of_one_that_waits(ns: &Ns) -> anyhow::Result<()> {
    let _: Pod = ns.create(pod("waits", STAY, json!({"nodeSelector": {KEY: "yes"}}))).await?;
    let refused = ns.pod("waits", "the refusal", |p| condition(p, "PodScheduled") == Some("False")).await?;
    let conditions = refused.status.into_iter().flat_map(|s| s.conditions.unwrap_or_default());
    let message = conditions.filter(|c| c.type_ == "PodScheduled").find_map(|c| c.message);
    let message = message.context("a message")?;
    let reason = "node(s) didn't match Pod's node affinity/selector";
    ensure!(message.starts_with(&format!("0/2 nodes are available: 2 {reason}.")), "{message}");
    let text = asked(ns, &["why", "pod/waits"]).await?;
    ensure!(text.starts_with(&format!("{}/waits waits: {message}\n", ns.name)), "{text}\n{message}");
    ensure!(text.contains(&format!("  podway-1  NodeAffinity: {reason}\n")), "{text}");
    let told = asked_json(ns, &["why", "pod/waits"]).await?;
    ensure!((&told["state"], &told["message"]) == (&json!("waits"), &json!(message)), "{told}");
    let remedy = &told["remedies"][0];
    let on = remedy["node"].as_str().context("a node")?;
    let change = json!([{"change": "label", "node": on, "key": KEY, "value": "yes"}]);
    ensure!(remedy["changes"] == change, "{told}");
    ensure!(text.contains(&format!("  1. label {on} {KEY}=yes (then on {on})\n")), "{text}");
    ns.kubectl(&["label", "node", on, &format!("{KEY}=yes")]).await?;
    let placed = ns.ready("waits").await?;
    ensure!(node(&placed) == on, "it is on {} and not on {on}", node(&placed));
    Ok(())
}

/// Replicas, a drain and a node that there is not: told, and nothing of it done.
async fn whatif(ns: &Ns, drained: &str) -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let file = |name: &str, object: &Value| -> anyhow::Result<String> {
        let path = dir.path().join(name);
        std::fs::write(&path, object.to_string())?;
        Ok(Path::new(&path).display().to_string())
    };
    let small = file("small.yaml", &pod("small", STAY, json!({})))?;
    let big = json!({"main": {"resources": {"requests": {"cpu": "300"}}}});
    let big = file("big.yaml", &pod("big", STAY, big))?;
    let bigger = json!({"apiVersion": "v1", "kind": "Node",
        "metadata": {"name": "bigger", "labels": {"kubernetes.io/hostname": "bigger"}},
        "status": {"capacity": {"cpu": "1000", "memory": "64Gi", "pods": "110"}}});
    let bigger = file("bigger.yaml", &bigger)?;
    let log = ns.cluster.layout.audit_log();
    let mark = audit::mark(&log)?;

    let told = asked_json(ns, &["whatif", "-f", &small, "--replicas", "3", "--drain", drained]).await?;
    let line = |name: &str| {
        let key = json!(format!("{}/{name}", ns.name));
        let mut all = told["pods"].as_array().into_iter().flatten();
        all.find(|line| line["pod"] == key).with_context(|| format!("no {name} in {told}"))
    };
    let other = if drained == "podway-0" { "podway-1" } else { "podway-0" };
    ensure!(line("runs")?["from"] == drained && line("runs")?["scores"]["node"] == other, "{told}");
    for i in 1..=3 {
        ensure!(line(&format!("small-{i}"))?["scores"]["node"] == other, "{told}");
    }
    let text = asked(ns, &["whatif", "-f", &big]).await?;
    let nowhere = format!("{}/big  nowhere: 0/2 nodes are available: 2 Insufficient cpu.", ns.name);
    ensure!(text.starts_with(&nowhere), "{text}");
    ensure!(text.ends_with("0 of 1 placed; nothing was written\n"), "{text}");
    let told = asked_json(ns, &["whatif", "-f", &big, "--replicas", "4", "--add-node", &bigger]).await?;
    let nodes: Vec<&Value> =
        told["pods"].as_array().into_iter().flatten().map(|line| &line["scores"]["node"]).collect();
    ensure!(nodes == [&json!("bigger"), &json!("bigger"), &json!("bigger"), &Value::Null], "{told}");

    // Nothing was written: by the API server's own log, and by what is there.
    let writes: Vec<audit::Request> = ["", &ns.name]
        .iter()
        .map(|namespace| audit::since(&log, mark, namespace))
        .collect::<anyhow::Result<Vec<_>>>()?
        .concat();
    let writes: Vec<_> =
        writes.into_iter().filter(|r| r.is_write() && r.user.username == "podway-admin").collect();
    ensure!(writes.len() == 3 && writes.iter().all(|r| r.request_uri.contains("dryRun=All")), "{writes:?}");
    let pods = ns.kubectl(&["get", "pods", "-o", "name"]).await?;
    ensure!(pods == "pod/runs\npod/waits\n", "{pods}");
    let nodes = "jsonpath={range .items[*]}{.metadata.name} {.spec.unschedulable},{end}";
    let nodes = ns.kubectl(&["get", "nodes", "-o", nodes]).await?;
    ensure!(nodes == "podway-0 ,podway-1 ,", "{nodes}");
    Ok(())
}
