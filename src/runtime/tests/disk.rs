//! A full disk: every call fails in words that say so, what it began is undone, what ends is told,
//! and once there is space again the same calls succeed.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

#[path = "support/cri.rs"]
mod cri;
#[path = "support/node.rs"]
mod node;
#[path = "support/process.rs"]
mod process;

use node::Node;
use podway_cri::v1;
use process::Process;
use std::io::Write as _;

/// Not a test of its own: see [`process::run`].
#[tokio::test(flavor = "multi_thread")]
async fn runtime_process() {
    process::run().await;
}

/// Takes all space that is left below the node's root.
fn fill(node: &Node) {
    let mut file = std::fs::File::create(node.at("root/ballast")).unwrap();
    let mut block = vec![7; 1 << 20];
    while !block.is_empty() {
        while file.write_all(&block).is_ok() {}
        block.truncate(block.len() / 2);
    }
}

fn empty(node: &Node) {
    std::fs::remove_file(node.at("root/ballast")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_survived_and_healed() {
    let Some(node) = node::node() else { return };
    node.remount_root("size=24m");
    let mut process = Process::start(&node);
    let mut cri = process.connect(&node).await;
    let pod = node.sandbox("full", 0);
    let (sandbox, _) = cri.run_sandbox(pod.clone()).await.unwrap();
    let script = "busybox mkfifo /go; read x < /go; exit 9";
    let (id, _) = cri.create(&sandbox, node.container("app", script), pod.clone()).await.unwrap();
    cri.start(&id).await.unwrap();
    let ready = ["sh", "-c", "until test -p /go; do sleep 0.02; done"];
    assert_eq!(cri.exec(&id, &ready).await.unwrap().exit_code, 0);
    fill(&node);

    // Nothing can be begun, for nothing can be journalled; and nothing of it is left.
    let full = |error: tonic::Status| {
        assert!(error.message().contains("No space left on device"), "{error:?}");
        assert!(error.message().contains("check that the disk has space"), "{error:?}");
    };
    full(cri.run_sandbox(node.sandbox("more", 0)).await.unwrap_err());
    full(cri.create(&sandbox, node.container("more", "true"), pod.clone()).await.unwrap_err());
    let pods = cri.runtime.list_pod_sandbox(v1::ListPodSandboxRequest::default()).await.unwrap();
    assert_eq!(pods.into_inner().items.len(), 1);
    assert_eq!(std::fs::read_dir(node.at("state/ns")).unwrap().count(), 1);

    // What ends is known to have ended, with its code, though no file can say so.
    let release = ["sh", "-c", "echo > /go"];
    drop(cri.exec(&id, &release).await);
    let status = cri.exited(&id).await;
    assert_eq!(status.exit_code, 9);

    // A runtime that starts on the full disk serves what it has.
    drop(process);
    process = Process::start(&node);
    cri = process.connect(&node).await;
    assert_eq!(cri.status(&id).await.state, v1::ContainerState::ContainerExited as i32);

    empty(&node);
    cri.remove(&id).await;
    let (id, _) = cri.create(&sandbox, node.container("more", "exit 4"), pod.clone()).await.unwrap();
    cri.start(&id).await.unwrap();
    assert_eq!(cri.exited(&id).await.exit_code, 4);
    let (second, _) = cri.run_sandbox(node.sandbox("more", 0)).await.unwrap();

    // Removal needs no space: it is what makes some.
    fill(&node);
    cri.remove_pod(&sandbox).await;
    cri.remove_pod(&second).await;
    drop(process);
    node.unmount_root();
    assert_eq!(node.leftovers(), Vec::<String>::new());
}
