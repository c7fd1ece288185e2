//! The flow of a pod: every step is there with its evidence, and it costs what it may.

use anyhow::{Context as _, ensure};
use k8s_openapi::api::core::v1::Pod;
use podway_flow::{Flow, Outcome, Phase, Resolution};
use podway_tests::audit;
use podway_tests::namespace::{Ns, STAY, pod};
use serde_json::json;
use std::collections::BTreeSet;
use std::time::Duration;

/// What DESIGN section 1 promises as evidence, by phase: one of the phase's records has each key.
const EVIDENCE: &[(Phase, &[&str])] = &[
    (Phase::Requested, &["user", "verb", "decision"]),
    (Phase::Persisted, &["resourceVersion", "code"]),
    (Phase::NodesFiltered, &["nodes", "feasible"]),
    (Phase::NodesScored, &["chosen", "margin"]),
    (Phase::Bound, &["node", "scheduler"]),
    (Phase::SandboxCreated, &["sandboxId", "cgroupParent"]),
    (Phase::NetworkConfigured, &["ips"]),
    (Phase::ImagesPulled, &["image", "digest"]),
    (Phase::RootfsPrepared, &["layers"]),
    (Phase::SpecGenerated, &["sha256", "path"]),
    (Phase::ContainersCreated, &["argv", "runcVersion", "pid", "cgroup"]),
    (Phase::ContainersStarted, &["pid"]),
    (Phase::StatusReported, &["resourceVersion"]),
];

pub async fn all_18_steps_with_their_evidence(ns: Ns) -> anyhow::Result<()> {
    let _: Pod = ns.create(pod("seen", STAY, json!({}))).await?;
    ns.ready("seen").await?;
    ns.whole_flow("seen").await?;
    let answer = ns.cluster.podway(&["flow", "seen", "-n", &ns.name, "-o", "json"]).await?;
    ensure!(answer.code == 0, "podway flow: {}", answer.err);
    let flow: Flow = serde_json::from_str(&answer.out).context("podway flow -o json")?;

    let steps: BTreeSet<u8> = flow.phases().iter().flat_map(|p| p.phase.steps().iter().copied()).collect();
    let missing: Vec<u8> = (1..=18).filter(|step| !steps.contains(step)).collect();
    ensure!(missing.is_empty(), "steps {missing:?} are not shown");
    for phase in Phase::ALL {
        let summary = flow.summary(phase).with_context(|| format!("{phase} is not recorded"))?;
        ensure!(
            matches!(summary.outcome, Outcome::Succeeded | Outcome::Skipped) && summary.end.is_some(),
            "{phase} is {:?}: {} {}",
            summary.outcome,
            summary.reason,
            summary.message
        );
        ensure!(summary.resolution == Resolution::Micros, "{phase} is coarse");
    }
    for (phase, keys) in EVIDENCE {
        let records = flow.records_of(*phase);
        for key in *keys {
            ensure!(
                records.iter().any(|r| r.evidence.get(*key).is_some_and(|v| !v.is_empty())),
                "{phase} has no evidence {key:?}: {records:?}"
            );
        }
    }
    let answer = ns.cluster.podway(&["flow", "seen", "-n", &ns.name]).await?;
    ensure!(answer.code == 0 && answer.out.lines().all(|l| l.chars().count() <= 80), "{}", answer.out);
    for phase in Phase::ALL {
        ensure!(answer.out.contains(phase.name()), "the waterfall has no {phase}:\n{}", answer.out);
    }
    println!("{}", answer.out);
    Ok(())
}

pub async fn a_start_costs_at_most_7_writes_and_a_settled_pod_none(ns: Ns) -> anyhow::Result<()> {
    let log = ns.cluster.layout.audit_log();
    let mark = audit::mark(&log)?;
    // A pull that takes long, or brings something, is told of by two events more.
    let there = json!({"main": {"imagePullPolicy": "IfNotPresent"}});
    let _: Pod = ns.create(pod("frugal", STAY, there)).await?;
    ns.ready("frugal").await?;
    ns.whole_flow("frugal").await?;
    // What is still to be written of the start (events) is written by now.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let requests = audit::since(&log, mark, &ns.name)?;
    let shown = || requests.iter().map(|r| format!("\n  {r}")).collect::<String>();
    let writes = requests.iter().filter(|r| r.is_write() && !r.is_of_namespace()).count();
    let gets = requests.iter().filter(|r| r.verb == "get").count();
    println!("a start: {writes} writes, {gets} GETs{}", shown());
    ensure!(writes <= 7, "{writes} writes:{}", shown());
    ensure!(gets == 0, "{gets} GETs:{}", shown());

    let mark = audit::mark(&log)?;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let settled = audit::since(&log, mark, &ns.name)?;
    ensure!(settled.is_empty(), "a settled pod caused {settled:?}");
    Ok(())
}
