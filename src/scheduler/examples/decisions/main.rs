//! What a decision costs, without an API server: the queue, the cache and the cycle of the loop, on a cluster
//! that is made up. One row for each workload of upstream's scheduler_perf that applies, and some that are
//! harder than those. All nodes are looked at: nothing is sampled.
//!
//! `cargo run --release -p podway-scheduler --example decisions -- [--nodes 5000] [--pods 50000] [--measured 2000]
//! [--only NAME] [--json FILE]`
//!
//! `cargo test -p podway-scheduler --example decisions` runs all of them in a small size.

#![expect(clippy::unwrap_used, reason = "a measurement: a panic is its failure")]

mod measure;
mod workloads;

use measure::{Figures, measure};
use serde_json::{Value, json};
use workloads::{ALL, Size};

/// What the command line says.
struct Asked {
    size: Size,
    only: Option<String>,
    json: Option<String>,
}

fn asked() -> Asked {
    let mut asked =
        Asked { size: Size { nodes: 5000, pods: 50_000, measured: 2000 }, only: None, json: None };
    let mut args = std::env::args().skip(1);
    while let Some(key) = args.next() {
        let value = args.next().unwrap_or_default();
        match key.as_str() {
            "--nodes" => asked.size.nodes = value.parse().unwrap(),
            "--pods" => asked.size.pods = value.parse().unwrap(),
            "--measured" => asked.size.measured = value.parse().unwrap(),
            "--only" => asked.only = Some(value),
            "--json" => asked.json = Some(value),
            other => eprintln!("{other} is not an option: it is left out"),
        }
    }
    asked
}

fn row(name: &str, f: &Figures) -> String {
    format!(
        "| {name} | {:.0} | {:.2} / {:.2} / {:.2} | {:.0} | {} | {} in {:.0} ms |",
        f.per_second, f.p50_ms, f.p99_ms, f.max_ms, f.cpu_micros, f.refused, f.waiting, f.stuck_ms
    )
}

fn document(name: &str, f: &Figures) -> Value {
    json!({"workload": name, "decisionsPerSecond": f.per_second, "p50Milliseconds": f.p50_ms,
        "p99Milliseconds": f.p99_ms, "maxMilliseconds": f.max_ms, "cpuMicrosecondsPerDecision": f.cpu_micros,
        "placed": f.placed, "refused": f.refused, "filterCalls": f.filter_calls, "waiting": f.waiting,
        "millisecondsToRefuseThem": f.stuck_ms})
}

fn main() {
    let Asked { size, only, json: file } = asked();
    println!("{} nodes, {} pods there, {} decided\n", size.nodes, size.pods, size.measured);
    println!(
        "| workload | decisions/s | CPU of a decision, p50 / p99 / max, ms | loop, CPU µs each | refused | wait all the while |"
    );
    println!("|---|---|---|---|---|---|");
    let mut all = Vec::new();
    for workload in ALL.iter().filter(|w| only.as_ref().is_none_or(|o| w.name.contains(o.as_str()))) {
        let figures = measure(workload, size);
        println!("{}", row(workload.name, &figures));
        all.push(document(workload.name, &figures));
    }
    if let Some(file) = file {
        let size = json!({"nodes": size.nodes, "pods": size.pods, "measured": size.measured});
        let text = serde_json::to_string_pretty(&json!({"size": size, "workloads": all})).unwrap();
        std::fs::write(file, text).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So that the measurement does not rot: what it counts, not what it takes.
    #[test]
    fn every_workload_decides_as_it_should() {
        // Nodes enough for one pod each of those that repel each other.
        let size = Size { nodes: 80, pods: 240, measured: 25 };
        for workload in ALL {
            let figures = measure(workload, size);
            assert_eq!(figures.placed + figures.refused, size.measured, "{}", workload.name);
            assert_eq!(figures.refused, 0, "{}", workload.name);
            assert_eq!(figures.waiting, workload.waiting(size).count(), "{}", workload.name);
            assert!(figures.filter_calls > 0, "{}", workload.name);
        }
    }
}
