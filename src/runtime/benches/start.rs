//! What a pod's start costs, call by call and step by step, on the real kernel: `cargo bench -p
//! podway-runtime`, as root. `-- --pods N` (default 50), `-- --parallel N` (default 1).
//!
//! The runtime runs in this process; the calls go over its socket as an agent's do. The steps are
//! the runtime's own records, and `runc`'s and the plugins' times within them: what is left of a
//! step is ours.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a bench may fail by panicking")]

#[path = "../tests/support/cri.rs"]
mod cri;
#[path = "../tests/support/node.rs"]
mod node;

use cri::Cri;
use futures::stream::StreamExt as _;
use node::Node;
use podway_cri::v1;
use podway_flow::Record;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// Microseconds by what took them, in the order of a pod's life.
#[derive(Default)]
struct Times(BTreeMap<(u8, String), Vec<u64>>);

const CALL: u8 = 0;
const STEP: u8 = 1;
const PROGRAM: u8 = 2;

impl Times {
    fn add(&mut self, group: u8, name: &str, micros: u64) {
        self.0.entry((group, name.to_owned())).or_default().push(micros);
    }

    fn call(&mut self, name: &str, began: Instant) {
        self.add(CALL, name, u64::try_from(began.elapsed().as_micros()).unwrap());
    }

    fn steps(&mut self, records: &[Record]) {
        for record in records {
            let step = format!("{:02} {}", record.phase as u8, record.phase);
            self.add(STEP, &step, record.duration().unwrap_or_default());
            for (key, value) in &record.evidence {
                if let (true, Ok(micros)) = (key.to_lowercase().ends_with("micros"), value.parse()) {
                    self.add(PROGRAM, &format!("{step} {key}"), micros);
                }
            }
        }
    }

    fn merge(&mut self, other: Times) {
        for (key, values) in other.0 {
            self.0.entry(key).or_default().extend(values);
        }
    }

    fn print(mut self) {
        println!("{:<44}{:>9}{:>9}{:>9}{:>6}", "milliseconds", "p50", "p99", "max", "n");
        let mut last = CALL;
        for ((group, name), values) in &mut self.0 {
            if *group != last {
                println!();
                last = *group;
            }
            values.sort_unstable();
            let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize] as f64 / 1e3;
            let name = name.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ');
            println!("{name:<44}{:>9.2}{:>9.2}{:>9.2}{:>6}", at(0.5), at(0.99), at(1.0), values.len());
        }
    }
}

async fn pod(mut cri: Cri, node: &Node, name: &str) -> Times {
    let mut times = Times::default();
    let config = node.sandbox(name, 0);
    let whole = Instant::now();
    let began = Instant::now();
    let (sandbox, records) = cri.run_sandbox(config.clone()).await.unwrap();
    times.call("1 RunPodSandbox", began);
    times.steps(&records);
    let began = Instant::now();
    let (id, records) = cri.create(&sandbox, node.container("app", "exec sleep 3600"), config).await.unwrap();
    times.call("2 CreateContainer", began);
    times.steps(&records);
    let began = Instant::now();
    let records = cri.start(&id).await.unwrap();
    times.call("3 StartContainer", began);
    times.call("4 the three together", whole);
    times.steps(&records);
    let began = Instant::now();
    cri.stop(&id, 0).await;
    times.call("5 StopContainer (SIGKILL)", began);
    let began = Instant::now();
    let stop = v1::StopPodSandboxRequest { pod_sandbox_id: sandbox.clone() };
    cri.runtime.stop_pod_sandbox(stop).await.unwrap();
    times.call("6 StopPodSandbox", began);
    let began = Instant::now();
    cri.runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id: sandbox }).await.unwrap();
    times.call("7 RemovePodSandbox", began);
    times
}

/// `--name N` of the command line.
fn option(name: &str, default: usize) -> usize {
    let mut args = std::env::args().skip_while(|a| a != name).skip(1);
    args.next().map_or(default, |n| n.parse().unwrap_or_else(|_| panic!("{name} wants a number, not {n}")))
}

#[tokio::main]
async fn main() {
    let (pods, parallel) = (option("--pods", 50), option("--parallel", 1));
    let Some(node) = node::node() else { return };
    let shutdown = CancellationToken::new();
    let runtime = tokio::spawn(podway_runtime::run::run(node.config.clone(), shutdown.clone()));
    let cri = cri::connect(&node.config.listen, || !runtime.is_finished()).await;
    // The first one makes the bridge and warms the caches.
    pod(cri.clone(), &node, "first").await;
    let names: Vec<String> = (0..pods).map(|n| format!("p{n}")).collect();
    let began = Instant::now();
    let mut runs =
        futures::stream::iter(&names).map(|n| pod(cri.clone(), &node, n)).buffer_unordered(parallel);
    let mut all = Times::default();
    while let Some(times) = runs.next().await {
        all.merge(times);
    }
    drop(runs);
    let took: Duration = began.elapsed();
    all.print();
    println!("\n{pods} pods, {parallel} at a time, started and removed in {took:.2?}");
    drop(cri);
    shutdown.cancel();
    runtime.await.unwrap().unwrap();
    assert_eq!(node.leftovers(), Vec::<String>::new());
}
