//! A pod's start reaches a receiver of OTLP as one trace, below the trace of whoever made the pod.

use anyhow::ensure;
use k8s_openapi::api::core::v1::Pod;
use podway_tests::cluster::TRACES;
use podway_tests::namespace::{Ns, STAY, pod};
use podway_tests::otlp::{Receiver, Span};
use serde_json::json;
use std::collections::BTreeSet;

pub async fn one_over_all_daemons_below_the_pods_own(ns: Ns) -> anyhow::Result<()> {
    let mut receiver = Receiver::start(&ns.cluster.layout.root().join(TRACES)).await?;
    let (trace, parent) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let mut made = pod("traced", STAY, json!({}));
    made["metadata"]["annotations"]["tracing.k8s.io/traceparent"] = format!("00-{trace}-{parent}-01").into();
    let mut unsampled = pod("unsampled", STAY, json!({}));
    unsampled["metadata"]["annotations"]["tracing.k8s.io/traceparent"] =
        "00-00000000000000000000000000000001-00f067aa0ba902b7-00".into();
    let _: Pod = ns.create(made).await?;
    let _: Pod = ns.create(unsampled).await?;
    ns.ready("traced").await?;
    let services = |spans: &[Span]| spans.iter().map(|s| s.service.clone()).collect::<BTreeSet<_>>();
    // The runtime's resource is the last of a request.
    let whole = |spans: &[Span]| services(spans).contains("podway-runtime");
    let spans = receiver.trace(trace, whole).await?;
    println!("{spans:#?}");
    let wanted = ["kube-apiserver", "podway-agent", "podway-runtime", "podway-scheduler"];
    ensure!(services(&spans).iter().eq(wanted), "{spans:#?}");
    let roots: Vec<&Span> = spans.iter().filter(|s| s.parent == parent).collect();
    ensure!(roots.len() == 1 && roots[0].name == "pod start", "{roots:#?}");
    ensure!(spans.iter().all(|s| s == roots[0] || s.parent == roots[0].id), "{spans:#?}");
    for (service, name) in
        [("kube-apiserver", "Persisted"), ("podway-scheduler", "Bound"), ("podway-agent", "Ready")]
    {
        ensure!(
            spans.iter().any(|s| s.service == service && s.name == name),
            "{service}: {name}: {spans:#?}"
        );
    }
    Ok(())
}
