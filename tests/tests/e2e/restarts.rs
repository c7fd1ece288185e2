//! `kill -9` of each part, while a pod runs and while others start: nothing is started twice,
//! nothing is lost. What was killed comes back by a second `podway up`.

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use podway_tests::namespace::{LIMIT, Ns, STAY, phase, pod, status};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Counts up, ten a second, until it is told to end.
const COUNT: &str = "trap 'exit 0' TERM; i=0; while true; do i=$((i+1)); echo $i; sleep 0.1; done";

pub async fn of_the_scheduler(ns: Ns) -> anyhow::Result<()> {
    killed(&ns, &["scheduler"]).await
}

pub async fn of_the_agent(ns: Ns) -> anyhow::Result<()> {
    killed(&ns, &["agent"]).await
}

pub async fn of_the_runtime(ns: Ns) -> anyhow::Result<()> {
    killed(&ns, &["runtime"]).await
}

async fn killed(ns: &Ns, parts: &[&str]) -> anyhow::Result<()> {
    let _: Pod = ns.create(pod("stays", COUNT, json!({}))).await?;
    let before = ns.ready("stays").await?;
    // Some are at each step of their start when the kill comes.
    let starts = json!({
        "volumes": [{"name": "v", "emptyDir": {}}],
        "main": {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}});
    for i in 0..6 {
        let script = format!("echo started >> /v/starts; {STAY}");
        let _: Pod = ns.create(pod(&format!("starts-{i}"), &script, starts.clone())).await?;
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    for part in parts {
        ns.cluster.kill(part)?;
    }
    ns.cluster.up_again().await?;
    for i in 0..6 {
        let name = format!("starts-{i}");
        let ready = ns.ready(&name).await?;
        let restarts = status(&ready, "main").map(|s| s.restart_count);
        ensure!(restarts == Some(0), "{name} was restarted {restarts:?} times");
        let starts = ns.kubectl(&["exec", &name, "--", "cat", "/v/starts"]).await?;
        ensure!(starts == "started\n", "{name} was started {} times", starts.lines().count());
    }
    // The one that ran went on, and no line of its log is missing.
    let _: Pod = ns.create(pod("after", STAY, json!({}))).await?;
    ns.ready("after").await?;
    let now = ns.ready("stays").await?;
    let id = |p: &Pod| status(p, "main").map(|s| (s.container_id.clone(), s.restart_count));
    ensure!(id(&before) == id(&now), "it was {:?} and is {:?}", id(&before), id(&now));
    let log = ns.kubectl(&["logs", "stays"]).await?;
    let numbers: Vec<usize> = log.lines().map(str::parse).collect::<Result<_, _>>().context("a torn line")?;
    ensure!(numbers.iter().copied().eq(1..=numbers.len()), "the log has a gap: {numbers:?}");
    let deleted = ns.ready("stays").await?;
    ns.kubectl(&["delete", "pod", "stays", "--wait=false"]).await?;
    ns.gone(&deleted).await
}

pub async fn an_exit_while_nobody_looks(ns: Ns) -> anyhow::Result<()> {
    let script = "echo first; sleep 2; echo last; exit 42";
    let _: Pod = ns.create(pod("leaves", script, json!({"restartPolicy": "Never"}))).await?;
    ns.pod("leaves", "Running", |p| phase(p) == "Running").await?;
    ns.cluster.kill("agent")?;
    ns.cluster.kill("runtime")?;
    // It ends while neither of them runs.
    tokio::time::sleep(Duration::from_secs(3)).await;
    ns.cluster.up_again().await?;
    let ended = ns.ended("leaves").await?;
    let state =
        status(&ended, "main").and_then(|s| s.state.as_ref()?.terminated.as_ref()).context("terminated")?;
    ensure!((state.exit_code, state.reason.as_deref()) == (42, Some("Error")), "{state:?}");
    ensure!(ns.kubectl(&["logs", "leaves"]).await? == "first\nlast\n");
    Ok(())
}

pub async fn a_second_up_finds_all(ns: Ns) -> anyhow::Result<()> {
    let _: Pod = ns.create(pod("stays", STAY, json!({}))).await?;
    let before = (ns.ready("stays").await?, ns.cluster.daemons("")?);
    let answer = ns.cluster.up_again().await?;
    ensure!(!answer.err.contains("starting "), "it started something: {}", answer.err);
    ensure!(ns.cluster.daemons("")? == before.1, "a daemon is another one");
    let now = ns.ready("stays").await?;
    ensure!(now.metadata.resource_version == before.0.metadata.resource_version, "the pod was touched");
    Ok(())
}

/// How many pods the agents leave and find again.
const MANY: usize = 100;

/// CRI calls that change something, by their names in the metrics.
const MUTATIONS: [&str; 9] = [
    "run_podsandbox",
    "stop_podsandbox",
    "remove_podsandbox",
    "create_container",
    "start_container",
    "stop_container",
    "remove_container",
    "pull_image",
    "remove_image",
];

pub async fn of_the_agent_with_many_pods(ns: Ns) -> anyhow::Result<()> {
    let creates = (0..MANY).map(|i| {
        let ns = &ns;
        let quiet = json!({"automountServiceAccountToken": false});
        async move { ns.create::<Pod>(pod(&format!("many-{i}"), STAY, quiet)).await }
    });
    futures::future::try_join_all(creates).await?;
    let mut before = BTreeMap::new();
    for i in 0..MANY {
        let name = format!("many-{i}");
        ns.ready(&name).await?;
        // Where a start was answered after its process was seen, there is one more report.
        ns.whole_flow(&name).await?;
        let ready = ns.ready(&name).await?;
        before.insert(
            name,
            (ready.metadata.resource_version.clone(), podway_tests::namespace::node(&ready).to_owned()),
        );
    }
    let nodes: BTreeSet<String> = before.values().map(|(_, node)| node.clone()).collect();
    ns.cluster.kill("agent")?;
    ns.cluster.up_again().await?;
    let begun = Instant::now();
    let raw = async |node: &str, path: &str| {
        let path = format!("/api/v1/nodes/{node}/proxy{path}");
        ns.cluster.kubectl(&["get", "--raw", &path], "").await
    };
    for node in &nodes {
        let mine = before.values().filter(|(_, n)| n == node).count();
        let right = async {
            loop {
                let answer = raw(node, "/pods").await?;
                let list: serde_json::Value = serde_json::from_str(&answer.out).unwrap_or_default();
                let ready = list["items"].as_array().into_iter().flatten().filter(|p| is_ready(p, &ns.name));
                if ready.count() == mine {
                    return anyhow::Ok(());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(LIMIT, right).await.context("the agent's own view is not right again")??;
        println!("{mine} pods of {node} are known again after {} ms", begun.elapsed().as_millis());
        let metrics = raw(node, "/metrics").await?.out;
        ensure!(metrics.contains("kubelet_runtime_operations_total"), "no metrics: {metrics}");
        for call in MUTATIONS {
            let made = metrics.lines().find(|l| {
                l.starts_with("kubelet_runtime_operations_total") && l.contains(&format!("\"{call}\""))
            });
            ensure!(made.is_none(), "the new agent of {node} changed something: {made:?}");
        }
    }
    for (name, (version, _)) in &before {
        let now = ns.ready(name).await?;
        ensure!(&now.metadata.resource_version == version, "{name} was written");
    }
    Ok(())
}

fn is_ready(pod: &serde_json::Value, namespace: &str) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    let running = pod["status"]["containerStatuses"][0]["state"]["running"].is_object();
    pod["metadata"]["namespace"] == namespace
        && running
        && conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// A file that is gone when the test is, however it ends.
struct Manifest(std::path::PathBuf);

impl Manifest {
    /// As editors and kubeadm do it: whole, or not at all.
    fn write(&self, ns: &Ns, word: &str) -> anyhow::Result<()> {
        let mut file = pod("still", &format!("echo {word}; {STAY}"), json!({}));
        file["metadata"]["namespace"] = json!(ns.name);
        let next = self.0.with_file_name(".next");
        std::fs::write(&next, serde_json::to_vec(&file)?)?;
        std::fs::rename(next, &self.0).context("writing a static pod")
    }
}

impl Drop for Manifest {
    fn drop(&mut self) {
        let _gone_already = std::fs::remove_file(&self.0);
    }
}

pub async fn a_static_pod_and_its_mirror(ns: Ns) -> anyhow::Result<()> {
    let dir = ns.cluster.layout.node("podway-0").join("manifests");
    let file = Manifest(dir.join("still.json"));
    file.write(&ns, "one")?;
    let name = "still-podway-0";
    let ready = |p: &Pod| podway_tests::namespace::condition(p, "Ready") == Some("True");
    let id = |p: &Pod| status(p, "main").map(|s| (s.container_id.clone(), s.restart_count));
    let uid = |p: &Pod| p.metadata.uid.clone();
    let first = ns.pod(name, "a mirror that is Ready", ready).await?;
    let annotations = first.metadata.annotations.clone().unwrap_or_default();
    let annotation = |key: &str| annotations.get(&format!("kubernetes.io/config.{key}")).cloned();
    ensure!(annotation("source").as_deref() == Some("file"), "{annotations:?}");
    ensure!(annotation("mirror").is_some() && annotation("mirror") == annotation("hash"), "{annotations:?}");
    let owner = first.metadata.owner_references.iter().flatten().next().map(|o| o.kind.clone());
    ensure!(owner.as_deref() == Some("Node"), "it is owned by {owner:?}");
    ensure!(ns.kubectl(&["logs", name]).await? == "one\n");
    // Deleted, and deleted by force: the mirror comes back, the processes stay.
    let mut last = uid(&first);
    for force in [false, true] {
        let mut delete = vec!["delete", "pod", name, "--wait=false"];
        if force {
            delete.extend(["--grace-period=0", "--force"]);
        }
        ns.kubectl(&delete).await?;
        let again = ns.pod(name, "another mirror", |p| uid(p) != last && ready(p)).await?;
        ensure!(id(&again) == id(&first), "it was {:?} and is {:?}", id(&first), id(&again));
        last = uid(&again);
    }
    ns.cluster.kill("agent")?;
    ns.cluster.up_again().await?;
    let _: Pod = ns.create(pod("after", STAY, json!({}))).await?;
    ns.ready("after").await?;
    let kept = ns.pod(name, "Ready", ready).await?;
    ensure!(uid(&kept) == last && id(&kept) == id(&first), "a restart touched it: {:?}", id(&kept));
    file.write(&ns, "two")?;
    let changed = ns.pod(name, "another mirror", |p| uid(p) != last && ready(p)).await?;
    ensure!(id(&changed) != id(&first), "its file changed, and it did not");
    ensure!(ns.kubectl(&["logs", name]).await? == "two\n");
    drop(file);
    ns.gone(&changed).await
}
