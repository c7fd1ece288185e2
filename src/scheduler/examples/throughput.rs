//! How fast pods are placed: on a real control plane with bare Node objects, and, given a
//! kube-scheduler, by that one too, on the same control plane in the same run.
//!
//! `cargo run --release -p podway-scheduler --example throughput [KUBE-SCHEDULER [NODES [PODS]]]`
//!
//! One by one: from the POST of a pod until a watcher sees it bound. Backlog: all pods are there
//! before the scheduler starts; the rate is from the first binding seen to the last.

#![expect(clippy::unwrap_used, reason = "a measurement: a panic is its failure")]

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt as _, watcher};
use podway_cluster::{Cluster, UpOptions, down, up};
use podway_scheduler::{Clients, Config, run};
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Either scheduler, while it runs.
enum Running {
    Ours(CancellationToken, tokio::task::JoinHandle<()>),
    Theirs(tokio::process::Child),
}

impl Running {
    async fn start(cluster: &Cluster, stock: Option<&str>) -> Self {
        let kubeconfig = cluster.layout.admin_kubeconfig();
        if let Some(program) = stock {
            let log = std::fs::File::create(cluster.layout.log("kube-scheduler")).unwrap();
            let mut command = tokio::process::Command::new(program);
            command.arg("--kubeconfig").arg(&kubeconfig).arg("--authentication-kubeconfig").arg(&kubeconfig);
            command.arg("--authorization-kubeconfig").arg(&kubeconfig);
            // Its default of 50 requests a second would be all that is measured.
            command.args(["--leader-elect=false", "--kube-api-qps=5000", "--kube-api-burst=5000"]);
            command.args(["--bind-address=127.0.0.1", "--secure-port=0"]);
            return Running::Theirs(command.stderr(log).kill_on_drop(true).spawn().unwrap());
        }
        let file = Kubeconfig::read_from(kubeconfig).unwrap();
        let config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
        let (token, clients) = (CancellationToken::new(), Clients::connect(&config).unwrap());
        let ended = run(clients, Config { serve: None, ..Config::default() }, token.clone());
        Running::Ours(token, tokio::spawn(async move { ended.await.unwrap() }))
    }

    async fn stop(self) {
        match self {
            Running::Ours(token, task) => {
                token.cancel();
                task.await.unwrap();
            }
            Running::Theirs(mut child) => child.kill().await.unwrap(),
        }
    }
}

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, default: usize| args.get(at).map_or(default, |n| n.parse().unwrap());
    let (nodes, pods) = (number(1, 100), number(2, 1000));
    let state_dir = std::env::temp_dir().join(format!("podway-throughput-{}", std::process::id()));
    let options =
        UpOptions { state_dir: state_dir.clone(), control_plane_only: true, ..UpOptions::default() };
    let cluster = up(options, |line| eprintln!("{line}")).await.unwrap();
    futures::stream::iter(0..nodes).for_each_concurrent(16, |i| node(&cluster, i)).await;
    println!("| {nodes} nodes | create → bound, p50 / p99 | backlog of {pods} |\n|---|---|---|");
    let stock = args.first().filter(|p| !p.is_empty()).map(String::as_str);
    for (name, program) in [("podway", None)].into_iter().chain(stock.map(|p| ("default-scheduler", Some(p))))
    {
        let scheduler = Running::start(&cluster, program).await;
        let times = one_by_one(&cluster, name).await;
        scheduler.stop().await;
        let rate = backlog(&cluster, name, program, pods).await;
        let at = |q: usize| times[(times.len() - 1) * q / 100].as_secs_f64() * 1e3;
        println!("| {name} | {:.1} / {:.1} ms | {rate:.0} pods/s |", at(50), at(99));
    }
    down(&state_dir, |_| ()).await.unwrap();
}

async fn node(cluster: &Cluster, i: usize) {
    let api: Api<Node> = Api::all(cluster.client.clone());
    let name = format!("n{i}");
    let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}});
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    let status = json!({"status": {"allocatable": {"cpu": "32", "memory": "256Gi", "pods": "110"}}});
    api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(status)).await.unwrap();
}

/// Tolerates all: nobody keeps these nodes Ready.
fn pod(name: &str, scheduler: &str) -> Pod {
    let resources = json!({"requests": {"cpu": "100m", "memory": "50Mi"}});
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {"schedulerName": scheduler, "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "c", "image": "none", "resources": resources}]}}))
    .unwrap()
}

/// The moments at which a watcher sees pods bound.
fn bound(cluster: &Cluster) -> mpsc::UnboundedReceiver<Instant> {
    let (send, receive) = mpsc::unbounded_channel();
    let api: Api<Pod> = Api::default_namespaced(cluster.client.clone());
    tokio::spawn(async move {
        let mut seen = std::collections::HashSet::new();
        let mut stream = std::pin::pin!(watcher(api, watcher::Config::default()).applied_objects());
        while let Some(Ok(pod)) = stream.next().await {
            let placed = pod.spec.is_some_and(|s| s.node_name.is_some());
            if placed && seen.insert(pod.metadata.uid) && send.send(Instant::now()).is_err() {
                return;
            }
        }
    });
    receive
}

async fn next(bound: &mut mpsc::UnboundedReceiver<Instant>) -> Instant {
    tokio::time::timeout(Duration::from_secs(60), bound.recv()).await.expect("a pod is bound").unwrap()
}

async fn one_by_one(cluster: &Cluster, scheduler: &str) -> Vec<Duration> {
    let api: Api<Pod> = Api::default_namespaced(cluster.client.clone());
    let mut bound = bound(cluster);
    let mut times = Vec::new();
    for i in 0..110 {
        let start = Instant::now();
        api.create(&PostParams::default(), &pod(&format!("one-{i}"), scheduler)).await.unwrap();
        let took = next(&mut bound).await - start;
        // The first ones open connections and fill caches.
        if i >= 10 {
            times.push(took);
        }
    }
    clear(&api).await;
    times.sort();
    times
}

async fn backlog(cluster: &Cluster, scheduler: &str, program: Option<&str>, pods: usize) -> f64 {
    let api: Api<Pod> = Api::default_namespaced(cluster.client.clone());
    let mut bound = bound(cluster);
    futures::stream::iter(0..pods)
        .for_each_concurrent(16, |i| {
            let api = api.clone();
            async move {
                api.create(&PostParams::default(), &pod(&format!("many-{i}"), scheduler)).await.unwrap();
            }
        })
        .await;
    let running = Running::start(cluster, program).await;
    let first = next(&mut bound).await;
    let mut last = first;
    for _ in 1..pods {
        last = next(&mut bound).await;
    }
    running.stop().await;
    clear(&api).await;
    f64::from(u32::try_from(pods - 1).unwrap()) / (last - first).as_secs_f64()
}

async fn clear(api: &Api<Pod>) {
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    api.delete_collection(&now, &ListParams::default()).await.unwrap();
    while !api.list(&ListParams::default().limit(1)).await.unwrap().items.is_empty() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
