//! A stock kubelet takes the place of our agent: our runtime is a CRI server like another.
//!
//! What a kubelet asks of a runtime over a pod's life is asked here, and looked at from outside, by an unmodified
//! kubectl: init containers and a sidecar, all kinds of probes and hooks, volumes, restarts and their reasons, logs,
//! streams, a debug container, metrics, deletion with grace.

use super::streams::{into, talker};
use anyhow::{Context as _, ensure};
use futures::FutureExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, ContainerStatus, Node, Pod, Secret};
use kube::api::Api;
use podway_tests::namespace::{LIMIT, Ns, STAY, container, node, pod, status, waiting};
use podway_tests::swap::{Swapped, is_on};
use podway_tests::wait;
use serde_json::{Value, json};
use std::panic::AssertUnwindSafe;

const NODE: &str = "podway-1";

pub async fn on_our_runtime(ns: Ns) -> anyhow::Result<()> {
    let swapped = Swapped::kubelet_on_runtime(&ns.cluster, NODE).await?;
    let result = AssertUnwindSafe(used(&ns)).catch_unwind().await;
    let stopped = swapped.stop().await;
    let again = async {
        ns.cluster.up_again().await?;
        is_on(&ns.cluster, NODE, "podway://").await
    };
    let again = again.await;
    // Pods that a failure left behind keep the kubelet's directory: the failure is what is told.
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    stopped.and(again)
}

async fn used(ns: &Ns) -> anyhow::Result<()> {
    kubelets_own(ns).await?;
    tokio::try_join!(a_rich_pod(ns), streamed(ns), ends(ns))?;
    // Our agent would take what it finds for containers of another definition.
    ns.kubectl(&["delete", "pods", "--all"]).await.map(drop)
}

/// The node is the kubelet's by its version, which our agent's is not, and Ready on our runtime.
async fn kubelets_own(ns: &Ns) -> anyhow::Result<()> {
    let version = |node: &Node| Some(node.status.as_ref()?.node_info.as_ref()?.kubelet_version.clone());
    let kubelets =
        |node: &Node| version(node).is_some_and(|v| v.starts_with("v1.36.") && !v.contains("podway"));
    let nodes: Api<Node> = Api::all(ns.cluster.client.clone());
    wait::until(nodes, &format!("metadata.name={NODE}"), "a kubelet's version", LIMIT, kubelets).await?;
    is_on(&ns.cluster, NODE, "podway://").await
}

fn here(mut spec: Value) -> Value {
    spec["nodeSelector"] = json!({"kubernetes.io/hostname": NODE});
    spec
}

