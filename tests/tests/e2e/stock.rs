//! podway into a cluster of stock parts, by its manifests alone: a node with a stock kubelet on containerd and a
//! stock kube-scheduler stand for a kind cluster. Pods run both ways, a restart of the runtime's container takes
//! none of them with it, Prometheus scrapes what is installed, Chromium opens the page, and uninstalling leaves nothing.

use anyhow::{Context as _, ensure};
use futures::FutureExt as _;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::{Api, ListParams};
use podway_tests::cluster::{Answer, Cluster};
use podway_tests::leaks::Snapshot;
use podway_tests::namespace::{LIMIT, Ns, STAY, node, pod, status};
use podway_tests::page::Page;
use podway_tests::prometheus::{Prometheus, Target, Tls};
use podway_tests::swap::{Scheduler, Swapped, is_on};
use podway_tests::wait;
use serde_json::{Value, json};
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

const SYSTEM: &str = "podway-system";
/// The stock node …
const STOCK: &str = "podway-1";
/// … and the one that our agent is beside it.
const OURS: &str = "podway-1-podway";

fn manifests() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../manifests").display().to_string()
}

pub async fn installed_by_its_manifests(ns: Ns) -> anyhow::Result<()> {
    // The scheduler of `up`, of the same name, makes room for the one that the manifests bring.
    ns.cluster.kill(podway_cluster::parts::SCHEDULER)?;
    let machine = Swapped::stock(&ns.cluster, STOCK).await?;
    let scheduler = Scheduler::stock(&ns.cluster).await?;
    let result = AssertUnwindSafe(on_stock(&ns, &machine)).catch_unwind().await;
    scheduler.stop().await?;
    machine.stop().await?;
    // It applies what was uninstalled, too.
    ns.cluster.up_again().await?;
    is_on(&ns.cluster, STOCK, "podway://").await?;
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

async fn on_stock(ns: &Ns, machine: &Swapped) -> anyhow::Result<()> {
    is_on(&ns.cluster, STOCK, "containerd://2.").await?;
    // A kubelet is Ready before it has made the cgroups that are its own; after its first pod they are there.
    let _: Pod = ns
        .create(pod(
            "first",
            STAY,
            json!({"nodeSelector": {"kubernetes.io/hostname": STOCK}, "schedulerName": "default-scheduler"}),
        ))
        .await?;
    let first = ns.ready("first").await?;
    ns.kubectl(&["delete", "pod", "first", "--wait=false"]).await?;
    ns.gone(&first).await?;
    let bare = (Snapshot::take(ns.cluster.layout.root()), mounts(machine)?);
    let used = async {
        install(ns).await?;
        pods_run_both_ways(ns).await?;
        the_runtimes_container_is_killed(ns, machine).await?;
        scraped(ns).await?;
        looked_at(ns).await?;
        nothing_is_forbidden(ns).await
    };
    let used = used.await;
    if used.is_err() {
        told(&ns.cluster).await;
    }
    let last = last_words(&ns.cluster)?;
    let gone = uninstall(ns).await;
    used?;
    gone?;
    let left = nothing_is_left(ns, machine, bare).await;
    let said =
        tokio::time::timeout(LIMIT, last.wait_with_output()).await.context("its log does not end")??.stdout;
    left.with_context(|| format!("the agent's last words:\n{}", String::from_utf8_lossy(&said)))
}

/// What the agent says from now to its end: its log goes with its pod.
fn last_words(cluster: &Cluster) -> anyhow::Result<Child> {
    let mut command = Command::new(&cluster.kubectl);
    command.arg("--kubeconfig").arg(cluster.layout.admin_kubeconfig());
    command.args(["logs", "--follow", "--tail=5", "-n", SYSTEM, "daemonset/podway-agent", "-c", "agent"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
    command.spawn().context("following the agent's log")
}

/// The commands of docs/kind.md.
async fn install(ns: &Ns) -> anyhow::Result<()> {
    kubectl(ns, &["apply", "-k", &manifests()]).await?;
    kubectl(ns, &["label", "node", STOCK, "podway.dev/agent=true"]).await?;
    let sets: Api<DaemonSet> = Api::namespaced(ns.cluster.client.clone(), SYSTEM);
    let available = |set: &DaemonSet| set.status.as_ref().is_some_and(|s| s.number_available == Some(1));
    wait::until(sets, "metadata.name=podway-agent", "agent and runtime in a pod", LIMIT, available).await?;
    let deployments: Api<Deployment> = Api::namespaced(ns.cluster.client.clone(), SYSTEM);
    let available = |d: &Deployment| d.status.as_ref().is_some_and(|s| s.available_replicas == Some(2));
    wait::until(deployments, "metadata.name=podway-scheduler", "the scheduler in pods", LIMIT, available)
        .await?;
    is_on(&ns.cluster, OURS, "podway://").await?;
    let found = Api::<Node>::all(ns.cluster.client.clone()).get(OURS).await?;
    let taints = found.spec.and_then(|s| s.taints).unwrap_or_default();
    ensure!(taints.iter().any(|t| t.key == "podway.dev/agent" && t.effect == "NoSchedule"), "{taints:?}");
    Ok(())
}

async fn pods_run_both_ways(ns: &Ns) -> anyhow::Result<()> {
    let ours = |scheduler: &str| {
        json!({
            "schedulerName": scheduler,
            "nodeSelector": {"podway.dev/beside": STOCK},
            "tolerations": [{"key": "podway.dev/agent", "operator": "Exists"}]})
    };
    let kubelets = json!({"nodeSelector": {"kubernetes.io/hostname": STOCK}});
    let serves = format!("echo up; echo hello > index.html; httpd -p 8080; {STAY}");
    let ways = [
        ("placed-by-podway", kubelets, STOCK, "containerd://", "podway"),
        ("run-by-podway", ours("default-scheduler"), OURS, "podway://", "default-scheduler"),
        ("all-podway", ours("podway"), OURS, "podway://", "podway"),
    ];
    for (name, spec, ..) in &ways {
        let _: Pod = ns.create(pod(name, &serves, spec.clone())).await?;
    }
    for (name, _, at, runtime, by) in ways {
        let ready = ns.ready(name).await?;
        ensure!(node(&ready) == at, "{name} is on {:?}", node(&ready));
        let id = status(&ready, "main").and_then(|s| s.container_id.as_deref()).unwrap_or_default();
        ensure!(id.starts_with(runtime), "{name} runs as {id:?}");
        // kube-scheduler tells by the newer API, whose reporter the core one shows in its own field.
        let scheduled = |e: &Event| {
            let source = e.source.as_ref().and_then(|s| s.component.as_deref());
            e.involved_object.name.as_deref() == Some(name)
                && [e.reporting_component.as_deref(), source].contains(&Some(by))
        };
        wait::until(ns.api(), "reason=Scheduled", "who placed it", LIMIT, scheduled).await?;
    }
    // Our agent's pods are in the cluster's network: one of the kubelet's reaches them.
    ensure!(asked(ns, "all-podway").await? == "hello\n");
    // Its log comes by the agent's own port; who asks is the API server, which does not know who signed it.
    let logs = ["logs", "--insecure-skip-tls-verify-backend", "all-podway"];
    ensure!(ns.kubectl(&logs).await? == "up\n");

    // The flow tells all of what our parts did; of a kubelet's pod what the API server has.
    for (name, phases) in [
        ("all-podway", &["NodesFiltered", "Bound", "NetworkConfigured", "RootfsPrepared", "Ready"][..]),
        ("placed-by-podway", &["NodesFiltered", "Bound", "Ready"]),
        ("run-by-podway", &["SandboxCreated", "ContainersStarted", "Ready"]),
    ] {
        let answer = ns.cluster.podway(&["flow", name, "-n", &ns.name, "-o", "json"]).await?;
        ensure!(answer.code == 0, "podway flow {name}: {}", answer.err);
        let flow: Value = serde_json::from_str(&answer.out)?;
        let records = flow["records"].as_array().context("records")?;
        for phase in phases {
            ensure!(records.iter().any(|r| r["phase"] == *phase), "{name}: no {phase} in {records:?}");
        }
    }
    Ok(())
}

/// What the web server of a pod answers to the kubelet's pod.
async fn asked(ns: &Ns, name: &str) -> anyhow::Result<String> {
    let target = ns.ready(name).await?;
    let ip = target.status.as_ref().and_then(|s| s.pod_ip.as_deref()).context("its address")?.to_owned();
    let url = format!("http://{ip}:8080/index.html");
    ns.kubectl(&["exec", "placed-by-podway", "--", "wget", "-qO-", &url]).await
}

/// Whoever shares the host's PID namespace is ended by its cgroup. The pods' monitors are in another.
async fn the_runtimes_container_is_killed(ns: &Ns, machine: &Swapped) -> anyhow::Result<()> {
    let before = ns.ready("all-podway").await?;
    let kept = monitors()?;
    ensure!(kept.len() == 2, "a monitor for each of our pods: {kept:?}");
    let pid = process(machine, "podway-runtime\0--config=/etc/podway/runtime.toml\0")?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
    let pods: Api<Pod> = Api::namespaced(ns.cluster.client.clone(), SYSTEM);
    let again = |p: &Pod| {
        p.metadata.generate_name.as_deref() == Some("podway-agent-")
            && status(p, "runtime").is_some_and(|s| s.restart_count == 1 && s.ready)
    };
    wait::until(pods, "", "the runtime's container again", LIMIT, again).await?;
    is_on(&ns.cluster, OURS, "podway://").await?;
    ensure!(monitors()? == kept, "{kept:?} have become {:?}", monitors()?);
    ensure!(asked(ns, "all-podway").await? == "hello\n");
    // What is made after it is made by the new one, beside what is adopted.
    let spec = json!({
        "nodeSelector": {"podway.dev/beside": STOCK},
        "tolerations": [{"key": "podway.dev/agent", "operator": "Exists"}]});
    let _: Pod = ns.create(pod("after", STAY, spec)).await?;
    ns.ready("after").await?;
    let after = ns.ready("all-podway").await?;
    let of = |p: &Pod| status(p, "main").map(|s| (s.container_id.clone(), s.restart_count));
    ensure!(of(&before) == of(&after), "{:?} has become {:?}", of(&before), of(&after));
    ensure!(of(&after).is_some_and(|(_, restarts)| restarts == 0));
    Ok(())
}

/// The installed parts, by a real Prometheus.
async fn scraped(ns: &Ns) -> anyhow::Result<()> {
    let pods: Api<Pod> = Api::namespaced(ns.cluster.client.clone(), SYSTEM);
    let schedulers =
        pods.list(&ListParams::default().labels("app.kubernetes.io/component=scheduler")).await?;
    let ips = schedulers.iter().filter_map(|p| p.status.as_ref()?.pod_ip.clone());
    let mut targets: Vec<Target> =
        ips.map(|ip| Target { job: "scheduler", address: format!("{ip}:10351"), tls: None }).collect();
    ensure!(targets.len() == 2, "{targets:?}");
    let layout = &ns.cluster.layout;
    let tls = Tls { ca: None, cert: layout.cert("admin"), key: layout.key("admin") };
    let address = format!("{}:10260", ns.cluster.network(STOCK)?.address());
    targets.push(Target { job: "agent", address, tls: Some(tls) });
    let prometheus = Prometheus::start(&targets).await?;
    for (query, least) in [
        ("sum(up{job=\"scheduler\"}) == 2", 2.0),
        ("sum(leader_election_master_status) == 1", 1.0),
        ("sum(scheduler_schedule_attempts_total{result=\"scheduled\"}) >= 3", 3.0),
        ("up{job=\"agent\"} == 1", 1.0),
        ("kubelet_running_pods{job=\"agent\"} == 3", 3.0),
        ("sum(podway_pod_phase_duration_seconds_count{job=\"agent\",phase=\"Ready\"}) >= 3", 3.0),
    ] {
        ensure!(prometheus.value(query).await? >= least, "{query}");
    }
    Ok(())
}

/// The page, by a real browser.
async fn looked_at(ns: &Ns) -> anyhow::Result<()> {
    let page = Page::open(&ns.cluster, &ns.name).await?;
    page.until("/", "all-podway").await?;
    let document = page.in_chromium().await?;
    for said in ["all-podway", "placed-by-podway", "run-by-podway", OURS, "How long each phase takes"] {
        ensure!(document.contains(said), "{said:?} is not in {document}");
    }
    page.close().await
}

/// The rights of the manifests are enough for what is used of them.
async fn nothing_is_forbidden(ns: &Ns) -> anyhow::Result<()> {
    for (what, container) in
        [("daemonset/podway-agent", "agent"), ("deployment/podway-scheduler", "scheduler")]
    {
        let log = kubectl(ns, &["logs", "-n", SYSTEM, what, "-c", container]).await?;
        ensure!(!log.is_empty(), "{what} logs nothing");
        let refused: Vec<&str> = log.lines().filter(|line| line.contains("forbidden")).collect();
        ensure!(refused.is_empty(), "{what}: {refused:#?}");
    }
    Ok(())
}

/// The commands of docs/kind.md.
async fn uninstall(ns: &Ns) -> anyhow::Result<()> {
    let drain =
        ["drain", "-l", "podway.dev/beside", "--ignore-daemonsets", "--delete-emptydir-data", "--force"];
    let drained = kubectl(ns, &drain).await;
    let deleted = kubectl(ns, &["delete", "-k", &manifests(), "--ignore-not-found"]).await;
    let unregistered = kubectl(ns, &["delete", "nodes", "-l", "podway.dev/beside"]).await;
    kubectl(ns, &["label", "nodes", "--all", "podway.dev/agent-"]).await?;
    // The kubelet's own, which nobody asked to go.
    ns.kubectl(&["delete", "pods", "--all"]).await?;
    drained.and(deleted).and(unregistered).map(drop)
}

/// No object of the manifests, no node; and on the machine no process, mount, namespace, cgroup or address that
/// was not there before.
async fn nothing_is_left(ns: &Ns, machine: &Swapped, bare: (Snapshot, Vec<String>)) -> anyhow::Result<()> {
    let all = kubectl(ns, &["kustomize", &manifests()]).await?;
    let args = ["get", "-f", "-", "--ignore-not-found", "-o", "name"];
    let Answer { code, out, err } = ns.cluster.kubectl(&args, &all).await?;
    // Where the definitions are gone, so are their objects; the namespace's go with it.
    ensure!(code == 0 && out.is_empty(), "left: {out}{err}");
    let nodes: Api<Node> = Api::all(ns.cluster.client.clone());
    ensure!(nodes.get_opt(OURS).await?.is_none(), "{OURS} stays registered");
    let given_out = format!("/proc/{}/root/var/lib/cni/networks/podway", machine.pid()?);
    let mut left = Vec::new();
    let same = async {
        loop {
            let now = (Snapshot::take(ns.cluster.layout.root()), mounts(machine)?);
            left = now.0.new_since(&bare.0);
            left.extend(
                now.1.iter().filter(|m| !bare.1.contains(m)).map(|m| format!("mount on {STOCK} {m}")),
            );
            let files = std::fs::read_dir(&given_out)?.flatten().map(|e| e.file_name().display().to_string());
            left.extend(files.filter(|f| f.parse::<std::net::IpAddr>().is_ok()));
            if left.is_empty() {
                return anyhow::Ok(());
            }
            // The kubelet removes a pod's cgroups when it looks again, every 2 s.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    match tokio::time::timeout(LIMIT, same).await {
        Ok(result) => result,
        Err(_) => anyhow::bail!("left after {LIMIT:?}:\n{}", left.join("\n")),
    }
}

/// The mount points of the node.
fn mounts(machine: &Swapped) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(format!("/proc/{}/mountinfo", machine.pid()?))?;
    Ok(text.lines().filter_map(|l| l.split(' ').nth(4)).map(str::to_owned).collect())
}

/// The process with that command line in a container of the node.
fn process(machine: &Swapped, line: &str) -> anyhow::Result<i32> {
    let netns = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let here = netns(i32::try_from(machine.pid()?)?);
    let mut found = processes(|l| l == line)?;
    found.retain(|pid| netns(*pid) == here);
    ensure!(found.len() == 1, "{line:?} is run by {found:?}");
    Ok(found[0])
}

/// The monitors of the installed runtime: those of `up` have their sockets elsewhere.
fn monitors() -> anyhow::Result<Vec<i32>> {
    processes(|line| line.contains("podway-monitor\0--socket\0/run/podway/runtime/"))
}

/// The processes with such a command line, in order.
fn processes(is: impl Fn(&str) -> bool) -> anyhow::Result<Vec<i32>> {
    let all = std::fs::read_dir("/proc")?.flatten();
    let pids = all.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    // One that ends while it is looked at is not there.
    let line = |pid: i32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut found: Vec<i32> = pids.filter(|pid| is(&line(*pid))).collect();
    found.sort_unstable();
    Ok(found)
}

async fn kubectl(ns: &Ns, args: &[&str]) -> anyhow::Result<String> {
    let answer = ns.cluster.kubectl(args, "").await?;
    ensure!(answer.code == 0, "kubectl {args:?}: {}", answer.err);
    Ok(answer.out)
}

/// What the installed parts say, for who reads the failure.
async fn told(cluster: &Cluster) {
    for args in [
        &["get", "pods,nodes", "-A", "-o", "wide"][..],
        &["describe", "pods", "-n", SYSTEM],
        &["logs", "-n", SYSTEM, "deployment/podway-scheduler", "--tail=40"],
        &["logs", "-n", SYSTEM, "daemonset/podway-agent", "-c", "runtime", "--tail=40"],
        &["logs", "-n", SYSTEM, "daemonset/podway-agent", "-c", "agent", "--tail=40"],
    ] {
        match cluster.kubectl(args, "").await {
            Ok(answer) => eprintln!("{args:?}:\n{}{}", answer.out, answer.err),
            Err(error) => eprintln!("{args:?}: {error:#}"),
        }
    }
}
