//! Checkpoints that come to nothing: without criu, with one that fails or takes too long, and with a runtime that is
//! killed in the middle of a dump. The container goes on each time, and nothing is left.
#![expect(clippy::unwrap_used, reason = "a test may fail by panicking")]

#[path = "support/cri.rs"]
mod cri;
#[path = "support/criu.rs"]
mod criu;
#[path = "support/node.rs"]
mod node;
#[path = "support/process.rs"]
mod process;

use cri::Cri;
use node::Node;
use podway_cri::v1;
use process::Process;
use std::time::Duration;
use tonic::{Code, Status};

/// Not a test of its own: see [`process::run`].
#[tokio::test(flavor = "multi_thread")]
async fn runtime_process() {
    process::run().await;
}

/// A container that runs; its sandbox and its own id.
async fn container(node: &Node, cri: &mut Cri) -> (String, String) {
    let pod = node.sandbox("pod", 0);
    let (sandbox, _) = cri.run_sandbox(pod.clone()).await.unwrap();
    let config = node.container("app", "while :; do sleep 1; done");
    let (id, _) = cri.create(&sandbox, config, pod).await.unwrap();
    cri.start(&id).await.unwrap();
    (sandbox, id)
}

async fn checkpoint(node: &Node, cri: &mut Cri, id: &str, timeout: i64) -> Result<(), Status> {
    let location = node.at("checkpoint.tar").display().to_string();
    let request = v1::CheckpointContainerRequest { container_id: id.to_owned(), location, timeout };
    cri.runtime.checkpoint_container(request).await.map(drop)
}

/// It runs commands, and there is no file of a checkpoint.
async fn goes_on(node: &Node, cri: &mut Cri, id: &str) {
    assert_eq!(cri.exec(id, &["echo", "on"]).await.unwrap().stdout, b"on\n");
    assert!(!node.at("root/containers").join(id).join("checkpoint").exists());
    let names = std::fs::read_dir(node.dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let names: Vec<_> = names.filter(|name| name.to_string_lossy().contains("checkpoint")).collect();
    assert!(names.is_empty(), "{names:?}");
}

/// One checkpoint with a stand-in for criu; gives why it came to nothing.
async fn refused(script: &str, timeout: i64) -> Option<Status> {
    let mut node = node::node()?;
    let path = criu::stand_in(&mut node, script);
    let mut process = Process::start_with(&node, &[("PATH", &path)]);
    let mut cri = process.connect(&node).await;
    let (sandbox, id) = container(&node, &mut cri).await;
    let error = checkpoint(&node, &mut cri, &id, timeout).await.unwrap_err();
    goes_on(&node, &mut cri, &id).await;
    cri.remove_pod(&sandbox).await;
    assert_eq!(node.leftovers(), Vec::<String>::new());
    Some(error)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_criu_says_is_told() {
    let script = "echo '(00.03) Error (criu/vdso.c:381): bounds' >$work/dump.log; echo >&2 'criu failed: type DUMP errno 0'; exit 1";
    let Some(error) = refused(script, 60).await else { return };
    let said =
        "OCI runtime checkpoint failed: criu failed: type DUMP errno 0: Error (criu/vdso.c:381): bounds";
    assert_eq!((error.code(), error.message()), (Code::Unknown, said));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_takes_too_long_is_broken_off() {
    let Some(error) = refused("exec sleep 1000", 1).await else { return };
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert!(error.message().ends_with("took longer than 1 s"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_criu_it_says_so() {
    let Some(node) = node::node() else { return };
    // Of the machine's programs only those that the network's plugins and the OCI runtime may want.
    let programs = node.at("few");
    std::fs::create_dir(&programs).unwrap();
    for name in ["iptables", "ip6tables", "sh"] {
        if let Some(program) = node::program("PODWAY_NONE", name) {
            std::os::unix::fs::symlink(program, programs.join(name)).unwrap();
        }
    }
    let mut process = Process::start_with(&node, &[("PATH", &programs.display().to_string())]);
    let mut cri = process.connect(&node).await;
    let (sandbox, id) = container(&node, &mut cri).await;
    let error = checkpoint(&node, &mut cri, &id, 60).await.unwrap_err();
    // By these words the kubelet's own test knows a node that cannot.
    let said = format!("CRIU binary not found or too old (<31600). Failed to checkpoint container {id:?}");
    assert_eq!(error.code(), Code::Unknown);
    assert!(error.message().starts_with(&said), "{error}");
    assert!(error.message().ends_with("there is no criu in PATH: install it"), "{error}");
    goes_on(&node, &mut cri, &id).await;
    cri.remove_pod(&sandbox).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runtime_killed_in_the_middle_of_a_dump_is_made_up_for() {
    let Some(mut node) = node::node() else { return };
    // A process of criu's name that has a file of the dump open, and does not end by itself.
    let dir = node.at("stuck");
    std::fs::create_dir(&dir).unwrap();
    let stuck = dir.join("criu");
    std::fs::copy("/bin/sleep", &stuck).unwrap();
    let script = format!("{} 1000 >$work/dump.log", stuck.display());
    let path = criu::stand_in(&mut node, &script);
    let mut process = Process::start_with(&node, &[("PATH", &path)]);
    let mut cri = process.connect(&node).await;
    let (sandbox, id) = container(&node, &mut cri).await;
    let log = node.at("root/containers").join(&id).join("checkpoint/dump.log");
    let begun = async {
        while !log.exists() {
            tokio::time::sleep(Duration::from_millis(3)).await;
        }
    };
    let mut other = cri.clone();
    tokio::select! {
        ended = checkpoint(&node, &mut other, &id, 60) => panic!("it ended: {ended:?}"),
        () = begun => {}
    }
    drop(process);
    let mut process = Process::start_with(&node, &[("PATH", &path)]);
    let mut cri = process.connect(&node).await;
    goes_on(&node, &mut cri, &id).await;
    let left = std::fs::read_dir("/proc").unwrap().flatten();
    let mut left = left.filter_map(|entry| std::fs::read_link(entry.path().join("exe")).ok());
    assert!(!left.any(|exe| exe == stuck), "criu is left");
    cri.remove_pod(&sandbox).await;
    assert_eq!(node.leftovers(), Vec::<String>::new());
}
