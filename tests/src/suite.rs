//! The program of a suite: count, up, cases, down, count.
//!
//! It speaks enough of libtest's command line (names to filter by, `--list`, flags that it ignores)
//! and prints its result line, so that `cargo test` and `tests/run` take it for a test like others.
//! `PODWAY_E2E_STATE_DIR=DIR` runs the cases on a cluster that is kept, for work on a case.

use crate::cluster::Cluster;
use crate::leaks::Snapshot;
use crate::namespace::{STAY, pod, with_temp_ns};
use anyhow::{Context as _, ensure};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// How many cases run beside each other: they wait more than they work.
const TOGETHER: usize = 4;
/// Scheduling is a choice with two.
const NODES: u8 = 2;

/// What a case does.
pub type Run = fn(Arc<Cluster>) -> BoxFuture<'static, anyhow::Result<()>>;

/// One case.
#[derive(Clone, Copy)]
pub struct Case {
    /// Its name.
    pub name: &'static str,
    /// It disturbs others (kills a daemon, cordons a node), and so comes after them, alone.
    pub alone: bool,
    /// What it does.
    pub run: Run,
}

struct Args {
    filters: Vec<String>,
    list: bool,
}

impl Args {
    fn parse(args: impl Iterator<Item = String>) -> Self {
        let mut parsed = Args { filters: Vec::new(), list: false };
        let mut args = args.peekable();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--list" => parsed.list = true,
                // Flags of libtest with a value.
                "--test-threads" | "--format" | "--color" | "--skip" | "--logfile" | "-Z" => {
                    args.next();
                }
                flag if flag.starts_with('-') => {}
                _ => parsed.filters.push(arg),
            }
        }
        parsed
    }

    fn takes(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|f| name.contains(f.as_str()))
    }
}

/// Runs a suite.
#[must_use]
pub fn main(cases: &[Case]) -> ExitCode {
    let args = Args::parse(std::env::args().skip(1));
    let taken: Vec<Case> = cases.iter().filter(|c| args.takes(c.name)).copied().collect();
    if args.list {
        for case in taken {
            println!("{}: test", case.name);
        }
        return ExitCode::SUCCESS;
    }
    if taken.is_empty() {
        println!("test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; {} filtered out", cases.len());
        return ExitCode::SUCCESS;
    }
    let left_out = cases.len() - taken.len();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("\nrunning {} cases", taken.len());
    let mut tally = Tally::default();
    runtime.block_on(all(&taken, &mut tally));
    let word = if tally.failed.is_empty() { "ok" } else { "FAILED" };
    if !tally.failed.is_empty() {
        println!("\nfailures:");
        for (name, error) in &tally.failed {
            println!("    {name}: {error}");
        }
    }
    println!(
        "\ntest result: {word}. {} passed; {} failed; 0 ignored; 0 measured; {left_out} filtered out",
        tally.passed,
        tally.failed.len()
    );
    if tally.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Default)]
struct Tally {
    passed: usize,
    failed: Vec<(&'static str, String)>,
}

impl Tally {
    fn add(&mut self, name: &'static str, start: Instant, result: anyhow::Result<()>) {
        let took = start.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                println!("test {name} ... ok ({took:.1} s)");
                self.passed += 1;
            }
            Err(error) => {
                println!("test {name} ... FAILED ({took:.1} s): {error:#}");
                self.failed.push((name, format!("{error:#}")));
            }
        }
    }
}

