//! `podway flow` over many pods, as a user types it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends at what it did not expect")]

mod support;

use serde_json::{Value, json};
use std::process::{Output, Stdio};
use support::api::{FakeApi, NODES};
use support::world;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

async fn flow(api: &FakeApi, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podway"));
    command.arg("flow").args(args).arg("--kubeconfig").arg(api.kubeconfig()).output().await.unwrap()
}

fn out(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_of_a_selector_of_a_pod_and_of_all() {
    let api = FakeApi::start().await;
    world::fill(&api);
    let web = out(&flow(&api, &["-l", "app=web", "stats"]).await);
    assert!(web.starts_with("17 pods, 16 Ready\n") && web.contains("failed: ImagesPulled in 1 pod"), "{web}");
    let all: Value = serde_json::from_str(&out(&flow(&api, &["stats", "-A", "-o", "json"]).await)).unwrap();
    assert_eq!([&all["pods"], &all["ready"], &all["coarse"]], [&json!(27), &json!(25), &json!(1)]);
    let one = out(&flow(&api, &["web-1", "chain"]).await);
    assert!(
        one.starts_with("default/web-1: its critical path\n") && one.contains("ContainersCreated"),
        "{one}"
    );
    let blame = out(&flow(&api, &["-l", "app=api", "blame"]).await);
    assert!(blame.lines().nth(2).unwrap().starts_with("ImagesPulled "), "{blame}");
    let compared = out(&flow(&api, &["compare", "app=web", "default/api-3"]).await);
    assert!(compared.contains("slower by") && compared.contains("most by ImagesPulled"), "{compared}");
    let args = ["stats", "-o", "kube-burner", "-l", "app=api", "--job-name", "nightly"];
    let documents: Vec<Value> = serde_json::from_str(&out(&flow(&api, &args).await)).unwrap();
    assert_eq!(documents.len(), 8 + 4);
    assert!(documents.iter().all(|d| d["jobName"] == "nightly" && d["uuid"] == documents[0]["uuid"]));
    // What no part of ours ran is told with its resolution.
    let stock = out(&flow(&api, &["kubelet-0"]).await);
    assert!(stock.contains("Ready in ~4000 ms") && stock.contains("1250.00"), "{stock}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_told_is_an_error_with_a_hint() {
    let api = FakeApi::start().await;
    world::fill(&api);
    for (args, said) in [
        (&["-l", "app=none", "stats"][..], "no pod with app=none"),
        (&["-l", "app=web"], "no pod is named"),
        (&["web-1", "-l", "app=web", "stats"], "exclude each other"),
        (&["stats", "-o", "html"], "not supported"),
        (&["web-1", "-o", "kube-burner"], "not supported: -o kube-burner"),
        (&["compare", "nobody", "web-1"], "pod default/nobody does not exist"),
    ] {
        let output = flow(&api, args).await;
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && error.contains(said) && error.contains("hint: "),
            "{args:?}: {error}"
        );
    }
    api.refuse("podflows");
    let error = String::from_utf8(flow(&api, &["stats"]).await.stderr).unwrap();
    assert!(error.contains("listing podflows") && error.contains("kubectl auth can-i"), "{error}");
}

/// `podway flow -w` of a pod, and the lines that it prints.
fn follow(api: &FakeApi, pod: &str) -> (Child, tokio::io::Lines<BufReader<tokio::process::ChildStdout>>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podway"));
    command.args(["flow", pod, "-w", "--kubeconfig"]).arg(api.kubeconfig()).kill_on_drop(true);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    (child, lines)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_is_shown_as_it_goes_until_the_pod_is_ready() {
    let api = FakeApi::start().await;
    world::pulling(&api, "slow", 10 << 20);
    let (child, mut lines) = follow(&api, "slow");
    for (received, said) in
        [(10, "  25%  10.0 MiB of 40.0 MiB  5.0 MiB/s  6.0 s left"), (30, "  75%  30.0 MiB of 40.0 MiB")]
    {
        world::pulling(&api, "slow", received << 20);
        loop {
            let line = lines.next_line().await.unwrap().expect("it goes on");
            assert!(!line.contains("of-another"), "another pod's pull: {line}");
            if line.starts_with("registry.local/web:v9  ") && line.contains(said) {
                break;
            }
        }
        let layer = lines.next_line().await.unwrap().unwrap();
        assert!(layer.starts_with("  sha256:a1a1a1a1a1a1  downloading"), "{layer}");
    }
    world::ready(&api, "default", "slow", "web", 0, 200);
    // Whatever is still said is read, so that it can end.
    while lines.next_line().await.unwrap().is_some() {}
    let output = child.wait_with_output().await.unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && error.contains("pod default/slow is Ready"), "{error}");
    assert!(!error.contains("image pulls"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_pulls_cannot_be_shown_it_is_said_once_and_all_else_stays() {
    for (refuse, said) in [(None, "no agent of podway runs it"), (Some(NODES), "forbidden: no <b>rights</b>")]
    {
        let api = FakeApi::start().await;
        if let Some(resource) = refuse {
            api.refuse(resource);
        }
        let pod = world::pod("default", "stock", &json!({}), &json!({"phase": "Pending"}));
        api.pod(&pod);
        let (mut child, _lines) = follow(&api, "stock");
        let mut errors = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = errors.next_line().await.unwrap().unwrap();
        assert!(line.contains("image pulls are not shown as they go: ") && line.contains(said), "{line}");
        world::ready(&api, "default", "stock", "web", 0, 200);
        let line = errors.next_line().await.unwrap().unwrap();
        assert!(line.contains("pod default/stock is Ready"), "{line}");
        assert!(child.wait().await.unwrap().success());
    }
}
