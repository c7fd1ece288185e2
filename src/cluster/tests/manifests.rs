//! The manifests on a real API server: taken by a server-side dry run, then for real.

#![expect(clippy::unwrap_used, reason = "a test: a panic is its failure")]

use std::path::{Path, PathBuf};
use std::process::Command;

use podway_cluster::{Program, UpOptions, down, up};

fn kubectl(program: &Path, kubeconfig: &Path, args: &[&str]) -> String {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let output = Command::new(program)
        .current_dir(repository)
        .arg("--kubeconfig")
        .arg(kubeconfig)
        .args(args)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// Takes the cluster down, also when the test fails.
struct Guard(PathBuf);

impl Drop for Guard {
    fn drop(&mut self) {
        let state_dir = self.0.clone();
        let work = move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(down(&state_dir, |line| eprintln!("{line}"))).unwrap();
        };
        // Not in the test's own runtime, which may not be blocked.
        drop(std::thread::spawn(work).join());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_api_server_takes_every_manifest() {
    let dir = tempfile::tempdir().unwrap();
    let state_dir = dir.path().join("state");
    let guard = Guard(state_dir.clone());
    let options =
        UpOptions { state_dir: state_dir.clone(), control_plane_only: true, ..UpOptions::default() };
    let cluster = up(options, |line| eprintln!("{line}")).await.unwrap();
    let program = Program::Kubectl.locate(&|line| eprintln!("{line}")).await.unwrap();
    let run = |args: &[&str]| kubectl(&program, &cluster.kubeconfig, args);

    // On a server that has the namespace and not yet the definitions, as any cluster may be.
    run(&["apply", "--server-side", "--force-conflicts", "--dry-run=server", "-k", "manifests"]);
    let applied = run(&["apply", "--server-side", "--force-conflicts", "-k", "manifests"]);
    for object in [
        "customresourcedefinition.apiextensions.k8s.io/podflows.podway.dev",
        "deployment.apps/podway-scheduler",
        "service/podway-scheduler",
        "daemonset.apps/podway-agent",
        "clusterrolebinding.rbac.authorization.k8s.io/podway-scheduler",
    ] {
        assert!(applied.contains(&format!("{object} serverside-applied")), "{object}: {applied}");
    }
    // The same again, as kubectl apply without flags does it, and the examples.
    run(&["apply", "--dry-run=server", "-k", "manifests"]);
    run(&["apply", "-f", "manifests/examples"]);

    // The scheduler may what it needs, and no more.
    let may = |verb: &str, what: &str| {
        let (what, part) = what.split_once('/').unwrap_or((what, ""));
        let part = format!("--subresource={part}");
        let account = "--as=system:serviceaccount:podway-system:podway-scheduler";
        let args = ["auth", "can-i", verb, what, &part, "-A", account];
        let output =
            Command::new(&program).arg("--kubeconfig").arg(&cluster.kubeconfig).args(args).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim() == "yes"
    };
    for (verb, what, expected) in [
        ("create", "pods/binding", true),
        ("patch", "pods/status", true),
        ("watch", "nodes", true),
        ("get", "secrets", false),
        // Preemption.
        ("delete", "pods", true),
        ("create", "pods", false),
        ("patch", "pods", false),
        ("patch", "nodes", false),
    ] {
        assert_eq!(may(verb, what), expected, "{verb} {what}");
    }
    only_its_own_flows(&program, &cluster.kubeconfig).await;
    drop(guard);
    assert!(!state_dir.exists());
}

/// A node may write the flows of its own pods, and not another's.
async fn only_its_own_flows(program: &Path, kubeconfig: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let write = |node: &str| {
        let file = dir.path().join(node);
        let flow = format!(
            "{{\"apiVersion\": \"podway.dev/v1alpha1\", \"kind\": \"PodFlow\", \"metadata\": {{\"name\": \"x\", \"namespace\": \"default\"}}, \
             \"spec\": {{\"podName\": \"x\", \"podUID\": \"u\", \"nodeName\": \"{node}\"}}}}"
        );
        std::fs::write(&file, flow).unwrap();
        let args = ["create", "--dry-run=server", "--as=system:node:one", "--as-group=system:nodes", "-f"];
        let output =
            Command::new(program).arg("--kubeconfig").arg(kubeconfig).args(args).arg(&file).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    // The server tells nobody when it has begun to heed a new policy: until then anything goes.
    let refused = async {
        loop {
            match write("two") {
                (false, why) => return why,
                (true, _) => tokio::time::sleep(std::time::Duration::from_millis(200)).await,
            }
        }
    };
    let why = tokio::time::timeout(std::time::Duration::from_secs(60), refused).await.unwrap();
    assert!(why.contains("is of a pod on node \"two\", and its writer is node \"one\""), "{why}");
    assert_eq!(write("one"), (true, String::new()));
}
