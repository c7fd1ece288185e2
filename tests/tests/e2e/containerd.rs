//! containerd takes the place of our runtime: the agent speaks CRI and nothing else.

use super::streams::talker;
use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Api;
use podway_cluster::{Program, process};
use podway_flow::{Flow, Outcome, Phase, Writer};
use podway_tests::cluster::{Cluster, built};
use podway_tests::namespace::{LIMIT, Ns, condition, status};
use podway_tests::wait;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

const NODE: &str = "podway-1";

pub async fn the_agent_on_it(ns: Ns) -> anyhow::Result<()> {
    let swapped = Swapped::start(&ns.cluster).await?;
    let result = a_pod_runs(&ns).await;
    swapped.stop().await?;
    // Our own runtime and the agent on it come back.
    ns.cluster.up_again().await?;
    is_on(&ns.cluster, "podway://").await?;
    result
}

async fn a_pod_runs(ns: &Ns) -> anyhow::Result<()> {
    is_on(&ns.cluster, "containerd://2.").await?;
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

/// Waits until the node tells of a runtime whose version begins so, and is Ready.
async fn is_on(cluster: &Cluster, runtime: &str) -> anyhow::Result<()> {
    let there = |node: &Node| {
        let status = node.status.as_ref();
        let version = status.and_then(|s| Some(s.node_info.as_ref()?.container_runtime_version.as_str()));
        let conditions = status.and_then(|s| s.conditions.as_ref()).into_iter().flatten();
        version.is_some_and(|v| v.starts_with(runtime))
            && conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
    };
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    wait::until(nodes, &format!("metadata.name={NODE}"), runtime, LIMIT, there).await?;
    Ok(())
}

/// containerd and an agent on it, in the place of the node's own two daemons.
struct Swapped {
    agent: Child,
    containerd: Child,
}

impl Swapped {
    async fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let say = |line: &str| eprintln!("{line}");
        let programs = Program::Containerd.locate(&say).await?;
        let (runc, cni) = (Program::Runc.locate(&say).await?, Program::CniPlugins.locate(&say).await?);
        let node = cluster.layout.node(NODE);
        let dir = node.join("containerd");
        std::fs::create_dir_all(&dir)?;
        let socket = dir.join("containerd.sock");
        let config = dir.join("config.toml");
        std::fs::write(&config, settings(&dir, &socket, &node, &runc, &cni))?;

        let agent_name = format!("{NODE}-agent");
        let argv = cluster.argv(&agent_name)?;
        let netns = cluster.netns(NODE)?;
        cluster.kill(&agent_name)?;
        cluster.kill(&format!("{NODE}-runtime"))?;
        let path = std::env::var("PATH").unwrap_or_default();
        let containerd = start(
            cluster,
            &netns,
            &[
                programs.join("containerd").display().to_string(),
                "--config".into(),
                config.display().to_string(),
            ],
            // It finds its shim there.
            &format!("{}:{path}", programs.display()),
            "containerd",
        )?;
        until_connects(&socket).await?;
        let mut args = vec![built("podway")?.display().to_string()];
        args.extend(argv.into_iter().skip(1));
        let endpoint =
            args.iter().position(|a| a == "--container-runtime-endpoint").context("the endpoint")?;
        args[endpoint + 1] = format!("unix://{}", socket.display());
        let agent = start(cluster, &netns, &args, &path, "agent-on-containerd")?;
        Ok(Swapped { agent, containerd })
    }

    async fn stop(self) -> anyhow::Result<()> {
        for mut child in [self.agent, self.containerd] {
            let pid = child.id().and_then(|id| i32::try_from(id).ok()).context("it has ended by itself")?;
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM)?;
            tokio::time::timeout(LIMIT, child.wait()).await.context("it does not end")??;
        }
        Ok(())
    }
}

/// In the node's network namespace, marked as the cluster's, so that `podway down` finds it whatever happens.
fn start(cluster: &Cluster, netns: &Path, argv: &[String], path: &str, name: &str) -> anyhow::Result<Child> {
    let log = std::fs::File::create(cluster.layout.log(name))?;
    let child = Command::new("nsenter")
        .arg(format!("--net={}", netns.display()))
        .args(argv)
        .env("PATH", path)
        .env(process::MARK, cluster.layout.root())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .kill_on_drop(true)
        .spawn();
    child.with_context(|| format!("starting {argv:?}"))
}

async fn until_connects(socket: &Path) -> anyhow::Result<()> {
    let connect = async {
        while tokio::net::UnixStream::connect(socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LIMIT, connect).await.context("containerd does not listen")
}

/// containerd's configuration: everything below `dir`, the images and the pods' network as our runtime's.
fn settings(dir: &Path, socket: &Path, node: &Path, runc: &Path, cni: &Path) -> String {
    // The strings of TOML are those of JSON.
    let text = |path: PathBuf| json!(path).to_string();
    format!(
        r#"version = 3
root = {root}
state = {state}
[grpc]
address = {socket}
[ttrpc]
address = {ttrpc}
[plugins.'io.containerd.internal.v1.opt']
path = {opt}
[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "registry.k8s.io/pause:3.10.1"
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = {hosts}
[plugins.'io.containerd.cri.v1.runtime']
# A negative score is refused where CAP_SYS_RESOURCE is missing.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = [{cni}]
conf_dir = {conf}
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = {runc}
SystemdCgroup = false
"#,
        root = text(dir.join("root")),
        state = text(dir.join("state")),
        socket = text(socket.to_owned()),
        ttrpc = text(dir.join("ttrpc.sock")),
        opt = text(dir.join("opt")),
        hosts = text(node.join("hosts")),
        cni = text(cni.to_owned()),
        conf = text(node.join("cni")),
        runc = text(runc.to_owned()),
    )
}
