//! A run that is recorded, and replayed.

use super::{LIMIT, Live, Scheduler};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use podway_scheduler::Config;
use podway_scheduler::audit::Fault;
use podway_scheduler::replay::replay;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

/// More than the two nodes have places for, so that some decisions are refusals.
const PODS: usize = 250;

/// One of some templates.
fn more(i: usize) -> Value {
    let labels = json!({"app": format!("app-{}", i % 3)});
    let selector = json!({"matchLabels": labels});
    let spec = match i % 5 {
        0 => json!({"topologySpreadConstraints": [{"maxSkew": 40, "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "DoNotSchedule", "labelSelector": selector}]}),
        1 => json!({"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution":
            [{"weight": 5, "podAffinityTerm": {"labelSelector": selector, "topologyKey": "kubernetes.io/hostname"}}]}}}),
        _ => json!({}),
    };
    json!({"labels": labels, "spec": spec})
}

/// Two audits of what has settled are made, and in the end nothing is wrong.
async fn audits_find_nothing(scheduler: &Scheduler) {
    const AUDITS: &str = "podway_scheduler_audits_total ";
    let before = scheduler.metric(AUDITS).await;
    let more = async {
        while scheduler.metric(AUDITS).await < before + 2.0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LIMIT, more).await.expect("audits go on");
    for kind in Fault::KINDS {
        scheduler.metric_is(&format!("podway_scheduler_cache_faults{{kind=\"{kind}\"}} "), 0.0).await;
    }
}

pub(super) async fn a_recorded_run_comes_to_the_same_decisions(live: &Live) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("run.jsonl");
    let config = Config {
        record: Some(file.clone()),
        audit: Duration::from_millis(100),
        leader_election: None,
        ..Config::default()
    };
    let scheduler = Scheduler::with(&live.cluster, config, |clients| clients).await;
    futures::stream::iter(0..PODS)
        .for_each_concurrent(8, |i| async move { drop(live.pod(&format!("r-{i}"), "1m", more(i)).await) })
        .await;
    let settled = async {
        let mut told = BTreeSet::new();
        let mut stream = std::pin::pin!(
            watcher(live.pods(), watcher::Config::default()).default_backoff().applied_objects()
        );
        while told.len() < PODS
            && let Some(pod) = stream.next().await
        {
            told.extend(pod.ok().filter(|p| super::scheduled(p).is_some()).map(|p| p.name_any()));
        }
    };
    tokio::time::timeout(3 * LIMIT, settled).await.expect("every pod is decided");
    audits_find_nothing(&scheduler).await;
    scheduler.stop().await;
    let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
    Api::<Pod>::default_namespaced(live.client.clone())
        .delete_collection(&now, &ListParams::default())
        .await
        .unwrap();

    assert_eq!(std::fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
    let text = std::fs::read_to_string(&file).unwrap();
    let report = replay(text.as_bytes()).unwrap();
    assert!(report.differences.is_empty(), "{:?}", report.differences.first());
    assert!(report.decisions >= PODS && report.placed < PODS && report.placed > 0, "{report:?}");
    // Another cluster comes to others.
    let other = text.replace("\"cpu\":\"4\"", "\"cpu\":\"2\"");
    assert_ne!(other, text);
    assert!(!replay(other.as_bytes()).unwrap().differences.is_empty());
}
