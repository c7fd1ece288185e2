//! logs, exec and delete through an unmodified kubectl.

use anyhow::ensure;
use k8s_openapi::api::core::v1::Pod;
use podway_tests::namespace::{Ns, STAY, pod};
use serde_json::json;
use std::time::{Duration, Instant};

pub async fn logs(ns: Ns) -> anyhow::Result<()> {
    let script = "for i in 1 2 3 4 5; do echo line $i; sleep 0.2; done; echo to stderr >&2";
    let _: Pod = ns.create(pod("talks", script, json!({"restartPolicy": "Never"}))).await?;
    ns.pod("talks", "its start", |p| {
        !podway_tests::namespace::phase(p).is_empty() && podway_tests::namespace::phase(p) != "Pending"
    })
    .await?;
    let whole = "line 1\nline 2\nline 3\nline 4\nline 5\nto stderr\n";
    let followed = ns.kubectl(&["logs", "-f", "talks"]).await?;
    ensure!(followed == whole, "logs -f gave {followed:?}");
    ns.ended("talks").await?;
    ensure!(ns.kubectl(&["logs", "talks"]).await? == whole);
    ensure!(ns.kubectl(&["logs", "talks", "--tail=2"]).await? == "line 5\nto stderr\n");
    ensure!(ns.kubectl(&["logs", "talks", "--since=1h"]).await? == whole);
    let stamped = ns.kubectl(&["logs", "talks", "--timestamps", "--tail=1"]).await?;
    ensure!(stamped.starts_with("20") && stamped.ends_with("Z to stderr\n"), "{stamped:?}");
    Ok(())
}

pub async fn exec(ns: Ns) -> anyhow::Result<()> {
    let _: Pod = ns.create(pod("runs", STAY, json!({}))).await?;
    ns.ready("runs").await?;
    let answer =
        ns.kubectl_any(&["exec", "runs", "--", "sh", "-c", "echo out; echo err >&2; exit 7"], "").await?;
    ensure!((answer.code, answer.out.as_str()) == (7, "out\n"), "{answer:?}");
    ensure!(answer.err.starts_with("err\n") && answer.err.contains("exit code 7"), "{answer:?}");
    let data = "a line\n".repeat(10_000);
    let answer = ns.kubectl_any(&["exec", "-i", "runs", "--", "cat"], &data).await?;
    ensure!(
        answer.code == 0 && answer.out == data,
        "exec -i gave {} bytes, {}",
        answer.out.len(),
        answer.err
    );
    let answer = ns.kubectl_any(&["exec", "runs", "--", "/no/such/program"], "").await?;
    ensure!(answer.code != 0 && answer.err.contains("no such file or directory"), "{answer:?}");
    ensure!(ns.kubectl(&["exec", "runs", "--", "hostname"]).await? == "runs\n");
    Ok(())
}

pub async fn deleted_with_grace(ns: Ns) -> anyhow::Result<()> {
    let polite = "trap 'sleep 1; exit 0' TERM; sleep 3600 & wait $!";
    let deaf = "trap '' TERM; while true; do sleep 1; done";
    for (name, script, grace, at_least, at_most) in
        [("polite", polite, 30, 900, 8_000), ("deaf", deaf, 2, 1_900, 10_000), ("prompt", STAY, 30, 0, 5_000)]
    {
        let _: Pod = ns.create(pod(name, script, json!({"terminationGracePeriodSeconds": grace}))).await?;
        let ready = ns.ready(name).await?;
        let start = Instant::now();
        ns.kubectl(&["delete", "pod", name, "--wait=false"]).await?;
        ns.gone(&ready).await?;
        let took = start.elapsed();
        println!("{name}: gone after {took:?}");
        ensure!(
            took >= Duration::from_millis(at_least) && took <= Duration::from_millis(at_most),
            "{name} was gone after {took:?}"
        );
    }
    Ok(())
}
