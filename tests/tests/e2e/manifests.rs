//! The manifests run: the image that `podway up` builds of itself, in a pod, as its service account,
//! reaching the API server by the address of the `kubernetes` service.

use anyhow::{Context as _, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::Api;
use kube::api::ListParams;
use podway_tests::namespace::{LIMIT, Ns, STAY, pod};
use podway_tests::{audit, wait};
use serde_json::json;
use std::path::Path;

const SYSTEM: &str = "podway-system";
/// As the patch of `manifests/kustomization.yaml` beside this file says.
const NAME: &str = "podway-in-a-pod";
const PARTS: &str = "app.kubernetes.io/name=podway";

fn path(of: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(of).display().to_string()
}

pub async fn the_scheduler_in_a_pod(ns: Ns) -> anyhow::Result<()> {
    let overlay = path("tests/e2e/manifests");
    let result = async {
        let args = ["apply", "-k", &overlay];
        let answer = ns.cluster.kubectl(&args, "").await?;
        ensure!(answer.code == 0, "kubectl {args:?}: {}", answer.err);
        runs(&ns).await
    };
    let result = result.await;
    if result.is_err() {
        let log = ["logs", "-n", SYSTEM, "deployment/podway-scheduler", "--tail=50"];
        match ns.cluster.kubectl(&log, "").await {
            Ok(answer) => eprintln!("the scheduler's log:\n{}{}", answer.out, answer.err),
            Err(error) => eprintln!("no log of the scheduler: {error:#}"),
        }
    }
    // Resources and rights stay: they are those of `up`.
    let [scheduler, agent] = ["scheduler", "agent"].map(|f| path(&format!("../manifests/{f}.yaml")));
    let deleted = ["delete", "--ignore-not-found", "-f", &scheduler, "-f", &agent];
    let answer = ns.cluster.kubectl(&deleted, "").await?;
    let gone = nothing_left(&ns).await;
    result?;
    ensure!(answer.code == 0, "kubectl {deleted:?}: {}", answer.err);
    gone
}

async fn runs(ns: &Ns) -> anyhow::Result<()> {
    let deployments: Api<Deployment> = Api::namespaced(ns.cluster.client.clone(), SYSTEM);
    // Another case may have applied it without the patch: the state of this one.
    let available = |d: &Deployment| {
        let status = d.status.as_ref();
        status.is_some_and(|s| {
            s.observed_generation == d.metadata.generation
                && s.replicas == Some(2)
                && s.updated_replicas == Some(2)
                && s.available_replicas == Some(2)
        })
    };
    wait::until(
        deployments,
        "metadata.name=podway-scheduler",
        "two replicas of the scheduler",
        LIMIT,
        available,
    )
    .await?;

    let log = ns.cluster.layout.audit_log();
    let mark = audit::mark(&log)?;
    let _: Pod = ns.create(pod("placed", STAY, json!({"schedulerName": NAME}))).await?;
    ns.ready("placed").await?;
    let requests = audit::since(&log, mark, &ns.name)?;
    let by: Vec<&str> = requests
        .iter()
        .filter(|r| r.object_ref.subresource == "binding")
        .map(|r| r.user.username.as_str())
        .collect();
    ensure!(by == ["system:serviceaccount:podway-system:podway-scheduler"], "bound by {by:?}");
    let ours = |e: &Event| e.reporting_component.as_deref() == Some(NAME);
    wait::until(ns.api(), "reason=Scheduled", "the event of the scheduler in a pod", LIMIT, ours).await?;
    api_server_by_its_service(ns).await
}

/// From a pod on each node, by the address in its environment. That what answers there is the API
/// server, and knows who asks, the binding above has shown; busybox has no TLS that works.
async fn api_server_by_its_service(ns: &Ns) -> anyhow::Result<()> {
    let script = "echo $KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT
                  nc -w 10 $KUBERNETES_SERVICE_HOST $KUBERNETES_SERVICE_PORT </dev/null && echo answered
                  sleep 3600";
    for node in ["podway-0", "podway-1"] {
        let name = format!("asks-on-{node}");
        let _: Pod = ns.create(pod(&name, script, json!({"nodeName": node}))).await?;
        ns.ready(&name).await?;
        ns.until_log(&name, "main", "10.96.0.1:443").await?;
        ns.until_log(&name, "main", "answered").await?;
    }
    Ok(())
}

async fn nothing_left(ns: &Ns) -> anyhow::Result<()> {
    let pods: Api<Pod> = Api::namespaced(ns.cluster.client.clone(), SYSTEM);
    for pod in pods.list(&ListParams::default().labels(PARTS)).await? {
        let name = pod.metadata.name.context("a pod's name")?;
        wait::until_gone(pods.clone(), &name, pod.metadata.uid.as_deref(), LIMIT).await?;
    }
    let all =
        ["-n", SYSTEM, "get", "deployments,replicasets,daemonsets,services,pods", "-l", PARTS, "-o", "name"];
    let answer = ns.cluster.kubectl(&all, "").await?;
    ensure!(answer.code == 0 && answer.out.is_empty(), "left: {}{}", answer.out, answer.err);
    Ok(())
}
