//! Schedulers side by side: on a real control plane with bare Node objects, the same pods to each, one scheduler
//! after the other in the same run, each a process of its own, so that CPU and memory are read of either alike.
//!
//! `cargo run --release -p podway-scheduler --example throughput -- [--nodes 1000,5000] [--pods 1000]
//! [--only basic,anti-affinity,affinity,spread] [--podway target/release/podway] [--stock KUBE-SCHEDULER]`
//!
//! All pods are there before the scheduler starts. The rate is from the first binding that a watcher sees to the
//! last, and so is the CPU time; memory is the most that the process ever had. No client limits either: the stock
//! one gets `--kube-api-qps=5000 --kube-api-burst=5000`, ours has none.

#![expect(clippy::unwrap_used, reason = "a measurement: a panic is its failure")]

mod pods;
mod process;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use pods::{WORKLOADS, pod};
use podway_cluster::{Cluster, UpOptions, down, up};
use process::{Scheduler, Which};
use serde_json::json;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

struct Asked {
    nodes: Vec<usize>,
    pods: usize,
    only: Option<Vec<String>>,
    schedulers: Vec<Which>,
}

fn asked() -> Asked {
    let (mut nodes, mut pods, mut only) = (vec![100], 1000, None);
    let (mut podway, mut stock) = ("target/release/podway".to_owned(), None);
    let mut args = std::env::args().skip(1);
    while let Some(key) = args.next() {
        let value = args.next().unwrap_or_default();
        match key.as_str() {
            "--nodes" => nodes = value.split(',').map(|n| n.parse().unwrap()).collect(),
            "--pods" => pods = value.parse().unwrap(),
            "--only" => only = Some(value.split(',').map(str::to_owned).collect()),
            "--podway" => podway = value,
            "--stock" => stock = Some(value),
            other => eprintln!("{other} is not an option: it is left out"),
        }
    }
    let ours = [Which::Podway(podway)].into_iter();
    Asked { nodes, pods, only, schedulers: ours.chain(stock.map(Which::Stock)).collect() }
}

#[tokio::main]
async fn main() {
    let Asked { nodes: sizes, pods, only, schedulers } = asked();
    let state_dir = std::env::temp_dir().join(format!("podway-throughput-{}", std::process::id()));
    let options =
        UpOptions { state_dir: state_dir.clone(), control_plane_only: true, ..UpOptions::default() };
    let cluster = up(options, |line| eprintln!("{line}")).await.unwrap();
    println!("| nodes | workload | scheduler | pods/s | CPU per pod | peak RSS |\n|---|---|---|---|---|---|");
    let mut there = 0;
    for nodes in sizes {
        futures::stream::iter(there..nodes).for_each_concurrent(16, |i| node(&cluster, i)).await;
        there = there.max(nodes);
        for workload in WORKLOADS.iter().filter(|w| only.as_ref().is_none_or(|o| o.iter().any(|o| o == **w)))
        {
            for which in &schedulers {
                let Row { rate, cpu, memory } = backlog(&cluster, which, workload, pods).await;
                let ms = cpu.as_secs_f64() * 1e3 / f64::from(u32::try_from(pods).unwrap());
                let name = which.name();
                println!("| {nodes} | {workload} | {name} | {rate:.0} | {ms:.2} ms | {memory} MiB |");
            }
        }
    }
    down(&state_dir, |_| ()).await.unwrap();
}

async fn node(cluster: &Cluster, i: usize) {
    let api: Api<Node> = Api::all(cluster.client.clone());
    let name = format!("n{i}");
    let labels =
        json!({"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": format!("z{}", i % 3)});
    let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}});
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    let status = json!({"status": {"allocatable": {"cpu": "32", "memory": "256Gi", "pods": "110"}}});
    api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(status)).await.unwrap();
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
    tokio::time::timeout(Duration::from_secs(120), bound.recv()).await.expect("a pod is bound").unwrap()
}

struct Row {
    rate: f64,
    cpu: Duration,
    memory: u64,
}

async fn backlog(cluster: &Cluster, which: &Which, workload: &str, pods: usize) -> Row {
    let api: Api<Pod> = Api::default_namespaced(cluster.client.clone());
    let mut bound = bound(cluster);
    futures::stream::iter(0..pods)
        .for_each_concurrent(16, |i| {
            let api = api.clone();
            async move {
                let pod = pod(&format!("many-{i}"), which.name(), workload);
                api.create(&PostParams::default(), &pod).await.unwrap();
            }
        })
        .await;
    let scheduler = Scheduler::start(cluster, which);
    let first = next(&mut bound).await;
    let before = scheduler.cpu();
    let mut last = first;
    for _ in 1..pods {
        last = next(&mut bound).await;
    }
    let (cpu, memory) = (scheduler.cpu().saturating_sub(before), scheduler.peak_mib());
    scheduler.stop().await;
    clear(&api).await;
    Row { rate: f64::from(u32::try_from(pods - 1).unwrap()) / (last - first).as_secs_f64(), cpu, memory }
}

async fn clear(api: &Api<Pod>) {
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    api.delete_collection(&now, &ListParams::default()).await.unwrap();
    while !api.list(&ListParams::default().limit(1)).await.unwrap().items.is_empty() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