async fn a_rich_pod(ns: &Ns) -> anyhow::Result<()> {
    let _: ConfigMap = ns.create(json!({"metadata": {"name": "map"}, "data": {"word": "mapped"}})).await?;
    let _: Secret =
        ns.create(json!({"metadata": {"name": "hush"}, "stringData": {"word": "hidden"}})).await?;
    let shared = json!([{"name": "shared", "mountPath": "/shared"}]);
    let with = |name: &str, script: &str, more: Value| {
        let mut made = container(name, script);
        made["volumeMounts"] = shared.clone();
        for (key, value) in more.as_object().into_iter().flatten() {
            made[key] = value.clone();
        }
        made
    };
    let first = with("first", "echo first >> /shared/order", json!({}));
    let sidecar = with(
        "sidecar",
        "echo sidecar >> /shared/order; trap 'echo sidecar ends >> /shared/order; exit 0' TERM; \
         touch /shared/up; while true; do sleep 0.1; done",
        json!({"restartPolicy": "Always", "startupProbe": {"exec": {"command": ["test", "-e", "/shared/up"]},
            "periodSeconds": 1}}),
    );
    let last = with("last", "echo last >> /shared/order", json!({}));
    let mut main = with(
        "main",
        "until [ -e /shared/hooked ]; do sleep 0.05; done; echo main >> /shared/order; mkdir -p /srv; \
         echo well > /srv/health; busybox httpd -p 8080 -h /srv; \
         cat /map/word /hush/word; echo; wc -c < /var/run/secrets/kubernetes.io/serviceaccount/namespace; \
         cat /etc/hostname; echo \"$WORD $POD_IP\"; trap 'exit 0' TERM; while true; do sleep 0.1; done",
        json!({
            "env": [
                {"name": "WORD", "valueFrom": {"configMapKeyRef": {"name": "map", "key": "word"}}},
                {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
            "startupProbe": {"exec": {"command": ["test", "-e", "/srv/health"]}, "periodSeconds": 1},
            "readinessProbe": {"httpGet": {"path": "/health", "port": 8080}, "periodSeconds": 1},
            "livenessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
            "lifecycle": {
                "postStart": {"exec": {"command": ["touch", "/shared/hooked"]}},
                "preStop": {"exec": {"command": ["sh", "-c", "cp /shared/order /kept/order; echo stopped >> /kept/order"]}}},
            "resources": {"requests": {"cpu": "50m", "memory": "16Mi"}, "limits": {"cpu": "500m", "memory": "64Mi"}},
            "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": false,
                "seccompProfile": {"type": "RuntimeDefault"}}}),
    );
    main["volumeMounts"].as_array_mut().context("mounts")?.extend([
        json!({"name": "map", "mountPath": "/map"}),
        json!({"name": "hush", "mountPath": "/hush"}),
        json!({"name": "kept", "mountPath": "/kept"}),
    ]);
    let kept = ns.cluster.layout.root().join(format!("kept-{}", ns.name));
    let spec = json!({
        "automountServiceAccountToken": true,
        "terminationGracePeriodSeconds": 20,
        "initContainers": [first, sidecar, last],
        "containers": [main],
        "volumes": [
            {"name": "shared", "emptyDir": {}},
            {"name": "map", "configMap": {"name": "map"}},
            {"name": "hush", "secret": {"secretName": "hush"}},
            {"name": "kept", "hostPath": {"path": kept, "type": "DirectoryOrCreate"}}]});
    let _: Pod = ns.create(pod("rich", "", here(spec))).await?;
    let ready = ns.ready("rich").await?;
    ensure!(node(&ready) == NODE, "it is on {:?}", node(&ready));
    let main = status(&ready, "main").context("its status")?;
    ensure!(main.container_id.as_deref().is_some_and(|id| id.starts_with("podway://")), "{main:?}");
    ensure!(main.restart_count == 0 && main.started == Some(true), "{main:?}");
    ensure!(main.image_id.contains("sha256:"), "{main:?}");
    for name in ["first", "last"] {
        let ended = status(&ready, name).and_then(|s| s.state.as_ref()?.terminated.as_ref());
        ensure!(
            ended.is_some_and(|t| t.exit_code == 0 && t.reason.as_deref() == Some("Completed")),
            "{ended:?}"
        );
    }
    let order = ns.kubectl(&["exec", "rich", "-c", "main", "--", "cat", "/shared/order"]).await?;
    ensure!(order == "first\nsidecar\nlast\nmain\n", "they started so: {order:?}");
    let ip = ready.status.as_ref().and_then(|s| s.pod_ip.as_deref()).context("its address")?;
    let said = format!("mappedhidden\n{}\nrich\nmapped {ip}\n", ns.name.len());
    ns.until_log("rich", "main", &format!("mapped {ip}")).await?;
    let log = ns.kubectl(&["logs", "rich", "-c", "main"]).await?;
    ensure!(log == said, "it says {log:?}, not {said:?}");

    // A debug container joins, in the main one's PID namespace.
    let debug =
        ["debug", "rich", "--image", podway_tests::namespace::BUSYBOX, "--target", "main", "-c", "debugger"];
    let mut args = debug.to_vec();
    args.extend(["--", "sh", "-c", "cat /proc/1/root/srv/health"]);
    ns.kubectl(&args).await?;
    let ended = |p: &Pod| {
        let all = p.status.as_ref().and_then(|s| s.ephemeral_container_statuses.as_ref());
        terminated(all.and_then(|a| a.iter().find(|s| s.name == "debugger"))).is_some()
    };
    ns.pod("rich", "its debug container ended", ended).await?;
    ensure!(ns.kubectl(&["logs", "rich", "-c", "debugger"]).await? == "well\n");

    // What the kubelet tells of it, it has from the runtime.
    let stats = format!("/api/v1/nodes/{NODE}/proxy/stats/summary");
    let summary: Value = serde_json::from_str(&ns.kubectl(&["get", "--raw", &stats]).await?)?;
    let of_it = |p: &&Value| p["podRef"]["name"] == "rich" && p["podRef"]["namespace"] == ns.name;
    let told = summary["pods"].as_array().into_iter().flatten().find(of_it).context("no stats of the pod")?;
    let main = told["containers"].as_array().into_iter().flatten().find(|c| c["name"] == "main");
    let used = main.and_then(|c| c["memory"]["workingSetBytes"].as_u64());
    ensure!(used.is_some_and(|bytes| bytes > 0), "its memory is told as {told}");

    ns.kubectl(&["delete", "pod", "rich", "--wait=false"]).await?;
    ns.gone(&ready).await?;
    let order = std::fs::read_to_string(kept.join("order")).context("preStop did not run")?;
    std::fs::remove_dir_all(&kept)?;
    // The sidecar is ended after the main container.
    ensure!(order == "first\nsidecar\nlast\nmain\nstopped\n", "at its preStop it was {order:?}");
    Ok(())
}

async fn streamed(ns: &Ns) -> anyhow::Result<()> {
    let _: Pod = ns.create(talker("talks", here(json!({})))).await?;
    ns.ready("talks").await?;
    ns.until_log("talks", "main", "up").await?;
    for web_sockets in ["true", "false"] {
        into(ns, "talks", web_sockets).await?;
    }
    Ok(())
}

/// The ways a container ends, by the kubelet's own words.
async fn ends(ns: &Ns) -> anyhow::Result<()> {
    let limit = json!({"limits": {"memory": "32Mi"}});
    let never = |more: Value| {
        let mut spec = here(json!({"restartPolicy": "Never"}));
        spec["main"] = more;
        spec
    };
    let fills = "exec dd if=/dev/zero of=/dev/null bs=64M count=1";
    let _: Pod = ns.create(pod("fills", fills, never(json!({"resources": limit})))).await?;
    let _: Pod = ns.create(pod("no-such", "", never(json!({"command": ["/no/such"]})))).await?;
    let _: Pod = ns.create(pod("crashes", "echo run; exit 3", here(json!({})))).await?;
    let ill = json!({"main": {"livenessProbe": {"exec": {"command": ["test", "-e", "/well"]}, "periodSeconds": 1,
        "failureThreshold": 1}}, "terminationGracePeriodSeconds": 1});
    let _: Pod = ns.create(pod("ill", "touch /well; sleep 2; rm /well; exec sleep 3600", here(ill))).await?;
    let _: Pod =
        ns.create(pod("absent", STAY, here(json!({"main": {"image": "localhost/no/such:1"}})))).await?;

    for (name, code, reason) in [("fills", 137, "OOMKilled"), ("no-such", 128, "StartError")] {
        let ended = ns.pod(name, "ended", |p| terminated(status(p, "main")).is_some()).await?;
        let (was, why) = terminated(status(&ended, "main")).context("ended")?;
        ensure!((was, why.as_str()) == (code, reason), "{name} ended with {was} {why}");
    }
    let again = |p: &Pod| waiting(p, "main").0 == "CrashLoopBackOff";
    let crashed = ns.pod("crashes", "CrashLoopBackOff", again).await?;
    let last = status(&crashed, "main").and_then(|s| s.last_state.as_ref()?.terminated.as_ref());
    ensure!(last.is_some_and(|t| t.exit_code == 3 && t.reason.as_deref() == Some("Error")), "{last:?}");
    // The kubelet may have removed the container that its status still names, or removes it between the question
    // of its log's path and the reading of it: it is asked again then.
    const REMOVED: [&str; 2] = ["unable to retrieve container logs", "failed to try resolving symlinks"];
    let before = async {
        loop {
            let said = ns.kubectl(&["logs", "--previous", "crashes"]).await?;
            if said == "run\n" {
                return anyhow::Ok(());
            }
            ensure!(REMOVED.iter().any(|words| said.starts_with(words)), "{said:?}");
        }
    };
    tokio::time::timeout(LIMIT, before).await.context("no log of the container before")??;
    ns.pod("ill", "restarted", |p| status(p, "main").is_some_and(|s| s.restart_count >= 1)).await?;
    let pulls = |p: &Pod| ["ErrImagePull", "ImagePullBackOff"].contains(&waiting(p, "main").0);
    ns.pod("absent", "ErrImagePull", pulls).await?;
    Ok(())
}

fn terminated(status: Option<&ContainerStatus>) -> Option<(i32, String)> {
    let ended = status?.state.as_ref()?.terminated.as_ref()?;
    Some((ended.exit_code, ended.reason.clone().unwrap_or_default()))
}
