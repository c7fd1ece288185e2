//! What it costs to be observed: the same pods with and without a `PodFlow`, block by block in one run, so that whatever
//! else the machine does falls on both alike.
//!
//! Recording itself is not switched off: the conditions, the metrics and the waterfall are made of it in either case.
//! What is compared is the annotation `podway.dev/podflow: "off"`.
//!
//! All pods stand for the same time and the next one comes as long after them: a pod that is deleted the moment it is
//! Ready spares what the other one has to do in its life, and what the garbage collector has to do for one pod is not
//! another one's start.

use crate::figures::Times;
use crate::meter::{Seen, Watcher, cpu_micros};
use crate::namespace;
use crate::wait;
use anyhow::Context as _;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams};
use podway_api::PodFlow;
use podway_api::podflow::OBJECT_LIMIT;
use serde_json::json;
use std::time::{Duration, Instant};

/// How long a pod, or its flow, may take.
const LIMIT: Duration = Duration::from_secs(120);
/// How many pods are started with, or without, before the other side's turn: CPU time is told in ticks, of which each
/// change of sides may lose some.
const BLOCK: usize = 25;
/// How long a pod stands from Ready on, and what comes between it and the next one.
const REST: Duration = Duration::from_millis(500);

/// What came out of one side.
#[derive(Default)]
pub struct Side {
    /// create → Ready.
    pub starts: Times,
    /// µs of CPU of the processes that were asked for.
    pub cpu_micros: u64,
    /// How many pods.
    pub pods: u64,
}

impl Side {
    fn cpu_each(&self) -> u64 {
        self.cpu_micros / self.pods.max(1)
    }
}

/// Both sides, and the largest `PodFlow`.
#[derive(Default)]
pub struct Cost {
    /// With a `PodFlow`.
    pub on: Side,
    /// Without.
    pub off: Side,
    /// In bytes of JSON, as it is stored.
    pub largest: usize,
    /// Of those, what `managedFields` take: the API server's own book-keeping.
    pub managed: usize,
}

impl Cost {
    /// A table, each row with whether it is within what it may be.
    #[must_use]
    pub fn markdown(&self) -> String {
        let (on, off) = (self.on.starts.median(), self.off.starts.median());
        let slower = on.saturating_sub(off);
        let hundredths = slower.saturating_mul(10_000).checked_div(off).unwrap_or(0);
        let cpu = self.on.cpu_each().saturating_sub(self.off.cpu_each());
        let verdict = |holds: bool| if holds { "holds" } else { "DOES NOT HOLD" };
        let ms = |micros: u64| format!("{}.{:02}", micros / 1000, micros % 1000 / 10);
        format!(
            "| of {} pods with a PodFlow and {} without | with | without | cost | at most | |\n|---|---|---|---|---|---|\n\
             | create → Ready, p50, ms | {} | {} | {}.{:02} % | 2 % | {} |\n\
             | CPU of scheduler, agents and runtimes per pod, ms | {} | {} | {} | 1 ms | {} |\n\
             | the largest PodFlow as it is stored, bytes | {} | 0 | {} | {OBJECT_LIMIT} | {} |\n\
             | of it managedFields, bytes | {} | 0 | {} | | |\n",
            self.on.pods,
            self.off.pods,
            ms(on),
            ms(off),
            hundredths / 100,
            hundredths % 100,
            verdict(hundredths <= 200),
            ms(self.on.cpu_each()),
            ms(self.off.cpu_each()),
            ms(cpu),
            verdict(cpu <= 1000),
            self.largest,
            self.largest,
            verdict(self.largest <= OBJECT_LIMIT),
            self.managed,
            self.managed,
        )
    }
}

/// Starts `count` pods of each side, one by one.
///
/// # Errors
/// When a pod does not start or go.
pub async fn measure(
    pods: Api<Pod>,
    flows: Api<PodFlow>,
    watcher: &mut Watcher,
    processes: &[String],
    count: usize,
) -> anyhow::Result<Cost> {
    let mut cost = Cost::default();
    let mut made = 0;
    // Opens connections and pulls the image.
    one(&pods, &flows, watcher, "warm", true).await?;
    for block in 0..count.div_ceil(BLOCK) * 2 {
        // With, without, without, with: what the machine does more or less of as time goes on falls on both.
        let on = block % 4 == 0 || block % 4 == 3;
        let before = cpu_micros(processes);
        for _ in 0..BLOCK.min(count) {
            made += 1;
            let (took, size) = one(&pods, &flows, watcher, &format!("seen-{made}"), on).await?;
            if let Some((stored, managed)) = size {
                (cost.largest, cost.managed) = (cost.largest.max(stored), cost.managed.max(managed));
            }
            let side = if on { &mut cost.on } else { &mut cost.off };
            side.starts.add(took);
            side.pods += 1;
        }
        let used = cpu_micros(processes).saturating_sub(before);
        let side = if on { &mut cost.on } else { &mut cost.off };
        side.cpu_micros += used;
    }
    Ok(cost)
}

/// One pod from its creation until it is gone: how long it took to be Ready, and how large its flow is, and the
/// `managedFields` in that.
async fn one(
    pods: &Api<Pod>,
    flows: &Api<PodFlow>,
    watcher: &mut Watcher,
    name: &str,
    on: bool,
) -> anyhow::Result<(Duration, Option<(usize, usize)>)> {
    let mut pod = namespace::pod(name, namespace::STAY, json!({}));
    if !on {
        pod["metadata"]["annotations"] = json!({podway_api::annotations::PODFLOW: "off"});
    }
    let pod: Pod = serde_json::from_value(pod)?;
    let start = Instant::now();
    pods.create(&PostParams::default(), &pod).await.context("creating a pod")?;
    let ready = watcher.all(&[Seen::Ready(name.to_owned())], LIMIT).await?;
    tokio::time::sleep_until((ready + REST).into()).await;
    let mut size = None;
    if on {
        let whole = |f: &PodFlow| f.status.as_ref().is_some_and(|s| s.phase == "Ready");
        let flow =
            wait::until(flows.clone(), &format!("metadata.name={name}"), "its flow", LIMIT, whole).await?;
        let managed = serde_json::to_vec(&flow.metadata.managed_fields)?.len();
        size = Some((serde_json::to_vec(&flow)?.len(), managed));
    }
    pods.delete(name, &DeleteParams::default()).await.context("deleting a pod")?;
    let gone = watcher.all(&[Seen::Gone(name.to_owned())], LIMIT).await?;
    tokio::time::sleep_until((gone + REST).into()).await;
    Ok((ready.duration_since(start), size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_its_limit_is_said() {
        let side = |micros: u64, cpu_micros| {
            let mut starts = Times::default();
            starts.add(Duration::from_micros(micros));
            Side { starts, cpu_micros, pods: 1 }
        };
        let good = Cost { on: side(101_000, 5_000), off: side(100_000, 4_500), largest: 8192, managed: 900 };
        assert!(!good.markdown().contains("NOT"), "{}", good.markdown());
        let bad = Cost { on: side(110_000, 9_000), off: side(100_000, 1_000), largest: 8193, managed: 900 };
        assert_eq!(bad.markdown().matches("DOES NOT HOLD").count(), 3, "{}", bad.markdown());
    }
}
