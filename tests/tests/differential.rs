//! A short part of the differential test, with a fixed seed; `just differential` runs 2,000 cases.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test: a panic is its failure")]

use podway_scheduler::cycle::Trace;
use podway_scheduler::framework::Point;
use podway_scheduler::metrics::{AttemptResult, Health, Metrics, text};
use podway_tests::differential::families::{Family, families};
use podway_tests::differential::profiles;
use podway_tests::differential::shadow::Shadowed;

const SEED: u64 = 20_261_128;
const CASES: usize = 120;

#[tokio::test(flavor = "multi_thread")]
async fn decides_as_a_stock_kube_scheduler() {
    let dir = tempfile::tempdir().unwrap();
    let report = podway_tests::differential::run(dir.path(), SEED, CASES).await.unwrap();
    println!("{}", report.table());
    assert!(report.cases >= CASES);
    assert!(report.differences.is_empty(), "{}", report.differences.join("\n\n"));
    metrics_are_upstreams(&report.metrics);
    shadow_agrees(&report.shadowed);
    // The cases meet what they are for.
    for plugin in [
        "NodeAffinity",
        "NodeResourcesFit",
        "TaintToleration",
        "PodTopologySpread",
        "InterPodAffinity",
        "Extender",
    ] {
        for what in ["refused", "scored"] {
            assert!(report.by.contains_key(&(plugin.to_owned(), what)), "no case in which {plugin} {what}");
        }
    }
    for name in profiles::OTHERS {
        let cases = report.by.get(&(format!("profile {name}"), "decided"));
        assert!(cases.is_some_and(|cases| *cases >= 5), "{cases:?} cases of profile {name}");
    }
}

/// It agrees with the stock scheduler on all pods but the one that this places by another profile's rules, and tells
/// what each would give either node.
fn shadow_agrees(shadowed: &Shadowed) {
    assert_eq!((shadowed.agreed, shadowed.disagreements.len()), (8, 1), "{shadowed:?}");
    let told = &shadowed.disagreements[0];
    assert_eq!((&told["pod"], &told["result"]), (&"d0/packed".into(), &"lower".into()));
    assert_eq!((&told["node"], &told["theirs"]["node"]), (&"shadow-small".into(), &"shadow-small".into()));
    assert_eq!(told["ours"]["node"], "shadow-large");
    assert!(told["ours"]["total"].as_i64() > told["theirs"]["total"].as_i64(), "{told}");
    for side in ["ours", "theirs"] {
        let plugins = told[side]["plugins"].as_array().unwrap();
        assert!(plugins.iter().any(|p| p["plugin"] == "NodeResourcesFit"), "{told}");
    }
}

/// Each STABLE and BETA metric of the stock scheduler's own /metrics is ours too: kind, labels and buckets.
fn metrics_are_upstreams(stock: &str) {
    let metrics = Metrics::new();
    metrics.attempt(AttemptResult::Scheduled, "p", 1);
    metrics.scheduled(1, 1);
    metrics.preempted(Some(1));
    metrics.set(&Health { refused: [(("NodeName", "p".to_owned()), 1)].into(), ..Health::default() });
    metrics.incoming([(("active", "NodeAdd"), 1)].into());
    metrics.point(Point::Filter, "Success", "p", 1);
    metrics.permit_waited("Success", 1);
    let trace = Trace { evaluated: [(("NodeName", Point::Filter), 1)].into(), ..Trace::default() };
    metrics.trace(&trace, "p");
    let ours = families(&text::prometheus(&metrics.openmetrics().unwrap()));
    let stock = families(stock);
    let promised = |f: &Family| ["STABLE", "BETA"].contains(&f.stability.as_str());
    let wanted: Vec<_> =
        stock.iter().filter(|(name, f)| name.starts_with("scheduler_") && promised(f)).collect();
    for name in
        ["schedule_attempts_total", "pending_pods", "queue_incoming_pods_total", "plugin_evaluation_total"]
    {
        assert!(
            wanted.iter().any(|(n, _)| **n == format!("scheduler_{name}")),
            "the stock one has no {name}"
        );
    }
    for (name, theirs) in wanted {
        let family = ours.get(name).unwrap_or_else(|| panic!("we have no {name}"));
        let seen = |f: &Family| (f.kind.clone(), f.labels.clone(), f.bounds.clone());
        assert_eq!(seen(family), seen(theirs), "{name}");
    }
}
