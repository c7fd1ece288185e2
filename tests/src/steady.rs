//! What a full node costs while nothing happens: pods that are probed, and the CPU that the node's daemons use for it.

use crate::meter::{self, Memory, Seen, Watcher, cpu_micros};
use crate::namespace;
use anyhow::Context as _;
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::json;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

/// How long all pods together may take to be Ready, or to go.
const LIMIT: Duration = Duration::from_secs(300);

/// How long the daemons are left alone before they are looked at: the starts' last writes are no cost of staying.
const SETTLED: Duration = Duration::from_secs(15);

/// What came out.
pub struct Steady {
    /// How many pods.
    pods: usize,
    /// How long it was looked.
    took: Duration,
    /// By process: its pattern, µs of CPU, and its memory at the end.
    processes: Vec<(String, u64, Memory)>,
}

impl Steady {
    /// A table.
    #[must_use]
    pub fn markdown(&self) -> String {
        let mut out = format!(
            "| {} pods, each with a readiness and a liveness probe by HTTP every 10 s, for {} s | % of a core | RSS, MiB |\n\
             |---|---|---|\n",
            self.pods,
            self.took.as_secs()
        );
        let mut all = 0;
        for (name, micros, memory) in &self.processes {
            all += micros;
            let mib = memory.rss / 1024;
            // Writing into a text does not fail.
            let _ = writeln!(out, "| {name} | {} | {mib} |", percent(*micros, self.took));
        }
        let _ = writeln!(out, "| together | {} | |", percent(all, self.took));
        out
    }
}

/// `micros` of CPU in `took`, as a share of one core: `4.2`.
fn percent(micros: u64, took: Duration) -> String {
    let tenths = u128::from(micros).saturating_mul(1000).checked_div(took.as_micros()).unwrap_or(0);
    format!("{}.{}", tenths / 10, tenths % 10)
}

/// Starts `count` pods that are probed, and looks for `window` what `processes` use.
///
/// # Errors
/// When a pod does not start or go.
pub async fn measure(
    pods: Api<Pod>,
    watcher: &mut Watcher,
    processes: &[String],
    count: usize,
    window: Duration,
) -> anyhow::Result<Steady> {
    let names: Vec<String> = (0..count).map(|i| format!("steady-{i}")).collect();
    let made = names.iter().map(|name| {
        let pods = pods.clone();
        async move {
            let probe = json!({"httpGet": {"path": "/", "port": 8080}, "periodSeconds": 10});
            let main = json!({"readinessProbe": probe, "livenessProbe": probe});
            let serve = "mkdir /tmp/w; echo ok > /tmp/w/index.html; exec httpd -f -p 8080 -h /tmp/w";
            let pod: Pod = serde_json::from_value(namespace::pod(name, serve, json!({"main": main})))?;
            pods.create(&PostParams::default(), &pod).await.context("creating a pod")?;
            anyhow::Ok(())
        }
    });
    try_join_all(made).await?;
    let ready: Vec<Seen> = names.iter().cloned().map(Seen::Ready).collect();
    watcher.all(&ready, LIMIT).await?;
    tokio::time::sleep(SETTLED).await;
    let used = || processes.iter().map(|p| cpu_micros(std::slice::from_ref(p))).collect::<Vec<u64>>();
    let (before, begun) = (used(), Instant::now());
    tokio::time::sleep(window).await;
    let (after, took) = (used(), begun.elapsed());
    let each = processes.iter().zip(before.iter().zip(&after));
    let processes = each
        .map(|(p, (before, after))| (p.clone(), after.saturating_sub(*before), meter::memory(p)))
        .collect();
    for name in &names {
        pods.delete(name, &DeleteParams::default()).await.context("deleting a pod")?;
    }
    let gone: Vec<Seen> = names.into_iter().map(Seen::Gone).collect();
    watcher.all(&gone, LIMIT).await?;
    Ok(Steady { pods: count, took, processes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_of_a_core() {
        let took = Duration::from_secs(60);
        assert_eq!(
            ["0.0", "4.2", "150.0"],
            [0, 2_520_000, 90_000_000].map(|micros| percent(micros, took)).each_ref().map(String::as_str)
        );
        let one = ("podway-agent".to_owned(), 600_000, Memory::default());
        let text = Steady { pods: 110, took, processes: vec![one.clone(), one] }.markdown();
        assert!(
            text.contains("| podway-agent | 1.0 | 0 |") && text.contains("| together | 2.0 | |"),
            "{text}"
        );
    }
}