async fn all(cases: &[Case], tally: &mut Tally) {
    let kept = std::env::var_os("PODWAY_E2E_STATE_DIR").map(PathBuf::from);
    // Short, since socket paths have room for 107 bytes.
    let state_dir =
        kept.clone().unwrap_or_else(|| PathBuf::from(format!("/tmp/podway-e2e-{}", std::process::id())));
    let bare = Snapshot::take(&state_dir);
    let start = Instant::now();
    let cluster = Cluster::up(&state_dir, NODES).await.context("podway up");
    match cluster {
        Err(error) => tally.add("podway_up", start, Err(error)),
        Ok(cluster) => {
            tally.add("podway_up", start, Ok(()));
            on(Arc::new(cluster), cases, tally).await;
        }
    }
    if kept.is_some() {
        return;
    }
    let start = Instant::now();
    let down = async {
        Cluster::down(&state_dir).await?;
        nothing_new(&Snapshot::take(&state_dir), &bare)?;
        ensure!(!state_dir.exists(), "{} is still there", state_dir.display());
        Ok(())
    };
    tally.add("podway_down_leaves_nothing", start, down.await);
}

async fn on(cluster: Arc<Cluster>, cases: &[Case], tally: &mut Tally) {
    let state_dir = cluster.layout.root().to_owned();
    let start = Instant::now();
    tally.add("the_first_pods_of_each_node", start, first_pods(cluster.clone()).await);
    let before = Snapshot::take(&state_dir);
    let together = cases.iter().filter(|c| !c.alone).map(|case| {
        let cluster = cluster.clone();
        async move {
            let start = Instant::now();
            (case.name, start, run(case, cluster).await)
        }
    });
    let mut running = futures::stream::iter(together).buffer_unordered(TOGETHER);
    while let Some((name, start, result)) = running.next().await {
        tally.add(name, start, result);
    }
    for case in cases.iter().filter(|c| c.alone) {
        tally.add(case.name, Instant::now(), run(case, cluster.clone()).await);
    }
    // Every namespace is gone; the daemons are the same ones or their successors.
    let after = Snapshot::take(&state_dir);
    println!("before the cases: {}\nafter them:       {}", before.counts(), after.counts());
    let (before, after) = (without_daemons(before, &state_dir), without_daemons(after, &state_dir));
    tally.add("the_pods_leave_nothing", Instant::now(), nothing_new(&after, &before));
}

/// Runs a pod of each QoS class on each node. What a node makes for its first one (the bridge, the
/// classes' cgroups) is the node's own and goes with it in `podway down`: what the cases leave is
/// counted from here.
async fn first_pods(cluster: Arc<Cluster>) -> anyhow::Result<()> {
    let classes = [
        ("best-effort", json!({})),
        ("burstable", json!({"requests": {"cpu": "1m"}})),
        ("guaranteed", json!({"limits": {"cpu": "10m", "memory": "16Mi"}})),
    ];
    with_temp_ns(cluster, "first", |ns| async move {
        let mut names = Vec::new();
        for node in 0..NODES {
            for (class, resources) in &classes {
                let name = format!("{class}-{node}");
                let spec = json!({"nodeName": format!("podway-{node}"), "main": {"resources": resources}});
                let _: Pod = ns.create(pod(&name, STAY, spec)).await?;
                names.push(name);
            }
        }
        for name in &names {
            ns.ready(name).await?;
        }
        Ok(())
    })
    .await
}

async fn run(case: &Case, cluster: Arc<Cluster>) -> anyhow::Result<()> {
    // A task of its own, so that a panic is a failure of this case only.
    match tokio::spawn((case.run)(cluster)).await {
        Ok(result) => result,
        Err(error) => Err(error).context("the case panicked"),
    }
}

/// Daemons that were killed have successors with other process ids.
fn without_daemons(mut snapshot: Snapshot, state_dir: &Path) -> Snapshot {
    let marked = podway_cluster::process::marked(state_dir).unwrap_or_default();
    let daemons: Vec<String> = marked.iter().map(|(pid, _)| format!("{pid} ")).collect();
    snapshot
        .processes
        .retain(|p| p.contains("podway-monitor") || !daemons.iter().any(|pid| p.starts_with(pid.as_str())));
    snapshot
}

fn nothing_new(after: &Snapshot, before: &Snapshot) -> anyhow::Result<()> {
    let left = after.new_since(before);
    ensure!(left.is_empty(), "{} left:\n  {}", left.len(), left.join("\n  "));
    Ok(())
}
