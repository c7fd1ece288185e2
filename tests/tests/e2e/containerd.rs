//! containerd takes the place of our runtime: the agent speaks CRI and nothing else.

use super::streams::talker;
use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use podway_flow::{Flow, Outcome, Phase, Writer};
use podway_tests::namespace::{Ns, condition, status};
use podway_tests::swap::{Swapped, is_on};
use serde_json::json;

const NODE: &str = "podway-1";

pub async fn the_agent_on_it(ns: Ns) -> anyhow::Result<()> {
    let swapped = Swapped::agent_on_containerd(&ns.cluster, NODE).await?;
    let result = a_pod_runs(&ns).await;
    swapped.stop().await?;
    // Our own runtime and the agent on it come back.
    ns.cluster.up_again().await?;
    is_on(&ns.cluster, NODE, "podway://").await?;
    result
}

async fn a_pod_runs(ns: &Ns) -> anyhow::Result<()> {
    is_on(&ns.cluster, NODE, "containerd://2.").await?;
    let spec = json!({
        "nodeSelector": {"kubernetes.io/hostname": NODE},
        "volumes": [{"name": "v", "emptyDir": {}}],
        "main": {"volumeMounts": [{"name": "v", "mountPath": "/v"}],
            "resources": {"limits": {"memory": "32Mi", "cpu": "200m"}}}});
    let _: Pod = ns.create(talker("guest", spec)).await?;
    let ready = ns.ready("guest").await?;
    let id = status(&ready, "main").and_then(|s| s.container_id.as_deref()).unwrap_or_default();
    ensure!(id.starts_with("containerd://"), "the container is {id:?}");
    ns.until_log("guest", "main", "up").await?;
    ensure!(ns.kubectl(&["exec", "guest", "--", "sh", "-c", "echo x > /v/f; cat /v/f"]).await? == "x\n");
    // The node does not say that its runtime knows the newer protocol: the API server translates it.
    for web_sockets in ["true", "false"] {
        super::streams::into(ns, "guest", web_sockets).await?;
    }

    // What the agent sees from outside has its time; of what is inside a call, containerd says nothing,
    // and the flow says so.
    let answer = ns.cluster.podway(&["flow", "guest", "-n", &ns.name, "-o", "json"]).await?;
    ensure!(answer.code == 0, "podway flow: {}", answer.err);
    let flow: Flow = serde_json::from_str(&answer.out).context("podway flow -o json")?;
    for phase in
        [Phase::SandboxCreated, Phase::ImagesPulled, Phase::ContainersCreated, Phase::ContainersStarted]
    {
        let records = flow.records_of(phase);
        ensure!(!records.is_empty(), "{phase} is not recorded");
        for record in records {
            ensure!(record.writer == Writer::Agent, "{phase} is told by {:?}", record.writer);
            ensure!(matches!(record.outcome, Outcome::Succeeded | Outcome::Skipped), "{record:?}");
        }
    }
    for phase in [Phase::NetworkConfigured, Phase::RootfsPrepared, Phase::SpecGenerated] {
        ensure!(flow.summary(phase).is_none(), "who told of {phase}? {:?}", flow.records_of(phase));
        let told = condition(&ready, &format!("podway.dev/{phase}"));
        ensure!(told == Some("Unknown"), "podway.dev/{phase} is {told:?}");
    }
    let answer = ns.cluster.podway(&["flow", "guest", "-n", &ns.name]).await?;
    println!("{}", answer.out);

    ns.kubectl(&["delete", "pod", "guest", "--wait=false"]).await?;
    ns.gone(&ready).await
}
