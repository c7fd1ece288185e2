//! The harness itself, on a control plane without nodes: what it waits for comes, what it counts is
//! there, and what it makes goes.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams};
use podway_cluster::{UpOptions, down, up};
use podway_tests::leaks::Snapshot;
use podway_tests::meter::{Seen, Watcher};
use podway_tests::namespace::{STAY, condition, pod};
use podway_tests::prometheus::{Prometheus, Target, Tls};
use podway_tests::{Cluster, audit, wait, with_temp_ns};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn the_harness_on_a_real_control_plane() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = dir.path().join("state");
    let before = Snapshot::take(&state_dir);
    let options =
        UpOptions { state_dir: state_dir.clone(), control_plane_only: true, ..UpOptions::default() };
    let server = up(options, |line| eprintln!("{line}")).await.unwrap().server;
    let during = Snapshot::take(&std::fs::canonicalize(&state_dir).unwrap());
    assert_eq!(during.processes.difference(&before.processes).count(), 3, "{:?}", during.processes);

    let cluster = Arc::new(Cluster::attach(&state_dir, 0).await.unwrap());
    let result = with_temp_ns(cluster.clone(), "harness", |ns| async move {
        let log = ns.cluster.layout.audit_log();
        let mark = audit::mark(&log)?;
        let api: Api<Pod> = ns.api();
        let mut watcher = Watcher::new(api.clone());
        let made: Pod = ns.create(pod("one", STAY, json!({"schedulerName": "nobody"}))).await?;
        let seen = ns.pod("one", "itself", |p| p.metadata.uid == made.metadata.uid).await?;
        assert_eq!(condition(&seen, "Ready"), None);
        let limit = Duration::from_millis(300);
        let late = wait::until(api.clone(), "metadata.name=one", "Ready", limit, |p: &Pod| {
            condition(p, "Ready") == Some("True")
        })
        .await
        .unwrap_err();
        assert!(late.to_string().contains("Ready (metadata.name=one) did not come in 300ms"), "{late}");
        assert!(late.to_string().contains("\"name\":\"one\""), "{late}");

        let (answer, code) =
            ns.cluster.post(&format!("/api/v1/namespaces/{}/pods", ns.name), b"{}".to_vec()).await?;
        assert_eq!(code, 422, "{answer}");
        assert!(ns.kubectl(&["get", "pods", "-o", "name"]).await? == "pod/one\n");
        let refused = ns.kubectl_any(&["get", "pod", "two"], "").await?;
        assert!(refused.code == 1 && refused.err.contains("NotFound"), "{refused:?}");
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        api.delete("one", &now).await?;
        watcher.all(&[Seen::Gone("one".into())], Duration::from_secs(10)).await?;
        ns.gone(&made).await?;

        let requests = audit::since(&log, mark, &ns.name)?;
        let ours: Vec<String> =
            requests.iter().filter(|r| r.user.username == "podway-admin").map(ToString::to_string).collect();
        assert_eq!(
            ours,
            [
                "create pods one by podway-admin",
                "create pods  by podway-admin",
                "get pods two by podway-admin",
                "delete pods one by podway-admin"
            ]
        );

        // With a client certificate, as it will scrape agents.
        let layout = &ns.cluster.layout;
        let tls = Tls { ca: Some(layout.cert("ca")), cert: layout.cert("admin"), key: layout.key("admin") };
        let address = server.strip_prefix("https://").unwrap().to_owned();
        let prometheus = Prometheus::start(&[Target { job: "api", address, tls: Some(tls) }]).await?;
        assert_eq!(prometheus.value("up{job=\"api\"} == 1").await?, 1.0);
        assert!(prometheus.value("sum(apiserver_request_total)").await? > 1.0);
        Ok(())
    })
    .await;
    assert!(down(&state_dir, |line| eprintln!("{line}")).await.unwrap());
    result.unwrap();
    assert_eq!(Snapshot::take(&state_dir).processes, before.processes);
}
